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
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError, DataError
from gradfeat.losses import Loss
from gradfeat.solvers.dual import LEAST, DualPoint, relative_gap

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


def newton_dual(
    kernel: Tensor,
    f: Tensor | None,
    y: Tensor,
    loss: Loss,
    share: Tensor,
    w1: float,
    w2: float,
    *,
    outputs: int,
    tolerance: float = 1e-9,
    iterations: int = _ITERATIONS,
) -> NewtonPoint:
    """Minimise the penalized mean loss to convergence, in double precision on the CPU.

    Args:
        kernel: ``Φ Φᵀ``, (n · c, n · c), of the gradient features.
        f: Activations, (n, d); None leaves w₁ out (mode `gradient`).
        y: Targets of the n samples.
        loss: A convex loss.
        share: Weight of each sample, (n,), above zero; brought to sum one.
        w1: λ₁; below a least one it is taken as that (see `gradfeat.solvers.dual.LEAST`).
        w2: λ₂, likewise; `DualPoint.w2_penalty` is the one in force.
        outputs: c; these samples may lack the last classes.
        tolerance: Of `NewtonPoint.gradient`.
        iterations: At most.

    Raises:
        DataError: Shapes that do not fit, or weights that are not above zero.
        ConvergenceError: The kernel is not finite, or the objective left the finite numbers.
    """
    n, c = len(y), outputs
    if kernel.shape != (n * c, n * c):
        raise DataError(f"kernel must be of shape ({n * c}, {n * c}), samples × outputs, not {tuple(kernel.shape)}")
    if share.shape != (n,) or not bool((share > 0).all() and torch.isfinite(share).all()):
        raise DataError(f"share must hold {n} finite weights above zero")
    if not bool(torch.isfinite(kernel).all()):
        raise ConvergenceError("the tangent kernel is not finite")
    y, share = y.detach().cpu(), share.detach().cpu().double()
    share = share / share.sum()
    blocks = kernel.detach().cpu().double().view(n, c, n, c)
    squared = float(share @ torch.einsum("ikik->i", blocks))  # mean squared length of the gradient features
    w2 = max(w2, LEAST * max(squared, 1e-30))  # features of single precision too: a is bounded by the slopes
    mean = torch.einsum("i,iljk->ljk", share, blocks)  # (c, n, c)
    # centred, so that the intercept does not have to undo what all samples share
    phi = blocks - mean - mean.permute(1, 2, 0)[:, :, None]
    phi = phi + torch.einsum("ljk,j->lk", mean, share)[:, None]
    gram, centre, squares = phi / w2, None, torch.zeros(n, n, dtype=torch.float64)
    if f is not None:
        f = f.detach().cpu().double()
        length = float(share @ f.square().sum(1))
        squared, w1 = squared + length, max(w1, LEAST * max(length, 1e-30))
        centre = share @ f
        f = f - centre
        squares = f @ f.T
        gram = gram + (squares / w1)[:, None, :, None] * torch.eye(c, dtype=torch.float64)[:, None, :]
    scale = math.sqrt(squared + 1)

    def times(matrix: Tensor, value: Tensor) -> Tensor:
        return torch.einsum("iljk,jk->il", matrix, value)

    a, b = torch.zeros(n, c, dtype=torch.float64), torch.zeros(c, dtype=torch.float64)
    z, pulled = a.clone(), a.clone()  # logits, and G a
    best = float(share @ loss.per_sample(z, y))
    gradient, above, done, converged = math.inf, math.inf, 0, False
    for done in range(iterations + 1):
        slope = share[:, None] * loss.slope(z, y)
        rho = -slope - a
        squared = float((rho * times(phi, rho)).sum()) + float((rho * (squares @ rho)).sum())
        free = float(slope.sum(0).square().sum())  # of b, which has no penalty and must be at its minimum for a bound
        gradient = math.sqrt(max(squared, 0.0) + free) / scale
        above = 0.5 * float((rho * times(gram, rho)).sum()) if free <= _FREE**2 else math.inf
        converged = gradient <= tolerance
        if converged or done == iterations or not math.isfinite(best):
            break
        step, shift = _newton_step(gram, _root(z, y, loss, share), a, rho, times)
        moved = times(gram, step)
        # the objective along the step, without another product with the kernel
        linear, bent = float((pulled * step).sum()), float((step * moved).sum())
        own, descent = float((a * pulled).sum()), float((rho * (moved + shift)).sum())
        size = 1.0
        for _ in range(_HALVINGS):
            there = z + size * (moved + shift)
            norms = own + 2 * size * linear + size**2 * bent
            found = float(share @ loss.per_sample(there, y)) + 0.5 * norms
            if found <= best - 1e-4 * size * descent + 4e-16 * abs(best):
                break
            size /= 2
        else:  # the end of the precision
            break
        a, b, z, pulled, best = a + size * step, b + size * shift, there, pulled + size * moved, found
    if not (math.isfinite(best) and bool(torch.isfinite(a).all() and torch.isfinite(b).all())):
        raise ConvergenceError(f"the objective became {best} with penalties {w1:.3g} and {w2:.3g}")
    head: Tensor | None = None
    bias = b - torch.einsum("ljk,jk->l", mean, a) / w2
    if f is not None and centre is not None:
        head = f.T @ a / w1
        bias = bias - centre @ head
    return NewtonPoint(a, head, bias, w1, w2, best, relative_gap(above, best), gradient, done, converged)


def curvature_unit(kernel: Tensor, logits: Tensor, y: Tensor, loss: Loss, weight: Tensor) -> float:
    """Return the unit of λ₂: the mean squared length of a sample's gradient features, weighed by the curvature, over n.

    Args:
        kernel: ``Φ Φᵀ``, (n · c, n · c).
        logits: Where the curvature is looked at, (n, c): those of a probe.
        y: Targets.
        loss: The task's loss.
        weight: Of each sample, (n,).
    """
    n, c = logits.shape
    own = torch.einsum("ikil->ikl", kernel.view(n, c, n, c))
    bent = loss.curvature_product(logits.detach().cpu().double(), y.detach().cpu(), own.cpu())
    share = weight.detach().cpu().double() / float(weight.sum())
    return max(float(torch.einsum("i,ikk->", share, bent.double())) / n, 1e-30)


def _root(z: Tensor, y: Tensor, loss: Loss, share: Tensor) -> Tensor:
    """Return L, (n, c, c), with ``L Lᵀ`` each sample's part of the mean loss's curvature."""
    units = torch.eye(z.shape[1], dtype=z.dtype)
    columns = [loss.curvature_root(z, y, unit.expand_as(z)) for unit in units]
    return torch.stack(columns, 2) * share.sqrt()[:, None, None]


def _newton_step(
    gram: Tensor, root: Tensor, a: Tensor, rho: Tensor, times: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the steps of a, (n, c), and of b, (c,)."""
    n, c = a.shape
    inner = torch.einsum("iak,iajb,jbl->ikjl", root, gram, root).reshape(n * c, n * c)
    inner = (inner + inner.T) / 2
    inner.diagonal().add_(1)
    factor, failed = torch.linalg.cholesky_ex(inner)
    if int(failed):  # a kernel whose rounding is worth more than the penalty; no eigenvalue is truly below one
        values, vectors = torch.linalg.eigh(inner)
        inverse = vectors / values.clamp_min(1) @ vectors.T

    def m_times(value: Tensor) -> Tensor:  # M of (n, c, k)
        turned = torch.einsum("iak,iab->ikb", root, value).reshape(n * c, -1)
        solved = inverse @ turned if int(failed) else torch.cholesky_solve(turned, factor)
        return torch.einsum("iak,ikb->iab", root, solved.view(n, c, -1))

    left = rho - m_times(times(gram, rho)[:, :, None])[:, :, 0]
    of_ones = m_times(torch.eye(c, dtype=a.dtype).expand(n, c, c))
    # singular: a softmax does not see a shift of all logits, nor a loss a label that is always ignored
    shift = torch.linalg.pinv(of_ones.sum(0), hermitian=True, rtol=1e-13) @ (a + left).sum(0)
    return left - of_ones @ shift, shift
