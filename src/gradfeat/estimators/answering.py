"""What only a linear model can answer, on the fitted estimators: each sample left out, influence, uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError
from gradfeat.estimators.attributes import FittedAttributes
from gradfeat.estimators.auditing import Audit, audit_of
from gradfeat.estimators.left_out import LeftOut
from gradfeat.estimators.preparing import inputs_of
from gradfeat.estimators.reading import read_samples
from gradfeat.estimators.recalling import Trained
from gradfeat.fit.answers import Answers
from gradfeat.fit.linear import linear_of
from gradfeat.samples import SampleStore
from gradfeat.solvers.leverage import Rows

_PART = 256  # samples at a time


class Influence(NamedTuple):
    """The training samples with the strongest influence on each prediction.

    Attributes:
        samples: Indices of training samples, (m, k), the strongest first.
        nats: What leaving each out adds to the log-probability of the predicted class, (m, k).
    """

    samples: np.ndarray
    nats: np.ndarray


class Answering(FittedAttributes):
    """Answers of a fitted estimator about the samples that it was fitted to, and others.

    They are of the model as it is: θ̄₂, the metric of w₂ and the penalties are kept.
    """

    _trained: Trained | None = None
    _answers: Answers | None = None

    @property
    def answers_(self) -> Answers:
        """Answers about the training data, computed when they are first asked for.

        Raises:
            ConfigurationError: The model has none: it is fine-tuned, or without its training data (`recall`).
        """
        trained = self._with_data()
        if self._answers is None:
            with plain():
                self._answers = Answers(trained.problem, linear_of(trained.problem, trained.plan, trained.fit))
        return self._answers

    def _with_data(self) -> Trained:
        fitted = self.fitted_
        if fitted.settings.mode == "finetune":
            raise ConfigurationError("a fine-tuned network is no linear model: fit mode='full', with rounds or without")
        if self._trained is None:
            raise ConfigurationError(
                "this model is without its training data, as a file or a pickle is: give them back by recall(X, y)"
            )
        return self._trained

    @property
    def loo_(self) -> LeftOut:
        """Each training sample by the model without it, ω̄ left out too (leave-one-out).

        By one Newton step of both stages (`gradfeat.solvers.leverage`); for a squared loss and a kept ω̄ that is exact.
        """
        trained, answers = self._with_data(), self.answers_
        problem = trained.problem
        n = problem.n
        weight = torch.ones(n, dtype=torch.float64) if problem.weight is None else problem.weight[:n].cpu().double()
        targets = self.fitted_.targets
        return LeftOut(
            samples=trained.samples,
            logits=answers.leave_one_out(),
            y=problem.y[:n].cpu(),
            loss=targets.loss,
            share=weight / weight.sum(),
            classes=targets.classes,
            conditional=self._conditional(trained),
        )

    def _conditional(self, trained: Trained) -> str:
        kept = ["penalties"]
        moved = trained.fit.rounds is not None and trained.fit.rounds.chosen is not None
        kept += ["the network where rounds have moved it"] if moved else []
        return f"leave-one-out; {' and '.join(kept)} kept"

    def audit(self, names: Sequence[Any] | None = None) -> Audit:
        """Return the training samples by how implausible their label is to the model without them: wrong labels first.

        Args:
            names: A name for each of the samples that were given to `fit`, e.g. its file; left out: its index.

        Raises:
            ConfigurationError: As of `answers_`.
            DataError: Another number of names than samples.
        """
        return audit_of(self.loo_, self._with_data().count, names, self.class_names_)

    def influence(self, X: Any, top: int | None = None) -> np.ndarray | Influence:
        """Return how leaving out each training sample changes the log-probability of each predicted class, in nats.

        Negative: the training sample speaks for the prediction. Of several labels it is the sum over labels, of a
        regression the value of the first target.

        Args:
            X: m samples, as for `fit`.
            top: Only so many training samples, those with the strongest influence.

        Returns:
            (m, n), a column for each training sample whose weight is above zero; with `top` their indices and nats.

        Raises:
            ConfigurationError: As of `answers_`; or `top` is none of 1 to n.
        """
        trained, answers = self._with_data(), self.answers_
        if top is not None and not 1 <= top <= trained.problem.n:
            raise ConfigurationError(f"top must be from 1 to the {trained.problem.n} training samples, not {top}")
        loss = self.fitted_.targets.loss
        parts = []
        for store, rows, logits in self._parts(X):
            if loss.task == "regression":
                direction = torch.zeros_like(logits)
                direction[:, 0] = 1
            elif loss.task == "multilabel":
                direction = -logits.shape[1] * loss.slope(logits, (logits > 0).double())
            else:
                direction = -loss.slope(logits, logits.argmax(1))
            parts.append(answers.influence(store, rows, direction))
        nats = torch.cat(parts).numpy()
        if top is None:
            return nats
        order = np.argsort(-np.abs(nats), 1)[:, :top]
        return Influence(trained.samples[order], np.take_along_axis(nats, order, 1))

    def predict_variance(self, X: Any) -> np.ndarray:
        """Return the predictive covariance of the logits of each sample, (m, c, c), ω̄ and θ̄₂ kept.

        Laplace's approximation: the inverse Hessian of the penalized loss at the fitted weights. For a regression with
        noise of variance s² it is to be multiplied by s².

        Args:
            X: m samples, as for `fit`.
        """
        answers = self.answers_
        return torch.cat([answers.covariances(rows) for _, rows, _ in self._parts(X)]).numpy()

    def _parts(self, X: Any) -> Iterator[tuple[SampleStore, Rows, Tensor]]:
        """Yield samples in parts: their store, their features, and their logits in double precision, (m, c)."""
        answers, model = self.answers_, self._with_data().fit.model
        inputs: Inputs = inputs_of(read_samples(self, X, reset=False), self.fitted_.network.backbone)
        for first in range(0, len(inputs), _PART):
            part = inputs.subset(np.arange(first, min(first + _PART, len(inputs))))
            with plain():
                store = SampleStore(model.linearization, part)
                rows = answers.rows(store)
                yield store, rows, answers.logits_of(store)
