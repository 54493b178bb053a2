"""Adam and SGD on minibatches: the paper's way to train, and a baseline for better ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gradfeat.contexts import computing
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


KEEP_SECONDS = 10.0


@dataclass(frozen=True)
class State:
    """Where a training is after an epoch.

    Attributes:
        iteration: Minibatches so far.
        history: Up to there.
        tensors: The parameters, ``parameter/<place>``, and the optimizer's state, ``optimizer/<place>/<name>``.
    """

    iteration: int
    history: History
    tensors: dict[str, Tensor]


def train(
    parameters: Sequence[nn.Parameter],
    step_loss: Callable[[Tensor], Tensor],
    n: int,
    schedule: Schedule,
    *,
    generator: torch.Generator,
    on_epoch: Callable[[int, History], None] | None = None,
    resume: State | None = None,
    keep: Callable[[State], None] | None = None,
) -> History:
    """Minimise a mean loss over n samples by minibatches in random order; the last, smaller one is used too.

    Args:
        parameters: What is trained, in place.
        step_loss: The mean loss of the samples at some indices, (m,) int64.
        n: Number of samples.
        schedule: Optimizer, learning rates, length.
        generator: Draws the order of samples.
        on_epoch: Called after each epoch with its number from 1.
        resume: What `keep` was given after an epoch of the same training: it goes on there. The caller brings the
            generator to where it was.
        keep: Takes the state after the last epoch, and after others at most every `KEEP_SECONDS`.

    Returns:
        The losses and the time. After Ctrl-C the parameters are those of the last finished epoch.

    Raises:
        ConvergenceError: The loss left the finite numbers; the parameters are those of the last finished epoch.
        DataError: There are no samples.
    """
    if n < 1:
        raise DataError("there are no samples to train on")
    history = History()
    optimizer = schedule.make(parameters)
    iteration = 0
    if resume is not None:
        _resume(resume, parameters, optimizer)
        iteration, history = resume.iteration, replace(resume.history, loss=list(resume.history.loss))
    finished = _copy(parameters)
    start = time.perf_counter() - history.seconds
    kept = time.perf_counter()
    try:
        while iteration < schedule.iterations:
            total = 0.0
            count = 0
            for indices in torch.randperm(n, generator=generator).split(schedule.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = schedule.at(iteration)
                optimizer.zero_grad(set_to_none=True)
                with computing():
                    loss = step_loss(indices)
                    value = loss.item()
                    if not math.isfinite(value):
                        raise ConvergenceError(
                            f"the loss became {value} in epoch {len(history.loss) + 1} with {schedule}; the weights "
                            "are those of the epoch before"
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
            if keep is not None and (iteration == schedule.iterations or time.perf_counter() - kept >= KEEP_SECONDS):
                keep(State(iteration, history, _tensors(parameters, optimizer)))
                kept = time.perf_counter()
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


def _tensors(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"parameter/{i}": parameter.detach() for i, parameter in enumerate(parameters)}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors


def _resume(state: State, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    _restore(parameters, [state.tensors[f"parameter/{i}"] for i in range(len(parameters))])
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in state.tensors.items():
        kind, place, *name = key.split("/")
        if kind == "optimizer":
            states.setdefault(int(place), {})[name[0]] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _copy(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
