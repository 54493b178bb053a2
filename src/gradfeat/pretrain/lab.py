"""CIE Lab colours of sRGB images (illuminant D65, 2° observer), and back."""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB to XYZ. Its white is that of D65 to five digits, and is taken as white, so that grey has a = b = 0.
_TO_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
)
_WHITE = _TO_XYZ.sum(1)
_FOOT = 6 / 29  # below its cube the cube root is continued by a line


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Return L in [0, 100], a and b of sRGB colours.

    Args:
        rgb: (..., 3, h, w), in [0, 1].

    Example:
        >>> rgb_to_lab(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).flatten().round(decimals=1)
        tensor([53.2000, 80.1000, 67.2000])
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp_min(0) ** 2.4)
    fx, fy, fz = _root(_mixed(_TO_XYZ / _WHITE[:, None], linear)).unbind(-3)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=-3)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return sRGB colours, (..., 3, h, w), of Lab colours; outside [0, 1] where sRGB has no such colour.

    Example:
        >>> lab_to_rgb(torch.tensor([100.0, 0.0, 0.0]).view(3, 1, 1)).flatten().round(decimals=3)
        tensor([1., 1., 1.])
    """
    lightness, a, b = lab.unbind(-3)
    fy = (lightness + 16) / 116
    xyz = _cube(torch.stack([fy + a / 500, fy, fy - b / 200], dim=-3))  # in units of white
    linear = _mixed(_TO_XYZ.inverse() * _WHITE, xyz)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def _mixed(matrix: Tensor, colours: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix.to(colours), colours)


def _root(t: Tensor) -> Tensor:
    return torch.where(t > _FOOT**3, t.clamp_min(_FOOT**3) ** (1 / 3), t / (3 * _FOOT**2) + 4 / 29)


def _cube(f: Tensor) -> Tensor:
    return torch.where(f > _FOOT, f**3, 3 * _FOOT**2 * (f - 4 / 29))
