"""Files of torch.save, read without running anything that their pickles ask for."""

from __future__ import annotations

import pickle
import pickletools
import re
import sys
import threading
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, which protocol 2 writes
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from gradfeat.errors import BackboneError

_LOADING = threading.Lock()  # torch's list of allowed names is one for the whole process


class StandIn:
    """An object of a pickle whose class is not loaded: it keeps the state that the pickle gives it, and does nothing.

    Args:
        *arguments: What the pickle would have called the class or function with.
    """

    def __new__(cls, *arguments: Any, **keywords: Any) -> StandIn:
        """Make an empty object, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_torch(path: Path) -> object:
    """Return what a file of torch.save holds; objects of other classes than torch's own are `StandIn`.

    Raises:
        BackboneError: The file is damaged, or its pickle asks for what no weights need.
    """
    try:
        names = set(_globals_in(path))
    except Exception:  # arbitrary bytes: torch.load says below what is wrong
        names = set()
    if hostile := sorted(name for name in names if not _is_data(name)):
        raise BackboneError(
            f"{path} asks for {printable(', '.join(hostile[:4]))[:200]}, which no weights need, and gradfeat executes "
            "nothing from a file. Do not load it in another way either, unless you know where it comes from."
        )
    kinds: dict[str, type] = dict.fromkeys(names, StandIn)
    while True:
        try:
            return _load_torch(path, kinds)
        except pickle.UnpicklingError as error:
            # the pickle puts entries into a dict or list of a class of its own: a plain one serves as well
            wanted = re.search(r"Can only (SETITEM|append|extend).*got <class '(.+?)'>", str(error))
            name = wanted[2].removeprefix(f"{__name__}.") if wanted else ""
            if wanted and kinds.get(name) is StandIn:
                kinds[name] = _Mapping if wanted[1] == "SETITEM" else _List
                continue
            raise BackboneError(f"{path} {_why(error)}") from error
        except Exception as error:  # the unpickler meets arbitrary bytes: KeyError, EOFError, RuntimeError ...
            reason = printable(str(error).strip().partition("\n")[0][:200]) or type(error).__name__
            what = (
                "a pickle that torch.save did not write, or damaged"
                if "magic number" in reason
                else "damaged or no PyTorch file"
            )
            raise BackboneError(f"{path} is {what}: {reason}") from error


class _Mapping:
    def __new__(cls, *arguments: Any, **keywords: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _List:
    def __new__(cls, *arguments: Any, **keywords: Any) -> list[Any]:  # type: ignore[misc]
        return []


def _load_torch(path: Path, kinds: Mapping[str, type]) -> object:
    """Load a file of torch.save with a class that does nothing in the place of every class that torch does not know."""
    stand_ins: Any = [(type(name, (kind,), {}), name) for name, kind in kinds.items()]
    with _LOADING, torch.serialization.safe_globals(stand_ins), path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old formats and protocols
        return torch.load(file, map_location="cpu", weights_only=True)


def _why(error: Exception) -> str:
    """Say why torch's restricted unpickler refuses a file, and the way out."""
    _, _, text = str(error).partition("WeightsUnpickler error:")
    reason = printable((text or str(error)).strip().partition("\n")[0][:200])
    way_out = (
        "Where it comes from a source you trust, load it yourself (torch.load(..., weights_only=False)) and keep "
        "torch.save(network.state_dict(), ...)."
    )
    if "persistent_load" in reason:
        return (
            "holds a whole network in the older format of torch.save, with its code, and gradfeat executes nothing "
            f"from a file. {way_out}"
        )
    if "Unsupported operand" in reason:
        return (
            "was written with another pickle protocol than torch.save's own (2), or is damaged; gradfeat executes "
            f"nothing from a file ({reason}). {way_out}"
        )
    return f"is damaged, or holds more than tensors, and gradfeat executes nothing from a file ({reason}). {way_out}"


def printable(text: str) -> str:
    """Return a name out of a file with its control characters written out."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _globals_in(path: Path) -> Iterator[str]:
    """Yield what the pickles of a file of torch.save name, "module.name", without running them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") == 1)
            with archive.open(name) as file:
                yield from _globals_of(file)
        return
    with path.open("rb") as file:  # the older format: number, version, system, content, keys of the storages
        for _ in range(5):
            yield from _globals_of(file)


def _globals_of(pickled: IO[bytes]) -> Iterator[str]:
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            yield f"{module}.{name}"


# Of the standard library a checkpoint's settings have these; all else of it there is no data.
_DATA = frozenset(
    {"argparse", "collections", "copyreg", "datetime", "dataclasses", "decimal", "enum", "fractions", "functools"}
    | {"logging", "pathlib", "random", "re", "types", "typing", "uuid", "_codecs", "__main__"}
)
_BUILTINS = frozenset(
    {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object", "range"}
    | {"set", "slice", "str", "tuple", "type"}
)


def _is_data(name: str) -> bool:
    module, _, what = name.partition(".")
    if module == "builtins":
        return what in _BUILTINS
    return module in _DATA or module not in sys.stdlib_module_names
