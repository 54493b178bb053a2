"""effort="high": fine-tuning beside rounds, on the same split, and taken where it is clearly better.

Its recipe is chosen by the honest search of mode `finetune` (`gradfeat.fit.finetune`), on the samples that the split
does not hold out: a part of those judges the recipes. Trained by it, the network is judged on what was held out, beside
the best trial of rounds or the probe. So what is compared has learnt the same samples, and was chosen without those
that judge.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.finetune import FineTuning, cool
from gradfeat.fit.judge import Judged, probe_of
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import Point
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.run import Run
from gradfeat.fit.splits import SHARE
from gradfeat.fit.steps import Rounds, Trial
from gradfeat.solvers.finetune import Recipe, Search, honest_search

INTERRUPTED = "interrupted in fine-tuning"


def try_beside(problem: Problem, plan: Plan, rounds: Rounds, run: Run, best: Judged) -> Recipe | None:
    """Fine-tune on what the first split does not hold out, and add that to the trials of rounds.

    Args:
        problem: All samples.
        plan: Of rounds; its `finetuning` is what is tried.
        rounds: They know of it afterwards: of its trial, that it is the best, or that it was interrupted.
        run: Told of what failed.
        best: The network of the best trial so far, or the probe.

    Returns:
        The recipe; None where there is none, since every one diverged or the search was interrupted.
    """
    split = run.splits[0]
    part = replace(
        problem.subset(problem.all_views(split.train), views=problem.views),
        probe=probe_of(problem, split),
        checkpoint=None if problem.checkpoint is None else problem.checkpoint.within("rival", {"samples": split.train}),
    )
    try:
        fit = FineTuning().fit(part, _of_finetune(plan), run.progress)
        if fit.selection is not None:  # one temperature instead of two, found where rounds find theirs
            cool(fit.model, 1 / fit.selection.temperature)
        found = Judged.of(problem, fit.model, split, interrupted=fit.interrupted)
    except KeyboardInterrupt:
        rounds.interrupted, rounds.reason = True, INTERRUPTED
        return None
    except ConvergenceError as error:
        run.notes.append(f"full: fine-tuning was tried beside the rounds, and failed: {error}")
        return None
    recipe, tried = (plan.finetuning or honest_search()).recipes[0], 1
    if fit.selection is not None:
        recipe, tried = fit.selection.best, len(fit.selection.scores)
    rounds.passes += _passes(fit, len(split.train)) * len(split.train) / problem.n
    training = [] if fit.history is None else fit.history.loss
    words = str(recipe) if tried == 1 else f"{recipe}, the best of {tried}"
    rate, epochs = recipe.schedule.learning_rate, recipe.schedule_of(part.n).n_epochs(part.n)
    rounds.trials.append(Trial(rate, epochs, found.loss, found.errors, found.temperature, training, words))
    if found.clearly_better(best):
        rounds.best, rounds.point, rounds.judged = len(rounds.trials) - 1, Point.of_network(fit.model), found
        rounds.reason = f"fine-tuned so on all samples; temperature {found.temperature:.2f}"
    if found.interrupted:
        rounds.interrupted, rounds.reason = True, INTERRUPTED
    return recipe


def on_all_samples(problem: Problem, plan: Plan, recipe: Recipe, run: Run) -> Fit:
    """Fine-tune by a recipe on all samples, without a temperature."""
    samples: dict[str, Tensor | None] = {"samples": torch.arange(problem.n)}
    own = None if problem.checkpoint is None else problem.checkpoint.within("rival-continued", samples)
    return FineTuning().fit(replace(problem, checkpoint=own), _of_finetune(plan, Search((recipe,))), run.progress)


def _of_finetune(plan: Plan, search: Search | None = None) -> Plan:
    search = search or plan.finetuning
    return replace(plan, mode="finetune", solver="auto", rounds=1, parametrization="standard", finetuning=search)


def _passes(fit: Fit, n: int) -> float:
    """Return the passes over n samples that a search and the training by its best recipe took."""
    own = 0.0 if fit.history is None else fit.history.passes
    if fit.selection is None:
        return own
    m = n - math.ceil(SHARE * n)  # what the search trains on
    return own + sum(recipe.schedule_of(m).n_epochs(m) for recipe, _ in fit.selection.scores) * m / n
