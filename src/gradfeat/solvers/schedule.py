"""The paper's schedules, as data (Mu, Liang & Li, 2020, Sec. 4 and its published code)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from gradfeat.errors import ConfigurationError, did_you_mean

SOLVERS = ("adam", "sgd")
"""The optimizers that the paper trains linear models with."""

OPTIMIZERS = (*SOLVERS, "adamw")
DECAYS = ("halved", "cosine")


@dataclass(frozen=True)
class Schedule:
    """An optimizer, its learning rate, and how both go on in time.

    Attributes:
        optimizer: "adam", "adamw" or "sgd"; these have no momentum, or no betas.
        learning_rate: At the start, or after the warm-up.
        halve_every: Iterations after which the learning rate is halved, again and again, where `decay` says so.
        iterations: Length, in minibatches.
        batch_size: Samples in a minibatch.
        weight_decay: L2 penalty that the optimizer adds to the gradient; of "adamw" the share of the learning rate by
            which it shrinks the weights.
        betas: Adam's β₁ and β₂.
        momentum: SGD's momentum.
        clip_norm: Largest norm of the gradient; None does not clip.
        decay: "halved", or "cosine": half a period, down to zero at the end.
        warmup: Share of the iterations in which the learning rate grows from zero in equal steps, before it decays.

    Raises:
        ConfigurationError: An unknown optimizer or decay, momentum for Adam, or a number out of range.

    Example:
        >>> schedule = Schedule("adamw", 1.0, 1, 8, 32, decay="cosine", warmup=0.25)
        >>> [round(schedule.at(i), 2) for i in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """

    optimizer: str
    learning_rate: float
    halve_every: int
    iterations: int
    batch_size: int
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    clip_norm: float | None = None
    decay: str = "halved"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        above_zero = ("learning_rate", "halve_every", "iterations", "batch_size")
        clipped = () if self.clip_norm is None else ("clip_norm",)
        wrong = [f"{name} must be above 0" for name in (*above_zero, *clipped) if not getattr(self, name) > 0]
        wrong += [
            f"{name} must not be below 0" for name in ("weight_decay", "momentum") if not getattr(self, name) >= 0
        ]
        if not 0 <= self.warmup < 1:
            wrong.append("warmup must be a share of the iterations, from 0 to below 1")
        if self.optimizer != "sgd" and self.momentum:
            wrong.append("momentum is SGD's: Adam has betas")
        if wrong:
            raise ConfigurationError(f"{self}: {'; '.join(wrong)}")

    def __str__(self) -> str:
        return f"{self.optimizer} {self.learning_rate:g}"

    def n_epochs(self, n: int) -> int:
        """Return the number of passes over n samples, the last one perhaps not whole."""
        return math.ceil(self.iterations / math.ceil(n / self.batch_size))

    def at(self, iteration: int) -> float:
        """Return the learning rate of an iteration."""
        warm = round(self.warmup * self.iterations)
        if iteration < warm:
            return self.learning_rate * (iteration + 1) / warm
        if self.decay == "cosine":
            gone = (iteration - warm) / max(1, self.iterations - warm)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * gone))
        return self.learning_rate * 0.5 ** (iteration // self.halve_every)

    def shortened(self, iterations: int) -> Schedule:
        """Return the schedule with another length, its learning rate halved at the same shares of it."""
        every = max(1, round(self.halve_every * iterations / self.iterations))
        return replace(self, iterations=iterations, halve_every=every)

    def with_optimizer(self, other: Schedule) -> Schedule:
        """Return this length and batch size with another's optimizer and learning rate."""
        return replace(
            other,
            iterations=self.iterations,
            halve_every=self.halve_every,
            batch_size=self.batch_size,
            clip_norm=self.clip_norm,
        )

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimizer."""
        if self.optimizer != "sgd":
            adam = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
            return adam(parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )


PAPER = Schedule("adam", 1e-3, 20_000, 80_000, 64, weight_decay=1e-6, betas=(0.5, 0.999))
"""CIFAR-10, CIFAR-100 and SVHN: 80,000 iterations of Adam, the learning rate halved every 20,000."""

PAPER_FINETUNE_SGD = replace(PAPER, optimizer="sgd", momentum=0.9, weight_decay=5e-5)
"""The other optimizer of the paper's fine-tuning, whose better one it reports."""

PUBLISHED_CODE = Schedule("sgd", 0.1, 10_000, 50_000, 128, weight_decay=5e-5, momentum=0.9, clip_norm=10.0)
"""What the published code does instead."""

VOC_EPOCHS, VOC_HALVE_EPOCHS = 50, 20
"""VOC07 and COCO2014: 50 epochs, the learning rate halved every 20 of them; all else as `PAPER`."""

_OPTIMIZERS = {"adam": PAPER, "sgd": PUBLISHED_CODE}


def voc_schedule(n: int, *, batch_size: int = 64) -> Schedule:
    """Return the paper's schedule for VOC07 and COCO2014 with n training images."""
    per_epoch = math.ceil(n / batch_size)
    iterations, halve_every = VOC_EPOCHS * per_epoch, VOC_HALVE_EPOCHS * per_epoch
    return replace(PAPER, iterations=iterations, halve_every=halve_every, batch_size=batch_size)


def paper_schedule(
    solver: str, n: int, *, batch_size: int = 64, epochs: int | None = None, clip_norm: float | None = None
) -> Schedule:
    """Return the paper's schedule for n samples: VOC's 50 epochs, or CIFAR's 80,000 iterations where that is less.

    Args:
        solver: "adam" (the paper's), or "sgd" (the published code's).
        n: Number of samples.
        batch_size: Samples in a minibatch.
        epochs: Another length; the learning rate is then halved at the same shares of it as in VOC's.
        clip_norm: Largest norm of the gradient; None leaves the schedule's own.

    Raises:
        ConfigurationError: The solver is unknown.

    Example:
        >>> paper_schedule("adam", 1_800).iterations, paper_schedule("adam", 200_000).iterations
        (1450, 80000)
    """
    if solver not in _OPTIMIZERS:
        raise ConfigurationError(
            f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}.{did_you_mean(solver, SOLVERS)}"
        )
    length = voc_schedule(n, batch_size=batch_size)
    if epochs is not None:
        length = length.shortened(epochs * math.ceil(n / batch_size))
    elif length.iterations > PAPER.iterations:
        length = replace(PAPER, batch_size=batch_size)
    published = _OPTIMIZERS[solver]
    schedule = replace(length, clip_norm=published.clip_norm).with_optimizer(published)
    return schedule if clip_norm is None else replace(schedule, clip_norm=clip_norm)
