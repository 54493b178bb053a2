"""Digests of weights: equal in every process, whatever the device or memory layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


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
