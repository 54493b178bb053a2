"""What nobody should have to tune: the penalties of w₁, of w₂, and of the ω̄ that makes the gradient features.

A probe that fits the training data leaves no residual for the gradients, and its ω̄ points where the activations alone
point. So the penalty of the best probe is not the one of the best ω̄: several are tried, from the best probe's upwards.
For each, one subspace serves the whole grid of penalties on w₁ and w₂; the choice is the least loss on training data
that were held out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.fit.checkpoint import Checkpoint, Part, keep_part, load_part, named_w2, w2_of
from gradfeat.losses import Loss
from gradfeat.progress import Progress
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.gradient_features import GradientFeatures, Weights, add_scaled
from gradfeat.solvers.newton import Combination
from gradfeat.solvers.probe import Probe, fit_probes
from gradfeat.solvers.subspace import Activations, Penalties, Subspace

HEAVIER = (1.0, 10.0, 100.0, 1000.0)
"""Penalties of ω̄, in units of the best probe's; heavier ones only while the held-out loss still falls."""

HEADS = (0.3, 1.0, 10.0, 100.0)
"""Penalties of w₁, in the same units: beside gradients it may want less of a penalty than alone, or more."""

GRID = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))
"""Penalties of w₂, from heavy to light, in units of the gradient features' mean squared length over n."""

HEAVIEST = 1e30
"""A heavier penalty is taken as this one, which single precision holds: its weights are zero to rounding."""

Growths = Sequence[tuple[int, int]]
"""Places of the grid where a subspace grows, and how many iterations."""


@dataclass(frozen=True)
class Stages:
    """How far the subspaces of a choice grow.

    Attributes:
        common: For all penalties of ω̄.
        more: For the best of them, while the held-out loss falls.
    """

    common: Growths
    more: Growths = ()

    def __str__(self) -> str:
        return "-".join(f"{place}x{iterations}" for place, iterations in (*self.common, *self.more))


STAGES = Stages(common=((4, 1), (5, 1)), more=((6, 2), (8, 2)))

NEGLIGIBLE = 1e-3
"""A fall of the held-out loss by a smaller share is none."""

ONE_SPLIT_FROM = 1000
"""From this number of samples on, one held-out part is enough."""

PARTS = 5
"""Held-out parts of fewer samples, each sample in one of them."""

SPLITS = 3
"""The same where a class has fewer samples than that: parts drawn at random, which overlap."""


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
        length: The unit of w2, times the number of samples: the gradient features' mean squared length, as it was
            estimated for this choice. Another estimate may be far from it where samples are few.
        held: Its loss on each part that was held out.
        mode: Of the model; `gradient` has no w₁.
        metric: What w₂ is penalized in.
        iterations: Of the subspace whose loss it was: a fit that goes on longer has another.
        gain: How much less the best held-out loss with a gradient term is than the best one without, a mean over the
            samples that were held out; None where one of the two was not tried, or samples were not told apart.
        gain_error: The standard error of `gain`, paired: that of the samples' differences.
        judged: How many samples were held out.
    """

    omega: float
    w1: float
    w2: float
    path: list[Tried]
    passes: float
    length: float = 1.0
    held: list[float] = field(default_factory=list)
    mode: str = "full"
    metric: str = "plain"
    iterations: int = 0
    gain: float | None = None
    gain_error: float | None = None
    judged: int = 0

    def __str__(self) -> str:
        if not self.gradients:
            return f"no gradient term, penalty {self.w1:.3g}"
        w1 = f"{self.w1:.3g} of w₁, " if self.mode == "full" else ""
        metric = "" if self.metric == "plain" else f" ({self.metric})"
        return f"penalties {self.omega:.3g} of ω̄, {w1}{self.w2:.3g} units of w₂{metric}"

    @property
    def loss(self) -> float:
        """Its loss on held-out training data."""
        return min(tried.loss for tried in self.path)

    def penalties(self, n: int) -> Penalties:
        """Return λ₁ and λ₂ of a fit to n samples."""
        return Penalties(self.w1, self.w2 * self.length / n)

    @property
    def gradients(self) -> bool:
        """Whether the gradient term is in it."""
        return self.w2 < float("inf")


def lightest(probe: Probe) -> float:
    """Return the penalty that the path of ω̄ and w₁ begins with: the best probe's, which may be zero."""
    return max(probe.penalty, 1e-12)


def place_of_omega(choice: Choice, probe: Probe) -> int:
    """Return the place in `HEAVIER` of the ω̄ whose gradient term had the least held-out loss."""
    least = min((tried for tried in choice.path if tried.w2 < float("inf")), key=lambda tried: tried.loss)
    ratio = least.omega / lightest(probe)
    return min(range(len(HEAVIER)), key=lambda i: abs(HEAVIER[i] - ratio))


def as_pair(penalty: float | Sequence[float]) -> tuple[float, float]:
    """Return λ of w₁ and of w₂ from one number for both, or a pair; none heavier than leaves no weight at all."""
    w1, w2 = penalty if isinstance(penalty, Sequence) else (penalty, penalty)
    return min(float(w1), HEAVIEST), min(float(w2), HEAVIEST)


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
    activations: Activations | None = None,
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
        activations: Of the same samples, from a problem of another ω̄; of mode "full" alone.
    """
    f = store.features.to(omega)
    if mode == "full" and activations is None:
        activations = Activations(f, seen, weight)
    subspace = Subspace(
        GradientFeatures(store, omega, parametrization=parametrization),
        activations,
        y,
        loss,
        seen=seen,
        weight=weight,
        start=f @ omega + bias,
        generator=generator,
        metric=metric,
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
    stages: Stages = STAGES,
    metric: str = "plain",
    checkpoint: Checkpoint | None = None,
    head: Probe | None = None,
    omegas: Sequence[int] | None = None,
) -> tuple[Choice, Weights | None]:
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
        stages: How far the subspaces grow.
        metric: What w₂ is penalized in.
        checkpoint: Where the losses of each ω̄ are kept.
        head: The one ω of the gradients where it is fixed; None tries probes.
        omegas: Places in `HEAVIER` of the penalties of ω̄ to try; None tries all.

    Returns:
        The choice, and the w₂ that it is of, the mean over the splits, in the units of θ₂: a direction for the fit to
        all samples to begin with. None where no gradient term was chosen.
    """
    light = lightest(probe)
    tries = [0] if head is not None else list(range(len(HEAVIER)) if omegas is None else omegas)
    heads = [light * factor for factor in HEADS] if mode == "full" else [light]
    growths = len(splits) * (len(tries) * len(stages.common) + len(stages.more))
    with progress.step("penalties") as done:
        path = _Path(
            store,
            y,
            loss,
            weight,
            splits,
            [probes_of(store.features, y, loss, weight, seen, light) for seen, _ in splits],
            heads,
            head,
            {"mode": mode, "parametrization": parametrization, "generator": generator, "metric": metric},
            stages.common,
            lambda steps: done(steps, growths),
        )
        found: dict[int, np.ndarray] = {}  # losses, (splits, λ₁, λ₂)
        lengths: dict[int, float] = {}
        by_sample: dict[int, Tensor | None] = {}  # the losses at the least place of each ω̄, (n,)
        best: list[Subspace] = []
        start: Weights | None = None
        w2: Weights | None
        each: Tensor | None
        states = {}  # of the random numbers before each ω̄, for one whose problems are not in memory
        for i in tries:
            states[i] = generator.get_state()
            name = f"{of_omegas(mode, omegas)}-omega-{i}-{Stages(stages.common)}-{metric}"
            before = path.passes
            kept = load_part(checkpoint, name, generator)
            if kept is None:
                problems = path.begun(i)
                losses = path.losses(problems)
                w2, new = path.mean_w2(problems, losses)
                each = new
                lengths[i] = problems[0].length
                values = {"passes": path.passes - before, "length": lengths[i]}
                tensors = {"losses": torch.from_numpy(losses), "by sample": new, **named_w2(w2)}
                keep_part(checkpoint, name, Part(values, tensors), generator)
            else:
                losses, problems = kept.tensors["losses"].numpy(), []
                w2, each = w2_of(kept.tensors, store.linearization.theta2), kept.tensors.get("by sample")
                path.passes += kept.values["passes"]
                lengths[i] = kept.values["length"]
            worse = bool(found) and least_mean(losses) >= min(map(least_mean, found.values()))
            found[i], by_sample[i] = losses, each
            if worse:
                break
            best, start = problems, w2
        chosen = min(found, key=lambda i: least_mean(found[i]))
        iterations = sum(count for _, count in stages.common)
        for (before_stage, _), stage in itertools.pairwise([stages.common[-1], *stages.more]):
            last = least_mean(found[chosen])
            if int(found[chosen].mean(0).min(0).argmin()) < before_stage - 1:  # lighter penalties only do harm
                break
            best = best or path.begun_again(chosen, states[chosen])  # from a checkpoint
            path.grow(best, stage)
            losses = path.losses(best)
            if least_mean(losses) > last * (1 - NEGLIGIBLE):
                break
            found[chosen] = losses
            start, by_sample[chosen] = path.mean_w2(best, losses)
            iterations += stage[1]
    points = [
        (Tried(light * HEAVIER[i], heads[j], GRID[k], float(losses[:, j, k].mean())), lengths[i], losses[:, j, k])
        for i, losses in found.items()
        for j, k in np.ndindex(*losses.shape[1:])
    ]
    gain: tuple[float | None, float | None, int] = (None, None, 0)
    if mode == "full":  # among equals the probe
        alone = [(light * value, path.probe_losses(i)) for i, value in enumerate(HEAVIER)]
        points = [*((Tried(v, v, float("inf"), float(held.mean())), 1.0, held) for v, held in alone), *points]
        best_alone = min(range(len(alone)), key=lambda i: float(alone[i][1].mean()))
        gain = _gain(path.probe_by_sample(best_alone), by_sample[chosen], weight)
    least, length, held = min(points, key=lambda point: point[0].loss)
    tried = [point for point, _, _ in points]
    choice = Choice(
        least.omega, least.w1, least.w2, tried, path.passes, length, held.tolist(), mode, metric, iterations, *gain
    )
    return choice, start if choice.gradients else None


def _gain(alone: Tensor, best: Tensor | None, weight: Tensor | None) -> tuple[float | None, float | None, int]:
    """Return the weighted mean of the samples' differences, its standard error, and how many samples they are."""
    if best is None:
        return None, None, 0
    difference = alone - best
    share = (~difference.isnan()).double()
    if weight is not None:
        share *= weight[: len(share)].to(share)
    counted = share > 0
    difference, share = difference[counted], share[counted] / share.sum()
    n = len(difference)
    if n < 2:
        return None, None, n
    mean = share @ difference
    error = (share.square() @ (difference - mean).square() * n / (n - 1)).sqrt()
    return float(mean), float(error), n


def least_mean(losses: np.ndarray) -> float:
    """Return the least mean over splits of some losses, (splits, λ₁, λ₂)."""
    return float(losses.mean(0).min())


@dataclass
class _Path:
    """The problems of each ω̄ on every split, and the work on them.

    Attributes:
        store, y, loss, weight: The samples.
        splits: Pairs of indices (seen, held out).
        probes: Of each split, with the penalties of `HEAVIER`.
        heads: λ₁ that are tried.
        head: The one ω of the gradients where it is fixed.
        settings: Of `make_subspace`.
        growths: Of the subspaces of all ω̄.
        done: Told how many growths there have been.
        activations: Of each split, once a problem of it has been made.
        passes: Work, in passes over all samples.
        grown: How many growths there have been.
    """

    store: SampleStore
    y: Tensor
    loss: Loss
    weight: Tensor | None
    splits: Sequence[tuple[Tensor, Tensor]]
    probes: list[list[Probe]]
    heads: list[float]
    head: Probe | None
    settings: dict[str, Any]
    growths: Growths
    done: Callable[[int], None]
    activations: dict[int, Activations | None] = field(default_factory=dict)
    passes: float = 0.0
    grown: int = 0

    def begun(self, i: int) -> list[Subspace]:
        """Return the problems of one ω̄ after the stages that all see."""
        problems = []
        for split, ((seen, held), probes) in enumerate(zip(self.splits, self.probes, strict=True)):
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
                weight=self._weight(rows),
                activations=self.activations.get(split),
                **self.settings,
            )
            self.activations[split] = subspace.f
            self.passes += subspace.features.passes * len(rows) / len(self.store)
            problems.append(subspace)
        length = sum(subspace.length for subspace in problems) / len(problems)
        for subspace in problems:  # so that a place of the grid means the same in all splits
            subspace.length = length
        self.grow(problems, *self.growths)
        return problems

    def begun_again(self, i: int, state: Tensor) -> list[Subspace]:
        """Return what `begun` did when the random numbers were in some state; that work has been counted."""
        generator: torch.Generator = self.settings["generator"]
        after, passes = generator.get_state(), self.passes
        generator.set_state(state)
        problems = self.begun(i)
        generator.set_state(after)
        self.passes = passes
        return problems

    def grow(self, problems: Sequence[Subspace], *growths: tuple[int, int]) -> None:
        """Grow one ω̄'s problems at places of the grid for some iterations."""
        for subspace in problems:
            before = subspace.features.passes
            for growth in growths:
                grow(subspace, self.heads[(len(self.heads) - 1) // 2], *growth)
                self.grown += 1
                self.done(self.grown)
            self.passes += (subspace.features.passes - before) * len(subspace.y) / len(self.store)

    def losses(self, problems: Sequence[Subspace]) -> np.ndarray:
        """Return the mean loss of each split's held-out samples for one ω̄, (splits, λ₁, λ₂)."""
        found = []
        for subspace, (seen, held) in zip(problems, self.splits, strict=True):
            places = len(seen) + torch.arange(len(held))
            found.append(held_losses(subspace, self.loss, self.y[held], places, self._weight(held), self.heads))
        return np.stack(found)

    def mean_w2(self, problems: Sequence[Subspace], losses: np.ndarray) -> tuple[Weights, Tensor]:
        """Return the mean over splits of the w₂ with the least mean of some held-out losses, (splits, λ₁, λ₂).

        Returns:
            That w₂; and the loss of each sample where it was held out, (n,) (see `_by_sample`).
        """
        each: list[Tensor] = []
        j, k = np.unravel_index(int(losses.mean(0).argmin()), losses.shape[1:])
        total = problems[0].features.zeros()
        for subspace, (seen, held) in zip(problems, self.splits, strict=True):
            point = subspace.minimum(Penalties(self.heads[j], GRID[k] * subspace.unit))
            add_scaled(total, 1 / len(problems), subspace.features.natural(subspace.w2(point)))
            logits = subspace.logits(point, len(seen) + torch.arange(len(held)))
            each.append(self.loss.per_sample(logits.double(), self.y[held]))
        return total, self._by_sample(each)

    def probe_losses(self, i: int) -> np.ndarray:
        """Return the mean loss of each split's held-out samples for a probe alone, (splits,)."""
        found = []
        for (_, held), probes in zip(self.splits, self.probes, strict=True):
            logits = self.store.features[held].to(probes[i].omega) @ probes[i].omega + probes[i].bias
            found.append(float(self.loss.value(logits.double(), self.y[held], self._weight(held))))
        return np.array(found)

    def probe_by_sample(self, i: int) -> Tensor:
        """Return the loss of each sample under a probe alone, (n,) (see `_by_sample`)."""
        each = []
        for (_, held), probes in zip(self.splits, self.probes, strict=True):
            logits = self.store.features[held].to(probes[i].omega) @ probes[i].omega + probes[i].bias
            each.append(self.loss.per_sample(logits.double(), self.y[held]))
        return self._by_sample(each)

    def _by_sample(self, each: Sequence[Tensor]) -> Tensor:
        """Return the losses of held-out samples, (n,): the mean of one in several splits, NaN of one in none."""
        total, count = torch.zeros(2, len(self.y), dtype=torch.float64)
        for (_, held), losses in zip(self.splits, each, strict=True):
            total[held.cpu()] += losses.detach().double().cpu()
            count[held.cpu()] += 1
        return total / count

    def _weight(self, rows: Tensor) -> Tensor | None:
        return None if self.weight is None else self.weight[rows]


def of_omegas(mode: str, omegas: Sequence[int] | None) -> str:
    """Return the first part of a checkpoint's names: a choice among some ω̄ draws other random numbers than all."""
    return mode if omegas is None else f"{mode}-of-{'-'.join(map(str, omegas))}"


def grow(subspace: Subspace, head: float, place: int, iterations: int, *, tolerance: float = 1e-2) -> None:
    """Grow a subspace with λ₁ = `head` and λ₂ at a place of the grid; half a growth chooses nothing.

    Raises:
        KeyboardInterrupt: Ctrl-C, which the solver itself takes for the wish to have what is finished.
    """
    penalties = Penalties(head, GRID[place] * subspace.unit)
    _, solution = subspace.solve(penalties, iterations=iterations, tolerance=tolerance)
    if solution.interrupted:
        raise KeyboardInterrupt


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
