"""The linear models against an honest rival: each fitted with several seeds, judged on the test part.

    python -m benchmarks.honest DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--seeds N] [--ways WAY ...]
        [--out FOLDER]

Ways: the probe, `full` (one linearization), `full` in rounds, LoRA, and fine-tuning of the same layers as a good
practitioner does it (`gradfeat.solvers.finetune.honest_search`): AdamW with warm-up and cosine, full-length trials of
rates, of the head's start, of lengths and weight decays on held-out training data, and a temperature. All share the
kept z₀ and the probe. `default` is the estimator with nothing said: it finds θ₂ itself, and its time has all in it, the
network's bottom at every depth and the probe. Everything is chosen on training data; a seed is that of splits, of the
order of samples and of mirror images.

Means over seeds with their standard errors (for one seed none), and the processor time of a fit with its choices; of
fine-tuning and LoRA also what of it is the search, by its share of the passes. Log loss as the model gives it
(`finetune` divides by a temperature of its held-out part already) and after the best temperature of the test part,
which no model knows: what is left then is not overconfidence. Writes a table and a JSON file; ways and seeds that an
earlier run with the same settings left there are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lora import fit_lora
from benchmarks.time_to_accuracy import (
    Data,
    Judge,
    clocks,
    data_parser,
    earlier,
    estimator,
    markdown,
    prepared,
    read,
    write,
)
from gradfeat.estimators.reading import read_truth
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.fit.predict import store_logits
from gradfeat.losses import Loss
from gradfeat.metrics.evaluation import metrics_of
from gradfeat.metrics.scores import expected_calibration_error
from gradfeat.solvers.finetune import honest_search, judged

WAYS = ("probe", "full", "rounds", "default", "finetune", "lora")
TITLES = {
    "main": "accuracy or mAP %",
    "log_loss": "log loss",
    "after": "log loss after a temperature of the test part",
    "calibration_error": "calibration error",
    "seconds": "processor s",
    "search": "of it search",
    "passes": "passes",
}
WHOLE = ("seconds", "search", "passes")
"""Of these no decimals are told."""


def plan_of(way: str, seed: int) -> Plan:
    """Return how a way is fitted."""
    if way == "probe":
        return Plan(mode="activation", seed=seed)
    if way == "finetune":
        return Plan(mode="finetune", seed=seed)
    return Plan(solver="subspace", rounds="auto" if way == "rounds" else 1, seed=seed)


def reading(problem: Problem, judge: Judge, way: str, seed: int) -> dict[str, Any]:
    """Fit one way with one seed; return its metrics, its time, and what it chose."""
    begun = clocks()
    fit = fit_lora(problem, honest_search(), seed=seed) if way == "lora" else solve(problem, plan_of(way, seed))
    processor = float((clocks() - begun)[1])
    logits = store_logits(fit.model, judge.store, 128).double().cpu()
    return {
        **metrics_after(logits, judge.truth, problem.loss),
        "seconds": processor + (problem.seconds["probe"] if way == "probe" else 0.0),
        "search": _search_share(fit) * processor,
        "passes": _passes(fit),
        "chosen": _chosen(fit),
    }


def reading_of_default(arguments: argparse.Namespace, data: Data, seed: int) -> dict[str, Any]:
    """Fit the estimator with nothing said; return the same of it, with the time of all that it does."""
    begun = clocks()
    fitted = estimator(arguments, random_state=seed).fit(data.samples, data.labels)
    processor = float((clocks() - begun)[1])
    targets = fitted.fitted_.targets
    truth = read_truth(np.asarray(data.truth), targets.loss.task, targets.classes)
    return {
        **metrics_after(fitted.logits(data.rest).double().cpu(), truth, targets.loss),
        "seconds": processor,
        "search": 0.0,
        "passes": float("nan") if fitted.solution_ is None else fitted.solution_.passes,
        "chosen": "; ".join(f"{name}: {words}" for name, words in fitted.how_.items()),
    }


def metrics_after(logits: torch.Tensor, truth: np.ndarray, loss: Loss) -> dict[str, float]:
    """Return the metrics of logits, and their log loss after the best temperature."""
    metrics = metrics_of(loss, logits.numpy(), truth)
    error = float("nan")
    if loss.task == "multiclass":
        error = expected_calibration_error(truth, loss.predict_proba(logits).numpy())
    return {
        "main": metrics["accuracy" if "accuracy" in metrics else "map_11point"],
        "log_loss": metrics["log_loss"],
        "after": judged(logits, torch.as_tensor(truth), loss, None, tempered=True).loss,
        "calibration_error": error,
    }


def _passes(fit: Fit) -> float:
    """Return the work of a fit, in passes over the samples; trials are of four fifths of them."""
    if fit.selection is not None and fit.history is not None:
        return 0.8 * sum(recipe.epochs or 0 for recipe, _ in fit.selection.scores) + fit.history.passes
    return 0.0 if fit.solution is None else fit.solution.passes


def _search_share(fit: Fit) -> float:
    """Return the share of a fit's passes over the samples that its search for a recipe takes."""
    if fit.selection is None:
        return 0.0
    trials = 0.8 * sum(recipe.epochs or 0 for recipe, _ in fit.selection.scores)
    return trials / (trials + (fit.selection.best.epochs or 0))


def _chosen(fit: Fit) -> str:
    parts = [fit.selection, fit.choice, fit.rounds]
    return "; ".join(str(part) for part in parts if part is not None)


def table(readings: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return means over seeds ± standard errors, by way."""
    rows = []
    for way, by_seed in readings.items():
        cells = [way, str(len(by_seed))]
        for name in TITLES:
            values = np.array([one[name] for one in by_seed.values()], dtype=float)
            if np.isnan(values).any():
                cells.append("–")
                continue
            factor, digits = (100, 2) if name == "main" else (1, 0 if name in WHOLE else 3)
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            cells.append(
                f"{factor * values.mean():.{digits}f}" + ("" if error is None else f" ± {factor * error:.{digits}f}")
            )
        rows.append(cells)
    return markdown(["way", "seeds", *TITLES.values()], rows)


def run(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the readings of each way and seed, those of an earlier run among them; written after each."""
    readings: dict[str, dict[str, dict[str, Any]]] = earlier("honest", arguments)
    data = read(arguments)
    problem, judge = prepared(arguments)
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            if str(seed) in readings.get(way, {}):
                continue
            one = reading_of_default(arguments, data, seed) if way == "default" else reading(problem, judge, way, seed)
            readings.setdefault(way, {})[str(seed)] = one
            print(f"seed {seed}, {way}: {readings[way][str(seed)]}", flush=True)
            readings = {name: readings[name] for name in WAYS if name in readings}
            write("honest", arguments, table(readings), {"readings": readings})
    return readings


def main() -> None:
    """Run from the command line."""
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("results/honest"))
    print(table(run(parser.parse_args())))


if __name__ == "__main__":
    main()
