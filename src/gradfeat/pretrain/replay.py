"""One turn's loss and gradients of a batch: on a GPU recorded once as a CUDA graph, and replayed.

The kernels of a small network on small images are shorter than the time it takes to launch them from Python. A replay
launches all of a batch's kernels at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor | None], Tensor]
_EAGER = 3  # batches before the recording: libraries choose their kernels and take their memory in them


class LossAndGradients:
    """Computes a loss of a batch, and leaves its gradients in ``.grad``.

    Args:
        loss: Of images (n, c, h, w) and labels (n,) or None; a scalar.
        parameters: Whose gradients are wanted; no other parameter gets one.
        replay: Whether to record, on a CUDA device, the work on batches of the first size that comes. Batches of other
            sizes are computed as usual. The loss must do the same work each time, and draw its random numbers on the
            device, which must be the current one.
    """

    def __init__(self, loss: Loss, parameters: Sequence[torch.nn.Parameter], *, replay: bool) -> None:
        self._loss = loss
        self._parameters = list(parameters)
        self._replay = replay
        self._shape: torch.Size | None = None
        self._seen = 0
        self._side: torch.cuda.Stream | None = None
        self._recorded: _Recorded | None = None

    def __call__(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the loss, detached; the next call may write over it."""
        self._shape = self._shape or x.shape
        if not (self._replay and x.is_cuda and x.shape == self._shape):
            return self._compute(x, y)
        if self._recorded is None:
            self._seen += 1
            if self._seen <= _EAGER:
                return self._on_side_stream(x, y)
            self._recorded = _Recorded(self._compute, x, y, self._parameters, self._side)
        return self._recorded.replay(x, y)

    def _compute(self, x: Tensor, y: Tensor | None) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        value = self._loss(x, y)
        value.backward(inputs=self._parameters)
        return value.detach()

    def _on_side_stream(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Compute where a recording may take over the memory: not on the stream of all else."""
        self._side = self._side or torch.cuda.Stream()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            value = self._compute(x, y)
        torch.cuda.current_stream().wait_stream(self._side)
        return value


class _Recorded:
    def __init__(
        self,
        compute: Loss,
        x: Tensor,
        y: Tensor | None,
        parameters: Sequence[torch.nn.Parameter],
        stream: torch.cuda.Stream | None,
    ) -> None:
        self._x, self._y = x.clone(), None if y is None else y.clone()
        self._parameters = parameters
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._value = compute(self._x, self._y)
        self._gradients = [parameter.grad for parameter in parameters]

    def replay(self, x: Tensor, y: Tensor | None) -> Tensor:
        self._x.copy_(x)
        if self._y is not None and y is not None:
            self._y.copy_(y)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a batch of another size has put its own there
        return self._value
