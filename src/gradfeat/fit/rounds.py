"""Rounds: θ̄₂ moves in many small steps, and the network is linearized where they end.

A few passes of AdamW through the `network` program, at a few learning rates, on the samples that are not held out. Of
many samples its head starts as a probe with `HEAVIER` times the penalty: the best probe is sure of the training samples
already, and leaves little residual for the layers below. Each is judged on the others, after a temperature, beside the
probe and the smaller rates: it is taken where its loss is lower by more than the standard error of the difference. The
network then goes on from where it is, for half as many passes and at no larger rate than the smallest usual one, on all
samples: what was held out is learnt too, and nothing that was done is thrown away. Its head, divided by the
temperature, is ω̄ = w₁ of the linear model at the point reached. Where no rate is clearly better than the probe, θ̄₂
stays.
"""

from __future__ import annotations

import math
from contextlib import suppress

import torch

from gradfeat.errors import ConvergenceError
from gradfeat.fit.checkpoint import keep_part, load_part
from gradfeat.fit.judge import Judged, probe_of
from gradfeat.fit.plan import RATES, Plan
from gradfeat.fit.point import Point, check_finite, starting_model
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.rival import on_all_samples, try_beside
from gradfeat.fit.run import Run
from gradfeat.fit.splits import Split
from gradfeat.fit.steps import Rounds, Trial
from gradfeat.fit.training import Training
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.finetune import Recipe, trial_of
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.schedule import Schedule
from gradfeat.solvers.subspace import Solution

PASSES = 8
"""Passes of each trial, for "auto"."""

HEAVIER, MANY = 30.0, 600
"""Penalty of the probe that is the head where the trials start, in units of the best probe's, and of how many samples
to learn on: of fewer a trial has so few steps that a small head would stay small, and it is the best probe."""

FEWEST_STEPS = 100
"""Steps of a trial at least, for "auto": of few samples there are more passes."""

MORE = 0.5
"""Passes over all samples after them, as a share of theirs."""

ASTRAY = 0.05
"""Share of the rounds' gain by which the validation loss may be higher where all samples have been learnt."""

SEARCH, CONTINUED = "rounds-search", "rounds-continued-epochs"
"""Names of their parts of a checkpoint."""

_LARGEST_BATCH, _SMALLEST_BATCH, _BATCHES = 32, 4, 8
_NO_MOVE = "no rate was clearly better than the probe"


def fit_in_rounds(problem: Problem, plan: Plan, run: Run) -> Fit | None:
    """Move θ̄₂ as far as held-out data say; None where the probe is better.

    Args:
        problem: The data, the network and the loss.
        plan: How many passes a trial has, or "auto"; whether fine-tuning is tried beside them; the seed.
        run: The first of its splits is the one to choose by. Told what was done in vain.
    """
    rounds, recipe = search_rounds(problem, plan, run), None
    if plan.rival and not rounds.interrupted:
        best = rounds.judged or judged_at(problem, rounds.point, run.splits[0])
        recipe = try_beside(problem, plan, rounds, run, best)
    if rounds.interrupted:
        return fit_so_far(problem, plan, rounds, run)
    if rounds.chosen is None:
        run.passes += rounds.passes
        return None
    try:
        if rounds.chosen.recipe and recipe is not None:
            point = _fine_tuned(problem, plan, recipe, rounds, run)
        else:
            point = continued(problem, plan, rounds, run)
    except ConvergenceError as error:
        run.notes.append(f"full: the rounds went astray on all samples: {error}; {_SEARCHED}")
        point = rounds.point
    except KeyboardInterrupt:  # between two trainings
        rounds.interrupted, rounds.reason, point = True, "interrupted before all samples were learnt", rounds.point
        run.notes.append(f"full: {rounds.reason}; {_SEARCHED}{_resumable(problem)}")
    return _fit_at(point, problem, plan, rounds, run)


def fit_so_far(problem: Problem, plan: Plan, rounds: Rounds, run: Run, more: str = "") -> Fit:
    """Return the best of rounds that were interrupted before they went over all samples: a trial, or the probe.

    Args:
        problem: What they are of.
        plan: Theirs.
        rounds: How they did; their reason says where they were interrupted.
        run: Told of it.
        more: What else the user should know of it.
    """
    said = f"full: {rounds.reason}; {more}{{}}{_resumable(problem)}"
    if rounds.chosen is not None:
        run.notes.append(said.format(_SEARCHED))
        return _fit_at(rounds.point, problem, plan, rounds, run)
    run.notes.append(said.format("no move of the network was better than the probe so far: the model is the probe"))
    history = History([], run.passes + rounds.passes, run.seconds, "interrupted")
    return Fit(starting_model(problem, "full", plan.parametrization), run.seconds, history, run.notes)


def _fit_at(point: Point, problem: Problem, plan: Plan, rounds: Rounds, run: Run) -> Fit:
    """Return the model of a point where rounds ended, and how they did."""
    chosen = rounds.trials[rounds.best]
    point = _cooled(point, chosen.temperature)
    model = check_finite(point.model(problem.linearization, "full", plan.parametrization), "full")
    losses = [*chosen.training, *rounds.more]
    stopped = "interrupted" if rounds.interrupted else "finished"
    solution = Solution("rounds", False, rounds.reason, losses, passes=run.passes + rounds.passes, seconds=run.seconds)
    solution.interrupted = rounds.interrupted
    history = History(losses, solution.passes, run.seconds, stopped)
    return Fit(model, run.seconds, history, run.notes, solution=solution, rounds=rounds)


_SEARCHED = "the weights are those of the search, which left a part of the samples out"


def search_rounds(problem: Problem, plan: Plan, run: Run) -> Rounds:
    """Try rates, from small to large, on the samples that the first split does not hold out."""
    kept = load_part(problem.checkpoint, SEARCH)
    if kept is not None:
        return _ended(Rounds.unpack(kept, problem.linearization.theta2))
    split = run.splits[0]
    probe = probe_of(problem, split)
    start = starting_model(problem, "finetune", probe=probe)
    best = Judged.of(problem, start, split)
    rounds = Rounds(best.loss, Point.of_network(start), judged=best)
    probe = probe_of(problem, split, HEAVIER) if len(split.train) >= MANY else probe
    for k, rate in enumerate(plan.rates):
        try:
            trial, model, found = _tried(problem, plan, rate, k, run, probe)
        except KeyboardInterrupt:  # while it was judged
            rounds.interrupted = True
            return _ended(rounds, k + 1)
        rounds.trials.append(trial)
        rounds.passes += len(trial.training) * len(split.train) / problem.n
        if found is not None and found.clearly_better(best):
            rounds.best, rounds.point, best = k, Point.of_network(model), found
            rounds.judged = best
        rounds.interrupted = found is not None and found.interrupted
        if rounds.interrupted:
            return _ended(rounds)
    keep_part(problem.checkpoint, SEARCH, rounds.pack())
    if problem.checkpoint is not None:
        for k in range(len(plan.rates)):
            problem.checkpoint.drop(_part(k))
    return _ended(rounds)


def continued(problem: Problem, plan: Plan, rounds: Rounds, run: Run) -> Point:
    """Go on from the best trial, on all samples.

    Raises:
        ConvergenceError: The network's loss where it was held out before is clearly higher than then.
    """
    chosen = rounds.trials[rounds.best]
    model = _network_at(problem, rounds.point)
    training = Training(problem, plan, torch.arange(problem.n), title="fit", part=CONTINUED)
    recipe = recipe_of(*further(chosen), problem.n)
    history = training.run(model, recipe.schedule_of(problem.n), run.progress)
    rounds.more = history.loss
    rounds.passes += history.passes
    if history.stopped == "interrupted":
        rounds.interrupted = True
        run.notes.append(f"full: interrupted after {len(history.loss)} passes over all samples{_resumable(problem)}")
    return _not_astray(problem, model, rounds, run)


def _fine_tuned(problem: Problem, plan: Plan, recipe: Recipe, rounds: Rounds, run: Run) -> Point:
    """Fine-tune on all samples; where that is interrupted, stay where the trial by this recipe ended.

    Raises:
        ConvergenceError: It diverged, or its loss where it was held out before is clearly higher than the trial's.
    """
    fit = on_all_samples(problem, plan, recipe, run)
    rounds.passes += 0.0 if fit.history is None else fit.history.passes
    if fit.interrupted:  # half of a schedule is no better than the whole of it on fewer samples
        rounds.interrupted = True
        run.notes.append(f"full: interrupted in fine-tuning on all samples; {_SEARCHED}{_resumable(problem)}")
        return rounds.point
    rounds.more = [] if fit.history is None else fit.history.loss
    return _not_astray(problem, fit.model, rounds, run)


def _not_astray(problem: Problem, model: GradientFeatureModel, rounds: Rounds, run: Run) -> Point:
    """Return where a network is that has learnt what was held out: a clearly higher loss there says it went astray.

    Raises:
        ConvergenceError: It did.
    """
    least = rounds.trials[rounds.best].loss
    loss = Judged.of(problem, model, run.splits[0]).loss
    if not loss <= least + ASTRAY * (rounds.start - least):
        raise ConvergenceError("the loss rose where it was held out before")
    return Point.of_network(model)


def further(trial: Trial) -> tuple[float, int]:
    """Return the rate and the passes with which a trial is gone on from, on all samples.

    A larger rate than the smallest usual one would begin by undoing what was learnt.
    """
    return min(trial.rate, RATES[0]), max(1, round(MORE * trial.passes))


def recipe_of(rate: float, passes: int, n: int) -> Recipe:
    """Return how n samples are gone over so many times."""
    batch = max(_SMALLEST_BATCH, min(_LARGEST_BATCH, n // _BATCHES))
    schedule = Schedule("adamw", rate, 1, 1, batch, weight_decay=0.01, decay="cosine", warmup=0.1)
    return Recipe(schedule, "probe", passes)


def passes_of(rounds: int | str, n: int) -> int:
    """Return the passes of a trial on n samples.

    Example:
        >>> passes_of("auto", 1000), passes_of("auto", 16), passes_of(3, 16)
        (8, 25, 3)
    """
    if not isinstance(rounds, str):
        return rounds
    steps = math.ceil(n / recipe_of(RATES[0], 1, n).schedule.batch_size)
    return max(PASSES, math.ceil(FEWEST_STEPS / steps))


def judged_at(problem: Problem, point: Point, split: Split) -> Judged:
    """Judge the network of a problem with θ₂ and the head of a point."""
    return Judged.of(problem, _network_at(problem, point), split)


# ---- one trial ------------------------------------------------------------------------------------------------------


def _tried(
    problem: Problem, plan: Plan, rate: float, k: int, run: Run, probe: Probe
) -> tuple[Trial, GradientFeatureModel, Judged | None]:
    """Return how a rate did, the network there, and how it was judged: not at all where training diverged."""
    split = run.splits[0]
    n = len(split.train)
    passes = passes_of(plan.rounds, n)
    model = starting_model(problem, "finetune", probe=probe)
    with suppress(ConvergenceError):
        training = Training(problem, plan, split.train, title=trial_of(k + 1), part=_part(k))
        history = training.run(model, recipe_of(rate, passes, n).schedule_of(n), run.progress)
        found = Judged.of(problem, model, split, interrupted=history.stopped == "interrupted")
        return Trial(rate, passes, found.loss, found.errors, found.temperature, history.loss), model, found
    return Trial(rate, passes, math.inf), model, None


def _network_at(problem: Problem, point: Point) -> GradientFeatureModel:
    """Return the network of a problem, of mode `finetune`, with θ₂ and the head of a point."""
    model = starting_model(problem, "finetune")
    w2 = {
        name: point.theta2[name] - value.to(point.theta2[name]) for name, value in problem.linearization.theta2.items()
    }
    model.set_weights(w1=point.w1, b=point.b, w2=w2)
    return model


def _cooled(point: Point, temperature: float) -> Point:
    omega = point.omega / temperature
    return Point(point.theta2, omega, omega, point.b / temperature)


def _ended(rounds: Rounds, trial: int | None = None) -> Rounds:
    """Say why they ended; where they were interrupted, in which trial, by default the last that is known."""
    chosen = rounds.chosen
    if rounds.interrupted:
        rounds.reason = f"interrupted in {trial_of(trial or len(rounds.trials))}"
    elif chosen is None:
        rounds.reason = _NO_MOVE
    else:
        rate, passes = further(chosen)
        rounds.reason = f"θ̄₂ moves for {chosen.passes} passes at the rate {chosen.rate:g}, then {passes} over all "
        rounds.reason += f"samples at {rate:g}; temperature {chosen.temperature:.2f}"
    return rounds


def _part(k: int) -> str:
    return f"rounds-trial-{k + 1}-epochs"


def _resumable(problem: Problem) -> str:
    return "" if problem.checkpoint is None else "; the same fit goes on from its checkpoint"
