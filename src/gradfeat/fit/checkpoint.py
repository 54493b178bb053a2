"""A fit on disk: its finished parts, so that an interrupted fit goes on where it stopped.

A part is one safetensors file: its tensors, the state of the random numbers after it, and all else as JSON, which
writes a float with all its digits. So a fit that goes on ends with the weights of one that was never interrupted. The
parts: the probe; the held-out losses and the best w₂ of each penalty of ω̄; the penalties that were chosen, and the w₂
there; the trials of rounds; of training by epochs the weights and the optimizer's state after an epoch, and the scores
of the learning rates that were tried. The last convex problem is solved again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import torch
from torch import Tensor

from gradfeat._version import __version__
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.files.bounded import parse_json
from gradfeat.files.digests import check_sealed, sealed
from gradfeat.files.tensor_file import tensor_file
from gradfeat.files.writing import write_whole

FORMAT = "gradfeat.fit"
FORMAT_VERSION = 7
ABOUT = "configuration.json"

T = TypeVar("T")


@dataclass
class Part:
    """A finished part: JSON-able values, and tensors."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Checkpoint:
    """The finished parts of a fit, in a folder.

    Args:
        folder: Made if it is not there.
        configuration: What the fit is, by name. A fit goes on only where all of it is the same.

    Raises:
        ConfigurationError: The folder holds another fit (the message names what differs), or cannot be used.
        DataError: Its configuration is damaged.
    """

    def __init__(self, folder: str | Path, configuration: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "gradfeat": __version__, **configuration}
        self._open(self.folder, {name: str(value) for name, value in about.items()})

    def of(self, theta2: Mapping[str, Tensor], data: Mapping[str, Tensor | None]) -> Checkpoint:
        """Return the part of the folder for one choice of θ₂, which is of some data.

        Args:
            theta2: By the parameters' names.
            data: What the fit depends on: activations, targets, weights.
        """
        about = {name: digest(value) for name, value in {**theta2, **data}.items()}
        own = copy.copy(self)
        own.folder = self.folder / hashlib.sha256(json.dumps(list(theta2)).encode()).hexdigest()[:12]
        own._open(own.folder, about, digests=True)
        return own

    def within(self, name: str, data: Mapping[str, Tensor | np.ndarray | None]) -> Checkpoint:
        """Return a folder of its own in this one, for a fit within the fit.

        Args:
            name: Of the folder.
            data: What it depends on beside what this one does.
        """
        own = copy.copy(self)
        own.folder = self.folder / name
        own._open(own.folder, {key: digest(value) for key, value in data.items()}, digests=True)
        return own

    def _open(self, folder: Path, about: dict[str, str], *, digests: bool = False) -> None:
        path = folder / ABOUT
        try:
            if not path.exists():
                write_whole(path, json.dumps(about, indent=1).encode())
            there = parse_json(path.read_bytes())
            if not isinstance(there, dict):
                raise ValueError("it is no list of what the fit depends on")
        except OSError as error:
            raise ConfigurationError(f"checkpoint: {folder} cannot be used as a folder: {error}") from error
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}. Remove {self.folder} to start again") from error
        differing = [
            f"other {name}" if digests else f"{name} {_short(there.get(name))} there, {_short(about.get(name))} now"
            for name in dict.fromkeys([*about, *there])
            if there.get(name) != about.get(name)
        ]
        if differing:
            raise ConfigurationError(
                f"{self.folder} holds the checkpoint of another fit: {'; '.join(differing[:5])}. Take the same data "
                "and arguments, choose another folder, or remove this one to start again"
            )

    def get(self, name: str) -> Part | None:
        """Return a finished part; None where it is not finished.

        Raises:
            DataError: It is damaged.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            check_sealed(metadata["values"], tensors)
            values = parse_json(metadata["values"])
            if not isinstance(values, dict):
                raise ValueError("its values have no names")
            values.pop("sha256", None)
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(_damaged(path, error)) from error
        return Part(values, tensors)

    def put(self, name: str, part: Part) -> None:
        """Write a finished part, whole or not at all."""
        content = tensor_file(part.tensors, {"values": sealed(json.dumps(part.values), part.tensors)})
        write_whole(self.folder / f"{name}.safetensors", content)

    def drop(self, name: str) -> None:
        """Remove a part that another one has made needless, if it is there."""
        (self.folder / f"{name}.safetensors").unlink(missing_ok=True)


def like_theta2(tensors: Mapping[str, Tensor], prefix: str, theta2: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of θ₂'s names with a prefix, each on the device and in memory as θ₂'s own."""
    return {
        name: torch.empty_like(value, dtype=tensors[prefix + name].dtype).copy_(tensors[prefix + name])
        for name, value in theta2.items()
    }


def named_w2(w2: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return w₂ by the names that it has in a part; nothing where there is none."""
    return {f"w2/{name}": value for name, value in (w2 or {}).items()}


def w2_of(tensors: Mapping[str, Tensor], theta2: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return w₂ from the tensors of a part; None where there is none among them."""
    return like_theta2(tensors, "w2/", theta2) if any(name.startswith("w2/") for name in tensors) else None


def load_part(checkpoint: Checkpoint | None, name: str, generator: torch.Generator | None = None) -> Part | None:
    """Return a finished part, and bring the random numbers to where they were after it; None where there is none."""
    part = None if checkpoint is None else checkpoint.get(name)
    if checkpoint is not None and part is not None and generator is not None:
        try:
            generator.set_state(part.tensors["generator"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise DataError(_damaged(checkpoint.folder / f"{name}.safetensors", error)) from error
    return part


def keep_part(checkpoint: Checkpoint | None, name: str, part: Part, generator: torch.Generator | None = None) -> None:
    """Write a finished part with the state of the random numbers, where there is a checkpoint."""
    if checkpoint is None:
        return
    state = {} if generator is None else {"generator": generator.get_state()}
    checkpoint.put(name, Part(part.values, {**part.tensors, **state}))


def resumed(
    checkpoint: Checkpoint | None,
    name: str,
    compute: Callable[[], T],
    pack: Callable[[T], Part],
    unpack: Callable[[Part], T],
    generator: torch.Generator | None = None,
) -> T:
    """Return a part that is finished, or compute and keep it."""
    part = load_part(checkpoint, name, generator)
    if checkpoint is not None and part is not None:
        try:
            return unpack(part)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # written without a checksum, and damaged
            raise DataError(_damaged(checkpoint.folder / f"{name}.safetensors", error)) from error
    found = compute()
    if checkpoint is not None:
        keep_part(checkpoint, name, pack(found), generator)
    return found


def digest(value: Any) -> str:
    """Return a digest of a tensor's or an array's kind, shape and bytes; of pairs of arrays; "none" for None."""
    if value is None:
        return "none"
    found = hashlib.sha256()
    for part in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(part, (list, tuple)):
            found.update(digest(part).encode())
            continue
        # bytes: numpy has no bfloat16
        tensor = part.detach().cpu() if isinstance(part, Tensor) else torch.as_tensor(np.asarray(part))
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged: {error}. Remove it, and this part is computed again"


def _short(value: str | None) -> str:
    return "nothing" if value is None else value if len(value) <= 60 else f"{value[:57]}..."
