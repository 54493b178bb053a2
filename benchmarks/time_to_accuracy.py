"""How long each way of fitting takes to which accuracy, on the user's data: one linearization and one probe for all.

    python -m benchmarks.time_to_accuracy DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--labelled N]
        [--out FOLDER]

Compared on the test part, from the same kept z₀ and the same probe:

- solver: `full` with penalties that nothing chose, as Adam's are (the probe's of w₁, `LAMBDA2` units of w₂ in the
  whitened metric), solved to convergence;
- subspace: `full`, its penalties chosen on held-out training data, solved to convergence;
- rounds: θ̄₂ moves in many small steps, as far as held-out data say;
- adam: `full` by the paper's schedule, 100 epochs or 80,000 iterations where that is less;
- sgd: `full` with the published code's settings, for as long;
- finetune: ordinary fine-tuning of the same layers as a good practitioner does it: AdamW with warm-up and cosine, rate,
  length, weight decay and the head's start chosen on held-out training data by runs as long as the last one, which is
  of all of it, its outputs divided by a temperature of the held-out part;
- lora: the same with a change of rank 8 to each weight of these layers (`benchmarks/lora.py`), for as many epochs.

Adam and SGD are judged after every few epochs, `solver` after each iteration, and the time of judging is left out. The
search of fine-tuning and of LoRA counts, as the choice of penalties does. Processor time is that of all threads: on one
thread of an idle machine it is the wall time, and other work beside it leaves it nearly as it is. A pass is a forward
and a backward one over all training samples. Test data chooses nothing.

Writes a table, a JSON file and a picture. Ways that an earlier run with the same settings left in that file, and that
are not asked for again, stay in them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from benchmarks.lora import fit_lora
from gradfeat import GradientFeatureClassifier
from gradfeat.comparison.plots import save_figure
from gradfeat.comparison.side_by_side import PERCENT
from gradfeat.comparison.side_by_side import TITLES as METRICS
from gradfeat.data import Inputs, load_dataset
from gradfeat.estimators.reading import read_truth
from gradfeat.files.writing import write_text
from gradfeat.fit import Plan, Problem, solve
from gradfeat.fit.point import starting_model
from gradfeat.fit.predict import batch_logits, store_logits
from gradfeat.fit.spans import subspace_of
from gradfeat.metrics.evaluation import metrics_of
from gradfeat.metrics.scores import expected_calibration_error
from gradfeat.model import GradientFeatureModel
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.finetune import honest_search
from gradfeat.solvers.first_order import History, train
from gradfeat.solvers.schedule import paper_schedule
from gradfeat.solvers.subspace import Penalties

TITLES = {**METRICS, "calibration_error": "calibration error"}
EPOCHS = 100
POINTS = 20
ITERATIONS = 40
MOST_JUDGED = 2000
"""Training samples that judge, where the test part does not."""
LAMBDA2 = 0.3
"""Units of λ₂ for `solver`: the least loss on held-out training data of four of five data sets was at 0.3 or below."""
WAYS = ("solver", "subspace", "rounds", "adam", "sgd", "finetune", "lora")


@dataclass(frozen=True)
class Reading:
    """A model on the way: wall and processor seconds of fitting and passes so far, and its metrics on the test data."""

    seconds: float
    processor: float
    passes: float
    metrics: dict[str, float]


class Judge:
    """The test data, for models at any point."""

    def __init__(self, store: SampleStore, truth: np.ndarray, problem: Problem) -> None:
        self.store, self.truth, self.loss = store, truth, problem.loss

    def __call__(self, model: GradientFeatureModel) -> dict[str, float]:
        """Return the metrics of a model; of classes its expected calibration error too."""
        logits = store_logits(model, self.store, 128).double().cpu()
        metrics = metrics_of(self.loss, logits.numpy(), self.truth)
        if self.loss.task == "multiclass":
            probability = self.loss.predict_proba(logits).numpy()
            metrics["calibration_error"] = expected_calibration_error(self.truth, probability)
        return metrics


def clocks() -> np.ndarray:
    """Return wall and processor time, in seconds from some points; what a GPU was told to do is done by then."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def by_schedule(problem: Problem, judge: Judge, solver: str, epochs: int) -> list[Reading]:
    """Train `full` by a schedule and judge it on the way."""
    n = problem.n
    batch_size = 64 if solver == "adam" else 128  # the paper's, and the published code's
    schedule = paper_schedule(solver, n, batch_size=batch_size, epochs=epochs)
    model = starting_model(problem, "full")
    generator = torch.Generator().manual_seed(0)
    readings, paused = [Reading(0.0, 0.0, 0.0, judge(model))], np.zeros(2)
    every = max(1, schedule.n_epochs(n) // POINTS)

    def step_loss(batch: torch.Tensor) -> torch.Tensor:
        views = problem.random_views(batch, generator)
        return problem.loss.per_sample(batch_logits(model, problem.store, views), problem.y[views]).mean()

    def on_epoch(epoch: int, history: History) -> None:
        nonlocal paused
        if epoch % every == 0 or epoch == schedule.n_epochs(n):
            now = clocks()
            seconds, processor = (now - begun - paused).tolist()
            readings.append(Reading(seconds, processor, history.passes, judge(model)))
            paused = paused + clocks() - now

    begun = clocks()
    train(model.trained(), step_loss, n, schedule, generator=generator, on_epoch=on_epoch)
    return readings


def by_solver(problem: Problem, judge: Judge, first: Reading) -> list[Reading]:
    """Solve `full` with penalties that nothing chose, and judge it after each iteration."""
    probe, plan = problem.probe, Plan(metric="whitened")
    begun, paused, readings = clocks(), np.zeros(2), [first]
    generator = torch.Generator().manual_seed(0)
    subspace = subspace_of(problem, plan, probe.omega, probe.bias, len(problem.store), generator)
    subspace.add_w1(probe.omega)
    penalties, coordinates, converged = Penalties(probe.penalty, LAMBDA2 * subspace.unit), None, False
    while not converged and len(readings) <= ITERATIONS:
        coordinates, solution = subspace.solve(penalties, start=coordinates, iterations=1)
        converged, now = solution.converged, clocks()
        model = starting_model(problem, "full")
        w1, b, w2 = subspace.weights(coordinates)
        model.set_weights(w1=w1, b=b, w2=w2)
        readings.append(Reading(*(now - begun - paused).tolist(), subspace.features.passes, judge(model)))
        paused += clocks() - now
    return readings


def data_parser(description: str, *, theta2: bool = True) -> argparse.ArgumentParser:
    """Return a parser that knows how data and backbone are named."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path)
    parser.add_argument("-b", "--backbone", required=True)
    parser.add_argument("--weights")
    if theta2:
        parser.add_argument("--theta2", action="append")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--max-length", type=int, help="tokens of a text")
    parser.add_argument("--labelled", type=int, help="training samples, drawn by class; all if not given")
    parser.add_argument("--draw", type=int, default=0, help="seed of that draw")
    parser.add_argument("--augment", choices=["mirror"])
    parser.add_argument("--device", default="cpu")
    return parser


def changes_of(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return how the preprocessing differs from the backbone's own; images of another size keep its crop_pct."""
    if arguments.max_length is not None:
        return {"max_length": arguments.max_length}
    return None if arguments.image_size is None else {"crop_pct": None}


@dataclass(frozen=True)
class Data:
    """What a model is fitted to and judged by, as users give it."""

    samples: Any
    labels: Any
    rest: Any
    truth: Any


def read(arguments: argparse.Namespace, *, test: bool = True) -> Data:
    """Read the data: what is fitted to, and what judges.

    Judged is by the test part; without `test` by those training samples that were not drawn (at most `MOST_JUDGED`).
    """
    data = load_dataset(arguments.data, split="train")
    samples, labels, rest, truth = data.X, data.y, None, None
    if arguments.labelled is not None:
        classes = labels if np.asarray(labels).ndim == 1 else None
        samples, rest, labels, truth = train_test_split(
            samples, labels, train_size=arguments.labelled, stratify=classes, random_state=arguments.draw
        )
        rest, truth = rest[:MOST_JUDGED], truth[:MOST_JUDGED]
    if test:
        judged = load_dataset(arguments.data, split="test")
        rest, truth = judged.X, judged.y
    return Data(samples, labels, rest, truth)


def estimator(arguments: argparse.Namespace, **settings: Any) -> GradientFeatureClassifier:
    """Return an estimator of the backbone that is named."""
    return GradientFeatureClassifier(
        arguments.backbone,
        weights=arguments.weights,
        image_size=arguments.image_size,
        preprocessing=changes_of(arguments),
        augment=arguments.augment,
        device=arguments.device,
        **settings,
    )


def prepared(arguments: argparse.Namespace, *, test: bool = True) -> tuple[Problem, Judge]:
    """Read the data, run the bottom once for each sample, and fit the probe."""
    data = read(arguments, test=test)
    face = estimator(arguments, theta2=arguments.theta2 or "top", random_state=0)
    made = face.prepare(face.read(data.samples, data.labels))
    problem, targets = made.problem, made.targets
    store = SampleStore(problem.linearization, Inputs(data.rest, made.network.backbone.preprocessing))
    return problem, Judge(store, read_truth(np.asarray(data.truth), targets.loss.task, targets.classes), problem)


def run(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Reading]]]:
    """Fit in every way; yield the readings of each."""
    problem, judge = prepared(arguments)
    probe = Reading(0.0, 0.0, 0.0, judge(starting_model(problem, "activation")))
    yield "probe", [probe]
    for name in arguments.ways:
        begun = clocks()
        if name in ("adam", "sgd"):
            readings = by_schedule(problem, judge, name, arguments.epochs)
        elif name == "solver":
            readings = by_solver(problem, judge, probe)
        elif name in ("finetune", "lora"):
            search = honest_search(epochs=arguments.finetune_epochs)
            plan = Plan(mode="finetune", finetuning=search, seed=0)
            fit = fit_lora(problem, search) if name == "lora" else solve(problem, plan)
            tried = [] if fit.selection is None else [recipe for recipe, _ in fit.selection.scores]
            passes = 0.8 * sum(recipe.epochs for recipe in tried) + fit.history.passes
            readings = [probe, Reading(*(clocks() - begun).tolist(), passes, judge(fit.model))]
        else:
            rounds = "auto" if name == "rounds" else 1
            fit = solve(problem, Plan(solver="subspace", rounds=rounds, seed=0))
            passes = fit.solution.passes if fit.solution is not None else fit.choice.passes if fit.choice else 0.0
            readings = [probe, Reading(*(clocks() - begun).tolist(), passes, judge(fit.model))]
        print(f"{name}: {readings[-1]}", flush=True)
        yield name, readings


def shown(metrics: dict[str, float]) -> list[str]:
    """Return the numbers of a row as text."""
    return [f"{100 * value:.2f}" if name in PERCENT else f"{value:.4f}" for name, value in metrics.items()]


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as a table."""
    lines = ["| " + " | ".join(row) + " |" for row in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:]])


def table(fits: dict[str, list[Reading]]) -> str:
    """Return the last reading of each way, and when it first was as good as Adam ended."""
    names = list(fits["probe"][0].metrics)
    titles = [TITLES[name] for name in names]
    last_columns = ["passes", "time", "processor time", "processor time to Adam's last accuracy"]
    rows = []
    goal = fits["adam"][-1].metrics[names[0]] if "adam" in fits else float("nan")
    for way, readings in fits.items():
        last = readings[-1]
        reached = next((f"{r.processor:.1f} s" for r in readings if r.metrics[names[0]] >= goal), "not reached")
        times = [f"{last.passes:.0f}", f"{last.seconds:.1f} s", f"{last.processor:.1f} s", reached]
        rows.append([way, *shown(last.metrics), *times])
    return markdown(["way", *titles, *last_columns], rows)


def plot(fits: dict[str, list[Reading]], path: Path, title: str) -> None:
    """Draw the main metric against time and against passes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    name = next(iter(fits["probe"][0].metrics))
    factor = 100 if name in PERCENT else 1
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    about = (
        ("processor", "processor seconds of fitting, after activations and probe"),
        ("passes", "passes over the training data"),
    )
    for axes, (key, label) in zip(panels, about, strict=True):
        for way, readings in fits.items():
            if way == "probe":
                axes.axhline(factor * readings[0].metrics[name], color="0.6", linestyle=":", label="probe")
                continue
            later = readings[1:]
            axes.plot(
                [getattr(reading, key) for reading in later],
                [factor * reading.metrics[name] for reading in later],
                "-" if len(readings) > 2 else "o",
                label=way,
            )
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter()
        )
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=TITLES[name])
    panels[1].legend()
    figure.suptitle(title)
    save_figure(figure, path, dpi=130)


def title_of(arguments: argparse.Namespace) -> str:
    """Return what a picture is of."""
    labels = "" if arguments.labelled is None else f", {arguments.labelled:,} labels"
    return f"{arguments.data.name}{labels}, θ₂ = {', '.join(arguments.theta2 or ['top'])}"


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a result is of."""
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    card = f", {torch.cuda.get_device_name(arguments.device)}" if "cuda" in arguments.device else ""
    return {
        "data": arguments.data.name,
        "labelled": arguments.labelled,
        "draw": arguments.draw,
        "backbone": arguments.backbone,
        "theta2": getattr(arguments, "theta2", None),
        "machine": f"{platform.machine()}, {threads} threads{card}",
    }


def earlier(name: str, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Return the readings of ways that an earlier run with the same settings left in the folder of the results."""
    path = arguments.out / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    about = {**settings(arguments), **more}
    return dict(content["readings"]) if {key: content.get(key) for key in about} == about else {}


def write(name: str, arguments: argparse.Namespace, text: str, content: dict[str, Any]) -> None:
    """Write a table and its numbers, with what they are of, into the folder of the results."""
    about = {**settings(arguments), "date": date.today().isoformat()}
    write_text(arguments.out / f"{name}.json", json.dumps({**about, **content}, indent=1) + "\n")
    write_text(arguments.out / f"{name}.md", text + "\n")


def main() -> None:
    """Run from the command line."""
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of Adam and SGD")
    parser.add_argument("--finetune-epochs", type=int, default=20)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, default=Path("results/time_to_accuracy"))
    arguments = parser.parse_args()
    before = earlier("time_to_accuracy", arguments)
    fits = {way: [Reading(**reading) for reading in readings] for way, readings in before.items()}
    for name, new in run(arguments):  # each is written when it is there, for the next may take an hour
        fits = {way: new if way == name else fits[way] for way in ("probe", *WAYS) if way in (*fits, name)}
        readings = {way: [asdict(reading) for reading in each] for way, each in fits.items()}
        write("time_to_accuracy", arguments, table(fits), {"readings": readings})
        plot(fits, arguments.out / "time_to_accuracy.png", title_of(arguments))
    print(table(fits))


if __name__ == "__main__":
    main()
