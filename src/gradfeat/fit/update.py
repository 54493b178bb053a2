"""A fit of changed data from the one before: samples added, removed or labelled anew, at the same penalties.

The problem is convex, so where a solution begins does not matter but for the time: from the weights of before, with the
preconditioner of before, a few iterations lead to the optimum of the changed data, and the gap proves it. θ̄₂, the
penalties (of a mean loss) and the metric of w₂ are those of before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.fit.point import Point, check_finite
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit, Linear
from gradfeat.fit.subspace import GIVEN_ITERATIONS, LEAST
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import Probe, fit_probe
from gradfeat.solvers.subspace import GAP, Activations, Objective, Solution, Subspace

OMEGA = ("again", "keep")


@dataclass(frozen=True)
class Update:
    """How changed data are fitted to.

    Attributes:
        omega: "again": ω̄ is the probe of the changed data; "keep": that of before.
        gap: The objective is to be at most this share above its minimum.
        columns: For each output the one of before, or -1 for a new one, (c,).
    """

    omega: str
    gap: float
    columns: Tensor


@dataclass(frozen=True)
class Certificate:
    """How far a solution is from the optimum of its data at most, whatever it began with.

    The objective bends by λ₁ and λ₂ at least, so ``λ/2 ‖w - w*‖²`` is at most what it is above its minimum.

    Attributes:
        gap: The objective is at most this share above its minimum.
        w1: Largest ‖w₁ - w₁*‖; infinite without a penalty.
        w2: The same of w₂, in the metric that it is penalized in.
        lengths: ‖w₁‖, and ‖w₂‖ in the units of θ₂.
    """

    gap: float
    w1: float
    w2: float
    lengths: tuple[float, float]

    @staticmethod
    def of(solution: Solution | None, model: GradientFeatureModel) -> Certificate | None:
        """Return that of a solution; None where it has none."""
        if solution is None or solution.penalties is None or not math.isfinite(solution.gap) or not solution.objective:
            return None
        above = max(0.0, solution.gap) * abs(solution.objective[-1])
        w1, w2 = (math.sqrt(2 * above / one) if one > 0 else math.inf for one in solution.penalties)
        squares = sum(float(value.detach().double().square().sum()) for value in model.w2.values())
        return Certificate(solution.gap, w1, w2, (float(model.w1.detach().double().norm()), math.sqrt(squares)))

    def __str__(self) -> str:
        return (
            f"the objective is at most {100 * self.gap:.2g} % above its minimum, so w₁ is within {self.w1:.2g} of a "
            f"fit from nothing (its length is {self.lengths[0]:.2g}), and w₂ within {self.w2:.2g} "
            f"({self.lengths[1]:.2g})"
        )


def check_update(fit: Fit, omega: str, gap: float) -> None:
    """Refuse what cannot be updated.

    Raises:
        ConfigurationError: θ̄₂ has moved in rounds, whose end is no optimum; or an argument that cannot be meant.
    """
    if omega not in OMEGA:
        raise ConfigurationError(f"omega must be 'again' or 'keep', not {omega!r}.{did_you_mean(str(omega), OMEGA)}")
    if not 0 < gap < 1:
        raise ConfigurationError(f"gap must be above 0 and below 1, not {gap!r}")
    if fit.moved:
        raise ConfigurationError(
            "this model's network has moved in rounds, which end before an optimum and have seen every sample: there "
            "is nothing to update. Fit again, or fit with rounds=1, which can be updated"
        )


def fit_changed(problem: Problem, fit: Fit, linear: Linear, update: Update) -> tuple[Problem, Fit]:
    """Return the problem of changed data with its probe, and the fit.

    A fit that ended before its optimum, as chosen on held-out data, is repeated with as many iterations from the probe:
    its weights of before are no part of it.

    Args:
        problem: The changed data, with the probe of before.
        fit: That of before.
        linear: What it was solved in.
        update: How.
    """
    probe = _probe(problem, problem.probe.penalty, len(update.columns))
    omega = probe
    if linear.omega is not None and linear.omega.penalty != probe.penalty:
        omega = _probe(problem, linear.omega.penalty, len(update.columns))
    if update.omega == "keep" or (linear.omega is None and linear.features is not None):
        omega = _kept(linear, update)
        problem = replace(problem, fixed_omega=omega)
    problem = replace(problem, probe=probe)
    if linear.features is None:
        return problem, _probe_alone(problem, fit, linear, update)
    return problem, _solved(problem, fit, linear, omega, update)


def _probe(problem: Problem, penalty: float, outputs: int) -> Probe:
    f, y = problem.store.features, problem.y
    return fit_probe(f, y, problem.loss, sample_weight=problem.weight, penalty=penalty, outputs=outputs)


def _kept(linear: Linear, update: Update) -> Probe:
    """Return the ω̄ of before."""
    if bool((update.columns < 0).any()):
        raise ConfigurationError("omega='keep' has no gradient term for a new class: leave it out, ω̄ is solved again")
    model = linear.model
    value = model.omega.detach()[:, update.columns]
    bias = torch.zeros_like(value[0])
    penalty = 0.0 if linear.omega is None else linear.omega.penalty
    return Probe(value, bias, penalty, [], True, 0.0, 0)


def _probe_alone(problem: Problem, fit: Fit, linear: Linear, update: Update) -> Fit:
    """Return the fit of a model without a gradient term: a probe."""
    probe, model = problem.probe, linear.model
    if linear.penalties.lambda1 != probe.penalty:
        probe = _probe(problem, linear.penalties.lambda1, len(update.columns))
    bias = torch.zeros_like(probe.bias) if model.mode == "gradient" else probe.bias
    point = Point(problem.linearization.theta2, probe.omega, probe.omega, bias)
    made = check_finite(point.model(problem.linearization, model.mode, model.parametrization), model.mode)
    return Fit(made, choice=fit.choice, linear=Linear(made, probe, None, None, linear.penalties))


def _solved(problem: Problem, fit: Fit, linear: Linear, omega: Probe, update: Update) -> Fit:
    """Return the optimum of the changed data, from the weights of before."""
    metric = "plain" if fit.solution is None else fit.solution.metric
    subspace = _subspace(problem, linear, omega, metric)
    early, model = linear.held_out is not None, linear.model
    subspace.add_w1(omega.omega)
    if early:
        most = LEAST if fit.choice is None else max(fit.choice.iterations, LEAST)
        combination, solution = subspace.solve(linear.penalties, iterations=most)
        solution.reason = f"{len(solution.objective)} iterations, as chosen on held-out data before"
    else:
        if model.mode == "full":
            subspace.add_w1(_columns(model.w1.detach(), update.columns))
        subspace.add_w2(subspace.features.variables({name: value.detach() for name, value in model.w2.items()}))
        combination, solution = subspace.solve(linear.penalties, gap=update.gap, iterations=GIVEN_ITERATIONS)
    if solution.interrupted:
        raise KeyboardInterrupt
    solution.penalties, solution.metric = (linear.penalties.lambda1, linear.penalties.lambda2), metric
    solution.passes = subspace.features.passes
    w1, b, w2 = subspace.weights(combination)
    point = Point(problem.linearization.theta2, omega.omega, omega.omega if w1 is None else w1, b, w2)
    made = check_finite(point.model(problem.linearization, model.mode, model.parametrization), model.mode)
    own = None if problem.fixed_omega is not None else omega
    held_out = linear.held_out if early else None
    return Fit(
        made,
        solution.seconds,
        History(solution.objective, solution.passes, solution.seconds, "finished"),
        _notes(solution, early=early),
        fit.choice,
        solution,
        linear=Linear(made, own, subspace.features, subspace.factors, linear.penalties, held_out),
    )


def _notes(solution: Solution, *, early: bool) -> list[str]:
    if early or solution.gap <= GAP:
        return []
    return [f"update: not converged: {solution}"]


def _subspace(problem: Problem, linear: Linear, omega: Probe, metric: str) -> Subspace:
    """Return the empty subspace of the changed data, in the variables and with the preconditioner of before."""
    store, everything = problem.store, torch.arange(len(problem.store))
    f = store.features.to(omega.omega)
    if linear.features is None:
        raise ConfigurationError("this model has no gradient term: its update is a probe")
    features = linear.features.on(store).of(omega.omega)
    features.passes = 0.0
    return Subspace(
        features,
        Activations(f, everything, problem.weight) if linear.model.mode == "full" else None,
        Objective(problem.y, problem.loss, everything, problem.weight),
        start=f @ omega.omega + omega.bias,
        generator=torch.Generator().manual_seed(0),
        metric=metric,
        factors=linear.factors,
    )


def _columns(value: Tensor, columns: Tensor) -> Tensor:
    """Return weights of the outputs, (d, c), by where each was before; those of a new one are zero."""
    result = value[:, columns.clamp_min(0)].clone()
    result[:, columns < 0] = 0
    return result
