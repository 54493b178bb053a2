"""Each training sample by the model without it: what that says of the model, and of the sample's label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError
from gradfeat.losses import Loss


class Estimate(NamedTuple):
    """A mean over samples.

    Attributes:
        value: The mean.
        error: Its standard error, over the samples.
    """

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Each training sample by the model without it (leave-one-out), with ω̄ left out too.

    Attributes:
        samples: Indices of the samples whose weight is above zero, (n,).
        logits: (n, c); of a regression distances to the targets' mean.
        y: Targets as the loss takes them.
        loss: The task's loss.
        share: Weight of each sample, of sum one, (n,).
        classes: Class labels, (c,); None for a regression.
        conditional: What the answer is conditional on, in words.
    """

    samples: np.ndarray
    logits: Tensor
    y: Tensor
    loss: Loss
    share: Tensor
    classes: np.ndarray | None
    conditional: str

    @cached_property
    def proba(self) -> np.ndarray:
        """The probability of each class, or of each label, (n, c); the `pred_probs` that cleanlab takes.

        Raises:
            ConfigurationError: Of a regression: see `prediction`.
        """
        if self.loss.task == "regression":
            raise ConfigurationError("a regression has no probabilities: see prediction")
        return self.loss.predict_proba(self.logits).numpy()

    @cached_property
    def prediction(self) -> np.ndarray:
        """What is predicted: classes, (n,), an indicator matrix, (n, c), or values, (n, k)."""
        if self.loss.task == "regression":
            return self.loss.predict_proba(self.logits).numpy()
        if self.loss.task == "multilabel":
            return (self.logits > 0).numpy().astype(int)
        return np.asarray(np.asarray(self.classes)[self.logits.argmax(1).numpy()])

    @cached_property
    def quality(self) -> np.ndarray:
        """How plausible each sample's label is without it, in [0, 1], (n,).

        The probability of its class; of several labels that of the least plausible one; of a regression the share of
        samples whose prediction is at least as far from their target.
        """
        if self.loss.task == "multiclass":
            own: np.ndarray = np.take_along_axis(self.proba, self.y.numpy()[:, None], 1)
            return np.asarray(own[:, 0])
        if self.loss.task == "multilabel":
            y = self.y.numpy()
            own = np.where(y > 0.5, self.proba, 1 - self.proba)
            return np.asarray(np.where(np.isnan(y), 1.0, own).min(1))
        far = self.loss.per_sample(self.logits, self.y).numpy()
        closer: np.ndarray = np.argsort(np.argsort(far))
        return np.asarray(1 - (closer + 0.5) / len(far))

    @property
    def accuracy(self) -> Estimate:
        """Share of right classes; of several labels the share of right labels.

        Raises:
            ConfigurationError: Of a regression: see `r2`.
        """
        if self.loss.task == "regression":
            raise ConfigurationError("a regression has no accuracy: see r2")
        if self.loss.task == "multiclass":
            return self._mean((self.logits.argmax(1) == self.y).double())
        known = ~torch.isnan(self.y)
        right = ((self.logits > 0) == (self.y > 0.5)) & known
        return self._mean(right.double().sum(1) / known.double().sum(1).clamp_min(1))

    @property
    def log_loss(self) -> Estimate:
        """Mean loss: of a regression half the squared error."""
        return self._mean(self.loss.per_sample(self.logits, self.y).double())

    @property
    def r2(self) -> float:
        """R² of a regression, the mean over targets."""
        y = self.y.double()
        left = self.share @ (y - self.logits).square()
        return float((1 - left / (self.share @ (y - self.share @ y).square()).clamp_min(1e-300)).mean())

    def metrics(self) -> dict[str, float]:
        """Return the metrics with their standard errors, by name."""
        if self.loss.task == "regression":
            return {"r2": self.r2}
        named = {"accuracy": self.accuracy, "log_loss": self.log_loss}
        return {
            name + suffix: number
            for name, estimate in named.items()
            for suffix, number in (("", estimate.value), ("_error", estimate.error))
        }

    def _mean(self, each: Tensor) -> Estimate:
        mean = self.share @ each
        return Estimate(float(mean), float((self.share.square() @ (each - mean).square()).sqrt()))

    def __str__(self) -> str:
        if self.loss.task == "regression":
            return f"R² without a test set: {self.r2:.3f} ({self.conditional})"
        accuracy, loss = self.accuracy, self.log_loss
        return (
            f"accuracy without a test set: {100 * accuracy.value:.1f} ± {100 * accuracy.error:.1f} %, "
            f"log loss {loss.value:.3f} ± {loss.error:.3f} ({self.conditional})"
        )
