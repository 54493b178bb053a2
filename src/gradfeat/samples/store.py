"""What is kept of every sample between passes: z₀, and residuals of as many as memory has room for.

Nothing below θ₂ and nothing in the residuals depends on what is trained. So the bottom runs once for each sample, and
with kept residuals a pass costs only the tangent and its backward; for the others the primal program runs again. What
is kept changes no number but by rounding.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradfeat.data.inputs import in_parts
from gradfeat.errors import ConfigurationError
from gradfeat.linearization import Linearization
from gradfeat.linearization.lengths import LengthGroups
from gradfeat.samples.batches import Batches, Several
from gradfeat.samples.kept import Kept, KeptResiduals
from gradfeat.samples.memory import FIRST_BATCH, LEVELS, Room, Sizes, available_memory, bytes_of, in_words, room_for

__all__ = ["LEVELS", "Batches", "SampleStore", "available_memory"]


class SampleStore:
    """The samples of a data set as the programs need them.

    Args:
        linearization: The network's programs.
        inputs: The samples.
        cache: The most that is kept of a sample: "residuals", "z0" or "none"; "auto" is as much as `memory` allows.
        memory: A bound on what is kept and what a pass needs at a time (see `gradfeat.samples.memory.bytes_of`); "auto"
            is `gradfeat.samples.memory.automatic`, and half of the free memory where `cache` names a level. What the
            network's bottom needs for `batch_size` samples comes on top.
        batch_size: Samples at a time in the first pass.
        progress: Called with (samples done, samples in all).
        features: f(x) of all samples, (n, d), where they come from another network than J(x) does (an ablation); None:
            the network's own.

    Attributes:
        room: Of how many samples what is kept, and how many go into a batch at most.
        features: f(x) of all samples, (n, d), as first seen, or as given.

    Raises:
        ConfigurationError: A level that cannot be, a bound that is too small; or given features of samples that change,
            or of other samples.
    """

    room: Room
    features: Tensor

    def __init__(
        self,
        linearization: Linearization,
        inputs: Batches,
        *,
        cache: str = "auto",
        memory: float | str = "auto",
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
        self._given = features is not None
        self._rows: Tensor | None = None  # where its samples are in the inputs, and in what is kept
        self._of_point: Tensor | None = None  # those that residuals are kept of, where θ̄₂ has moved
        self._group: Tensor | None = None  # of each sample, where texts are in groups of their lengths
        if isinstance(linearization, LengthGroups):
            parts = in_parts(len(inputs), batch_size)
            self._group = torch.cat([linearization.group_of(inputs.batch(part)) for part in parts])
        self._first: list[Tensor] = []  # the batches in which they were first read
        own = self._read(cache, bytes_of(memory), batch_size, progress)
        self.features = own if features is None else features

    def _read(
        self, cache: str, memory: int | None, batch_size: int, progress: Callable[[int, int], None] | None
    ) -> Tensor:
        """Run the bottom once for each sample, and keep what there is room for; return f(x) of all, (n, d)."""
        lin, inputs, n, done = self.linearization, self.inputs, len(self.inputs), 0
        size, own = min(batch_size, FIRST_BATCH), list[Tensor]()
        while done < n:
            rows = torch.arange(done, min(done + size, n))
            z0 = lin.bottom(inputs.batch(rows.tolist()))
            f, residuals = lin.primal(z0)
            if not own:  # now the size of f(x) is known
                sizes = _sizes(lin, n, self._group, f)
                self.room = room_for(cache, memory, sizes, random=inputs.random, device=lin.device)
                self._z0 = Kept(n, self.room.z0, self._group)
                self._residuals = KeptResiduals(n, self.room.residuals, self._group)
                size = min(batch_size, self.room.batch)
            own.append(f)
            self._first.append(rows)
            self._z0.put(rows, z0)
            self._kept_here().put(rows, residuals)
            done += len(rows)
            if progress is not None:
                progress(done, n)
        return torch.cat(own)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def level(self) -> str:
        """The most that is kept of a sample."""
        return "residuals" if self.room.residuals else "z0" if self.room.z0 else "none"

    @property
    def tensors(self) -> list[Tensor]:
        """All that is held of the samples."""
        return [self.features, *self._z0.tensors, *self._residuals.tensors]

    @property
    def kept(self) -> str:
        """What is kept, in words."""
        n, parts = len(self.inputs), []
        for name, count in (("residuals", self.room.residuals), ("z₀", self.room.z0)):
            if count:
                parts.append(f"{name} of {'all' if count == n else f'{count:,} of {n:,} samples'}")
        size = sum(tensor.untyped_storage().nbytes() for tensor in self.tensors)
        return f"{', '.join(parts) or 'activations alone'} ({in_words(size)}), {self.room.batch} at a time"

    def rows(self, indices: Tensor) -> SampleStore:
        """Return some of the samples, as a store of their own that shares what is kept."""
        part = copy.copy(self)
        part.features = self.features[indices]
        part._rows = self._picked(indices)
        return part

    @staticmethod
    def joined(parts: Sequence[tuple[SampleStore, Tensor]]) -> SampleStore:
        """Return some samples of several stores as one, with a copy of what is kept of these alone, but no residuals.

        Args:
            parts: Stores of one network at one θ̄₂, each with rows of it.
        """
        first = parts[0][0]
        result = copy.copy(first)
        picked = [store._picked(rows) for store, rows in parts]
        result.inputs = Several([(store.inputs, rows) for (store, _), rows in zip(parts, picked, strict=True)])
        n, result._rows, result._of_point = len(result.inputs), None, None
        groups = [
            None if store._group is None else store._group[rows] for (store, _), rows in zip(parts, picked, strict=True)
        ]
        result._group = None if groups[0] is None else torch.cat([group for group in groups if group is not None])
        result.features = torch.cat([store.features[rows] for store, rows in parts])
        kept = sum(int(store._z0.has(rows).sum()) for (store, _), rows in zip(parts, picked, strict=True))
        residuals = n if first.room.residuals >= len(first.inputs) else min(n, first.room.residuals)
        result.room = dataclasses.replace(first.room, z0=kept, residuals=residuals)
        result._z0 = Kept(n, kept, result._group)
        result._residuals = KeptResiduals(n, residuals, result._group)
        places = torch.arange(n).split([len(rows) for rows in picked])
        for (store, _), rows, there in zip(parts, picked, places, strict=True):
            has = store._z0.has(rows)
            for own, new in zip(rows[has].split(FIRST_BATCH), there[has].split(FIRST_BATCH), strict=True):
                if len(own):
                    result._z0.put(new, store._z0.take(own))
        result._first = list(torch.arange(n).split(max(1, min(FIRST_BATCH, first.room.batch))))
        return result

    def at(self, linearization: Linearization, *, batch_size: int = 128) -> SampleStore:
        """Return the same samples for the same network at another θ̄₂.

        z₀ is the same. Residuals take the place of those of the point before, which are computed again where they are
        asked for.
        """
        if self._given:
            raise ConfigurationError("θ̄₂ cannot move where f(x) comes from another network")
        moved, everything = copy.copy(self), torch.arange(len(self))
        moved.linearization = linearization
        moved._of_point = self._picked(everything)
        features, residuals = [], moved._kept_here()
        with torch.no_grad():
            for batch in everything.split(min(batch_size, self.room.batch)):
                z0 = self.z0(batch)
                if residuals.full:
                    features.append(linearization.network(linearization.theta2, z0))
                else:
                    f, new = linearization.primal(z0)
                    features.append(f)
                    residuals.put(self._picked(batch), new)
        moved.features = torch.cat(features)
        return moved

    def release(self) -> None:
        """Give the memory of residuals back; they are computed again, and kept, where they are asked for."""
        self._residuals.release()

    def keep_again(self) -> None:
        """Keep residuals again after `release`, of the batches that they were first computed in: with the same digits.

        Of all samples of the inputs, at the point where they were first kept.
        """
        kept = self._kept_here()
        for rows in self._first:
            if kept.full:
                break
            kept.put(rows, self.linearization.primal(self._joined(self._z0, rows, self._bottom))[1])

    def batches(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Split some samples into batches: places in `indices`; those go together of which the same is kept.

        Texts of a length go together too. No batch is larger than memory allows; `size` itself, which random draws may
        depend on, does not depend on memory.
        """
        size = min(size, self.room.batch)
        rows = self._picked(indices)
        kind = (~self._kept_here().has(rows)).long() + (~self._z0.has(rows)).long()
        if self._group is not None:
            kind += 3 * self._group[rows]
        for one in kind.unique():
            yield from (kind == one).nonzero()[:, 0].split(size)

    def z0(self, indices: Tensor) -> Any:
        """Return z₀ of some samples; the bottom runs for those of which none is kept."""
        return self._joined(self._z0, self._picked(indices), self._bottom)

    def primal(self, indices: Tensor) -> tuple[Tensor, Any]:
        """Return f(x) and the residuals of some samples, which are computed where they are not kept."""
        if self.inputs.random:
            f, residuals = self.linearization.primal(self.z0(indices))
            return (self.features[indices] if self._given else f), residuals
        kept = self._kept_here()

        def computed(rows: Tensor) -> Any:
            residuals = self.linearization.primal(self._joined(self._z0, rows, self._bottom))[1]
            kept.put(rows, residuals)
            return residuals

        return self.features[indices], self._joined(kept, self._picked(indices), computed)

    def all_features(self, indices: Tensor) -> Tensor:
        """Return f(x) of some samples, (n, d); computed anew if the samples change."""
        return self.primal(indices)[0] if self.inputs.random else self.features[indices]

    def _joined(self, kept: Kept, rows: Tensor, compute: Callable[[Tensor], Any]) -> Any:
        """Return what belongs to some samples: what is kept of them, and the rest computed."""
        has = kept.has(rows)
        if bool(has.all()):
            return kept.take(rows)
        if not bool(has.any()):
            return compute(rows)
        both = Kept(len(rows), len(rows), None if self._group is None else self._group[rows])
        for places, value in ((has, kept.take(rows[has])), (~has, compute(rows[~has]))):
            both.put(places.nonzero()[:, 0], value)
        return both.take(torch.arange(len(rows)))

    def _bottom(self, rows: Tensor) -> Any:
        return self.linearization.bottom(self.inputs.batch(rows.tolist()))

    def _kept_here(self) -> Kept:
        """Return the residuals at this point."""
        return self._residuals.at(self.linearization, self._of_point)

    def _picked(self, indices: Tensor) -> Tensor:
        """Return where samples are in the inputs."""
        return indices if self._rows is None else self._rows[indices]


def _sizes(linearization: Linearization, n: int, group: Tensor | None, f: Tensor) -> Sizes:
    """Return what samples are in memory; texts by their groups of lengths."""
    of_sample = linearization.bytes_per_sample
    if isinstance(linearization, LengthGroups) and group is not None:
        of_sample = linearization.bytes_of(group)
    theta2 = sum(value.nbytes for value in linearization.theta2.values())
    return Sizes(n, of_sample["z0"], of_sample["residuals"], f[0].nbytes, theta2)
