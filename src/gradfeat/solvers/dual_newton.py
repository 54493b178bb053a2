"""Newton's method in the samples' space: the same problem as in `gradfeat.solvers.dual`, for any convex loss.

    minimise  Σᵢ sᵢ loss(w₁ᵀ fᵢ + b + Φᵢ w₂, yᵢ) + λ₁/2 ‖w₁‖² + λ₂/2 ‖w₂‖²,      Σᵢ sᵢ = 1

By the representer theorem ``w₁ = Fᵀ a / λ₁`` and ``w₂ = Φᵀ a / λ₂`` for some a of n · c entries, so the logits are
``z = G a + b`` with ``G = F Fᵀ / λ₁ + Φ Φᵀ / λ₂``, and at the optimum a is minus the slope of the loss, ``a = -g(z)``.
With the loss's curvature W = L Lᵀ, ρ = -g - a, and M = L (1 + Lᵀ G L)⁻¹ Lᵀ = (W⁻¹ + G)⁻¹, Newton's step is

    d = (1 - M G) ρ - M E β,      (Eᵀ M E) β = Eᵀ (a + (1 - M G) ρ),

where β is the step of b and E adds it to every sample. No matrix but ``1 + Lᵀ G L``, whose eigenvalues are at least
one, is decomposed, so a singular kernel and a flat loss do no harm (Rasmussen & Williams 2006, Sec. 3.4). The step is
the primal one, so it descends the objective; it is halved until it does. The certificate is the norm of the objective's
gradient in (w₁, b, w₂), which the kernels know: ``‖Φᵀ ρ‖² + ‖Fᵀ ρ‖² + ‖Eᵀ g‖²``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.losses import Loss
from gradfeat.solvers.dual import LEAST, DualPoint, check_samples, relative_gap

_ITERATIONS, _HALVINGS = 100, 40
_FREE = 1e-7  # norm of the gradient in b that counts as none


@dataclass(frozen=True)
class NewtonPoint(DualPoint):
    """A solution, and how it was reached; `a` is minus the slope of the loss, (n, c).

    Attributes:
        gradient: Norm of the objective's gradient in (w₁, b, w₂), features centred, relative to the root mean squared
            length of a sample's features: what the loss's slopes would give if none cancelled another.
        iterations: Of Newton's method.
        converged: Whether the gradient fell below the tolerance.
    """

    gradient: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class DualProblem:
    """A problem in the samples' space, without its penalties.

    Attributes:
        kernel: ``Φ Φᵀ``, (n · c, n · c), of the gradient features.
        f: Activations, (n, d); None leaves w₁ out (mode `gradient`).
        y: Targets of the n samples.
        loss: A convex loss.
        share: Weight of each sample, (n,), above zero; brought to sum one.
        outputs: c; these samples may lack the last classes.

    Raises:
        DataError: Shapes that do not fit, or weights that are not above zero.
        ConvergenceError: The kernel is not finite.
    """

    kernel: Tensor
    f: Tensor | None
    y: Tensor
    loss: Loss
    share: Tensor
    outputs: int

    def __post_init__(self) -> None:
        check_samples(self.kernel, self.share, len(self.y), self.outputs)
        if not bool(torch.isfinite(self.kernel).all()):
            raise ConvergenceError("the tangent kernel is not finite")


def newton_dual(
    problem: DualProblem, w1: float, w2: float, *, tolerance: float = 1e-9, iterations: int = _ITERATIONS
) -> NewtonPoint:
    """Minimise the penalized mean loss to convergence, in double precision on the CPU.

    Args:
        problem: The samples and the loss.
        w1: λ₁; below a least one it is taken as that (see `gradfeat.solvers.dual.LEAST`).
        w2: λ₂, likewise; `DualPoint.w2_penalty` is the one in force.
        tolerance: Of `NewtonPoint.gradient`.
        iterations: At most.

    Raises:
        ConvergenceError: The objective left the finite numbers.
    """
    objective = _Objective(_Centred(problem), w1, w2)
    point = objective.start()
    slopes = objective.slopes(point)
    done = 0
    while not slopes.gradient <= tolerance and done < iterations and math.isfinite(point.objective):
        lower = objective.line_search(point, slopes, objective.newton_step(point, slopes))
        if lower is None:  # the end of the precision
            break
        point, done = lower, done + 1
        slopes = objective.slopes(point)
    if not point.finite():
        raise ConvergenceError(
            f"the objective became {point.objective} with penalties {objective.w1:.3g} and {objective.w2:.3g}"
        )
    return objective.solution(point, slopes, done, slopes.gradient <= tolerance)


def curvature_unit(kernel: Tensor, logits: Tensor, y: Tensor, loss: Loss, weight: Tensor) -> float:
    """Return the unit of λ₂: the mean squared length of a sample's gradient features, weighed by the curvature, over n.

    Args:
        kernel: ``Φ Φᵀ``, (n · c, n · c).
        logits: Where the curvature is taken, (n, c): those of a probe.
        y: Targets.
        loss: The task's loss.
        weight: Of each sample, (n,).
    """
    n, c = logits.shape
    blocks = torch.einsum("ikil->ikl", kernel.view(n, c, n, c))  # of each sample with itself
    curved = loss.curvature_product(logits.detach().cpu().double(), y.detach().cpu(), blocks.cpu())
    share = weight.detach().cpu().double() / float(weight.sum())
    return max(float(torch.einsum("i,ikk->", share, curved.double())) / n, 1e-30)


class _Centred:
    """A problem whose features are centred, so that b does not have to undo what all samples share.

    Attributes:
        y: Targets.
        share: Of sum one, (n,).
        phi_mean: Mean of the kernel's rows, (c, n, c).
        phi: Kernel of the centred gradient features, (n, c, n, c).
        f_mean: (d,), or None without activations.
        f: Centred activations, (n, d), or None.
        f_gram: ``F Fᵀ`` of the centred activations, (n, n); zeros without them.
        phi_length: Mean squared length of a sample's gradient features, not centred.
        f_length: The same of its activations.
    """

    def __init__(self, problem: DualProblem) -> None:
        n, c = len(problem.y), problem.outputs
        self.loss, self.y = problem.loss, problem.y.detach().cpu()
        share = problem.share.detach().cpu().double()
        self.share = share = share / share.sum()
        blocks = problem.kernel.detach().cpu().double().view(n, c, n, c)
        self.phi_length = float(share @ torch.einsum("ikik->i", blocks))
        self.phi_mean = mean = torch.einsum("i,iljk->ljk", share, blocks)
        phi = blocks - mean - mean.permute(1, 2, 0)[:, :, None]
        self.phi = phi + torch.einsum("ljk,j->lk", mean, share)[:, None]
        self.f: Tensor | None = None
        self.f_mean: Tensor | None = None
        self.f_gram, self.f_length = torch.zeros(n, n, dtype=torch.float64), 0.0
        if problem.f is not None:
            f = problem.f.detach().cpu().double()
            self.f_length = float(share @ f.square().sum(1))
            self.f_mean = share @ f
            self.f = f - self.f_mean
            self.f_gram = self.f @ self.f.T


@dataclass(frozen=True)
class _Iterate:
    """Where Newton's method is.

    Attributes:
        a: (n, c).
        b: Intercept of the centred features, (c,).
        logits: ``G a + b``, (n, c).
        pulled: ``G a``, (n, c).
        objective: Penalized mean loss.
    """

    a: Tensor
    b: Tensor
    logits: Tensor
    pulled: Tensor
    objective: float

    def finite(self) -> bool:
        return math.isfinite(self.objective) and bool(torch.isfinite(self.a).all() and torch.isfinite(self.b).all())


@dataclass(frozen=True)
class _Slopes:
    """The objective's slopes at an iterate.

    Attributes:
        rho: ``ρ = -g - a``, (n, c).
        gradient: See `NewtonPoint`.
        above: The objective is at most so far above its minimum.
    """

    rho: Tensor
    gradient: float
    above: float


@dataclass(frozen=True)
class _Step:
    """A step of a, (n, c), and of b, (c,), and ``G`` times that of a, (n, c)."""

    a: Tensor
    b: Tensor
    pulled: Tensor


class _Objective:
    """The penalized mean loss of (a, b) for one pair of penalties.

    Attributes:
        w1: The λ₁ in force.
        w2: The λ₂ in force.
    """

    def __init__(self, samples: _Centred, w1: float, w2: float) -> None:
        self._samples = samples
        # in single precision too: a is bounded by the slopes, so no residuals cancel
        self.w2 = max(w2, LEAST * max(samples.phi_length, 1e-30))
        self.w1 = w1 if samples.f is None else max(w1, LEAST * max(samples.f_length, 1e-30))
        gram = samples.phi / self.w2
        if samples.f is not None:
            eye = torch.eye(gram.shape[1], dtype=torch.float64)
            gram = gram + (samples.f_gram / self.w1)[:, None, :, None] * eye[:, None, :]
        self._gram = gram  # G, (n, c, n, c)
        self._scale = math.sqrt(samples.phi_length + samples.f_length + 1)

    def start(self) -> _Iterate:
        """Return zero."""
        n, c = self._gram.shape[:2]
        zeros = torch.zeros(n, c, dtype=torch.float64)
        return _Iterate(zeros, torch.zeros(c, dtype=torch.float64), zeros, zeros, self._loss(zeros))

    def slopes(self, point: _Iterate) -> _Slopes:
        """Return the gradient and the certificate."""
        samples = self._samples
        slope = samples.share[:, None] * samples.loss.slope(point.logits, samples.y)
        rho = -slope - point.a
        squared = float((rho * _times(samples.phi, rho)).sum()) + float((rho * (samples.f_gram @ rho)).sum())
        free = float(slope.sum(0).square().sum())  # of b, which has no penalty and must be at its minimum for a bound
        gradient = math.sqrt(max(squared, 0.0) + free) / self._scale
        above = 0.5 * float((rho * _times(self._gram, rho)).sum()) if free <= _FREE**2 else math.inf
        return _Slopes(rho, gradient, above)

    def newton_step(self, point: _Iterate, slopes: _Slopes) -> _Step:
        """Return Newton's step."""
        rho, (n, c) = slopes.rho, slopes.rho.shape
        inverse = _CurvatureInverse(self._gram, self._curvature_root(point.logits))
        left = rho - inverse.times(_times(self._gram, rho)[:, :, None])[:, :, 0]  # (1 - M G) ρ
        of_ones = inverse.times(torch.eye(c, dtype=torch.float64).expand(n, c, c))  # M E
        # singular: a softmax does not see a shift of all logits, nor a loss a label that is always ignored
        of_b = torch.linalg.pinv(of_ones.sum(0), hermitian=True, rtol=1e-13) @ (point.a + left).sum(0)
        of_a = left - of_ones @ of_b
        return _Step(of_a, of_b, _times(self._gram, of_a))

    def line_search(self, point: _Iterate, slopes: _Slopes, step: _Step) -> _Iterate | None:
        """Return the first of the step, its half, its quarter ... that lowers the objective enough; None if none does.

        The squared norms of w₁ and w₂ are known along the step, without another product with the kernel.
        """
        logits_step = step.pulled + step.b
        linear, quadratic = float((point.pulled * step.a).sum()), float((step.a * step.pulled).sum())
        norms_before, descent = float((point.a * point.pulled).sum()), float((slopes.rho * logits_step).sum())
        size = 1.0
        for _ in range(_HALVINGS):
            logits = point.logits + size * logits_step
            norms = norms_before + 2 * size * linear + size**2 * quadratic
            objective = self._loss(logits) + 0.5 * norms
            if objective <= point.objective - 1e-4 * size * descent + 4e-16 * abs(point.objective):
                a, b = point.a + size * step.a, point.b + size * step.b
                return _Iterate(a, b, logits, point.pulled + size * step.pulled, objective)
            size /= 2
        return None

    def solution(self, point: _Iterate, slopes: _Slopes, iterations: int, converged: bool) -> NewtonPoint:
        """Return an iterate as weights of the features as they were."""
        samples = self._samples
        w1: Tensor | None = None
        bias = point.b - torch.einsum("ljk,jk->l", samples.phi_mean, point.a) / self.w2
        if samples.f is not None and samples.f_mean is not None:
            w1 = samples.f.T @ point.a / self.w1
            bias = bias - samples.f_mean @ w1
        gap = relative_gap(slopes.above, point.objective)
        return NewtonPoint(
            point.a, w1, bias, self.w1, self.w2, point.objective, gap, slopes.gradient, iterations, converged
        )

    def _loss(self, logits: Tensor) -> float:
        return float(self._samples.share @ self._samples.loss.per_sample(logits, self._samples.y))

    def _curvature_root(self, logits: Tensor) -> Tensor:
        """Return L, (n, c, c), with ``L Lᵀ`` each sample's part of the mean loss's curvature."""
        samples = self._samples
        units = torch.eye(logits.shape[1], dtype=logits.dtype)
        columns = [samples.loss.curvature_root(logits, samples.y, unit.expand_as(logits)) for unit in units]
        return torch.stack(columns, 2) * samples.share.sqrt()[:, None, None]


class _CurvatureInverse:
    """``M = L (1 + Lᵀ G L)⁻¹ Lᵀ``, decomposed.

    Args:
        gram: G, (n, c, n, c).
        root: L, (n, c, c).
    """

    def __init__(self, gram: Tensor, root: Tensor) -> None:
        n, c = root.shape[:2]
        self._root = root
        inner = torch.einsum("iak,iajb,jbl->ikjl", root, gram, root).reshape(n * c, n * c)
        inner = (inner + inner.T) / 2
        inner.diagonal().add_(1)
        self._factor, failed = torch.linalg.cholesky_ex(inner)
        self._inverse: Tensor | None = None
        if int(failed):  # a kernel whose rounding is worth more than the penalty; no eigenvalue is truly below one
            values, vectors = torch.linalg.eigh(inner)
            self._inverse = vectors / values.clamp_min(1) @ vectors.T

    def times(self, value: Tensor) -> Tensor:
        """Return M times k columns, (n, c, k)."""
        n, c = self._root.shape[:2]
        turned = torch.einsum("iak,iab->ikb", self._root, value).reshape(n * c, -1)
        solved = torch.cholesky_solve(turned, self._factor) if self._inverse is None else self._inverse @ turned
        return torch.einsum("iak,ikb->iab", self._root, solved.view(n, c, -1))


def _times(matrix: Tensor, value: Tensor) -> Tensor:
    """Return a matrix (n, c, n, c) times (n, c)."""
    return torch.einsum("iljk,jk->il", matrix, value)
