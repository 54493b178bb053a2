"""Rounds: θ̄₂ moves in many small steps, and the network is linearized where they end.

A few passes of AdamW through the `network` program, from the probe as its head, at a few learning rates, on the samples
that are not held out. Each is judged on the others, after a temperature, beside the probe and the smaller rates: it is
taken where its loss is lower by more than the standard error of the difference. The network then goes on from where it
is, for half as many passes and at no larger rate than the smallest usual one, on all samples: what was held out is
learnt too, and nothing that was done is thrown away. Its head, divided by the temperature, is ω̄ = w₁ of the linear
model at the point reached. Where no rate is clearly better than the probe, θ̄₂ stays.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.checkpoint import keep_part, load_part
from gradfeat.fit.penalties import NEGLIGIBLE
from gradfeat.fit.plan import RATES, Plan
from gradfeat.fit.point import Point, check_finite, starting_model
from gradfeat.fit.predict import store_logits
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.run import Run
from gradfeat.fit.splits import Split
from gradfeat.fit.steps import Rounds, Trial
from gradfeat.fit.training import Training
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.finetune import Recipe, judged, trial_of
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import Probe, fit_probe
from gradfeat.solvers.schedule import Schedule
from gradfeat.solvers.subspace import Solution

PASSES = 8
"""Passes of each trial, for "auto"."""

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
        plan: How many passes a trial has, or "auto"; the seed.
        run: The first of its splits is the one to choose by. Told what was done in vain.
    """
    rounds = search_rounds(problem, plan, run)
    chosen = rounds.chosen
    if chosen is None:
        if rounds.interrupted:
            raise KeyboardInterrupt
        run.passes += rounds.passes
        return None
    point = rounds.point
    if rounds.interrupted:
        run.notes.append(f"full: interrupted in the rounds; {_SEARCHED}{_resumable(problem)}")
    else:
        try:
            point = continued(problem, plan, rounds, run)
        except ConvergenceError as error:
            run.notes.append(f"full: the rounds went astray on all samples: {error}; {_SEARCHED}")
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
    probe = _probe_of(problem, split)
    start = starting_model(problem, "finetune", probe=probe)
    best = _Judged.of(problem, start, split)
    rounds = Rounds(best.loss, Point.of_network(start))
    for k, rate in enumerate(plan.rates):
        trial, model, found = _tried(problem, plan, rate, k, run, probe)
        rounds.trials.append(trial)
        rounds.passes += len(trial.training) * len(split.train) / problem.n
        if found is not None and found.clearly_better(best):
            rounds.best, rounds.point, best = k, Point.of_network(model), found
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
    model = starting_model(problem, "finetune")
    theta2 = problem.linearization.theta2
    w2 = {name: value - theta2[name].to(value) for name, value in rounds.point.theta2.items()}
    model.set_weights(w1=rounds.point.w1, b=rounds.point.b, w2=w2)
    training = Training(problem, plan, torch.arange(problem.n), title="fit", part=CONTINUED)
    recipe = recipe_of(*further(chosen), problem.n)
    history = training.run(model, recipe.schedule_of(problem.n), run.progress)
    rounds.more = history.loss
    rounds.passes += history.passes
    if history.stopped == "interrupted":
        rounds.interrupted = True
        run.notes.append(f"full: interrupted after {len(history.loss)} passes over all samples{_resumable(problem)}")
    # what was held out has been learnt now; a clearly higher loss there says that it went astray
    loss = _Judged.of(problem, model, run.splits[0]).loss
    if not loss <= chosen.loss + ASTRAY * (rounds.start - chosen.loss):
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


# ---- one trial ------------------------------------------------------------------------------------------------------


def _tried(
    problem: Problem, plan: Plan, rate: float, k: int, run: Run, probe: Probe
) -> tuple[Trial, GradientFeatureModel, _Judged | None]:
    """Return how a rate did, the network there, and how it was judged: not at all where training diverged."""
    split = run.splits[0]
    n = len(split.train)
    passes = passes_of(plan.rounds, n)
    model = starting_model(problem, "finetune", probe=probe)
    with suppress(ConvergenceError):
        training = Training(problem, plan, split.train, title=trial_of(k + 1), part=_part(k))
        history = training.run(model, recipe_of(rate, passes, n).schedule_of(n), run.progress)
        found = _Judged.of(problem, model, split, interrupted=history.stopped == "interrupted")
        return Trial(rate, passes, found.loss, found.errors, found.temperature, history.loss), model, found
    return Trial(rate, passes, math.inf), model, None


def _probe_of(problem: Problem, split: Split) -> Probe:
    """Return the probe of the samples that are not held out."""
    rows = problem.all_views(split.train)
    return fit_probe(
        problem.store.features[rows],
        problem.y[rows],
        problem.loss,
        sample_weight=problem.weight_of(rows),
        penalty=problem.probe.penalty,
        outputs=problem.outputs,
    )


@dataclass(frozen=True)
class _Judged:
    """A network on validation data, after the best temperature there.

    Attributes:
        loss: Weighted mean; infinite where outputs are not finite.
        errors: Share of wrong classes.
        temperature: The best one.
        each: Loss of each sample, (k,).
        share: Weight of each, of sum one.
        interrupted: Whether its training was.
    """

    loss: float
    errors: float
    temperature: float
    each: Tensor
    share: Tensor
    interrupted: bool = False

    @staticmethod
    def of(problem: Problem, model: GradientFeatureModel, split: Split, *, interrupted: bool = False) -> _Judged:
        part = problem.subset(split.validation)
        logits = store_logits(model, part.store)
        found = judged(logits, part.y, problem.loss, part.weight, tempered=True)
        each = problem.loss.per_sample(logits.double() / found.temperature, part.y)
        share = torch.ones_like(each) if part.weight is None else part.weight.to(each)
        loss = found.loss if math.isfinite(found.loss) else math.inf
        return _Judged(loss, found.errors, found.temperature, each, share / share.sum(), interrupted)

    def clearly_better(self, other: _Judged) -> bool:
        """Whether the loss is lower by more than the error of the paired difference, and not by next to nothing."""
        difference = other.each - self.each
        mean = self.share @ difference
        error = (self.share.square() @ (difference - mean).square()).sqrt()
        return bool(mean > error) and self.loss < other.loss * (1 - NEGLIGIBLE)


def _cooled(point: Point, temperature: float) -> Point:
    omega = point.omega / temperature
    return Point(point.theta2, omega, omega, point.b / temperature)


def _ended(rounds: Rounds) -> Rounds:
    """Say why they ended."""
    chosen = rounds.chosen
    if rounds.interrupted:
        rounds.reason = f"interrupted in trial {len(rounds.trials)}"
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
