"""Files of torch.save, read without running anything that their pickles ask for."""

from __future__ import annotations

import pickle
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradfeat.backbones.pickle_scan import UnboundedPickle, globals_in, is_data
from gradfeat.errors import BackboneError

_LOADING = threading.Lock()  # torch's list of allowed names is one for the whole process
_MOST_CONTAINERS = 50  # classes of dicts and lists; the file is read again for each


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
    names: set[str] = set()
    failure = None
    try:
        names.update(globals_in(path))
    except UnboundedPickle as error:
        raise BackboneError(f"{path} {error}, which no weights need, and gradfeat does not read it.") from None
    except Exception as error:  # arbitrary bytes; torch.load must not see what could not be looked through
        failure = _damaged(path, error)
    if hostile := sorted(name for name in names if not is_data(name)):
        raise BackboneError(
            f"{path} asks for {printable(', '.join(hostile[:4]))[:200]}, which no weights need, and gradfeat executes "
            "nothing from a file. Do not load it in another way either, unless you know where it comes from."
        )
    if failure is not None:
        raise failure
    kinds: dict[str, type] = dict.fromkeys(names, StandIn)
    replaced = 0
    while True:
        try:
            return _load_torch(path, kinds)
        except pickle.UnpicklingError as error:
            # the pickle puts entries into a dict or list of a class of its own: a plain one serves as well
            wanted = re.search(r"Can only (SETITEM|append|extend).*got <class '(.+?)'>", str(error))
            name = wanted[2].removeprefix(f"{__name__}.") if wanted else ""
            if wanted and kinds.get(name) is StandIn and replaced < _MOST_CONTAINERS:
                replaced += 1
                kinds[name] = _Mapping if wanted[1] == "SETITEM" else _List
                continue
            raise BackboneError(f"{path} {_why(error)}") from error
        except Exception as error:  # the unpickler meets arbitrary bytes: KeyError, EOFError, RuntimeError ...
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BackboneError:
    reason = printable(str(error).strip().partition("\n")[0][:200]) or type(error).__name__
    if "magic number" in reason:
        return BackboneError(f"{path} is a pickle that torch.save did not write, or damaged: {reason}")
    return BackboneError(f"{path} is damaged or no PyTorch file: {reason}")


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
