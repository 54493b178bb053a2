"""Fine-tuning, the rival: back-propagation through the same layers, its optimizer and rate chosen by trials."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import ClassVar

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.checkpoint import Part, resumed
from gradfeat.fit.contract import Solver
from gradfeat.fit.plan import Plan
from gradfeat.fit.predict import loss_at
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.splits import Split, hold_out
from gradfeat.fit.training import Training, interruption
from gradfeat.progress import Progress
from gradfeat.solvers.finetune import Selection, select, trial_of
from gradfeat.solvers.schedule import SOLVERS as OPTIMIZERS
from gradfeat.solvers.schedule import Schedule

TRIAL_LENGTH = 0.25
"""Length of the runs that choose fine-tuning's learning rate, as a share of the final one."""


class FineTuning(Solver):
    """Ordinary back-propagation for as many epochs as the linear models have by a schedule.

    Optimizer and learning rate are chosen by runs a quarter as long, on a fifth of the training data that they have
    not seen.
    """

    name = "finetune"
    modes: ClassVar[tuple[str, ...]] = ("finetune",)

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Refuse an ablation, whose head is no head of the network."""
        if problem.fixed_omega is not None:
            return "an ablation has no finetune: its head and its network are not of one model"
        return None

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Choose a schedule, and train by it."""
        progress = progress or Progress(False)
        begun = time.perf_counter()
        schedule = plan.schedule_of(plan.solver if plan.solver in OPTIMIZERS else "adam", problem.n)
        selection: Selection | None = None
        notes: list[str] = []
        split = hold_out(problem, plan.seed)
        if len(plan.finetuning) == 1:
            schedule = schedule.with_optimizer(plan.finetuning[0])
        elif len(split.validation):
            selection = _selected(problem, plan, schedule, split, progress)
            schedule = schedule.with_optimizer(selection.best)
        else:
            schedule = schedule.with_optimizer(plan.finetuning[0])
            notes.append("too few samples to choose fine-tuning's learning rate on held-out data")
        training = Training(problem, plan, torch.arange(problem.n), title="fit", part=f"{plan.mode}-epochs")
        model, history = training.run(schedule, progress)
        notes += interruption(problem, plan, history)
        return Fit(model, time.perf_counter() - begun, history, notes, selection=selection)


def _selected(problem: Problem, plan: Plan, schedule: Schedule, split: Split, progress: Progress) -> Selection:
    """Return the candidate whose trial has the least loss on validation data."""
    trial = schedule.shortened(max(1, round(TRIAL_LENGTH * schedule.iterations)))
    candidates = [trial.with_optimizer(candidate) for candidate in plan.finetuning]

    def score(candidate: Schedule, part: str) -> float:
        with suppress(ConvergenceError):  # so that a checkpoint knows of it too
            training = Training(problem, plan, split.train, title=trial_of(candidate), part=part)
            model, history = training.run(candidate, progress)
            if history.stopped == "interrupted":  # half a search chooses nothing
                raise KeyboardInterrupt
            return -loss_at(problem, model, split.validation)
        return -math.inf

    def run(candidate: Schedule) -> float:
        name = f"finetune-trial-{candidates.index(candidate)}"
        epochs = f"{name}-epochs"
        value = resumed(problem.checkpoint, name, lambda: score(candidate, epochs), _pack, _unpack)
        if problem.checkpoint is not None:
            problem.checkpoint.drop(epochs)
        return value

    return select(candidates, run)


def _pack(score: float) -> Part:
    return Part({}, {"score": torch.tensor(score, dtype=torch.float64)})


def _unpack(part: Part) -> float:
    score: Tensor = part.tensors["score"]
    return float(score)
