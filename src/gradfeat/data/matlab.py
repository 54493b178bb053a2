"""Arrays of plain numbers from a MATLAB file of version 5, as SVHN's are.

SciPy's reader looks types up by the numbers in a file without a look at them, so a damaged file can end the process.
This one reads arrays of numbers alone, and makes room for no more than a file says of them and may have.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from gradfeat.data.memory import free_memory

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_OTHERS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse"}
_COMPLEX = 0x0800
_PIECE = 1 << 20


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Inflated:
    """What a compressed element holds, as a stream."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._left, self._zlib = file, length, zlib.decompressobj()

    def read(self, size: int, /) -> bytes:
        parts = []
        while size > 0:
            packed = self._zlib.unconsumed_tail
            if not packed and not self._zlib.eof and self._left:
                packed = self._file.read(min(_PIECE, self._left))
                self._left -= len(packed) or self._left
            part = self._zlib.decompress(packed, size)
            if not part and (self._zlib.eof or not packed):
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def read_matrices(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray | str]:
    """Return arrays by name, and what else the file holds.

    Args:
        path: The file.
        names: Arrays that are read; of others the type alone is said.

    Returns:
        Arrays in MATLAB's order (the first axis is the fastest), or the name of a type.

    Raises:
        ValueError: It is no such file, is cut off, or an array is not as large as it says.

    Example:
        >>> import tempfile
        >>> from scipy.io import savemat
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     savemat(f"{folder}/a.mat", {"a": np.eye(2), "b": "text"})
        ...     read_matrices(Path(f"{folder}/a.mat"), ("a", "b"))
        {'a': array([[1., 0.],
               [0., 1.]]), 'b': 'char'}
    """
    found: dict[str, np.ndarray | str] = {}
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:])
        if order is None or header[124:126] not in (b"\x00\x01", b"\x01\x00"):
            raise ValueError("it is no MATLAB file of version 5")
        while (start := file.tell()) < size:
            kind, length, _ = _tag(file, order)
            if start + 8 + length > size:
                raise ValueError(f"it ends early: {start + 8 + length:,} bytes are declared, and it has {size:,}")
            if kind in (_MATRIX, _COMPRESSED):
                stream: _Bytes = file
                if kind == _COMPRESSED:
                    stream = _Inflated(file, length)
                    if _tag(stream, order)[0] != _MATRIX:
                        raise ValueError("a compressed part holds no array")
                name, value = _matrix(stream, order, names, packed=length)
                found[name] = value
            # the parts of an array are padded to eight bytes, a compressed one is not
            file.seek(start + 8 + length)
    return found


def _matrix(stream: _Bytes, order: str, names: tuple[str, ...], packed: int) -> tuple[str, Any]:
    flags = np.frombuffer(_part(stream, order, 8), f"{order}u4")
    dims = np.frombuffer(_part(stream, order, 4 * 32), f"{order}i4")
    name = _part(stream, order, 64).decode("latin1")
    kind = int(flags[0]) & 0xFF if len(flags) else 0
    if name not in names or kind not in _CLASSES:
        return name, _OTHERS.get(kind, "another type" if kind not in _CLASSES else "numbers")
    if int(flags[0]) & _COMPLEX:
        return name, "complex numbers"
    shape = tuple(int(side) for side in dims)
    stored, length, small = _tag(stream, order)
    if stored not in _STORED:
        raise ValueError(f"{name} is stored in the unknown type {stored}")
    dtype = np.dtype(order + _STORED[stored])
    if min(shape, default=-1) < 0 or math.prod(shape) * dtype.itemsize != length:
        raise ValueError(f"{name} is an array of the shape {shape} and has {length:,} bytes")
    wanted = np.dtype(_CLASSES[kind])
    needed = length + (math.prod(shape) * wanted.itemsize if wanted != dtype else 0)
    if needed > free_memory() or length > _DENSEST * packed + 64:
        raise ValueError(f"{name} would be {needed:,} bytes in memory, out of {packed:,}")
    values = np.empty(length, np.uint8)
    for start in range(0, length, _PIECE):
        piece = small[:length] if small else stream.read(min(_PIECE, length - start))
        if len(piece) != min(_PIECE, length - start):
            raise ValueError(f"{name} ends early")
        values[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
    return name, values.view(dtype).astype(wanted, copy=False).reshape(shape, order="F")


_DENSEST = 1100  # how often smaller zlib can pack anything


def _tag(stream: _Bytes, order: str) -> tuple[int, int, bytes]:
    """Return the type and the length of the next part, and its content where that is in the tag itself."""
    head = stream.read(8)
    if len(head) < 8:
        raise ValueError("it ends early")
    first, second = (int(number) for number in np.frombuffer(head, f"{order}u4"))
    if first >> 16:
        return first & 0xFFFF, min(first >> 16, 4), head[4:]
    return first, second, b""


def _part(stream: _Bytes, order: str, most: int) -> bytes:
    """Return the content of a short part."""
    _, length, small = _tag(stream, order)
    if length > most:
        raise ValueError(f"a part of an array's description has {length:,} bytes")
    if small:
        return small[:length]
    content = stream.read(length + -length % 8)[:length]
    if len(content) < length:
        raise ValueError("it ends early")
    return content
