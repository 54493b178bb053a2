"""What a pickle in a file of torch.save would do, found out without running it."""

from __future__ import annotations

import io
import pickletools
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, which protocol 2 writes
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_NUMBER = bytes.fromhex("6cfc9c46f9206aa85019")  # the first pickle of a file in the older format
_MOST_STEPS = 5_000_000  # of a pickle; a tensor takes forty
_MOST_NAMES = 1000  # of classes and functions; a Lightning checkpoint or a whole network has some dozens


class UnboundedPickle(Exception):
    """A pickle would take memory or time without bound; the message says how."""


def globals_in(path: Path) -> Iterator[str]:
    """Yield the classes and functions that the pickles of a file of torch.save name, as "module.name".

    Raises:
        UnboundedPickle: One of them is too long, names too many, or makes bytes in another way than pickle itself.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":  # as torch tells the formats apart
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():  # every one of the name: which of several torch takes plays no part
                    if entry.filename.lower().endswith("data.pkl"):
                        del entry.CRC  # a checksum may be off; `weights_file` compares them
                        with archive.open(entry) as pickled:
                            yield from _globals_of(io.BytesIO(pickled.read()))
            return
        file.seek(0)
        yield from _globals_of(file)
        end = file.seek(0, io.SEEK_CUR)
        file.seek(0)
        if _NUMBER in file.read(end):  # torch reads on: version, system, content, keys of the storages
            for _ in range(4):
                yield from _globals_of(file)


def _globals_of(pickled: IO[bytes]) -> Iterator[str]:
    names: set[str] = set()
    calls = _BytesCalls()
    for steps, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if steps > _MOST_STEPS:
            raise UnboundedPickle(f"has a pickle of more than {_MOST_STEPS:,} steps")
        full = ""
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            full = f"{module}.{name}"
            names.add(full)
            yield full
        if len(names) > _MOST_NAMES:
            raise UnboundedPickle(f"names more than {_MOST_NAMES:,} classes and functions")
        calls.follow(operation.name, argument, full)


# The two functions that torch lets a pickle call and that make bytes, and the calls of them that pickle itself writes
# (t a text, c the name of Latin-1, 0 to 2 a tuple of so many, r the call). With a number ``bytearray`` takes as much
# memory, and other codecs double a text at each call ("hex").
_MAKE_BYTES = {"_codecs.encode": "e", "builtins.bytearray": "b"}
_PLAIN_CALLS = {"e": ("tc2r", "cc2r"), "b": ("0r", "tc2r", "cc2r", "etc2r1r", "ecc2r1r")}
_LETTERS = {"BINUNICODE": "t", "EMPTY_TUPLE": "0", "TUPLE1": "1", "TUPLE2": "2", "REDUCE": "r"}


class _BytesCalls:
    """Follows a pickle, and refuses calls that make bytes otherwise than pickle's own do."""

    def __init__(self) -> None:
        self.memo: dict[Any, str] = {}
        self.last = ""
        self.function: str | None = None
        self.after = ""  # what has followed it so far

    def follow(self, operation: str, argument: Any, name: str) -> None:
        """Take one step; `name` is that of a class or function."""
        if operation in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.last if self.last in ("e", "b", "c") else "t"
            return
        self.last = _MAKE_BYTES.get(name, "") or _LETTERS.get(operation, "-")
        if operation in ("BINGET", "LONG_BINGET"):
            self.last = self.memo.get(argument, "t")
        elif operation == "BINUNICODE" and argument in ("latin1", "latin-1"):
            self.last = "c"
        if self.function is None:
            self.function, self.after = (self.last, "") if self.last in _PLAIN_CALLS else (None, "")
            return
        self.after += self.last
        if not any(call.startswith(self.after) for call in _PLAIN_CALLS[self.function]):
            raise UnboundedPickle("makes bytes out of other things than text")
        if self.after in _PLAIN_CALLS[self.function]:
            self.function = None


# Of the standard library a checkpoint's settings have these; all else of it there is no data.
_DATA = frozenset(
    {"argparse", "array", "collections", "copyreg", "datetime", "dataclasses", "decimal", "enum", "fractions"}
    | {"functools", "inspect", "ipaddress", "itertools", "logging", "math", "numbers", "pathlib", "random", "re"}
    | {"statistics", "string", "time", "types", "typing", "uuid", "zoneinfo", "_codecs", "_io", "_operator", "__main__"}
)
_BUILTINS = frozenset(
    {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object", "range"}
    | {"set", "slice", "str", "tuple", "type", "abs", "len", "max", "min", "round", "sorted", "sum"}
)


def is_data(name: str) -> bool:
    """Return whether a class or function may stand in a checkpoint; what may not is what attacks are made of."""
    module, _, what = name.partition(".")
    if module == "builtins":
        return what in _BUILTINS
    return module in _DATA or module not in sys.stdlib_module_names
