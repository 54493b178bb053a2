"""The gradient features as a linear map, Φ: w₂ ↦ ω̄ᵀ J(x) w₂: all that a solver sees of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradfeat.linearization import Linearization, parametrization_scales
from gradfeat.samples.store import SampleStore

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Change:
    """A linear change of variables, v for w₂.

    Attributes:
        natural: v ↦ w₂.
        transpose: Its transpose, which brings a gradient in w₂ to one in v.
        variables: Its inverse, w₂ ↦ v.
    """

    natural: Callable[[Mapping[str, Tensor]], Weights]
    transpose: Callable[[Mapping[str, Tensor]], Weights]
    variables: Callable[[Mapping[str, Tensor]], Weights]


_SMALLEST_BATCH, _USUAL_BATCH, _LARGEST_BATCH = 32, 128, 2048
_GPU_BYTES = 1 << 30  # of residuals at a time, which keep a GPU busy
_CPU_BYTES = 1 << 29  # more than that, and memory is what a CPU waits for


class GradientFeatures:
    """The map Φ and its transpose, in the variables that w₂ is trained in (standard or NTK).

    Args:
        store: The samples.
        omega: ω̄, (d, c).
        parametrization: "standard", "ntk_fan_in" or "ntk_fan_out".
        batch_size: Samples at a time; None: 128, fewer of a deep θ₂, and on a GPU as many as keep it busy.

    Attributes:
        passes: Work done, in passes over all samples of tangent and backward.
    """

    def __init__(
        self, store: SampleStore, omega: Tensor, *, parametrization: str = "standard", batch_size: int | None = None
    ) -> None:
        self.store = store
        self.omega = omega
        self.batch_size = _usual_batch(store) if batch_size is None else batch_size
        self.passes = 0.0
        self._scales = parametrization_scales(store.linearization, parametrization)
        self._change: Change | None = None

    def changed(self, change: Change) -> GradientFeatures:
        """Return the map in other variables."""
        part = copy.copy(self)
        part._change = change
        return part

    def of(self, omega: Tensor) -> GradientFeatures:
        """Return the map of another ω̄, in the same variables."""
        part = copy.copy(self)
        part.omega = omega
        return part

    def on(self, store: SampleStore) -> GradientFeatures:
        """Return the map of other samples of the same network, in the same variables."""
        part = copy.copy(self)
        part.store = store
        return part

    @property
    def linearization(self) -> Linearization:
        """The network's programs."""
        return self.store.linearization

    def scale(self, name: str) -> float:
        """Return what a gradient in a name of θ₂ is multiplied by, by the parametrization."""
        return self._scales[name]

    def zeros(self) -> Weights:
        """Return w₂ = 0, in single precision or better."""
        dtype = torch.promote_types(self.linearization.dtype, torch.float32)
        return {name: torch.zeros_like(value, dtype=dtype) for name, value in self.linearization.theta2.items()}

    def natural(self, w2: Mapping[str, Tensor]) -> Weights:
        """Return w₂ in the units of θ₂."""
        return self._scaled(w2 if self._change is None else self._change.natural(w2))

    def variables(self, w2: Mapping[str, Tensor]) -> Weights:
        """Return the inverse of `natural`."""
        w2 = {name: value if (s := self._scales[name]) == 1.0 else value / s for name, value in w2.items()}
        return w2 if self._change is None else self._change.variables(w2)

    def to_variables(self, gradient: Mapping[str, Tensor]) -> Weights:
        """Return the transpose of `natural`: a gradient in θ₂ as one in the variables of w₂."""
        scaled = self._scaled(gradient)
        return scaled if self._change is None else self._change.transpose(scaled)

    def _scaled(self, w2: Mapping[str, Tensor]) -> Weights:
        return {name: value if (s := self._scales[name]) == 1.0 else value * s for name, value in w2.items()}

    def batches(self, indices: Tensor) -> Iterator[tuple[Tensor, Any]]:
        """Yield the samples at `indices` in batches: their positions in `indices`, and their residuals."""
        for positions in self.store.batches(indices, self.batch_size):
            yield positions, self.store.primal(indices[positions])[1]

    def forward(self, w2: Mapping[str, Tensor], indices: Tensor) -> Tensor:
        """Return Φ w₂ of some samples, (m, c)."""
        w2 = self.natural(w2)
        logits = self.omega.new_empty(len(indices), self.omega.shape[1])
        with torch.no_grad():
            for positions, residuals in self.batches(indices):
                logits[positions] = self.linearization.tangent(w2, residuals).to(self.omega) @ self.omega
        self.passes += 0.5 * len(indices) / len(self.store)
        return logits

    def transpose(self, u: Tensor, indices: Tensor) -> Weights:
        """Return Φᵀ u, with the names and shapes of θ₂; u is (m, c)."""
        total = self.zeros()
        for positions, residuals in self.batches(indices):
            gradient = self.linearization.transpose(u[positions].to(self.omega) @ self.omega.T, residuals)
            for name, value in gradient.items():
                total[name] += value.to(total[name])
        self.passes += 0.5 * len(indices) / len(self.store)
        return self.to_variables(total)


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return ⟨a, b⟩ over all names."""
    return sum(float(torch.dot(a[name].reshape(-1), b[name].reshape(-1))) for name in a)


def add_scaled(total: Weights, factor: float, other: Mapping[str, Tensor]) -> None:
    """Add ``factor · other`` to `total`, in place."""
    for name, value in other.items():
        total[name].add_(value, alpha=factor)


def _usual_batch(store: SampleStore) -> int:
    size = max(1, store.linearization.bytes_per_sample["residuals"])
    if store.linearization.device.type != "cuda" or store.level == "none":  # where the whole network runs in each pass
        return min(max(_CPU_BYTES // size, _SMALLEST_BATCH), _USUAL_BATCH)
    return min(max(_GPU_BYTES // size, _USUAL_BATCH), _LARGEST_BATCH)
