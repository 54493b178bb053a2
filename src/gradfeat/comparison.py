"""`compare`: the four models of the method side by side, on one network and one data set."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradfeat.cache import SampleStore
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor, check_lengths, labels_of
from gradfeat.fitting import Problem, batch_logits, fit_mode
from gradfeat.metrics import accuracy, log_loss, mean_average_precision, r2, rmse
from gradfeat.model import MODES
from gradfeat.progress import Progress

_TITLES = {
    "accuracy": "accuracy %",
    "log_loss": "log loss",
    "map_area": "mAP % (area)",
    "map_11point": "mAP % (11-point)",
    "r2": "R²",
    "rmse": "RMSE",
}
_PERCENT = ("accuracy", "map_area", "map_11point")


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
    """

    rows: list[Row]
    theta2: list[str]
    shared_seconds: dict[str, float]
    n_train: int
    n_test: int
    notes: list[str] = field(default_factory=list)
    estimators: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics, the main one first."""
        return list(self.rows[0].metrics) if self.rows else []

    def best(self) -> str:
        """Return the mode with the best main metric on the test data: to read the table by, not to choose by."""
        main = self.metric_names[0]
        return max(self.rows, key=lambda row: row.metrics[main]).mode

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the table as text: its header, and a list for each row."""
        header = [
            "model",
            *(_TITLES[name] for name in self.metric_names),
            "training loss",
            "trained parameters",
            "time",
            "note",
        ]
        body = [
            [
                row.mode,
                *(
                    f"{100 * row.metrics[name]:.2f}" if name in _PERCENT else f"{row.metrics[name]:.4f}"
                    for name in self.metric_names
                ),
                f"{row.train_loss:.4f}",
                f"{row.parameters:,}",
                f"{row.seconds:.1f} s",
                row.note,
            ]
            for row in self.rows
        ]
        return header, body

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
        }

    def plot(self, path: str | Path, title: str = "") -> Path:
        """Draw the main metric of each model, and its training time, as a PNG."""
        from gradfeat.plots import bar_chart

        main = self.metric_names[0]
        factor = 100 if main in _PERCENT else 1
        values = [factor * row.metrics[main] for row in self.rows]
        errors = None
        if main == "accuracy":
            errors = [100 * math.sqrt(row.metrics[main] * (1 - row.metrics[main]) / self.n_test) for row in self.rows]
        return bar_chart(path, [row.mode for row in self.rows], values, _TITLES[main], errors=errors, title=title)

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return path


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
        **parameters: Further parameters of the estimators (theta2, epochs, solver, ...).

    Returns:
        The table, with the fitted estimators.

    Raises:
        ConfigurationError: A mode or parameter is unknown.
    """
    for mode in modes:
        if mode not in MODES:
            raise ConfigurationError(
                f"modes: {mode!r} is not one of {', '.join(MODES)}.{did_you_mean(str(mode), MODES)}"
            )
    if task not in ("classification", "regression"):
        raise ConfigurationError(f"task must be 'classification' or 'regression', not {task!r}")
    cls = GradientFeatureClassifier if task == "classification" else GradientFeatureRegressor
    known = cls._get_param_names()
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ConfigurationError(f"unknown parameter {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    # `full` needs all that any mode needs to be kept of each sample
    estimators = {mode: cls(backbone, **{**parameters, "mode": mode}) for mode in modes}
    base: Any = cls(backbone, **{**parameters, "mode": "full"})
    progress = Progress(base.verbose)
    X, targets, loss, weight = base._read(X, y, sample_weight)
    problem = base._prepare(X, targets, loss, weight)
    test = base._read_X(X_test, reset=False)
    inputs = test if isinstance(test, Inputs) else Inputs(test, base.backbone_.preprocessing)
    truth = np.asarray(labels_of(X_test, y_test, base))
    check_lengths(inputs, truth)
    with progress.step("test activations") as done:
        store = SampleStore(problem.linearization, inputs, cache="auto", batch_size=base.batch_size, progress=done)
    rows: list[Row] = []
    notes = list(base.backbone_.notes)
    fitted: dict[str, Any] = {}
    schedule = base._schedule(len(problem.store))
    for mode in modes:
        try:
            fit = fit_mode(
                problem,
                mode,
                schedule,
                parametrization=base.parametrization,
                random_state=base._seed(),
                progress=progress,
            )
        except KeyboardInterrupt:
            notes.append(f"interrupted in {mode}: the models before it are complete")
            break
        estimator: Any = estimators[mode]
        _share(base, estimator)
        estimator._adopt(problem, fit)
        logits = _all_logits(fit.model, store, base.batch_size)
        metrics = test_metrics(estimator, logits, truth)
        train_loss = _train_loss(problem, fit.model, base.batch_size)
        note = f"penalty {problem.probe.penalty:.3g}" if mode == "activation" else ""
        if fit.selection is not None:
            note = f"{fit.selection.best}"
        rows.append(Row(mode, metrics, train_loss, fit.seconds, sum(p.numel() for p in fit.model.trained()), note))
        fitted[mode] = estimator
        notes.extend(fit.notes)
        if any("interrupted" in text for text in fit.notes):
            break
    return Comparison(
        rows, list(problem.linearization.theta2), problem.seconds, len(problem.store), len(store), notes, fitted
    )


def _share(base: Any, estimator: Any) -> None:
    """Give an estimator what `base` found out about data and backbone."""
    for name in ("backbone_", "example_", "classes_", "n_features_in_", "feature_names_in_", "_one_output"):
        if hasattr(base, name):
            setattr(estimator, name, getattr(base, name))


def _all_logits(model: Any, store: SampleStore, batch_size: int) -> np.ndarray:
    with torch.no_grad():
        parts = [batch_logits(model, store, part) for part in torch.arange(len(store)).split(batch_size)]
    return torch.cat(parts).double().cpu().numpy()


def _train_loss(problem: Problem, model: Any, batch_size: int) -> float:
    with torch.no_grad():
        everything = torch.arange(len(problem.store))
        logits = torch.cat([batch_logits(model, problem.store, part) for part in everything.split(batch_size)])
        return float(problem.loss.value(logits, problem.y, problem.weight))


def test_metrics(estimator: Any, logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the metrics of a task on test data, the main one first.

    Args:
        estimator: A fitted estimator, for its classes and loss.
        logits: (n, c).
        truth: Labels as the user gave them.
    """
    loss = estimator.loss_
    if loss.task == "regression":
        target = truth.reshape(len(truth), -1).astype(float)
        return {"r2": r2(target, logits), "rmse": rmse(target, logits)}
    probability = loss.predict_proba(torch.from_numpy(logits)).numpy()
    if loss.task == "multilabel":
        ignore = np.isnan(truth.astype(float))
        labels = np.nan_to_num(truth.astype(float))
        return {
            "map_11point": mean_average_precision(logits, labels, ignore=ignore, method="11point"),
            "map_area": mean_average_precision(logits, labels, ignore=ignore, method="area"),
            "log_loss": log_loss(np.where(ignore, np.nan, labels), probability),
        }
    unknown = np.setdiff1d(truth, estimator.classes_)
    if len(unknown):
        raise ConfigurationError(
            f"the test labels have classes that the training data has not: {', '.join(map(str, unknown[:5]))}"
        )
    index = np.searchsorted(estimator.classes_, truth)
    return {"accuracy": accuracy(index, probability.argmax(1)), "log_loss": log_loss(index, probability)}
