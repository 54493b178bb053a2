"""Weights from a file into a network: every key accounted for, and nothing executed."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gradfeat.errors import BackboneError

_NESTS = ("state_dict", "model", "model_state_dict", "network", "net")
_WRAPPERS = ("module.", "_orig_mod.")  # nn.DataParallel, torch.compile
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_SHOWN = 8


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict from a ``.safetensors`` file or from a ``.pth``, ``.pt`` or ``.bin`` file.

    Args:
        path: The file. A state dict nested under ``state_dict`` or ``model`` is found, and the prefix ``module.`` that
            nn.DataParallel leaves is removed.

    Returns:
        The state dict, and the metadata of the file (empty but for safetensors).

    Raises:
        BackboneError: No such file, another format, a damaged file, or a file that holds more than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BackboneError(f"No weights file at {path}.")
    if path.suffix not in _SUFFIXES:
        raise BackboneError(f"{path.name}: expected a file ending in {', '.join(_SUFFIXES)}.")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (safetensors.SafetensorError, OSError) as error:
            raise BackboneError(f"{path} is damaged or not a safetensors file: {error}") from error
    else:
        return _unwrap(_read_torch(path)), metadata
    return _unwrap(content), metadata


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], *, where: str, ignored: Collection[str] = ()
) -> list[str]:
    """Load a state dict into a network, with every key accounted for.

    Args:
        network: The network; its dtype stays.
        state: Names and values.
        where: What the values come from, for messages.
        ignored: Names of the head, which the network no longer has.

    Returns:
        The names of `ignored` that were left out.

    Raises:
        BackboneError: Keys are missing, unexpected or of another shape, or values are not finite; all are listed.
    """
    own = network.state_dict()
    # Files from old PyTorch versions lack this counter, which plays no part in evaluation mode.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own and name not in ignored]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        _listing(kind, names)
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise BackboneError(
            f"The weights of {where} do not fit the network {type(network).__name__}. Keys "
            + "; ".join(problems)
            + f". {_hint(len(missing), len(unexpected), len(own))}"
        )
    broken = [name for name in own if name in state and not bool(torch.isfinite(state[name]).all())]
    if broken:
        raise BackboneError(f"The weights of {where} are not finite. Keys {_listing('with NaN or infinity', broken)}.")
    network.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    return [name for name in state if name not in own]


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} is damaged, or holds more than tensors, and gradfeat executes nothing from a file. Where it "
            "comes from a source you trust, load it yourself and keep torch.save(network.state_dict(), ...)."
        ) from error
    except Exception as error:  # the unpickler meets arbitrary bytes: KeyError, EOFError, RuntimeError ...
        raise BackboneError(f"{path} is damaged or no PyTorch file: {error}") from error


def _unwrap(content: object) -> dict[str, Tensor]:
    """Return the state dict inside what a file holds."""
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    if not isinstance(content, Mapping):
        raise BackboneError(f"Expected a state dict (names and tensors); the file holds a {type(content).__name__}.")
    foreign = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign or not content:
        raise BackboneError(
            "Expected a state dict (names and tensors), plain or under one of the keys "
            f"{', '.join(_NESTS)}; the file "
            + (f"has keys {_listing('of other kinds', foreign)}." if foreign else "is empty.")
        )
    state = {str(name): value for name, value in content.items()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _listing(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"


def _hint(n_missing: int, n_unexpected: int, n_own: int) -> str:
    if n_missing > n_own // 2:
        return "Is the file for a different architecture or library?"
    if n_missing or n_unexpected:
        return "Is it another variant of the architecture, or was it built with other options (name?option=value)?"
    return "Is the width, the number of input channels or the image size another one (name?option=value)?"
