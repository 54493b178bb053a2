"""Adam and SGD on minibatches: the paper's way to train, and a baseline for better ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradfeat.errors import ConvergenceError, DataError
from gradfeat.solvers.schedule import Schedule


@dataclass
class History:
    """How a training went.

    Attributes:
        loss: Mean training loss of each finished epoch.
        passes: Samples that the optimizer has seen in these epochs, in units of n; the last epoch may not be whole.
        seconds: Time in all.
        stopped: "finished", or "interrupted" by the user (the weights are then those after the last finished epoch).
    """

    loss: list[float] = field(default_factory=list)
    passes: float = 0.0
    seconds: float = 0.0
    stopped: str = "finished"


def train(
    parameters: Sequence[nn.Parameter],
    step_loss: Callable[[Tensor], Tensor],
    n: int,
    schedule: Schedule,
    *,
    generator: torch.Generator,
    on_epoch: Callable[[int, History], None] | None = None,
) -> History:
    """Minimise a mean loss over n samples by minibatches in random order; the last, smaller one is used too.

    Args:
        parameters: What is trained, in place.
        step_loss: The mean loss of the samples at some indices, (m,) int64.
        n: Number of samples.
        schedule: Optimizer, learning rates, length.
        generator: Draws the order of samples.
        on_epoch: Called after each epoch with its number from 1.

    Returns:
        The losses and the time. After Ctrl-C the parameters are those of the last finished epoch.

    Raises:
        ConvergenceError: The loss left the finite numbers; the parameters are those of the last finished epoch.
        DataError: There are no samples.
    """
    if n < 1:
        raise DataError("there are no samples to train on")
    start = time.perf_counter()
    history = History()
    optimizer = schedule.make(parameters)
    finished = _copy(parameters)
    iteration = 0
    try:
        while iteration < schedule.iterations:
            total = 0.0
            count = 0
            for indices in torch.randperm(n, generator=generator).split(schedule.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.at(iteration)
                optimizer.zero_grad(set_to_none=True)
                loss = step_loss(indices)
                value = loss.item()
                if not math.isfinite(value):
                    raise ConvergenceError(
                        f"the loss became {value} in epoch {len(history.loss) + 1} with {schedule}; the weights are "
                        "those of the epoch before"
                    )
                loss.backward()
                if schedule.clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, schedule.clip_norm)
                optimizer.step()
                total += value * len(indices)
                count += len(indices)
                iteration += 1
                if iteration == schedule.iterations:
                    break
            if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
                raise ConvergenceError(
                    f"the weights left the finite numbers in epoch {len(history.loss) + 1} with {schedule}; they are "
                    "again those of the epoch before"
                )
            finished = _copy(parameters)
            history.loss.append(total / count)
            history.passes += count / n
            history.seconds = time.perf_counter() - start
            if on_epoch is not None:
                on_epoch(len(history.loss), history)
    except KeyboardInterrupt:
        _restore(parameters, finished)
        history.stopped = "interrupted"
    except ConvergenceError:
        _restore(parameters, finished)
        raise
    history.seconds = time.perf_counter() - start
    return history


def _copy(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
