"""Step 3 by Newton's method in the samples' space: cross-entropy and logistic losses, for few samples.

Penalties are chosen on held-out training data; what differs is the last fit, which is exact:
the objective's gradient in all weights is brought to zero, as far as double precision goes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from gradfeat.errors import ConfigurationError
from gradfeat.fit.closed_form import Samples
from gradfeat.fit.convex import choose
from gradfeat.fit.fitting import Fit, Problem, new_model
from gradfeat.fit.selection import Choice, as_pair, lightest
from gradfeat.progress import Progress
from gradfeat.solvers.dual_newton import DualProblem, curvature_unit, newton_dual
from gradfeat.solvers.first_order import History
from gradfeat.solvers.subspace import GAP, Penalties, Solution, bound

MOST = 4000
"""Most samples × outputs: each of Newton's steps, some ten, decomposes a matrix of this size."""


def fit_representer(
    problem: Problem,
    mode: str,
    *,
    penalty: float | Sequence[float] | str = "auto",
    parametrization: str = "standard",
    random_state: int | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit `full` or `gradient` by Newton's method in the dual, with given penalties or those of `gradfeat.fit.convex`.

    Args:
        problem: From `prepare`, with samples that do not change.
        mode: "full" or "gradient".
        penalty: "auto"; or λ of w₁ and of w₂, one number for both or a pair. ω̄ is then the problem's probe.
        parametrization: The variables that w₂ is penalized in.
        random_state: Seed of the splits and of the preconditioner.
        progress: Shows how far it is.

    Raises:
        ConfigurationError: Samples that change, more than `MOST` samples × outputs, or a kernel that does not fit in
            memory.
        ConvergenceError: The features or the solution are not finite.
    """
    samples = Samples(problem, mode, parametrization)
    if len(samples.rows) * samples.outputs > MOST:
        raise ConfigurationError(
            f"solver='dual' takes up to {MOST:,} samples × outputs of {problem.loss.name} loss, not "
            f"{len(samples.rows):,} × {samples.outputs}: take solver='subspace'"
        )
    progress = progress or Progress(False)
    begun = time.perf_counter()
    notes: list[str] = []
    choice: Choice | None = None
    probe = problem.probe
    if isinstance(penalty, str):
        choice = choose(
            problem,
            mode,
            parametrization=parametrization,
            metric="plain",
            random_state=random_state,
            progress=progress,
        )
        if choice is None:
            notes.append(f"{mode}: too few samples to choose penalties on held-out data")
    if choice is not None:
        probes = samples.probes(torch.arange(len(samples.rows)), lightest(problem.probe))
        probe = min(probes, key=lambda probe: abs(probe.penalty - choice.omega))
        if not choice.gradients:
            notes.append(f"{mode}: on held-out training data no gradient term was better than the probe alone")
            model = new_model(problem, mode, parametrization, probe)
            return Fit(model, None, None, time.perf_counter() - begun, notes, choice)
    with progress.step("fit"):
        kernel = samples.kernel(probe)
        if choice is not None:
            penalties = choice.penalties(samples.n)
            w1, w2 = penalties.w1, penalties.w2
        elif isinstance(penalty, str):
            start = samples.store.features.to(probe.omega) @ probe.omega + probe.bias
            unit = curvature_unit(kernel, start, samples.y, problem.loss, samples.weight)
            w1, w2 = probe.penalty, unit * problem.views
        else:
            w1, w2 = as_pair(penalty)
        dual = DualProblem(kernel, samples.f, samples.y, problem.loss, samples.weight, samples.outputs)
        point = newton_dual(dual, w1, w2)
        model, gap = samples.model(probe, point, Penalties(w1, w2))
        notes += samples.raised(w2, point) or samples.rounded(gap, (w1, w2))
    seconds, passes = time.perf_counter() - begun, samples.passes + (0.0 if choice is None else choice.passes)
    reason = (
        f"{point.iterations} Newton steps for {samples.n} samples × {samples.outputs} outputs, "
        f"gradient {point.gradient:.0e}, {bound(gap)}"
    )
    solution = Solution("dual", gap <= GAP, reason, [point.objective], passes=passes, seconds=seconds, gap=gap)
    solution.gradient = point.gradient
    return Fit(model, History(solution.objective, passes, seconds, "finished"), None, seconds, notes, choice, solution)
