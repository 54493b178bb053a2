"""What nobody should have to tune: the penalties of w₁, of w₂, and of the ω̄ that makes the gradient features.

A probe that fits the training data leaves no residual for the gradients, and its ω̄ points where the activations alone
point. So the penalty of the best probe is not the one of the best ω̄: several are tried, from the best probe's upwards.
For each, one subspace serves the whole grid of penalties on w₁ and w₂; the choice is the least loss on training data
that were held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradfeat.cache import SampleStore
from gradfeat.losses import Loss
from gradfeat.progress import Progress
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.newton import Combination
from gradfeat.solvers.probe import Probe, fit_probe
from gradfeat.solvers.subspace import Penalties, Subspace

HEAVIER = (1.0, 10.0, 100.0, 1000.0)
"""Penalties of ω̄, in units of the best probe's; heavier ones only while the held-out loss still falls."""

HEADS = 3
"""How many of them are tried for w₁."""

GRID = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))
"""Penalties of w₂, from heavy to light, in units of the gradient features' mean squared length over n."""

STAGES = ((2, 2), (4, 2), (6, 2), (8, 2))
"""Places of the grid where the subspace grows, and how many iterations; later ones only while the loss still falls."""

ONE_SPLIT_FROM = 1000
"""From this number of samples on, one held-out part is enough."""

SPLITS = 3


@dataclass(frozen=True)
class Tried:
    """One point of the penalty path.

    Attributes:
        omega: Penalty of ω̄.
        w1: λ₁.
        w2: λ₂; infinite without the gradient term.
        loss: Mean loss on held-out training data.
    """

    omega: float
    w1: float
    w2: float
    loss: float


@dataclass(frozen=True)
class Choice:
    """The penalties that were chosen.

    Attributes:
        omega: Penalty of ω̄.
        w1: λ₁.
        w2: λ₂ in units of the gradient features (see `GRID`); infinite for no gradient term.
        path: All that was tried.
        passes: Work.
    """

    omega: float
    w1: float
    w2: float
    path: list[Tried]
    passes: float

    def __str__(self) -> str:
        if not self.gradients:
            return f"no gradient term, penalty {self.w1:.3g}"
        return f"penalties {self.omega:.3g} of ω̄, {self.w1:.3g} of w₁, {self.w2:.3g} units of w₂"

    @property
    def gradients(self) -> bool:
        """Whether the gradient term is in it."""
        return self.w2 < float("inf")


def make_subspace(
    store: SampleStore,
    y: Tensor,
    loss: Loss,
    probes: Sequence[Probe],
    omega: Probe,
    seen: Tensor,
    *,
    mode: str,
    weight: Tensor | None,
    parametrization: str,
    random_state: int | None,
) -> Subspace:
    """Return the problem of `full` or `gradient` on some samples, the probes being its first directions of w₁."""
    features = GradientFeatures(store, omega.omega, parametrization=parametrization)
    start = store.features.to(omega.omega) @ omega.omega + omega.bias
    subspace = Subspace(
        features,
        store.features.to(omega.omega) if mode == "full" else None,
        y,
        loss,
        seen=seen,
        weight=weight,
        start=start,
        generator=torch.Generator().manual_seed(np.random.RandomState(random_state).randint(2**31 - 1)),
    )
    for probe in probes:
        subspace.add_w1(probe.omega)
    return subspace


def fit_probes(f: Tensor, y: Tensor, loss: Loss, weight: Tensor | None, seen: Tensor, penalty: float) -> list[Probe]:
    """Fit probes to some samples, with penalties from the best probe's upwards."""
    own = None if weight is None else weight[seen]
    return [
        fit_probe(f[seen], y[seen], loss, sample_weight=own, penalty=penalty * factor, tolerance=1e-3)
        for factor in HEAVIER
    ]


def choose_penalties(
    store: SampleStore,
    y: Tensor,
    loss: Loss,
    splits: Sequence[tuple[Tensor, Tensor]],
    probe: Probe,
    *,
    mode: str,
    weight: Tensor | None,
    parametrization: str,
    random_state: int | None,
    progress: Progress,
) -> Choice:
    """Choose the penalties of ω̄, w₁ and w₂ by the loss on held-out training data.

    Args:
        store: The samples.
        y: Their targets.
        loss: The task's loss.
        splits: Pairs of indices (seen, held out).
        probe: The best probe; its penalty is where the path of ω̄ and w₁ begins.
        mode: "full" or "gradient".
        weight: A weight for each sample, or None.
        parametrization: The variables that w₂ is penalized in.
        random_state: Seed of the preconditioner's signs.
        progress: Shows how far it is.
    """
    light = max(probe.penalty, 1e-12)
    heads = [light * factor for factor in HEAVIER[:HEADS]] if mode == "full" else [light]
    weights = [None if weight is None else weight[held] for _, held in splits]
    held_losses: list[np.ndarray] = []
    passes, steps, total = 0.0, 0, len(splits) * len(HEAVIER)
    with progress.step("penalties") as done:
        probes = [fit_probes(store.features, y, loss, weight, seen, light) for seen, _ in splits]
        for i in range(len(HEAVIER)):
            losses = np.zeros((len(heads), len(GRID)))
            for (seen, held), own, held_weight in zip(splits, probes, weights, strict=True):
                subspace = make_subspace(
                    store,
                    y,
                    loss,
                    own if mode == "full" else [],
                    own[i],
                    seen,
                    mode=mode,
                    weight=weight,
                    parametrization=parametrization,
                    random_state=random_state,
                )
                losses += _walk(subspace, loss, y, held, held_weight, heads) / len(splits)
                passes += subspace.features.passes
                steps += 1
                done(steps, total)
            held_losses.append(losses)
            if i and losses.min() > held_losses[-2].min():
                break
    path = [
        Tried(light * HEAVIER[i], heads[j], GRID[k], float(losses[j, k]))
        for i, losses in enumerate(held_losses)
        for j, k in np.ndindex(*losses.shape)
    ]
    best = min(path, key=lambda tried: tried.loss)
    if mode == "full":
        without = []
        for i, factor in enumerate(HEAVIER):
            plain = 0.0
            for (_, held), own, held_weight in zip(splits, probes, weights, strict=True):
                logits = store.features[held].to(own[i].omega) @ own[i].omega + own[i].bias
                plain += float(loss.value(logits.double(), y[held], held_weight)) / len(splits)
            without.append(Tried(light * factor, light * factor, float("inf"), plain))
        path += without
        best = min([*without, best], key=lambda tried: tried.loss)  # among equals the probe
    return Choice(best.omega, best.w1, best.w2, path, passes)


def _walk(
    subspace: Subspace, loss: Loss, y: Tensor, held: Tensor, weight: Tensor | None, heads: list[float]
) -> np.ndarray:
    """Grow a subspace along the path from heavy to light; return the held-out loss on the whole grid."""
    middle = heads[len(heads) // 2]
    losses = np.full((len(heads), len(GRID)), np.inf)
    for place, iterations in STAGES:
        penalties = Penalties(middle, GRID[place] * subspace.unit)
        subspace.solve(penalties, iterations=iterations)
        start: Combination | None = None
        for j, head in enumerate(heads):
            for k, value in enumerate(GRID):
                start = subspace.minimum(Penalties(head, value * subspace.unit), start)
                logits = subspace.logits(start, held)
                losses[j, k] = float(loss.value(logits.double(), y[held], weight))
        if int(losses.min(0).argmin()) < place - 1:  # lighter penalties only do harm
            break
    return losses
