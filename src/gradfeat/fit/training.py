"""Step 3 by a schedule: Adam and SGD for the linear models, and fine-tuning with a search of its learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.checkpoint import Part, keep_part, load_part, resumed
from gradfeat.fit.fitting import Fit, Problem, batch_logits, hold_out, loss_at, new_model
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.finetune import FINETUNE_GRID, select, trial_of
from gradfeat.solvers.first_order import History, Resuming, State, train
from gradfeat.solvers.schedule import Schedule
from gradfeat.solvers.subspace import Solution

TRIAL_LENGTH = 0.25
"""Length of the runs that choose fine-tuning's learning rate, as a share of the final one."""


def fit_mode(
    problem: Problem,
    mode: str,
    schedule: Schedule,
    *,
    parametrization: str = "standard",
    random_state: int | None = None,
    progress: Progress | None = None,
    finetuning: Sequence[Schedule] = FINETUNE_GRID,
) -> Fit:
    """Train one of the four models (step 3).

    `activation` is the probe, which has converged already. `gradient` and `full` are trained by `schedule`.
    `finetune` is trained by ordinary back-propagation through the same layers for as many epochs, with an optimizer
    and learning rate chosen by runs a quarter as long, on a fifth of the training data that they have not seen.

    Args:
        problem: From `prepare`.
        mode: "activation", "gradient", "full" or "finetune".
        schedule: The optimizer and its schedule.
        parametrization: The variables that w₂ is trained in.
        random_state: Seed of the order of samples.
        progress: Shows how far it is.
        finetuning: Optimizers and learning rates for `finetune` to choose from.
    """
    progress = progress or Progress(False)
    start = time.perf_counter()
    if mode == "activation":
        return Fit(new_model(problem, mode, parametrization), None, None, 0.0)
    shared: dict[str, Any] = {"parametrization": parametrization, "random_state": random_state, "progress": progress}
    everything = torch.arange(problem.n)
    selection = None
    notes: list[str] = []
    if mode == "finetune":
        seen, unseen = hold_out(problem, random_state)
        if len(finetuning) == 1:
            schedule = schedule.with_optimizer(finetuning[0])
        elif len(unseen):
            trial = schedule.shortened(max(1, round(TRIAL_LENGTH * schedule.iterations)))
            candidates = [trial.with_optimizer(candidate) for candidate in finetuning]

            def score(candidate: Schedule, part: str) -> float:
                with suppress(ConvergenceError):  # so that a checkpoint knows of it too
                    model, history = _train(
                        problem, mode, candidate, seen, title=trial_of(candidate), part=part, **shared
                    )
                    if history.stopped == "interrupted":  # half a search chooses nothing
                        raise KeyboardInterrupt
                    return -loss_at(problem, model, unseen)
                return -math.inf

            def run(candidate: Schedule) -> float:
                name = f"finetune-trial-{candidates.index(candidate)}"
                epochs = f"{name}-epochs"
                found = resumed(
                    problem.checkpoint,
                    name,
                    lambda: score(candidate, epochs),
                    lambda value: Part({}, {"score": torch.tensor(value, dtype=torch.float64)}),
                    lambda part: float(part.tensors["score"]),
                )
                if problem.checkpoint is not None:
                    problem.checkpoint.drop(epochs)
                return found

            selection = select(candidates, run)
            schedule = schedule.with_optimizer(selection.best)
        else:
            schedule = schedule.with_optimizer(finetuning[0])
            notes.append("too few samples to choose fine-tuning's learning rate on held-out data")
    model, history = _train(problem, mode, schedule, everything, title="fit", part=f"{mode}-epochs", **shared)
    if history.stopped == "interrupted":
        done = len(history.loss)
        of = "of the last finished one" if done else "that training starts from"
        more = "" if problem.checkpoint is None else "; the same fit goes on from its checkpoint"
        notes.append(f"{mode}: interrupted after {done} epochs; the weights are those {of}{more}")
    seconds = time.perf_counter() - start
    solution: Solution | None = None
    if mode != "finetune":  # convex, but by a schedule, which knows of no optimum
        interrupted = history.stopped == "interrupted"
        reason = f"{len(history.loss)} epochs of a schedule, which ends before or after the optimum"
        solution = Solution(
            schedule.optimizer,
            False,
            reason,
            history.loss,
            passes=history.passes,
            seconds=seconds,
            interrupted=interrupted,
        )
    return Fit(model, history, selection, seconds, notes, solution=solution)


def _train(
    problem: Problem,
    mode: str,
    schedule: Schedule,
    indices: Tensor,
    *,
    title: str,
    part: str,
    parametrization: str,
    random_state: int | None,
    progress: Progress,
) -> tuple[GradientFeatureModel, History]:
    """Train on some samples; with a checkpoint from where its part of this name says, and its states are kept there."""
    model = new_model(problem, mode, parametrization)
    store, y, weight = problem.store, problem.y, problem.weight
    generator = torch.Generator().manual_seed(np.random.RandomState(random_state).randint(2**31 - 1))

    if weight is not None:  # of mean one over all samples, so that a minibatch of heavy samples counts for more
        weight = weight / weight[indices].mean()

    def step_loss(picked: Tensor) -> Tensor:
        batch = problem.random_views(indices[picked], generator)
        losses = problem.loss.per_sample(batch_logits(model, store, batch), y[batch])
        return (losses if weight is None else losses * weight[batch].to(losses.dtype)).mean()

    with progress.step(title) as done:
        epochs = schedule.n_epochs(len(indices))

        def on_epoch(epoch: int, history: History) -> None:
            done(epoch, epochs)

        def keep(state: State) -> None:
            values = {"iteration": state.iteration, **asdict(state.history)}
            keep_part(problem.checkpoint, part, Part(values, state.tensors), generator)

        found = load_part(problem.checkpoint, part, generator)
        resume = None
        if found is not None:
            tensors = {name: value for name, value in found.tensors.items() if name != "generator"}
            resume = State(found.values.pop("iteration"), History(**found.values), tensors)
        history = train(
            model.trained(),
            step_loss,
            len(indices),
            schedule,
            generator=generator,
            on_epoch=on_epoch,
            resuming=Resuming(resume, None if problem.checkpoint is None else keep),
        )
    return model, history
