"""The tensors in what a file holds, by name, wherever they lie in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradfeat.backbones.torch_file import StandIn, printable
from gradfeat.errors import BackboneError

_DEEPEST = 100  # things inside each other
_MOST = 200_000  # tensors
_LONGEST = 2000  # characters of a name


@dataclass(frozen=True)
class Entry:
    """A tensor of a file.

    Args:
        value: The tensor.
        container: Where the mapping lies that holds it: "" or a path that ends in a dot.
    """

    value: Tensor
    container: str


def tensors_of(content: object) -> dict[str, Entry]:
    """Return every tensor in what a file holds, by its names joined with dots.

    Raises:
        BackboneError: There is none.

    Example:
        >>> import torch
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
    inside = dict.values(content) if isinstance(content, dict) else ()
    if any(isinstance(value, StandIn) and "Uninitialized" in type(value).__name__ for value in inside):
        return "holds a network of lazy layers that has not run yet, and so has no values"
    if isinstance(content, dict):
        names = [printable(str(name)) for name in content]
        return f"has keys of other kinds ({len(names)}): {some(names)}" if names else "is empty"
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
        if len(path) + len(name) > _LONGEST:
            continue  # no network's: a text, or made to fill the memory
        if isinstance(value, Tensor) and not value.is_nested:  # nested ones have no shape, and no layer has them
            found = True
            yield f"{path}{name}", Entry(Tensor.detach(value), container)  # without attributes that a file gave it
        elif isinstance(value, StandIn | dict | list | tuple):
            below = f"{path}{name}." if name else path
            for pair in _walk(value, below, below if nested else container, (*above, id(content)), barren):
                found = True
                yield pair
    if not found:
        barren.add(id(content))


def _inside(content: object) -> Iterator[tuple[str, Any, bool]]:
    """Yield name and value of what an object holds, and whether that has names of its own (not so in a module)."""
    # dict.items(content): a file can give an OrderedDict attributes, as one that is called items
    if isinstance(content, dict):
        yield from ((_text(name), value, True) for name, value in dict.items(content))
    elif isinstance(content, list | tuple):
        yield from ((str(place), value, True) for place, value in enumerate(content))
    state = getattr(content, "state", None) if isinstance(content, StandIn) else None
    state = state[0] if isinstance(state, tuple) and len(state) == 2 else state
    if not isinstance(state, dict):
        return
    if "_parameters" not in state:
        yield from ((_text(name), value, True) for name, value in dict.items(state))
        return
    stated = dict.get(state, "_non_persistent_buffers_set")  # not in a state dict
    passing = stated if isinstance(stated, set) else set()
    for kind in ("_parameters", "_buffers", "_modules"):
        entries = dict.get(state, kind)
        for name, value in dict.items(entries) if isinstance(entries, dict) else ():
            if kind == "_modules" or (isinstance(value, Tensor) and name not in passing):
                yield str(name), value, False


def _text(name: object) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)  # bytes: names of Python 2


def some(names: Sequence[str], most: int = 8) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
