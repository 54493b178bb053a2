"""What every pre-training task shares: a seed, and the one loop over epochs and batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradfeat.errors import ConvergenceError
from gradfeat.pretrain.checkpoint import Checkpoint, State
from gradfeat.pretrain.replay import LossAndGradients

Progress = Callable[[int, int, float], None]
Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Recipe:
    """How long, in what steps and how fast a task is trained.

    Args:
        epochs: Passes over the images.
        batch_size: Images per step; a last batch of one image is dropped, for batch norm.
        learning_rate: Peak of the cycle, or the constant rate.
    """

    epochs: int
    batch_size: int
    learning_rate: float

    def steps_per_epoch(self, n: int) -> int:
        """Return the number of batches of n images."""
        return n // self.batch_size + (n % self.batch_size > 1)


@dataclass(frozen=True)
class Listeners:
    """Who is told how far a training is.

    Args:
        epoch: Called after every epoch with (epoch, epochs, mean of the first loss).
        batch: Called after every batch with (batches done, batches of the whole run).
    """

    epoch: Progress | None = None
    batch: Step | None = None


@dataclass(frozen=True)
class Turn:
    """One of the losses that a task minimizes in turn; most tasks have one, an adversarial task has two.

    Args:
        name: Of the loss, in the log.
        parameters: What this loss trains; no other parameter moves.
        loss: Of a batch of images (n, c, h, w), and of its labels (n,) or None; a scalar.
        every: A turn only at every so many batches.
        betas: Adam's.
        cycle: One learning-rate cycle over the whole run; else the learning rate is constant.
    """

    name: str
    parameters: list[nn.Parameter]
    loss: Callable[[Tensor, Tensor | None], Tensor]
    every: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    cycle: bool = True


class Task(nn.Module):
    """A pre-training task: an encoder, what else it needs, and a loss as its forward.

    Args:
        encoder: The network to pre-train, whose output is f(x), (n, d).

    Attributes:
        network: Name of the encoder that the task takes by default.
        learning_rate: The default.
        replayed: Whether the losses do the same work for every batch and draw their random numbers on the device, so
            that on a GPU they can be recorded and replayed. What networks of other libraries do is not known.
    """

    network = "small"
    learning_rate = 2e-3
    replayed = False

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def turns(self) -> list[Turn]:
        """Return the losses in their order; by default one, the module's forward, for all parameters."""
        return [Turn("loss", [p for p in self.parameters() if p.requires_grad], self)]

    def look_at(self, x: Tensor) -> None:
        """Learn what the task needs to know of all images before it starts; by default nothing.

        Args:
            x: As `train` takes them.
        """

    def pictures(self, x: Tensor) -> list[Tensor]:
        """Return rows of pictures to look at, each (n, c, h, w) in [-1, 1], for some images; by default none."""
        return []


@contextmanager
def seeded(random_state: int | None) -> Iterator[None]:
    """Seed PyTorch's random numbers for one block, and leave the caller's stream as it was.

    Args:
        random_state: The seed; None draws from the caller's stream.

    Example:
        >>> with seeded(0):
        ...     a = torch.rand(2)
        >>> with seeded(0):
        ...     bool((torch.rand(2) == a).all())
        True
    """
    if random_state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_state)
        yield


def scaled(images: Tensor) -> Tensor:
    """Return images, uint8 or float in [0, 1], as the encoder's input in [-1, 1]."""
    return (images.float() / 255 if images.dtype == torch.uint8 else images) * 2 - 1


@contextmanager
def _at_home(task: nn.Module, device: torch.device) -> Iterator[None]:
    """On a GPU: make it the current one, lay weights out as its convolutions are fastest, let cuDNN try kernels."""
    if device.type != "cuda":
        yield
        return
    filters = [parameter for parameter in task.parameters() if parameter.ndim == 4]
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    for filter_ in filters:
        filter_.data = filter_.data.contiguous(memory_format=torch.channels_last)
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = before
        for filter_ in filters:
            filter_.data = filter_.data.contiguous()


class _Minimizer:
    """A turn at work: its optimizer, its learning rate, and its losses since their mean was last taken.

    Args:
        turn: The loss and what it trains.
        learning_rate: Peak of the cycle, or the constant rate.
        steps: Batches of the whole run.
        device: Where the parameters are.
        replay: Whether the work on a batch may be recorded (see `Task.replayed`).
    """

    def __init__(self, turn: Turn, learning_rate: float, steps: int, device: torch.device, *, replay: bool) -> None:
        self.turn = turn
        self.optimizer = torch.optim.Adam(
            turn.parameters, learning_rate, betas=turn.betas, fused=device.type == "cuda" or None
        )
        self.schedule = (
            torch.optim.lr_scheduler.OneCycleLR(self.optimizer, learning_rate, total_steps=max(2, steps))
            if turn.cycle
            else None
        )
        self._loss_and_gradients = LossAndGradients(turn.loss, turn.parameters, replay=replay)
        self._total, self._count = torch.zeros((), device=device), 0

    def step(self, x: Tensor, y: Tensor | None) -> None:
        """Take one step on a batch."""
        loss = self._loss_and_gradients(x, y)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self._total += loss
        self._count += 1

    def take_mean(self) -> float:
        """Return the mean of the losses since the last call."""
        mean = float(self._total) / max(1, self._count)
        self._total, self._count = torch.zeros_like(self._total), 0
        return mean


def train(
    task: Task,
    x: Tensor,
    y: Tensor | None = None,
    *,
    recipe: Recipe,
    device: str | torch.device = "cpu",
    checkpoint: Checkpoint | None = None,
    listeners: Listeners = Listeners(),
) -> list[dict[str, float]]:
    """Minimize the losses of a task by Adam.

    Args:
        task: What is trained; every turn has its own optimizer.
        x: Images, (n, c, h, w), uint8 or float in [0, 1]. On a GPU they are all brought there; batches are scaled.
        y: Labels, (n,), for a task that needs them.
        recipe: Epochs, batches and learning rate.
        device: Where the task is trained.
        checkpoint: Where the state is kept after an epoch, and where the loop goes on if something is there. On a
            CPU the result is, bit for bit, that of a run without interruption.
        listeners: Told after every epoch and every batch.

    Returns:
        The mean of every loss in every epoch.

    Raises:
        ConvergenceError: A loss left the finite numbers.
        DataError: The checkpoint is damaged.
        OSError: The checkpoint cannot be written; the one of the epoch before is still there.
    """
    task.to(device)
    x, y = x.to(device), None if y is None else y.to(device)
    per_epoch = recipe.steps_per_epoch(len(x))
    steps = recipe.epochs * per_epoch
    minimizers = [
        _Minimizer(turn, recipe.learning_rate, steps, x.device, replay=task.replayed) for turn in task.turns()
    ]
    state = State(task, [m.optimizer for m in minimizers], [m.schedule for m in minimizers])
    with _at_home(task, x.device):
        history = [] if checkpoint is None else checkpoint.resume(state)
        task.train()
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            for done, (images, labels) in enumerate(_batches(x, y, recipe.batch_size), (epoch - 1) * per_epoch + 1):
                for minimizer in minimizers:
                    if done % minimizer.turn.every == 0:
                        minimizer.step(images, labels)
                if listeners.batch is not None:
                    listeners.batch(done, steps)
            means = {minimizer.turn.name: minimizer.take_mean() for minimizer in minimizers}
            if not all(map(math.isfinite, means.values())):
                raise ConvergenceError(
                    f"Pre-training left the finite numbers in epoch {epoch}: use a smaller learning_rate."
                )
            history.append(means)
            if checkpoint is not None and (epoch % checkpoint.every == 0 or epoch == recipe.epochs):
                checkpoint.write(state, history)
            if listeners.epoch is not None:
                listeners.epoch(epoch, recipe.epochs, next(iter(means.values())))
    if checkpoint is not None:
        checkpoint.finish()
    task.eval()
    return history


def _batches(x: Tensor, y: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield all images once in a random order, scaled, with their labels; no last batch of one image."""
    order = torch.randperm(len(x)).to(x.device)
    for chosen in order.split(size):
        if len(chosen) > 1:
            yield scaled(x[chosen]), None if y is None else y[chosen]
