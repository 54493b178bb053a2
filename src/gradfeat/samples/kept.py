"""What is kept of samples: tensors of as many of them as there is room for, found by the sample's index."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradfeat.linearization import Linearization
from gradfeat.linearization.lengths import Split


class Kept:
    """z₀ or residuals of some of n samples, those that are put first.

    What was put stays as it is, so that what `take` returns may share memory with it.

    Args:
        n: Number of samples.
        capacity: How many are kept at most.
        group: Of each sample, (n,), where texts are in groups of their lengths, which share the room by their numbers.
        rows: The samples that there are; None is all. The others are never put.
    """

    def __init__(self, n: int, capacity: int, group: Tensor | None = None, rows: Tensor | None = None) -> None:
        self._group = group
        self._slot = torch.full((n,), -1)
        self._lock = threading.Lock()
        if group is None:
            capacities = [min(capacity, n if rows is None else len(rows))]
        else:
            counts = torch.bincount(group if rows is None else group[rows], minlength=int(group.max()) + 1).tolist()
            capacities = [min(count, count * capacity // max(1, sum(counts))) for count in counts]
        self._tables = [_Table(most) for most in capacities]

    @property
    def capacity(self) -> int:
        """How many samples are kept at most."""
        return sum(table.capacity for table in self._tables)

    @property
    def full(self) -> bool:
        """Whether there is no room left."""
        return all(table.used == table.capacity for table in self._tables)

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        for table in self._tables:
            yield from table.tensors

    def has(self, rows: Tensor) -> Tensor:
        """Return which samples are kept, (m,)."""
        return self._slot[rows] >= 0

    def put(self, rows: Tensor, value: Any) -> None:
        """Keep what belongs to some samples, as far as there is room."""
        if not isinstance(value, Split):
            self._put(self._tables[0], rows, value)
            return
        for table, places, part in zip(self._tables, value.rows, value.parts, strict=False):
            if part is not None:
                self._put(table, rows[places.cpu()], part)

    def take(self, rows: Tensor) -> Any:
        """Return what belongs to some samples, all of which are kept."""
        slot = self._slot[rows]
        if self._group is None:
            return self._tables[0].take(slot)
        group = self._group[rows]
        places = tuple((group == i).nonzero()[:, 0] for i in range(len(self._tables)))
        pairs = zip(self._tables, places, strict=True)
        return Split(places, tuple(table.take(slot[own]) if len(own) else None for table, own in pairs))

    def _put(self, table: _Table, rows: Tensor, value: Any) -> None:
        with self._lock:
            new = (self._slot[rows] < 0).nonzero()[: table.capacity - table.used, 0]
            if len(new):
                self._slot[rows[new]] = table.put(value, None if len(new) == len(rows) else new)


class _Table:
    """A tensor or several, with a sample in each row.

    Args:
        capacity: Number of rows.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.tensors: list[Tensor] = []
        self._single = False

    def put(self, value: Any, chosen: Tensor | None) -> Tensor:
        """Keep some rows of a value, or all; return where."""
        self._single = isinstance(value, Tensor)
        parts = (value,) if self._single else value
        if not self.tensors:
            self.tensors = [_room(part, self.capacity) for part in parts]
        start = self.used
        self.used += len(parts[0]) if chosen is None else len(chosen)
        for target, part in zip(self.tensors, parts, strict=True):
            # past autograd's count of changes: what was taken before shares memory with other rows alone
            target.data[start : self.used] = part if chosen is None else part[chosen.to(part.device)]
        return torch.arange(start, self.used)

    def take(self, slot: Tensor) -> Any:
        """Return some rows: without a copy where they follow each other."""
        where: Any = slot
        if len(slot) and bool((slot == slot[0] + torch.arange(len(slot))).all()):
            where = slice(int(slot[0]), int(slot[0]) + len(slot))
        picked = tuple(tensor[where] for tensor in self.tensors)
        return picked[0] if self._single else picked


class KeptResiduals:
    """Residuals at one point at a time: those of the network at another θ̄₂ take the place of these.

    Args:
        n: Number of samples.
        capacity: How many are kept at most.
        group: Of each sample, (n,), or None.
    """

    def __init__(self, n: int, capacity: int, group: Tensor | None = None) -> None:
        self.capacity = capacity
        self._n, self._group = n, group
        self._point: Linearization | None = None
        self._kept = Kept(n, 0, group)
        self._lock = threading.Lock()

    def at(self, linearization: Linearization, rows: Tensor | None) -> Kept:
        """Return those at a point; there are none yet where it is another one than before.

        Args:
            linearization: The point.
            rows: The samples that are asked for there; None is all.
        """
        with self._lock:
            if self._point is not linearization:
                self._kept = Kept(self._n, 0, self._group)  # first, so that both are never there together
                self._kept = Kept(self._n, self.capacity, self._group, rows)
                self._point = linearization
            return self._kept

    def release(self) -> None:
        """Forget all."""
        with self._lock:
            self._point, self._kept = None, Kept(self._n, 0, self._group)

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        return self._kept.tensors


def _room(part: Tensor, n: int) -> Tensor:
    """Return room for n samples, a sample's axes in the same order in memory as in `part` (channels-last or not)."""
    strides = part.stride()
    axes = [0, *sorted(range(1, part.ndim), key=lambda axis: (-strides[axis], axis))]
    room = torch.empty([n, *(part.shape[axis] for axis in axes[1:])], dtype=part.dtype, device=part.device)
    return room.permute([axes.index(axis) for axis in range(part.ndim)])
