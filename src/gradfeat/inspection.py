"""What a network offers as θ₂: candidates from the top down, with parameters, memory and the cost of a pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gradfeat.contexts import plain
from gradfeat.linearization import Linearization, linearize
from gradfeat.linearization.build import theta2_candidates
from gradfeat.linearization.capture import Features
from gradfeat.linearization.schema import by_name
from gradfeat.progress import Step


@dataclass(frozen=True)
class CandidateCost:
    """One choice of θ₂. Costs are multiply-adds for one sample; a pass is forward and backward.

    Attributes:
        name: Its lowest module.
        modules: All its modules, as `theta2` takes them.
        parameters: Number of parameters.
        z0_bytes: Memory of z₀, for one sample.
        residual_bytes: Memory of the residuals, for one sample.
        bottom_macs: Below θ₂, once for each sample.
        primal_macs: f(x) and residuals from z₀, once for each sample if residuals are kept.
        full_macs: A training pass of `full` over kept residuals.
        finetune_macs: A training pass of fine-tuning from kept z₀.
    """

    name: str
    modules: tuple[str, ...]
    parameters: int
    z0_bytes: int
    residual_bytes: int
    bottom_macs: int
    primal_macs: int
    full_macs: int
    finetune_macs: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect_network` found.

    Attributes:
        rows: Candidates, top first.
        auto: What theta2="auto" takes.
        features: d.
        parameters: Of the whole network.
        more: How many candidates were left out.
    """

    rows: list[CandidateCost]
    auto: str
    features: int
    parameters: int
    more: int

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain Python objects."""
        return asdict(self)


@plain()
def inspect_network(
    network: nn.Module,
    example: Tensor,
    *,
    features: Features = None,
    theta2: Sequence[str] | None = None,
    most: int = 5,
    progress: Step | None = None,
) -> Inspection:
    """Linearize a network at several depths and count what each costs.

    Args:
        network: The network.
        example: A batch of samples.
        features: What f(x) is (see `gradfeat.linearize`).
        theta2: Only this choice; None takes the candidates from the top down.
        most: How many candidates at most; each takes an export of the network.
        progress: Called with (candidates done, candidates in all).

    Returns:
        The costs.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> (row,) = inspect_network(network, torch.randn(2, 4), most=1).rows
        >>> row.name, row.parameters, row.full_macs  # w̃ z, and its gradient: 2 × 8 × 3
        ('2', 27, 48)
    """
    candidates = theta2_candidates(network, example, features=features)
    # the branch of a block is no step of its own: the block comes next and holds it
    found = [c for c in candidates if not any(c.name.startswith(f"{other.name}.") for other in candidates)]
    choices = [(c.name, c.modules) for c in found[:most]] if theta2 is None else [(", ".join(theta2), tuple(theta2))]
    rows: list[CandidateCost] = []
    width = 0
    for name, modules in choices:
        linearization = linearize(network, example, list(modules), features=features, check=False)
        row, width = _cost(name, tuple(modules), linearization, example[:1])
        rows.append(row)
        if progress is not None:
            progress(len(rows), len(choices))
    parameters = sum(p.numel() for p in network.parameters())
    more = len(found) - len(rows) if theta2 is None else 0
    return Inspection(rows, candidates[0].name if candidates else "none", width, parameters, more)


def _cost(
    name: str, modules: tuple[str, ...], linearization: Linearization, example: Tensor
) -> tuple[CandidateCost, int]:
    n = example.shape[0]
    with _Count() as bottom:
        z0 = linearization.bottom(example)
    with _Count() as primal:
        f, residuals = linearization.primal(z0)
    w2 = {key: torch.zeros_like(value, requires_grad=True) for key, value in linearization.theta2.items()}
    with _Count() as full:
        linearization.tangent(w2, residuals).sum().backward()
    theta2 = {key: value.clone().requires_grad_() for key, value in linearization.theta2.items()}
    with _Count() as finetune:
        linearization.network(theta2, z0).sum().backward()
    memory = linearization.bytes_per_sample
    cost = CandidateCost(
        name=name,
        modules=modules,
        parameters=sum(value.numel() for value in w2.values()),
        z0_bytes=memory["z0"],
        residual_bytes=memory["residuals"],
        bottom_macs=bottom.macs // n,
        primal_macs=primal.macs // n,
        full_macs=full.macs // n,
        finetune_macs=finetune.macs // n,
    )
    return cost, f.shape[1]


class _Count:
    """Counts multiply-adds of convolutions and matrix products."""

    macs = 0

    def __enter__(self) -> _Count:
        own = {torch.ops.aten.convolution_backward: _convolution_backward}
        self._mode = FlopCounterMode(display=False, custom_mapping=own)
        self._mode.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._mode.__exit__(*args)
        self.macs = self._mode.get_total_flops() // 2


def _convolution_backward(*shapes: Any, **_: Any) -> int:
    """Count floating-point operations from shapes; torch's own count overlooks groups in a weight's gradient."""
    given = by_name(torch.ops.aten.convolution_backward.default, shapes)
    image = given.input if given.transposed else given.grad_output
    return 2 * sum(given.output_mask[:2]) * math.prod(given.weight) * image[0] * math.prod(image[2:])
