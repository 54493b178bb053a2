"""Rounds: linearize, fit, move θ̄₂ by w₂, take ω̄ = w₁, linearize again. Fine-tuning without a learning rate.

Each round is a convex problem at the present point, of which one preconditioned step is taken (a damped Gauss-Newton
step), in the span of a preconditioned gradient, or of two or three, and the step before. How far it goes, the penalties
of w₁ and w₂ say: they are a trust region, chosen by the loss of the real network on validation data, that no fit has
seen. Rounds end where no step lowers it. The same steps, with the same penalties, are then repeated on all training
data, and the last linearization is solved there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.checkpoint import Part, keep_part, load_part
from gradfeat.fit.penalties import GRID, NEGLIGIBLE, Choice, ScaledPenalties
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import Point, check_finite, starting_model
from gradfeat.fit.predict import loss_at
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.run import Run
from gradfeat.fit.spans import Growth, Stages, Validation, grow
from gradfeat.fit.steps import Rounds
from gradfeat.fit.trust_region import growths_to, network_loss, next_step, subspace_at, weights_of
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.subspace import Penalties, Solution

MOST = 12
"""Steps at most, for "auto"; the last linearization comes after them."""

AROUND = (10.0, 10**0.5, 1.0, 10**-0.5, 0.1)
"""The same of the last linear model, in units of the last step's."""

FIRST = Stages(common=(Growth(10.0, 1), Growth(1.0, 2)))
"""Of the choice of ω̄'s penalty: what is best for short steps, under heavier penalties of w₂, is what rounds begin with
best, which move ω̄ themselves."""

LAST = (*FIRST.common, Growth(0.1, 2))
"""Growths of the last linearization's subspace at most."""

ASTRAY = 0.05
"""Share of the rounds' gain by which the loss may be higher where the rounds are repeated on all samples."""

SEARCH, REPETITION = "rounds-search", "rounds-repetition"
"""Names of their parts of a checkpoint."""


def fit_in_rounds(problem: Problem, plan: Plan, choice: Choice, run: Run) -> Fit | None:
    """Search steps on a split, repeat them on all samples; None where one linearization has less validation loss.

    Args:
        problem: The data, the network and the loss.
        plan: How many rounds, "auto" for as many as lower the loss; parametrization and metric.
        choice: Of the first linearization, with the stages `FIRST`.
        run: The first of its splits is the one to choose by. Told what was done in vain.
    """
    search = search_rounds(problem, plan, choice, run)
    passes = choice.passes + search.passes
    if not search.interrupted and (not search.steps or search.last_loss > choice.losses[0]):  # on the same samples
        run.passes += passes
        return None
    model = starting_model(problem, "full", plan.parametrization)
    if search.steps:
        model = _model(problem, plan, search.point)
    solution: Solution | None = None
    interrupted = search.interrupted
    if not interrupted:
        try:
            point, solution = repeat_rounds(problem, plan, choice, search, run)
            model = _confirmed(problem, plan, point, search, run)
        except ConvergenceError as error:
            run.notes.append(f"full: the rounds went astray when repeated on all samples: {error}; {_SEARCHED}")
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        more = "" if problem.checkpoint is None else "; the same fit goes on from its checkpoint"
        run.notes.append(f"full: interrupted in the rounds after {len(search.steps)} steps; {_SEARCHED}{more}")
    losses = [step.loss for step in search.steps]
    if solution is not None:
        solution.passes += passes
        losses, passes = solution.objective, solution.passes
        solution.seconds = run.seconds
    history = History(losses, passes, run.seconds, "interrupted" if interrupted else "finished")
    return Fit(model, run.seconds, history, run.notes, choice, solution, search)


_SEARCHED = "the weights are those of the search, which left a part of the samples out"


def _confirmed(problem: Problem, plan: Plan, point: Point, search: Rounds, run: Run) -> GradientFeatureModel:
    """Return the model of the steps on all samples, where it is as good as the search says.

    Raises:
        ConvergenceError: The repetition went astray.
    """
    model = check_finite(_model(problem, plan, point), "full")
    # what was held out has been fitted to now; a clearly higher loss there says that the repetition went astray
    allowed = search.last_loss + ASTRAY * (search.start - search.last_loss)
    if not loss_at(problem, model, run.splits[0].validation) <= allowed:
        raise ConvergenceError("the loss rose where it was held out before")
    return model


def _model(problem: Problem, plan: Plan, point: Point) -> GradientFeatureModel:
    return point.model(problem.linearization, "full", plan.parametrization)


def search_rounds(problem: Problem, plan: Plan, choice: Choice, run: Run) -> Rounds:
    """Move θ̄₂ while the network's loss on validation data falls; then choose the last linear model's penalties.

    Args:
        problem: The data, the network and the loss.
        plan: How many rounds, "auto" for as many as lower the loss; parametrization and metric.
        choice: Says the penalty of the probe that the rounds start from.
        run: The first of its splits is the one to choose by.
    """
    rounds, done = _begun(problem, choice, run)
    if done:
        return rounds
    limit = MOST if isinstance(plan.rounds, str) else int(plan.rounds) - 1
    asked = "are taken" if isinstance(plan.rounds, str) else "were asked for"
    rounds.reason = f"at most {limit} steps {asked}"
    with run.progress.step("rounds") as report:
        report(len(rounds.steps), limit)
        try:
            for k in range(len(rounds.steps), limit):
                step = next_step(problem, plan, choice, rounds, run)
                if step is None:
                    rounds.reason = "no further step lowered the network's held-out loss"
                    break
                rounds.steps.append(step[0])
                rounds.point, rounds.last_loss = step[1], step[0].loss
                keep_part(problem.checkpoint, SEARCH, rounds.pack(done=False), run.generator)
                report(k + 1, limit)
            if rounds.steps:
                _choose_last(problem, plan, rounds, run)
            keep_part(problem.checkpoint, SEARCH, rounds.pack(done=True), run.generator)
        except ConvergenceError as error:
            rounds.reason = str(error)
        except KeyboardInterrupt:
            rounds.interrupted = True
    return rounds


def repeat_rounds(problem: Problem, plan: Plan, choice: Choice, rounds: Rounds, run: Run) -> tuple[Point, Solution]:
    """Repeat the steps of a search on all samples, and solve the last linearization there."""
    everything, steps, generator = torch.arange(problem.n), rounds.steps, run.generator
    point, solution = _repetition(problem, choice, len(steps), generator)
    first = len(solution.objective)
    with run.progress.step("rounds on all samples") as report:
        report(first, len(steps) + 1)
        for i, step in enumerate(steps[first:], first):
            rows = problem.random_views(everything, generator)
            subspace = subspace_at(problem, plan, point, rows, generator)
            for growth in growths_to(step.directions):  # as in the search
                grow(subspace, choice.omega_penalty, growth, tolerance=0.0)
            minimum = subspace.minimum(step.on(problem.n))
            solution.objective.append(minimum.objective)
            solution.passes += subspace.features.passes / problem.views
            point = point.moved(*weights_of(subspace, minimum))
            part = Part({"objective": solution.objective, "passes": solution.passes}, point.pack())
            keep_part(problem.checkpoint, REPETITION, part, generator)
            report(i + 1, len(steps) + 1)
        if rounds.last is not None:
            rows = problem.all_views(everything)
            subspace = subspace_at(problem, plan, point, rows, generator)
            for growth in LAST[: rounds.stages]:
                grow(subspace, steps[-1].lambda1, growth)
            minimum = subspace.minimum(rounds.last.on(len(rows)))
            solution.objective.append(minimum.objective)
            solution.passes += subspace.features.passes
            point = point.with_weights(*weights_of(subspace, minimum))
    return point, solution


# ---- where they begin -----------------------------------------------------------------------------------------------


def _begun(problem: Problem, choice: Choice, run: Run) -> tuple[Rounds, bool]:
    """Return the rounds at their probe, or as far as the checkpoint has them; and whether they are done."""
    split, kept = run.splits[0], load_part(problem.checkpoint, SEARCH, run.generator)
    if kept is not None:
        return Rounds.unpack(kept, problem.linearization.theta2), bool(kept.values["done"])
    point = _start(problem, choice, problem.all_views(split.train))
    start = network_loss(problem, point, split.validation)
    return Rounds(start, point, last_loss=start), False


def _repetition(problem: Problem, choice: Choice, count: int, generator: torch.Generator) -> tuple[Point, Solution]:
    """Return the probe of all samples, or where a repetition of so many steps stopped, and what it has done so far."""
    kept = load_part(problem.checkpoint, REPETITION, generator)
    solution = Solution("rounds", False, f"{count} steps")
    if kept is None:
        return _start(problem, choice, problem.all_views(torch.arange(problem.n))), solution
    solution.objective, solution.passes = kept.values["objective"], kept.values["passes"]
    return Point.unpack(kept.tensors, problem.linearization.theta2), solution


def _start(problem: Problem, choice: Choice, rows: Tensor) -> Point:
    """Return the probe of some rows, with the penalty that was chosen for ω̄."""
    probe = fit_probe(
        problem.store.features[rows],
        problem.y[rows],
        problem.loss,
        sample_weight=problem.weight_of(rows),
        penalty=choice.omega_penalty,
        outputs=problem.outputs,
    )
    return Point(problem.linearization.theta2, probe.omega, probe.omega, probe.bias)


# ---- the last linearization -----------------------------------------------------------------------------------------


def _choose_last(problem: Problem, plan: Plan, rounds: Rounds, run: Run) -> None:
    """Choose the penalties of the last linear model, or none where the network at this point is better."""
    split = run.splits[0]
    views = problem.all_views(split.train)
    rows = torch.cat([views, split.validation])
    subspace = subspace_at(problem, plan, rounds.point, rows, run.generator, len(views))
    validation = Validation.of(problem.subset(rows), len(views))
    last = rounds.steps[-1].lambda1
    lambda1 = [last * factor for factor in AROUND]
    for stages, growth in enumerate(LAST, 1):
        grow(subspace, last, growth)
        losses = validation.losses(subspace, lambda1)
        if not losses.min() < rounds.last_loss * (1 - NEGLIGIBLE):
            if stages == 1:
                continue  # one direction may be too few
            break
        j, k = divmod(int(losses.argmin()), len(GRID.lambda2_units))
        rounds.last = ScaledPenalties(lambda1[j], GRID.lambda2_units[k], subspace.length)
        rounds.last_loss, rounds.stages = float(losses.min()), stages
        minimum = subspace.minimum(Penalties(lambda1[j], GRID.lambda2_units[k] * subspace.unit))
        rounds.point = rounds.point.with_weights(*weights_of(subspace, minimum))
    rounds.passes += subspace.features.passes * len(rows) / len(problem.store)
