"""Accuracy with few labels: k of each class, several draws, every model fitted to the same draw.

    python -m benchmarks.low_shot DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--out FOLDER]

Of data with several labels each sample, k positive and (c - 1) k negative labels of each class are drawn, as for the
VOC07 low-shot benchmark (`gradfeat.data.low_shot`), and the metric is mean average precision, 11-point.

Models: the probe, `gradient`, `full`, the network that `full` is merged into, `full` with rounds, and fine-tuning
of the same layers as a good practitioner does it, all of it chosen on held-out training data. Penalties and rounds are
chosen on the draw alone. Mean and standard error over draws, on the whole test part, and the mean time of a fit: of
the processor, which other work beside it leaves as it is, or on a GPU the wall's. Writes a table, a JSON file and a
picture. Ways that an earlier run with the same settings left in that file, and that are not asked for again, stay in
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.time_to_accuracy import Judge, clocks, data_parser, earlier, prepared, title_of, write
from gradfeat.comparison.plots import save_figure
from gradfeat.data.low_shot import draw_labels
from gradfeat.errors import ConvergenceError
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.fit.merge import fit_head
from gradfeat.fit.point import starting_model
from gradfeat.solvers.finetune import honest_search
from gradfeat.solvers.probe import fit_probe

SHOTS = (1, 5, 10, 25, 50, 100)
WAYS = ("probe", "gradient", "full", "merged", "rounds", "finetune")
BUILDS_ON = {"probe": "probe", "merged": "full"}  # whose time counts too

Reading = tuple[float, float, float]
"""Main metric, log loss and seconds of one fit."""
Readings = dict[str, dict[str, list[Reading]]]
"""The readings of all draws, by way and by number of labels."""


def draw(y: torch.Tensor, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k samples of each class, fewer where a class has fewer, and their labels."""
    if y.ndim == 2:
        samples, labels = draw_labels(y.numpy(), k, seed)
        return torch.from_numpy(samples), torch.from_numpy(labels).to(y)
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(y.numpy() == label))[:k] for label in range(int(y.max()) + 1)]
    samples = torch.from_numpy(np.sort(np.concatenate(parts)))
    return samples, y[samples]


def fit(problem: Problem, way: str, epochs: int) -> Fit:
    """Fit one model."""
    if way == "probe":
        return Fit(starting_model(problem, "activation"), problem.seconds["probe"])
    if way == "finetune":
        return solve(problem, Plan(mode="finetune", finetuning=honest_search(epochs=epochs), seed=0))
    mode = "gradient" if way == "gradient" else "full"
    return solve(problem, Plan(mode=mode, solver="subspace", rounds="auto" if way == "rounds" else 1, seed=0))


def merged(problem: Problem, full: Fit) -> Fit:
    """Return the merged network of `full`, as a model."""
    head = fit_head(full.model, problem.store, views=problem.views, random_state=0)
    if head is None:
        raise ConvergenceError("the moved network is not finite")
    model = starting_model(problem, "finetune")
    w2 = {name: head.step * value for name, value in full.model.w2.items()}
    model.set_weights(w1=head.weight, b=head.bias, w2=w2)
    return replace(full, model=model)


def run(arguments: argparse.Namespace) -> Readings:
    """Fit in every way to every draw."""
    whole, judge = prepared(arguments)
    readings: Readings = {way: {} for way in arguments.ways}
    for k in arguments.shots:
        for seed in range(arguments.draws):
            for way, reading in _draw_readings(whole, judge, arguments, k, seed):
                readings[way].setdefault(str(k), []).append(reading)
        line = ", ".join(f"{way} {100 * np.mean(readings[way][str(k)], 0)[0]:.1f}" for way in arguments.ways)
        print(f"{k} of each class: {line}", flush=True)
    return readings


def _draw_readings(
    whole: Problem, judge: Judge, arguments: argparse.Namespace, k: int, seed: int
) -> Iterator[tuple[str, Reading]]:
    """Fit in every way to one draw; yield the way and its reading, NaN where a fit diverges."""
    clock = 0 if "cuda" in arguments.device else 1
    samples, labels = draw(whole.y[: whole.n].cpu(), k, seed)
    store, y = whole.store.rows(whole.all_views(samples)), torch.cat([labels] * whole.views).to(whole.y)
    begun = clocks()
    probe = fit_probe(store.features, y, whole.loss, random_state=0)
    seconds = {"probe": (clocks() - begun)[clock]}
    problem = replace(whole, store=store, y=y, probe=probe)
    full: Fit | None = None
    for way in arguments.ways:
        begun = clocks()
        try:
            if way == "merged":
                fitted = merged(problem, full or fit(problem, "full", arguments.epochs))
            else:
                fitted = fit(problem, way, arguments.epochs)
            seconds[way] = (clocks() - begun)[clock] + seconds.get(BUILDS_ON.get(way, ""), 0.0)
            full = fitted if way == "full" else full
            reading = (*_judged(fitted, judge), float(seconds[way]))
        except ConvergenceError as error:
            print(f"{way}: {error}")
            reading = float("nan"), float("nan"), float("nan")
        yield way, reading


def _judged(fitted: Fit, judge: Judge) -> tuple[float, float]:
    """Return the main metric and the log loss."""
    metrics = judge(fitted.model)
    return metrics["accuracy" if "accuracy" in metrics else "map_11point"], metrics["log_loss"]


def table(readings: Readings) -> str:
    """Return the main metric ± standard error, log loss, and seconds, by way and number of labels."""
    shots = list(next(iter(readings.values())))
    lines = ["| model | " + " | ".join(f"{k} of each" for k in shots) + " |", "|" + "---|" * (len(shots) + 1)]
    for way, by_shots in readings.items():
        cells = []
        for k in shots:
            values = np.array(by_shots[k])
            error = values[:, 0].std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
            metric, loss, seconds = values.mean(0)
            cells.append(f"{100 * metric:.1f} ± {100 * error:.1f} ({loss:.2f}; {seconds:.0f} s)")
        lines.append("| " + " | ".join([way, *cells]) + " |")
    return "\n".join(lines)


def plot(readings: Readings, path: Path, title: str) -> None:
    """Draw the main metric against the number of labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for way, by_shots in readings.items():
        values = [np.array(each)[:, 0] for each in by_shots.values()]
        errors = [100 * v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar([int(k) for k in by_shots], [100 * v.mean() for v in values], errors, capsize=2, label=way)
    axes.set(
        xscale="log",
        xlabel="labels of each class",
        ylabel="accuracy or mAP % (± standard error over draws)",
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path, dpi=130)


def main() -> None:
    """Run from the command line."""
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="of fine-tuning")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path("results/low_shot"))
    arguments = parser.parse_args()
    readings = earlier("low_shot", arguments, draws=arguments.draws) | run(arguments)
    readings = {way: readings[way] for way in WAYS if way in readings}
    if len({tuple(by_shots) for by_shots in readings.values()}) > 1:
        parser.error(f"{arguments.out} has ways with other --shots: name another folder with --out")
    write("low_shot", arguments, table(readings), {"draws": arguments.draws, "readings": readings})
    plot(readings, arguments.out / "low_shot.png", title_of(arguments))
    print(table(readings))


if __name__ == "__main__":
    main()
