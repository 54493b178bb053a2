"""Images for pre-training: arrays or files brought to one size; and sheets of pictures to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradfeat.data import Preprocessing
from gradfeat.data.images import in_threads, with_image
from gradfeat.errors import DataError
from gradfeat.files.writing import write_whole


def to_arrays(X: Any, size: tuple[int, int] | None) -> np.ndarray:
    """Return images in memory, all of one size: the shorter side is resized, and the centre cut out.

    Args:
        X: uint8 images (n, h, w, c), or paths of images, which become colour images.
        size: Height and width; None keeps those of arrays, and makes images of files 32 × 32.

    Returns:
        (n, h, w, c), uint8.

    Raises:
        DataError: X is something else, or a file cannot be read.
    """
    if isinstance(X, np.ndarray):
        if X.ndim != 4 or X.dtype != np.uint8:
            raise DataError(f"Pre-training takes uint8 images (n, h, w, c); got {X.dtype} of shape {X.shape}.")
        if size is None or size == X.shape[1:3]:
            return X
        return _whole(_sizing(size, X.shape[3]).from_uint8(X))
    paths = [sample for sample in X if isinstance(sample, Path)]
    if not paths or len(paths) < len(X):
        raise DataError("Pre-training takes images; these data are none.")
    sizing = _sizing(size or (32, 32), 3)
    return np.concatenate(in_threads(lambda path: _whole(with_image(path, sizing.from_pil)[None]), paths))


def write_sheet(path: Path, rows: Sequence[Tensor]) -> Path:
    """Write a PNG with pictures in rows.

    Args:
        path: The file.
        rows: Each (n, c, h, w) in [-1, 1]; of 1 or 3 channels, others show the first.
    """
    gap = 2
    sheet = torch.stack([row.detach().cpu().float() for row in rows])  # (rows, n, c, h, w)
    sheet = sheet if sheet.shape[2] == 3 else sheet[:, :, :1]
    padded = torch.nn.functional.pad(sheet.clamp(-1, 1), (0, gap, 0, gap), value=1.0)
    r, n, c, h, w = padded.shape
    pixels = ((padded.permute(0, 3, 1, 4, 2).reshape(r * h, n * w, c) + 1) * 127.5).round().byte().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels if c == 3 else pixels[..., 0]).save(stream, "PNG")
    return write_whole(path, stream.getvalue())


def _sizing(size: tuple[int, int], channels: int) -> Preprocessing:
    return Preprocessing(size=size, mean=(0.0,) * channels, std=(1.0,) * channels, channels=channels)


def _whole(values: Tensor) -> np.ndarray:
    """Return images (n, c, h, w) in [0, 1] as uint8 (n, h, w, c)."""
    return (values * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
