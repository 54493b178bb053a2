"""What only a linear model can answer, of a fit: what each sample does to the model, and how sure it is.

The numerics are `gradfeat.solvers.leverage` and `gradfeat.solvers.coordinates`; here they meet a problem and a fitted
model. ω̄ has seen every sample too. So leaving one out moves ω̄ as well, by the probe's own leave-one-out (step 2), and
that moves the logits ``w₁ᵀf + b + ω̄ᵀ J w₂`` twice: at once, and by the gradient features ω̄ᵀJ of the other samples,
whose optimum w₂ is another one then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradfeat.fit.head_axes import HeadAxes
from gradfeat.fit.predict import store_logits
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Linear
from gradfeat.losses import CrossEntropy, MultiLabelLogistic
from gradfeat.model import GradientFeatureModel
from gradfeat.samples import SampleStore
from gradfeat.solvers.coordinates import MOST, Coordinates, Projection
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.leverage import Hessian, Rows, remove_each
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Penalties

SHIFTS = 2
"""Directions of ω̄'s changes along which the gradient features' own change is carried to w₂."""

_JUDGES = 256  # samples that penalties are matched on
_MOVES = 1 << 23  # numbers of moves at a time
_DECADES, _HALVINGS = 4.0, 9


@dataclass(frozen=True)
class OmegaChange:
    """The change of ω̄ without each sample.

    Attributes:
        along: Along the principal axes, (n, r, c).
        left: What is left of each row's activations, times this, is the rest, (V · n, c).
        head: In whose units what is left is.
    """

    along: Tensor
    left: Tensor
    head: HeadAxes


@dataclass(frozen=True)
class Removals:
    """What leaving out each sample does.

    Attributes:
        half: ``H^½ δθ``, (n, size).
        moves: Moves of the sample's own logits, (n, V · c).
        omega: The change of ω̄; None where it is kept.
    """

    half: Tensor
    moves: Tensor
    omega: OmegaChange | None


class Answers:
    """Answers of a fitted linear model about the samples that it was fitted to, and others.

    Args:
        problem: What it was fitted to, at the θ̄₂ of the model.
        linear: What was fitted.
        most: Axes of gradient features that are kept, at most.

    Attributes:
        logits: Of the samples, (V · n, c).
        hessian: At them.
        penalties: λ₁ and λ₂ in force (see `Linear.held_out`).
    """

    def __init__(self, problem: Problem, linear: Linear, most: int = MOST) -> None:
        self._problem, self._linear = problem, linear
        self._n, self._views, self._c = problem.n, problem.views, problem.outputs
        self._gradients = _Gradients.of(linear, most)
        share = torch.ones(len(problem.store)) if problem.weight is None else problem.weight.cpu()
        self._share = share.double() / share.double().sum()
        self.logits = store_logits(linear.model, problem.store).double().cpu()
        self._y, self._loss = problem.y.cpu(), problem.loss
        axes = HeadAxes.of(problem.store.features, problem.weight, self._c)
        self._head = axes.known(self._curvature(self.logits) / max(linear.penalties.lambda1, 1e-30))
        self._rows = self.rows(problem.store)
        self._pull = self._share[:, None] * self._loss.slope(self.logits, self._y)
        self.penalties = linear.penalties
        self.hessian = Hessian(self._rows, self.logits, self._y, self._loss, self._share, linear.penalties)
        if linear.held_out is not None:
            self._match(linear.held_out)

    def _curvature(self, logits: Tensor) -> float:
        """Return the loss's curvature in a logit, the mean over samples and outputs."""
        return float((self._share @ self._loss.curvature(logits)).mean())

    def rows(self, store: SampleStore) -> Rows:
        """Return the features of samples, of the training data or others."""
        f = store.features
        gradients = self._no_gradients(len(f))
        if self._gradients is not None:
            gradients = self._gradients.coordinates(store)
        if self._linear.model.mode == "gradient":
            return Rows(f.new_zeros(len(f), 0).cpu(), f.new_zeros(len(f)).cpu(), gradients)
        return self._head.rows(f, gradients)

    def _no_gradients(self, n: int) -> Coordinates:
        f, c = self._problem.store.features, self._c
        dtype = torch.promote_types(f.dtype, torch.float32)
        return Coordinates(torch.zeros(n, c, 0, dtype=dtype), torch.zeros(n, c, c, dtype=dtype))

    def _match(self, held_out: float) -> None:
        """Take the multiple of the penalties at which the loss without each sample is that on held-out samples."""
        some = torch.randperm(self._n, generator=torch.Generator().manual_seed(0))[:_JUDGES]
        low, high = -_DECADES, _DECADES
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            self.penalties = self._linear.penalties.times(10**middle)
            self.hessian = self.hessian.with_penalties(self.penalties)
            moves = self._own_moves(some)
            share = self._share[some] / self._share[some].sum()
            loss = float(share @ self._loss.per_sample(self.logits[some] + moves, self._y[some]))
            low, high = (middle, high) if not loss <= held_out else (low, middle)

    def _own_moves(self, some: Tensor) -> Tensor:
        """Return the moves of some samples' logits without them, ω̄ kept, (m, c)."""
        rows = self._problem.all_views(some)
        part = self._rows[rows]
        whitened = _by_sample(self.hessian.whitened(part), self._views)
        pull = _by_sample(self._pull[rows][:, :, None], self._views)
        root, rest = (_diagonal(value, self._views) for value in (self.hessian.root[rows], self.hessian.rest(part)))
        removed = remove_each(whitened, root, (whitened.double().mT @ pull)[:, :, 0])
        return (removed.own + (rest.double() @ pull)[:, :, 0])[:, : self._c]

    # ---- each sample left out ---------------------------------------------------------------------------------------

    @cached_property
    def removals(self) -> Removals:
        """What leaving out each sample does; its versions are left out together."""
        whitened = _by_sample(self.hessian.whitened(self._rows), self._views)
        root = _diagonal(self.hessian.root, self._views).double()
        pull = _by_sample(self._pull[:, :, None], self._views)
        rest = _diagonal(self.hessian.rest(self._rows), self._views).double()
        change, direct, force = None, torch.zeros_like(pull), pull
        against = torch.zeros(self._n, self._rows.size, dtype=torch.float64)
        if self._linear.omega is not None and self._gradients is not None:
            change = self._omega_without(self._linear.omega)
            along, left = change.head.split(self._gradients.tangents(self._linear.model, self._problem.store))
            direct = self._direct(change, along, left)[:, :, None]
            force = pull + root @ (root.mT @ direct)
            against = self._against(change, along, self._gradients)
        half = (whitened.double().mT @ force)[:, :, 0] - self.hessian.half_solve(against.T).T
        removed = remove_each(whitened, root, half)
        moves = removed.own + (direct + rest @ pull)[:, :, 0]
        return Removals(removed.half, moves, change)

    def leave_one_out(self) -> Tensor:
        """Return the logits of each sample, of its first version, by the model without it, (n, c)."""
        return self.logits[: self._n] + self.removals.moves[:, : self._c]

    def left_out_covariances(self) -> Tensor:
        """Return what `covariances` would of each sample, of its first version, by the model without it, (n, c, c)."""
        whitened = _by_sample(self.hessian.whitened(self._rows), self._views).double()
        left = _diagonal(self.hessian.root, self._views).double().mT @ whitened
        inner = -(left @ left.mT)
        inner.diagonal(dim1=1, dim2=2).add_(1 + 1e-9)
        first = whitened[:, : self._c]
        turned = first @ left.mT
        total = first @ first.mT + turned @ torch.linalg.solve(inner, turned.mT)
        return self._of_a_sum(total + self.hessian.rest(self._rows[: self._n]).double())

    def _direct(self, change: OmegaChange, along: Tensor, left: Tensor) -> Tensor:
        """Return what the change of ω̄ adds to a sample's own logits at once, (n, V · c)."""
        f_left = change.head.centred(self._problem.store.features)[1]
        parts = []
        for view in range(self._views):
            rows = slice(view * self._n, (view + 1) * self._n)
            part = torch.einsum("nrc,nr->nc", change.along, along[rows])
            for other in range(self._views):
                others = slice(other * self._n, (other + 1) * self._n)
                part = part + (f_left[others] * left[rows]).sum(1)[:, None] * change.left[others]
            parts.append(part)
        return torch.cat(parts, 1)

    def _against(self, change: OmegaChange, along: Tensor, gradients: _Gradients) -> Tensor:
        """Return what the change of ω̄ does to the slope of θ by all other samples, (n, size).

        Their logits move, ``Σⱼ Xⱼᵀ sⱼΛⱼ δω̄ᵀ J w₂`` (the sample's own part is in its force), and so do their gradient
        features, ``Σⱼ Jⱼᵀ δω̄ sⱼgⱼ``: the latter along the directions that most of the changes are in.
        """
        size, seen = self._rows.size, self.hessian.root.double()
        moved = torch.zeros(size, change.along[0].numel(), dtype=torch.float64)
        for part in torch.arange(len(self._rows)).split(256):
            left = self._rows[part].times(self.hessian.root[part]).double()
            right = along[part][:, None, :, None] * seen[part].mT[:, :, None, :]
            moved += left.flatten(0, 1).T @ right.flatten(2).flatten(0, 1)
        of_w2 = slice(size - gradients.projection.size, size)
        moved[of_w2] += self._shifted(change.along, gradients)
        result = change.along.flatten(1) @ moved.T
        result[:, of_w2] -= self._own_shift(change, gradients)
        return result

    def _omega_without(self, omega: Probe) -> OmegaChange:
        """Return the change of ω̄ without each sample."""
        f, c = self._problem.store.features.cpu(), self._c
        logits = f.double() @ omega.omega.cpu().double() + omega.bias.cpu().double()
        head = self._head.known(self._curvature(logits) / max(omega.penalty, 1e-30))
        rows = head.rows(f, self._no_gradients(len(f)))
        hessian = Hessian(rows, logits, self._y, self._loss, self._share, Penalties(omega.penalty, 1.0))
        pull = self._share[:, None] * self._loss.slope(logits, self._y)
        whitened = _by_sample(hessian.whitened(rows), self._views)
        half = (whitened.double().mT @ _by_sample(pull[:, :, None], self._views))[:, :, 0]
        moved = hessian.other_half(remove_each(whitened, _diagonal(hessian.root, self._views), half).half.T).T
        r = self._head.size
        return OmegaChange(moved[:, : r * c].reshape(-1, r, c), pull / max(omega.penalty, 1e-30), head)

    def _shifted(self, changes: Tensor, gradients: _Gradients) -> Tensor:
        """Return ``Σⱼ Jⱼᵀ δω̄ sⱼgⱼ`` along the kept axes, for δω̄ along the principal axes, (k, r · c), of low rank."""
        n, r, c = changes.shape
        directions = torch.linalg.svd(changes.reshape(n, -1), full_matrices=False)[2]
        result = torch.zeros(gradients.projection.size, r * c, dtype=torch.float64)
        features, everything = gradients.features, torch.arange(len(self._problem.store))
        for direction in directions[:SHIFTS]:
            delta = (self._head.axes @ direction.view(r, c)).to(features.omega)
            pulled = features.of(delta).transpose(self._pull, everything)
            result += gradients.projection.along(pulled).cpu().double()[:, None] * direction
        return result

    def _own_shift(self, change: OmegaChange, gradients: _Gradients) -> Tensor:
        """Return each sample's own part of that, (n, k)."""
        moved = torch.einsum("dr,nrc->ndc", self._head.axes, change.along).repeat(self._views, 1, 1)
        own = gradients.projection.of_each(gradients.features, (moved @ self._pull[:, :, None])[:, :, 0])
        return own.view(self._views, self._n, -1).sum(0)

    # ---- other samples ----------------------------------------------------------------------------------------------

    def logits_of(self, store: SampleStore) -> Tensor:
        """Return the logits of samples, (m, c), in double precision."""
        return store_logits(self._linear.model, store).double().cpu()

    def covariances(self, rows: Rows) -> Tensor:
        """Return the covariance of samples' logits, (m, c, c): the inverse Hessian's, over n, in double precision.

        With sᵢ the samples' shares of a mean loss, H is 1/n of that of their sum, and so is the posterior's precision
        (Laplace's approximation, exact for a squared loss of unit variance). A softmax does not see a shift of all
        logits: its covariances are of logits less their mean. The logistic loss is a mean over labels, and so is H.
        """
        return self._of_a_sum(self.hessian.covariances(rows) + self.hessian.rest(rows))

    def _of_a_sum(self, covariances: Tensor) -> Tensor:
        n = float(1 / self._share.view(self._views, -1).sum(0).square().sum())  # versions of a sample are one
        if self._loss.name == MultiLabelLogistic.name:
            n *= self._c
        found = covariances.double() / n
        if self._loss.name == CrossEntropy.name:
            found = found - found.mean(1, keepdim=True)
            found = found - found.mean(2, keepdim=True)
        return found

    def moves(self, store: SampleStore, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
        """Yield how leaving out each training sample moves samples' logits, (part, n, c), for a part of them each time.

        Args:
            store: The samples.
            rows: Their features.
        """
        removals, (n, c) = self.removals, (self._n, self._c)
        of_omega = self._of_omega(store)
        step = max(1, _MOVES // (n * c))
        for first in range(0, len(rows), step):
            part = slice(first, min(first + step, len(rows)))
            whitened = self.hessian.whitened(rows[part]).double()
            total = (whitened.flatten(0, 1) @ removals.half.T).view(-1, c, n).mT
            if of_omega is not None:
                total = total + torch.einsum("mr,nrc->mnc", of_omega[0][part], of_omega[1])
            yield part, total

    def influence(self, store: SampleStore, rows: Rows, direction: Tensor) -> Tensor:
        """Return how leaving out each training sample moves a combination of samples' logits, (m, n).

        Args:
            store: The samples.
            rows: Their features.
            direction: Of the logits, (m, c).
        """
        turned = (self.hessian.whitened(rows).double().mT @ direction.double()[:, :, None])[:, :, 0]
        total = turned @ self.removals.half.T
        of_omega = self._of_omega(store)
        if of_omega is not None:
            total += torch.einsum("mr,mc,nrc->mn", of_omega[0], direction.double(), of_omega[1])
        return total

    def _of_omega(self, store: SampleStore) -> tuple[Tensor, Tensor] | None:
        """Return J w₂ of samples, (m, r), and the changes of ω̄, (n, r, c), along the axes; None if ω̄ stays."""
        change = self.removals.omega
        if change is None or self._gradients is None:
            return None
        return self._head.split(self._gradients.tangents(self._linear.model, store))[0], change.along


@dataclass(frozen=True)
class _Gradients:
    """The gradient features of a model: their map, and the axes along which they are seen."""

    features: GradientFeatures
    projection: Projection

    @staticmethod
    def of(linear: Linear, most: int) -> _Gradients | None:
        """Return those of a model; None of one that has no gradient term."""
        if linear.features is None or linear.factors is None:
            return None
        return _Gradients(linear.features, Projection(linear.features, linear.factors.axes, most))

    def coordinates(self, store: SampleStore) -> Coordinates:
        """Return the coordinates of all samples of a store, in main memory."""
        found = self.projection.of(self.features.on(store), torch.arange(len(store)))
        return Coordinates(found.along.cpu(), found.rest.cpu())

    def tangents(self, model: GradientFeatureModel, store: SampleStore) -> Tensor:
        """Return J w₂ of each row, (m, d), in double precision."""
        w2, result = model.w2, torch.empty_like(store.features, device="cpu", dtype=torch.float64)
        with torch.no_grad():
            for places, residuals in self.features.on(store).batches(torch.arange(len(store))):
                result[places] = model.linearization.tangent(w2, residuals).to(result)
        return result


def _by_sample(value: Tensor, views: int) -> Tensor:
    """Return (V · n, c, p) as (n, V · c, p)."""
    return value.view(views, -1, *value.shape[1:]).transpose(0, 1).flatten(1, 2)


def _diagonal(blocks: Tensor, views: int) -> Tensor:
    """Return blocks of each row, (V · n, c, c), as one of each sample, (n, V · c, V · c)."""
    if views == 1:
        return blocks
    c, parts = blocks.shape[1], blocks.view(views, -1, *blocks.shape[1:])
    result = blocks.new_zeros(parts.shape[1], views * c, views * c)
    for view, part in enumerate(parts):
        own = slice(view * c, (view + 1) * c)
        result[:, own, own] = part
    return result
