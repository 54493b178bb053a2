"""From images to an encoder: names of tasks and networks, checks, and the call of the loop."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.contexts import float32_by_default, plain
from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.files.digests import digest_tensors
from gradfeat.pretrain.bigan import BiGAN
from gradfeat.pretrain.checkpoint import WEIGHTS, Checkpoint
from gradfeat.pretrain.cifar_resnet import CifarResNet
from gradfeat.pretrain.colorization import Colorization
from gradfeat.pretrain.context import Context
from gradfeat.pretrain.encoder import BIGAN, ConvEncoder
from gradfeat.pretrain.images import write_sheet
from gradfeat.pretrain.jigsaw import Jigsaw
from gradfeat.pretrain.loop import Listeners, Progress, Recipe, Step, Task, scaled, seeded, train
from gradfeat.pretrain.rotation import Rotation
from gradfeat.pretrain.supervised import Supervised
from gradfeat.pretrain.vae import VariationalAutoencoder

TASKS: dict[str, Any] = {  # name -> class of the task; its keywords are its options
    "vae": VariationalAutoencoder,
    "bigan": BiGAN,
    "rotation": Rotation,
    "jigsaw": Jigsaw,
    "colorization": Colorization,
    "context": Context,
    "supervised": Supervised,
}
NETWORKS: dict[str, Callable[[int], nn.Module]] = {  # name -> the network for images of so many channels
    "small": ConvEncoder,
    "bigan": partial(ConvEncoder, **BIGAN),
    "resnet20": partial(CifarResNet, depth=20),
    "resnet56": partial(CifarResNet, depth=56),
}
_SHOWN = 8  # pictures in a row


@plain()
def pretrain_encoder(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    task: str = "vae",
    network: str | nn.Module | None = None,
    epochs: int = 40,
    batch_size: int = 64,
    learning_rate: float | None = None,
    options: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    checkpoint_every: int = 1,
    device: str = "cpu",
    random_state: int | None = None,
    progress: Progress | None = None,
    step: Step | None = None,
) -> Any:
    """Train an encoder on images.

    Args:
        images: (n, h, w, c), uint8 or float in [0, 1]; at least 4 × 4 pixels.
        labels: (n,), for the task "supervised" only.
        task: Name of the pre-training task, one of `TASKS`.
        network: One of `NETWORKS`, or a module whose output is f(x), (n, d), trained in place; None is the task's own.
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: Peak of Adam's learning-rate cycle (bigan: the rate); None is the task's own.
        options: The task's own keywords, e.g. `beta` for vae; see the task's class.
        folder: Gets the state as it trains, a table of losses, and pictures where a task makes some. A run of the
            same configuration that was interrupted goes on where it stopped; a module then has to come with the
            weights that it had before the run.
        resume: Whether it goes on; False starts again, and keeps the state of the run that was there as
            `checkpoint.before.safetensors` until the new one is finished.
        checkpoint_every: Epochs from one writing of the state to the next: more where an epoch takes a second.
        device: "cpu", "cuda", ...
        random_state: Seed of initial weights, order and noise; None draws from PyTorch's global stream.
        progress: Called after every epoch with (epoch, epochs, mean of the first loss).
        step: Called after every batch with (batches done, batches of the whole run).

    Returns:
        The encoder in evaluation mode, on the CPU, one of `NETWORKS` or the given module; its input is scaled as
        `input_scaling` says.

    Raises:
        ConfigurationError: Unknown task, network or option, numbers that are not positive, or a folder with the
            checkpoint of another run.
        DataError: Images of another shape, dtype or range, or too few; or a damaged checkpoint.
        ConvergenceError: A loss left the finite numbers.

    Example:
        >>> images = np.random.default_rng(0).random((16, 8, 8, 1))
        >>> encoder = pretrain_encoder(images, epochs=1, random_state=0)
        >>> encoder(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 32])
    """
    kind = _task_named(task)
    recipe = Recipe(epochs, batch_size, kind.learning_rate if learning_rate is None else learning_rate)
    _check_numbers(recipe, checkpoint_every)
    network = _known_network(kind.network if network is None else network)
    options = dict(options or {})
    _check_options(task, options)
    x = _to_input(images)
    y = _to_targets(task, labels, len(x))
    if y is not None:
        options["classes"] = int(y.max()) + 1
    checkpoint = None
    if folder is not None:
        about = {**_about_network(network), **_about_data(x, y), **asdict(recipe)}
        configuration = {"task": task, **options, **about, "random_state": random_state}
        checkpoint = Checkpoint(folder, configuration, restart=not resume, every=checkpoint_every)
    with float32_by_default(), seeded(random_state):
        encoder = NETWORKS[network](x.shape[1]) if isinstance(network, str) else network
        objective = kind(encoder, tuple(x.shape[1:]), **options)
        objective.look_at(x)
        listeners = Listeners(epoch=progress, batch=step)
        train(objective, x, y, recipe=recipe, device=device, checkpoint=checkpoint, listeners=listeners)
        objective.cpu()
        if folder is not None:
            _draw_pictures(objective, x[:_SHOWN], Path(folder).expanduser() / "pictures.png")
    return encoder


def _task_named(name: str) -> Any:
    if name not in TASKS:
        raise ConfigurationError(f"Unknown task {name!r}. Known: {', '.join(TASKS)}." + did_you_mean(name, TASKS))
    return TASKS[name]


def _check_numbers(recipe: Recipe, checkpoint_every: int) -> None:
    if recipe.epochs < 1 or recipe.batch_size < 2 or not recipe.learning_rate > 0 or checkpoint_every < 1:
        raise ConfigurationError(
            "Expected epochs >= 1, batch_size >= 2 (for batch norm), learning_rate > 0 and checkpoint_every >= 1; "
            f"got {recipe.epochs}, {recipe.batch_size}, {recipe.learning_rate} and {checkpoint_every}."
        )


def _known_network(network: str | nn.Module) -> str | nn.Module:
    if isinstance(network, str) and network not in NETWORKS:
        raise ConfigurationError(
            f"Unknown network {network!r}. Known: {', '.join(NETWORKS)}." + did_you_mean(network, NETWORKS)
        )
    return network


def _draw_pictures(objective: Task, images: Tensor, path: Path) -> None:
    """Write the pictures that a task makes of some images, where it makes any."""
    with torch.no_grad():
        rows = objective.pictures(scaled(images))
    if rows:
        write_sheet(path, rows)


def _about_data(x: Tensor, y: Tensor | None) -> dict[str, Any]:
    """Return what a run is by its images and labels: their shape, and a digest of both."""
    return {"images": list(x.shape), "content": _digest(x.numpy(), b"" if y is None else y.numpy())}


def _about_network(network: str | nn.Module) -> dict[str, str]:
    """Return what a run is by its network: a name, or a module's layers and the weights that it starts from."""
    if isinstance(network, str):
        return {"network": network}
    return {"network": _digest(str(network).encode()), WEIGHTS: digest_tensors(network.state_dict())[:16]}


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
    """Return images as (n, c, h, w), uint8 or float32 in [0, 1]."""
    images = np.asarray(images)
    if images.ndim != 4 or len(images) < 2 or min(images.shape[1:3]) < 4:
        raise DataError(f"Expected at least two images (n, h, w, c) of 4 × 4 pixels or more; got shape {images.shape}.")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"Expected images of dtype uint8, or float in [0, 1]; got {images.dtype}.")
    # A copy in C order also where there is one channel: other strides would choose other kernels of convolutions.
    values = np.array(images.transpose(0, 3, 1, 2), order="C")
    if images.dtype == np.uint8:
        return torch.from_numpy(values)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise DataError("Float images are expected in [0, 1] without NaN; divide by their largest value, or use uint8.")
    return torch.from_numpy(values.astype(np.float32))


def _to_targets(task: str, labels: np.ndarray | None, n: int) -> Tensor | None:
    """Return labels of any kind as whole numbers from 0, in sorted order; None for a task without labels."""
    if task != "supervised":
        if labels is not None:
            raise ConfigurationError(f"The task {task!r} takes no labels.")
        return None
    labels = None if labels is None else np.asarray(labels)
    if labels is None or labels.shape != (n,):
        got = "none" if labels is None else f"shape {labels.shape}"
        raise DataError(f"The task 'supervised' needs one label for each of {n} images; got {got}.")
    classes, y = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"All images have the label {classes[0]!r}: at least two classes are needed.")
    return torch.from_numpy(y.astype(np.int64))


def _check_options(task: str, options: Mapping[str, Any]) -> None:
    keywords = inspect.signature(TASKS[task]).parameters.values()
    known = [k.name for k in keywords if k.kind is k.KEYWORD_ONLY and k.name != "classes"]
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"The task {task!r} has no option {name!r}. Its options: {', '.join(known) or 'none'}."
                + did_you_mean(name, known)
            )


def _digest(*content: Any) -> str:
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.hexdigest()[:16]
