"""How much of the samples is kept: what fits into a bound on memory, beside what a pass needs at a time."""

from __future__ import annotations

import math
import numbers
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch

from gradfeat.data.memory import free_memory
from gradfeat.errors import ConfigurationError

LEVELS = ("residuals", "z0", "none")

FINE_TUNING = 1.5
"""A fit may hold so many times what fine-tuning of the same layers would hold."""

_MINIBATCH, _ACTIVATIONS = 32, 3  # of fine-tuning; a sample's activations and gradients are so many times its residuals
_AT_A_TIME = 5  # times its residuals is what a sample needs in a pass: they, and what tangent and backward make of them
_COPIES = 12  # of θ₂, which a solver holds: directions and factors
FIRST_BATCH = 8
"""The least that a batch may have to be, and what is read before it is known."""

_MOST_BATCH = 2048
_SHARE = 4  # at most a quarter of the bound is for a pass

_UNITS = {"": 1, "b": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_WRITTEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def bytes_of(memory: Any, name: str = "memory") -> int | None:
    """Return the bytes that a value says; None is "auto".

    Args:
        memory: "auto", a number of bytes, or a number with a unit: "500MB", "2 GB" (10⁹), "1.5 GiB" (2³⁰).
        name: Of the parameter, for messages.

    Raises:
        ConfigurationError: It says no number of bytes above zero.

    Example:
        >>> bytes_of("2 GB"), bytes_of("1.5GiB"), bytes_of(2e9), bytes_of("auto")
        (2000000000, 1610612736, 2000000000, None)
    """
    if isinstance(memory, str) and memory.strip().lower() == "auto":
        return None
    value = -1.0
    if isinstance(memory, numbers.Real) and not isinstance(memory, bool):
        value = float(memory)
    elif isinstance(memory, str) and (written := _WRITTEN.fullmatch(memory)) is not None:
        unit = written[2].lower()
        value = float(written[1]) * _UNITS[unit] if unit in _UNITS else value
    if not (math.isfinite(value) and value >= 1):
        raise ConfigurationError(
            f"{name} must be 'auto', a number of bytes above 0, or a text as '2GB', not {memory!r}"
        )
    return int(value)


def in_words(size: float) -> str:
    """Return a number of bytes in the largest unit that leaves one before the point.

    Example:
        >>> in_words(612_000_000), in_words(1_234_000), in_words(96)
        ('0.61 GB', '1.2 MB', '96 bytes')
    """
    if size >= 1e8:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,.0f} bytes"


def available_memory(device: torch.device | None = None) -> int:
    """Return the memory of a device that is free for use, bytes (4 GiB where the system does not say).

    Args:
        device: A CUDA device; any other is taken for the CPU.
    """
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory()


def process_memory() -> int:
    """Return the main memory that this process has now, bytes (its largest so far where the system does not say)."""
    try:
        with open("/proc/self/statm") as numbers_of_pages:
            return int(numbers_of_pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 29
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(largest) * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Sizes:
    """What n samples are in memory, bytes.

    Attributes:
        n: Number of samples.
        z0: Of a sample.
        residuals: Of a sample, the mean where texts differ in length.
        features: Of a sample's f(x).
        theta2: Of all parameters that are linearized.
    """

    n: int
    z0: int
    residuals: int
    features: int
    theta2: int

    @property
    def fixed(self) -> int:
        """What is always held: f(x) of all samples, twice where θ̄₂ moves."""
        return 2 * self.n * self.features

    @property
    def pass_of_one(self) -> int:
        """What a sample needs in a pass."""
        return self.z0 + self.features + _AT_A_TIME * self.residuals

    @property
    def least(self) -> int:
        """The least bound that does."""
        return self.fixed + min(self.n, FIRST_BATCH) * self.pass_of_one


@dataclass(frozen=True)
class Room:
    """What is kept, and how large a batch is.

    Attributes:
        z0: Number of samples whose z₀ is kept.
        residuals: Number of samples whose residuals are kept.
        batch: Samples at a time in a pass, at most.
    """

    z0: int
    residuals: int
    batch: int


def room_for(cache: str, memory: int | None, sizes: Sizes, *, random: bool, device: torch.device | None = None) -> Room:
    """Return what is kept of some samples.

    z₀ comes first, which saves most for its size, and then the residuals of as many samples as fit. What is not kept is
    computed again in each pass, so that a little less memory costs a little more time.

    Args:
        cache: The most that is kept of a sample, a level; "auto" is "residuals", as far as the bound goes.
        memory: The bound, bytes; None is `automatic`, or half of the free memory for a level that is named.
        sizes: What they are in memory.
        random: Whether the samples may differ from pass to pass (augmentation).
        device: Where they are kept; None is the CPU.

    Raises:
        ConfigurationError: An unknown level, or one that cannot hold samples that change; a bound that is too small.
    """
    if cache not in (*LEVELS, "auto"):
        raise ConfigurationError(f"cache must be 'auto' or one of {', '.join(LEVELS)}, not {cache!r}")
    if random and cache in ("residuals", "z0"):
        raise ConfigurationError(
            f"cache={cache!r} would freeze the first version of each sample: this data set may change its samples"
        )
    if memory is not None and memory < sizes.least:
        raise ConfigurationError(
            f"memory={in_words(memory)} is too small for these {sizes.n:,} samples: their activations and a batch of "
            f"{min(sizes.n, FIRST_BATCH)} need {in_words(sizes.least)}. Give at least memory={sizes.least}, or name a "
            "smaller theta2"
        )
    bound = memory
    if bound is None:
        bound = automatic(sizes, device) if cache == "auto" else available_memory(device) // 2
    rest = max(0, bound - sizes.fixed)
    most = rest // max(1, sizes.pass_of_one)
    usual = min(_MINIBATCH, most // 2) if memory is None else 0  # as many at a time as in fine-tuning
    batch = min(max(most // _SHARE, usual, FIRST_BATCH), _MOST_BATCH)
    if random or cache == "none":
        return Room(0, 0, batch)
    rest = max(0, rest - batch * sizes.pass_of_one)
    z0 = min(sizes.n, rest // max(1, sizes.z0))
    rest -= z0 * sizes.z0
    residuals = 0 if cache == "z0" or z0 < sizes.n else min(sizes.n, rest // max(1, sizes.residuals))
    return Room(z0, residuals, batch)


def automatic(sizes: Sizes, device: torch.device | None = None) -> int:
    """Return the bound where none is given, bytes; never more than half of the free memory.

    On a CPU the whole process may hold `FINE_TUNING` times what it would hold in fine-tuning: what it holds now, z₀ of
    all samples, and the activations and gradients of a minibatch. What a solver holds is taken off. A GPU's memory is
    its own, and half of what is free is used.
    """
    most = available_memory(device) // 2
    if device is not None and device.type == "cuda":
        return most
    process, all_z0 = process_memory(), sizes.n * sizes.z0
    rival = process + all_z0 + _MINIBATCH * _ACTIVATIONS * sizes.residuals
    bound = int(FINE_TUNING * rival) - process - _COPIES * sizes.theta2
    usual = sizes.fixed + all_z0 + _MINIBATCH * sizes.pass_of_one
    return min(max(bound, usual), most)
