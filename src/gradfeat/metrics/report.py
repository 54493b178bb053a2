"""How a model does class by class: precision, recall and counts, and which classes it takes for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradfeat.losses import Loss
from gradfeat.metrics.scores import average_precisions, r2, rmse

MOST_IN_JSON = 200
"""Classes up to which a report as plain objects has the whole confusion matrix; more have the most frequent errors."""


@dataclass(frozen=True)
class ClassReport:
    """A model of classes, one for each sample.

    Attributes:
        names: Of the classes, c.
        confusion: How many samples of class i were taken for class j, (c, c).
    """

    names: list[str]
    confusion: np.ndarray

    @property
    def support(self) -> np.ndarray:
        """Number of samples of each class, (c,)."""
        return self.confusion.sum(1)

    @property
    def predicted(self) -> np.ndarray:
        """Number of samples that were taken for each class, (c,)."""
        return self.confusion.sum(0)

    @property
    def precision(self) -> np.ndarray:
        """Share of each class's predictions that are right, (c,); NaN of a class that was never predicted."""
        return _share(self.confusion.diagonal(), self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Share of each class's samples that were found, (c,); NaN of a class without samples."""
        return _share(self.confusion.diagonal(), self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, (c,); NaN of a class that neither truth nor predictions have."""
        return _share(2 * self.confusion.diagonal(), self.support + self.predicted)

    def metrics(self) -> dict[str, float]:
        """Return what weighs all classes the same.

        Macro-F1 is over classes that truth or predictions have, balanced accuracy over those that truth has, as in
        scikit-learn.
        """
        return {"macro_f1": float(np.nanmean(self.f1)), "balanced_accuracy": float(np.nanmean(self.recall))}

    def confused(self, most: int) -> list[tuple[str, str, int]]:
        """Return the most frequent errors: (class, what it was taken for, how often), at most so many."""
        errors = self.confusion.copy()
        np.fill_diagonal(errors, 0)
        order = np.argsort(-errors, axis=None, kind="stable")[:most]
        pairs = [(int(k) // len(errors), int(k) % len(errors)) for k in order]
        return [(self.names[i], self.names[j], int(errors[i, j])) for i, j in pairs if errors[i, j]]

    def columns(self) -> dict[str, np.ndarray]:
        """Return what there is of each class, by name."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1, "support": self.support}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain Python objects; rows of the confusion matrix are true classes, columns predicted ones."""
        whole = len(self.names) <= MOST_IN_JSON
        pairs = [{"class": i, "taken_for": j, "count": k} for i, j, k in self.confused(MOST_IN_JSON)]
        return {"classes": _rows(self), **({"confusion": self.confusion.tolist()} if whole else {"confused": pairs})}


@dataclass(frozen=True)
class LabelReport:
    """A model of several labels a sample; a label is predicted where its probability is above one half.

    Attributes:
        names: Of the labels, c.
        average_precision: Of each, (c,); NaN without a sample that has it.
        right: How many samples each was rightly predicted for, (c,).
        predicted: How many it was predicted for.
        support: How many have it.
    """

    names: list[str]
    average_precision: np.ndarray
    right: np.ndarray
    predicted: np.ndarray
    support: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of each label's predictions that are right, (c,); NaN of one that was never predicted."""
        return _share(self.right, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Share of the samples with a label that were found, (c,); NaN without any."""
        return _share(self.right, self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, (c,); NaN of a label that neither truth nor predictions have."""
        return _share(2 * self.right, self.support + self.predicted)

    def metrics(self) -> dict[str, float]:
        """Return what weighs all labels the same: the mean F1, where a label that is nowhere counts zero."""
        return {"macro_f1": float(np.nan_to_num(self.f1).mean())}

    def columns(self) -> dict[str, np.ndarray]:
        """Return what there is of each label, by name."""
        shares = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {"average_precision": self.average_precision, **shares, "support": self.support}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain Python objects."""
        return {"classes": _rows(self)}


@dataclass(frozen=True)
class ValueReport:
    """A model of values.

    Attributes:
        truth: Targets, (n, k).
        values: Predictions, (n, k).
    """

    truth: np.ndarray
    values: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Return the mean absolute error over samples and outputs."""
        return {"mae": float(np.abs(self.truth - self.values).mean())}

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics of each output, where there are several."""
        if self.truth.shape[1] == 1:
            return {}
        columns = zip(self.truth.T, self.values.T, strict=True)
        rows = [{"r2": r2(y, v), "mae": float(np.abs(y - v).mean()), "rmse": rmse(y, v)} for y, v in columns]
        return {"outputs": rows}


Report = ClassReport | LabelReport | ValueReport


def report_of(loss: Loss, logits: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> Report:
    """Return the report of a task on test data.

    Args:
        loss: The task's loss.
        logits: (n, c).
        truth: From `read_truth`.
        names: Of the classes, c; not used for regression.
    """
    if loss.task == "regression":
        return ValueReport(truth, loss.predict_proba(torch.from_numpy(logits)).numpy())
    if loss.task == "multilabel":
        return label_report(logits, truth, names)
    return class_report(truth, logits.argmax(1), names)


def class_report(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> ClassReport:
    """Count which classes were taken for which.

    Args:
        truth: Class indices, (n,).
        predicted: Class indices, (n,).
        names: Of the classes, c.

    Example:
        >>> report = class_report(np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog"])
        >>> report.confusion.tolist(), report.precision.tolist(), report.confused(3)
        ([[1, 1], [0, 1]], [1.0, 0.5], [('cat', 'dog', 1)])
    """
    c = len(names)
    counts = np.bincount(np.asarray(truth) * c + np.asarray(predicted), minlength=c * c)
    return ClassReport(list(names), counts.reshape(c, c))


def label_report(logits: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> LabelReport:
    """Count labels that were predicted, and those that are there; entries of `truth` that are NaN do not count.

    Args:
        logits: (n, c); a label is predicted above zero.
        truth: 0, 1 or NaN, (n, c).
        names: Of the labels, c.
    """
    known = ~np.isnan(truth)
    there, said = known & (truth == 1), known & (logits > 0)
    precision = average_precisions(logits, np.nan_to_num(truth), ignore=~known)
    return LabelReport(list(names), precision, (there & said).sum(0), said.sum(0), there.sum(0))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _rows(report: ClassReport | LabelReport) -> list[dict[str, Any]]:
    """Return a row for each class; JSON has no NaN."""
    columns = {name: values.tolist() for name, values in report.columns().items()}
    return [
        {
            "class": name,
            **{key: None if math.isnan(values[i]) else values[i] for key, values in columns.items()},
        }
        for i, name in enumerate(report.names)
    ]
