"""Samples that can be read by index: from one source, or from several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Batches(Protocol):
    """Samples that can be read by index: `gradfeat.data.Inputs`."""

    @property
    def random(self) -> bool:
        """Whether a sample may change from pass to pass."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return the samples at `indices`, as the network takes them."""


class Several:
    """Some samples of several sources, one source after another.

    Args:
        parts: Sources, each with the indices of its samples, (m,).
    """

    def __init__(self, parts: Sequence[tuple[Batches, Tensor]]) -> None:
        self._sources = [source for source, _ in parts]
        self._rows = torch.cat([rows for _, rows in parts])
        self._of = torch.cat([torch.full((len(rows),), i) for i, (_, rows) in enumerate(parts)])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def random(self) -> bool:
        """Whether a sample may change from pass to pass."""
        return any(source.random for source in self._sources)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Return samples, as `Inputs.batch` does."""
        chosen = torch.as_tensor(list(indices), dtype=torch.long)
        of, rows, found, places = self._of[chosen], self._rows[chosen], [], []
        for i in of.unique().tolist():
            own = (of == i).nonzero()[:, 0]
            found.append(self._sources[i].batch(rows[own].tolist()))
            places.append(own)
        return torch.cat(found)[torch.argsort(torch.cat(places))]
