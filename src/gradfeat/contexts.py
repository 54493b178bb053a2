"""What torch keeps for a thread or for the whole process, and how the library comes by states of its own.

The caller may have turned gradients off, or autocast on, or be in inference mode: `plain` undoes that for a block, so
that a fit is the same wherever it is called from. Tracing changes `nn.Module`, and forward mode torch's choice of
kernels, for the whole process: `alone` lets one thread at a time do it.
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

_outside = threading.local()


class _Gate:
    """Many threads compute, or one captures: what torch changes meanwhile, it changes for all threads.

    A capture replaces methods of `nn.Module`, puts stand-ins in the place of a network's weights, and turns off
    libraries that convolutions use, which changes their last digits. So a thread that captures waits for the batches
    that others have begun, and they begin none until it is done. Beyond its reach is what the caller's own threads do:
    a network is not to be run elsewhere while it is captured.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing = 0  # threads
        self._waiting = 0  # threads that want to capture
        self._owner: int | None = None  # the thread that captures
        self._local = threading.local()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute: at the same time as others, but not while another thread captures."""
        if self._owner == threading.get_ident() or getattr(self._local, "computing", False):
            yield
            return
        with self._changed:
            while self._owner is not None or self._waiting:
                self._changed.wait()
            self._computing += 1
        self._local.computing = True
        try:
            yield
        finally:
            self._local.computing = False
            self._count(-1)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Capture: a thread that computes lets go meanwhile, so that two of them do not wait for each other."""
        if self._owner == threading.get_ident():
            yield
            return
        computing = getattr(self._local, "computing", False)
        self._take(1 if computing else 0)
        try:
            yield
        finally:
            with self._changed:
                self._owner = None
                self._computing += computing
                self._changed.notify_all()

    def _take(self, own: int) -> None:
        with self._changed:
            self._computing -= own
            self._waiting += 1
            self._changed.notify_all()
            try:
                while self._owner is not None or self._computing:
                    self._changed.wait()
                self._owner = threading.get_ident()
            except BaseException:  # Ctrl-C
                self._computing += own
                raise
            finally:
                self._waiting -= 1
                self._changed.notify_all()

    def _count(self, change: int) -> None:
        with self._changed:
            self._computing += change
            self._changed.notify_all()


_gate, _tokenizers = _Gate(), _Gate()


def _new_gates() -> None:
    """Begin a forked process with free gates: the threads that were behind the old ones are not there."""
    global _gate, _tokenizers
    _gate, _tokenizers = _Gate(), _Gate()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_gates)


@contextmanager
def alone() -> Iterator[None]:
    """Let no other thread of this process capture, trace or compute meanwhile; the same thread may come again."""
    with _gate.alone():
        yield


@contextmanager
def computing() -> Iterator[None]:
    """Compute while no other thread captures or traces; in one batch at a time, which those wait for."""
    with _gate.computing():
        yield


@contextmanager
def tokenizing() -> Iterator[None]:
    """Tokenize while no other thread does: a tokenizer keeps the length that one call asks for, and others get it."""
    with _tokenizers.alone():
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
        default = torch.empty(0).device  # torch 2.9 does not know its default once it has been set to None
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
def float32_by_default() -> Iterator[None]:
    """Make tensors in float32 where nothing else is said; torch has one default for all threads."""
    default = torch.get_default_dtype()
    if default == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


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
