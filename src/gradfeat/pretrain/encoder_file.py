"""The encoder's file: weights, architecture and preprocessing in one safetensors file; nothing in it is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from gradfeat._version import __version__
from gradfeat.errors import BackboneError
from gradfeat.files.bounded import IMAGE_FIELDS, fields, parse_json, shown, text, whole
from gradfeat.files.tensor_file import tensor_file
from gradfeat.files.writing import write_whole
from gradfeat.pretrain.cifar_resnet import CifarResNet
from gradfeat.pretrain.encoder import ConvEncoder

FILE = "encoder.safetensors"
"""Its usual name in the folder of a run."""

FORMAT = "gradfeat.encoder"
FORMAT_VERSION = 1
_ARCHITECTURES: dict[str, Any] = {"ConvEncoder": ConvEncoder, "CifarResNet": CifarResNet}
_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_LIBRARIES = ("timm/", "torchvision/")  # built by name, by `gradfeat.backbones`


def save_encoder(
    network: nn.Module,
    path: str | Path,
    *,
    task: str,
    preprocessing: Mapping[str, Any],
    name: str | None = None,
    half: bool = False,
) -> Path:
    """Write an encoder as one safetensors file, atomically: a crash leaves no half file under the final name.

    Args:
        network: An encoder with `arguments`, e.g. `ConvEncoder`, or the network that `name` builds.
        path: The file, ending in ``.safetensors``.
        task: The pre-training task, for the record.
        preprocessing: How its input is scaled, e.g. `pretrain.input_scaling(images)`; JSON-able.
        name: "timm/<model>" or "torchvision/<model>", for a network of another library.
        half: Round the weights of layers to float16, for a file of half the size; what has one axis (biases, batch
            norms) stays as it is. They are float32 again when the file is read.

    Returns:
        The path.

    Raises:
        BackboneError: The architecture is none of gradfeat's own, or the name has another ending.
    """
    path = Path(path).expanduser()
    architecture = name or type(network).__name__
    if _ARCHITECTURES.get(architecture) is not type(network) and not architecture.startswith(_LIBRARIES):
        raise BackboneError(
            f"Expected one of {', '.join(_ARCHITECTURES)}, got {architecture}: save its state_dict() yourself."
        )
    if path.suffix != ".safetensors":
        raise BackboneError(f"An encoder's file ends in .safetensors; got {path.name}.")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "architecture": architecture,
        "arguments": json.dumps({} if name else network.arguments, sort_keys=True),
        "preprocessing": json.dumps(dict(preprocessing), sort_keys=True),
        "task": task,
        "gradfeat": __version__,
    }
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    if half:
        wide = [name for name, value in state.items() if value.ndim > 1 and value.is_floating_point()]
        state |= {name: state[name].half() for name in wide}
        if not all(bool(torch.isfinite(state[name]).all()) for name in wide):
            raise BackboneError("Weights beyond 65,504 have no half precision: leave half out.")
    return write_whole(path, tensor_file(state, metadata))


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
    raw, state = _read(path)
    metadata = _read_metadata(raw, Path(path))
    if metadata["architecture"] not in _ARCHITECTURES:
        raise BackboneError(
            f"{path} holds {metadata['architecture']}: gradfeat.backbones.resolve({str(path)!r}) loads it."
        )
    try:
        _check_fit(metadata, state)
        network = _ARCHITECTURES[metadata["architecture"]](**metadata["arguments"])
        network.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error)[:1000]
        raise BackboneError(f"{path} is damaged: its weights do not fit its own architecture. {reason}") from error
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise BackboneError(f"{path} is damaged: its weights are not finite: {', '.join(broken[:8])}")
    return network.eval(), metadata


def _check_fit(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse an architecture that is not that of the weights, before room is made for it.

    Raises:
        ValueError: They differ.
    """
    arguments = metadata["arguments"]
    for name, value in arguments.items():
        for number in value if isinstance(value, list) else [value]:
            whole(0, 1 << 20)(number if not isinstance(number, bool) else int(number), name)
        if isinstance(value, list) and len(value) > len(state):
            raise ValueError(f"{name} has {len(value)} layers, and there are {len(state)} tensors")
    if arguments.get("depth", 0) > len(state) + 2:
        raise ValueError(f"{arguments['depth']} layers, and there are {len(state)} tensors")
    with torch.device("meta"):
        expected = _ARCHITECTURES[metadata["architecture"]](**arguments).state_dict()
    differing = [
        name
        for name in (*expected, *(name for name in state if name not in expected))
        if name not in state or name not in expected or state[name].shape != expected[name].shape
    ]
    if differing:
        raise ValueError(f"Of another shape, missing or unknown: {', '.join(differing[:8])}")
    strange = [
        name
        for name, value in state.items()
        if value.dtype != expected[name].dtype and not {value.dtype, expected[name].dtype} <= _FLOATING
    ]
    if strange:
        raise ValueError(f"Of another type: {', '.join(strange[:8])}")


def read_architecture(path: str | Path) -> tuple[str | None, dict[str, Any]]:
    """Return the name of the network that `gradfeat.backbones` is to build, and the metadata as `load_encoder` does.

    Args:
        path: The file.

    Returns:
        The name is None for gradfeat's own architectures, which `load_encoder` builds.

    Raises:
        BackboneError: As `load_encoder` says.
    """
    metadata = _read_metadata(_read(path)[0], Path(path))
    built_in = metadata["architecture"] in _ARCHITECTURES
    return None if built_in else metadata["architecture"], metadata


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise BackboneError(f"No encoder file at {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise BackboneError(f"{path} is damaged or not a safetensors file: {error}") from error


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
            "arguments": parse_json(raw["arguments"], finite=True),
            "preprocessing": parse_json(raw["preprocessing"], finite=True),
            "task": raw["task"],
            "gradfeat": raw["gradfeat"],
        }
        for name in ("arguments", "preprocessing"):
            if not isinstance(metadata[name], dict):
                raise ValueError(f"{name}: expected an object, found {shown(metadata[name])}")
        fields({}, IMAGE_FIELDS)(metadata["preprocessing"], "preprocessing")
        text(500)(metadata["architecture"], "architecture")
    except (KeyError, ValueError) as error:
        raise BackboneError(f"{path} is damaged: its metadata cannot be read ({error}).") from error
    known = metadata["architecture"] in _ARCHITECTURES or metadata["architecture"].startswith(_LIBRARIES)
    if version > FORMAT_VERSION or not known:
        raise BackboneError(
            f"{path} was written by gradfeat {metadata['gradfeat']} (format {version}, {metadata['architecture']}); "
            f"this is gradfeat {__version__} (format {FORMAT_VERSION}). Upgrade: pip install --upgrade gradfeat"
        )
    return metadata
