"""Newton's method for convex problems in few unknowns: logits that are a combination of given ones, and a bias.

Problems that differ in their penalties alone are solved together. Then each product with the given logits, which are
what is large, serves all of them, and what a step costs beside its arithmetic is paid once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.losses import Loss


@dataclass(frozen=True)
class Limits:
    """How much memory the minima over a span take, in entries of tensors.

    Attributes:
        chunk: Of what is made of the samples that are looked at together: so many stay in a processor's cache.
        most_kept: Of the directions' logits that are kept side by side; more are put there again for each step.
        most_curved: Of Hessians that are kept; more problems than that are solved in groups.
    """

    chunk: int = 1 << 19
    most_kept: int = 1 << 27
    most_curved: int = 1 << 25


LIMITS = Limits()

_ITERATIONS, _HALVINGS = 100, 30
# an older Hessian is taken anew after a step that leaves more than `_SLOW` of the decrement, or that would lower the
# objective by less than `_ENOUGH` of it (half of it is what a quadratic loss falls by)
_SLOW, _ENOUGH = 0.01, 0.25
_PAIRED = 8  # so many directions for each problem are enough that products of two are not shared by the problems


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


@dataclass(frozen=True)
class Combinations:
    """Minima over one span, of q problems.

    Attributes:
        coefficients: Of the directions' logits, (q, k).
        bias: (q, c).
        objective: Penalized mean losses, (q,).
    """

    coefficients: Tensor
    bias: Tensor
    objective: Tensor

    def __len__(self) -> int:
        return len(self.objective)

    def __getitem__(self, i: int) -> Combination:
        return Combination(self.coefficients[i], self.bias[i], float(self.objective[i]))

    @staticmethod
    def of(one: Combination, count: int = 1) -> Combinations:
        """Return the same combination so many times."""
        objective = one.bias.new_full((count,), one.objective)
        return Combinations(one.coefficients.expand(count, -1), one.bias.expand(count, -1), objective)

    def logits(self, directions: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Return the logits of some rows of the directions, (m, c, q), in double precision."""
        bias = self.bias.T.expand(len(rows), -1, -1)
        if not directions:
            return bias.clone()
        joined = torch.stack([z[rows] for z in directions], 2).to(bias)
        return joined @ self.coefficients.T + bias


class Span:
    """The logits Z_j of some directions, and minima of a penalized loss over all ``Σ_j a_j Z_j + b``.

    Args:
        directions: The logits Z_j, each (n, c).
        y: Targets.
        loss: A convex loss.
        share: Weight of each sample, (n,), of sum one.
        outputs: c; these samples may lack the last classes.
        limits: Of memory.
    """

    def __init__(
        self,
        directions: Sequence[Tensor],
        y: Tensor,
        loss: Loss,
        share: Tensor,
        *,
        outputs: int,
        limits: Limits = LIMITS,
    ) -> None:
        self.directions, self.y, self.loss, self.outputs = list(directions), y, loss, outputs
        self.share, self._limits = share.double(), limits
        keep = len(y) * outputs * len(self.directions) <= limits.most_kept
        self._kept = self._joined(slice(None)) if keep else None

    def minimum(self, ridge: Tensor, start: Combination | None = None, *, tolerance: float = 1e-10) -> Combination:
        """Minimise ``Σᵢ shareᵢ loss(Σ_j a_j Z_j + b, y) + ½ Σ_j ridge_j a_j²`` over a and b, in double precision.

        Args:
            ridge: (k,), not negative.
            start: Where to begin; of as many coefficients or fewer.
            tolerance: Newton decrement, relative to the objective, below which to stop.
        """
        begun = None if start is None else Combinations.of(start)
        return self.minima(ridge[None], begun, tolerance=tolerance)[0]

    def minima(self, ridges: Tensor, start: Combinations | None = None, *, tolerance: float = 1e-10) -> Combinations:
        """Minimise the same for several penalties, (q, k).

        Each problem takes steps and ends by itself: those that have ended cost nothing more. A Hessian is kept while
        steps with it converge fast (Shamanskii's method); where all problems begin at zero they share the first.

        Args:
            ridges: (q, k), not negative.
            start: Where to begin, (q, k) or fewer coefficients; None: at zero.
            tolerance: Newton decrement, relative to the objective, below which a problem ends.

        Raises:
            ConvergenceError: An objective or a curvature is not finite.
        """
        ridges = ridges.to(self.share.device, torch.float64)
        k, c = len(self.directions), self.outputs
        x = torch.zeros(len(ridges), k + c, dtype=torch.float64, device=self.share.device)
        if start is not None:
            x[:, : start.coefficients.shape[1]] = start.coefficients
            x[:, k:] = start.bias
        values = torch.empty_like(x[:, 0])
        for group in torch.arange(len(x)).split(max(1, self._limits.most_curved // (k + c) ** 2)):
            search = _Search(self, ridges[group], x[group], tolerance, shared=start is None)
            x[group], values[group] = search.run()
        return Combinations(x[:, :k], x[:, k:], values)

    # ---- the objective of several problems -------------------------------------------------------------------------

    def values(self, x: Tensor, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objectives, (q,), and their gradients in (a, b), (q, k + c), at points (q, k + c)."""
        k, q = len(self.directions), len(x)
        value, gradient = x.new_zeros(q), torch.zeros_like(x)
        for rows, joined, logits in self._parts(x, 3 * q * self.outputs):
            losses, slope = self.loss.derivatives(logits, self.y[rows])
            value += self.share[rows] @ losses
            slope *= self.share[rows, None, None]
            gradient[:, :k] += slope.flatten(0, 1).T @ joined.flatten(0, 1)
            gradient[:, k:] += slope.sum(0).T
        gradient[:, :k] += ridges * x[:, :k]
        value += 0.5 * (ridges * x[:, :k].square()).sum(1)
        return value, gradient

    def hessians(self, x: Tensor) -> Tensor:
        """Return the loss's Hessians in (a, b), (q, k + c, k + c), at points (q, k + c).

        With ``Λ = diag(d) - r rᵀ`` of each sample, that is ``Σ Zᵀ diag(d) Z - (Zᵀ r)(Zᵀ r)ᵀ`` in a, and so on in b. The
        first is linear in d, so that products Z_j Z_l serve all problems.
        """
        k, c, q = len(self.directions), self.outputs, len(x)
        hessians = x.new_zeros(q, k + c, k + c)
        paired = q * _PAIRED >= k
        for rows, joined, logits in self._parts(x, 4 * q * c + q * k + (c * k * k if paired else c * k)):
            diagonal, root = self.loss.curvature_parts(logits, self.y[rows])
            share = self.share[rows, None, None]
            weighted = diagonal * share
            _add_products(hessians[:, :k, :k], joined.flatten(0, 1), weighted.flatten(0, 1), paired)
            hessians[:, :k, k:] += (weighted.permute(1, 2, 0) @ joined.transpose(0, 1)).permute(1, 2, 0)
            hessians[:, range(k, k + c), range(k, k + c)] += weighted.sum(0).T
            if root is not None:
                root = (root * share.sqrt()).transpose(1, 2)  # (m, q, c)
                both = torch.cat([root @ joined, root], 2).transpose(0, 1)  # (q, m, k + c)
                hessians -= _crossed(both, k)
        hessians[:, k:, :k] = hessians[:, :k, k:].transpose(1, 2)
        return hessians

    def _parts(self, x: Tensor, entries: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the samples in parts, with the directions' logits, (m, c, k), and those of some points, (m, c, q).

        Args:
            x: The points, (q, k + c).
            entries: Of a sample, beside the directions' logits, in what the caller makes of it.
        """
        k = len(self.directions)
        size = max(1, self._limits.chunk // (entries + self.outputs * k))
        for first in range(0, len(self.y), size):
            rows = slice(first, first + size)
            joined = self._joined(rows) if self._kept is None else self._kept[rows]
            joined = joined.double()
            yield rows, joined, joined @ x[:, :k].T + x[:, k:].T

    def _joined(self, rows: slice) -> Tensor:
        if not self.directions:
            return self.share.new_zeros(len(self.y[rows]), self.outputs, 0)
        return torch.stack([z[rows] for z in self.directions], 2)


def _add_products(total: Tensor, z: Tensor, weights: Tensor, paired: bool) -> None:
    """Add ``Σᵢ weightᵢ zᵢ zᵢᵀ`` to the totals, (q, k, k).

    Args:
        total: What is added to.
        z: (m, k).
        weights: Of each problem, (m, q).
        paired: Form zᵢ zᵢᵀ once for all problems.
    """
    if paired:
        total += (weights.T @ (z[:, :, None] * z[:, None]).flatten(1)).view_as(total)
    else:
        for part, weight in zip(total, weights.T, strict=True):
            part += (z * weight[:, None]).T @ z


def _crossed(both: Tensor, k: int) -> Tensor:
    """Return ``vᵀ v`` of each problem, (q, k + c, k + c), without the block below the first k; v is (q, m, k + c)."""
    product: Tensor = both.transpose(1, 2) @ both
    product[:, k:, :k] = 0
    return product


class _Search:
    """Newton's method for some problems at once.

    Args:
        span: The directions and the loss.
        ridges: (q, k).
        x: Where it begins, (q, k + c).
        tolerance: Of the decrement, relative to the objective.
        shared: Whether all begin at one point.
    """

    def __init__(self, span: Span, ridges: Tensor, x: Tensor, tolerance: float, *, shared: bool) -> None:
        self.span, self.ridges, self.x, self.tolerance = span, ridges, x, tolerance
        self.values, self.gradients = span.values(x, ridges)
        if not bool(torch.isfinite(self.values).all()):
            worst = float(self.values[~torch.isfinite(self.values)][0])
            raise ConvergenceError(f"the objective is {worst}: the features are too large for their precision")
        self.stale = torch.full_like(self.values, not shared, dtype=torch.bool)
        self.new = ~self.stale  # whether the Hessian was taken at this point
        size = x.shape[1]
        first = span.hessians(x[:1]) if shared else x.new_empty(1, size, size)
        self.hessians = first.repeat(len(x), 1, 1)
        self.before = torch.full_like(self.values, math.inf)  # the last decrements

    def run(self) -> tuple[Tensor, Tensor]:
        """Return the minima, (q, k + c), and the objectives there, (q,)."""
        active = torch.arange(len(self.x), device=self.x.device)
        for _ in range(_ITERATIONS):
            self._renew(active[self.stale[active]])
            steps, decrements = self._steps(active)
            slow = ~(self.new[active] | ((decrements >= 0) & (decrements <= _SLOW * self.before[active])))
            if bool(slow.any()):
                self._renew(active[slow])
                steps[slow], decrements[slow] = self._steps(active[slow])
            going = decrements > self.tolerance * self.values[active].abs()
            active, steps, decrements = active[going], steps[going], decrements[going]
            if not len(active):
                break
            active = active[self._moved(active, steps, decrements)]
        return self.x, self.values

    def _renew(self, some: Tensor) -> None:
        """Take the Hessians of some problems where they are."""
        if len(some):
            self.hessians[some] = self.span.hessians(self.x[some])
            self.stale[some], self.new[some] = False, True

    def _moved(self, active: Tensor, steps: Tensor, decrements: Tensor) -> Tensor:
        """Move along the steps as far as the objectives fall; return which problems can go on, a mask."""
        new = self.new[active]
        enough = torch.where(new, 1e-4, _ENOUGH)
        goes_on = torch.ones_like(new)
        trying = torch.arange(len(active), device=active.device)
        length = 1.0
        for _ in range(_HALVINGS):
            some = active[trying]
            x = self.x[some] + length * steps[trying]
            values, gradients = self.span.values(x, self.ridges[some])
            low = values <= self.values[some] - enough[trying] * length * decrements[trying]
            moved = some[low]
            self.x[moved], self.values[moved], self.gradients[moved] = x[low], values[low], gradients[low]
            if length < 1:  # the curvature changes along the step
                self.stale[moved] = True
            trying = trying[~low]
            self.stale[active[trying[~new[trying]]]] = True  # the older Hessian's step is not gone, and it is renewed
            trying = trying[new[trying]]
            if not len(trying):
                break
            length /= 2
        goes_on[trying] = False  # the end of the precision
        self.new[active] = False
        self.before[active] = decrements
        return goes_on

    def _steps(self, some: Tensor) -> tuple[Tensor, Tensor]:
        """Return Newton's steps with the Hessians that are kept, (q, k + c), and their decrements, (q,)."""
        ridges, gradients, hessians = self.ridges[some], self.gradients[some], self.hessians[some]
        k = ridges.shape[1]
        diagonal = hessians.diagonal(dim1=1, dim2=2)
        diagonal[:, :k] += ridges
        # what rounding may leave of p (1 - p) where all probabilities are 0 or 1
        diagonal[:, k:] += torch.finfo(torch.float32).eps
        # directions may be of very different sizes: those of a small ω̄ are
        size = diagonal.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        hessians /= size[:, :, None] * size[:, None]
        hessians.diagonal(dim1=1, dim2=2).add_(1e-9)
        hessians, scaled = hessians.cpu(), (gradients / size).cpu()[:, :, None]
        if not bool(torch.isfinite(hessians).all() and torch.isfinite(scaled).all()):
            raise ConvergenceError("the curvature is not finite: the features are too large for their precision")
        roots, failed = torch.linalg.cholesky_ex(hessians)
        solved = torch.cholesky_solve(scaled, roots)
        for i in failed.nonzero()[:, 0].tolist():  # by rounding; on the CPU, whose driver takes matrices of any rank
            solved[i] = torch.linalg.lstsq(hessians[i], scaled[i], driver="gelsd").solution
        steps = -solved[:, :, 0].to(size.device) / size
        return steps, -(gradients * steps).sum(1)
