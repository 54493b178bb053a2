"""What is kept of every sample between passes: its residuals, or z₀, or nothing.

Nothing below θ₂ and nothing in the residuals depends on what is trained. So the bottom runs once for each sample, and
with kept residuals a pass costs only the tangent and its backward. Memory decides how much is kept.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError
from gradfeat.linearization import Linearization
from gradfeat.linearization.linearization import Residuals

LEVELS = ("residuals", "z0", "none")


class Batches(Protocol):
    """Samples that can be read by index: `gradfeat.data.Inputs`."""

    @property
    def random(self) -> bool:
        """Whether a sample may change from pass to pass."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the samples at `indices`, as the network takes them."""


def available_memory() -> int:
    """Return the memory that is free for use, bytes (4 GiB where the system does not say)."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def choose_level(
    cache: str, n: int, bytes_per_sample: dict[str, int], *, random: bool, budget: int | None = None
) -> str:
    """Return what to keep: the most that fits in half of the free memory, nothing of samples that change.

    Args:
        cache: "auto" or a level.
        n: Number of samples.
        bytes_per_sample: Memory of "z0" and "residuals".
        random: Whether the samples may differ from pass to pass (augmentation).
        budget: Bytes; half of the free memory if None.

    Raises:
        ConfigurationError: An unknown level, or one that cannot hold samples that change.
    """
    if cache not in (*LEVELS, "auto"):
        raise ConfigurationError(f"cache must be 'auto' or one of {', '.join(LEVELS)}, not {cache!r}")
    if random:
        if cache in ("residuals", "z0"):
            raise ConfigurationError(
                f"cache={cache!r} would freeze the first version of each sample: this data set may change its samples"
            )
        return "none"
    if cache != "auto":
        return cache
    budget = available_memory() // 2 if budget is None else budget
    if n * (bytes_per_sample["residuals"] + bytes_per_sample["z0"]) <= budget:
        return "residuals"
    return "z0" if n * bytes_per_sample["z0"] <= budget else "none"


class SampleStore:
    """The samples of a data set as the programs need them.

    Args:
        linearization: The network's programs.
        inputs: The samples.
        cache: "auto", "residuals", "z0" or "none".
        batch_size: Samples at a time in the first pass.
        progress: Called with (samples done, samples in all).
        features: f(x) of all samples, (n, d), where they come from another network than J(x) does (an ablation); None:
            the network's own.

    Attributes:
        level: What is kept.
        features: f(x) of all samples, (n, d), as first seen, or as given.

    Raises:
        ConfigurationError: A level that cannot be, or given features of samples that change, or of other samples.
    """

    def __init__(
        self,
        linearization: Linearization,
        inputs: Batches,
        *,
        cache: str = "auto",
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
        features: Tensor | None = None,
    ) -> None:
        if features is not None and (inputs.random or len(features) != len(inputs)):
            raise ConfigurationError(
                f"features must be those of the {len(inputs)} samples, which must not change; got {len(features)}"
            )
        self.linearization = linearization
        self.inputs = inputs
        n = len(inputs)
        self.level = choose_level(cache, n, linearization.bytes_per_sample, random=inputs.random)
        self._z0: list[Tensor] | None = None
        self._single = True
        self._residuals: list[Tensor] | None = None
        own: list[Tensor] = []
        for start in range(0, n, batch_size):
            indices = range(start, min(start + batch_size, n))
            z0 = linearization.bottom(inputs.batch(indices))
            f, residuals = linearization.primal(z0)
            own.append(f)
            self._single = isinstance(z0, Tensor)
            if self.level != "none":
                self._z0 = _store(self._z0, (z0,) if isinstance(z0, Tensor) else z0, indices, n)
            if self.level == "residuals":
                self._residuals = _store(self._residuals, residuals, indices, n)
            if progress is not None:
                progress(indices.stop, n)
        self._given = features is not None
        self.features = torch.cat(own) if features is None else features
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, indices: Tensor) -> SampleStore:
        """Return some of the samples, as a store of their own that shares what is kept."""
        part = copy.copy(self)
        part.features = self.features[indices]
        part._rows = self._at(indices)
        return part

    def at(self, linearization: Linearization, *, batch_size: int = 128) -> SampleStore:
        """Return the same samples for the same network at another θ̄₂: z₀ is the same, nothing above it is kept."""
        if self._given:
            raise ConfigurationError("θ̄₂ cannot move where f(x) comes from another network")
        moved = copy.copy(self)
        moved.linearization = linearization
        moved._residuals = None
        moved.level = "none" if self._z0 is None else "z0"
        with torch.no_grad():
            batches = torch.arange(len(self)).split(batch_size)
            theta2 = linearization.theta2
            moved.features = torch.cat([linearization.network(theta2, self.z0(batch)) for batch in batches])
        return moved

    def _at(self, indices: Tensor) -> Tensor:
        return indices if self._rows is None else self._rows[indices]

    def z0(self, indices: Tensor) -> Tensor | Residuals:
        """Return z₀ of some samples; the bottom runs only if nothing is kept."""
        own = self._at(indices)
        if self._z0 is None:
            return self.linearization.bottom(self.inputs.batch(own.tolist()))
        picked = tuple(value[own] for value in self._z0)
        return picked[0] if self._single else picked

    def primal(self, indices: Tensor) -> tuple[Tensor, Residuals]:
        """Return f(x) and the residuals of some samples, from the highest level that is kept."""
        if self._residuals is not None:
            return self.features[indices], tuple(value[self._at(indices)] for value in self._residuals)
        f, residuals = self.linearization.primal(self.z0(indices))
        return (self.features[indices] if self._given else f), residuals

    def all_features(self, indices: Tensor) -> Tensor:
        """Return f(x) of some samples, (n, d); computed anew if the samples change."""
        return self.primal(indices)[0] if self.inputs.random else self.features[indices]


def _store(whole: list[Tensor] | None, parts: Sequence[Tensor], indices: range, n: int) -> list[Tensor]:
    if whole is None:
        whole = [_rows(part, n) for part in parts]
    for target, part in zip(whole, parts, strict=True):
        target[indices.start : indices.stop] = part
    return whole


def _rows(part: Tensor, n: int) -> Tensor:
    """Return room for n samples, a sample's axes in the same order in memory as in `part` (channels-last or not)."""
    strides = part.stride()
    axes = [0, *sorted(range(1, part.ndim), key=lambda axis: (-strides[axis], axis))]
    room = torch.empty([n, *(part.shape[axis] for axis in axes[1:])], dtype=part.dtype, device=part.device)
    return room.permute([axes.index(axis) for axis in range(part.ndim)])
