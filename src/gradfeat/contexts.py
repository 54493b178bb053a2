"""What torch keeps for a thread or for the whole process, and how the library comes by states of its own.

The caller may have turned gradients off, or autocast on, or be in inference mode: `plain` undoes that for a block, so
that a fit is the same wherever it is called from. Tracing changes `nn.Module` and the warnings of the whole process:
`alone` lets one thread at a time do it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu")
"""Kinds of devices of which autocast may be on; torch asks for each by its name."""

_lock = threading.RLock()
_outside = threading.local()


def _new_lock() -> None:
    """Begin a forked process with a free lock: the thread that may have held it is not there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def alone() -> Iterator[None]:
    """Let no other thread of this process capture or trace meanwhile; the same thread may come again."""
    lock = _lock  # the same one is given back, also in a child that was forked meanwhile
    with lock:
        yield


@contextmanager
def plain() -> Iterator[None]:
    """Compute as if the caller had set nothing: gradients on, no inference mode, no autocast, tensors on the CPU.

    Example:
        >>> with torch.inference_mode(), plain():
        ...     x = torch.ones(2, requires_grad=True)
        ...     torch.is_grad_enabled(), x.is_inference()
        (True, False)
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        stack.enter_context(single_precision())
        default = torch.get_default_device()
        if default.type != "cpu":
            stack.enter_context(_remembered(default))
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def single_precision() -> Iterator[None]:
    """Compute without autocast, in the precision that tensors have."""
    with contextlib.ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def callers_device() -> Iterator[None]:
    """Inside `plain`: make tensors where the caller's default is, as a network expects that was written for it."""
    default = getattr(_outside, "device", None)
    with contextlib.nullcontext() if default is None else default:
        yield


@contextmanager
def _remembered(device: torch.device) -> Iterator[None]:
    before = getattr(_outside, "device", None)
    _outside.device = device
    try:
        yield
    finally:
        _outside.device = before
