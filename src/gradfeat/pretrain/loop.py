"""What every pre-training task shares: a seed, and the one loop over epochs and batches."""

from __future__ import annotations

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


def train(
    task: Task,
    x: Tensor,
    y: Tensor | None = None,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    device: str | torch.device = "cpu",
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    step: Step | None = None,
) -> list[dict[str, float]]:
    """Minimize the losses of a task by Adam.

    Args:
        task: What is trained; every turn has its own optimizer.
        x: Images, (n, c, h, w), uint8 or float in [0, 1]. On a GPU they are all brought there; batches are scaled.
        y: Labels, (n,), for a task that needs them.
        epochs: Passes over the images.
        batch_size: Images per step; a last batch of one image is dropped, for batch norm.
        learning_rate: Peak of the cycle, or the constant rate.
        device: Where the task is trained.
        checkpoint: Where the state is kept after an epoch, and where the loop goes on if something is there. On a
            CPU the result is, bit for bit, that of a run without interruption.
        progress: Called after every epoch with (epoch, epochs, mean of the first loss).
        step: Called after every batch with (batches done, batches of the whole run).

    Returns:
        The mean of every loss in every epoch.

    Raises:
        ConvergenceError: A loss left the finite numbers.
        DataError: The checkpoint is damaged.
        OSError: The checkpoint cannot be written; the one of the epoch before is still there.
    """
    task.to(device)
    x, y = x.to(device), None if y is None else y.to(device)
    starts = [start for start in range(0, len(x), batch_size) if len(x) - start > 1]
    steps = epochs * len(starts)
    turns = task.turns()
    works = [LossAndGradients(turn.loss, turn.parameters, replay=task.replayed) for turn in turns]
    optimizers = [
        torch.optim.Adam(turn.parameters, learning_rate, betas=turn.betas, fused=x.is_cuda or None) for turn in turns
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(2, steps)) if turn.cycle else None
        for turn, optimizer in zip(turns, optimizers, strict=True)
    ]
    state = State(task, optimizers, schedules)
    with _at_home(task, x.device):
        history = [] if checkpoint is None else checkpoint.resume(state)
        task.train()
        for epoch in range(len(history) + 1, epochs + 1):
            order = torch.randperm(len(x)).to(device)
            totals = [torch.zeros((), device=device) for _ in turns]
            taken = [0] * len(turns)
            for done, start in enumerate(starts, (epoch - 1) * len(starts) + 1):
                chosen = order[start : start + batch_size]
                batch = scaled(x[chosen])
                target = None if y is None else y[chosen]
                for i, turn in enumerate(turns):
                    if done % turn.every:
                        continue
                    loss = works[i](batch, target)
                    optimizers[i].step()
                    if (schedule := schedules[i]) is not None:
                        schedule.step()
                    totals[i] += loss
                    taken[i] += 1
                if step is not None:
                    step(done, steps)
            means = [float(total) / max(1, count) for total, count in zip(totals, taken, strict=True)]
            if not all(bool(torch.isfinite(total)) for total in totals):
                raise ConvergenceError(
                    f"Pre-training left the finite numbers in epoch {epoch}: use a smaller learning_rate."
                )
            history.append({turn.name: mean for turn, mean in zip(turns, means, strict=True)})
            if checkpoint is not None and (epoch % checkpoint.every == 0 or epoch == epochs):
                checkpoint.write(state, history)
            if progress is not None:
                progress(epoch, epochs, means[0])
    if checkpoint is not None:
        checkpoint.finish()
    task.eval()
    return history
