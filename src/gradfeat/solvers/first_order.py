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
        passes: Samples that the optimizer was given in these epochs, in units of n; the last epoch may not be whole.
        seconds: Time in all.
        stopped: "finished", or "interrupted" by the user (the weights are then those after the last finished epoch).
    """

    loss: list[float] = field(default_factory=list)
    passes: float = 0.0
    seconds: float = 0.0
    stopped: str = "finished"


KEEP_SECONDS = 10.0
"""Seconds from one state that is kept to the next, at least."""


@dataclass(frozen=True)
class State:
    """Where a training is after an epoch.

    Attributes:
        iteration: Minibatches so far.
        history: Up to there.
        tensors: The parameters, ``parameter/<position>``, and the optimizer's state, ``optimizer/<position>/<name>``.
    """

    iteration: int
    history: History
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Resuming:
    """How a training goes on after the process that began it has ended.

    Attributes:
        state: What `keep` was given after an epoch of the same training: it goes on there. The caller brings the
            generator to where it was. None begins.
        keep: Takes the state after the last epoch, and after others at most every `KEEP_SECONDS`; None keeps none.
    """

    state: State | None = None
    keep: Callable[[State], None] | None = None


def train(
    parameters: Sequence[nn.Parameter],
    step_loss: Callable[[Tensor], Tensor],
    n: int,
    schedule: Schedule,
    *,
    generator: torch.Generator,
    on_epoch: Callable[[int, History], None] | None = None,
    resuming: Resuming | None = None,
) -> History:
    """Minimise a mean loss over n samples by minibatches in random order; the last, smaller one is used too.

    Args:
        parameters: What is trained, in place.
        step_loss: The mean loss of the samples at some indices, (m,) int64.
        n: Number of samples.
        schedule: Optimizer, learning rates, length.
        generator: Draws the order of samples.
        on_epoch: Called after each epoch with its number from 1.
        resuming: Where it goes on, and who keeps its states.

    Returns:
        The losses and the time. After Ctrl-C the parameters are those of the last finished epoch.

    Raises:
        ConvergenceError: The loss left the finite numbers; the parameters are those of the last finished epoch.
        DataError: There are no samples.
    """
    if n < 1:
        raise DataError("there are no samples to train on")
    resuming = resuming or Resuming()
    training = _Training(parameters, step_loss, schedule, resuming.state)
    history = training.history
    start = time.perf_counter() - history.seconds
    last_kept = time.perf_counter()
    try:
        while training.iteration < schedule.iterations:
            training.epoch(torch.randperm(n, generator=generator))
            history.seconds = time.perf_counter() - start
            last = training.iteration == schedule.iterations
            if resuming.keep is not None and (last or time.perf_counter() - last_kept >= KEEP_SECONDS):
                resuming.keep(training.state())
                last_kept = time.perf_counter()
            if on_epoch is not None:
                on_epoch(len(history.loss), history)
    except KeyboardInterrupt:
        training.undo()
        history.stopped = "interrupted"
    except ConvergenceError:
        training.undo()
        raise
    history.seconds = time.perf_counter() - start
    return history


class _Training:
    """A training between two epochs: the parameters, the optimizer, and what they were after the last epoch.

    Attributes:
        iteration: Minibatches so far.
        history: Up to there.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        step_loss: Callable[[Tensor], Tensor],
        schedule: Schedule,
        state: State | None,
    ) -> None:
        self._parameters, self._step_loss, self._schedule = parameters, step_loss, schedule
        self._optimizer = schedule.make(parameters)
        self.iteration, self.history = 0, History()
        if state is not None:
            _restore(parameters, [state.tensors[f"parameter/{i}"] for i in range(len(parameters))])
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": _optimizer_state(state)})
            self.iteration, self.history = state.iteration, replace(state.history, loss=list(state.history.loss))
        self._finished = _copy(parameters)

    def epoch(self, order: Tensor) -> None:
        """Pass over the samples in an order, (n,), or end within where the schedule does."""
        total, count = 0.0, 0
        for indices in torch.split(order, self._schedule.batch_size):
            total += self._step(indices) * len(indices)
            count += len(indices)
            if self.iteration == self._schedule.iterations:
                break
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters):
            raise ConvergenceError(
                f"the weights left the finite numbers in epoch {len(self.history.loss) + 1} with {self._schedule}; "
                "they are again those of the epoch before"
            )
        self._finished = _copy(self._parameters)
        self.history.loss.append(total / count)
        self.history.passes += count / len(order)

    def _step(self, indices: Tensor) -> float:
        """Take one minibatch, and return its mean loss before the step."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.at(self.iteration)
        self._optimizer.zero_grad(set_to_none=True)
        with computing():
            loss = self._step_loss(indices)
            value = loss.item()
            if not math.isfinite(value):
                raise ConvergenceError(
                    f"the loss became {value} in epoch {len(self.history.loss) + 1} with {self._schedule}; the weights "
                    "are those of the epoch before"
                )
            torch.autograd.backward(loss)
        if self._schedule.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip_norm)
        self._optimizer.step()
        self.iteration += 1
        return value

    def undo(self) -> None:
        """Bring the parameters back to where they were after the last finished epoch."""
        _restore(self._parameters, self._finished)

    def state(self) -> State:
        """Return where the training is."""
        tensors = {f"parameter/{i}": parameter.detach() for i, parameter in enumerate(self._parameters)}
        for i, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        return State(self.iteration, self.history, tensors)


def _optimizer_state(state: State) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state as torch has it: by the position of a parameter, then by name."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in state.tensors.items():
        kind, position, *name = key.split("/")
        if kind == "optimizer":
            states.setdefault(int(position), {})[name[0]] = value
    return states


def _copy(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
