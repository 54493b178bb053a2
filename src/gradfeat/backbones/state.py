"""Which of the tensors in a file are the network's: names are compared, wrappings are found rather than listed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradfeat.backbones.contents import Entry, some
from gradfeat.errors import BackboneError, did_you_mean

# Names that wrappers put in the middle of others: DataParallel, torch.compile, FSDP, activation checkpoints, DeepSpeed.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
_NESTS = ("state_dict", "model", "model_state_dict", "network", "net")
# Parts of a network in training that its features do not need.
_HEADS = re.compile(
    r"(?!conv_|norm_|.*_(norm|conv|stem|in)$)"  # layers before a head, which f(x) has passed
    r"(fcs?|heads?(_\w+)?|\w+_heads?|classifiers?|classif|logits|last_linear|linear|proj(ection|ector)?s?(_\w+)?"
    r"|predictor|prototypes?|decoder\w*|mask_token|aux\w*|queue\w*|logit_scale|logit_bias|criterion|loss\w*)",
    re.IGNORECASE,
)
# Counters, and tables that newer versions of the libraries compute when they build a network.
BOOKKEEPING = (
    "num_batches_tracked",
    "total_ops",
    "total_params",
    "n_averaged",
    "relative_position_index",
    "attn_mask",
)


@dataclass(frozen=True)
class Found:
    """What was taken from a file.

    Args:
        state: Names, as the network has them, and values; also those of a head and of what else lies there.
        prefix: What was before these names in the file, without the last dot; "" where nothing was.
        others: Where else in the file tensors lie that fit the network.
        unused: Parts of the file that were not taken, by the first part of their names.
        extra: Names in `state` that belong to a head or to bookkeeping, and not to the network.
    """

    state: dict[str, Tensor]
    prefix: str = ""
    others: Sequence[str] = ()
    unused: Sequence[str] = ()
    extra: Sequence[str] = field(default=())

    def note(self) -> str | None:
        """Say what was taken and what else was there; None where the file is nothing but the network."""
        rest = [f"{other!r}, which fits as well" for other in self.others] + [repr(name) for name in self.unused]
        if self.prefix:
            beside = f"; beside it, and not used: {some(rest)}" if rest else ""
            return f"The weights are those under {self.prefix!r} in the file{beside}."
        return f"Parts of the file that are not used: {some(rest)}." if rest else None


def choose(
    tensors: Mapping[str, Entry], expected: Mapping[str, Tensor], head: Collection[str] = (), entry: str | None = None
) -> Found:
    """Find a network's weights among the tensors of a file, under whatever prefix its names have there.

    Where several parts of the file fit, averages (EMA) are taken before the values that they average, a teacher before
    its student, ``encoder_q`` before ``encoder_k``, and ``state_dict`` before ``model``.

    Args:
        tensors: What the file holds.
        expected: The network's state dict.
        head: Names of the classifier, which the network no longer has.
        entry: The part of the file that is meant, where the user says so.

    Returns:
        What was found; where nothing fits, the part whose names fit best.

    Raises:
        BackboneError: There is no such entry, or several parts fit and nothing says which is meant.

    Example:
        >>> expected = {"weight": torch.zeros(2)}
        >>> file = {"model.module.weight": Entry(torch.ones(2), "model."), "epoch": Entry(torch.ones(()), "")}
        >>> choose(file, expected).note()
        "The weights are those under 'model.module' in the file; beside it, and not used: 'epoch'."
    """
    source = _within(tensors, entry)
    fitting = _fitting(source, expected, head)
    if not fitting and (bare := _without_wrappers(source)) is not None:
        names = {_bare(name): name for name in expected}
        if len(names) == len(expected):
            found = _fitting(
                bare, {short: expected[name] for short, name in names.items()}, [_bare(name) for name in head]
            )
            fitting = {
                prefix: Found({names.get(name, name): value for name, value in part.state.items()}, extra=part.extra)
                for prefix, part in found.items()
            }
            source = bare if fitting else source
    if not fitting:
        return _nearest(source, expected, head)
    prefix, *others = _preferred(fitting, expected)
    start = f"{prefix}." if prefix else ""
    taken = fitting[prefix]
    inside = {start + _bare(name) for name in taken.state} | {start + name for name in taken.state}
    covered = tuple(f"{other}." for other in others if other)
    unused = [name for name in source if name not in inside and not name.startswith(covered)]
    return Found(
        taken.state, prefix, others, list(dict.fromkeys(_part_of(name, prefix) for name in unused)), taken.extra
    )


def _within(tensors: Mapping[str, Entry], entry: str | None) -> Mapping[str, Entry]:
    if entry is None:
        return tensors
    found = {name: value for name, value in tensors.items() if name.startswith(f"{entry}.")}
    if not found:
        parts = list(dict.fromkeys(name.partition(".")[0] for name in tensors if "." in name))
        raise BackboneError(f"The file has no part {entry!r}. It has {some(parts)}.{did_you_mean(entry, parts)}")
    return found


def _prefixes(names: Collection[str], expected: Collection[str]) -> dict[str, int]:
    """Return the prefixes under which names of the network appear, with the number of these names."""
    counts: dict[str, int] = {}
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in expected:
                prefix = name[: max(0, start - 1)]
                counts[prefix] = counts.get(prefix, 0) + 1
            start = name.find(".", start) + 1 or -1
    return counts


def _fitting(tensors: Mapping[str, Entry], expected: Mapping[str, Tensor], head: Collection[str]) -> dict[str, Found]:
    """Return the parts of a file that have every entry of the network, in its shape, and nothing that it would miss."""
    # Files from old PyTorch versions lack the counter of batch norm, which plays no part in evaluation mode.
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    fitting = {}
    for prefix, count in _prefixes(tensors, expected).items():
        start = f"{prefix}." if prefix else ""
        if count < len(needed) or any(
            (entry := tensors.get(start + name)) is None or entry.value.shape != expected[name].shape for name in needed
        ):
            continue
        state, extra, foreign = _part(tensors, start, expected, head)
        if not foreign:
            fitting[prefix] = Found(state, extra=extra)
    return fitting


def _part(
    tensors: Mapping[str, Entry], start: str, expected: Mapping[str, Tensor], head: Collection[str]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return what lies under a prefix; which names of it belong to a head or to bookkeeping; and which to neither."""
    tops = {name.partition(".")[0] for name in expected}
    heads = {name.rpartition(".")[0] for name in head} - {""}
    state, extra, foreign = {}, [], []
    for full, entry in tensors.items():
        name = full.removeprefix(start)
        if not full.startswith(start) or (len(entry.container) > len(start) and name not in expected):
            continue  # another mapping inside this one, as an optimizer's state
        if name not in expected and name not in head:
            top = name.partition(".")[0]
            of_head = any(name.startswith(f"{module}.") for module in heads)
            if of_head or name.endswith(BOOKKEEPING) or (top not in tops and _HEADS.fullmatch(top)):
                extra.append(name)
            else:
                foreign.append(name)
        state[name] = entry.value
    return state, extra, foreign


def _nearest(tensors: Mapping[str, Entry], expected: Mapping[str, Tensor], head: Collection[str]) -> Found:
    """Return the part whose names fit best, for the message that says what does not."""
    counts = _prefixes(tensors, expected)
    if counts:
        prefix = max(counts, key=lambda prefix: (counts[prefix], [-place for place in _preference(prefix)]))
        start = f"{prefix}." if prefix else ""
    else:
        containers = [entry.container for entry in tensors.values()]
        start = max(dict.fromkeys(containers), key=containers.count)
        inside = [name for name, entry in tensors.items() if entry.container == start]
        start = _common_prefix(inside) if len(inside) > 1 else start
    state, extra, _ = _part(tensors, start, expected, head)
    return Found(state, start.rstrip("."), extra=extra)


def _common_prefix(names: Sequence[str]) -> str:
    """Return the parts that all names begin with, with the dot behind them."""
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _without_wrappers(tensors: Mapping[str, Entry]) -> dict[str, Entry] | None:
    """Return the tensors by names without wrappers in their midst; None where two would have the same name."""
    bare = {
        _bare(name): Entry(entry.value, f"{_bare(entry.container.rstrip('.'))}.".lstrip("."))
        for name, entry in tensors.items()
    }
    return bare if len(bare) == len(tensors) else None


# ---- which of several -----------------------------------------------------------------------------------------------


def _preference(prefix: str) -> tuple[int, int]:
    """Return the rank of a part of a file, the least first: by the words in its name, then by its container."""
    # as words: model_ema, modelEMA, EMACallback.ema_state_dict
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", prefix)}
    first = prefix.lower().partition(".")[0]
    if words & {"student", "momentum", "k", "key", "optimizer", "old", "initial", "previous"}:
        rank = 3
    elif words & {"ema", "swa", "avg", "average", "averaged", "shadow"}:
        rank = 0
    else:
        rank = 1 if "teacher" in words else 2
    return rank, _NESTS.index(first) if first in _NESTS else len(_NESTS)


def _preferred(fitting: Mapping[str, Found], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of the parts that fit, the one to take first.

    Raises:
        BackboneError: The first two are of equal rank, and their values differ.
    """
    best = min(map(_preference, fitting))
    shared = len(_common_prefix([f"{prefix}." for prefix in fitting if _preference(prefix) == best]))

    def rank(prefix: str) -> tuple[tuple[int, int], int]:
        return _preference(prefix), _preference(prefix[shared:])[0]  # ema.ema_model before ema.online_model

    ranked = sorted(fitting, key=rank)
    rivals = [
        prefix
        for prefix in ranked[1:]
        if rank(prefix) == rank(ranked[0])
        and any(
            not torch.equal(value, fitting[prefix].state[name])
            for name, value in fitting[ranked[0]].state.items()
            if name in expected and name in fitting[prefix].state and value.dtype == fitting[prefix].state[name].dtype
        )
    ]
    if rivals:
        names = [ranked[0], *rivals]
        raise BackboneError(
            f"Several parts of the file fit the network, and their values differ: {some([repr(n) for n in names])}. "
            f"Say which, behind two colons: weights='FILE::{names[0]}' (--weights FILE::{names[0]})."
        )
    return ranked


def _part_of(name: str, prefix: str) -> str:
    """Return the part of a file that a name lies in, as far as it differs from the part that was taken."""
    parts, taken = name.split("."), prefix.split(".")
    shared = 0
    while shared < min(len(parts) - 1, len(taken)) and parts[shared] == taken[shared]:
        shared += 1
    return ".".join(parts[: shared + 1])
