"""Fits that are interrupted and go on: the weights of a fit that was not, and nothing of another fit."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torch.utils.data import Dataset

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare, linearize
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning
from gradfeat.fit import Fit, Plan, prepare, solve
from gradfeat.fit.checkpoint import Checkpoint
from gradfeat.fit.dual_samples import DualSamples
from gradfeat.losses import CrossEntropy
from gradfeat.solvers import first_order
from gradfeat.solvers.finetune import Recipe, Search
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.schedule import Schedule
from gradfeat.solvers.subspace import Subspace


def data(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rng.normal(size=(40, 8))
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, (X[:, 0] * X[:, 1] + 0.7 * X[:, 2] + 0.7 * rng.normal(size=n) > 0).astype(int)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 10), nn.Tanh())


def classifier(folder: Path | None, **settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(
        settings.pop("backbone", None) or network(),
        **{"theta2": "*", "random_state": 0, "checkpoint": folder, **settings},
    )


class Pressed:
    """Counts calls, and presses Ctrl-C before one of them."""

    calls, last = 0, -1

    def called(self) -> None:
        if self.calls == self.last:
            raise KeyboardInterrupt
        self.calls += 1

    def of(self, fit: Any, last: int = -1) -> int:
        """Return how many calls a fit made."""
        self.calls, self.last = 0, last
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradfeatWarning)
            try:
                fit()
            except KeyboardInterrupt:
                assert last >= 0
        return self.calls


class Count(Pressed):
    """Of the growths of the solver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Subspace.grow

        def grow(own: Subspace, *arguments: Any) -> float:
            self.called()
            return original(own, *arguments)

        monkeypatch.setattr(Subspace, "grow", grow)


def same(one: Any, two: Any) -> None:
    for name in ("omega_", "w1_", "b_"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert all(torch.equal(one.w2_[name], two.w2_[name]) for name in one.w2_)
    assert (one.theta2_ is None) == (two.theta2_ is None)
    assert one.theta2_ is None or all(torch.equal(one.theta2_[name], two.theta2_[name]) for name in one.theta2_)
    assert one.choice_ == two.choice_
    assert one.probe_.path == two.probe_.path


@pytest.mark.parametrize("settings", [{}, {"solver": "dual"}, {"mode": "gradient"}], ids=str)
def test_interrupted_anywhere_it_ends_with_the_same_weights(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = data()
    count = Count(monkeypatch)
    plain = classifier(None, **settings)
    whole = count.of(lambda: plain.fit(X, y))
    assert count.of(lambda: classifier(tmp_path, **settings).fit(X, y), last=2 * whole // 3) == 2 * whole // 3
    again = classifier(tmp_path, **settings)
    count.of(lambda: again.fit(X, y))
    same(again, plain)
    once_more = classifier(tmp_path, **settings)
    assert count.of(lambda: once_more.fit(X, y)) < whole // 2  # the last problem alone
    same(once_more, plain)


def test_interrupted_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data()
    count = Count(monkeypatch)
    plain, again = classifier(None), classifier(tmp_path)
    whole = count.of(lambda: plain.fit(X, y))
    most = 2 * whole // 3
    assert count.of(lambda: again.fit(X, y), last=most) == most
    assert count.of(lambda: again.fit(X, y), last=most) <= most
    assert count.of(lambda: again.fit(X, y), last=most) < most  # each fit came further
    same(again, plain)


def test_search_for_theta2_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(X))
    count = Count(monkeypatch)
    plain = classifier(None, theta2="search")
    whole = count.of(lambda: plain.fit(X, y, weight))
    count.of(lambda: classifier(tmp_path, theta2="search").fit(X, y, weight), last=whole // 2)
    again = classifier(tmp_path, theta2="search")
    assert count.of(lambda: again.fit(X, y, weight)) < whole
    same(again, plain)
    assert again.modules_ == plain.modules_


def test_compare_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data()
    settings: dict[str, Any] = {"theta2": "*", "random_state": 0, "modes": ("activation", "gradient", "full")}
    count = Count(monkeypatch)
    tables = []

    def run(folder: Path | None) -> None:
        tables.append(compare(network(), X, y, X, y, checkpoint=folder, **settings))

    whole = count.of(lambda: run(None))
    count.of(lambda: run(tmp_path), last=int(0.7 * whole))
    assert len(tables[1].rows) < 3
    assert count.of(lambda: run(tmp_path)) < whole
    assert [row.metrics for row in tables[2].rows] == [row.metrics for row in tables[0].rows]


def test_another_fit_is_refused(tmp_path: Path) -> None:
    X, y = data(40)
    classifier(tmp_path, mode="activation").fit(X, y)
    fits = {
        "rounds None there, 2 now": lambda: classifier(tmp_path, rounds=2).fit(X, y),
        "network ": lambda: classifier(tmp_path, backbone=network(1)).fit(X, y),
        "other activations": lambda: classifier(tmp_path).fit(X + 1e-3, y),
        "other targets": lambda: classifier(tmp_path).fit(X, 1 - y),
        "other sample weights": lambda: classifier(tmp_path).fit(X, y, np.ones(len(y))),
        "random_state 0 there, 1 now": lambda: classifier(tmp_path, random_state=1).fit(X, y),
        "cv 5 there": lambda: classifier(tmp_path, cv=[(np.arange(20), np.arange(20, 40))]).fit(X, y),
    }
    for message, fit in fits.items():
        with pytest.raises(ConfigurationError, match=f"checkpoint of another fit: .*{message}"):
            fit()
    classifier(tmp_path, verbose=True, cache="z0", memory="1GB", mode="activation").fit(X, y)  # which change no result


def test_splitters_are_told_apart_by_their_folds(tmp_path: Path) -> None:
    X, y = data(1200)  # so many folds numpy's text of a splitter abbreviates
    folds = np.arange(1200) % 3
    other = folds.copy()
    other[400:800] = folds[401:801]
    classifier(tmp_path, mode="activation", cv=PredefinedSplit(folds)).fit(X, y)
    classifier(tmp_path, mode="activation", cv=PredefinedSplit(folds)).fit(X, y)
    with pytest.raises(ConfigurationError, match=r"checkpoint of another fit: .*cv "):
        classifier(tmp_path, mode="activation", cv=PredefinedSplit(other)).fit(X, y)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    X, y = data(40)
    whole = classifier(tmp_path, mode="activation").fit(X, y)
    (path,) = tmp_path.glob("*/probe.safetensors")
    good = path.read_bytes()
    noticed = 0
    for place in np.random.default_rng(0).integers(0, len(good), 15):
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(place) % 8
        path.write_bytes(flipped)
        try:
            again = classifier(tmp_path, mode="activation").fit(X, y)
        except DataError as error:
            assert f"{path} is damaged" in str(error)  # noqa: PT017  (a bit of a name may change nothing)
            assert "Remove it" in str(error)  # noqa: PT017
            noticed += 1
        else:
            assert torch.equal(again.omega_, whole.omega_)
    assert noticed > 10


def test_a_part_without_a_checksum_is_read(tmp_path: Path) -> None:
    X, y = data(40)
    whole = classifier(tmp_path, mode="activation").fit(X, y)
    (path,) = tmp_path.glob("*/probe.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["values"])
    assert len(values.pop("sha256")) == 64
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"values": json.dumps(values)})
    assert torch.equal(classifier(tmp_path, mode="activation").fit(X, y).omega_, whole.omega_)
    del values["penalty"]
    safetensors.torch.save_file(tensors, path, {"values": json.dumps(values)})
    with pytest.raises(DataError, match=r"probe\.safetensors is damaged"):
        classifier(tmp_path, mode="activation").fit(X, y)
    for name in ("[]", "[" * 100_000):
        (tmp_path / "configuration.json").write_text(name)
        with pytest.raises(DataError, match="is damaged"):
            classifier(tmp_path, mode="activation").fit(X, y)


def test_damaged_and_impossible(tmp_path: Path) -> None:
    X, y = data(40)
    classifier(tmp_path / "a", mode="activation").fit(X, y)
    (path,) = (tmp_path / "a").glob("*/probe.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"probe\.safetensors is damaged"):
        classifier(tmp_path / "a", mode="activation").fit(X, y)
    path.unlink()
    classifier(tmp_path / "a", mode="activation").fit(X, y)
    (tmp_path / "a" / "configuration.json").write_text("{")
    with pytest.raises(DataError, match=r"Remove .* to start again"):
        classifier(tmp_path / "a", mode="activation").fit(X, y)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("a file")
    with pytest.raises(ConfigurationError, match="cannot be used as a folder"):
        classifier(tmp_path / "a", mode="activation").fit(X, y)
    for settings, message in (
        ({"random_state": None}, "needs random_state"),
        ({"checkpoint": 3}, "checkpoint must be None or a folder"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            classifier(**{"folder": tmp_path / "b", **settings}).fit(X, y)


class Steps(Pressed):
    """Of minibatches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(first_order, "KEEP_SECONDS", 0.0)
        original = Schedule.at

        def at(schedule: Schedule, iteration: int) -> float:
            self.called()
            return original(schedule, iteration)

        monkeypatch.setattr(Schedule, "at", at)


@pytest.mark.parametrize("settings", [{"mode": "finetune"}, {"solver": "adam"}, {"solver": "sgd"}], ids=str)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_training_by_epochs_goes_on(
    settings: dict[str, Any], share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = data(200)
    settings = {**settings, "epochs": 8, "batch_size": 16}
    steps = Steps(monkeypatch)
    plain, again, once_more = (classifier(folder, **settings) for folder in (None, tmp_path, tmp_path))
    whole = steps.of(lambda: plain.fit(X, y))
    last = int(share * whole)
    assert steps.of(lambda: classifier(tmp_path, **settings).fit(X, y), last=last) == last
    epoch = -(-len(X) // 16)
    assert whole - last <= steps.of(lambda: again.fit(X, y)) <= whole - last + epoch
    assert steps.of(lambda: once_more.fit(X, y)) == 0
    for fitted in (again, once_more):
        assert torch.equal(fitted.w1_, plain.w1_)
        assert all(torch.equal(fitted.w2_[name], plain.w2_[name]) for name in plain.w2_)
        assert fitted.history_.loss == plain.history_.loss
        assert fitted.history_.passes == plain.history_.passes
        assert fitted.selection_ == plain.selection_
    left = sorted(path.stem for path in tmp_path.glob("*/*.safetensors"))
    scores = [] if plain.selection_ is None else plain.selection_.scores
    assert len(scores) >= 6 if "mode" in settings else not scores
    trials = [f"finetune-trial-{i}" for i in range(len(scores))]
    assert left == sorted(["probe", f"{plain.mode}-epochs", *trials])


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])  # in the first trial, in the second, on all samples
def test_rounds_go_on(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(200)
    steps = Steps(monkeypatch)
    plain, again, once_more = (classifier(folder, rounds=12) for folder in (None, tmp_path, tmp_path))
    whole = steps.of(lambda: plain.fit(X, y))
    assert plain.theta2_ is not None
    last = int(share * whole)
    assert steps.of(lambda: classifier(tmp_path, rounds=12).fit(X, y), last=last) == last
    epoch = -(-len(X) // 20)  # a minibatch is an eighth of those that are trained on
    assert whole - last <= steps.of(lambda: again.fit(X, y)) <= whole - last + epoch
    assert steps.of(lambda: once_more.fit(X, y)) == 0
    for fitted in (again, once_more):
        same(fitted, plain)
        assert fitted.rounds_ == plain.rounds_
        assert fitted.history_.loss == plain.history_.loss
    left = sorted(path.stem for path in tmp_path.glob("*/*.safetensors"))
    assert left == ["probe", "rounds-continued-epochs", "rounds-search"]


def test_a_rate_of_rounds_that_diverges_stays_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(200)
    steps = Steps(monkeypatch)
    fits: list[Fit] = []

    def fit() -> None:
        lin = linearize(network(), torch.from_numpy(X[:3]), "*")
        checkpoint = Checkpoint(tmp_path, {})
        problem = prepare(
            lin, Inputs(X), torch.from_numpy(y), CrossEntropy(), penalty=0.1, random_state=0, checkpoint=checkpoint
        )
        fits.append(solve(problem, Plan(rounds=12, rates=(1e-2, 3e38), seed=0)))

    assert steps.of(fit) > 0
    assert steps.of(fit) == 0
    first, second = (fit.rounds for fit in fits)
    assert first is not None
    assert first.trials[1].loss == float("inf")
    assert first == second


def test_a_trial_that_diverges_stays_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(200)
    steps = Steps(monkeypatch)
    recipes = tuple(Recipe(Schedule("sgd", rate, 100, 100, 64), epochs=4) for rate in (3e38, 0.01))
    plan = Plan("finetune", finetuning=Search(recipes), seed=0)
    fits: list[Fit] = []

    def fit() -> None:
        lin = linearize(network(), torch.from_numpy(X[:3]), "*")
        checkpoint = Checkpoint(tmp_path, {})
        problem = prepare(
            lin, Inputs(X), torch.from_numpy(y), CrossEntropy(), penalty=0.1, random_state=0, checkpoint=checkpoint
        )
        fits.append(solve(problem, plan))

    assert steps.of(fit) > 0
    assert steps.of(fit) == 0
    first, second = (fit.selection for fit in fits)
    assert first is not None
    scores = [score for _, score in first.scores]
    assert scores[0] == -float("inf") < scores[1]
    assert first == second


def test_samples_that_change_have_no_checkpoint(tmp_path: Path) -> None:
    X, y = data()

    class Changing(Dataset):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return torch.from_numpy(X[i]), int(y[i])

    with pytest.raises(ConfigurationError, match="a checkpoint is of samples that do not change"):
        classifier(tmp_path, mode="finetune").fit(Changing(), None)


@pytest.mark.parametrize("kernels", [0, 4, 7])
def test_closed_form_goes_on(kernels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = data(40)
    target = X[:, 0] * X[:, 1]
    pressed, original = Pressed(), DualSamples.kernel

    def kernel(self: DualSamples, probe: Probe) -> torch.Tensor:
        pressed.called()
        return original(self, probe)

    monkeypatch.setattr(DualSamples, "kernel", kernel)

    def regressor(folder: Path | None) -> GradientFeatureRegressor:
        return GradientFeatureRegressor(network(), theta2="*", random_state=0, checkpoint=folder)

    plain, again, once_more = regressor(None), regressor(tmp_path), regressor(tmp_path)
    whole = pressed.of(lambda: plain.fit(X, target))
    assert whole > 7  # three for each of two or more ω̄, and the last
    assert pressed.of(lambda: regressor(tmp_path).fit(X, target), last=kernels) == kernels
    assert pressed.of(lambda: again.fit(X, target)) == whole - kernels // 3 * 3  # each ω̄ is a part
    assert pressed.of(lambda: once_more.fit(X, target)) == 1
    same(plain, again)
    same(plain, once_more)
    assert plain.choice_.passes == again.choice_.passes
