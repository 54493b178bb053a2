"""Fine-tuning, the rival: back-propagation through the same layers, as a good practitioner does it.

The layers are those of the `network` program, on the same z₀ as the linear models. Batch norms are in evaluation mode,
folded into their layers; those of θ₂'s layers are in training mode too where a recipe says so.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import torch

from gradfeat.errors import ConvergenceError
from gradfeat.fit.batch_norms import BatchNormModel
from gradfeat.fit.checkpoint import Part, resumed
from gradfeat.fit.contract import Solver
from gradfeat.fit.judge import probe_of
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import starting_model
from gradfeat.fit.predict import store_logits
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.splits import Split, hold_out
from gradfeat.fit.training import Training, interruption
from gradfeat.linearization.batch_norms import has_batch_norms
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.finetune import Recipe, Search, Selection, Trial, honest_search, judged, select, trial_of
from gradfeat.solvers.first_order import History
from gradfeat.solvers.schedule import Schedule


class FineTuning(Solver):
    """Ordinary back-propagation; optimizer, rate, length and the head's start chosen on held-out training data.

    Each recipe of the plan's search is tried on four fifths of the samples. The one with the fewest errors on the
    fifth, or the least loss where targets are no classes, or the usual one where it is not clearly worse, is trained on
    all of them. Its outputs are divided by the temperature that was best for the trial.
    """

    name = "finetune"
    modes: ClassVar[tuple[str, ...]] = ("finetune",)

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Refuse an ablation, whose head is no head of the network."""
        if problem.fixed_omega is not None:
            return "an ablation has no finetune: its head and its network are not of one model"
        return None

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Choose a recipe, and train by it."""
        progress = progress or Progress(False)
        begun = time.perf_counter()
        search = plan.finetuning or honest_search()
        search = replace(search, batch_norms=search.batch_norms and has_batch_norms(problem.linearization))
        recipe, selection, notes = search.recipes[0], None, []
        split = hold_out(problem, plan.seed)
        if len(search.recipes) > 1 and len(split.validation):
            selection = _selected(problem, plan, search, split, progress)
            selection = replace(selection, seconds=time.perf_counter() - begun)
            recipe = selection.best
        elif len(search.recipes) > 1:
            notes.append("too few samples to choose fine-tuning's learning rate on held-out data")
        training = Training(problem, plan, torch.arange(problem.n), title="fit", part="finetune-epochs")
        model, history = _trained(training, recipe, recipe.schedule_of(problem.n), progress)
        if selection is not None:
            cool(model, selection.temperature)
        notes += interruption(problem, plan, history)
        return Fit(model, time.perf_counter() - begun, history, notes, selection=selection)


def cool(model: GradientFeatureModel, temperature: float) -> None:
    """Divide the outputs of a fine-tuned model by a temperature."""
    with torch.no_grad():
        model.w1.div_(temperature)
        model.b.div_(temperature)


def _untrained(problem: Problem, plan: Plan, recipe: Recipe) -> GradientFeatureModel:
    """Return the pre-trained network with the head that a recipe starts with."""
    model = starting_model(problem, "finetune", plan.parametrization)
    if recipe.head == "zero":
        with torch.no_grad():
            model.w1.zero_()
            model.b.zero_()
    return model


def _trained(
    training: Training, recipe: Recipe, schedule: Schedule, progress: Progress
) -> tuple[GradientFeatureModel, History]:
    """Return the network trained by a recipe, in evaluation mode, and how its training went."""
    model = _untrained(training.problem, training.plan, recipe)
    if recipe.batch_norms == "evaluation":
        return model, training.run(model, schedule, progress)
    moving = BatchNormModel(model)
    history = training.run(moving, schedule, progress)
    return moving.folded(), history


def _selected(problem: Problem, plan: Plan, search: Search, split: Split, progress: Progress) -> Selection:
    """Return the recipe whose trial is the best on validation data, of which no head that a trial starts with knows."""
    validation = problem.subset(split.validation)
    started = replace(problem, probe=probe_of(problem, split))

    def trial(recipe: Recipe, part: str, number: int) -> Trial:
        with suppress(ConvergenceError):  # so that a checkpoint knows of it too
            schedule = recipe.schedule_of(len(split.train))
            if search.trial_length != 1:
                schedule = schedule.shortened(max(1, round(search.trial_length * schedule.iterations)))
            training = Training(started, plan, split.train, title=trial_of(number), part=part)
            model, history = _trained(training, recipe, schedule, progress)
            if history.stopped == "interrupted":  # half a search chooses nothing
                raise KeyboardInterrupt
            logits = store_logits(model, validation.store)
            return judged(logits, validation.y, problem.loss, validation.weight, tempered=search.tempered)
        return Trial(math.inf)

    count = 0

    def run(recipe: Recipe) -> Trial:
        nonlocal count
        name, count = f"finetune-trial-{count}", count + 1
        epochs = f"{name}-epochs"
        result = resumed(problem.checkpoint, name, lambda: trial(recipe, epochs, count), _pack, _unpack)
        if problem.checkpoint is not None:
            problem.checkpoint.drop(epochs)
        return result

    return select(search, run)


def _pack(trial: Trial) -> Part:
    numbers = torch.tensor([trial.loss, trial.temperature, trial.errors], dtype=torch.float64)
    tensors = {"loss": numbers, "each": trial.each, "share": trial.share}
    return Part({}, {name: value for name, value in tensors.items() if value is not None})


def _unpack(part: Part) -> Trial:
    loss, temperature, errors = part.tensors["loss"].tolist()
    return Trial(loss, temperature, errors, part.tensors.get("each"), part.tensors.get("share"))
