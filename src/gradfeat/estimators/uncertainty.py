"""How sure a prediction is: probabilities over the posterior, prediction sets and intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError
from gradfeat.estimators.answering import Answering
from gradfeat.estimators.left_out import LeftOut
from gradfeat.losses import Loss
from gradfeat.solvers.conformal import cv_plus_sets, jackknife_plus, rank_of

FACTORS = tuple(2.0**power for power in range(-10, 3))
"""Dispersions that are tried, beside none at all."""

_DRAWS = 500  # pairs of logits, of opposite signs
_ENTRIES = 1 << 24  # samples × training samples × outputs at a time


class Uncertain(Answering):
    """Uncertainty of the predictions of a fitted estimator: a mixin."""

    _dispersion: float | None = None

    def predict_variance(self, X: Any) -> np.ndarray:
        """Return the predictive covariance of the logits of each sample, (m, c, c), with ω̄ and θ̄₂ kept.

        Laplace's approximation: the inverse Hessian of the penalized loss at the fitted weights; of a regression times
        `dispersion_`, without the noise of the targets themselves.

        Args:
            X: m samples, as for `fit`.
        """
        factor = self.dispersion_ if self.fitted_.targets.loss.task == "regression" else 1.0
        return torch.cat([covariances for _, covariances in self._logits_and_covariances(X, factor)]).numpy()

    @property
    def dispersion_(self) -> float:
        """What the inverse Hessian is multiplied by to be a covariance (McCullagh & Nelder 1989, Sec. 4.5).

        Of a regression the mean squared residual of each sample by the model without it. Of classes and labels the
        factor, 0 to 4, at which probabilities that are means over the posterior have the least leave-one-out loss: a
        penalty that predicts well is not yet a prior.
        """
        if self._dispersion is None:
            left, answers = self.loo_, self.answers_
            self._dispersion = dispersion_of(left, answers.covariances_without())
        return self._dispersion

    def _logits_and_covariances(self, X: Any, factor: float) -> Iterator[tuple[Tensor, Tensor]]:
        answers = self.answers_
        for _, rows, logits in self._parts(X):
            yield logits, factor * answers.covariances(rows)

    def _proba_of_posterior(self, X: Any) -> np.ndarray:
        """Return the mean of the probabilities over the logits' posterior, (m, c)."""
        loss = self.fitted_.targets.loss
        found = self._logits_and_covariances(X, self.dispersion_)
        return torch.cat([mean_proba(loss, logits, covariances) for logits, covariances in found]).numpy()

    def predict_set(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Return which classes each sample may be of, (m, c), a boolean for each: the true one with such a probability.

        By CV+ over the models without each training sample (`gradfeat.solvers.conformal`), which takes no further data.
        The most probable class is always in it.

        Args:
            X: m samples, as for `fit`.
            coverage: Probability that the true class is in the set, for samples as those that were fitted to.

        Raises:
            ConfigurationError: Not of several classes; or too few samples for such a coverage.
        """
        loss = self.fitted_.targets.loss
        if loss.task != "multiclass":
            raise ConfigurationError(f"predict_set is for classes, not for {loss.task} targets")
        left = self.loo_
        rank_of(len(left.samples), coverage)
        own = -torch.from_numpy(left.quality)
        sets = []
        for logits in self._without_each(X):
            probability = _probabilities(loss, logits)
            found = cv_plus_sets(-probability, own, coverage)
            sure = probability.mean(1).argmax(1)
            found[torch.arange(len(found)), sure] = True
            sets.append(found)
        return torch.cat(sets).numpy()

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Return lower and upper ends of an interval of each prediction, (m, 2), or (m, k, 2) of several targets.

        By jackknife+ over the models without each training sample (`gradfeat.solvers.conformal`); of several targets
        each by itself.

        Args:
            X: m samples, as for `fit`.
            coverage: Probability that a target is in its interval, for samples as those that were fitted to.

        Raises:
            ConfigurationError: Not of a regression; or too few samples for such a coverage.
        """
        targets = self.fitted_.targets
        if targets.loss.task != "regression":
            raise ConfigurationError(f"predict_interval is for a regression, not for {targets.loss.task} targets")
        left = self.loo_
        rank_of(len(left.samples), coverage)
        far = (left.y.double() - left.logits).abs()
        parts = []
        for logits in self._without_each(X):
            ends = [jackknife_plus(logits[:, :, k], far[:, k], coverage) for k in range(logits.shape[2])]
            parts.append(torch.stack(ends, 1))
        found = torch.cat(parts)
        values = targets.loss.predict_proba(found.transpose(1, 2)).transpose(1, 2).numpy()
        return np.asarray(values[:, 0] if targets.one_output else values)

    def _without_each(self, X: Any) -> Iterator[Tensor]:
        """Yield the logits of samples by the models without each training sample, in parts, (m, n, c)."""
        answers = self.answers_
        for store, rows, logits in self._parts(X):
            n = len(self.loo_.samples)
            size = max(1, _ENTRIES // (n * logits.shape[1]))
            moves = answers.moves(store, rows)
            for part in torch.arange(len(logits)).split(size):
                yield logits[part][:, None] + moves(part)


def _probabilities(loss: Loss, logits: Tensor) -> Tensor:
    """Return probabilities of logits of several models, (m, n, c)."""
    return loss.predict_proba(logits.flatten(0, 1)).view_as(logits)


def dispersion_of(left: LeftOut, covariances: Tensor) -> float:
    """Return the dispersion of each sample left out, with its logits' covariances without it, (n, c, c)."""
    if left.loss.task == "regression":
        return float(left.share @ (left.y.double() - left.logits).square().mean(1))
    losses = {}
    for factor in (0.0, *FACTORS):
        p = mean_proba(left.loss, left.logits, factor * covariances).clamp_min(1e-300)
        if left.loss.task == "multiclass":
            each = -p.log().gather(1, left.y[:, None])[:, 0]
        else:
            each = left.loss.per_sample(p.log() - (1 - p).clamp_min(1e-300).log(), left.y)
        losses[factor] = float(left.share @ each)
    return min(losses, key=losses.__getitem__)


def mean_proba(loss: Loss, logits: Tensor, covariances: Tensor) -> Tensor:
    """Return the mean of probabilities over normal logits, (m, c), by the same draws for each sample.

    Args:
        loss: Of classes, or of several labels.
        logits: Their means, (m, c).
        covariances: (m, c, c), positive semi-definite.
    """
    values, vectors = torch.linalg.eigh(covariances)
    root = vectors * values.clamp_min(0).sqrt()[:, None]
    draws = torch.randn(_DRAWS, logits.shape[1], dtype=logits.dtype, generator=torch.Generator().manual_seed(0))
    total = torch.zeros_like(logits)
    for part in torch.cat([draws, -draws]).split(max(1, _ENTRIES // max(1, logits.numel()))):
        moved = logits[:, None] + (root @ part.T).mT
        total += _probabilities(loss, moved).sum(1)
    return total / (2 * _DRAWS)
