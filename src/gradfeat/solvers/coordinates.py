"""Gradient features of each sample along few axes, and the length of what is left of them.

The rows ``φ_k(x) = J(x)ᵀ ω̄_k`` of gradient features have as many entries as θ₂. A preconditioner knows axes along
which their second moments are nearly diagonal (`gradfeat.solvers.kronecker`). So the coordinates along the axes with
the largest moments are kept, all of them where θ₂ is small enough, and of the rest the inner products of a sample's own
rows alone: what is far below the penalty along each axis sets a sample apart, and says next to nothing of another one.
(The same split as in a sparse Gaussian process with fully independent conditionals; Snelson & Ghahramani, 2006.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.linearization.per_sample import SampleGradients
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.kronecker import Axes

MOST = 1024
"""Axes that are kept, at most."""

_BATCH = 64  # samples at a time


@dataclass(frozen=True)
class Coordinates:
    """Rows of gradient features of some samples, in the variables that w₂ is penalized in.

    Attributes:
        along: Along the axes that are kept, (n, c, k).
        rest: Inner products of a sample's own rows off these axes, (n, c, c).
    """

    along: Tensor
    rest: Tensor


class Projection:
    """The axes with the largest second moments, and what takes gradients to them.

    Args:
        features: The map Φ in the variables that w₂ is penalized in.
        axes: Of its preconditioner.
        most: Axes that are kept, at most.
    """

    def __init__(self, features: GradientFeatures, axes: Axes, most: int = MOST) -> None:
        moments = torch.cat([spectrum.flatten() for spectrum in axes.spectra.values()])
        best = torch.zeros(len(moments), dtype=torch.bool, device=moments.device)
        best[moments.topk(min(most, len(moments))).indices] = True
        parts = best.split([spectrum.numel() for spectrum in axes.spectra.values()])
        self._layers = {
            name: _Layer(name, axes, features.scale(name), kept) for name, kept in zip(axes.spectra, parts, strict=True)
        }
        self.size = int(best.sum())
        """Axes that are kept, k."""

    @property
    def complete(self) -> bool:
        """Whether all axes are kept, so that coordinates say all."""
        return all(layer.complete for layer in self._layers.values())

    def of(self, features: GradientFeatures, indices: Tensor) -> Coordinates:
        """Return the coordinates of some samples.

        Args:
            features: The map of the samples, in the same variables.
            indices: Of its store, (m,).
        """
        omega = features.omega
        c = omega.shape[1]
        along = omega.new_empty(len(indices), c, self.size, dtype=torch.promote_types(omega.dtype, torch.float32))
        rest = along.new_zeros(len(indices), c, c)
        for places in features.store.batches(indices, min(_BATCH, features.batch_size)):
            residuals = features.store.primal(indices[places])[1]
            found = features.linearization.sample_gradients(list(omega.T), residuals)
            start = 0
            for layer in self._layers.values():
                kept, left = layer.split(found)
                along[places, :, start : start + layer.size] = kept.to(along)
                rest[places] += left.to(rest)
                start += layer.size
        features.passes += 0.5 * c * len(indices) / len(features.store)
        return Coordinates(along, rest)

    def of_each(self, features: GradientFeatures, cotangents: Tensor) -> Tensor:
        """Return the coordinates of Jᵀu of all samples of a store, one cotangent each, (n, k); u is (n, d)."""
        store = features.store
        result = cotangents.new_empty(len(store), self.size, device="cpu")
        for places in store.batches(torch.arange(len(store)), min(_BATCH, features.batch_size)):
            residuals = store.primal(places)[1]
            found = features.linearization.sample_gradients([cotangents[places]], residuals)
            parts = [layer.split(found, rest=False)[0] for layer in self._layers.values()]
            result[places] = torch.cat(parts, 2)[:, 0].to(result)
        features.passes += 0.5
        return result

    def along(self, w2: Mapping[str, Tensor]) -> Tensor:
        """Return the coordinates of a vector of the variables along the axes that are kept, (k,)."""
        return torch.cat([layer.along(w2[name]) for name, layer in self._layers.items()])


class _Layer:
    """One name of θ₂: which of its axes are kept.

    Args:
        name: Of θ₂.
        axes: Of the preconditioner.
        scale: From θ₂'s units to the variables of w₂.
        kept: Which axes are, (o · i · taps,).
    """

    def __init__(self, name: str, axes: Axes, scale: float, kept: Tensor) -> None:
        self._name, self._scale = name, scale
        spectrum = axes.spectra[name]
        root = axes.roots.get(name)
        self._kept = kept.nonzero()[:, 0]
        self.size = len(self._kept)
        self.complete = self.size == spectrum.numel()
        self._root = None if root is None else root.flatten()[self._kept]
        # what is left has nearly one scale: the metric is flat where moments are small
        natural = spectrum if root is None else spectrum / root.square()
        left = float(natural.flatten()[~kept].sum())
        self._left = float(spectrum.flatten()[~kept].sum()) / left if left > 0 else 1.0
        self._bases = axes.bases.get(name)
        self._all_roots = root
        if self._bases is not None:
            outputs, inputs = self._bases
            self._taps = spectrum.shape[2]
            o, i = self._kept // (inputs.shape[1] * self._taps), self._kept % (inputs.shape[1] * self._taps)
            self._o, o = o.unique(return_inverse=True)
            self._i, i = torch.div(i, self._taps, rounding_mode="floor").unique(return_inverse=True)
            tap = self._kept % self._taps
            self._place = (o * len(self._i) + i) * self._taps + tap
            self._outputs, self._inputs = outputs[:, self._o], inputs[:, self._i]

    def split(self, found: Sequence[SampleGradients], *, rest: bool = True) -> tuple[Tensor, Tensor]:
        """Return coordinates of c gradients of each sample, (n, c, k), and inner products of the rest, (n, c, c)."""
        if self._name in found[0].whole:
            return self._split_whole(torch.stack([one.whole[self._name] for one in found], 1))
        uses = [one.factors[self._name] for one in found]
        inputs = [a for a, _ in uses[0]]
        deltas = [torch.stack([use[j][1] for use in uses], 1) for j in range(len(inputs))]  # (n, c, p, o)
        products = [self._product(a, delta) for a, delta in zip(inputs, deltas, strict=True)]
        along = torch.stack(products).sum(0) if len(products) > 1 else products[0]
        along = along[..., self._place] * self._scale if self.size else along[..., :0]
        if self.complete or not rest:
            return self._rooted(along), along.new_zeros(*along.shape[:2], along.shape[1])
        total = _gram(torch.cat(inputs, 1), torch.cat(deltas, 2)) * self._scale**2
        return self._rooted(along), (total - along @ along.mT) * self._left

    def _product(self, a: Tensor, delta: Tensor) -> Tensor:
        """Return the gradient of one use along the rectangle of axes that holds the kept ones, (n, c, entries)."""
        n, c, p, _ = delta.shape
        inputs = a.view(n, p, -1, self._taps)
        left = (delta @ self._outputs).transpose(1, 2).reshape(n, p, -1)  # (n, p, c · o)
        right = torch.einsum("npit,ij->npjt", inputs, self._inputs).reshape(n, p, -1)
        return (left.mT @ right).view(n, c, -1)

    def _split_whole(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        n, c = gradients.shape[:2]
        if self._bases is not None:  # a layer whose program could not be traced
            outputs, inputs = self._bases
            gradients = torch.einsum(
                "ncpit,po,ij->ncojt", gradients.view(n, c, len(outputs), len(inputs), self._taps), outputs, inputs
            )
        flat = gradients.reshape(n, c, -1) * self._scale
        if self._all_roots is not None:
            flat = flat * self._all_roots.flatten()
        along = flat[..., self._kept]
        return along, flat @ flat.mT - along @ along.mT

    def along(self, value: Tensor) -> Tensor:
        """Return the kept coordinates of a vector of the variables, which a metric has turned to the axes already."""
        if self._bases is not None and self._all_roots is None:
            outputs, inputs = self._bases
            value = torch.einsum("pit,po,ij->ojt", value.reshape(len(outputs), -1, self._taps), outputs, inputs)
        return value.flatten()[self._kept]

    def _rooted(self, along: Tensor) -> Tensor:
        return along if self._root is None else along * self._root


def _gram(a: Tensor, delta: Tensor) -> Tensor:
    """Return inner products of the gradients ``Σ_p δ_p a_pᵀ`` of each sample, (n, c, c).

    Args:
        a: Inputs, (n, p, i).
        delta: Cotangents, (n, c, p, o).
    """
    n, c, p, o = delta.shape
    if c * p > a.shape[2]:  # the gradients themselves are smaller than their positions' products
        gradients = torch.einsum("ncpo,npi->ncoi", delta, a).reshape(n, c, -1)
        return gradients @ gradients.mT
    positions = delta.reshape(n, c * p, o)
    products = (positions @ positions.mT).view(n, c, p, c, p)
    return torch.einsum("ncpdq,npq->ncd", products, a @ a.mT)
