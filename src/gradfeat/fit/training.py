"""Training by minibatches, resumed from a checkpoint where there is one."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gradfeat.fit.checkpoint import Part, keep_part, load_part
from gradfeat.fit.plan import Plan
from gradfeat.fit.predict import batch_logits
from gradfeat.fit.problem import Problem
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.first_order import History, Resuming, State, train
from gradfeat.solvers.schedule import Schedule


@dataclass(frozen=True)
class Training:
    """A training of a plan's mode on some samples.

    Attributes:
        problem: All samples.
        plan: Mode, parametrization, seed.
        indices: Samples to train on, (m,); a version of each is drawn for each minibatch.
        title: What its progress is called.
        part: What its part of a checkpoint is called.
    """

    problem: Problem
    plan: Plan
    indices: Tensor
    title: str
    part: str

    def run(self, model: GradientFeatureModel, schedule: Schedule, progress: Progress) -> History:
        """Train a model by a schedule; with a checkpoint from where its part says, and its states are kept there."""
        checkpoint, generator = self.problem.checkpoint, self.plan.generator()
        weight = self.problem.weight
        if weight is not None:  # of mean one over all samples, so that a minibatch of heavy samples counts for more
            weight = weight / weight[self.indices].mean()

        def keep(state: State) -> None:
            values = {"iteration": state.iteration, **asdict(state.history)}
            keep_part(checkpoint, self.part, Part(values, state.tensors), generator)

        with progress.step(self.title) as done:
            epochs = schedule.n_epochs(len(self.indices))
            history = train(
                model.trained(),
                lambda picked: self._loss(model, weight, picked, generator),
                len(self.indices),
                schedule,
                generator=generator,
                on_epoch=lambda epoch, _: done(epoch, epochs),
                resuming=Resuming(self._resumed(generator), None if checkpoint is None else keep),
            )
        return history

    def _loss(
        self, model: GradientFeatureModel, weight: Tensor | None, picked: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean loss of a minibatch, given as positions among the samples to train on."""
        problem = self.problem
        batch = problem.random_views(self.indices[picked], generator)
        losses = problem.loss.per_sample(batch_logits(model, problem.store, batch), problem.y[batch])
        return (losses if weight is None else losses * weight[batch].to(losses.dtype)).mean()

    def _resumed(self, generator: torch.Generator) -> State | None:
        """Return where the checkpoint says that the training was, and bring the random numbers there."""
        kept = load_part(self.problem.checkpoint, self.part, generator)
        if kept is None:
            return None
        tensors = {name: value for name, value in kept.tensors.items() if name != "generator"}
        return State(kept.values.pop("iteration"), History(**kept.values), tensors)


def interruption(problem: Problem, plan: Plan, history: History) -> list[str]:
    """Say that a training was interrupted, if it was."""
    if history.stopped != "interrupted":
        return []
    done = len(history.loss)
    of = "of the last finished one" if done else "that training starts from"
    more = "" if problem.checkpoint is None else "; the same fit goes on from its checkpoint"
    return [f"{plan.mode}: interrupted after {done} epochs; the weights are those {of}{more}"]
