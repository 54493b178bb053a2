"""Step 3 without a learning rate: the convex problem in (w₁, b, w₂), solved in a growing subspace.

    minimise  Σᵢ shareᵢ loss(w₁ᵀ f + b + ω̄ᵀ J w₂, y) + λ₁/2 ‖w₁‖² + λ₂/2 ‖w₂‖²

Each iteration adds two directions, the preconditioned gradients in w₁ and in w₂, and their logits; the minimum over the
span of all directions so far is a problem in a few dozen unknowns, solved by Newton's method at no cost in passes (a
preconditioned conjugate gradient method that forgets nothing; Narkiss & Zibulevsky 2005 for the idea). The logits of a
direction do not depend on the penalties. So one span serves the whole penalty path, and every further direction
improves all of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.losses import Loss
from gradfeat.samples.store import available_memory
from gradfeat.solvers.dual import relative_gap
from gradfeat.solvers.gradient_features import GradientFeatures, Weights, add_scaled, inner
from gradfeat.solvers.kronecker import KroneckerFactors, estimate_factors
from gradfeat.solvers.newton import Combination, Combinations, Span

GAP = 1e-4
"""A fit has converged where its objective is at most this share above its minimum."""

_PLAIN_FROM = 12  # iterations after which every other direction of w₂ is the gradient itself: see `Subspace.grow`
_STALLED, _PROGRESS = 12, 1e-8  # iterations that lower the objective by a smaller share in all: the precision's end
_KEPT = 5  # directions that stay then
_REFRESH = 6  # iterations after which the preconditioner is taken anew, at the curvature of the present solution
_LEAST_DIRECTIONS, _MOST_DIRECTIONS = 8, 200  # of w₂, by memory; beyond, the older ones become one, the solution


@dataclass(frozen=True)
class Penalties:
    """The penalties λ₁ of w₁ and λ₂ of w₂."""

    lambda1: float
    lambda2: float

    def times(self, factor: float) -> Penalties:
        """Return a multiple of both."""
        return Penalties(self.lambda1 * factor, self.lambda2 * factor)


@dataclass(frozen=True)
class Objective:
    """The mean loss that is minimised, over some of the samples of a store; the others are known by their logits alone.

    Attributes:
        y: Targets of all samples.
        loss: The task's loss.
        train: Samples to fit to, (m,).
        weight: A weight for each sample of the store, or None.
    """

    y: Tensor
    loss: Loss
    train: Tensor
    weight: Tensor | None

    @property
    def share(self) -> Tensor:
        """The share of each sample in the loss, (m,), in double precision."""
        return _shares(self.train, self.weight, self.y.device)


@dataclass
class Solution:
    """How a fit ended.

    Attributes:
        solver: Its name.
        converged: Whether `gap` is known to be at most `GAP`, or, for Adam and SGD, which know of none, False.
        reason: Why it stopped.
        objective: Penalized mean loss after each iteration.
        decrement: What a further preconditioned step would gain at first order, relative to the objective; infinite
            where a solver does not compute it.
        gap: The objective is at most so far above its minimum, relative to it: ``½ Σ ‖gradient‖² / λ`` over w₁ and w₂,
            since the objective bends by λ at least, which is the duality gap too; infinite where a solver does not
            compute it. Light penalties make it a loose bound, and without one there is none.
        penalties: λ₁ and λ₂; None where a solver has none.
        metric: What w₂ is penalized in, "plain" or "whitened".
        passes: Work, in passes over the samples (tangent and backward).
        seconds: Time.
        interrupted: Whether Ctrl-C ended it.
        gradient: Norm of the objective's gradient in all weights, relative to the features' length, where the solver
            is Newton's method in the dual (see `gradfeat.solvers.dual_newton`).
    """

    solver: str
    converged: bool
    reason: str
    objective: list[float] = field(default_factory=list)
    decrement: float = math.inf
    passes: float = 0.0
    seconds: float = 0.0
    interrupted: bool = False
    gradient: float | None = None
    gap: float = math.inf
    penalties: tuple[float, float] | None = None
    metric: str = "plain"

    def __str__(self) -> str:
        return f"{self.solver}: {self.reason} after {self.passes:.0f} passes"


class Activations:
    """The activations of w₁'s term, centred, with what its preconditioner needs; problems of other ω̄ share them.

    Args:
        f: Of all samples of a store, (n, d).
        train: Samples to fit to, (m,).
        weight: A weight for each sample of the store, or None.

    Attributes:
        mean: Of the samples to fit to, (d,).
        centred: (n, d).
        variances: Of the samples to fit to along `axes`, (r,).
        axes: An orthonormal basis of their span, (d, r).
    """

    def __init__(self, f: Tensor, train: Tensor, weight: Tensor | None) -> None:
        share = _shares(train, weight, f.device)
        self.mean = (share @ f[train].double()).to(f)
        self.centred = f - self.mean
        scaled = self.centred[train].double() * share.sqrt()[:, None]
        wide = len(scaled) < scaled.shape[1]
        values, vectors = torch.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
        keep = values > values.max().clamp_min(0) * 1e-12
        values, vectors = values[keep], vectors[:, keep]
        self.variances = values.to(f)
        self.axes = (scaled.T @ vectors / values.sqrt() if wide else vectors).to(f)

    def step(self, gradient: Tensor, curvature: float, penalty: float) -> Tensor:
        """Return a gradient in w₁, (d, c), divided by the Hessian of a loss of this curvature, with a penalty.

        The gradient and w₁ lie in the span of the activations; what rounding adds to them does not come through.
        """
        scale = (self.variances[:, None] * curvature + penalty).clamp_min(1e-30)
        step: Tensor = self.axes @ (self.axes.T @ gradient / scale)
        return step


class Subspace:
    """The problem, and the directions found so far with their logits on all samples of the store.

    Args:
        features: The map Φ of ω̄.
        f: Activations of all samples of the store, of the same training samples and weights; None leaves w₁ out (mode
            `gradient`).
        objective: Targets, loss, and which samples are fitted to.
        start: Logits where the curvature is looked at, (n, c): those of a probe.
        generator: Draws signs for the preconditioner.
        metric: "plain" penalizes ‖w₂‖², "whitened" w₂ᵀ S w₂ with the preconditioner's factors at `start` as S
            (`KroneckerFactors.whitened`).
        factors: The preconditioner where it is known, as of an earlier solution; the features are then in the variables
            that w₂ is penalized in already. None: taken at `start`.

    Attributes:
        length: The mean squared length of a sample's gradient features, weighed by the curvature, as the factors have
            it. An estimate: problems that share penalties are given one.
        curvature: Of the loss in a logit at `start`, the mean.
    """

    def __init__(
        self,
        features: GradientFeatures,
        f: Activations | None,
        objective: Objective,
        *,
        start: Tensor,
        generator: torch.Generator,
        metric: str = "plain",
        factors: KroneckerFactors | None = None,
    ) -> None:
        self.features, self.f = features, f
        self.loss, self.y, self.train = objective.loss, objective.y, objective.train
        self.share = objective.share
        self._everything = torch.arange(len(features.store))
        curvature = self.loss.curvature(start[self.train].double())
        self.curvature = float((self.share[:, None] * curvature).sum(0).mean())
        self._generator = generator
        self.factors = factors or self._factors(start[self.train])
        self._fixed = metric == "whitened"  # other factors would have other axes than the metric
        if self._fixed and factors is None:
            change, self.factors = self.factors.whitened()
            self.features = features.changed(change)
        self.length = max(self.factors.trace, 1e-30)
        parameters = sum(value.numel() for value in features.linearization.theta2.values())
        free = available_memory(features.linearization.device)
        each = 16 * (parameters + features.omega.shape[1] * len(features.store))  # a quarter of what is free, at most
        self._most = int(min(_MOST_DIRECTIONS, max(_LEAST_DIRECTIONS, free // each)))
        self._w1: list[Tensor] = []
        self._w2: list[Weights] = []
        self._logits1: list[Tensor] = []
        self._logits2: list[Tensor] = []
        self._span: Span | None = None  # of the directions so far

    @property
    def unit(self) -> float:
        """The unit of λ₂: `length` over m."""
        return self.length / len(self.train)

    # ---- the span ---------------------------------------------------------------------------------------------------

    @property
    def _outputs(self) -> int:
        return self.features.omega.shape[1]

    @property
    def _known(self) -> list[Tensor]:
        return self._logits1 + self._logits2

    def add_w1(self, direction: Tensor) -> None:
        """Add a direction of w₁, (d, c)."""
        if self.f is None:
            return
        parts, _, _ = _orthonormal([direction], [[other] for other in self._w1])
        if parts:
            logits = self.f.centred @ parts[0]  # first, so that Ctrl-C leaves no direction without its logits
            self._span = None
            self._w1.append(parts[0])
            self._logits1.append(logits)

    def add_w2(self, direction: Weights) -> None:
        """Add a direction of w₂."""
        names = list(direction)
        known = [[other[name] for name in names] for other in self._w2]
        parts, _, _ = _orthonormal([direction[name] for name in names], known)
        if parts:
            new = dict(zip(names, parts, strict=True))
            logits = self.features.forward(new, self._everything)
            self._span = None
            self._w2.append(new)
            self._logits2.append(logits)

    def minimum(self, penalties: Penalties, start: Combination | None = None) -> Combination:
        """Return the minimum over the span for some penalties."""
        return self.minima([penalties], None if start is None else Combinations.of(start))[0]

    def minima(self, penalties: Sequence[Penalties], start: Combinations | None = None) -> Combinations:
        """Return the minima over the span for several penalties, which are found together."""
        ridges = torch.tensor([self._ridge(one) for one in penalties], dtype=torch.float64)
        if self._span is None:
            some = len(self.train) < len(self.y)
            known = [logits[self.train] if some else logits for logits in self._known]
            self._span = Span(known, self.y[self.train], self.loss, self.share, outputs=self._outputs)
        found = self._span.minima(ridges.reshape(len(penalties), -1), start)
        for one, objective in zip(penalties, found.objective.tolist(), strict=True):
            if not math.isfinite(objective):
                raise ConvergenceError(f"the objective became {objective} with {one}")
        return found

    def _ridge(self, penalties: Penalties) -> list[float]:
        return [penalties.lambda1] * len(self._w1) + [penalties.lambda2] * len(self._w2)

    def logits(self, point: Combination, rows: Tensor) -> Tensor:
        """Return the logits of some samples of the store, (m, c)."""
        if not self._known:
            return point.bias.expand(len(rows), -1)
        return point.logits(self._known, rows)

    def logits_of_all(self, points: Combinations, rows: Tensor) -> Tensor:
        """Return the logits of some samples of the store at several points, (m, c, q)."""
        return points.logits(self._known, rows)

    def weights(self, point: Combination) -> tuple[Tensor | None, Tensor, Weights]:
        """Return w₁ (None if it was left out), b, and w₂ in the units of θ₂."""
        k = len(self._w1)
        bias = point.bias
        w1: Tensor | None = None
        if self.f is not None:
            w1 = bias.new_zeros(self.f.centred.shape[1], len(bias))
            for factor, direction in zip(point.coefficients[:k].tolist(), self._w1, strict=True):
                w1.add_(direction, alpha=factor)
            bias = bias - self.f.mean.double() @ w1
        return w1, bias, self.features.natural(self.w2(point))

    def w2(self, point: Combination) -> Weights:
        """Return w₂ in the variables that it is penalized in."""
        total = self.features.zeros()
        for factor, direction in zip(point.coefficients[len(self._w1) :].tolist(), self._w2, strict=True):
            add_scaled(total, factor, direction)
        return total

    # ---- growing it -------------------------------------------------------------------------------------------------

    def grow(self, point: Combination, penalties: Penalties, plain: bool = False) -> tuple[float, float]:
        """Add the preconditioned gradients at the minimum over the span.

        Args:
            point: The minimum over the span.
            penalties: Those it is of.
            plain: Add the gradient in w₂ as it is. It lies in the span of the gradient features and w₂, which has as
                many dimensions as there are logits; the factors lead out of it, and lose their way where light
                penalties make the least of it count.

        Returns:
            What they promise at first order (the decrement), and how far the objective is above its minimum there, at
            most (see `Solution.gap`; the span's minimum has no gradient in b).
        """
        logits = self.logits(point, self.train)
        slope = self.share[:, None] * self.loss.slope(logits, self.y[self.train])
        slope = slope.float() if self.features.omega.dtype != torch.float64 else slope
        k = len(self._w1)
        gradient2 = self.features.transpose(slope, self.train)
        add_scaled(gradient2, penalties.lambda2, self.w2(point))
        step2 = self.factors.precondition(gradient2, max(penalties.lambda2, 1e-9 * self.factors.trace, 1e-30))
        promised = inner(gradient2, step2)
        above = 0.5 * inner(gradient2, gradient2) / penalties.lambda2 if penalties.lambda2 > 0 else math.inf
        if self.f is not None:
            gradient = self.f.centred[self.train].T @ slope.to(self.f.centred)
            for factor, direction in zip(point.coefficients[:k].tolist(), self._w1, strict=True):
                gradient.add_(direction, alpha=penalties.lambda1 * factor)
            step = self.f.step(gradient, self.curvature, penalties.lambda1)
            promised += float((gradient * step).sum())
            above += 0.5 * float(gradient.square().sum()) / penalties.lambda1 if penalties.lambda1 > 0 else math.inf
            self.add_w1(step)
        self.add_w2(gradient2 if plain else step2)
        if not math.isfinite(promised):
            raise ConvergenceError("the gradient is not finite: the features J(x) are too large for their precision")
        return promised, above

    def solve(
        self,
        penalties: Penalties,
        *,
        start: Combination | None = None,
        tolerance: float = 1e-2,
        gap: float | None = None,
        iterations: int = 40,
        report: Callable[[int], None] | None = None,
    ) -> tuple[Combination, Solution]:
        """Grow the span until the decrement is below `tolerance` times the objective, or for some iterations.

        After Ctrl-C the solution is the one of the last finished iteration.

        Args:
            penalties: λ₁ and λ₂.
            start: Where the minimum over the present span is looked for.
            tolerance: Of the decrement.
            gap: Instead of that, grow until the objective is at most this share above its minimum.
            iterations: At most.
            report: Told how many iterations are finished.
        """
        begun, passes = time.perf_counter(), self.features.passes
        solution = Solution("subspace", False, f"{iterations} iterations")
        point = self._fitting(start, penalties)
        try:
            for iteration in range(iterations):
                if iteration and iteration % _REFRESH == 0 and not self._fixed:
                    self.factors = self._factors(self.logits(point, self.train))
                if len(self._w2) >= self._most:
                    self._join(point)
                    point = self.minimum(penalties)
                before, there = (len(self._w1), len(self._w2)), point
                promised, above = self.grow(point, penalties, iteration >= _PLAIN_FROM and iteration % 2 == 1)
                solution.decrement = promised / max(abs(point.objective), 1e-30)
                point = self.minima([penalties], self._padded(Combinations.of(point), before))[0]
                solution.gap = relative_gap(above - (there.objective - point.objective), point.objective)
                solution.objective.append(point.objective)
                if report is not None:
                    report(len(solution.objective))
                solution.converged = solution.gap <= GAP
                if gap is None and solution.decrement <= tolerance:
                    verb = "converged" if solution.converged else "ended"
                    solution.reason = f"{verb} (decrement {solution.decrement:.1e}{_told(solution.gap)})"
                    break
                if gap is not None and solution.gap <= gap:
                    solution.reason = f"converged ({bound(solution.gap)})"
                    break
                if gap is not None and _stalled(solution.objective):
                    solution.reason = f"no further progress in this precision ({bound(solution.gap)})"
                    break
            else:
                if gap is not None:
                    solution.reason += f" ({bound(solution.gap)})"
        except KeyboardInterrupt:
            solution.interrupted = True
            solution.reason = f"interrupted after {len(solution.objective)} iterations"
            point = self._fitting(None, penalties)
        solution.passes = self.features.passes - passes
        solution.seconds = time.perf_counter() - begun
        return point, solution

    def _factors(self, logits: Tensor) -> KroneckerFactors:
        train, logits = self.train, logits.to(self.features.omega)
        weight = self.share * len(train)  # of mean one
        return estimate_factors(self.features, self.loss, logits, self.y[train], train, self._generator, weight)

    def _fitting(self, start: Combination | None, penalties: Penalties) -> Combination:
        known = len(self._known)
        return self.minimum(penalties, start if start is not None and len(start.coefficients) == known else None)

    def _padded(self, points: Combinations, before: tuple[int, int]) -> Combinations:
        """Return points of the span that had so many directions of w₁ and w₂ as some of the present span."""
        first, second = torch.split(points.coefficients, list(before), 1)
        first = torch.nn.functional.pad(first, (0, len(self._w1) - before[0]))
        second = torch.nn.functional.pad(second, (0, len(self._w2) - before[1]))
        return Combinations(torch.cat([first, second], 1), points.bias, points.objective)

    def _join(self, point: Combination) -> None:
        """Replace the directions of w₂ but the last few by the present solution."""
        names = list(self._w2[0])
        joined = self.w2(point)
        logits = torch.zeros_like(self._logits2[0])
        for factor, known in zip(point.coefficients[len(self._w1) :].tolist(), self._logits2, strict=True):
            logits.add_(known, alpha=factor)
        kept: list[tuple[Weights, Tensor]] = [
            (joined, logits),
            *zip(self._w2[-_KEPT:], self._logits2[-_KEPT:], strict=True),
        ]
        directions: list[Weights] = []
        logits2: list[Tensor] = []
        for direction, known in kept:
            others = [[other[name] for name in names] for other in directions]
            parts, length, products = _orthonormal([direction[name] for name in names], others)
            if parts:
                rest = known.clone()
                for product, other in zip(products, logits2, strict=True):
                    rest.add_(other, alpha=-product)
                directions.append(dict(zip(names, parts, strict=True)))
                logits2.append(rest / length)
        self._span, self._w2, self._logits2 = None, directions, logits2


def bound(gap: float) -> str:
    """Say how far the optimum may be."""
    return f"at most {100 * gap:.2g} % above the optimum" if gap < 1 else "how far from the optimum is not known"


def _told(gap: float) -> str:
    """Say the same where it says something."""
    return f", {bound(gap)}" if gap < 1 else ""


def _stalled(objective: list[float]) -> bool:
    """Whether the last iterations have led nowhere."""
    return len(objective) > _STALLED and objective[-_STALLED - 1] - objective[-1] <= _PROGRESS * abs(objective[-1])


def _shares(train: Tensor, weight: Tensor | None, device: torch.device) -> Tensor:
    """Return the share of each sample in the loss, (m,), in double precision."""
    share = torch.ones(len(train), dtype=torch.float64, device=device)
    if weight is not None:
        share = weight[train].to(share)
    return share / share.sum()


def _orthonormal(vector: list[Tensor], basis: list[list[Tensor]]) -> tuple[list[Tensor], float, list[float]]:
    """Subtract from a vector, given in parts, what lies in the span of an orthonormal basis; bring it to length one.

    Returns:
        The vector, or nothing where only rounding was left; its length before, and what was subtracted of the basis.
    """
    first = _length(vector)
    products = [0.0] * len(basis)
    if not (math.isfinite(first) and first > 0):
        return [], first, products
    vector = [part / first for part in vector]
    for _ in range(2):  # once more, for what rounding left
        for i, other in enumerate(basis):
            product = sum(float((a * b).sum()) for a, b in zip(vector, other, strict=True))
            vector = [a - product * b for a, b in zip(vector, other, strict=True)]
            products[i] += product * first
    length = _length(vector)
    if length < 1e3 * torch.finfo(vector[0].dtype).eps:
        return [], first * length, products
    return [part / length for part in vector], first * length, products


def _length(vector: list[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in vector))
