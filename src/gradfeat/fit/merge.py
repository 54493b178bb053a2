"""Merging: a fitted model as an ordinary network with θ₂ + w₂ and a head of its own.

With the head w₁ the network would be the linear model to first order only where w₁ is ω̄, and the penalties make w₁
many times smaller, or larger, than the ω̄ that w₂ was fitted through. So the head is fitted as well: by ridge
regression of the linear model's logits on the moved network's features, of the training samples without their labels.
It is pulled to the heads that are known, ω̄ and w₁, so that few samples are enough.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.contexts import computing, plain
from gradfeat.data import Inputs
from gradfeat.errors import ConvergenceError, GradfeatWarning
from gradfeat.fit.predict import store_of
from gradfeat.linearization import Linearization
from gradfeat.linearization.capture import FeatureExtractor, Features
from gradfeat.linearization.copies import copied
from gradfeat.losses import Loss, target_mean
from gradfeat.metrics.evaluation import agreement, metrics_of
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.ridge import ridge_by_leave_one_out

if TYPE_CHECKING:
    from gradfeat.backbones import Backbone
    from gradfeat.samples.store import SampleStore

STEPS = (1.0, 0.5, 0.25, 0.125)
"""Shares of w₂ by which θ̄₂ may move, tried from the longest on."""

CLOSE = 0.1
"""Error (see `MergedHead`) with which a step is taken, and no shorter one is tried."""

MOST_SAMPLES = 10_000
"""Samples that a head is fitted to at most."""

FEWEST_SAMPLES = 300
"""Samples that it is fitted to, however short the fit was."""

WORK = 0.05
"""Work on a head, as a share of the fit's: a pass for each of its samples."""

COARSE = 0.1
"""Distance of neighbouring values of a regression, as a share of their spread, from which a warning says so."""

_BATCH = 128


@dataclass(frozen=True)
class MergedHead:
    """How far θ̄₂ moves in the merged network, and its head.

    Attributes:
        step: r, the share of w₂.
        weight: (d, c).
        bias: (c,).
        error: Squared error of its logits as a share of the variance of the linear model's, on each training sample by
            the head that is fitted to the others; 0 where the two are one model, None where samples are too few to
            tell.
    """

    step: float
    weight: Tensor
    bias: Tensor
    error: float | None

    def network(self, model: GradientFeatureModel) -> Callable[[Any], Tensor]:
        """Return the merged network above θ₁: its logits, (n, c), as a function of the bottom's output."""
        lin, moved = _moved(model, self.step)
        weight, bias = self.weight.to(model.w1), self.bias.to(model.w1)
        return lambda z0: lin.network(moved, z0).to(weight) @ weight + bias


def most_samples(passes: float, rows: int) -> int:
    """Return how many samples a head may be fitted to.

    Args:
        passes: Of the fit, over all rows of its store.
        rows: Of the store, views counted.
    """
    return min(max(FEWEST_SAMPLES, int(WORK * passes * rows)), MOST_SAMPLES)


@plain()
def fit_head(
    model: GradientFeatureModel,
    store: SampleStore,
    *,
    weight: Tensor | None = None,
    views: int = 1,
    random_state: int | None = None,
    most: int = MOST_SAMPLES,
) -> MergedHead | None:
    """Return the step and the head with which the moved network is nearest to a linear model.

    The longest of `STEPS` is taken whose error is at most `CLOSE`; where there is none, that with the least error.
    A model of mode `activation` or `finetune`, or without w₂, is a network already.

    Args:
        model: The fitted model.
        store: The samples that it was fitted to.
        weight: Of each sample, or None.
        views: Versions of each sample, all first ones before all second ones; only the first are used, since two of a
            sample must not be on both sides of a split.
        random_state: Seed of which samples are used.
        most: Samples to use at most (see `most_samples`).

    Returns:
        The step and the head; None where the moved network's features are finite at no step.
    """
    if model.mode in ("activation", "finetune") or not any(bool(value.any()) for value in model.w2.values()):
        w1 = torch.zeros_like(model.w1) if model.mode == "gradient" else model.w1.detach().clone()
        return MergedHead(1.0, w1.cpu(), model.b.detach().clone().cpu(), 0.0)
    samples = np.arange(len(store) // views)
    if weight is not None:
        samples = samples[(weight[: len(samples)] > 0).cpu().numpy()]
    if len(samples) > most:
        samples = np.sort(np.random.RandomState(random_state).permutation(samples)[:most])
    rows = torch.from_numpy(samples)
    store = store_of(model, store.rows(rows))
    share = torch.ones(len(rows), dtype=torch.float64) if weight is None else weight[rows.to(weight.device)].double()
    share = (share / share.sum()).to(model.w1.device)
    best: MergedHead | None = None
    logits: Tensor | None = None
    for step in STEPS:
        f, logits = _pairs(model, store, step, logits)
        try:
            head = _head(model, f, logits, share, step)
        except ConvergenceError:
            continue
        if head.error is None or head.error <= CLOSE:
            return head
        if best is None or best.error is None or head.error < best.error:
            best = head
    return best


def _head(model: GradientFeatureModel, f: Tensor, logits: Tensor, share: Tensor, step: float) -> MergedHead:
    """Return the head whose logits on features f, (n, d), are nearest to the linear model's, (n, c)."""
    if not bool(torch.isfinite(f).all() and torch.isfinite(logits).all()):
        raise ConvergenceError("the moved network's features are not finite")
    f, logits = f.double(), logits.double()
    centred = logits - share @ logits
    spread = 0.5 * float(share @ centred.square().sum(1))
    known = [model.omega] if model.mode == "gradient" else [model.omega, model.w1.detach()]
    heads = torch.stack([head.double() for head in known])  # (2, d, c)
    outputs = f @ heads  # (2, n, c)
    root = share.sqrt()[:, None]
    scaled = (root * (outputs - (share @ outputs)[:, None])).flatten(1)
    factors = torch.linalg.pinv(scaled.T) @ (root * centred).flatten()  # how much of each
    ridge = ridge_by_leave_one_out(f, logits, share, torch.einsum("k,kdc->dc", factors, heads))
    enough = len(f) > 2 and spread > 0
    error = ridge.error / spread if enough else None
    return MergedHead(step, ridge.weight.to(model.w1).cpu(), ridge.bias.to(model.w1).cpu(), error)


def _pairs(
    model: GradientFeatureModel, store: SampleStore, step: float, logits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return f(x; θ̄₂ + r w₂), (n, d), and the linear model's logits, (n, c), of the same samples.

    Samples that change are drawn once for both; the logits of others are taken as they are known from another step.
    """
    lin = model.linearization
    network, moved = _moved(model, step)
    features, new = [], []
    with torch.no_grad():
        for batch in torch.arange(len(store)).split(min(_BATCH, store.room.batch)):
            z0 = store.z0(batch)
            features.append(network.network(moved, z0).to(model.w1))
            if store.inputs.random:
                new.append(model.logits(*lin.primal(z0)))
            elif logits is None:
                new.append(model.logits(*store.primal(batch)))
    return torch.cat(features), torch.cat(new) if new or logits is None else logits


def _moved(model: GradientFeatureModel, step: float) -> tuple[Linearization, dict[str, Tensor]]:
    """Return a linearization, and θ̄₂ + r w₂; not in half precision, which would round a small w₂ away."""
    lin, w2 = model.linearization.full_precision(), model.w2
    return lin, {name: value + step * w2[name].detach().to(value) for name, value in lin.theta2.items()}


@dataclass(frozen=True)
class MergeReport:
    """How far a merged network is from the linear model that it came from.

    Attributes:
        agreement: Share of equal decisions (see `gradfeat.metrics.evaluation.agreement`).
        linear: Metrics of the linear model, by name; empty without labels.
        merged: Metrics of the merged network.
        step: Share of w₂ by which the network was moved.
    """

    agreement: float
    linear: dict[str, float]
    merged: dict[str, float]
    step: float = 1.0

    def __str__(self) -> str:
        text = f"the merged network agrees with the linear model in {100 * self.agreement:.1f} % of decisions"
        if self.step != 1:
            text += f" (moved by {self.step:g} of w₂: at all of it the network is too far from its linearization)"
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
        logits: Tensor = self.head(self._extract((x,), {}))
        return logits


@plain()
def merge(
    backbone: Backbone, model: GradientFeatureModel, merged: MergedHead, *, mean: Tensor | None = None
) -> MergedNetwork:
    """Return a copy of the network with θ̄₂ + r w₂ in place of θ̄₂, and a head.

    A change of a folded weight is written back into the layer and its batch norm, so that the architecture stays as
    it was.

    Args:
        backbone: The network that the model linearizes.
        model: The fitted model.
        merged: Its r and head, from `fit_head`.
        mean: What was subtracted from a regression's targets, (c,): it goes into the head's bias. A warning says where
            the network's own precision cannot hold the values.
    """
    network = copied(backbone.network)
    state = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, value in original_values(*_moved(model, merged.step)).items():
            state[name].copy_(value)
    some = next(value for value in state.values() if value.is_floating_point())
    d, c = merged.weight.shape
    # its weights follow: none are drawn, which would move the caller's random numbers on
    head = torch.nn.utils.skip_init(nn.Linear, d, c, device=some.device, dtype=some.dtype)
    with torch.no_grad():
        head.weight.copy_(merged.weight.T)
        head.bias.copy_(merged.bias if mean is None else merged.bias.double() + mean)
    if mean is not None:
        _say_coarse(merged, mean, head.bias.dtype)
    return MergedNetwork(network, backbone.features, head).eval()


def _say_coarse(merged: MergedHead, mean: Tensor, dtype: torch.dtype) -> None:
    """Warn where the values of a regression are so far from zero that the network's precision rounds them coarsely."""
    spacing = float(mean.abs().max()) * torch.finfo(dtype).eps
    # what the head adds to the mean, at features of length one: all that is known here of how far values spread
    spread = float(torch.cat([merged.weight, merged.bias[None]]).double().norm(dim=0).max())
    if spacing > COARSE * spread:
        warnings.warn(
            f"the merged network computes in {str(dtype).removeprefix('torch.')}, where values near "
            f"{float(mean.abs().max()):.3g} are {spacing:.2g} apart: fit to y less its mean, and add the mean to what "
            "the network returns, in double precision, as the linear model itself does",
            GradfeatWarning,
            stacklevel=4,
        )


def original_values(linearization: Linearization, moved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return values, by the network's own names, with which it computes f(x; θ₂) at another θ₂."""
    values = dict(moved)
    device = next(iter(moved.values())).device
    original = {name: value.to(device) for name, value in linearization.original.items()}
    for folding in linearization.foldings:
        if folding.weight not in moved and folding.bias not in moved:
            continue
        for name in (folding.weight, folding.bias):
            values.pop(name, None)
        weight, bias = folding.fold(original)
        values |= folding.unfold(original, moved.get(folding.weight, weight), moved.get(folding.bias, bias))
    return values


@plain()
def report_on(
    network: MergedNetwork,
    linear: Tensor,
    inputs: Inputs,
    loss: Loss,
    truth: np.ndarray | None,
    batch_size: int,
    step: float = 1.0,
) -> MergeReport:
    """Compare a merged network with the linear model on some samples.

    Args:
        network: The merged network.
        linear: The linear model's logits, (n, c).
        inputs: The samples.
        loss: The task's loss.
        truth: Their labels, for the metrics of both; or None.
        batch_size: Samples at a time.
        step: Share of w₂ by which the network was moved.

    Raises:
        ConvergenceError: The network's outputs are not finite.
    """
    some = network.head.weight
    rows = []
    with torch.no_grad():
        for start in range(0, len(inputs), batch_size):
            batch = inputs.batch(range(start, min(start + batch_size, len(inputs))))
            batch = batch.to(some.device, some.dtype if batch.is_floating_point() else batch.dtype)
            with computing():
                rows.append(network(batch).cpu())
    merged = torch.cat(rows)
    if not bool(torch.isfinite(merged).all()):
        raise ConvergenceError("the merged network's outputs are not finite: use the linear model")
    mean = target_mean(loss)
    if mean is not None:  # the head's bias has it, and the linear model's logits have not
        merged = merged.double() - mean
    both: list[dict[str, float]] = [{}, {}]
    if truth is not None:
        both = [metrics_of(loss, logits.double().numpy(), truth) for logits in (linear, merged)]
    return MergeReport(agreement(linear, merged.to(linear), loss), both[0], both[1], step)
