"""Step 3 in closed form: `full` and `gradient` under a squared loss, for few samples.

The tangent kernel of each ω̄ is computed once; the solution, and every sample's loss under the fit without it, then cost
no further pass over the network, for all of the grid of penalties.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from gradfeat.cache import available_memory
from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.fitting import Fit, Problem, new_model
from gradfeat.kernel import gram
from gradfeat.losses import LOSSES, Quadratic
from gradfeat.progress import Progress
from gradfeat.selection import GRID, HEADS, Choice, Tried, fit_probes
from gradfeat.solvers.dual import Dual, DualPath
from gradfeat.solvers.first_order import History
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Solution

FEW = 1000
"""Samples × outputs up to which the closed form is the choice of `solver="auto"`; its time grows with the cube."""

_COPIES = 6  # matrices of the kernel's size that are in use at a time


def takes_closed_form(problem: Problem) -> bool:
    """Whether a problem is one for the closed form: a squared loss, and few samples × outputs."""
    return isinstance(problem.loss, Quadratic) and len(problem.store) * problem.probe.omega.shape[1] <= FEW


def fit_closed_form(
    problem: Problem,
    mode: str,
    *,
    penalty: float | Sequence[float] | str = "auto",
    parametrization: str = "standard",
    progress: Progress | None = None,
) -> Fit:
    """Fit `full` or `gradient` by the closed form, with given penalties or those of the least leave-one-out loss.

    The path is that of `gradfeat.selection`: ω̄ with penalties from the best probe's upwards while the loss falls, and
    for each a grid of (λ₁, λ₂); for `full` "no gradient term" is part of it. ω̄ itself is not fitted anew without each
    sample.

    Args:
        problem: From `prepare`, with samples that do not change and a squared loss.
        mode: "full" or "gradient".
        penalty: "auto"; or λ of w₁ and of w₂, one number for both or a pair. ω̄ is then the problem's probe.
        parametrization: The variables that w₂ is penalized in.
        progress: Shows how far it is.

    Raises:
        ConfigurationError: Another loss, samples that change, or a kernel that does not fit in memory.
        ConvergenceError: The features or the solution are not finite.
    """
    samples = _Samples(problem, mode, parametrization)
    begun = time.perf_counter()
    notes: list[str] = []
    choice: Choice | None = None
    probe = problem.probe
    if isinstance(penalty, str) and samples.n > 2:
        choice, probe, dual = _choose(samples, progress or Progress(False))
        if not choice.gradients:
            notes.append(f"{mode}: by leave-one-out no gradient term was better than the probe alone")
            model = new_model(problem, mode, parametrization, probe)
            return Fit(model, None, None, time.perf_counter() - begun, notes, choice)
        w1, w2 = choice.w1, choice.w2 * dual.unit
    else:
        dual = samples.dual(probe)
        if isinstance(penalty, str):
            notes.append(f"{mode}: too few samples to choose penalties by leave-one-out")
            w1, w2 = probe.penalty, dual.unit
        else:
            w1, w2 = (float(value) for value in (penalty if isinstance(penalty, Sequence) else (penalty, penalty)))
    point = dual.at(w1).solve(w2)
    features = samples.features(probe)
    pulled = features.transpose(point.a / point.w2_penalty, torch.arange(len(samples.rows)))
    model = new_model(problem, mode, parametrization, probe)
    # without activations w₁ is the probe, which mode `gradient` does not use
    model.set_weights(w1=probe.omega if point.w1 is None else point.w1, b=point.bias, w2=features.natural(pulled))
    if not all(bool(torch.isfinite(value).all()) for value in model.trained()):
        raise ConvergenceError(f"the weights of {mode} are not finite")
    seconds = time.perf_counter() - begun
    passes = samples.passes + features.passes
    reason = f"closed form of {samples.n} samples × {samples.outputs} outputs, a squared loss"
    solution = Solution("dual", True, reason, [point.objective], 0.0, passes, seconds)
    return Fit(model, History(solution.objective, passes, seconds, "finished"), None, seconds, notes, choice, solution)


class _Samples:
    """The samples that count (their weight is above zero), and the closed form of each ω̄ on them."""

    def __init__(self, problem: Problem, mode: str, parametrization: str) -> None:
        self.problem, self.mode, self.parametrization = problem, mode, parametrization
        self.outputs = problem.probe.omega.shape[1]
        loss, weight = problem.loss, problem.weight
        if not isinstance(loss, Quadratic):
            names = " and ".join(name for name, kind in LOSSES.items() if issubclass(kind, Quadratic))
            raise ConfigurationError(f"solver='dual' is for {names} loss, not {loss.name}: take solver='subspace'")
        if problem.store.inputs.random:
            raise ConfigurationError("solver='dual' needs samples that do not change: take solver='adam'")
        self.rows = torch.arange(len(problem.store))
        if weight is not None:
            self.rows = self.rows[weight.cpu() > 0]
        size = len(self.rows) * self.outputs
        needed = 8 * _COPIES * size**2
        if needed > available_memory():
            raise ConfigurationError(
                f"solver='dual' needs {needed / 2**30:.0f} GiB for the kernel of {len(self.rows):,} samples × "
                f"{self.outputs} outputs, more than is free: take solver='subspace'"
            )
        self.n = len(self.rows) // problem.views
        self.store, self.y = problem.store.rows(self.rows), problem.y[self.rows]
        self.targets = loss.targets(self.y, self.outputs)
        self.weight = None if weight is None else weight[self.rows].cpu()
        self.passes = 0.0

    def features(self, probe: Probe) -> GradientFeatures:
        """Return the map Φ of an ω̄."""
        return GradientFeatures(self.store, probe.omega, parametrization=self.parametrization)

    def dual(self, probe: Probe) -> Dual:
        """Return the closed form for an ω̄."""
        features = self.features(probe)
        kernel = gram(features)
        self.passes += features.passes
        return Dual(
            kernel,
            self.store.features if self.mode == "full" else None,
            self.targets,
            torch.ones(len(self.rows)) if self.weight is None else self.weight,
            views=self.problem.views,
            single=self.store.linearization.dtype != torch.float64,
        )

    def loss(self, path: DualPath, w2: float) -> float:
        """Return the mean loss of every sample under the fit without it."""
        logits = self.targets.cpu() - path.leave_one_out(w2)
        return float(self.problem.loss.value(logits, self.y.cpu(), self.weight))


def _choose(samples: _Samples, progress: Progress) -> tuple[Choice, Probe, Dual]:
    """Return the penalties of the least leave-one-out loss, with their ω̄ and its closed form."""
    problem, full = samples.problem, samples.mode == "full"
    light = max(problem.probe.penalty, 1e-12)
    probes = fit_probes(problem.store.features, problem.y, problem.loss, problem.weight, samples.rows, light)
    heads = probes[:HEADS] if full else probes[:1]
    path: list[Tried] = []
    best: tuple[Tried, Probe, Dual] | None = None
    with progress.step("penalties") as done:
        for i, probe in enumerate(probes):
            dual = samples.dual(probe)
            before = best
            for head in heads:
                decomposed = dual.at(head.penalty)
                if full and not i:
                    plain = Tried(head.penalty, head.penalty, math.inf, samples.loss(decomposed, math.inf))
                    path.append(plain)
                    if best is None or plain.loss < best[0].loss:
                        best = plain, head, dual
                for value in GRID:
                    tried = Tried(probe.penalty, head.penalty, value, samples.loss(decomposed, value * dual.unit))
                    path.append(tried)
                    if best is None or tried.loss < best[0].loss:
                        best = tried, probe, dual
            done(i + 1, len(probes))
            if i and best is before:  # heavier ones only do harm
                break
    if best is None or not math.isfinite(best[0].loss):
        raise ConvergenceError(f"no leave-one-out loss of {samples.mode} is finite")
    least, probe, dual = best
    return Choice(least.omega, least.w1, least.w2, path, samples.passes), probe, dual
