"""Newton's method for a convex problem in few unknowns: logits that are a combination of known ones, and a bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.losses import Loss

_CHUNK = 1 << 24  # entries of the directions' logits that are looked at together
_ITERATIONS, _HALVINGS = 50, 30


@dataclass(frozen=True)
class Combination:
    """A minimum over a span.

    Attributes:
        coefficients: Of the known logits, (k,).
        bias: (c,).
        objective: Penalized mean loss.
    """

    coefficients: Tensor
    bias: Tensor
    objective: float

    def logits(self, known: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
        """Return the logits of all samples, or of some rows, (m, c), in double precision."""
        n = len(known[0]) if known else 0
        total = self.bias.expand(n if rows is None else len(rows), -1).clone()
        for factor, logits in zip(self.coefficients.tolist(), known, strict=True):
            total.add_(logits if rows is None else logits[rows], alpha=factor)
        return total


def minimise(
    known: Sequence[Tensor],
    y: Tensor,
    loss: Loss,
    share: Tensor,
    ridge: Tensor,
    *,
    outputs: int,
    start: Combination | None = None,
    tolerance: float = 1e-10,
) -> Combination:
    """Minimise ``Σᵢ shareᵢ loss(Σ_j a_j Z_j + b, y) + ½ Σ_j ridge_j a_j²`` over a and b, in double precision.

    Args:
        known: The logits Z_j, each (n, c).
        y: Targets.
        loss: A convex loss.
        share: Weight of each sample, (n,), of sum one.
        ridge: (k,), not negative.
        outputs: c; these samples may lack the last classes.
        start: Where to begin; of as many coefficients or fewer.
        tolerance: Newton decrement, relative to the objective, below which to stop.
    """
    c, k = outputs, len(known)
    device = share.device
    share, ridge = share.double(), ridge.to(device, torch.float64)
    x = torch.zeros(k + c, dtype=torch.float64, device=device)
    if start is not None:
        x[: len(start.coefficients)] = start.coefficients
        x[k:] = start.bias
    chunks = torch.arange(len(y)).split(max(1, _CHUNK // (c * max(k, 1))))

    def logits_at(point: Tensor) -> Tensor:
        return Combination(point[:k], point[k:], 0.0).logits(known) if known else point.expand(len(y), c).clone()

    def value(logits: Tensor, point: Tensor) -> float:
        losses = loss.per_sample(logits, y)
        return float((share * losses).sum() + 0.5 * ridge @ point[:k].square())

    logits = logits_at(x)
    best = value(logits, x)
    for _ in range(_ITERATIONS):
        gradient, hessian = torch.zeros_like(x), torch.zeros(k + c, k + c, dtype=torch.float64, device=device)
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad((share * loss.per_sample(leaf, y)).sum(), leaf)
        gradient[:k] = torch.stack([(z * slope).sum() for z in known]) if known else gradient[:0]
        gradient[k:] = slope.sum(0)
        gradient[:k] += ridge * x[:k]
        for rows in chunks:
            at, of, part = logits[rows].float(), y[rows], share[rows].float()
            hessian[k:, k:] += loss.curvature_sum(at, of, part).double()
            if known:
                joined = torch.stack([z[rows] for z in known], 2).float()
                bent = loss.curvature_product(at, of, joined) * part[:, None, None]
                hessian[:k, :k] += (joined.reshape(-1, k).T @ bent.reshape(-1, k)).double()
                hessian[:k, k:] += bent.sum(0).T.double()
        hessian[k:, :k] = hessian[:k, k:].T
        hessian.diagonal()[:k].add_(ridge)
        # directions may be of very different sizes: those of a small ω̄ are
        size = hessian.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        hessian /= size[:, None] * size
        hessian.diagonal().add_(1e-9)
        # on the CPU, whose driver takes matrices of any rank
        step = -torch.linalg.lstsq(hessian.cpu(), (gradient / size).cpu(), driver="gelsd").solution.to(device) / size
        decrement = float(-gradient @ step)
        if not decrement > tolerance * abs(best):
            break
        moved = logits_at(step)
        length = 1.0
        for _ in range(_HALVINGS):
            found = value(logits + length * moved, x + length * step)
            if found <= best - 1e-4 * length * decrement:
                break
            length /= 2
        else:  # the end of the precision
            break
        x, logits, best = x + length * step, logits + length * moved, found
    return Combination(x[:k], x[k:], best)
