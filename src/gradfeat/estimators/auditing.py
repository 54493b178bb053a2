"""Wrong labels: training samples by how implausible their label is to the model without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.estimators.left_out import LeftOut
from gradfeat.files.csv_text import csv_text
from gradfeat.files.writing import write_text
from gradfeat.metrics.suspects import (
    MOST_DEVIATIONS,
    class_weights_of,
    deviations,
    label_weights_of,
    suspect_classes,
    suspect_labels,
    target_weights_of,
)

_STATE = ("absent", "present")  # of a label, where a sample may have several
_RULES = {
    "multiclass": "confident learning: another class reaches its mean probability among samples labelled so, and is "
    "the most probable one",
    "multilabel": "confident learning, label by label: the other state reaches its mean probability among samples "
    "labelled so, and is the more probable one",
    "regression": f"further than {MOST_DEVIATIONS} robust standard deviations from the prediction",
}


@dataclass(frozen=True)
class Finding:
    """What the model without a sample says of its label.

    Attributes:
        index: Of the sample among all that were given to `fit`.
        name: Of the sample.
        which: The label of several that fits least, or the target of several; "" where there is one.
        given: The label as it is: a class's name; "present" or "absent"; a value.
        fitting: What would fit best: the same, where the label does.
        p_given: Probability of the label; None for a regression.
        p_fitting: Probability of what would fit; None for a regression.
        distance: Of a regression's target to its prediction, in robust standard deviations; None for classes.
        suspect: Whether the rule of `Audit.rule` calls it so.
    """

    index: int
    name: str
    which: str
    given: str | float
    fitting: str | float
    p_given: float | None
    p_fitting: float | None
    distance: float | None
    suspect: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what there is of it, by name."""
        return {name: value for name, value in vars(self).items() if value is not None and value != ""}


@dataclass(frozen=True, eq=False)
class Audit:
    """Training samples by how implausible their label is to the model without them (leave-one-out).

    n samples are judged: those whose weight in `fit` was above zero.

    Attributes:
        left_out: Each of them by the model without it.
        names: Name of each of the samples that were given to `fit`.
        labels: Names of the classes, of the labels, or of a regression's targets.
    """

    left_out: LeftOut
    names: Sequence[str]
    labels: Sequence[str]

    @property
    def task(self) -> str:
        """The task of the loss: "multiclass", "multilabel" or "regression"."""
        return str(self.left_out.loss.task)

    @property
    def samples(self) -> np.ndarray:
        """Indices of the judged samples among all that were given to `fit`, (n,)."""
        return self.left_out.samples

    @property
    def quality(self) -> np.ndarray:
        """How plausible each label is without its sample, in [0, 1], (n,): see `LeftOut.quality`."""
        return self.left_out.quality

    @property
    def pred_probs(self) -> np.ndarray:
        """Probability of each class without the sample, (n, c): what cleanlab takes by this name.

        Raises:
            ConfigurationError: Of a regression, which has none.
        """
        return self.left_out.proba

    @cached_property
    def order(self) -> np.ndarray:
        """Indices of samples as in `fit`, (n,), the least plausible label first."""
        return np.asarray(self.samples[self._order])

    @cached_property
    def suspects(self) -> np.ndarray:
        """Whether each of the samples that were given to `fit` has a suspect label, by `rule`; a boolean for each."""
        found = np.zeros(len(self.names), dtype=bool)
        found[self.samples] = self._suspects
        return found

    @property
    def rule(self) -> str:
        """What makes a label suspect, in words."""
        return _RULES[self.task]

    def without_suspects(self) -> np.ndarray:
        """Return weights for `fit(X, y, sample_weight=...)`, one for each sample: 0 for suspects, 1 for the rest.

        A class all of whose samples are suspect keeps them.
        """
        weights = self._whole(np.where(self._suspects, 0.0, 1.0))
        if self.task == "multiclass":
            y = self.left_out.y.numpy()
            for k in np.unique(y):
                if self._suspects[y == k].all():
                    weights[self.samples[y == k]] = 1.0
        return weights

    def reweighted(self) -> np.ndarray:
        """Return weights for `fit(X, y, sample_weight=...)`, one for each sample in [0, 1], by how its label fits.

        The probability of the label by that of the most probable one; of several labels that of the one which fits
        least; of a regression Huber's weight.
        """
        if self.task == "multiclass":
            return self._whole(class_weights_of(self.pred_probs, self.left_out.y.numpy()))
        if self.task == "multilabel":
            return self._whole(label_weights_of(self.pred_probs, self.left_out.y.numpy()))
        return self._whole(target_weights_of(np.abs(self._deviations).max(1)))

    def findings(self, first: int | None = None) -> list[Finding]:
        """Return what there is to say of the samples, the least plausible label first.

        Args:
            first: Only so many.

        Raises:
            ConfigurationError: `first` is below one.
        """
        if first is not None and first < 1:
            raise ConfigurationError(f"first must be a number from 1, not {first}")
        make = {"multiclass": self._of_class, "multilabel": self._of_labels, "regression": self._of_targets}[self.task]
        return [make(int(i)) for i in self._order[:first]]

    def to_dict(self, first: int | None = None) -> dict[str, Any]:
        """Return it as JSON takes it.

        Args:
            first: Only so many samples, those with the least plausible labels.
        """
        return {
            "task": self.task,
            "judged": len(self.samples),
            "suspects": int(self.suspects.sum()),
            "rule": self.rule,
            "how": self.left_out.conditional,
            "samples": [one.to_dict() for one in self.findings(first)],
        }

    def to_csv(self, path: str | Path) -> Path:
        """Write a line for each judged sample, the least plausible label first, as CSV in UTF-8.

        Args:
            path: Where; an existing file is replaced only when the new one is complete.

        Returns:
            The path.
        """
        names = ["index", "name", "which", "given", "fitting", "p_given", "p_fitting", "distance", "suspect"]
        found = [vars(one) for one in self.findings()]
        names = [name for name in names if any(one[name] not in (None, "") for one in found)]
        return write_text(path, csv_text([names, *([_cell(one[name]) for name in names] for one in found)]))

    def __str__(self) -> str:
        return (
            f"{int(self.suspects.sum()):,} of {len(self.samples):,} labels are suspect ({self.rule}; "
            f"{self.left_out.conditional})"
        )

    # ---- one sample -------------------------------------------------------------------------------------------------

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.quality, kind="stable")

    @cached_property
    def _by_label(self) -> np.ndarray:
        """Which entries of several labels are suspect, (n, c)."""
        return suspect_labels(self.pred_probs, self.left_out.y.numpy())

    @cached_property
    def _suspects(self) -> np.ndarray:
        if self.task == "multiclass":
            return suspect_classes(self.pred_probs, self.left_out.y.numpy())
        if self.task == "multilabel":
            return np.asarray(self._by_label.any(1))
        return np.asarray((np.abs(self._deviations) > MOST_DEVIATIONS).any(1))

    @cached_property
    def _deviations(self) -> np.ndarray:
        """Distances of targets to predictions in robust standard deviations, (n, k)."""
        return deviations((self.left_out.y.double() - self.left_out.logits.double()).numpy())

    def _whole(self, weights: np.ndarray) -> np.ndarray:
        found = np.zeros(len(self.names))
        found[self.samples] = weights
        return found

    def _made(
        self,
        i: int,
        which: str,
        pair: tuple[str, str] | tuple[float, float],
        p: tuple[float, float] | tuple[None, None],
        distance: float | None = None,
    ) -> Finding:
        index = int(self.samples[i])
        suspect = bool(self._suspects[i])
        return Finding(index, self.names[index], which, pair[0], pair[1], p[0], p[1], distance, suspect)

    def _of_class(self, i: int) -> Finding:
        p, given = self.pred_probs[i], int(self.left_out.y[i])
        fitting = int(p.argmax())
        return self._made(i, "", (self.labels[given], self.labels[fitting]), (float(p[given]), float(p[fitting])))

    def _of_labels(self, i: int) -> Finding:
        p, y = self.pred_probs[i], self.left_out.y[i].numpy()
        own = np.where(np.isnan(y), 2.0, np.where(y > 0.5, p, 1 - p))
        k = int(own.argmin())
        if np.isnan(y[k]):  # no label of it is known
            return self._made(i, "", ("unknown", "unknown"), (1.0, 1.0))
        pair = _STATE[int(y[k] > 0.5)], _STATE[int(p[k] > 0.5)]
        return self._made(i, self.labels[k], pair, (float(own[k]), float(max(p[k], 1 - p[k]))))

    def _of_targets(self, i: int) -> Finding:
        k = int(np.abs(self._deviations[i]).argmax())
        predicted = float(self.left_out.prediction[i, k])
        given = predicted + float(self.left_out.y[i, k].double() - self.left_out.logits[i, k].double())
        which = self.labels[k] if self._deviations.shape[1] > 1 else ""
        return self._made(i, which, (given, predicted), (None, None), float(self._deviations[i, k]))


def audit_of(left_out: LeftOut, count: int, names: Sequence[Any] | None, labels: Sequence[Any] | None) -> Audit:
    """Return the audit of samples that were left out.

    Args:
        left_out: Each sample by the model without it.
        count: How many samples were given to `fit`.
        names: A name for each of these; None: their indices.
        labels: Names of the classes; None: as they are.

    Raises:
        DataError: Another number of names.
        ConvergenceError: The leave-one-out predictions are not finite.
    """
    if names is None:
        names = range(count)
    elif isinstance(names, (str, bytes)) or not hasattr(names, "__len__"):
        raise DataError("names must hold a name for each sample")
    if len(names) != count:
        raise DataError(f"names has {len(names)} names, and the model was fitted to {count} samples")
    if not bool(left_out.logits.isfinite().all()):
        raise ConvergenceError("the leave-one-out predictions are not finite: fit with larger penalties")
    if labels is None:
        outputs = left_out.logits.shape[1]
        labels = range(outputs) if left_out.classes is None else left_out.classes.tolist()
    return Audit(left_out, list(map(str, names)), list(map(str, labels)))


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
