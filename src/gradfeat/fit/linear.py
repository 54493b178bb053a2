"""From a fit to what its answers are computed from: penalties in force, metric, preconditioner."""

from __future__ import annotations

from dataclasses import replace

import torch

from gradfeat.errors import ConfigurationError
from gradfeat.fit.choose import nearest_probe
from gradfeat.fit.penalties import lightest
from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit, Linear
from gradfeat.fit.spans import probes_of, subspace_of
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Penalties

AVERAGE = "average"
"""The solver that an average of models is said to be of."""


def linear_of(problem: Problem, plan: Plan, fit: Fit) -> Linear:
    """Return what a fit's answers are computed from; taken anew where the fit does not say.

    The penalties are those that were given or chosen. Rounds have none: in their place stand multiples of one unit of
    each, by the loss on held-out samples (`Linear.held_out`).

    Args:
        problem: What was fitted to, at the θ̄₂ of the model.
        plan: What was fitted.
        fit: How it ended.

    Raises:
        ConfigurationError: A model that is no optimum of a convex problem.
    """
    if fit.linear is not None:
        return fit.linear
    model = fit.model
    if model.mode == "finetune":
        raise ConfigurationError(
            "a fine-tuned network is no linear model: fit mode='full', which answers this, or in rounds"
        )
    if fit.solution is not None and fit.solution.solver == AVERAGE:
        raise ConfigurationError("an average of models is no optimum of their data: combine(..., how='joint') is")
    if no_optimum(fit):
        raise ConfigurationError("Adam and SGD end before an optimum, without a penalty of w₂: fit with solver='auto'")
    if model.mode == "activation" or (fit.solution is None and not fit.moved):
        probe = _probe(problem, fit)
        return Linear(model, None, None, None, Penalties(probe.penalty, 1.0))
    return _with_gradients(problem, plan, fit)


def ended_early(fit: Fit) -> bool:
    """Whether the weights are no optimum of the penalties: the fit ended by held-out data, or rounds moved θ̄₂."""
    return fit.moved or (fit.choice is not None and fit.solution is not None and not fit.solution.converged)


def no_optimum(fit: Fit) -> bool:
    """Whether a linear model was fitted by an optimizer that knows no penalty of w₂."""
    return fit.solution is not None and fit.solution.solver in ("adam", "sgd")


def _with_gradients(problem: Problem, plan: Plan, fit: Fit) -> Linear:
    model, choice, solution = fit.model, fit.choice, fit.solution
    metric = "whitened" if fit.moved else plan.metric if solution is None else solution.metric
    plan = replace(plan, mode=model.mode, metric=metric)
    omega, bias = model.omega, model.b.detach() if fit.moved else problem.probe.bias
    generator = torch.Generator().manual_seed(0)
    subspace = subspace_of(problem, plan, omega, bias.to(omega), len(problem.store), generator)
    if fit.rounds is not None and fit.moved:
        penalties = Penalties(_head_unit(problem, subspace.curvature), subspace.length / problem.n)
        return Linear(model, None, subspace.features, subspace.factors, penalties, fit.rounds.last_loss)
    if solution is None or solution.penalties is None:
        raise ConfigurationError("this model is of an older version, which did not say its penalties: fit it again")
    own = None if problem.fixed_omega is not None else _probe(problem, fit)
    held_out = None if choice is None or solution.converged else choice.loss
    return Linear(model, own, subspace.features, subspace.factors, Penalties(*solution.penalties), held_out)


def _probe(problem: Problem, fit: Fit) -> Probe:
    """Return the probe that is ω̄: the problem's own, or the one of a chosen penalty."""
    if fit.choice is None:
        return problem.probe
    rows = torch.arange(len(problem.store))
    return nearest_probe(probes_of(problem, rows, lightest(problem.probe)), fit.choice)


def _head_unit(problem: Problem, curvature: float) -> float:
    """Return a unit of λ₁, as `Subspace.unit` is one of λ₂."""
    f = problem.store.features.double()
    return float((f - f.mean(0)).square().sum(1).mean()) * curvature / problem.n
