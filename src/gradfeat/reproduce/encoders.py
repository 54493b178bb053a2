"""The base networks of the experiments: read from a file, or pre-trained in place on the data's own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.backbones import Backbone, resolve
from gradfeat.errors import ConfigurationError
from gradfeat.files.writing import make_folder
from gradfeat.pretrain import input_scaling, pretrain_encoder, save_encoder
from gradfeat.pretrain.checkpoint import FILE as CHECKPOINT
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


@dataclass(frozen=True)
class Pretraining:
    """Where an encoder is pre-trained in place, and how long.

    Attributes:
        folder: Gets the state, the losses, pictures and ``encoder.safetensors``.
        epochs: Passes over the images.
        device: By name.
        say: Takes a line after each epoch.
        finished: Whether the file must be there, and nothing is to be trained or written.
    """

    folder: Path
    epochs: int
    device: str
    say: Say
    finished: bool = False

    @property
    def file(self) -> Path:
        """Of the encoder."""
        return self.folder / FILE


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
    takes_images = isinstance(network, ConvEncoder) and network.arguments["in_channels"] == channels
    if not takes_images or (plan.fixed and network.arguments != expected):
        found = network.arguments if isinstance(network, ConvEncoder) else type(network).__name__
        raise ConfigurationError(
            f"{path}: expected the encoder {plan.name!r}, {_text(expected)}; found {_text(found)}. Without --encoder "
            "one is pre-trained in place"
        )
    return backbone


def pretrained_in_place(
    plan: EncoderPlan, images: np.ndarray, pretraining: Pretraining, *, labels: np.ndarray | None = None
) -> Backbone:
    """Pre-train an encoder, or go on where a run in this folder stopped, and return it as its file says.

    An encoder that is there is not trained again, also where its checkpoint has been removed.

    Args:
        plan: Which.
        images: uint8 (n, h, w, c).
        pretraining: Where and how long.
        labels: (n,), for a task that learns from labels.

    Raises:
        BackboneError: The encoder's file is damaged; or not there, if it must be.
        ConfigurationError: The folder has a run of other images or another length, or another encoder.
    """
    with seeded(0):
        network = ConvEncoder(images.shape[-1], **plan.arguments)
    folder, file, say = pretraining.folder, pretraining.file, pretraining.say
    if pretraining.finished:  # the cells know its fingerprint, so its checkpoint need not be asked
        return _read_back(file, plan, network)
    make_folder(folder.parent)
    with claimed(folder, wait=say):
        existing = _read_back(file, plan, network) if file.exists() else None
        if existing is not None and not (folder / CHECKPOINT).exists():
            say(f"{plan.name}: {file} is taken as it is, for no checkpoint beside it says how it was pre-trained")
            return existing
        trained = []

        def progress(epoch: int, of: int, loss: float) -> None:
            trained.append(epoch)
            say(f"pre-training {plan.name}: epoch {epoch} of {of}, loss {loss:.4g}")

        encoder = pretrain_encoder(  # where it has finished, this compares its run with what is asked for now
            images,
            labels,
            task=plan.task,
            network=network,
            epochs=pretraining.epochs,
            folder=folder,
            device=pretraining.device,
            random_state=0,
            progress=progress,
        )
        if existing is not None and not trained:
            return existing
        save_encoder(encoder, file, task=plan.task, preprocessing=input_scaling(images))
        return resolve(f"gradfeat/{file}")


def _read_back(file: Path, plan: EncoderPlan, network: ConvEncoder) -> Backbone:
    """Return the encoder of a run's folder, if it is the one that the run makes there."""
    backbone = resolve(f"gradfeat/{file}")
    task, found = read_architecture(file)[1]["task"], getattr(backbone.network, "arguments", {})
    if task != plan.task or found != network.arguments:
        raise ConfigurationError(
            f"{file}: expected an encoder of the task {plan.task!r}, {_text(network.arguments)}; found {task!r}, "
            f"{_text(found)}. Give another folder with --out, or move this one away"
        )
    return backbone


def _text(arguments: Any) -> str:
    if not isinstance(arguments, dict):
        return str(arguments)
    return ", ".join(f"{name} {value}" for name, value in arguments.items())
