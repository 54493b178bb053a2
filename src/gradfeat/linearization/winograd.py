"""Eq. 6 for large 3 × 3 convolutions, with fewer multiplications: Winograd's minimal filtering F(4 × 4, 3 × 3).

Tiles of 6 × 6 pixels and filters are taken to a space where a convolution is an elementwise product (Lavin & Gray,
"Fast algorithms for convolutional neural networks", CVPR 2016): 36 multiplications for 16 pixels of a channel, not 144.
The two terms of ``w̃ * z + w * ż`` are summed there, and share the way back. Torch's CPU kernels for float32 do not do
this (those of a GPU do it themselves). It pays where channels are many; see `serves`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_PIXELS: list[list[float]] = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_FILTERS: list[list[float]] = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_BACK: list[list[float]] = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

_LEAST_CHANNELS, _LEAST_TILES, _MOST_COVER = 384, 256, 0.35


def serves(z: Tensor, w: Tensor) -> bool:
    """Whether this is the faster way for images z, (n, i, h, w), and filters w, (o, i, 3, 3), of padding 1.

    Measured with float32 on two CPUs: for 64 images of 512 × 7 × 7 it takes three quarters of the time of torch's
    convolutions, for 256 channels or for 32 images as long. Tiles should cover little more than the image.
    """
    if z.device.type != "cpu" or z.dtype not in (torch.float32, torch.float64) or min(w.shape[:2]) < _LEAST_CHANNELS:
        return False
    n, _, height, width = z.shape
    tiles = math.ceil(height / 4) * math.ceil(width / 4)
    return n * tiles >= _LEAST_TILES and 4 * tiles <= _MOST_COVER * height * width


def layer_tangent_3x3(
    z: Tensor | None, w_tangent: Tensor | None, bias: Tensor | None, z_tangent: Tensor | None, w: Tensor | None
) -> Tensor:
    """Return ``w̃ * z + b̃ + w * ż`` (Eq. 6) for a 3 × 3 convolution of stride 1 and padding 1, the faster way.

    A term whose factors are None is absent; one of the two is there.
    """
    pairs = [(a, b) for a, b in ((z, w_tangent), (z_tangent, w)) if a is not None and b is not None]
    if all(serves(*pair) for pair in pairs):
        return convolution_sum(pairs, bias)
    first, *rest = pairs
    h = torch.conv2d(*first, bias, padding=1)
    for pair in rest:
        h = h + torch.conv2d(*pair, padding=1)
    return h


def convolution_sum(pairs: list[tuple[Tensor, Tensor]], bias: Tensor | None) -> Tensor:
    """Return ``Σ w * z + bias`` over pairs (z, w), with stride 1 and padding 1.

    Args:
        pairs: Images, (n, i, h, w), and filters, (o, i, 3, 3).
        bias: (o,), or None.

    Returns:
        (n, o, h, w), channels-last.

    Example:
        >>> z, w = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
        >>> torch.allclose(convolution_sum([(z, w)], None), torch.conv2d(z, w, padding=1))
        True
    """
    z, w = pairs[0]
    n, _, height, width = z.shape
    down, across = math.ceil(height / 4), math.ceil(width / 4)
    product = z.new_zeros(())
    for i, (z, w) in enumerate(pairs):
        channels, outputs = z.shape[1], w.shape[0]
        pixels = _squared(_PIXELS, z) @ _tiles(z, down, across).view(36, -1)
        filters = _squared(_FILTERS, w) @ w.permute(2, 3, 1, 0).reshape(9, -1)
        factors = pixels.view(36, -1, channels), filters.view(36, channels, outputs)
        product = torch.baddbmm(product, *factors) if i else torch.bmm(*factors)
    y = (_squared(_BACK, product) @ product.view(36, -1)).view(4, 4, n, down, across, -1)
    y = y.permute(2, 3, 0, 4, 1, 5).reshape(n, 4 * down, 4 * across, -1)[:, :height, :width]
    return (y if bias is None else y + bias).permute(0, 3, 1, 2)


def _squared(rows: list[list[float]], like: Tensor) -> Tensor:
    """Return the transform of both axes at once, a Kronecker product."""
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one).to(like)


def _cut(z: Tensor, down: int, across: int) -> Tensor:
    """Cut images, padded by 1 and to whole tiles, into tiles that overlap by 2: (6, 6, n, down, across, i)."""
    _, _, height, width = z.shape
    padding = (0, 0, 1, 4 * across + 1 - width, 1, 4 * down + 1 - height)
    padded = functional.pad(z.permute(0, 2, 3, 1), padding)
    return padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3).contiguous()


def _paste(tiles: Tensor, height: int, width: int) -> Tensor:
    """Sum tiles where they overlap: the transpose of `_cut`."""
    _, _, n, down, across, channels = tiles.shape
    whole = tiles.new_zeros(n, 4 * down + 2, 4 * across + 2, channels)
    for i in range(6):
        for j in range(6):
            whole[:, i : i + 4 * down : 4, j : j + 4 * across : 4] += tiles[i, j]
    return whole[:, 1 : 1 + height, 1 : 1 + width].permute(0, 3, 1, 2)


def _tiles(z: Tensor, down: int, across: int) -> Tensor:
    """Return `_cut`, differentiable."""
    tiles: Tensor = _Tiles.apply(z, down, across)  # type: ignore[no-untyped-call]
    return tiles


def _pasted(tiles: Tensor, height: int, width: int) -> Tensor:
    """Return `_paste`, differentiable."""
    images: Tensor = _Pasted.apply(tiles, height, width)  # type: ignore[no-untyped-call]
    return images


class _Tiles(torch.autograd.Function):
    """`_cut`, with `_paste` as its backward, which is several times faster than torch's for overlapping windows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, down: int, across: int) -> Tensor:
        return _cut(z, down, across)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.size = inputs[0].shape[2:]
        ctx.tiles = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _pasted(gradient, *ctx.size), None, None

    @staticmethod
    def jvp(ctx: Any, z: Tensor, *_: None) -> Tensor:
        return _tiles(z, *ctx.tiles)


class _Pasted(torch.autograd.Function):
    """`_paste`, with `_cut` as its backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tiles: Tensor, height: int, width: int) -> Tensor:
        return _paste(tiles, height, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.tiles = inputs[0].shape[3:5]
        ctx.size = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _tiles(gradient, *ctx.tiles), None, None

    @staticmethod
    def jvp(ctx: Any, tiles: Tensor, *_: None) -> Tensor:
        return _pasted(tiles, *ctx.size)
