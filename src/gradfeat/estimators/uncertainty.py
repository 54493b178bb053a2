"""How sure a fitted estimator is: integrated probabilities, sets and intervals of a stated coverage, a temperature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.errors import ConfigurationError
from gradfeat.estimators.answering import Answering
from gradfeat.losses import CrossEntropy, Quadratic
from gradfeat.solvers import conformal, predictive


class Uncertain(Answering):
    """Answers of a fitted estimator about how sure it is; they need its training data (`recall`), and no others."""

    def predict_variance(self, X: Any) -> np.ndarray:
        """Return the predictive covariance of the logits of each sample, (m, c, c), with ω̄ and θ̄₂ kept.

        Laplace's approximation: the inverse Hessian of the penalized loss at the fitted weights. Of a regression it is
        for noise of variance one, and to be multiplied by `noise_variance_`. Its size goes with the penalties: what
        predicts best is no prior (see `covariance_scale_`).

        Args:
            X: m samples, as for `fit`.
        """
        answers = self.answers_
        return torch.cat([answers.covariances(rows) for _, rows, _ in self._parts(X)]).numpy()

    @property
    def temperature_(self) -> float:
        """What the logits are to be divided by, by the logits of each training sample without it (1 says: as they are).

        Raises:
            ConfigurationError: The model is of a regression, or has no answers (`answers_`).
        """
        loss = self._loss_of("a temperature", of_classes=True)
        if isinstance(loss, Quadratic):  # its logits are distances: the softmax over them is what a temperature is of
            loss = CrossEntropy()
        left_out = self.loo_
        return predictive.temperature(loss, left_out.logits.double(), left_out.y, left_out.share)

    @property
    def noise_variance_(self) -> np.ndarray:
        """Variance of a squared loss's targets around the model, (k,), by leave-one-out.

        The mean product of a sample's error by the model and by the model without it: for least squares without bias,
        since the first is ``1 - h`` times the second.

        Raises:
            ConfigurationError: The loss is not squared, or the model has no answers.
        """
        left_out = self.loo_
        if not isinstance(left_out.loss, Quadratic):
            raise ConfigurationError(f"a noise variance is of a squared loss, not of {left_out.loss.name}")
        with_it = self.answers_.logits[: len(left_out.y)]
        errors = [left_out.loss.slope(logits.double(), left_out.y) for logits in (with_it, left_out.logits)]
        variance: np.ndarray = (left_out.share @ (errors[0] * errors[1])).clamp_min(0).numpy()
        return variance

    def _integrated(self, X: Any) -> np.ndarray:
        """Return probabilities integrated over the covariance of the logits, (m, c)."""
        loss, answers, scale = self._loss_of("probabilities", of_classes=True), self.answers_, self.covariance_scale_
        parts = [
            predictive.integrated(loss, logits, scale * answers.covariances(rows)) for _, rows, logits in self._parts(X)
        ]
        return torch.cat(parts).numpy()

    @property
    def covariance_scale_(self) -> float:
        """Multiple of `predict_variance` that ``predict_proba(uncertainty=True)`` integrates over, by leave-one-out.

        Raises:
            ConfigurationError: The model is of a regression, or has no answers (`answers_`).
        """
        loss, answers = self._loss_of("a scale of covariances", of_classes=True), self.answers_
        left_out = self.loo_
        return predictive.covariance_scale(loss, left_out.logits.double(), answers.left_out_covariances(), left_out.y)

    @plain()
    def predict_set(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Return sets of classes that hold the true one so often, (m, c), booleans: CV+ from leave-one-out.

        How badly a class fits is one minus its probability, which makes the sets small. The most probable class always
        belongs to its set, so a model that is right more often than `coverage` covers more than that. Of several labels
        each that applies is in the set so often; such sets may be empty, and a label with too few samples that have it
        is in all of them.

        Args:
            X: m samples, as for `fit`.
            coverage: Nominal share, between 0 and 1 (see `gradfeat.solvers.conformal` for what is guaranteed).

        Raises:
            ConfigurationError: A coverage that is none, a regression, or a model that has no answers.
            DataError: Fewer training samples than the coverage needs.
        """
        loss, left_out = self._loss_of("sets of classes", of_classes=True), self.loo_
        conformal.check_count(len(left_out.samples), coverage)
        own = 1 - torch.from_numpy(left_out.proba)
        several = loss.task == "multilabel"
        own = own if several else own.gather(1, left_out.y[:, None])[:, 0]
        parts = []
        for logits, without in self._without_each(X):
            scores = 1 - loss.predict_proba(without.flatten(0, 1)).view_as(without)
            if several:
                has = [(left_out.y[:, j] > 0.5).nonzero()[:, 0] for j in range(scores.shape[2])]
                columns = [
                    conformal.sets(scores[:, rows, j : j + 1], own[rows, j], coverage) for j, rows in enumerate(has)
                ]
                parts.append(torch.cat(columns, 1))
                continue
            found = conformal.sets(scores, own, coverage)
            parts.append(found.scatter(1, logits.argmax(1, keepdim=True), True))
        return torch.cat(parts).numpy()

    @plain()
    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Return intervals that hold the true value so often, (m, 2), or (m, k, 2) for several targets: jackknife+.

        Each target has its own; `coverage` is of each, not of all at once.

        Args:
            X: m samples, as for `fit`.
            coverage: Nominal share, between 0 and 1 (see `gradfeat.solvers.conformal` for what is guaranteed).

        Raises:
            ConfigurationError: A coverage that is none, a classifier, or a model that has no answers.
            DataError: Fewer training samples than the coverage needs.
        """
        loss, left_out = self._loss_of("intervals", of_classes=False), self.loo_
        conformal.check_count(len(left_out.samples), coverage)
        errors = (left_out.y.double() - left_out.logits).abs()
        parts = [conformal.intervals(without, errors, coverage) for _, without in self._without_each(X)]
        ends = loss.predict_proba(torch.cat(parts).flatten(0, 1)).view(-1, 2, errors.shape[1])
        result: np.ndarray = ends.mT.numpy()
        return result[:, 0] if self.fitted_.targets.one_output else result

    def _without_each(self, X: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits of samples in parts, (m, c), and those by the model without each training sample, (m, n, c)."""
        answers = self.answers_
        for store, rows, logits in self._parts(X):
            for part, moves in answers.moves(store, rows):
                yield logits[part], logits[part][:, None] + moves

    def _loss_of(self, what: str, *, of_classes: bool) -> Any:
        """Return the loss, if there are such answers of its task."""
        loss = self.fitted_.targets.loss
        if (loss.task != "regression") is not of_classes:
            is_of = "a regression has none: see predict_interval" if of_classes else "a classifier has none"
            raise ConfigurationError(f"{what}: {is_of}" + ("" if of_classes else ": see predict_set"))
        return loss


def check_extras(crops: int, *, uncertainty: bool, calibrated: bool) -> None:
    """Refuse what `predict_proba` cannot do at once.

    Raises:
        ConfigurationError: Both integration and a temperature, or either with random crops.
    """
    if uncertainty and calibrated:
        raise ConfigurationError("uncertainty and calibrated are two answers to one question: ask for one of them")
    if (uncertainty or calibrated) and crops != 1:
        raise ConfigurationError("uncertainty and calibrated are of the centre crop: leave crops at 1")
