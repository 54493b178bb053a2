"""Newton's method for a convex problem in few unknowns: logits that are a combination of given ones, and a bias."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.losses import Loss

CHUNK = 1 << 20
"""Entries of the directions' logits that are looked at together: so many stay in a processor's cache."""

MOST_KEPT = 1 << 27
"""Entries that are kept side by side; more are put there again for each step."""

_ITERATIONS, _HALVINGS = 100, 30
# an older Hessian is taken anew after a step that leaves more than `_SLOW` of the decrement, or that would lower the
# objective by less than `_ENOUGH` of it (half of it is what a quadratic loss falls by)
_SLOW, _ENOUGH = 0.1, 0.25


@dataclass(frozen=True)
class Combination:
    """A minimum over a span.

    Attributes:
        coefficients: Of the directions' logits, (k,).
        bias: (c,).
        objective: Penalized mean loss.
    """

    coefficients: Tensor
    bias: Tensor
    objective: float

    def logits(self, directions: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
        """Return the logits of all samples, or of some rows, (m, c), in double precision.

        Args:
            directions: The logits Z_j of each direction, (n, c).
            rows: Indices of samples, (m,); None takes all.
        """
        n = len(directions[0]) if directions else 0
        total = self.bias.expand(n if rows is None else len(rows), -1).clone()
        for factor, logits in zip(self.coefficients.tolist(), directions, strict=True):
            total.add_(logits if rows is None else logits[rows], alpha=factor)
        return total


class Span:
    """The logits Z_j of some directions, and the minimum of a penalized loss over all ``Σ_j a_j Z_j + b``.

    The loss's Hessian does not depend on the penalties, and changes little between neighbouring ones. So it is kept,
    and taken anew only where steps with it do not converge fast (Shamanskii's method).

    Args:
        directions: The logits Z_j, each (n, c).
        y: Targets.
        loss: A convex loss.
        share: Weight of each sample, (n,), of sum one.
        outputs: c; these samples may lack the last classes.
        chunk: Entries of the logits Z_j that are looked at together.
        most_kept: Entries up to which they are kept side by side between steps.
    """

    def __init__(
        self,
        directions: Sequence[Tensor],
        y: Tensor,
        loss: Loss,
        share: Tensor,
        *,
        outputs: int,
        chunk: int = CHUNK,
        most_kept: int = MOST_KEPT,
    ) -> None:
        self.directions, self.y, self.loss, self.share, self.outputs = (
            list(directions),
            y,
            loss,
            share.double(),
            outputs,
        )
        width = outputs * max(len(self.directions), 1)
        size = max(1, chunk // width)
        self._chunks = [slice(first, first + size) for first in range(0, len(y), size)]
        keep = len(y) * width <= most_kept
        self._kept = [self._joined(rows) for rows in self._chunks] if keep else None
        self._hessian: Tensor | None = None

    def minimum(self, ridge: Tensor, start: Combination | None = None, *, tolerance: float = 1e-10) -> Combination:
        """Minimise ``Σᵢ shareᵢ loss(Σ_j a_j Z_j + b, y) + ½ Σ_j ridge_j a_j²`` over a and b, in double precision.

        Args:
            ridge: (k,), not negative.
            start: Where to begin; of as many coefficients or fewer.
            tolerance: Newton decrement, relative to the objective, below which to stop.
        """
        k, share = len(self.directions), self.share
        ridge = ridge.to(share.device, torch.float64)
        x = torch.zeros(k + self.outputs, dtype=torch.float64, device=share.device)
        if start is None:
            self._hessian = None  # that of another point, where the curvature may be far less
        else:
            x[: len(start.coefficients)] = start.coefficients
            x[k:] = start.bias
        logits = self._logits(x)
        best = self._value(logits, x, ridge)
        if not math.isfinite(best):
            raise ConvergenceError(f"the objective is {best}: the features are too large for their precision")
        before = math.inf  # the last decrement
        for _ in range(_ITERATIONS):
            gradient = self._gradient(logits)
            gradient[:k] += ridge * x[:k]
            new = self._hessian is None  # so that it is taken at this point
            step, decrement = self._step(gradient, ridge, logits)
            if not new and not 0 <= decrement <= _SLOW * before:
                self._hessian, new = None, True
                step, decrement = self._step(gradient, ridge, logits)
            if not decrement > tolerance * abs(best):
                break
            logits_step = self._logits(step)
            for halvings in range(_HALVINGS if new else 1):
                length = 0.5**halvings
                value = self._value(logits + length * logits_step, x + length * step, ridge)
                if value <= best - (1e-4 if new else _ENOUGH) * length * decrement:
                    x, logits, best = x + length * step, logits + length * logits_step, value
                    break
            else:
                if new:  # the end of the precision
                    break
                length = 0.0
            if length < 1:
                self._hessian = None  # the curvature changes along the step
            before = decrement
        return Combination(x[:k], x[k:], best)

    def _step(self, gradient: Tensor, ridge: Tensor, logits: Tensor) -> tuple[Tensor, float]:
        """Return Newton's step with the Hessian that is kept, or is taken at these logits, and its decrement."""
        if self._hessian is None:
            self._hessian = self._hessian_at(logits)
        hessian = self._hessian.clone()
        hessian.diagonal()[: len(ridge)].add_(ridge)
        # what single precision may leave of p (1 - p) where all probabilities are 0 or 1
        hessian.diagonal()[len(ridge) :].add_(torch.finfo(torch.float32).eps)
        # directions may be of very different sizes: those of a small ω̄ are
        size = hessian.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        hessian /= size[:, None] * size
        hessian.diagonal().add_(1e-9)
        hessian, scaled = hessian.cpu(), (gradient / size).cpu()
        if not bool(torch.isfinite(hessian).all() and torch.isfinite(scaled).all()):
            raise ConvergenceError("the curvature is not finite: the features are too large for their precision")
        root, failed = torch.linalg.cholesky_ex(hessian)
        if failed:  # by rounding; on the CPU, whose driver takes matrices of any rank
            solved = torch.linalg.lstsq(hessian, scaled, driver="gelsd").solution
        else:
            solved = torch.cholesky_solve(scaled[:, None], root)[:, 0]
        step = -solved.to(size.device) / size
        return step, float(-gradient @ step)

    def _hessian_at(self, logits: Tensor) -> Tensor:
        """Return the loss's Hessian in (a, b), (k + c, k + c)."""
        k, c = len(self.directions), self.outputs
        hessian = torch.zeros(k + c, k + c, dtype=torch.float64, device=self.share.device)
        for rows, joined in self._parts():
            z, y, share = logits[rows].float(), self.y[rows], self.share[rows].float()
            hessian[k:, k:] += self.loss.curvature_sum(z, y, share).double()
            joined = joined.float()
            curved = self.loss.curvature_product(z, y, joined) * share[:, None, None]
            hessian[:k, :k] += (joined.flatten(0, 1).T @ curved.flatten(0, 1)).double()
            hessian[:k, k:] += curved.sum(0).T.double()
        hessian[k:, :k] = hessian[:k, k:].T
        return hessian

    def _gradient(self, logits: Tensor) -> Tensor:
        """Return the loss's gradient in (a, b), (k + c,)."""
        k = len(self.directions)
        slope = self.share[:, None] * self.loss.slope(logits, self.y)
        total = slope.new_zeros(k + self.outputs)
        total[k:] = slope.sum(0)
        for rows, joined in self._parts():
            total[:k] += (joined.flatten(0, 1).T @ slope[rows].to(joined).flatten()).double()
        return total

    def _logits(self, x: Tensor) -> Tensor:
        k = len(self.directions)
        if not k:
            return x.expand(len(self.y), self.outputs).clone()
        return Combination(x[:k], x[k:], 0.0).logits(self.directions)

    def _value(self, logits: Tensor, x: Tensor, ridge: Tensor) -> float:
        losses = self.loss.per_sample(logits, self.y)
        return float((self.share * losses).sum() + 0.5 * ridge @ x[: len(ridge)].square())

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the samples in parts, with the directions' logits side by side, (m, c, k)."""
        yield from zip(self._chunks, self._kept or map(self._joined, self._chunks), strict=True)

    def _joined(self, rows: slice) -> Tensor:
        if not self.directions:
            return self.share.new_zeros(len(self.y[rows]), self.outputs, 0)
        return torch.stack([z[rows] for z in self.directions], 2)
