"""The base networks of Tables 2 and 4: trained on ImageNet by others, or on small images by this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gradfeat.backbones import Backbone, resolve
from gradfeat.backbones.weights import read_weights
from gradfeat.data import Preprocessing
from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.pretrain.encoder_file import FORMAT, read_architecture
from gradfeat.reproduce.ablation import conv_columns
from gradfeat.reproduce.encoders import VAE_PLAN, EncoderPlan, Pretraining, pretrained_in_place

Columns = Mapping[str, str | Sequence[str]]

ROOM = 0.875
"""Part of a resized image's side that a crop keeps: 224 of 256 pixels, as is usual."""


@dataclass(frozen=True)
class Supervised:
    """A network that others trained on ImageNet.

    Attributes:
        backbone: Its name.
        columns: θ₂ by the name of the column: the topmost block, the two topmost.
        image_size: Side of its input; None is its own.
    """

    backbone: str
    columns: Columns
    image_size: int | None = None


MOBILENET = Supervised(
    "timm/mobilenetv2_100?pad_type=same",
    {"block 6": ("blocks.6", "conv_head"), "blocks 5.2-6": ("blocks.5.2", "blocks.6", "conv_head")},
    image_size=128,
)
"""Two inverted residual blocks with the convolution above them, in the place of ResNet-18's residual blocks."""

RESNET = Supervised("torchvision/resnet18", {"layer4.1": ("layer4.1",), "layer4.0-1": ("layer4.0", "layer4.1")})
"""Sec. 4.1."""

TASKS = ("jigsaw", "rotation", "supervised")
"""What the small networks are pre-trained by, the same layers each time."""

SMALL = VAE_PLAN.arguments
"""Eight convolutions, padded, so that they take the tiles of a puzzle as well as whole images."""

TINY = {"channels": (8, 16, 16), "strides": (1, 2, 2), "kernel_size": 3, "padded": True}


def imagenet_network(plan: Supervised, file: Path | None) -> Backbone:
    """Return a network with ImageNet's weights: those of a file, or those that its library downloads.

    Raises:
        BackboneError: The file is damaged or of another network, or there is no network and no file.
    """
    return resolve(plan.backbone, weights=file, image_size=plan.image_size, preprocessing={"crop_pct": ROOM})


def small_network(
    task: str,
    arguments: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    pretraining: Pretraining,
) -> Backbone:
    """Pre-train a small encoder by one of `TASKS`, or go on where that stopped, and return it.

    Args:
        task: One of `TASKS`.
        arguments: Of `ConvEncoder`, without the images' channels.
        images: uint8 (n, h, w, c).
        labels: (n,), which the task "supervised" alone learns from.
        pretraining: Where and how long.
    """
    plan = EncoderPlan(task, task, dict(arguments))
    return with_room(pretrained_in_place(plan, images, pretraining, labels=labels if task == "supervised" else None))


def own_task(file: Path) -> str | None:
    """Return what a network of `gradfeat pretrain` was trained by; None for the weights of another network.

    Raises:
        BackboneError: The file is missing or damaged, or holds no weights.
    """
    if read_weights(file)[1].get("format") != FORMAT:
        return None
    task: str = read_architecture(file)[1]["task"]
    return task


def own_network(file: Path) -> tuple[str, Backbone] | None:
    """Return a network of `gradfeat pretrain` with the name of its task; None for the weights of another network.

    Raises:
        BackboneError: As `own_task` says.
    """
    task = own_task(file)
    return None if task is None else (task, with_room(resolve(f"gradfeat/{file}")))


def columns_of(network: nn.Module, depths: int) -> Columns:
    """Return the columns of an own encoder, as many as asked; of any other network the topmost block alone."""
    if not isinstance(network, ConvEncoder):
        return {"topmost block": "auto"}
    return dict(conv_columns(network, depths))


def with_room(backbone: Backbone) -> Backbone:
    """Return the network with images resized to more than it takes, so that there is room for crops."""
    preprocessing = backbone.preprocessing
    if not isinstance(preprocessing, Preprocessing):
        return backbone
    return replace(backbone, preprocessing=replace(preprocessing, crop_pct=min(ROOM, preprocessing.crop_pct)))
