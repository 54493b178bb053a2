"""Digests of weights: equal in every process, whatever the device or memory layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_HEAD = '{"sha256": "'


def tensor_lines(state: Mapping[str, Tensor]) -> list[str]:
    """Return name, dtype and shape of every tensor, sorted by name."""
    return [f"{name} {state[name].dtype} {tuple(state[name].shape)}" for name in sorted(state)]


def digest_tensors(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over name, dtype, shape and bytes of every tensor, sorted by name.

    Example:
        >>> digest_tensors({"a": torch.zeros(2)}) == digest_tensors({"a": torch.zeros(1, 2)})
        False
    """
    digest = hashlib.sha256()
    for line, name in zip(tensor_lines(state), sorted(state), strict=True):
        digest.update(line.encode() + b"\0")
        # The bytes are hashed in place: no copy for a contiguous tensor in main memory.
        values = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over a text and the tensors beside it."""
    return hashlib.sha256(f"{digest_tensors(tensors)} {text}".encode()).hexdigest()


def sealed(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a JSON object with, as its first entry, a checksum of the rest of it and of the tensors beside it.

    Example:
        >>> text = sealed('{"a": 1}', {})
        >>> text[:12], text[-7:], check_sealed(text, {})
        ('{"sha256": "', '"a": 1}', True)
    """
    return f'{_HEAD}{checksum(text, tensors)}"{"" if text == "{}" else ", "}{text[1:]}'


def check_sealed(text: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a JSON object has a checksum; older files have none.

    Raises:
        ValueError: The object or the tensors are not what it is of.
    """
    if not text.startswith(_HEAD):
        return False
    found, rest = text[len(_HEAD) :].partition('"')[::2]
    if checksum("{" + rest.removeprefix(", "), tensors) != found:
        raise ValueError("its content is not what its checksum is of")
    return True
