"""What every pre-training task shares: a seed, the loop, and the encoder's file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gradfeat._version import __version__
from gradfeat.errors import BackboneError, ConvergenceError
from gradfeat.pretrain.encoder import ConvEncoder

Progress = Callable[[int, int, float], None]

FORMAT = "gradfeat.encoder"
FORMAT_VERSION = 1
_ARCHITECTURES = {"ConvEncoder": ConvEncoder}


@contextmanager
def seeded(random_state: int | None) -> Iterator[None]:
    """Seed PyTorch's random numbers for one block, and leave the caller's stream as it was.

    Args:
        random_state: The seed; None draws from the caller's stream.

    Example:
        >>> with seeded(0):
        ...     a = torch.rand(2)
        >>> with seeded(0):
        ...     bool((torch.rand(2) == a).all())
        True
    """
    if random_state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_state)
        yield


def train(
    task: nn.Module, x: Tensor, *, epochs: int, batch_size: int, learning_rate: float, progress: Progress | None = None
) -> list[float]:
    """Minimize `task(batch)`, a scalar loss, by Adam with one learning-rate cycle.

    Args:
        task: Module whose forward takes a batch of images and returns the loss; all its parameters are trained.
        x: Images, (n, c, h, w), already scaled.
        epochs: Passes over the images.
        batch_size: Images per step; a last batch of one image is dropped, for batch norm.
        learning_rate: Peak of the cycle.
        progress: Called after every epoch with (epoch, epochs, mean loss).

    Returns:
        The mean loss of every epoch.

    Raises:
        ConvergenceError: The loss left the finite numbers.
    """
    starts = [start for start in range(0, len(x), batch_size) if len(x) - start > 1]
    optimizer = torch.optim.Adam(task.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(2, epochs * len(starts)))
    history: list[float] = []
    task.train()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(x))
        total = torch.zeros(())
        for start in starts:
            loss = task(x[order[start : start + batch_size]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        history.append(float(total) / len(starts))
        if not torch.isfinite(total):
            raise ConvergenceError(
                f"Pre-training left the finite numbers in epoch {epoch}: use a smaller learning_rate."
            )
        if progress is not None:
            progress(epoch, epochs, history[-1])
    task.eval()
    return history


def save_encoder(network: nn.Module, path: str | Path, *, task: str, preprocessing: Mapping[str, Any]) -> Path:
    """Write an encoder as one safetensors file, atomically: a crash leaves no half file under the final name.

    Args:
        network: An encoder with `arguments`, e.g. `ConvEncoder`.
        path: The file, ending in ``.safetensors``.
        task: The pre-training task, for the record.
        preprocessing: How its input is scaled, e.g. `pretrain.input_scaling(images)`; JSON-able.

    Returns:
        The path.

    Raises:
        BackboneError: The architecture is none of gradfeat's own, or the name has another ending.
    """
    path = Path(path).expanduser()
    architecture = type(network).__name__
    if _ARCHITECTURES.get(architecture) is not type(network):
        raise BackboneError(
            f"Expected one of {', '.join(_ARCHITECTURES)}, got {architecture}: save its state_dict() yourself."
        )
    if path.suffix != ".safetensors":
        raise BackboneError(f"An encoder's file ends in .safetensors; got {path.name}.")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "architecture": architecture,
        "arguments": json.dumps(network.arguments),
        "preprocessing": json.dumps(dict(preprocessing)),
        "task": task,
        "gradfeat": __version__,
    }
    content = safetensors.torch.save({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def load_encoder(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read an encoder that `save_encoder` wrote; nothing from the file is executed.

    Args:
        path: The file.

    Returns:
        The network in evaluation mode, and the metadata: ``architecture``, ``arguments``, ``preprocessing``, ``task``,
        ``gradfeat`` (version).

    Raises:
        BackboneError: No such file, a damaged or foreign file, or a newer format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BackboneError(f"No encoder file at {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            raw = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise BackboneError(f"{path} is damaged or not a safetensors file: {error}") from error
    metadata = _read_metadata(raw, path)
    try:
        network = _ARCHITECTURES[metadata["architecture"]](**metadata["arguments"])
        network.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{path} is damaged: its weights do not fit its own architecture. {error}") from error
    return network.eval(), metadata


def _read_metadata(raw: Mapping[str, str], path: Path) -> dict[str, Any]:
    if raw.get("format") != FORMAT:
        raise BackboneError(
            f"{path} is not an encoder written by gradfeat. To load it as weights, name the architecture too: "
            "timm/<model> or torchvision/<model> with weights (on the command line: --weights)."
        )
    try:
        version = int(raw["format_version"])
        metadata = {
            "architecture": raw["architecture"],
            "arguments": json.loads(raw["arguments"]),
            "preprocessing": json.loads(raw["preprocessing"]),
            "task": raw["task"],
            "gradfeat": raw["gradfeat"],
        }
    except (KeyError, ValueError) as error:
        raise BackboneError(f"{path} is damaged: its metadata cannot be read ({error}).") from error
    if version > FORMAT_VERSION or metadata["architecture"] not in _ARCHITECTURES:
        raise BackboneError(
            f"{path} was written by gradfeat {metadata['gradfeat']} (format {version}, {metadata['architecture']}); "
            f"this is gradfeat {__version__} (format {FORMAT_VERSION}). Upgrade: pip install --upgrade gradfeat"
        )
    return metadata
