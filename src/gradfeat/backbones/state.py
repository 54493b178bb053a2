"""Which of the tensors in a file are the network's: names are compared, wrappings are found rather than listed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradfeat.backbones.weights_file import StandIn, printable
from gradfeat.errors import BackboneError, did_you_mean

_DEEPEST = 100  # things inside each other
_MOST = 1_000_000  # tensors
# Names that wrappers put in the middle of others: DataParallel, torch.compile, FSDP, activation checkpoints, DeepSpeed.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
_NESTS = ("state_dict", "model", "model_state_dict", "network", "net")
# Parts of a network in training that its features do not need.
_HEADS = re.compile(
    r"fcs?|heads?(_\w+)?|\w+_heads?|classifiers?|classif|logits|last_linear|linear|proj(ection|ector)?s?(_\w+)?|predictor"
    r"|prototypes?|decoder\w*|mask_token|aux\w*|queue\w*|logit_scale|logit_bias|criterion|loss\w*",
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
class Entry:
    """A tensor of a file.

    Args:
        value: The tensor.
        container: Where the mapping lies that holds it: "" or a path that ends in a dot.
    """

    value: Tensor
    container: str


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
            beside = f"; beside it, and not used: {_some(rest)}" if rest else ""
            return f"The weights are those under {self.prefix!r} in the file{beside}."
        return f"Parts of the file that are not used: {_some(rest)}." if rest else None


def tensors_of(content: object) -> dict[str, Entry]:
    """Return every tensor in what a file holds, by its names joined with dots.

    Raises:
        BackboneError: There is none.

    Example:
        >>> list(tensors_of({"epoch": 3, "model": {"module.weight": torch.ones(2)}}))
        ['model.module.weight']
    """
    found: dict[str, Entry] = {}
    for name, entry in _walk(content, "", "", (), set()):
        found[printable(name)] = entry
        if len(found) > _MOST:
            raise BackboneError(f"The file names more than {_MOST:,} tensors, which is no network.")
    if not found:
        raise BackboneError(
            f"Expected a state dict (names and tensors), or one inside other things; the file {_described(content)}."
        )
    return found


def _described(content: object) -> str:
    if any(type(part).__name__.endswith("multiarray._reconstruct") for part in _parts(content)):
        return "holds NumPy arrays: make tensors of them (torch.from_numpy), and save these with torch.save"
    inside = content.values() if isinstance(content, Mapping) else ()
    if any(isinstance(value, StandIn) and "Uninitialized" in type(value).__name__ for value in inside):
        return "holds a network of lazy layers that has not run yet, and so has no values"
    if isinstance(content, Mapping):
        names = [printable(str(name)) for name in content]
        return f"has keys of other kinds ({len(names)}): {_some(names)}" if names else "is empty"
    if isinstance(content, StandIn):
        return f"holds an object of the class {printable(type(content).__name__)}, without tensors"
    return f"holds a {type(content).__name__}"


def _parts(content: object, depth: int = 0) -> Iterator[object]:
    """Yield what lies in the first places of an object, a few levels down."""
    yield content
    for _, value, _ in itertools.islice(_inside(content) if depth < 4 else (), 20):
        yield from _parts(value, depth + 1)


def _walk(
    content: object, path: str, container: str, above: tuple[int, ...], barren: set[int]
) -> Iterator[tuple[str, Entry]]:
    """Yield the tensors inside of an object; `above` is where it lies, `barren` what has none in it."""
    if id(content) in above or id(content) in barren or len(above) > _DEEPEST:
        return
    found = False
    for name, value, nested in _inside(content):
        if isinstance(value, Tensor):
            found = True
            yield f"{path}{name}", Entry(value, container)
        elif isinstance(value, StandIn | Mapping | list | tuple):
            below = f"{path}{name}." if name else path
            for pair in _walk(value, below, below if nested else container, (*above, id(content)), barren):
                found = True
                yield pair
    if not found:
        barren.add(id(content))


def _inside(content: object) -> Iterator[tuple[str, Any, bool]]:
    """Yield name and value of what an object holds, and whether that has names of its own (not so in a module)."""
    if isinstance(content, Mapping):
        yield from ((str(name), value, True) for name, value in content.items())
    elif isinstance(content, list | tuple):
        yield from ((str(place), value, True) for place, value in enumerate(content))
    state = getattr(content, "state", None) if isinstance(content, StandIn) else None
    state = state[0] if isinstance(state, tuple) and len(state) == 2 else state
    if not isinstance(state, Mapping):
        return
    if "_parameters" not in state:
        yield from ((str(name), value, True) for name, value in state.items())
        return
    passing = state.get("_non_persistent_buffers_set") or ()  # not in a state dict
    for kind in ("_parameters", "_buffers", "_modules"):
        entries = state.get(kind)
        for name, value in entries.items() if isinstance(entries, Mapping) else ():
            if kind == "_modules" or (isinstance(value, Tensor) and name not in passing):
                yield str(name), value, False


# ---- the choice -----------------------------------------------------------------------------------------------------


def choose(
    tensors: Mapping[str, Entry], own: Mapping[str, Tensor], head: Collection[str] = (), entry: str | None = None
) -> Found:
    """Find a network's weights among the tensors of a file, under whatever prefix its names have there.

    Where several parts of the file fit, averages (EMA) are taken before the values that they average, a teacher before
    its student, ``encoder_q`` before ``encoder_k``, and ``state_dict`` before ``model``.

    Args:
        tensors: What the file holds.
        own: The network's state dict.
        head: Names of the classifier, which the network no longer has.
        entry: The part of the file that is meant, where the user says so.

    Returns:
        What was found; where nothing fits, the part whose names fit best.

    Raises:
        BackboneError: There is no such entry, or several parts fit and nothing says which is meant.

    Example:
        >>> own = {"weight": torch.zeros(2)}
        >>> file = {"model.module.weight": Entry(torch.ones(2), "model."), "epoch": Entry(torch.ones(()), "")}
        >>> choose(file, own).note()
        "The weights are those under 'model.module' in the file; beside it, and not used: 'epoch'."
    """
    source = _within(tensors, entry)
    fitting = _fitting(source, own, head)
    if not fitting and (bare := _without_wrappers(source)) is not None:
        names = {_bare(name): name for name in own}
        if len(names) == len(own):
            found = _fitting(bare, {short: own[name] for short, name in names.items()}, [_bare(name) for name in head])
            fitting = {
                prefix: Found({names.get(name, name): value for name, value in part.state.items()}, extra=part.extra)
                for prefix, part in found.items()
            }
            source = bare if fitting else source
    if not fitting:
        return _nearest(source, own, head)
    prefix, *others = _preferred(fitting, own)
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
        raise BackboneError(f"The file has no part {entry!r}. It has {_some(parts)}.{did_you_mean(entry, parts)}")
    return found


def _prefixes(names: Collection[str], own: Collection[str]) -> dict[str, int]:
    """Return the prefixes under which names of the network appear, with the number of these names."""
    counts: dict[str, int] = {}
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in own:
                prefix = name[: max(0, start - 1)]
                counts[prefix] = counts.get(prefix, 0) + 1
            start = name.find(".", start) + 1 or -1
    return counts


def _fitting(tensors: Mapping[str, Entry], own: Mapping[str, Tensor], head: Collection[str]) -> dict[str, Found]:
    """Return the parts of a file that have every entry of the network, in its shape, and nothing that it would miss."""
    # Files from old PyTorch versions lack the counter of batch norm, which plays no part in evaluation mode.
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    fitting = {}
    for prefix, count in _prefixes(tensors, own).items():
        start = f"{prefix}." if prefix else ""
        if count < len(needed) or any(
            (entry := tensors.get(start + name)) is None or entry.value.shape != own[name].shape for name in needed
        ):
            continue
        state, extra, foreign = _part(tensors, start, own, head)
        if not foreign:
            fitting[prefix] = Found(state, extra=extra)
    return fitting


def _part(
    tensors: Mapping[str, Entry], start: str, own: Mapping[str, Tensor], head: Collection[str]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return what lies under a prefix; which names of it belong to a head or to bookkeeping; and which to neither."""
    tops = {name.partition(".")[0] for name in own}
    heads = {name.rpartition(".")[0] for name in head} - {""}
    state, extra, foreign = {}, [], []
    for full, entry in tensors.items():
        name = full.removeprefix(start)
        if not full.startswith(start) or (len(entry.container) > len(start) and name not in own):
            continue  # another mapping inside this one, as an optimizer's state
        if name not in own and name not in head:
            top = name.partition(".")[0]
            of_head = any(name.startswith(f"{module}.") for module in heads)
            if of_head or name.endswith(BOOKKEEPING) or (top not in tops and _HEADS.fullmatch(top)):
                extra.append(name)
            else:
                foreign.append(name)
        state[name] = entry.value
    return state, extra, foreign


def _nearest(tensors: Mapping[str, Entry], own: Mapping[str, Tensor], head: Collection[str]) -> Found:
    """Return the part whose names fit best, for the message that says what does not."""
    counts = _prefixes(tensors, own)
    if counts:
        prefix = max(counts, key=lambda prefix: (counts[prefix], [-place for place in _preference(prefix)]))
        start = f"{prefix}." if prefix else ""
    else:
        containers = [entry.container for entry in tensors.values()]
        start = max(dict.fromkeys(containers), key=containers.count)
        inside = [name for name, entry in tensors.items() if entry.container == start]
        start = _common_prefix(inside) if len(inside) > 1 else start
    state, extra, _ = _part(tensors, start, own, head)
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


def _preferred(fitting: Mapping[str, Found], own: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of the parts that fit, the one to take first.

    Raises:
        BackboneError: The first two are of equal rank, and their values differ.
    """
    ranked = sorted(fitting, key=_preference)
    rivals = [
        prefix
        for prefix in ranked[1:]
        if _preference(prefix) == _preference(ranked[0])
        and any(
            not torch.equal(value, fitting[prefix].state[name])
            for name, value in fitting[ranked[0]].state.items()
            if name in own and name in fitting[prefix].state and value.dtype == fitting[prefix].state[name].dtype
        )
    ]
    if rivals:
        names = [ranked[0], *rivals]
        raise BackboneError(
            f"Several parts of the file fit the network, and their values differ: {_some([repr(n) for n in names])}. "
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


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
