"""The header of a WAV file, looked at before the file is read: what it promises must be there."""

from __future__ import annotations

import dataclasses
import io
import os
import struct

from gradfeat.errors import DataError

MOST = 10_000_000
"""Samples a second; no recorder has more."""
_STREAMED = 0xFFFFFFFF  # the size that a program writes which does not know it yet
_MANY = 1000  # chunks of a file


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a WAV file says of its samples.

    Args:
        rate: Samples a second.
        channels: Values of a sample.
        block: Bytes of a sample, all channels together.
        start: Where the samples begin, in bytes.
        declared: Bytes of samples, as the file says.
        there: Bytes of samples that the file has, at most.
        end: Where the file ends, as it says.
    """

    rate: int
    channels: int
    block: int
    start: int
    declared: int
    there: int
    end: int

    @property
    def cut(self) -> bool:
        """Whether the file ends before its samples do."""
        return self.there < self.declared < _STREAMED

    @property
    def true(self) -> bool:
        """Whether the sizes in it are those of the file."""
        return self.declared <= self.there and self.start + self.declared <= self.end


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """Return the header of a WAV file; None where it is not as usual, and a reader may know more.

    Raises:
        DataError: It gives no channels, or a rate or sizes that no recording has.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        riff = file.read(12)
        if len(riff) < 12 or riff[:4] not in (b"RIFF", b"RIFX", b"RF64") or riff[8:] != b"WAVE":
            return None
        order = ">" if riff[:4] == b"RIFX" else "<"
        end = struct.unpack(order + "I", riff[4:8])[0] + 8
        form, long = None, None
        for _ in range(_MANY):
            head = file.read(8)
            if len(head) < 8:
                return None
            name, length = struct.unpack(order + "4sI", head)
            start = file.tell()
            if name == b"data" and form is not None:
                _, channels, rate, _, block, _ = form
                declared = length if long is None else long
                return _checked(path, Header(rate, channels, block, start, declared, max(0, size - start), end))
            body = file.read(min(length, 64)) if name in (b"fmt ", b"ds64") else b""
            if name == b"fmt " and length > size - start:  # a reader would make room for all of it
                raise DataError(f"{path} cannot be read as a WAV file: its header gives a format of {length:,} bytes")
            if name == b"fmt " and len(body) >= 16:
                form = struct.unpack(order + "HHIIHH", body[:16])
            if name == b"ds64" and riff[:4] == b"RF64" and len(body) >= 16:
                whole, long = struct.unpack("<QQ", body[:16])
                end = whole + 8
            file.seek(start + length + length % 2)
    return None


def _checked(path: str | os.PathLike[str], header: Header) -> Header:
    wrong = []
    if not 1 <= header.rate <= MOST:
        wrong.append(f"{header.rate:,} samples a second")
    if not header.channels:
        wrong.append("0 channels")
    elif header.block < header.channels:
        wrong.append(f"{header.channels:,} channels in {header.block} bytes")
    if wrong:
        raise DataError(
            f"{path} cannot be read as a WAV file: its header gives {' and '.join(wrong)}. Expected 1 to {MOST:,} "
            "samples a second, of one channel or more"
        )
    return header


def content(path: str | os.PathLike[str], header: Header | None) -> str | os.PathLike[str] | io.BytesIO:
    """Return what a reader may trust: the file itself, or where its sizes are wrong, what is there with true ones."""
    if header is None or header.true:
        return path
    whole = min(header.declared, header.there // header.block * header.block)
    with open(path, "rb") as file:
        data = bytearray(file.read(header.start + whole))
    order = ">" if data[:4] == b"RIFX" else "<"
    data[:4] = b"RIFX" if order == ">" else b"RIFF"  # RF64 differs by sizes of eight bytes, which are not needed
    struct.pack_into(order + "I", data, 4, len(data) - 8)
    struct.pack_into(order + "I", data, header.start - 4, whole)
    return io.BytesIO(data)
