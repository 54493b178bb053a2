"""Kronecker factors of the gradient features: a preconditioner that is estimated once and serves every penalty.

The Hessian of the loss in w₂ is ``Σ Φᵀ Λ Φ / n`` with Λ the loss's curvature in the logits. For the weight of one layer
it is close to A ⊗ G: A the second moments of the layer's inputs, G those of the gradients in its outputs, under
cotangents ``Λ^½ ε`` with random signs ε (Martens & Grosse 2015; Grosse & Martens 2016 for convolutions). Gradient
features do not change in training, so neither do the factors. Gains, biases and grouped convolutions have a diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.linearization.record import LayerCall
from gradfeat.losses import Loss
from gradfeat.solvers.gradient_features import Change, GradientFeatures, Weights

_BATCH = 64  # few samples are enough, and a 3 × 3 convolution's inputs are nine times as many as its activations
_MOST_INPUTS = 2500  # a larger factor takes longer to decompose than it saves: the taps of a filter are then apart
_LEAST_SAMPLES, _ROWS = 256, 4  # samples, and rows for each dimension of a factor, that are enough to estimate it

FLOOR = 5.0
"""Of the whitened metric: how much a direction without any gradient features is penalized, in units of the mean."""


@dataclass(frozen=True)
class Axes:
    """Orthonormal axes of the variables that w₂ is penalized in, along which the factors' Hessian is diagonal.

    Attributes:
        bases: By name of θ₂ the eigenvectors of G, (o, o), and of A, (i, i); names without some have no other axes.
        spectra: The Hessian's eigenvalues in these variables, (o, i, taps); or its diagonal, of the shape of θ₂.
        roots: A gradient in w₂ along the axes, times these, is one in the variables; a name without some has ones.
    """

    bases: dict[str, tuple[Tensor, Tensor]]
    spectra: dict[str, Tensor]
    roots: dict[str, Tensor]


class KroneckerFactors:
    """An approximation of the Hessian in w₂ without penalty, inverted with any penalty.

    Args:
        bases: By name of θ₂ the eigenvectors of G, (o, o), and of A, (i, i).
        spectra: By name the eigenvalues, (o, i, taps); or the diagonal, of the shape of θ₂.
        axes: Of these variables, where they are along the axes of others already.

    Attributes:
        trace: Its trace: the mean squared length of the gradient features of a sample, weighed by the curvature.
        axes: Along which it is diagonal.
    """

    def __init__(
        self, bases: dict[str, tuple[Tensor, Tensor]], spectra: dict[str, Tensor], axes: Axes | None = None
    ) -> None:
        self._bases, self._spectra = bases, spectra
        self.axes = axes or Axes(bases, spectra, {})
        self.trace = sum(float(spectrum.sum()) for spectrum in spectra.values())

    def precondition(self, gradient: Mapping[str, Tensor], penalty: float) -> Weights:
        """Return ``(H + penalty)⁻¹ gradient``."""
        result: Weights = {}
        for name, part in gradient.items():
            along = self._into(name, part) / (self._spectra[name] + penalty)
            result[name] = self._out_of(name, along).reshape(part.shape)
        return result

    def whitened(self) -> tuple[Change, KroneckerFactors]:
        """Return ``w₂ = S^-½ Q v`` of the whitened metric, and these factors in v, where they are diagonal.

        S = κ (H / h̄ + `FLOOR`), with h̄ the mean eigenvalue of H, and κ such that the gradient features have the same
        mean squared length in either metric: tr(S⁻¹ H) = tr(H). So a penalty, or a unit of it, means as much in both.
        The columns of Q are the eigenvectors of H, so ‖v‖² = w₂ᵀ S w₂, and a change of variables takes one rotation.
        """
        size = sum(spectrum.numel() for spectrum in self._spectra.values())
        mean = max(self.trace / size, 1e-30)
        shapes = {name: value / mean + FLOOR for name, value in self._spectra.items()}
        length = sum(float((value / shapes[name]).sum()) for name, value in self._spectra.items())
        scale = length / self.trace if self.trace > 0 else 1.0
        roots = {name: (scale * shape).rsqrt() for name, shape in shapes.items()}

        def natural(v: Mapping[str, Tensor]) -> Weights:
            return {
                name: self._out_of(name, part.reshape(roots[name].shape) * roots[name]).reshape(part.shape)
                for name, part in v.items()
            }

        def transpose(gradient: Mapping[str, Tensor]) -> Weights:
            return {name: (self._into(name, part) * roots[name]).reshape(part.shape) for name, part in gradient.items()}

        def variables(w2: Mapping[str, Tensor]) -> Weights:
            return {name: (self._into(name, part) / roots[name]).reshape(part.shape) for name, part in w2.items()}

        spectra = {name: value * roots[name].square() for name, value in self._spectra.items()}
        return Change(natural, transpose, variables), KroneckerFactors({}, spectra, Axes(self._bases, spectra, roots))

    def _into(self, name: str, part: Tensor) -> Tensor:
        """Return a weight along the eigenvectors, (o, i, taps), or as it is where H is diagonal."""
        part = part.reshape(self._spectra[name].shape)
        if name not in self._bases:
            return part
        outputs, inputs = self._bases[name]
        return torch.einsum("po,pit,ij->ojt", outputs, part, inputs)

    def _out_of(self, name: str, along: Tensor) -> Tensor:
        """Return the inverse of `_into`."""
        if name not in self._bases:
            return along
        outputs, inputs = self._bases[name]
        return torch.einsum("po,oit,ji->pjt", outputs, along, inputs)


def estimate_factors(
    features: GradientFeatures,
    loss: Loss,
    logits: Tensor,
    y: Tensor,
    indices: Tensor,
    generator: torch.Generator,
    weight: Tensor | None = None,
) -> KroneckerFactors:
    """Estimate the factors on as many samples as that takes, at random.

    Args:
        features: The map Φ.
        loss: Its curvature is Λ.
        logits: Where the curvature is taken, (m, c).
        y: Targets of the samples.
        indices: The samples, (m,).
        generator: Draws the samples' order, and the signs.
        weight: Of each sample in the loss, of mean one, (m,); None is one.
    """
    moments = _Moments(features.zeros())
    used = 0
    order = torch.randperm(len(indices), generator=generator)
    for rows in torch.split(order, max(1, min(features.batch_size // 2, _BATCH))):
        if used >= _LEAST_SAMPLES and moments.enough():
            break
        used += len(rows)
        _, residuals = features.store.primal(indices[rows])
        signs = torch.randint(0, 2, tuple(logits[rows].shape), generator=generator).to(logits) * 2 - 1
        root = loss.curvature_root(logits[rows], y[rows], signs).to(features.omega)
        if weight is not None:
            root = root * weight[rows, None].sqrt().to(root)
        gradients, calls = features.linearization.layer_calls(root @ features.omega.T, residuals)
        moments.add(features.to_variables(moments.cast(gradients)), calls)
    features.passes += 0.5 * used / len(features.store)
    return moments.factors(used)


class _Moments:
    """Sums of second moments over samples: of gradients, entry by entry, and of each layer's inputs and outputs.

    Args:
        squares: Zeros of the shapes of θ₂, in the precision that sums are taken in.
    """

    def __init__(self, squares: Weights) -> None:
        self._squares = squares
        self._layers: dict[str, tuple[Tensor, Tensor]] = {}  # A, (i, i), and G, (o, o)
        self._rows: dict[str, int] = {}  # summands of A and G

    def cast(self, gradients: Mapping[str, Tensor]) -> Weights:
        """Return gradients in the precision of the sums."""
        return {name: value.to(self._squares[name]) for name, value in gradients.items()}

    def add(self, gradients: Mapping[str, Tensor], calls: Sequence[LayerCall]) -> None:
        """Add a batch's gradient, in the variables of w₂, and the layers that it came through."""
        for name, gradient in gradients.items():
            self._squares[name] += gradient.square()
        for call in calls:
            a, g = _moments(call)
            if call.name in self._layers:
                a, g = self._layers[call.name][0] + a, self._layers[call.name][1] + g
            self._layers[call.name] = a, g
            self._rows[call.name] = self._rows.get(call.name, 0) + len(call.outputs())

    def enough(self) -> bool:
        """Whether every factor has rows enough to be estimated from."""
        return all(self._rows[name] >= _ROWS * max(len(a), len(g)) for name, (a, g) in self._layers.items())

    def factors(self, samples: int) -> KroneckerFactors:
        """Return the factors of so many samples."""
        bases: dict[str, tuple[Tensor, Tensor]] = {}
        spectra: dict[str, Tensor] = {}
        for name, squares in self._squares.items():
            diagonal = squares / samples
            if name not in self._layers:
                spectra[name] = diagonal
                continue
            a, g = self._layers[name]
            (inputs_scale, inputs), (outputs_scale, outputs) = (_eigen(a), _eigen(g))
            taps = diagonal.numel() // (len(a) * len(g))
            spectrum = (outputs_scale[:, None] * inputs_scale)[:, :, None].expand(-1, -1, taps)
            # the product's scale is the weakest part of the approximation; the trace is known
            spectra[name] = spectrum * (diagonal.sum() / spectrum.sum().clamp_min(torch.finfo(spectrum.dtype).tiny))
            bases[name] = outputs, inputs
        return KroneckerFactors(bases, spectra)


def _moments(call: LayerCall) -> tuple[Tensor, Tensor]:
    """Return the second moments of a layer's inputs, (i, i), and of its outputs' gradients, (o, o)."""
    wide = call.window is not None and call.z.shape[1] * call.window[0][0] * call.window[0][1] > _MOST_INPUTS
    dtype = torch.promote_types(call.output.dtype, torch.float32)
    a = (call.channels() if wide else call.inputs()).to(dtype)
    g = call.outputs().to(dtype)
    return a.T @ a, g.T @ g


def _eigen(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, relative to their mean, and eigenvectors of second moments."""
    scale = float(moments.diagonal().mean()) or 1.0
    for dtype in (moments.dtype, torch.float64):  # in single precision it may not converge where the rank is low
        try:
            values, vectors = torch.linalg.eigh(moments.to(dtype) / scale)
        except torch.linalg.LinAlgError:
            continue
        return values.clamp_min(0).to(moments), vectors.to(moments)
    raise ConvergenceError("the second moments of the gradient features cannot be decomposed")
