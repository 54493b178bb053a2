"""Fine-tuning with few labels: θ₂ moves so that samples of a class come near each other, with a probe as its head."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gradfeat.contexts import single_precision
from gradfeat.fit.contract import Solver
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import check_finite, starting_model
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.training import interruption
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.samples import SampleStore
from gradfeat.solvers.first_order import History, train
from gradfeat.solvers.folds import folds
from gradfeat.solvers.pairs import BATCH, STOPS, first_step, pair_loss, schedule_for
from gradfeat.solvers.probe import Probe, fit_probe
from gradfeat.solvers.schedule import Schedule

PARTS = 3
"""Held-out parts, each sample in one of them: they take twice the time of the fit itself."""


class PairsSolver(Solver):
    """Moves θ₂ by the loss of pairs (`gradfeat.solvers.pairs`); the head is the probe of the moved features.

    What a class is may be another thing than what the network was trained to bring near. So each of three parts of the
    samples is held out once. The number of steps is the one with the least loss there; θ₂ stays, and the model is the
    probe, unless that loss is less by a standard error of the paired difference.

    The head's penalty is that of the features before they moved: the training samples have been brought near each
    other, and parts of them that were held out from the head alone would say that all is well.
    """

    name = "pairs"
    modes: ClassVar[tuple[str, ...]] = ("finetune",)

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Refuse targets that are no classes, samples that change, and an ablation."""
        if problem.loss.task != "multiclass":
            return "solver='pairs' brings samples of a class near each other, and these targets are no classes"
        if problem.store.inputs.random:
            return "solver='pairs' needs samples that do not change, and this data set may change them"
        if problem.fixed_omega is not None:
            return "an ablation has no finetune: its head and its network are not of one model"
        return None

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Move θ₂, and fit the probe there; or leave it where it is."""
        begun, progress = time.perf_counter(), progress or Progress(False)
        moving = _Moving(problem, plan, progress)
        share, why = _best_share(moving.held_out_losses())
        if share == 0:
            note = f"finetune: the probe, since pairs of samples did not lower its held-out loss ({why})"
            return Fit(moving.untrained(), time.perf_counter() - begun, notes=[note])
        model, history = moving.moved(problem, share)
        put_head(model, moving.head(features_of(model, problem.store), problem))
        notes = interruption(problem, plan, history)
        return Fit(check_finite(model, "finetune"), time.perf_counter() - begun, history, notes)


def _best_share(losses: Tensor) -> tuple[float, str]:
    """Return the share of the steps whose held-out loss is the least, zero unless it is clearly less; and why.

    Args:
        losses: Of each sample where θ₂ has not moved, and after each of `STOPS`, (1 + stops, n).
    """
    if losses.shape[1] < 2:
        return 0.0, "there is too little to hold out"
    best = int(losses[1:].mean(1).argmin())
    gain = losses[0] - losses[1 + best]
    mean, error = float(gain.mean()), float(gain.std() / len(gain) ** 0.5)
    return STOPS[best] if mean > error else 0.0, f"{mean:.3f} ± {error:.3f}"


def features_of(model: GradientFeatureModel, store: SampleStore) -> Tensor:
    """Return f(x; θ₂) of all samples of a store, (n, d), under a fine-tuned model."""
    with torch.no_grad():
        return torch.cat([_features(model, store, rows) for rows in torch.arange(len(store)).split(BATCH)])


def _features(model: GradientFeatureModel, store: SampleStore, rows: Tensor) -> Tensor:
    _, _, *values = model.trained()
    theta2 = dict(zip(model.w2, values, strict=True))
    return store.linearization.network(theta2, store.z0(rows)).to(model.w1)


def put_head(model: GradientFeatureModel, probe: Probe) -> None:
    """Make a probe the head of a fine-tuned model."""
    with torch.no_grad():
        model.w1.copy_(probe.omega)
        model.b.copy_(probe.bias)


@dataclass(frozen=True)
class _Moving:
    """How θ₂ moves, on all samples or on a part of them."""

    problem: Problem
    plan: Plan
    progress: Progress

    def untrained(self) -> GradientFeatureModel:
        """Return the pre-trained network with the probe."""
        return starting_model(self.problem, "finetune", self.plan.parametrization)

    def head(self, f: Tensor, problem: Problem) -> Probe:
        """Return the probe of features of a part, with the penalty of those that did not move."""
        penalties = self.plan.penalties
        penalty = self.problem.probe.penalty if penalties is None else penalties.lambda1
        weight, outputs = problem.weight, problem.outputs
        return fit_probe(f, problem.y, problem.loss, sample_weight=weight, penalty=penalty, outputs=outputs)

    def held_out_losses(self) -> Tensor:
        """Return the weighted loss of each sample while it is held out, before and after steps, (1 + stops, n).

        There are no columns where there are too few samples to hold out.
        """
        problem = self.problem
        parts, _ = folds(problem.y[: problem.n].cpu(), problem.loss, PARTS, self.plan.draw())
        losses = []
        for train_rows, held_out in parts:
            part = problem.subset(problem.all_views(torch.from_numpy(train_rows)))
            losses.append(self._losses_on(part, problem.subset(torch.from_numpy(held_out))))
        return torch.cat(losses, 1) if losses else torch.zeros(1 + len(STOPS), 0)

    def _losses_on(self, part: Problem, judges: Problem) -> Tensor:
        """Return the losses of some samples under a network that is moved by a part of the others."""

        def losses(f: Tensor, judged: Tensor) -> Tensor:
            head = self.head(f, part)
            values = problem.loss.per_sample(judged.to(head.omega) @ head.omega + head.bias, judges.y).double().cpu()
            return values if judges.weight is None else values * (judges.weight / judges.weight.mean()).cpu()

        def at_stop(model: GradientFeatureModel) -> None:
            found.append(losses(features_of(model, part.store), features_of(model, judges.store)))

        problem = self.problem
        found = [losses(part.store.features, judges.store.features)]
        _, history = self.moved(part, 1.0, at_stop)
        if history.stopped == "interrupted":  # half of the steps say nothing
            raise KeyboardInterrupt
        return torch.stack(found)

    def moved(
        self, problem: Problem, share: float, at_stop: Callable[[GradientFeatureModel], None] | None = None
    ) -> tuple[GradientFeatureModel, History]:
        """Return the network whose θ₂ has moved by minibatches of a problem, each with all pairs of its samples.

        Args:
            problem: All samples, or a part.
            share: Of the steps that are taken.
            at_stop: Called with the network after each of `STOPS`, in the last epoch that it lies in.
        """
        model, store = self.untrained(), problem.store
        generator, n = self.plan.generator(), len(store)
        schedule = self._schedule(problem, torch.randperm(n, generator=generator)[:BATCH])
        schedule = replace(schedule, iterations=math.ceil(share * schedule.iterations))
        epochs, (_, _, *theta2) = schedule.n_epochs(n), model.trained()
        stops = [math.ceil(stop * epochs) for stop in STOPS]

        @single_precision()
        def step_loss(rows: Tensor) -> Tensor:
            return pair_loss(_features(model, store, rows), problem.y[rows], problem.weight_of(rows))

        with self.progress.step("fit") as done:

            def on_epoch(epoch: int, history: History) -> None:
                done(epoch, epochs)
                if at_stop is not None:
                    for _ in range(stops.count(epoch)):
                        at_stop(model)

            history = train(theta2, step_loss, n, schedule, generator=generator, on_epoch=on_epoch)
        return model, history

    @single_precision()
    def _schedule(self, problem: Problem, rows: Tensor) -> Schedule:
        """Return the schedule of a problem: J of some rows says how far a step moves their features."""
        lin = problem.linearization
        f, residuals = problem.store.primal(rows)
        leaf = f.detach().to(problem.probe.omega).requires_grad_()
        (u,) = torch.autograd.grad(pair_loss(leaf, problem.y[rows], problem.weight_of(rows)), leaf)
        with torch.no_grad():
            step = first_step(lin.transpose(u.to(f), residuals))
            return schedule_for(f, lin.tangent(step, residuals), len(problem.store))
