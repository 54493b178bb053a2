"""The contract of a solver: what must hold of every solver of the linear models, against a dense reference."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradfeat.data import Inputs, Mirrored
from gradfeat.fit.choose import FEW
from gradfeat.fit.contract import LinearSolver, Solver
from gradfeat.fit.penalties import Choice, Tried
from gradfeat.fit.plan import Plan
from gradfeat.fit.preparation import prepare
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.linearization import linearize, parametrization_scales
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, Squared
from gradfeat.solvers.subspace import GAP, Penalties
from gradfeat.testing.dense import DenseFeatures, DenseProblem, weights_of

_N = 30
_PROBE_PENALTY = 0.05
_PENALTIES = (Penalties(0.05, 0.02), Penalties(0.002, 0.3))
_ROUNDING = 1e-9


def check_solver(solver: Solver, *, modes: Sequence[str] | None = None, tolerance: float = 1e-3) -> None:
    """Check all that a solver of the linear models promises, on small problems in float64.

    The problems: softmax cross-entropy, independent labels of which some are unknown, squared errors; with sample
    weights, with mirror images, in another parametrization, with an ω̄ from outside. Each is skipped where the solver
    refuses it, but it must take one at least.

    A `LinearSolver` minimises the convex objective, so with given penalties its weights are compared with those of
    Newton's method over every weight, on Jacobians by autograd: the objective is at most `tolerance` above the
    minimum (which bounds how far w₁ and w₂ are from it, since it bends by λ₁ and λ₂ at least), the solver says that
    it has converged, and the gap that it claims is true. Weights of samples count as repetitions, and those of zero
    as absence. With chosen penalties it solves with what was chosen, on the least validation loss of the path, and
    returns the probe where no gradient term was better. Any other solver (Adam) is no minimiser: its loss must fall
    below the probe's, and it must not claim to have converged.

    Both: `refusal` says in a sentence what is refused, and what is not refused is not ignored (samples that change,
    rounds, a metric); two fits with the same seed are equal bit for bit; a fit leaves the problem as it was; the fields
    of `Fit` agree with one another.

    Args:
        solver: The solver.
        modes: The modes to check; None: those of the linear models that it has.
        tolerance: Largest share by which a minimiser's objective may be above the minimum.

    Raises:
        AssertionError: A promise is broken; the message says which, on which problem, and by how much.

    Example:
        >>> from gradfeat.fit import SOLVERS
        >>> check_solver(SOLVERS["dual"], modes=["gradient"])
    """
    chosen = [mode for mode in solver.modes if mode in ("gradient", "full")] if modes is None else list(modes)
    _expect(bool(chosen), f"{solver.name}: none of its modes {solver.modes} is one of the linear models")
    cases = _cases()
    for mode in chosen:
        taken = [case for case in cases if _taken(solver, case, Plan(mode, parametrization=case.parametrization))]
        _expect(bool(taken), f"{solver.name}, {mode}: it refuses every problem of this contract")
        for case in taken:
            plan = Plan(mode, parametrization=case.parametrization, metric="plain", seed=3)
            if isinstance(solver, LinearSolver):
                _check_given(solver, case, plan, tolerance)
            else:
                _check_descent(solver, case, plan)
        plan = Plan(mode, metric="plain", seed=3)
        if isinstance(solver, LinearSolver):
            _check_repetition(solver, taken, plan, tolerance)
            _check_choice(solver, taken[0], plan)
            _check_no_gradient_term(solver, taken[0], plan, tolerance)
            _check_too_few(solver, taken[0], plan)
        _check_refusals(solver, taken[0], plan)


# ---- the problems ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """A problem, and the same written out.

    Attributes:
        name: For messages.
        problem: As a solver takes it.
        features: Dense, of all its rows.
        parametrization: Of w₂.
    """

    name: str
    problem: Problem
    features: DenseFeatures
    parametrization: str = "standard"

    @property
    def names(self) -> list[str]:
        """The names of θ₂."""
        return list(self.problem.linearization.theta2)

    def dense(self, mode: str, penalties: Penalties, omega: Tensor | None = None) -> DenseProblem:
        """Return the objective under some penalties, for the problem's ω̄ or another."""
        problem, lin = self.problem, self.problem.linearization
        omega = (problem.fixed_omega or problem.probe).omega if omega is None else omega
        scales = parametrization_scales(lin, self.parametrization)
        of_w2 = [torch.full((lin.theta2[name].numel(),), penalties.lambda2 / scales[name] ** 2) for name in self.names]
        of_w1 = [torch.full((omega.numel(),), penalties.lambda1)] if mode == "full" else []
        penalty = torch.cat([*of_w2, *of_w1, torch.zeros(omega.shape[1])]).double()
        weight = torch.ones(len(problem.y)) if problem.weight is None else problem.weight
        share = weight.double() / weight.double().sum()
        return DenseProblem(self.features.design(omega, mode), penalty, problem.y, problem.loss, share)

    def rows(self, rows: Tensor, weight: Tensor | None) -> _Case:
        """Return some of the samples, perhaps repeated, with other weights and the same ω̄."""
        features = DenseFeatures(self.features.f[rows], {k: v[rows] for k, v in self.features.jacobian.items()})
        return replace(self, problem=replace(self.problem.subset(rows), weight=weight), features=features)


def _network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh()).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network


def _images() -> Tensor:
    """Return samples with a left and a right, (n, 1, 2, 4)."""
    return torch.randn(_N, 1, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _targets(loss: Loss) -> Tensor:
    """Return targets that a probe alone cannot know, since a product is in them."""
    x = _images().flatten(1)
    product, sum_ = x[:, 0] * x[:, 5], x[:, 2] + 0.5 * x[:, 3]
    if isinstance(loss, CrossEntropy):
        return (product > 0).long() + ((product > 0) & (sum_ > 0)).long()
    values = torch.stack([product, sum_, product - sum_], 1)
    if isinstance(loss, MultiLabelLogistic):
        labels = (values > 0).double()
        labels[::7, 1] = math.nan
        return labels
    return values - values.mean(0)


def _weights() -> Tensor:
    """Return 0, 1 and 2 in turn, of which no class has zeros alone."""
    return torch.tensor([1.0, 2.0, 1.0, 0.0, 2.0], dtype=torch.float64).repeat(_N // 5)


def _case(name: str, loss: Loss, *, weight: Tensor | None = None, mirror: bool = False, **settings: str) -> _Case:
    network, x, inputs = _network(), _images(), Inputs(_images())
    problem = prepare(
        linearize(network, x[:3], "*"),
        Mirrored(inputs) if mirror else inputs,
        _targets(loss),
        loss,
        weight=weight,
        penalty=_PROBE_PENALTY,
        views=2 if mirror else 1,
        random_state=0,
    )
    rows = torch.cat([x, x.flip(-1)]) if mirror else x
    return _Case(name, problem, DenseFeatures.of(network, rows, list(problem.linearization.theta2)), **settings)


def _cases() -> list[_Case]:
    weighted = "with sample weights"
    return [
        _case(f"cross-entropy {weighted}", CrossEntropy(), weight=_weights()),
        _case(f"squared errors {weighted}", Squared(), weight=_weights()),
        _case("independent labels, some unknown", MultiLabelLogistic()),
        _case("cross-entropy with mirror images", CrossEntropy(), mirror=True),
        _case("squared errors in another parametrization", Squared(), parametrization="ntk_fan_in"),
        _with_fixed_omega(_case("squared errors with an ω̄ from outside", Squared())),
    ]


def _with_fixed_omega(case: _Case) -> _Case:
    probe = case.problem.probe
    turned = replace(probe, omega=probe.omega.flip(0) + 0.1)
    return replace(case, problem=replace(case.problem, fixed_omega=turned))


# ---- given penalties ------------------------------------------------------------------------------------------------


def _check_given(solver: Solver, case: _Case, plan: Plan, tolerance: float) -> None:
    """Check the minimum under given penalties."""
    for penalties in _PENALTIES:
        what = f"{solver.name}, {plan.mode}, {case.name}, λ₁ = {penalties.lambda1:g}, λ₂ = {penalties.lambda2:g}"
        plan = replace(plan, penalties=penalties)
        fit = _fitted_twice(solver, case, plan, what)
        omega = (case.problem.fixed_omega or case.problem.probe).omega
        _expect(torch.equal(fit.model.omega, omega), f"{what}: with given penalties ω̄ is not the problem's own")
        _expect(fit.choice is None, f"{what}: penalties were given, and yet fit.choice says that some were chosen")
        dense, vector = case.dense(plan.mode, penalties), weights_of(fit.model, case.names)
        objective, minimum = float(dense.objective(vector)), dense.minimum()
        above = objective / minimum - 1
        _expect(
            above <= tolerance, f"{what}: the objective of its weights is {above:.3g} above the minimum, relative to it"
        )
        _check_claims(fit, above, what)
        last = fit.solution.objective[-1] if fit.solution is not None else math.nan
        _expect(
            abs(last - objective) <= 1e-6 * objective,
            f"{what}: it says that its objective is {last:.9g}; that of its weights is {objective:.9g}",
        )


def _check_claims(fit: Fit, above: float, what: str) -> None:
    """Check what a minimiser says of how it ended; `above` is the objective's true relative distance."""
    solution = fit.solution
    if solution is None:
        raise AssertionError(f"{what}: fit.solution is None, though something was solved")
    _expect(
        above <= solution.gap * (1 + 1e-3) + _ROUNDING,
        f"{what}: it claims a gap of {solution.gap:.3g}, and its objective is {above:.3g} above the minimum",
    )
    _expect(
        solution.converged == (solution.gap <= GAP),
        f"{what}: converged is {solution.converged} with a gap of {solution.gap:.3g}, where {GAP:g} is converged",
    )
    _expect(solution.converged, f"{what}: a minimiser has not converged with given penalties: {solution}")


def _check_repetition(solver: Solver, taken: Iterable[_Case], plan: Plan, tolerance: float) -> None:
    """Check that a weight of two is a sample twice, and one of zero none."""
    plan = replace(plan, penalties=_PENALTIES[0])
    for case in taken:
        weight = case.problem.weight
        if weight is None:
            continue
        what = f"{solver.name}, {plan.mode}, {case.name}"
        dense = case.dense(plan.mode, _PENALTIES[0])
        present = torch.nonzero(weight)[:, 0]
        others = {
            "without the samples of weight zero": case.rows(present, weight[present]),
            "with each sample as often as its weight says": case.rows(
                torch.arange(len(weight)).repeat_interleave(weight.long()), None
            ),
        }
        objective = float(dense.objective(weights_of(solver.fit(case.problem, plan).model, case.names)))
        for which, other in others.items():
            vector = weights_of(solver.fit(other.problem, plan).model, case.names)
            away = abs(float(dense.objective(vector)) / objective - 1)
            _expect(away <= tolerance, f"{what}: the fit {which} is another one, its objective {away:.3g} away")


# ---- chosen penalties -----------------------------------------------------------------------------------------------


def _check_choice(solver: Solver, case: _Case, plan: Plan) -> None:
    """Check a fit that chooses penalties."""
    what = f"{solver.name}, {plan.mode}, {case.name}, penalties chosen"
    fit = _fitted_twice(solver, case, plan, what)
    choice = fit.choice
    if choice is None:
        raise AssertionError(f"{what}: fit.choice is None")
    _expect(choice.mode == plan.mode, f"{what}: fit.choice is of mode {choice.mode!r}")
    losses = [
        tried.loss
        for tried in choice.path
        if (tried.omega_penalty, tried.lambda1, tried.lambda2_units)
        == (choice.omega_penalty, choice.lambda1, choice.lambda2_units)
    ]
    by_chance = case.problem.n < FEW and not choice.clear  # a gradient term that was the best is not taken then
    least = min(tried.loss for tried in choice.path if not (tried.gradients and by_chance))
    _expect(bool(losses), f"{what}: the penalties that were chosen are not on the path")
    _expect(min(losses) <= least, f"{what}: validation loss {min(losses):.6g} was chosen, and the path has {least:.6g}")
    _expect(choice.passes > 0, f"{what}: the choice says that it took no passes over the samples")
    if choice.gradients:
        _expect(fit.solution is not None, f"{what}: a gradient term was chosen, and fit.solution is None")
        passes = 0.0 if fit.history is None else fit.history.passes
        _expect(passes > choice.passes, f"{what}: {passes:g} passes in all, of which {choice.passes:g} for the choice")
        _check_below_probe(case, plan, fit, choice, what)
    # the same where the choice is known beforehand, so that a gradient term is solved for whatever the path says
    known = Choice(
        _PROBE_PENALTY, 0.05, 0.1, [Tried(_PROBE_PENALTY, 0.05, 0.1, 0.5)], 1.0, 1.0, [0.5], plan.mode, iterations=50
    )
    fit = _choosing(solver, known).fit(case.problem, plan)
    _expect(fit.choice == known, f"{what}: fit.choice is not what `choose` returned")
    _check_below_probe(case, plan, fit, known, what)


def _check_below_probe(case: _Case, plan: Plan, fit: Fit, choice: Choice, what: str) -> None:
    """Check that a gradient term has lowered the loss that it was chosen for below that of its ω̄ alone."""
    dense = case.dense(plan.mode, choice.penalties(case.problem.n), fit.model.omega.double())
    vector, start = weights_of(fit.model, case.names), _starting_vector(case, plan.mode, fit.model.omega.double())
    loss, before = float(dense.mean_loss(vector)), float(dense.mean_loss(start))
    _expect(loss < before, f"{what}: the mean loss {loss:.6g} is not below that of its start, {before:.6g}")


def _check_no_gradient_term(solver: Solver, case: _Case, plan: Plan, tolerance: float) -> None:
    """Check that the probe with the chosen penalty is the model where no gradient term was better."""
    what = f"{solver.name}, {plan.mode}, {case.name}, no gradient term chosen"
    alone = 10 * _PROBE_PENALTY
    choice = Choice(alone, alone, math.inf, [Tried(alone, alone, math.inf, 0.5)], 1.0, losses=[0.5], mode=plan.mode)
    fit = _choosing(solver, choice).fit(case.problem, plan)
    _expect(fit.choice == choice, f"{what}: fit.choice is not what `choose` returned")
    _expect(fit.solution is None and fit.history is None, f"{what}: nothing was solved, and yet solution or history")
    _expect(not any(bool(value.any()) for value in fit.model.w2.values()), f"{what}: w₂ is not zero")
    _expect(any("no gradient term" in note for note in fit.notes), f"{what}: no note says so: {fit.notes}")
    if plan.mode == "full":
        # a w₂ of zero is the minimum under a penalty without bounds
        dense = case.dense(plan.mode, Penalties(alone, 1e12))
        above = float(dense.objective(weights_of(fit.model, case.names))) / dense.minimum() - 1
        _expect(above <= tolerance, f"{what}: w₁ is not the probe of the chosen penalty, {above:.3g} above its minimum")


def _check_too_few(solver: Solver, case: _Case, plan: Plan) -> None:
    """Check samples that are too few to hold some out: the problem's own penalties, and a note."""
    what = f"{solver.name}, {plan.mode}, {case.name}, one sample"
    one = case.rows(torch.arange(1), None)
    fit = solver.fit(one.problem, plan)
    _expect(bool(torch.isfinite(weights_of(fit.model, case.names)).all()), f"{what}: the weights are not finite")
    _expect(fit.choice is None, f"{what}: fit.choice is {fit.choice}, of no validation data")
    _expect(any("too few samples" in note for note in fit.notes), f"{what}: no note says that they are too few")


def _choosing(solver: Solver, choice: Choice) -> Solver:
    """Return a solver whose choice is known."""
    other = copy.copy(solver)
    other.choose = lambda problem, plan, run: (choice, None)  # type: ignore[attr-defined]
    return other


# ---- solvers that are no minimisers ---------------------------------------------------------------------------------


def _check_descent(solver: Solver, case: _Case, plan: Plan) -> None:
    """Check that training lowers the loss, and claims nothing else."""
    what = f"{solver.name}, {plan.mode}, {case.name}"
    fit = _fitted_twice(solver, case, plan, what)
    if fit.solution is not None:
        told = f"{what}: it says that it has converged, or a gap, and it is no `LinearSolver`"
        _expect(not fit.solution.converged and fit.solution.gap == math.inf, told)
    dense = case.dense(plan.mode, Penalties(0.0, 0.0))
    omega = (case.problem.fixed_omega or case.problem.probe).omega
    start = _starting_vector(case, plan.mode, omega)
    loss, before = (float(dense.mean_loss(vector)) for vector in (weights_of(fit.model, case.names), start))
    _expect(loss < before, f"{what}: the mean loss {loss:.6g} is not below that of its start, {before:.6g}")


def _starting_vector(case: _Case, mode: str, omega: Tensor) -> Tensor:
    """Return the probe with w₂ = 0; mode "gradient" starts with nothing."""
    probe, size = case.problem.probe, sum(value.numel() for value in case.problem.linearization.theta2.values())
    if mode == "gradient":
        return omega.new_zeros(size + omega.shape[1])
    return torch.cat([omega.new_zeros(size), probe.omega.flatten(), probe.bias])


# ---- what is refused ------------------------------------------------------------------------------------------------


class _Changing(Inputs):
    """Samples of which nobody knows whether they stay."""

    random = True


def _check_refusals(solver: Solver, case: _Case, plan: Plan) -> None:
    """Check that what is asked for is refused in a sentence, or done."""
    what = f"{solver.name}, {plan.mode}"
    problem = case.problem
    n, weight = problem.n, problem.weight
    changing = prepare(
        problem.linearization,
        _Changing(_images()),
        problem.y[:n],
        problem.loss,
        weight=None if weight is None else weight[:n],
        penalty=_PROBE_PENALTY,
    )
    given = replace(plan, penalties=_PENALTIES[0])
    changes = replace(case, name="samples that change", problem=changing)
    if _taken(solver, changes, given):
        _expect(not isinstance(solver, LinearSolver), f"{what}: it takes samples that change, and goes over them again")
        _check_fields(solver.fit(changing, given), plan, f"{what}, samples that change")
    rounds = replace(plan, rounds=2)
    if plan.mode == "full" and _taken(solver, case, rounds):
        fit = solver.fit(problem, rounds)
        told = any("linearization" in note or "no move" in note for note in fit.notes)  # that θ̄₂ stays
        _expect(fit.rounds is not None or told, f"{what}: it takes rounds=2, and ignores it")
    whitened = replace(given, metric="whitened")
    if _taken(solver, case, whitened):
        plain, other = (weights_of(solver.fit(problem, some).model, case.names) for some in (given, whitened))
        _expect(not torch.allclose(plain, other, rtol=1e-3), f"{what}: it takes metric='whitened', and ignores it")


def _taken(solver: Solver, case: _Case, plan: Plan) -> bool:
    """Return whether a solver takes a problem; where it refuses, that it says why."""
    refusal = solver.refusal(case.problem, plan)
    what = f"{solver.name}, {plan.mode}, {case.name}"
    if refusal is not None:
        _expect(len(refusal.split()) > 2, f"{what}: the refusal {refusal!r} is no sentence that says why")
    _expect(solver.takes(case.problem, plan) == (refusal is None), f"{what}: `takes` and `refusal` do not agree")
    return refusal is None


# ---- what holds of every fit ----------------------------------------------------------------------------------------


def _fitted_twice(solver: Solver, case: _Case, plan: Plan, what: str) -> Fit:
    """Fit twice, and check that both are the same, consistent, and have changed nothing."""
    before = [value.clone() for value in _tensors(case.problem)]
    fit, again = (solver.fit(case.problem, plan) for _ in range(2))
    pairs = zip(_tensors(case.problem), before, strict=True)
    same = all(torch.allclose(after, value, rtol=0, atol=0, equal_nan=True) for after, value in pairs)
    _expect(same, f"{what}: the fit has changed the problem's own tensors")
    one, two = (weights_of(model, case.names) for model in (fit.model, again.model))
    _expect(bool(torch.isfinite(one).all()), f"{what}: the weights are not finite")
    _expect(torch.equal(one, two), f"{what}: two fits with the same seed are not equal bit for bit")
    _check_fields(fit, plan, what)
    return fit


def _tensors(problem: Problem) -> Iterator[Tensor]:
    yield from problem.linearization.theta2.values()
    yield from (problem.y, problem.probe.omega, problem.probe.bias)
    yield from () if problem.weight is None else (problem.weight,)


def _check_fields(fit: Fit, plan: Plan, what: str) -> None:
    """Check that the fields of a fit agree with one another."""
    _expect(fit.model.mode == plan.mode, f"{what}: the model is of mode {fit.model.mode!r}")
    _expect(
        fit.model.parametrization == plan.parametrization,
        f"{what}: the model's parametrization is {fit.model.parametrization!r}",
    )
    _expect(fit.seconds >= 0, f"{what}: it took {fit.seconds} seconds")
    _expect(fit.selection is None, f"{what}: fit.selection is of fine-tuning")
    _expect(not fit.interrupted, f"{what}: it says that it was interrupted")
    if fit.solution is None:
        _expect(fit.choice is not None and not fit.choice.gradients, f"{what}: fit.solution is None")
        return
    history, solution = fit.history, fit.solution
    if history is None:
        raise AssertionError(f"{what}: fit.history is None, though something was solved")
    _expect(history.passes > 0, f"{what}: it took {history.passes} passes over the samples")
    _expect(history.seconds >= 0, f"{what}: history.seconds is {history.seconds}")
    _expect(bool(history.loss) and all(map(math.isfinite, history.loss)), f"{what}: history.loss is {history.loss}")
    _expect(history.stopped == "finished", f"{what}: history.stopped is {history.stopped!r}")
    _expect(history.loss == solution.objective, f"{what}: history.loss and solution.objective differ")
    _expect(history.passes == solution.passes, f"{what}: history.passes and solution.passes differ")
    _expect(bool(solution.solver and solution.reason), f"{what}: the solution does not say how it ended")


def _expect(holds: bool, otherwise: str) -> None:
    """Raise with a message where something does not hold.

    Raises:
        AssertionError: It does not.
    """
    if not holds:
        raise AssertionError(otherwise)
