"""The base networks of the experiments: read from a file, or pre-trained in place on the data's own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.backbones import Backbone, resolve
from gradfeat.errors import ConfigurationError
from gradfeat.pretrain import input_scaling, pretrain_encoder, save_encoder
from gradfeat.pretrain.encoder import BIGAN, ConvEncoder
from gradfeat.pretrain.encoder_file import FILE, read_architecture
from gradfeat.pretrain.loop import seeded
from gradfeat.reproduce.cells import Say, claimed


@dataclass(frozen=True)
class EncoderPlan:
    """A base network and how it is pre-trained.

    Attributes:
        name: For tables and files.
        task: The pre-training task.
        arguments: Of `ConvEncoder`, without the images' channels.
        fixed: Whether an encoder from a file must have these layers.
    """

    name: str
    task: str
    arguments: dict[str, Any]
    fixed: bool = True


BIGAN_PLAN = EncoderPlan("bigan", "bigan", BIGAN)
"""Sec. 4.1: convolutions 32-64-128-256-512."""

VAE_PLAN = EncoderPlan(
    "vae",
    "vae",
    {
        "channels": (32, 32, 64, 64, 128, 128, 256, 256),
        "strides": (1, 2, 1, 2, 1, 2, 1, 1),
        "kernel_size": 3,
        "padded": True,
    },
    fixed=False,
)
"""Eight convolutions as of Berthelot et al. (2019), two for each size of the map; a stride where they pool."""

TINY_PLAN = EncoderPlan("tiny", "vae", {"channels": (8, 8, 16, 16, 16), "strides": (1, 2, 1, 2, 1)})
"""Five small convolutions for images of 8 × 8, so that a table has the same columns without any download."""


def plan_of(path: Path, plans: Sequence[EncoderPlan], other: EncoderPlan | None = None) -> EncoderPlan:
    """Return which of a table's encoders a file stands for: the only one, or the one of its pre-training task.

    Args:
        path: The file.
        plans: The table's.
        other: What a file of another task stands for, if it may.

    Raises:
        BackboneError: The file is missing or damaged, or no encoder.
        ConfigurationError: None has this task.
    """
    task = read_architecture(path)[1]["task"]
    if len(plans) == 1:
        return plans[0]
    for plan in plans:
        if plan.task == task:
            return plan
    if other is not None:
        return other
    raise ConfigurationError(
        f"{path} was pre-trained by {task!r}; the table has encoders of {', '.join(plan.task for plan in plans)}"
    )


def read_encoder(path: Path, plan: EncoderPlan, channels: int) -> Backbone:
    """Return an encoder of the planned architecture from a file of `gradfeat pretrain`.

    Raises:
        BackboneError: The file is missing or damaged, or no encoder.
        ConfigurationError: It is of another architecture; the message has both.
    """
    backbone = resolve(f"gradfeat/{path}")
    expected = ConvEncoder(channels, **plan.arguments).arguments
    network = backbone.network
    own = isinstance(network, ConvEncoder) and network.arguments["in_channels"] == channels
    if not own or (plan.fixed and network.arguments != expected):
        found = network.arguments if isinstance(network, ConvEncoder) else type(network).__name__
        raise ConfigurationError(
            f"{path}: expected the encoder {plan.name!r}, {_text(expected)}; found {_text(found)}. Without --encoder "
            "one is pre-trained in place"
        )
    return backbone


def pretrained_in_place(
    plan: EncoderPlan,
    images: np.ndarray,
    folder: Path,
    *,
    epochs: int,
    device: str,
    say: Say,
    labels: np.ndarray | None = None,
) -> Backbone:
    """Pre-train an encoder, or go on where a run in this folder stopped, and return it as its file says.

    Args:
        plan: Which.
        images: uint8 (n, h, w, c).
        folder: Gets the state, the losses, pictures and ``encoder.safetensors``.
        epochs: Passes over the images.
        device: By name.
        say: Takes a line after each epoch.
        labels: (n,), for a task that learns from labels.

    Raises:
        ConfigurationError: The folder has a run of other images or another length.
    """
    with seeded(0):
        network = ConvEncoder(images.shape[-1], **plan.arguments)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with claimed(folder, wait=say):
        encoder = pretrain_encoder(
            images,
            labels,
            task=plan.task,
            network=network,
            epochs=epochs,
            folder=folder,
            device=device,
            random_state=0,
            progress=lambda epoch, of, loss: say(f"pre-training {plan.name}: epoch {epoch} of {of}, loss {loss:.4g}"),
        )
    path = save_encoder(encoder, folder / FILE, task=plan.task, preprocessing=input_scaling(images))
    return resolve(f"gradfeat/{path}")


def _text(arguments: Any) -> str:
    if not isinstance(arguments, dict):
        return str(arguments)
    return ", ".join(f"{name} {value}" for name, value in arguments.items())
