"""Weights from a file into a network: every key accounted for, and nothing executed."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gradfeat.backbones.contents import tensors_of
from gradfeat.backbones.state import BOOKKEEPING, choose
from gradfeat.backbones.weights_file import read_weights
from gradfeat.errors import BackboneError

__all__ = ["load_file", "load_weights", "read_weights"]

_SHOWN = 8
_KINDS = (  # what names of another kind of network say, beside names that are missing
    (("_packed_params", "zero_point", "qweight", "qzeros", "absmax", "quant_map", "SCB", "weight_scale", "scale_inv"),
     "is of a quantized network: take the file of the same network in float32, float16 or bfloat16"),
    (("weight_g", "weight_v", "weight_u", "parametrizations"),
     "is of a network whose weights are made in each pass (weight or spectral norm): remove that "
     "(torch.nn.utils.remove_weight_norm, parametrize.remove_parametrizations) and save it again"),
    (("weight_orig", "weight_mask"),
     "is of a pruned network: torch.nn.utils.prune.remove(module, 'weight') for its modules, and save it again"),
    (("exp_avg", "momentum_buffer", "square_avg"), "holds the state of an optimizer, and no network"),
    (("lora_A", "lora_B", "lora_down", "lora_up"),
     "is an adapter (LoRA) without its network: merge it into the network, and save that"),
)  # fmt: skip


def load_file(
    network: nn.Module, weights: str | Path, *, head: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Load the weights of a file into a network, wherever in the file they are.

    Args:
        network: The network; its dtype stays.
        weights: The file, or a folder with shards; "FILE::part" names the part of the file that is meant.
        head: Names of the head, which the network no longer has.

    Returns:
        Notes: what was taken, and what was not used; and the file's metadata.

    Raises:
        BackboneError: The file cannot be read, does not fit, or holds several networks that do.
    """
    path, entry = _split(weights)
    content, metadata = read_weights(path)
    try:
        found = choose(tensors_of(content), network.state_dict(), head, entry)
    except BackboneError as error:
        raise BackboneError(f"{path}: {error}") from error
    where = f"{path}, under {found.prefix!r}," if found.prefix else str(path)
    left_out = load_weights(network, found.state, where=where, ignored={*head, *found.extra})
    heads = [name for name in left_out if name in head]
    rest = [name for name in left_out if name not in head and not name.endswith(BOOKKEEPING)]
    notes = [f"The classifier in the file is not used: {_first(heads)}."] if heads else []
    notes += [f"What features do not need is not used: {_first(rest)}."] if rest else []
    note = found.note()
    return [*notes, note] if note else notes, metadata


def _split(weights: str | Path) -> tuple[Path, str | None]:
    """Split "FILE::part", unless there is a file of that whole name."""
    path, colons, entry = str(weights).rpartition("::")
    if not colons or not path or os.path.exists(os.path.expanduser(weights)):  # not Path's, which fails for long names
        return Path(weights), None
    return Path(path), entry or None


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
        BackboneError: Keys are missing, unexpected or of another shape, or values are of a kind that a network in
            evaluation does not have, or not finite; all are listed.
    """
    expected = network.state_dict()
    _refuse_kinds(network, {name: value for name, value in state.items() if name in expected}, where)
    # Files from old PyTorch versions lack this counter, which plays no part in evaluation mode.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected and name not in ignored]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
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
            + f". {_kind_of(state) or _hint(len(missing), len(unexpected), len(expected))}"
        )
    # in the network's own numbers, of which the largest may be smaller than the file's
    taken = {name: _dense(state[name]).to(expected[name].dtype) for name in expected if name in state}
    broken = [name for name, value in taken.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise BackboneError(f"The weights of {where} are not finite. Keys {_listing('with NaN or infinity', broken)}.")
    network.load_state_dict(taken, strict=False)
    return [name for name in state if name not in expected]


def _dense(value: Tensor) -> Tensor:
    return value if value.layout is torch.strided else value.to_dense()


def _refuse_kinds(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Refuse values that are not numbers of a layer as they stand."""
    weights = {name for name, value in network.named_parameters() if value.is_floating_point()}
    kinds: dict[str, list[str]] = {}
    for name, value in state.items():
        if (kind := _kind(value, name in weights)) is not None:
            kinds.setdefault(kind, []).append(name)
    for kind, names in kinds.items():
        raise BackboneError(f"The weights of {where} cannot be used as they stand. Keys {_listing(kind, names)}.")


def _kind(value: Tensor, weight: bool) -> str | None:
    if value.is_quantized:
        return "of a quantized network, which has no derivatives; take its float32 weights"
    if value.is_meta:
        return "without values (on the meta device), which were not saved"
    if value.is_floating_point() and value.element_size() == 1:
        kind = str(value.dtype).removeprefix("torch.")
        return f"in 8-bit floats ({kind}), whose scales lie elsewhere; take the same network in bfloat16 or float32"
    if weight and value.is_complex():
        return "of complex numbers, where the network's are real"
    if weight and not value.is_floating_point():
        return "of whole numbers, as in a quantized network, where the network's are floats"
    return None


def _kind_of(state: Mapping[str, Tensor]) -> str:
    parts = {part for name in state for part in name.split(".")}
    for words, what in _KINDS:
        if named := [word for word in words if word in parts]:
            return f"The file (with names such as {named[0]}) {what}."
    return ""


def _listing(kind: str, names: list[str]) -> str:
    return f"{kind} ({len(names)}): {_first(names)}"


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _hint(n_missing: int, n_unexpected: int, n_own: int) -> str:
    if n_missing > n_own // 2:
        return "Is the file for a different architecture or library?"
    if n_missing or n_unexpected:
        return "Is it another variant of the architecture, or was it built with other options (name?option=value)?"
    return "Is the width, the number of input channels or the image size another one (name?option=value)?"
