"""What is kept of every sample between passes: its residuals, or z₀, or nothing.

Nothing below θ₂ and nothing in the residuals depends on what is trained. So the bottom runs once for each sample, and
with kept residuals a pass costs only the tangent and its backward. Memory decides how much is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gradfeat.data.inputs import in_parts
from gradfeat.data.memory import free_memory
from gradfeat.errors import ConfigurationError
from gradfeat.linearization import Linearization
from gradfeat.linearization.lengths import LengthGroups, Split

LEVELS = ("residuals", "z0", "none")


class Batches(Protocol):
    """Samples that can be read by index: `gradfeat.data.Inputs`."""

    @property
    def random(self) -> bool:
        """Whether a sample may change from pass to pass."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the samples at `indices`, as the network takes them."""


def available_memory(device: torch.device | None = None) -> int:
    """Return the memory of a device that is free for use, bytes (4 GiB where the system does not say).

    Args:
        device: A CUDA device; any other is taken for the CPU.
    """
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory()


def choose_level(
    cache: str,
    n: int,
    bytes_per_sample: dict[str, int],
    *,
    random: bool,
    budget: int | None = None,
    device: torch.device | None = None,
) -> str:
    """Return what to keep: the most that fits in half of the free memory, nothing of samples that change.

    Args:
        cache: "auto" or a level.
        n: Number of samples.
        bytes_per_sample: Memory of "z0" and "residuals".
        random: Whether the samples may differ from pass to pass (augmentation).
        budget: Bytes; half of the device's free memory if None.
        device: Where it is kept; None is the CPU.

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
    budget = available_memory(device) // 2 if budget is None else budget
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
        parts = in_parts(n, batch_size)
        self._group: Tensor | None = None  # of each sample, where texts are in groups of their lengths
        if isinstance(linearization, LengthGroups):
            self._group = torch.cat([linearization.group_of(inputs.batch(part)) for part in parts])
        size = _bytes_of(linearization, self._group)
        self.level = choose_level(cache, n, size, random=inputs.random, device=linearization.device)
        self._z0 = None if self.level == "none" else _kept(n, self._group)
        self._residuals = _kept(n, self._group) if self.level == "residuals" else None
        own: list[Tensor] = []
        for part in parts:
            z0 = linearization.bottom(inputs.batch(part))
            f, residuals = linearization.primal(z0)
            own.append(f)
            if self._z0 is not None:
                self._z0.put(torch.arange(part.start, part.stop), z0)
            if self._residuals is not None:
                self._residuals.put(torch.arange(part.start, part.stop), residuals)
            if progress is not None:
                progress(part.stop, n)
        self._given = features is not None
        self.features = torch.cat(own) if features is None else features
        self._rows: Tensor | None = None  # where its samples are in the inputs, in z₀ and among the groups
        self._residual_rows: Tensor | None = None  # and in the residuals

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, indices: Tensor) -> SampleStore:
        """Return some of the samples, as a store of their own that shares what is kept."""
        part = copy.copy(self)
        part.features = self.features[indices]
        part._rows = _picked(self._rows, indices)
        part._residual_rows = _picked(self._residual_rows, indices)
        return part

    def at(self, linearization: Linearization, *, batch_size: int = 128) -> SampleStore:
        """Return the same samples for the same network at another θ̄₂.

        z₀ is the same. Residuals are kept anew where these are, and where there is room for them beside these.
        """
        if self._given:
            raise ConfigurationError("θ̄₂ cannot move where f(x) comes from another network")
        moved, everything = copy.copy(self), torch.arange(len(self))
        moved.linearization = linearization
        moved._residuals = moved._residual_rows = None
        if self.level == "residuals":
            group = None if self._group is None else self._group[_picked(self._rows, everything)]
            size = _bytes_of(linearization, group)
            moved.level = choose_level("auto", len(self), size, random=False, device=linearization.device)
            if moved.level == "residuals":
                moved._residuals = _kept(len(self), group)
            else:
                moved.level = "z0"
        features = []
        with torch.no_grad():
            for batch in everything.split(batch_size):
                z0 = self.z0(batch)
                if moved._residuals is None:
                    features.append(linearization.network(linearization.theta2, z0))
                else:
                    f, residuals = linearization.primal(z0)
                    features.append(f)
                    moved._residuals.put(batch, residuals)
        moved.features = torch.cat(features)
        return moved

    def batches(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Split some samples into batches: places in `indices`; texts of a length go together."""
        if self._group is None:
            yield from torch.arange(len(indices)).split(size)
            return
        group = self._group[_picked(self._rows, indices)]
        for own in group.unique():
            yield from (group == own).nonzero()[:, 0].split(size)

    def z0(self, indices: Tensor) -> Any:
        """Return z₀ of some samples; the bottom runs only if nothing is kept."""
        own = _picked(self._rows, indices)
        return self.linearization.bottom(self.inputs.batch(own.tolist())) if self._z0 is None else self._z0.take(own)

    def primal(self, indices: Tensor) -> tuple[Tensor, Any]:
        """Return f(x) and the residuals of some samples, from the highest level that is kept."""
        if self._residuals is not None:
            return self.features[indices], self._residuals.take(_picked(self._residual_rows, indices))
        f, residuals = self.linearization.primal(self.z0(indices))
        return (self.features[indices] if self._given else f), residuals

    def all_features(self, indices: Tensor) -> Tensor:
        """Return f(x) of some samples, (n, d); computed anew if the samples change."""
        return self.primal(indices)[0] if self.inputs.random else self.features[indices]


class _Kept:
    """What is kept of n samples: a tensor or several, each with the sample as first axis."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._single = False
        self._tensors: list[Tensor] | None = None

    def put(self, places: Tensor, value: Any) -> None:
        """Keep what belongs to the samples at `places`."""
        self._single = isinstance(value, Tensor)
        parts = (value,) if self._single else value
        if self._tensors is None:
            self._tensors = [_rows(part, self._n) for part in parts]
        for target, part in zip(self._tensors, parts, strict=True):
            target[places] = part

    def take(self, places: Tensor) -> Any:
        """Return what belongs to the samples at `places`."""
        picked = tuple(tensor[places] for tensor in self._tensors or ())
        return picked[0] if self._single else picked


class _KeptGroups:
    """What is kept of texts that are in groups of their lengths.

    Args:
        group: Of each sample, (n,).
    """

    def __init__(self, group: Tensor) -> None:
        self._group = group
        self._place = torch.empty_like(group)
        self._kept = []
        for i in range(int(group.max()) + 1):
            own = (group == i).nonzero()[:, 0]
            self._place[own] = torch.arange(len(own))
            self._kept.append(_Kept(len(own)))

    def put(self, places: Tensor, split: Any) -> None:
        """Keep a `Split` of the samples at `places`."""
        for i, (rows, part) in enumerate(zip(*split, strict=True)):
            if part is not None:
                self._kept[i].put(self._place[places[rows]], part)

    def take(self, places: Tensor) -> Split:
        """Return what belongs to the samples at `places`."""
        group, place = self._group[places], self._place[places]
        rows = tuple((group == i).nonzero()[:, 0] for i in range(len(self._kept)))
        parts = (kept.take(place[own]) if len(own) else None for kept, own in zip(self._kept, rows, strict=True))
        return Split(rows, tuple(parts))


def _picked(rows: Tensor | None, indices: Tensor) -> Tensor:
    """Return the rows at `indices`, which are these themselves where there are all rows."""
    return indices if rows is None else rows[indices]


def _bytes_of(linearization: Linearization, group: Tensor | None) -> dict[str, int]:
    """Return the (mean) memory of "z0" and "residuals" for one sample, bytes; of texts by their groups of lengths."""
    if isinstance(linearization, LengthGroups) and group is not None:
        return linearization.bytes_of(group)
    return linearization.bytes_per_sample


def _kept(n: int, group: Tensor | None) -> _Kept | _KeptGroups:
    return _Kept(n) if group is None else _KeptGroups(group)


def _rows(part: Tensor, n: int) -> Tensor:
    """Return room for n samples, a sample's axes in the same order in memory as in `part` (channels-last or not)."""
    strides = part.stride()
    axes = [0, *sorted(range(1, part.ndim), key=lambda axis: (-strides[axis], axis))]
    room = torch.empty([n, *(part.shape[axis] for axis in axes[1:])], dtype=part.dtype, device=part.device)
    return room.permute([axes.index(axis) for axis in range(part.ndim)])
