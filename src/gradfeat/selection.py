"""What nobody should have to tune: the penalties of w₁, of w₂, and of the ω̄ that makes the gradient features.

A probe that fits the training data leaves no residual for the gradients, and its ω̄ points where the activations alone
point. So the penalty of the best probe is not the one of the best ω̄: several are tried, from the best probe's upwards.
For each, one subspace serves the whole grid of penalties on w₁ and w₂; the choice is the least loss on training data
that were held out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.cache import SampleStore
from gradfeat.checkpoint import Checkpoint, Part, keep_part, load_part
from gradfeat.losses import Loss
from gradfeat.progress import Progress
from gradfeat.solvers.gradient_features import GradientFeatures, Weights
from gradfeat.solvers.newton import Combination
from gradfeat.solvers.probe import Probe, fit_probes
from gradfeat.solvers.subspace import Penalties, Subspace, share

HEAVIER = (1.0, 10.0, 100.0, 1000.0)
"""Penalties of ω̄, in units of the best probe's; heavier ones only while the held-out loss still falls."""

HEADS = 3
"""How many of them are tried for w₁."""

GRID = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))
"""Penalties of w₂, from heavy to light, in units of the gradient features' mean squared length over n."""

STAGES = ((2, 1), (4, 2), (6, 2), (8, 2))
"""Places of the grid where the subspace grows, and how many iterations. All penalties of ω̄ see the first `COMMON`
stages, the best one the others, while the held-out loss still falls."""

COMMON = 2

SHARED = ((2, 2), (3, 4), (1, 4), (0, 4))
"""Instead of the common stages, where all ω̄ share their directions of w₂: which ω̄ finds the next, at which place."""

NEGLIGIBLE = 1e-3
"""A fall of the held-out loss by a smaller share is none."""

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
        starts: w₂ of each split under these penalties, where the variables are those of all samples too: directions for
            the fit to all.
    """

    omega: float
    w1: float
    w2: float
    path: list[Tried]
    passes: float
    starts: tuple[Weights, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        if not self.gradients:
            return f"no gradient term, penalty {self.w1:.3g}"
        return f"penalties {self.omega:.3g} of ω̄, {self.w1:.3g} of w₁, {self.w2:.3g} units of w₂"

    @property
    def loss(self) -> float:
        """Its loss on held-out training data."""
        return min(tried.loss for tried in self.path)

    @property
    def gradients(self) -> bool:
        """Whether the gradient term is in it."""
        return self.w2 < float("inf")


def as_pair(penalty: float | Sequence[float]) -> tuple[float, float]:
    """Return λ of w₁ and of w₂ from one number for both, or a pair."""
    w1, w2 = penalty if isinstance(penalty, Sequence) else (penalty, penalty)
    return float(w1), float(w2)


def make_subspace(
    store: SampleStore,
    y: Tensor,
    loss: Loss,
    heads: Sequence[Tensor],
    omega: Tensor,
    bias: Tensor,
    seen: Tensor,
    *,
    mode: str,
    weight: Tensor | None,
    parametrization: str,
    generator: torch.Generator,
    metric: str = "plain",
    like: Subspace | None = None,
) -> Subspace:
    """Return the problem of `full` or `gradient` on some samples.

    Args:
        store: All samples whose logits are wanted, at the point θ̄₂ that the network is linearized at.
        y: Their targets.
        loss: The task's loss.
        heads: The first directions of w₁, each (d, c).
        omega: ω̄, (d, c).
        bias: With ω̄ the logits where the loss's curvature is looked at, (c,).
        seen: The samples to fit to.
        mode: "full" or "gradient".
        weight: A weight for each sample, or None.
        parametrization: The variables that w₂ is penalized in.
        generator: Of the preconditioner's signs.
        metric: What w₂ is penalized in: "plain" or "whitened" (see `Subspace`).
        like: A problem with another ω̄ on the same samples.
    """
    f = store.features.to(omega)
    subspace = Subspace(
        GradientFeatures(store, omega, parametrization=parametrization),
        f if mode == "full" else None,
        y,
        loss,
        seen=seen,
        weight=weight,
        start=f @ omega + bias,
        generator=generator,
        metric=metric,
        like=like,
    )
    for head in heads:
        subspace.add_w1(head)
    return subspace


def probes_of(f: Tensor, y: Tensor, loss: Loss, weight: Tensor | None, seen: Tensor, penalty: float) -> list[Probe]:
    """Fit probes to some samples, with penalties from the best probe's upwards."""
    return fit_probes(
        f[seen],
        y[seen],
        loss,
        [penalty * factor for factor in HEAVIER],
        sample_weight=None if weight is None else weight[seen],
        tolerance=1e-3,
        outputs=loss.n_outputs(y),
    )


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
    generator: torch.Generator,
    progress: Progress,
    stages: int = len(STAGES),
    metric: str = "plain",
    checkpoint: Checkpoint | None = None,
    head: Probe | None = None,
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
        generator: Of the preconditioner's signs.
        progress: Shows how far it is.
        stages: How many stages the best subspace grows for; fewer where the choice of ω̄ is all that is asked for.
        metric: What w₂ is penalized in.
        checkpoint: Where the losses of each ω̄ are kept.
        head: The one ω of the gradients where it is fixed; None tries probes.
    """
    light = max(probe.penalty, 1e-12)
    heads = [light * factor for factor in HEAVIER[:HEADS]] if mode == "full" else [light]
    tries = range(len(HEAVIER) if head is None else 1)
    # the whitened metric is another one for each ω̄, and so are the variables
    groups: list[Sequence[int]] = [tries] if metric == "plain" else [[i] for i in tries]
    with progress.step("penalties") as done:
        path = _Path(
            store,
            y,
            loss,
            weight,
            splits,
            [probes_of(store.features, y, loss, weight, seen, light) for seen, _ in splits],
            heads,
            {"mode": mode, "parametrization": parametrization, "generator": generator, "metric": metric},
            head,
            lambda steps: done(steps, len(splits) * (len(tries) + max(stages - COMMON, 0))),
        )
        found: dict[int, np.ndarray] = {}
        states: dict[int, tuple[Tensor, Sequence[int]]] = {}  # the random numbers before each ω̄'s group, to repeat it
        best: dict[int, list[Subspace]] = {}
        for group in groups:
            state, before = generator.get_state(), path.passes
            kept = load_part(checkpoint, f"{mode}-omega-{group[0]}", generator)
            if kept is None:
                problems = path.begun(group)
                losses = np.stack([path.losses(problems[i]) for i in group])
                part = Part({"passes": path.passes - before}, {"losses": torch.from_numpy(losses)})
                keep_part(checkpoint, f"{mode}-omega-{group[0]}", part, generator)
            else:
                losses, problems = kept.tensors["losses"].numpy(), {}
                path.passes += kept.values["passes"]
            worse = bool(found) and losses.min() >= min(earlier.min() for earlier in found.values())
            for i, own in zip(group, losses, strict=True):
                found[i], states[i] = own, (state, group)
            if worse:
                break
            best = problems
        chosen = min(found, key=lambda i: float(found[i].min()))
        subspaces = [subspace.alone() for subspace in best.get(chosen, [])]
        best = {}  # the others go

        def again() -> list[Subspace]:
            """Grow the best ω̄'s problems as they were before they went into a checkpoint; that has been counted."""
            after, passes = generator.get_state(), path.passes
            state, group = states[chosen]
            generator.set_state(state)
            problems = path.begun(group)[chosen]
            generator.set_state(after)
            path.passes = passes
            return [subspace.alone() for subspace in problems]

        for (before_stage, _), stage in itertools.pairwise(STAGES[COMMON - 1 : stages]):
            last = found[chosen].min()
            if int(found[chosen].min(0).argmin()) < before_stage - 1:  # lighter penalties only do harm
                break
            subspaces = subspaces or again()
            path.grown(subspaces, stage)
            found[chosen] = path.losses(subspaces)
            if found[chosen].min() > last * (1 - NEGLIGIBLE):
                break
        tried = [
            Tried(light * HEAVIER[i], heads[j], GRID[k], float(losses[j, k]))
            for i, losses in found.items()
            for j, k in np.ndindex(*losses.shape)
        ]
        if mode == "full":  # among equals the probe
            tried = [
                *(Tried(light * v, light * v, math.inf, path.probe_loss(i)) for i, v in enumerate(HEAVIER)),
                *tried,
            ]
        least = min(tried, key=lambda point: point.loss)
        starts: list[Weights] = []
        if metric == "plain" and least.omega == light * HEAVIER[chosen] and least.w2 < math.inf:
            for subspace in subspaces or again():
                point = subspace.minimum(Penalties(least.w1, least.w2 * subspace.unit))
                starts.append(subspace.direction(point))
    return Choice(least.omega, least.w1, least.w2, tried, path.passes, tuple(starts))


@dataclass
class _Path:
    """The problems of each ω̄ and split, and the work on them.

    Attributes:
        store, y, loss, weight: The samples.
        splits: Pairs of indices (seen, held out).
        probes: Of each split, with the penalties of `HEAVIER`.
        heads: λ₁ that are tried.
        settings: Of `make_subspace`.
        head: The one ω of the gradients where it is fixed.
        done: Told how many growths there have been.
        passes: Work, in passes over all samples.
        steps: Growths.
    """

    store: SampleStore
    y: Tensor
    loss: Loss
    weight: Tensor | None
    splits: Sequence[tuple[Tensor, Tensor]]
    probes: list[list[Probe]]
    heads: list[float]
    settings: dict[str, Any]
    head: Probe | None
    done: Callable[[int], None]
    passes: float = 0.0
    steps: int = 0

    def begun(self, group: Sequence[int]) -> dict[int, list[Subspace]]:
        """Return the problems of some ω̄ on all splits after the stages that all see.

        Those of one split share their directions; where they do, each ω̄ finds one.
        """
        first = SHARED[0][0] if len(group) > 1 else group[0]
        lead = self._problems(first, [None] * len(self.splits))
        problems = {i: lead if i == first else self._problems(i, lead) for i in group}
        for of_split in zip(*problems.values(), strict=True):
            share(of_split)
        if len(group) == 1:
            for stage in STAGES[:COMMON]:
                self.grown(lead, stage)
            return problems
        for i, place in SHARED:
            self.grown(problems[i], (place, 1))
            for subspace in problems[i]:
                subspace.forget()
        return problems

    def _problems(self, i: int, like: Sequence[Subspace | None]) -> list[Subspace]:
        found = []
        for (seen, held), probes, other in zip(self.splits, self.probes, like, strict=True):
            rows = torch.cat([seen, held])
            omega = self.head or probes[i]
            subspace = make_subspace(
                self.store.rows(rows),
                self.y[rows],
                self.loss,
                [probe.omega for probe in probes] if self.settings["mode"] == "full" else [],
                omega.omega,
                omega.bias,
                torch.arange(len(seen)),
                weight=None if self.weight is None else self.weight[rows],
                like=other,
                **self.settings,
            )
            self.passes += subspace.features.passes * len(rows) / len(self.store)
            found.append(subspace)
        return found

    def grown(self, subspaces: Sequence[Subspace], stage: tuple[int, int]) -> None:
        """Grow one ω̄'s problems at a place of the grid for some iterations."""
        for subspace in subspaces:
            before = subspace.features.passes
            grow(subspace, self.heads[len(self.heads) // 2], *stage)
            self.passes += (subspace.features.passes - before) * len(subspace.y) / len(self.store)
            self.steps += 1
            self.done(self.steps)

    def losses(self, subspaces: Sequence[Subspace]) -> np.ndarray:
        """Return the mean held-out loss of one ω̄, (λ₁, λ₂)."""
        total = np.zeros((len(self.heads), len(GRID)))
        for subspace, (seen, held) in zip(subspaces, self.splits, strict=True):
            places = len(seen) + torch.arange(len(held))
            total += held_losses(subspace, self.loss, self.y[held], places, self._weight(held), self.heads)
        return total / len(self.splits)

    def probe_loss(self, i: int) -> float:
        """Return the mean held-out loss of a probe alone."""
        total = 0.0
        for (_, held), probes in zip(self.splits, self.probes, strict=True):
            logits = self.store.features[held].to(probes[i].omega) @ probes[i].omega + probes[i].bias
            total += float(self.loss.value(logits.double(), self.y[held], self._weight(held)))
        return total / len(self.splits)

    def _weight(self, rows: Tensor) -> Tensor | None:
        return None if self.weight is None else self.weight[rows]


def grow(subspace: Subspace, head: float, place: int, iterations: int, *, tolerance: float = 1e-2) -> None:
    """Grow a subspace with λ₁ = `head` and λ₂ at a place of the grid; half a growth chooses nothing.

    Raises:
        KeyboardInterrupt: Ctrl-C, which the solver itself takes for the wish to have what is finished.
    """
    penalties = Penalties(head, GRID[place] * subspace.unit)
    _, solution = subspace.solve(penalties, iterations=iterations, tolerance=tolerance)
    if solution.interrupted:
        raise KeyboardInterrupt


def held_out(
    subspace: Subspace,
    loss: Loss,
    y: Tensor,
    held: Tensor,
    weight: Tensor | None,
    heads: Sequence[float],
    place: int,
    iterations: int,
) -> np.ndarray:
    """Grow a subspace at a place of the grid; return the loss of held-out samples for all of it, (λ₁, λ₂)."""
    grow(subspace, heads[len(heads) // 2], place, iterations)
    return held_losses(subspace, loss, y, held, weight, heads)


def held_losses(
    subspace: Subspace, loss: Loss, y: Tensor, held: Tensor, weight: Tensor | None, heads: Sequence[float]
) -> np.ndarray:
    """Return the loss of held-out samples at the minimum over the span, for each λ₁ and each λ₂ of the grid."""
    losses = np.full((len(heads), len(GRID)), np.inf)
    start: Combination | None = None
    for j, head in enumerate(heads):
        for k, value in enumerate(GRID):
            start = subspace.minimum(Penalties(head, value * subspace.unit), start)
            losses[j, k] = float(loss.value(subspace.logits(start, held).double(), y, weight))
    return losses
