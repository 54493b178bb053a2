"""Merging: a fitted model as an ordinary network with θ₂ + w₂ and head w₁."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.evaluation import agreement, metrics_of
from gradfeat.linearization import Linearization
from gradfeat.linearization.capture import FeatureExtractor, Features
from gradfeat.losses import Loss
from gradfeat.model import GradientFeatureModel

if TYPE_CHECKING:
    from gradfeat.backbones import Backbone


@dataclass(frozen=True)
class MergeReport:
    """How far a merged network is from the linear model that it came from.

    Attributes:
        agreement: Share of equal decisions (see `gradfeat.evaluation.agreement`).
        linear: Metrics of the linear model, by name; empty without labels.
        merged: Metrics of the merged network.
    """

    agreement: float
    linear: dict[str, float]
    merged: dict[str, float]

    def __str__(self) -> str:
        text = f"the merged network agrees with the linear model in {100 * self.agreement:.1f} % of decisions"
        both = [f"{name} {self.linear[name]:.4g} -> {self.merged[name]:.4g}" for name in self.linear]
        return "; ".join([text, *both])


class MergedNetwork(nn.Module):
    """A backbone, changed in θ₂, and a linear head.

    Attributes:
        backbone: The network, with its own architecture and parameter names.
        head: From f(x) to logits.
        report: How far it is from the linear model on held-out data, if such were given.
    """

    report: MergeReport | None = None

    def __init__(self, backbone: nn.Module, features: Features, head: nn.Linear) -> None:
        super().__init__()
        self._extract = FeatureExtractor(backbone, features)
        self.head = head

    @property
    def backbone(self) -> nn.Module:
        """The network below the head."""
        return self._extract.network

    def forward(self, x: Any) -> Tensor:
        """Return logits, (n, c)."""
        return self.head(self._extract((x,), {}))


def merge(backbone: Backbone, model: GradientFeatureModel) -> MergedNetwork:
    """Return a copy of the network with θ̄₂ + w₂ in place of θ̄₂, and w₁, b as its head.

    A change of a folded weight is written back into the layer and its batch norm, so that the architecture stays as
    it was.

    Raises:
        ConfigurationError: The model is of mode `gradient`, which no network computes.
    """
    if model.mode == "gradient":
        raise ConfigurationError(
            "a model of mode 'gradient' has no merged network: it lacks the term w₁ᵀf; fit mode='full'"
        )
    network = copy.deepcopy(backbone.network)
    state = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, value in merged_values(model.linearization, model.w2).items():
            state[name].copy_(value)
    some = next(value for value in state.values() if value.is_floating_point())
    d, c = model.w1.shape
    head = nn.Linear(d, c, device=some.device, dtype=some.dtype)
    with torch.no_grad():
        head.weight.copy_(model.w1.T)
        head.bias.copy_(model.b)
    return MergedNetwork(network, backbone.features, head).eval()


def merged_values(linearization: Linearization, w2: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return new values, by the network's own names, under which it computes f(x; θ̄₂ + w₂)."""
    moved = {name: value + w2[name].to(value) for name, value in linearization.theta2.items()}
    values = dict(moved)
    original = linearization.original
    for folding in linearization.foldings:
        if folding.weight not in moved and folding.bias not in moved:
            continue
        for name in (folding.weight, folding.bias):
            values.pop(name, None)
        weight, bias = folding.fold(original)
        values |= folding.unfold(original, moved.get(folding.weight, weight), moved.get(folding.bias, bias))
    return values


def report_on(
    network: MergedNetwork,
    linear: Tensor,
    inputs: Inputs,
    loss: Loss,
    truth: np.ndarray | None,
    batch_size: int,
) -> MergeReport:
    """Compare a merged network with the linear model on some samples.

    Args:
        network: The merged network.
        linear: The linear model's logits, (n, c).
        inputs: The samples.
        loss: The task's loss.
        truth: Their labels, for the metrics of both; or None.
        batch_size: Samples at a time.

    Raises:
        ConvergenceError: The network's outputs are not finite.
    """
    some = network.head.weight
    rows = []
    with torch.no_grad():
        for start in range(0, len(inputs), batch_size):
            batch = inputs.batch(range(start, min(start + batch_size, len(inputs))))
            batch = batch.to(some.device, some.dtype if batch.is_floating_point() else batch.dtype)
            rows.append(network(batch).cpu())
    merged = torch.cat(rows)
    if not bool(torch.isfinite(merged).all()):
        raise ConvergenceError("the merged network's outputs are not finite: use the linear model")
    metrics: list[dict[str, float]] = [{}, {}]
    if truth is not None:
        metrics = [metrics_of(loss, logits.double().numpy(), truth) for logits in (linear, merged)]
    return MergeReport(agreement(linear, merged.to(linear), loss), *metrics)
