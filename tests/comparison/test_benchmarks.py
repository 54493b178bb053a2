"""The rivals and tables of the benchmarks, on a few small pictures."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import depths, honest, honest_page, low_shot, metrics, time_to_accuracy
from benchmarks.lora import LowRank, fit_lora

from gradfeat.fit import Plan, Problem
from gradfeat.fit.merge import fit_head
from gradfeat.fit.point import starting_model
from gradfeat.fit.predict import loss_at
from gradfeat.fit.spans import subspace_of
from gradfeat.metrics.scores import expected_calibration_error
from gradfeat.pretrain import save_encoder
from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.solvers.finetune import honest_search
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.subspace import Penalties


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    folder = tmp_path_factory.mktemp("benchmarks")
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, n in (("train", 40), ("test", 20)):
        y = np.arange(n) % 2
        parts[f"X_{part}"] = (rng.integers(0, 128, size=(n, 8, 8, 1)) + 60 * y[:, None, None, None]).astype(np.uint8)
        parts[f"y_{part}"] = y
    np.savez(folder / "shades.npz", **parts)
    torch.manual_seed(0)
    scaling = {"size": [8, 8], "mean": [0.5], "std": [0.5], "resize": "squash", "channels": 1}
    encoder = ConvEncoder(1, channels=(4, 6), strides=(2, 2)).eval()
    path = save_encoder(encoder, folder / "encoder.safetensors", task="vae", preprocessing=scaling)
    return time_to_accuracy.data_parser("").parse_args([str(folder / "shades.npz"), "-b", f"gradfeat/{path}"])


@pytest.fixture(scope="module")
def problem(arguments: argparse.Namespace) -> Problem:
    return time_to_accuracy.prepared(arguments)[0]


def test_lora_starts_as_the_probe_and_moves_weights_by_a_low_rank(problem: Problem) -> None:
    everything = torch.arange(problem.n)
    start = LowRank(problem, 2, torch.Generator().manual_seed(0))
    probe = problem.store.features @ problem.probe.omega + problem.probe.bias
    torch.testing.assert_close(start(everything), probe, rtol=1e-4, atol=1e-4)
    fit = fit_lora(problem, honest_search(epochs=4, batch_size=8, fixed=True), rank=2)
    assert fit.selection is not None
    assert len(fit.selection.scores) >= 6
    assert loss_at(problem, fit.model, everything) < loss_at(problem, starting_model(problem, "activation"), everything)
    for name, moved in fit.model.w2.items():
        if moved.ndim < 2:
            assert not moved.any(), name
        else:
            values = torch.linalg.svdvals(moved.detach().flatten(1))
            assert float(values[0]) > 0
            assert float(values[2:].max()) < 1e-5 * float(values[0])


def test_judge_tells_the_calibration_error(arguments: argparse.Namespace) -> None:
    problem, judge = time_to_accuracy.prepared(arguments)
    model = starting_model(problem, "activation")
    probability = problem.loss.predict_proba(judge.store.features.double() @ model.w1.double() + model.b.double())
    found = judge(model)["calibration_error"]
    assert found == pytest.approx(expected_calibration_error(judge.truth, probability.detach().numpy()), abs=1e-5)


def test_merged_is_the_network_at_the_moved_weights(problem: Problem) -> None:
    full = low_shot.fit(problem, "full", 1)
    merged = low_shot.merged(problem, full)
    head = fit_head(full.model, problem.store, random_state=0)
    moved = {name: value + head.step * full.model.w2[name] for name, value in problem.linearization.theta2.items()}
    f = problem.linearization.network(moved, problem.store.z0(torch.arange(problem.n)))
    found = merged.model.finetuned(problem.store.z0(torch.arange(problem.n)))
    torch.testing.assert_close(found, f @ head.weight + head.bias, rtol=1e-5, atol=1e-5)
    assert any(value.any() for value in full.model.w2.values())


def test_solver_is_judged_after_each_iteration_and_ends_where_a_fit_with_its_penalties_does(
    arguments: argparse.Namespace,
) -> None:
    problem, judge = time_to_accuracy.prepared(arguments)
    y = problem.y.roll(1) ^ (problem.y & (torch.arange(problem.n) % 3 == 0))  # that no model can tell
    probe = fit_probe(problem.store.features, y, problem.loss, penalty=0.1)
    problem = replace(problem, y=y, probe=probe)
    first = time_to_accuracy.Reading(0.0, 0.0, 0.0, {})
    readings = time_to_accuracy.by_solver(problem, judge, first)
    assert readings[0] is first
    assert len(readings) >= 3
    for name in ("seconds", "passes"):
        values = [getattr(reading, name) for reading in readings]
        assert values == sorted(set(values)), name
    plan, generator = Plan(metric="whitened"), torch.Generator().manual_seed(0)
    subspace = subspace_of(problem, plan, probe.omega, probe.bias, problem.n, generator)
    subspace.add_w1(probe.omega)
    found, _ = subspace.solve(Penalties(probe.penalty, time_to_accuracy.LAMBDA2 * subspace.unit))
    model = starting_model(problem, "full")
    model.set_weights(**dict(zip(("w1", "b", "w2"), subspace.weights(found), strict=True)))
    expected = judge(model)["log_loss"]
    assert readings[-1].metrics["log_loss"] == pytest.approx(expected, rel=0.02)
    assert abs(readings[1].metrics["log_loss"] / expected - 1) > 0.02


def test_ways_of_an_earlier_run_with_the_same_settings_stay(arguments: argparse.Namespace, tmp_path: Path) -> None:
    here = argparse.Namespace(**vars(arguments), out=tmp_path)
    assert time_to_accuracy.earlier("low_shot", here) == {}
    readings = {"full": {"5": [[0.5, 1.0, 2.0]]}}
    time_to_accuracy.write("low_shot", here, "", {"readings": readings, "draws": 1})
    assert time_to_accuracy.earlier("low_shot", here, draws=1) == readings
    assert time_to_accuracy.earlier("low_shot", here, draws=5) == {}
    assert time_to_accuracy.earlier("low_shot", argparse.Namespace(**{**vars(here), "labelled": 20}), draws=1) == {}


def test_tables_have_a_row_for_each_way_and_depth(arguments: argparse.Namespace, tmp_path: Path) -> None:
    ways = argparse.Namespace(**vars(arguments), ways=["subspace", "lora"], finetune_epochs=1, epochs=1)
    text = time_to_accuracy.table(dict(time_to_accuracy.run(ways)))
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| probe", "| subspace", "| lora"]
    assert "| accuracy % | log loss | calibration error | passes |" in text
    half = argparse.Namespace(**{**vars(arguments), "labelled": 20})
    assert time_to_accuracy.prepared(half)[0].y.bincount().tolist() == [10, 10]
    own = argparse.Namespace(**vars(arguments), ways=["probe", "full"], epochs=1)
    rows = depths.run(own)
    assert [(row["depth"], row["model"]) for row in rows][:2] == [("topmost layer", "probe"), ("topmost layer", "full")]
    sizes = [row["parameters"] for row in rows if row["model"] == "full"]
    assert len(sizes) >= 2
    assert sizes == sorted(set(sizes))  # each deeper than the one before
    assert len(depths.table(rows).splitlines()) == len(rows) + 2


def test_metrics_are_compared_on_training_samples_that_were_left_out(arguments: argparse.Namespace) -> None:
    own = argparse.Namespace(**{**vars(arguments), "labelled": 24, "rounds": False})
    problem, judge = time_to_accuracy.prepared(own, test=False)
    assert (problem.n, len(judge.store)) == (24, 16)
    everything = time_to_accuracy.prepared(arguments)[0].store.features
    shared = (problem.store.features[:, None] - judge.store.features).abs().amax(-1).min()
    assert shared > 0
    nearest = (everything[:, None] - judge.store.features).abs().amax(-1).amin(0)
    assert nearest.max() < 1e-5  # all are of the training part
    rows = metrics.run(own)
    assert [row["model"] for row in rows] == ["probe", "plain", "whitened"]
    assert len(metrics.table(rows).splitlines()) == len(rows) + 2


def test_the_rival_is_judged_with_and_without_its_search_and_seeds_are_fitted_once(
    arguments: argparse.Namespace, tmp_path: Path
) -> None:
    def run(seeds: int) -> dict[str, Any]:
        return honest.run(argparse.Namespace(**vars(arguments), seeds=seeds, ways=["probe", "finetune"], out=tmp_path))

    first = run(1)["finetune"]["0"]
    assert "the best of" in first["chosen"]
    assert 0.8 < first["search"] / first["seconds"] < 1
    assert first["after"] <= first["log_loss"] * (1 + 1e-6)
    both = run(2)
    assert both["finetune"]["0"] == first  # with its seconds: it was not fitted again
    assert [list(by_seed) for by_seed in both.values()] == [["0", "1"]] * 2
    mean = (both["probe"]["0"]["log_loss"] + both["probe"]["1"]["log_loss"]) / 2
    assert f"{mean:.3f} ± " in honest.table(both).splitlines()[2]


def test_the_page_of_the_rival_has_means_errors_and_ratios(tmp_path: Path) -> None:
    def one(main: float, seconds: float, search: float = 0.0) -> dict[str, float]:
        return {
            "main": main,
            "log_loss": 0.5,
            "after": 0.4,
            "calibration_error": 0.1,
            "seconds": seconds,
            "search": search,
            "passes": 3.0 if main < 0.9 else math.nan,
        }

    readings = {
        "probe": {"0": one(0.8, 1.0), "1": one(0.8, 1.0)},
        "rounds": {"0": one(0.85, 20.0), "1": one(0.95, 20.0)},
        "finetune": {
            "0": one(0.85, 400.0, 360.0),
            "1": {**one(0.85, 400.0, 320.0), "chosen": "adamw 1, 50 epochs, best"},
        },
    }
    about = {"data": "some", "labelled": None, "backbone": "net", "theta2": ["top"], "machine": "one", "date": "today"}
    (tmp_path / "some.json").write_text(json.dumps({**about, "readings": readings}), encoding="utf-8")
    peaks = {
        way: {"way": way, "peak, MiB": peak, "fit, s": 2.0} for way, peak in (("finetune", 1000.0), ("rounds", 1100.0))
    }
    (tmp_path / "memory.json").write_text(json.dumps({**about, "readings": peaks}), encoding="utf-8")
    text = honest_page.page([tmp_path / "some.json"], [tmp_path / "memory.json"])
    assert "| some | rounds | 1100 | 1.10 | 2 |" in text
    assert "| 400 ± 0 | 340 ± 20 | 3 ± 0 |" in text
    assert "| 20 ± 0 | 0 ± 0 | – |" in text  # one of both has no count of passes
    assert "| rounds | 2 | 90.00 ± 5.00 | 0.500 ± 0.000 |" in text
    assert "| rounds | 200 % | 0.50 | 0.05 |" in text  # ten points of five; 20 s of 40, and of 400
    assert "`net`, θ₂ = top; one, today." in text
