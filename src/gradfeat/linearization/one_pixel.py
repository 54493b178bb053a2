"""Eq. 6 for a convolution whose filters cover the whole image, such as the topmost one of the paper's BiGAN encoder.

Its output has one pixel, and so it is the product of two matrices. Torch's convolution does not see that: its weight
gradient takes several times as long on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional

from gradfeat.linearization.schema import by_name

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


def is_one_pixel(node: fx.Node) -> bool:
    """Whether an operation of an exported graph is a convolution whose filters have one place in its images."""
    if node.target not in _CONVOLUTIONS or node.kwargs:
        return False
    given = by_name(node.target, node.args)
    z, w = given.input.meta["val"], given.weight.meta["val"]
    whole = z.ndim == w.ndim and z.shape[1:] == w.shape[1:]
    return bool(whole and given.groups == 1 and not any(given.padding) and all(step == 1 for step in given.dilation))


def one_pixel(z: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``w * z + bias``, (n, o, 1, ...), for filters as large as the images.

    Example:
        >>> z, w = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 4, 4)
        >>> torch.allclose(one_pixel(z, w), torch.conv2d(z, w), atol=1e-5)
        True
    """
    axes = w.ndim - 2
    if not w.is_contiguous():  # channels-last: so its rows are in one piece too
        z, w = (value.movedim(1, -1) for value in (z, w))
    h = functional.linear(z.flatten(1), w.flatten(1), bias)
    return h.view(*h.shape, *[1] * axes)
