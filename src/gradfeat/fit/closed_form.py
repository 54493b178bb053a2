"""Step 3 in closed form: `full` and `gradient` under a squared loss, for few samples.

The tangent kernel of each ω̄ is computed once; the solution, and every sample's loss under the fit without it, then
cost no further pass over the network, for all of the grid of penalties.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.fit.checkpoint import Part, resumed
from gradfeat.fit.fitting import Fit, Problem, new_model
from gradfeat.fit.selection import GRID, HEADS, HEAVIER, NEGLIGIBLE, SPLITS, Choice, Tried, as_pair, lightest, probes_of
from gradfeat.losses import LOSSES, Quadratic
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.samples.store import available_memory
from gradfeat.solvers.dual import Dual, DualPath, DualPoint, relative_gap
from gradfeat.solvers.first_order import History
from gradfeat.solvers.gradient_features import GradientFeatures, Weights, inner
from gradfeat.solvers.kernel import gram
from gradfeat.solvers.probe import Folds, Probe, folds
from gradfeat.solvers.subspace import GAP, Penalties, Solution, bound

FEW = 500
"""Samples × outputs up to which the closed form is the choice of `solver="auto"`; its time grows with the square (the
kernel) and the cube (its decomposition)."""

MANY_OUTPUTS = 2000
"""Most samples × outputs² there: the kernel's time is to the subspace solver's as (n · c)² to n."""

_COPIES = 6  # matrices of the kernel's size that are in use at a time


def takes_closed_form(problem: Problem) -> bool:
    """Whether a problem is one for the closed form: a squared loss, and few samples × outputs."""
    n, c = len(problem.store), problem.probe.omega.shape[1]
    return isinstance(problem.loss, Quadratic) and n * c <= FEW and n * c**2 <= MANY_OUTPUTS


def fit_closed_form(
    problem: Problem,
    mode: str,
    *,
    penalty: float | Sequence[float] | str = "auto",
    parametrization: str = "standard",
    random_state: int | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit `full` or `gradient` by the closed form, with given penalties or those of the least leave-one-out loss.

    The path is that of other losses: ω̄ with penalties from the best probe's upwards while the loss falls, and
    for each a grid of (λ₁, λ₂); for `full` "no gradient term" is part of it. A sample's label is in ω̄ too: under an ω̄
    that has seen it, its leave-one-out loss is far too low, and gradients look good even for labels that are chance.
    So each fold of the samples is judged under an ω̄ that was fitted to the others.

    Args:
        problem: From `prepare`, with samples that do not change and a squared loss.
        mode: "full" or "gradient".
        penalty: "auto"; or λ of w₁ and of w₂, one number for both or a pair. ω̄ is then the problem's probe.
        parametrization: The variables that w₂ is penalized in.
        random_state: Seed of the folds.
        progress: Shows how far it is.

    Raises:
        ConfigurationError: Another loss, samples that change, or a kernel that does not fit in memory.
        ConvergenceError: The features or the solution are not finite.
    """
    if not isinstance(problem.loss, Quadratic):
        names = " and ".join(name for name, kind in LOSSES.items() if issubclass(kind, Quadratic))
        raise ConfigurationError(f"a closed form is for {names} loss, not {problem.loss.name}")
    samples = _Squares(problem, mode, parametrization)
    progress = progress or Progress(False)
    begun = time.perf_counter()
    notes: list[str] = []
    choice: Choice | None = None
    probe = problem.probe
    splits: Folds = []
    if isinstance(penalty, str):
        splits, _ = folds(samples.y[: samples.n].cpu(), problem.loss, SPLITS, random_state)
    if splits:
        choice = _choose(samples, splits, progress)
        probes = samples.probes(torch.arange(len(samples.rows)), lightest(problem.probe))
        probe = min(probes, key=lambda probe: abs(probe.penalty - choice.omega))
        if not choice.gradients:
            notes.append(f"{mode}: by leave-one-out no gradient term was better than the probe alone")
            model = new_model(problem, mode, parametrization, probe)
            return Fit(model, None, None, time.perf_counter() - begun, notes, choice)
    with progress.step("fit"):
        dual = samples.dual(probe)
        if choice is not None:
            w1, w2 = choice.w1, choice.w2 * dual.unit
        elif isinstance(penalty, str):
            notes.append(f"{mode}: too few samples to choose penalties by leave-one-out")
            w1, w2 = probe.penalty, dual.unit * problem.views
        else:
            w1, w2 = as_pair(penalty)
        point = dual.at(w1).solve(w2)
        model, gap = samples.model(probe, point, Penalties(w1, w2))
    seconds, passes = time.perf_counter() - begun, samples.passes
    reason = f"closed form of {samples.n} samples × {samples.outputs} outputs, a squared loss"
    solution = Solution("dual", gap <= GAP, reason, [point.objective], 0.0, passes, seconds, gap=gap)
    notes += samples.raised(w2, point) or samples.rounded(gap, (w1, w2))
    return Fit(model, History(solution.objective, passes, seconds, "finished"), None, seconds, notes, choice, solution)


class Samples:
    """The samples that count (their weight is above zero), as the dual solvers take them.

    Args:
        problem: With samples that do not change.
        mode: "full" or "gradient".
        parametrization: The variables that w₂ is penalized in.

    Raises:
        ConfigurationError: Samples that change, or a kernel that does not fit in memory.
    """

    def __init__(self, problem: Problem, mode: str, parametrization: str) -> None:
        self.problem, self.mode, self.parametrization = problem, mode, parametrization
        self.outputs = problem.probe.omega.shape[1]
        weight = problem.weight
        if problem.store.inputs.random:
            raise ConfigurationError("solver='dual' needs samples that do not change: take solver='adam'")
        if problem.head is not None:
            raise ConfigurationError("solver='dual' takes the probe as ω̄, and it is fixed from outside")
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
        self.weight = torch.ones(len(self.rows)) if weight is None else weight[self.rows].cpu()
        self.single = self.store.linearization.dtype != torch.float64
        self.passes = 0.0

    @property
    def f(self) -> Tensor | None:
        """The activations that the mode has."""
        return self.store.features if self.mode == "full" else None

    def features(self, probe: Probe) -> GradientFeatures:
        """Return the map Φ of an ω̄."""
        return GradientFeatures(self.store, probe.omega, parametrization=self.parametrization)

    def kernel(self, probe: Probe) -> Tensor:
        """Return the tangent kernel of an ω̄, (n · c, n · c)."""
        features = self.features(probe)
        kernel = gram(features)
        self.passes += features.passes
        return kernel

    def probes(self, places: Tensor, light: float) -> list[Probe]:
        """Return the ω̄ of some samples, with penalties from the best probe's upwards."""
        problem = self.problem
        return probes_of(problem.store.features, problem.y, problem.loss, problem.weight, self.rows[places], light)

    def raised(self, w2: float, point: DualPoint) -> list[str]:
        """Return a note where another λ₂ is in force than was asked for."""
        if not 0 < w2 < point.w2_penalty:
            return []
        squared = isinstance(self.problem.loss, Quadratic)  # Newton's method goes as far in single precision
        more = "; precision='float64' goes further" if self.single and squared else ""
        return [
            f"{self.mode}: λ₂ = {w2:.3g} is below what can be told from rounding, and {point.w2_penalty:.3g} was "
            f"taken{more}"
        ]

    def rounded(self, gap: float, penalties: tuple[float, float]) -> list[str]:
        """Return a note where a solution is not known to be the optimum; without a penalty a limit was asked for."""
        if gap <= GAP or 0 in penalties:
            return []
        more = ": give heavier penalties" + (", or precision='float64'" if self.single else "")
        return [f"{self.mode}: not converged: {bound(gap)}, by rounding at penalties this light{more}"]

    def model(self, probe: Probe, point: DualPoint, penalties: Penalties) -> tuple[GradientFeatureModel, float]:
        """Return the model of a solution, and its gap (see `gradfeat.solvers.subspace.Solution`).

        The gap is that of the weights as they are: where residuals a cancel, ``Φᵀ a / λ₂`` is rounded in single
        precision, and its objective is above the one that the solver reached.

        Args:
            probe: ω̄.
            point: The solution.
            penalties: Those that were asked for, which the gap is of; where it is zero, the one in force.

        Raises:
            ConvergenceError: Its weights are not finite.
        """
        features = self.features(probe)
        pulled = features.transpose(point.a / point.w2_penalty, torch.arange(len(self.rows)))
        model = new_model(self.problem, self.mode, self.parametrization, probe)
        # without activations w₁ is the probe, which mode `gradient` does not use
        model.set_weights(w1=probe.omega if point.w1 is None else point.w1, b=point.bias, w2=features.natural(pulled))
        gap = self._gap(features, pulled, point, penalties)
        self.passes += features.passes
        if not all(bool(torch.isfinite(value).all()) for value in model.trained()):
            raise ConvergenceError(f"the weights of {self.mode} are not finite")
        return model, gap

    def _gap(self, features: GradientFeatures, w2: Weights, point: DualPoint, asked: Penalties) -> float:
        """Return the gap of weights, w₂ in the variables that it is penalized in.

        With λ in force for λ₀ the dual objective at a is less by ``½ ‖w‖² λ (λ - λ₀) / λ₀``, the primal one by
        ``½ ‖w‖² (λ - λ₀)``.
        """
        logits = features.forward(w2, torch.arange(len(self.rows))).double().cpu() + point.bias
        parts = [(point.w2_penalty, asked.w2, inner(w2, w2))]
        if point.w1 is not None:
            logits = logits + self.store.features.double().cpu() @ point.w1
            parts.append((point.w1_penalty, asked.w1, float(point.w1.square().sum())))
        objective = float(self.problem.loss.value(logits, self.y.cpu(), self.weight))
        lowest = point.objective / (1 + point.gap)
        for taken, wanted, squared in parts:
            wanted = wanted if 0 < wanted < taken else taken
            objective += 0.5 * wanted * squared
            lowest -= 0.5 * squared * taken * (taken - wanted) / wanted
        return relative_gap(objective - lowest, objective)


class _Squares(Samples):
    """Samples of a squared loss, and the closed form of each ω̄ on them."""

    def __init__(self, problem: Problem, mode: str, parametrization: str) -> None:
        super().__init__(problem, mode, parametrization)
        loss: Any = problem.loss
        self.targets: Tensor = loss.targets(self.y, self.outputs)

    def dual(self, probe: Probe) -> Dual:
        """Return the closed form for an ω̄."""
        kernel, views = self.kernel(probe), self.problem.views
        return Dual(kernel, self.f, self.targets, self.weight, views=views, single=self.single)

    def versions(self, picked: np.ndarray) -> Tensor:
        """Return the places of all versions of some samples, in order of sample."""
        return (torch.from_numpy(picked)[:, None] + self.n * torch.arange(self.problem.views)).flatten()

    def loss(self, path: DualPath, w2: float, places: Tensor) -> float:
        """Return the weighted sum of losses of some samples, each under the fit without it."""
        logits = self.targets[places].cpu() - path.leave_one_out(w2)[places]
        losses = self.problem.loss.per_sample(logits, self.y[places].cpu())
        return float((self.weight[places] * losses).sum())


def _judged(
    samples: _Squares,
    probes: list[Probe],
    held: list[Tensor],
    heads: list[float],
    values: list[float],
    done: Callable[[], None],
) -> Part:
    """Return the mean leave-one-out losses, (λ₁, λ₂), where each fold is judged under its own ω̄, and their unit."""
    before, length = samples.passes, 0.0
    losses = torch.zeros(len(heads), len(values), dtype=torch.float64)
    for own, rows in zip(probes, held, strict=True):
        dual = samples.dual(own)
        length += dual.unit * samples.n / len(held)
        for j, head in enumerate(heads):
            decomposed = dual.at(head)
            of_head = [samples.loss(decomposed, value * dual.unit, rows) for value in values]
            losses[j] += torch.tensor(of_head, dtype=torch.float64)
        done()
    losses /= sum(float(samples.weight[rows].sum()) for rows in held)
    return Part({"length": length, "passes": samples.passes - before}, {"losses": losses})


def _choose(samples: _Squares, splits: Folds, progress: Progress) -> Choice:
    """Return the penalties of the least leave-one-out loss, ω̄ being fitted without the fold that is judged."""
    problem, full = samples.problem, samples.mode == "full"
    light = lightest(problem.probe)
    heads = [light * factor for factor in HEADS] if full else [light]
    seen = [samples.versions(part) for part, _ in splits]
    held = [samples.versions(part) for _, part in splits]
    probes = [samples.probes(part, light) for part in seen]
    path: list[Tried] = []
    lengths: dict[float, float] = {}  # by the penalty of ω̄, the mean over folds
    least = [math.inf]
    with progress.step("penalties") as done:
        folds_done = itertools.count(1)

        def fold_done() -> None:
            done(next(folds_done), len(HEAVIER) * len(splits))

        for i, factor in enumerate(HEAVIER):
            # without the gradient term all ω̄ are the same
            values = [math.inf, *GRID] if full and not i else list(GRID)
            before = samples.passes
            part = resumed(
                problem.checkpoint,
                f"{samples.mode}-closed-omega-{i}",
                partial(_judged, samples, [own[i] for own in probes], held, heads, values, fold_done),
                lambda part: part,
                lambda part: part,
            )
            samples.passes = before + part.values["passes"]
            lengths[light * factor] = part.values["length"]
            losses = part.tensors["losses"].numpy()
            for k, value in enumerate(values):
                for head, loss in zip(heads, losses[:, k].tolist(), strict=True):
                    path.append(Tried(head if value == math.inf else light * factor, head, value, loss))
            least.append(float(losses[:, -len(GRID) :].min()))
            if least[-1] >= least[-2] * (1 - NEGLIGIBLE):  # heavier ones do harm, or differ in their length alone
                break
    best = min(path, key=lambda tried: tried.loss)  # among equals without the gradient term
    if not math.isfinite(best.loss):
        raise ConvergenceError(f"no leave-one-out loss of {samples.mode} is finite")
    return Choice(
        best.omega, best.w1, best.w2, path, samples.passes, lengths.get(best.omega, 1.0), [best.loss], samples.mode
    )
