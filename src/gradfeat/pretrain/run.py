"""From images without labels to an encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.pretrain.loop import Progress, seeded, train
from gradfeat.pretrain.vae import VariationalAutoencoder

TASKS: dict[str, Callable[[ConvEncoder, tuple[int, int]], nn.Module]] = {"vae": VariationalAutoencoder}


def pretrain_encoder(
    images: np.ndarray,
    *,
    task: str = "vae",
    epochs: int = 40,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    random_state: int | None = None,
    progress: Progress | None = None,
) -> ConvEncoder:
    """Train a small convolutional encoder on images without labels.

    Args:
        images: (n, h, w, c), uint8 or float in [0, 1]; at least 4 × 4 pixels.
        task: Name of the pre-training task, one of `TASKS`.
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: Peak of Adam's learning-rate cycle.
        random_state: Seed of initial weights, order and noise; None draws from PyTorch's global stream.
        progress: Called after every epoch with (epoch, epochs, mean loss).

    Returns:
        The encoder in evaluation mode; its input is scaled as `input_scaling` says.

    Raises:
        ConfigurationError: Unknown task, or numbers that are not positive.
        DataError: Images of another shape, dtype or range, or too few.
        ConvergenceError: The loss left the finite numbers.

    Example:
        >>> images = np.random.default_rng(0).random((16, 8, 8, 1))
        >>> encoder = pretrain_encoder(images, epochs=1, random_state=0)
        >>> encoder(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 32])
    """
    if task not in TASKS:
        raise ConfigurationError(f"Unknown task {task!r}. Known: {', '.join(TASKS)}." + did_you_mean(task, TASKS))
    if epochs < 1 or batch_size < 2 or not learning_rate > 0:
        raise ConfigurationError(
            "Expected epochs >= 1, batch_size >= 2 (for batch norm) and learning_rate > 0; "
            f"got {epochs}, {batch_size} and {learning_rate}."
        )
    x = _to_input(images)
    with seeded(random_state):
        encoder = ConvEncoder(in_channels=x.shape[1])
        objective = TASKS[task](encoder, (x.shape[2], x.shape[3]))
        train(objective, x, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, progress=progress)
    return encoder


def input_scaling(images: np.ndarray) -> dict[str, Any]:
    """Return how `pretrain_encoder` scales images, as fields of `gradfeat.data.Preprocessing`: to [-1, 1], no more.

    Example:
        >>> input_scaling(np.zeros((2, 8, 8, 1)))["size"]
        [8, 8]
    """
    _, height, width, channels = images.shape
    return {
        "size": [height, width],
        "crop_pct": 1.0,
        "mean": [0.5] * channels,
        "std": [0.5] * channels,
        "channels": channels,
    }


def _to_input(images: np.ndarray) -> Tensor:
    """Return images as float32 (n, c, h, w) in [-1, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or len(images) < 2 or min(images.shape[1:3]) < 4:
        raise DataError(f"Expected at least two images (n, h, w, c) of 4 × 4 pixels or more; got shape {images.shape}.")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"Expected images of dtype uint8, or float in [0, 1]; got {images.dtype}.")
    values = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    if images.dtype == np.uint8:
        values /= 255
    elif not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise DataError("Float images are expected in [0, 1] without NaN; divide by their largest value, or use uint8.")
    return torch.from_numpy(values * 2 - 1)
