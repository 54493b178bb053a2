"""What only a linear model can answer, on the fitted estimators: each sample left out, influence, uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.attributes import FittedAttributes
from gradfeat.estimators.auditing import Audit, audit_of
from gradfeat.estimators.left_out import LeftOut
from gradfeat.estimators.preparing import inputs_of
from gradfeat.estimators.reading import read_samples
from gradfeat.estimators.recalling import Trained
from gradfeat.estimators.warn import warn_user
from gradfeat.fit.answers import Answers
from gradfeat.fit.linear import ended_early, linear_of, no_optimum
from gradfeat.samples import SampleStore
from gradfeat.solvers.design import design_rows, greedy_design
from gradfeat.solvers.leverage import Rows, curvature_root

SOON = 50_000
"""Samples, versions counted, × outputs up to which answers take less time than a fit."""

_PART = 256  # samples at a time
_LARGEST = 1 << 29  # numbers of a pool's rows: 2 GB


class Influence(NamedTuple):
    """The training samples with the strongest influence on each prediction.

    Attributes:
        samples: Indices of training samples, (m, k), the strongest first.
        nats: What leaving each out adds to the log-probability of the predicted class, (m, k).
    """

    samples: np.ndarray
    nats: np.ndarray


class Suggestion(NamedTuple):
    """Samples of a pool that are to be labelled next.

    Attributes:
        samples: Their indices, (k,), the most useful one first.
        gains: What the label of each, after those before it, reduces the mean loss over the pool by, (k,): in nats; of
            a regression half the variance, in units of the noise's.
        before: What the whole uncertainty of the model costs there, in the same units.
    """

    samples: np.ndarray
    gains: np.ndarray
    before: float


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
                problem = trained.problem.at(trained.fit.model.linearization)
                self._answers = Answers(problem, linear_of(problem, trained.plan, trained.fit))
        return self._answers

    @property
    def answers_soon(self) -> bool:
        """Whether there are answers without further data, in less time and memory than a fit, of an optimum."""
        trained = self._trained
        if trained is None or self.fitted_.settings.mode == "finetune" or no_optimum(trained.fit):
            return False
        if ended_early(trained.fit):
            return False
        problem = trained.problem
        return len(problem.store) * problem.outputs <= SOON

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
        network = " and the network where rounds have moved it" if trained.fit.moved else ""
        kept = f"penalties{network} kept"
        if not ended_early(trained.fit):
            return f"leave-one-out; {kept}"
        early = "the fit ended early, so the mean loss is that on held-out samples, and the accuracy may be too high"
        return f"leave-one-out; {kept}; {early}"

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

        Negative: the training sample speaks for the prediction. Of several labels it is the sum over labels; of a
        regression it is the change of the value of the first target, in the target's units. The penalties weigh as much
        beside each other sample as before. A first-order answer: many samples together may do less than their sum.

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
        task = self.fitted_.targets.loss.task
        parts = [
            answers.influence(store, rows, _log_probability_slope(logits, task))
            for store, rows, logits in self._parts(X)
        ]
        nats = torch.cat(parts).numpy()
        if top is None:
            return nats
        order = np.argsort(-np.abs(nats), 1)[:, :top]
        return Influence(trained.samples[order], np.take_along_axis(nats, order, 1))

    def suggest(self, pool: Any, k: int) -> Suggestion:
        """Return which samples of a pool to label next, diverse ones: by how much less is unknown of the pool then.

        Of each choice the expected loss over the pool is the least, ω̄, θ̄₂ and the penalties kept: exact for a squared
        loss, by the Fisher information for the rest (`gradfeat.solvers.design`).

        Args:
            pool: Samples without labels, as for `fit`; new samples are thought to be like them.
            k: How many, from 1 to all.

        Raises:
            ConfigurationError: As of `answers_`; or there are not so many.
        """
        answers, loss = self.answers_, self.fitted_.targets.loss
        inputs = self._inputs(pool)
        count = len(inputs)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= count:
            raise ConfigurationError(f"k must be from 1 to the {count} samples of the pool, not {k}")
        share, numbers = 1 / self._with_data().problem.n, answers.hessian.size * self._with_data().problem.outputs
        some = np.arange(count)
        if count * numbers > _LARGEST:
            least = max(int(k), _LARGEST // numbers)
            some = np.sort(np.random.default_rng(0).choice(count, min(least, count), replace=False))
            warn_user(f"of the {count:,} samples of the pool {len(some):,}, drawn at random, are looked at")
        rows, noise = [], []
        for _, part, logits in self._parts_of(inputs.subset(some) if len(some) < count else inputs):
            root = curvature_root(loss, logits, _any_targets(logits, loss.task))
            found = design_rows(answers.hessian.whitened(part), root, answers.hessian.rest(part), share)
            rows.append(found[0])
            noise.append(found[1])
        design = greedy_design(torch.cat(rows), torch.cat(noise), int(k))
        half = 0.5 / len(some)
        # H is of the mean loss, so its inverse is n covariances
        return Suggestion(
            some[design.samples.numpy()], (half * share * design.gains).numpy(), half * share * design.before
        )

    def _parts(self, X: Any) -> Iterator[tuple[SampleStore, Rows, Tensor]]:
        """Yield samples in parts: their store, their features, and their logits in double precision, (m, c)."""
        yield from self._parts_of(self._inputs(X))

    def _inputs(self, X: Any) -> Inputs:
        """Return samples as the network takes them.

        Raises:
            DataError: They are of another shape than those that the model was fitted to.
        """
        network = self.fitted_.network
        inputs = inputs_of(read_samples(self, X, reset=False), network.backbone)
        given, expected = tuple(inputs.example(1).shape[1:]), tuple(network.example.shape[1:])
        if given != expected:
            raise DataError(f"X has samples of shape {given}; the model was fitted to samples of shape {expected}")
        return inputs

    def _parts_of(self, inputs: Inputs) -> Iterator[tuple[SampleStore, Rows, Tensor]]:
        """Yield the same of inputs.

        Raises:
            DataError: The network's outputs for some are not finite.
        """
        answers, model = self.answers_, self._with_data().fit.model
        for first in range(0, len(inputs), _PART):
            part = inputs.subset(np.arange(first, min(first + _PART, len(inputs))))
            with plain():
                store = SampleStore(model.linearization, part)
                rows, logits = answers.rows(store), answers.logits_of(store)
                if not bool(torch.isfinite(logits).all()):
                    raise DataError("the model's outputs for some of these samples are not finite: there is no answer")
                yield store, rows, logits


def _log_probability_slope(logits: Tensor, task: str) -> Tensor:
    """Return how the log-probability of what is predicted rises with the logits, (m, c); of a regression, the value."""
    if task == "regression":
        direction = torch.zeros_like(logits)
        direction[:, 0] = 1
        return direction
    if task == "multilabel":
        return (logits > 0).to(logits) - logits.sigmoid()
    return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]) - logits.softmax(1)


def _any_targets(logits: Tensor, task: str) -> Tensor:
    """Return targets for a curvature, which is the same for all."""
    return logits.argmax(1) if task == "multiclass" else torch.zeros_like(logits)
