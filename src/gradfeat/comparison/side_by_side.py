"""`compare`: the four models of the method side by side, on one network and one data set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.comparison.approximation import Approximation, approximation
from gradfeat.comparison.edges import edge_note
from gradfeat.comparison.verdict import Verdict, verdict_of
from gradfeat.contexts import plain
from gradfeat.data import Inputs
from gradfeat.data.crops import check_crops
from gradfeat.errors import ConfigurationError, ConvergenceError, did_you_mean
from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.estimators.reading import check_lengths, check_parameters, labels_of, read_truth
from gradfeat.files.writing import write_text
from gradfeat.fit import Fit, Problem, solve
from gradfeat.fit.predict import finite, store_logits, store_of
from gradfeat.fit.stages import ACTIVATIONS, shared_stages, stages_of_plan
from gradfeat.linearization.theta2 import layers_of
from gradfeat.metrics.evaluation import agreement, mean_of_views, metrics_of, per_sample_of
from gradfeat.model import MODES, OTHER_NAMES, GradientFeatureModel
from gradfeat.progress import Progress, Stage
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.schedule import SOLVERS as OPTIMIZERS

TITLES = {
    "accuracy": "accuracy %",
    "log_loss": "log loss",
    "map_area": "mAP % area",
    "map_11point": "mAP % 11-point",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "macro_f1": "macro-F1 %",
    "balanced_accuracy": "balanced accuracy %",
}
PERCENT = ("accuracy", "map_area", "map_11point", "macro_f1", "balanced_accuracy")


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        mode: Which of the four.
        metrics: On the test data, by name.
        train_loss: Mean loss on the training data.
        seconds: Time to train this model, on top of what all share; a search for a learning rate is part of it.
        parameters: Number of trained parameters.
        note: What was chosen on held-out training data, or went wrong.
    """

    mode: str
    metrics: dict[str, float]
    train_loss: float
    seconds: float
    parameters: int
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The four models side by side.

    Attributes:
        rows: A row for each model.
        theta2: Names of θ₂.
        shared_seconds: Time of what all models share: activations and probe.
        n_train: Number of training samples.
        n_test: Number of test samples.
        notes: What the user should know.
        estimators: The fitted estimator of each mode.
        approximation: How well `full` approximates the real network, on the test data; None without `full`.
        interrupted: Whether Ctrl-C ended it before all was done.
        verdict: Which model is best on the test data, by how much, and what that means; None without a model.
    """

    rows: list[Row]
    theta2: list[str]
    shared_seconds: dict[str, float]
    n_train: int
    n_test: int
    notes: list[str] = field(default_factory=list)
    estimators: dict[str, Any] = field(default_factory=dict, repr=False)
    approximation: Approximation | None = None
    interrupted: bool = False
    verdict: Verdict | None = None

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics, the main one first."""
        return list(self.rows[0].metrics) if self.rows else []

    def best(self) -> str:
        """Return the mode with the best main metric on the test data: to read the table by, not to choose by.

        Raises:
            ConfigurationError: No model was finished.
        """
        main = self._main_metric()
        return max(self.rows, key=lambda row: row.metrics[main]).mode

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the numbers of the table as text: its header, and a list for each row."""
        metrics = [TITLES[name] for name in self.metric_names]
        header = ["model", *metrics, "train loss", "parameters", "time"]
        body = [
            [
                row.mode,
                *(
                    f"{100 * row.metrics[name]:.2f}" if name in PERCENT else f"{row.metrics[name]:.4f}"
                    for name in self.metric_names
                ),
                f"{row.train_loss:.4f}",
                f"{row.parameters:,}",
                f"{row.seconds:.1f} s",
            ]
            for row in self.rows
        ]
        return header, body

    def remarks(self) -> list[str]:
        """Return what belongs below the table: what was chosen for each model, θ₂, shared time, notes."""
        shared = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.shared_seconds.items())
        return [
            *(f"{row.mode}: {row.note}" for row in self.rows if row.note),
            *([f"approximation: {self.approximation}"] if self.approximation is not None else []),
            f"θ₂: {layers_of(self.theta2)}",
            f"{self.n_train:,} training and {self.n_test:,} test samples; shared by all models: {shared}",
            *self.notes,
        ]

    def __str__(self) -> str:
        header, body = self.cells()
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(cells) + " |" for cells in body]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain Python objects, for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "theta2": self.theta2,
            "shared_seconds": self.shared_seconds,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "notes": self.notes,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "approximation": None if self.approximation is None else self.approximation.to_dict(),
            "rounds": {
                mode: {"start": rounds.start, "steps": [asdict(step) for step in rounds.steps], "reason": rounds.reason}
                for mode, estimator in self.estimators.items()
                if (rounds := estimator.rounds_) is not None
            },
            "penalties": {
                mode: [tried.to_dict() for tried in estimator.choice_.path]
                for mode, estimator in self.estimators.items()
                if estimator.choice_ is not None
            },
        }

    def plot_more(self, folder: str | Path) -> list[Path]:
        """Draw the penalty path and the rounds of each mode that has them, and the Taylor remainder, as PNGs."""
        from gradfeat.comparison.plots import choice_charts, remainder_chart

        folder = Path(folder)
        written: list[Path] = []
        for mode, estimator in self.estimators.items():
            written += choice_charts(folder, mode, estimator.choice_, estimator.rounds_)
        if self.approximation is not None:
            written.append(remainder_chart(folder / "remainder.png", self.approximation.remainder))
        return written

    def plot(self, path: str | Path, title: str = "") -> Path:
        """Draw the main metric of each model as a PNG; for accuracy with its standard error on the test data.

        Raises:
            ConfigurationError: No model was finished.
        """
        from gradfeat.comparison.plots import dot_chart

        main = self._main_metric()
        factor = 100 if main in PERCENT else 1
        values = [factor * row.metrics[main] for row in self.rows]
        errors = None
        if main == "accuracy":
            errors = [100 * math.sqrt(row.metrics[main] * (1 - row.metrics[main]) / self.n_test) for row in self.rows]
        label = TITLES[main] if errors is None else f"{TITLES[main]} (± standard error)"
        return dot_chart(path, [row.mode for row in self.rows], values, label, errors=errors, title=title)

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON."""
        return write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def _main_metric(self) -> str:
        if not self.rows:
            raise ConfigurationError("the comparison has no finished model")
        return self.metric_names[0]


@plain()
def compare(
    backbone: Any,
    X: Any,
    y: Any,
    X_test: Any,
    y_test: Any,
    *,
    modes: Sequence[str] = MODES,
    task: str = "classification",
    sample_weight: Any = None,
    crops: int = 1,
    **parameters: Any,
) -> Comparison:
    """Fit the four models of the method on the same features and judge them on the same test data.

    The network is linearized once, its bottom runs once for each sample, and the probe is fitted once. Test data choose
    nothing. An interruption (Ctrl-C) ends the table with the models that are done.

    Args:
        backbone: As for `GradientFeatureClassifier`.
        X: Training samples.
        y: Their labels.
        X_test: Test samples.
        y_test: Their labels.
        modes: Which models.
        task: "classification" (labels, or an indicator matrix) or "regression".
        sample_weight: A weight for each training sample.
        crops: Random crops of each test image, over which predictions are averaged (`gradfeat.data.Crops`); 1 is the
            centre crop (the paper's Table 2, where Table 4 has 10). Each costs as much as a test image.
        **parameters: Further parameters of the estimators (theta2, epochs, solver, ...).

    Returns:
        The table, with the fitted estimators.

    Raises:
        ConfigurationError: A mode or parameter is unknown, or crops of test data that are no images.
        DataError: Test labels that do not fit the training labels.
    """
    cls = _check(modes, task, parameters)
    check_crops(crops)
    if crops > 1:
        parameters = _with_room(parameters)
    estimators: dict[str, Any] = {mode: cls(backbone, **_of_mode(mode, parameters)) for mode in modes}
    # `full` needs all that any mode needs to be kept of each sample
    base: Any = cls(backbone, **{**parameters, "mode": "activation" if set(modes) == {"activation"} else "full"})
    check_parameters(base)
    progress = Progress(base.verbose)
    X, targets, loss, weight = base._read(X, y, sample_weight)
    truth = read_truth(np.asarray(labels_of(X_test, y_test, base)), loss.task, getattr(base, "classes_", None))
    test = base._read_X(X_test, reset=False)
    check_lengths(test, truth)
    nothing = np.zeros((len(truth), loss.n_outputs(torch.as_tensor(targets))))
    metrics_of(loss, nothing, truth)  # so that labels that cannot be judged are refused before any work
    stages = [*shared_stages(), Stage("test activations", ACTIVATIONS * len(truth) * crops / max(len(targets), 1))]
    for mode in modes:
        stages += [*stages_of_plan(base._plan(len(targets), mode), len(targets)), Stage("test")]
    with progress.whole("compare", stages):
        problem = base._prepare(X, targets, loss, weight, progress)
        inputs = test if isinstance(test, Inputs) else Inputs(test, base.backbone_.preprocessing)
        return _side_by_side(base, estimators, problem, inputs, truth, crops, progress)


def _side_by_side(
    base: Any,
    estimators: dict[str, Any],
    problem: Problem,
    inputs: Inputs,
    truth: np.ndarray,
    crops: int,
    progress: Progress,
) -> Comparison:
    """Fit each mode to a prepared problem and judge it on test samples."""
    loss = problem.loss
    with progress.step("test activations") as done:
        cache = "none" if base.mode == "activation" else base.cache
        views = base._views(inputs, crops)
        store = SampleStore(problem.linearization, views, cache=cache, batch_size=base.batch_size, progress=done)
    rows: list[Row] = []
    notes = [*base.backbone_.notes, *(f"θ₂ {depth}" for depth in base.depths_)]
    if inputs.preprocessing is not None:
        notes.append(f"images: {inputs.preprocessing.describe()}")
    if crops > 1:
        notes.append(f"predictions are the mean over {crops} random crops of each test image")
    fitted: dict[str, Any] = {}
    outputs: dict[str, Tensor] = {}
    samples: dict[str, dict[str, np.ndarray]] = {}
    edges: dict[str, str] = {}
    interrupted = False
    for k, mode in enumerate(estimators, 1):
        progress.part(f"{mode} (model {k}/{len(estimators)})")
        try:
            fit = solve(problem, base._plan(problem.n, mode, base._seed()), progress)
            if fit.interrupted and fit.epochs == 0:
                raise KeyboardInterrupt
            with progress.step("test"):
                logits = mean_of_views(_logits(fit.model, store, base.batch_size), crops, loss)
                own = _logits(fit.model, problem.store, base.batch_size)
                training = loss.value(own, problem.y, problem.weight)
        except KeyboardInterrupt:
            notes.append(f"interrupted in {mode}: the models before it are complete")
            interrupted = True
            break
        except ConvergenceError as error:
            notes.append(f"{mode} has no row: {error}")
            continue
        values = logits.double().cpu().numpy()
        metrics, samples[mode] = metrics_of(loss, values, truth), per_sample_of(loss, values, truth)
        parameters_trained = sum(parameter.numel() for parameter in fit.model.trained())
        rows.append(Row(mode, metrics, float(training), fit.seconds, parameters_trained, _note(problem, mode, fit)))
        _share(base, estimators[mode])
        estimators[mode]._adopt(problem, fit, progress)
        fitted[mode], outputs[mode] = estimators[mode], logits
        notes.extend(fit.notes)
        edge = edge_note(estimators[mode], problem.n)
        if edge and edge not in edges.values():
            edges[mode] = edge
        if fit.interrupted:
            interrupted = True
            break
    theta2 = list(problem.linearization.theta2)
    found = None
    if "full" in outputs:
        full = fitted["full"]._fitted_model()
        try:
            head = fitted["full"].merged_head_
            progress.part("full")
            with progress.step("approximation"):
                found = approximation(full, store_of(full, store), loss, head=head, batch_size=base.batch_size)
        except KeyboardInterrupt:
            notes.append("interrupted while the approximation was measured: the models are complete")
            interrupted = True
        if found is not None and "finetune" in outputs:
            found = replace(found, finetune_agreement=agreement(outputs["full"], outputs["finetune"], loss))
    progress.part("compare")
    notes = [*(f"{mode}: {edge}" for mode, edge in edges.items()), *notes]
    verdict = None
    if rows:
        main = next(iter(rows[0].metrics))
        scores = {row.mode: row.metrics[main] for row in rows}
        verdict = verdict_of(scores, TITLES[main].replace(" %", ""), samples)
    return Comparison(rows, theta2, problem.seconds, problem.n, len(inputs), notes, fitted, found, interrupted, verdict)


def check_modes(modes: Sequence[str]) -> None:
    """Refuse modes that there are not.

    Raises:
        ConfigurationError: An unknown mode, or one twice.
    """
    if isinstance(modes, str) or not modes or len(set(modes)) < len(modes):
        raise ConfigurationError(f"modes must be some of {', '.join(MODES)}, each once, not {modes!r}")
    for mode in modes:
        if mode not in MODES:
            raise ConfigurationError(
                f"mode must be one of {', '.join(MODES)}, not {mode!r}.{did_you_mean(str(mode), MODES, OTHER_NAMES)}"
            )


def _check(modes: Sequence[str], task: str, parameters: dict[str, Any]) -> Any:
    """Refuse arguments that cannot be meant; return the estimators' class."""
    check_modes(modes)
    if task not in ("classification", "regression"):
        raise ConfigurationError(f"task must be 'classification' or 'regression', not {task!r}")
    cls = GradientFeatureClassifier if task == "classification" else GradientFeatureRegressor
    known = [name for name in cls._get_param_names() if name not in ("backbone", "mode")]
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ConfigurationError(
            f"unknown parameter {unknown[0]!r}; known are {', '.join(known)}.{did_you_mean(unknown[0], known)}"
        )
    return cls


def _with_room(parameters: dict[str, Any]) -> dict[str, Any]:
    """Let an image size leave the border that random crops need: the backbone's own, where nothing else is said."""
    given = parameters.get("preprocessing")
    if parameters.get("image_size") is None or not isinstance(given, Mapping | None):
        return parameters
    return {**parameters, "preprocessing": {"crop_pct": None, **(given or {})}}


def _of_mode(mode: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a mode's estimator; rounds are of `full` alone."""
    return {**parameters, "mode": mode} | ({"rounds": 1} if mode == "gradient" else {})


def _note(problem: Problem, mode: str, fit: Fit) -> str:
    """Say what was chosen for a model, and whether its training was cut short."""
    parts = []
    if mode == "activation":
        parts.append(f"penalty {problem.probe.penalty:.3g}")
    if fit.selection is not None:
        parts.append(f"{fit.selection.best}, the best of {len(fit.selection.scores)} on held-out training data")
    if fit.solution is not None and not (fit.solution.solver in OPTIMIZERS and fit.interrupted):  # said below
        parts.append(str(fit.solution))
    if fit.choice is not None:
        parts.append(str(fit.choice))
    if fit.rounds is not None:
        parts.append(str(fit.rounds))
    if fit.interrupted:
        parts.append(f"stopped after {fit.epochs} epochs")
    return "; ".join(parts)


def _share(base: Any, estimator: Any) -> None:
    """Give an estimator what `base` found out about data and backbone."""
    found = (
        "backbone_",
        "example_",
        "classes_",
        "n_features_in_",
        "feature_names_in_",
        "_one_output",
        "_built_from",
        "depths_",
        "modules_",
    )
    for name in found:
        if hasattr(base, name):
            setattr(estimator, name, getattr(base, name))


def _logits(model: GradientFeatureModel, store: SampleStore, batch_size: int) -> Tensor:
    return finite(store_logits(model, store, batch_size), "its outputs are not finite")
