"""Kronecker factors of the gradient features: a preconditioner that is estimated once and serves every penalty.

The Hessian of the loss in w₂ is ``Σ Φᵀ Λ Φ / n`` with Λ the loss's curvature in the logits. For the weight of one layer
it is close to A ⊗ G: A the second moments of the layer's inputs, G those of the gradients in its outputs, under
cotangents ``Λ^½ ε`` with random signs ε (Martens & Grosse 2015; Grosse & Martens 2016 for convolutions). Gradient
features do not change in training, so neither do the factors. Gains, biases and grouped convolutions have a diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping

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


class KroneckerFactors:
    """An approximation of the Hessian in w₂ without penalty, inverted with any penalty.

    Attributes:
        trace: Its trace: the mean squared length of the gradient features of a sample, weighed by the curvature.
    """

    def __init__(self, bases: dict[str, tuple[Tensor, Tensor]], spectra: dict[str, Tensor]) -> None:
        self._bases = bases  # name -> eigenvectors of G, (o, o), and of A, (i, i)
        self._spectra = spectra  # name -> eigenvalues, (o, i, taps); or the diagonal, of the shape of θ₂
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
        return Change(natural, transpose, variables), KroneckerFactors({}, spectra)

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
        loss: Says how the loss bends.
        logits: Where it is looked at, (m, c).
        y: Targets of the samples.
        indices: The samples, (m,).
        generator: Draws the signs.
        weight: Of each sample in the loss, of mean one, (m,); None is one.
    """
    lin = features.linearization
    squares = features.zeros()
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    order = torch.randperm(len(indices), generator=generator)
    used, enough = 0, False
    positions: dict[str, int] = {}
    for rows in order.split(max(1, min(features.batch_size // 2, _BATCH))):
        if enough and used >= _LEAST_SAMPLES:
            break
        used += len(rows)
        _, residuals = features.store.primal(indices[rows])
        signs = torch.randint(0, 2, tuple(logits[rows].shape), generator=generator).to(logits) * 2 - 1
        root = loss.curvature_root(logits[rows], y[rows], signs).to(features.omega)
        if weight is not None:
            root = root * weight[rows, None].sqrt().to(root)
        u = root @ features.omega.T
        found, calls = lin.layer_calls(u, residuals)
        gradients = features.to_variables({name: g.to(squares[name]) for name, g in found.items()})
        for name, gradient in gradients.items():
            squares[name] += gradient.square()
        for call in calls:
            moments[call.name] = _moments(call, moments.get(call.name))
            positions[call.name] = positions.get(call.name, 0) + len(call.outputs())
        enough = all(positions[name] >= _ROWS * max(map(len, pair)) for name, pair in moments.items())
    features.passes += 0.5 * used / len(features.store)
    bases: dict[str, tuple[Tensor, Tensor]] = {}
    spectra: dict[str, Tensor] = {}
    for name, diagonal in squares.items():
        diagonal /= used
        if name not in moments:
            spectra[name] = diagonal
            continue
        a, g = moments[name]
        (inputs_scale, inputs), (outputs_scale, outputs) = (_eigen(a), _eigen(g))
        taps = diagonal.numel() // (len(a) * len(g))
        spectrum = (outputs_scale[:, None] * inputs_scale)[:, :, None].expand(-1, -1, taps)
        # the product's scale is the weakest part of the approximation; the trace is known
        spectra[name] = spectrum * (diagonal.sum() / spectrum.sum().clamp_min(torch.finfo(spectrum.dtype).tiny))
        bases[name] = outputs, inputs
    return KroneckerFactors(bases, spectra)


def _moments(call: LayerCall, total: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    wide = call.window is not None and call.z.shape[1] * call.window[0][0] * call.window[0][1] > _MOST_INPUTS
    dtype = torch.promote_types(call.output.dtype, torch.float32)
    a = (call.channels() if wide else call.inputs()).to(dtype)
    g = call.outputs().to(dtype)
    found = a.T @ a, g.T @ g
    return found if total is None else (total[0] + found[0], total[1] + found[1])


def _eigen(moments: Tensor) -> tuple[Tensor, Tensor]:
    scale = float(moments.diagonal().mean()) or 1.0
    for dtype in (moments.dtype, torch.float64):  # in single precision it may not converge where the rank is low
        try:
            values, vectors = torch.linalg.eigh(moments.to(dtype) / scale)
        except torch.linalg.LinAlgError:
            continue
        return values.clamp_min(0).to(moments), vectors.to(moments)
    raise ConvergenceError("the second moments of the gradient features cannot be decomposed")
