"""Sample-major storage: what is kept of a batch has the sample as first axis, wherever the network puts it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import BatchDependenceError

TOLERANCE = 1e-3
"""Rounding of a value computed in two ways, in units of its largest entry: low precision and its kernels included."""


@dataclass(frozen=True)
class Layout:
    """Where the samples of a batch lie in a tensor.

    Attributes:
        axis: The axis that grows with the batch.
        factor: k, if that axis has the size k·n (windows, heads or positions joined to the batch).
        major: Whether that axis is (n, k), and not (k, n).
    """

    axis: int
    factor: int = 1
    major: bool = True

    def pack(self, value: Tensor, n: int) -> Tensor:
        """Return `value` with the sample as first axis; a view."""
        if self.factor == 1:
            return value if self.axis == 0 else value.movedim(self.axis, 0)
        sizes = (n, self.factor) if self.major else (self.factor, n)
        split: Tensor = value.unflatten(self.axis, sizes)
        return split.movedim(self.axis if self.major else self.axis + 1, 0)

    def unpack(self, value: Tensor) -> Tensor:
        """Undo `pack`."""
        if self.factor == 1:
            return value if self.axis == 0 else value.movedim(0, self.axis)
        return value.movedim(0, self.axis if self.major else self.axis + 1).flatten(self.axis, self.axis + 1)


def find_layout(three: Tensor, two: Tensor, what: str) -> Layout:
    """Find the layout of a value from its instances for samples (a, b, c) and (b, a).

    Raises:
        BatchDependenceError: No axis holds the samples, or a sample's values differ with the others of its batch.
    """
    if three.ndim != two.ndim:
        raise BatchDependenceError(f"{what} changes its number of axes with the batch size")
    grown = [axis for axis in range(three.ndim) if three.shape[axis] != two.shape[axis]]
    if len(grown) != 1 or three.shape[grown[0]] * 2 != two.shape[grown[0]] * 3 or two.shape[grown[0]] % 2:
        raise BatchDependenceError(
            f"{what} mixes the samples of a batch: its shape is {tuple(two.shape)} for 2 samples and "
            f"{tuple(three.shape)} for 3"
        )
    axis = grown[0]
    factor = two.shape[axis] // 2
    layouts = [Layout(axis, factor, major) for major in ((True, False) if factor > 1 else (True,))]
    for layout in layouts:
        first, second = layout.pack(three, 3), layout.pack(two, 2)
        if agree(first[:2], second.flip(0)):
            return layout
    first, second = layouts[0].pack(three, 3), layouts[0].pack(two, 2)
    raise _depends(first[:2], second.flip(0), what)


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of a value agree up to rounding, all entries but few, which may have crossed a jump."""
    difference = _difference(a, b)
    if difference is None:
        return False
    if not a.dtype.is_floating_point:  # masks and places
        return bool(difference.mean() <= 0.01) if a.numel() else True
    if not difference.numel():
        return True
    usual = difference.quantile(0.95) if difference.numel() < 10**7 else difference.mean()
    return bool(usual <= TOLERANCE)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of a value agree up to rounding in every entry (for masks and places: in most)."""
    difference = _difference(a, b)
    if difference is None:
        return False
    if not a.dtype.is_floating_point:
        return agree(a, b)
    return not difference.numel() or bool(difference.max() <= TOLERANCE)


def doubtful(layout: Layout, three: Tensor, two: Tensor) -> bool:
    """Whether entries of the two samples that both batches hold differ by more than rounding."""
    return not equal(layout.pack(three, 3)[:2], layout.pack(two, 2).flip(0))


def refuse_doubtful(layout: Layout, three: Tensor, two: Tensor, what: str) -> None:
    """Refuse such entries.

    Raises:
        BatchDependenceError: A sample's values differ with the others of its batch.
    """
    if doubtful(layout, three, two):
        raise _depends(layout.pack(three, 3)[:2], layout.pack(two, 2).flip(0), what)


def _depends(first: Tensor, second: Tensor, what: str) -> BatchDependenceError:
    return BatchDependenceError(
        f"{what} of one sample depends on the other samples of its batch (or on chance): it differs by "
        f"{(first.double() - second.double()).abs().max().item():.2g} between two batches that both hold "
        "the sample. Gradient features need a network that treats each sample by itself."
    )


def _difference(a: Tensor, b: Tensor) -> Tensor | None:
    """Return how far entries are apart, in units of the largest; None where they are finite in different places."""
    if not a.dtype.is_floating_point:
        return (a != b).double()
    a, b = a.double(), b.double()
    if not bool((torch.isfinite(a) == torch.isfinite(b)).all()):
        return None
    a, b = torch.nan_to_num(a, 0.0, 0.0, 0.0), torch.nan_to_num(b, 0.0, 0.0, 0.0)
    scale = max(a.abs().max().item(), b.abs().max().item()) if a.numel() else 0.0
    return (a - b).abs() / scale if scale else torch.zeros_like(a)
