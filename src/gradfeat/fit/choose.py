"""What nobody should have to tune: the penalties of w₁, of w₂, and of the ω̄ that makes the gradient features.

A probe that fits the training data leaves no residual for the gradients, and its ω̄ points where the activations alone
point. So the penalty of the best probe is not the one of the best ω̄: several are tried, from the best probe's upwards.
For each, one subspace serves the whole grid of penalties on w₁ and w₂; the choice is the least loss on validation data,
training data that were held out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gradfeat.fit.checkpoint import Part, keep_part, load_part, named_w2, resumed, w2_of
from gradfeat.fit.penalties import GRID, NEGLIGIBLE, Choice, Tried, best_omega_penalty, lightest
from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.run import Run
from gradfeat.fit.spans import Growth, Stages, Validation, grow, probes_of, subspace_of
from gradfeat.fit.splits import WHOLE, Split, metric_count_of, path_count_of, some_of
from gradfeat.progress import Step
from gradfeat.solvers.gradient_features import Weights, add_scaled
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Activations, Penalties, Subspace

STAGES = Stages(
    common=(Growth(1.0, 1),),
    more=(Growth(10.0**-0.5, 1), Growth(0.1, 2)),
)
"""Heavy penalties first: the first directions are those of the solution that heavy penalties ask for. One direction is
enough to tell the ω̄ from each other."""

BOTH_BELOW = 400
"""Of fewer samples both metrics are tried, where that is cheap."""


def metrics_of(plan: Plan, n: int) -> list[str]:
    """Return the metrics that a choice with n samples tries."""
    if plan.metric != "auto":
        return [plan.metric]
    return ["whitened", "plain"] if n < BOTH_BELOW else ["whitened"]


FEW = 100
"""Samples below which a gradient term must be better than the probe by more than the standard error: so few, judged by
each other, find something better by chance."""


def choose(problem: Problem, plan: Plan, run: Run, stages: Stages = STAGES) -> tuple[Choice | None, Weights | None]:
    """Choose penalties under the plan's metric, or the better of two, and keep them in the checkpoint.

    All ω̄ are tried under the first metric, and the best of them alone under the other, on some of the parts.

    Returns:
        The choice, None where there are too few samples to hold some out; and the w₂ that it is of (see
        `choose_penalties`).
    """
    if not run.splits:
        return None, None
    first, *others = metrics_of(plan, problem.n)
    best, w2 = _choose_under(problem, replace(plan, metric=first), run, run.splits, stages)
    passes, count = best.passes, _count(plan, run.splits, metric_count_of(problem.n))
    for name in others:
        omega_penalties = {plan.mode: [best_omega_penalty(best, problem.probe)]}
        known = replace(problem, omega_penalties=omega_penalties)
        other, of_other = _choose_under(known, replace(plan, metric=name), run, run.splits[:count], stages)
        passes += other.passes
        if other.loss < best.loss_on(count):
            best, w2 = other, of_other
    best = replace(best, passes=passes)
    if problem.n < FEW and best.gradients and not best.clear:
        return best.without_gradients(), None
    return best, w2


def _count(plan: Plan, splits: Sequence[Split], some: int) -> int:
    """Return some of the splits' number, or all where it is given."""
    return len(splits) if plan.splits is not None else min(len(splits), some)


def _choose_under(
    problem: Problem, plan: Plan, run: Run, splits: Sequence[Split], stages: Stages
) -> tuple[Choice, Weights | None]:
    """Choose penalties under one metric, or take the choice from the checkpoint."""

    def compute() -> tuple[Choice, Weights | None]:
        rows = [Split(problem.random_views(split.train, run.generator), split.validation) for split in splits]
        return choose_penalties(problem, plan, rows, run, stages)

    return resumed(
        problem.checkpoint,
        f"{_first_of_name(problem, plan.mode)}-penalties-{stages}-{plan.metric}",
        compute,
        lambda choice: Part(asdict(choice[0]), named_w2(choice[1])),
        lambda part: _unpack(part, problem.linearization.theta2),
        run.generator,
    )


def choose_penalties(
    problem: Problem, plan: Plan, splits: Sequence[Split], run: Run, stages: Stages = STAGES
) -> tuple[Choice, Weights | None]:
    """Choose the penalties of ω̄, w₁ and w₂ by the loss on validation data.

    Args:
        problem: The samples; its probe's penalty is where the path of ω̄ and w₁ begins.
        plan: Mode, parametrization, metric ("plain" or "whitened").
        splits: Of rows of the problem's store: one version of each sample to fit to. The first of them judge ω̄, or a
            part of them (see `gradfeat.fit.splits`), and all of them the penalties of the best one.
        run: Random numbers and progress.
        stages: How far the subspaces grow.

    Returns:
        The choice, and the w₂ that it is of, the mean over the splits, in the units of θ₂: a direction for the fit to
        all samples to begin with. None where no gradient term was chosen.
    """
    with run.progress.step("penalties") as done:
        path = _Path(problem, plan, splits, stages, run.generator, done)
        candidate = path.extended(path.on_all_parts(path.first_of_each_omega()))
    choice = path.choice(candidate)
    return choice, candidate.w2 if choice.gradients else None


class _Part:
    """A split of a problem's samples, and what all ω̄ share there.

    Args:
        problem: All samples.
        plan: Mode, parametrization, metric.
        split: Of rows of the problem's store.
        light: The lightest penalty of w₁ and ω̄.
    """

    def __init__(self, problem: Problem, plan: Plan, split: Split, light: float) -> None:
        self.split, self.light, self._plan = split, light, plan
        self.lambda1 = [light * factor for factor in GRID.lambda1] if plan.mode == "full" else [light]
        self.problem = problem.subset(torch.cat([split.train, split.validation]))
        self.validation = Validation.of(self.problem, len(split.train))
        self.probes = probes_of(problem, split.train, light)
        self._activations: Activations | None = None

    def begun(self, omega: float, generator: torch.Generator) -> Subspace:
        """Return the subspace of one ω̄, whose penalty is in units of the best probe's, with the probes' directions."""
        own, n_train = self.problem.fixed_omega or self.probes[GRID.omega.index(omega)], len(self.split.train)
        subspace = subspace_of(self.problem, self._plan, own.omega, own.bias, n_train, generator, self._activations)
        for probe in self.probes:
            subspace.add_w1(probe.omega)
        self._activations = subspace.f
        return subspace

    def losses(self, subspace: Subspace) -> np.ndarray:
        """Return the mean loss of the validation samples, (λ₁, λ₂)."""
        return self.validation.losses(subspace, self.lambda1)

    def probe_logits(self, i: int) -> Tensor:
        """Return the logits of the validation samples under a probe alone, in double precision."""
        probe, rows = self.probes[i], self.validation.rows
        return (self.problem.store.features[rows].to(probe.omega) @ probe.omega + probe.bias).double()

    def probe_loss(self, i: int) -> float:
        """Return their mean loss."""
        validation = self.validation
        return float(validation.loss.value(self.probe_logits(i), validation.y, validation.weight))


@dataclass
class _Candidate:
    """What is known of one ω̄.

    Attributes:
        omega: Its penalty in units of the best probe's.
        losses: Validation losses, (splits, λ₁, λ₂).
        length: Mean squared length of its gradient features.
        w2: The w₂ with the least mean loss, a mean over the splits.
        per_sample: The loss of each sample there, (n,); None in an older checkpoint.
        state: Of the random numbers before it.
        subspaces: Of each split; none where it comes from a checkpoint.
        iterations: Of these subspaces.
    """

    omega: float
    losses: np.ndarray
    length: float
    w2: Weights | None
    per_sample: Tensor | None
    state: Tensor
    subspaces: list[Subspace] = field(default_factory=list)
    iterations: int = 0

    @property
    def loss(self) -> float:
        """The least mean over splits."""
        return float(self.losses.mean(0).min())

    @property
    def lambda2_units(self) -> float:
        """Where it is."""
        return GRID.lambda2_units[int(self.losses.mean(0).min(0).argmin())]


class _Path:
    """The penalty path of a problem, and the work on it.

    Args:
        problem: The samples.
        plan: Mode, parametrization, metric.
        splits: Of rows of the problem's store.
        stages: How far the subspaces grow.
        generator: Of the preconditioner's signs.
        report: Told how many growths there have been, of how many at most.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        splits: Sequence[Split],
        stages: Stages,
        generator: torch.Generator,
        report: Step,
    ) -> None:
        self.problem, self.plan, self.stages, self.generator = problem, plan, stages, generator
        self.light = lightest(problem.probe)
        self.omegas = [GRID.omega[0]] if problem.fixed_omega is not None else list(_omegas(problem, plan.mode))
        self.tried: list[_Candidate] = []
        self.passes = 0.0
        self.parts = [_Part(problem, plan, split, self.light) for split in splits]
        self._first = self.parts  # those that judge ω̄
        if len(self.omegas) > 1:
            self._first = self.parts[: _count(plan, splits, path_count_of(problem.n))]
            if plan.splits is None and problem.n > WHOLE:
                some = some_of(splits[0], generator)  # their penalties weigh as much against so many samples
                light = self.light * len(splits[0].train) / len(some.train)
                self._first = [_Part(problem, plan, some, light)]
        self._grown, self._report = 0, report

    # ---- the path of ω̄ ----------------------------------------------------------------------------------------------

    def first_of_each_omega(self) -> _Candidate:
        """Try heavier and heavier penalties of ω̄ while the validation loss falls; return the best."""
        best = self._candidate(self.omegas[0])
        self.tried.append(best)
        for omega in self.omegas[1:]:
            candidate = self._candidate(omega)
            self.tried.append(candidate)
            if candidate.loss >= best.loss:
                break
            best = candidate
        return best

    def on_all_parts(self, candidate: _Candidate) -> _Candidate:
        """Return the best ω̄ as all parts judge it; what others judge is no longer compared with it."""
        known = self._first if self.parts[: len(self._first)] == self._first else []
        rest = self.parts[len(known) :]
        if not rest:
            return candidate
        if known and not candidate.subspaces:
            candidate.subspaces = self._begun_again(candidate)
        candidate.state = self.generator.get_state()
        length = candidate.length if known else None
        subspaces = [*(candidate.subspaces if known else []), *self._begun(rest, candidate.omega, length)]
        self._first = self.parts
        self._judge(candidate, subspaces)
        self.tried = [candidate]
        return candidate

    def extended(self, candidate: _Candidate) -> _Candidate:
        """Grow the subspaces of the best ω̄ for further stages while the validation loss falls."""
        for before, growth in itertools.pairwise([self.stages.common[-1], *self.stages.more]):
            if candidate.lambda2_units > before.lambda2_units * 10**0.75:  # lighter penalties only do harm
                break
            if not candidate.subspaces:  # from a checkpoint
                candidate.subspaces = self._begun_again(candidate)
            self._grow(self.parts, candidate.subspaces, growth)
            losses = self._losses(self.parts, candidate.subspaces)
            if float(losses.mean(0).min()) > candidate.loss * (1 - NEGLIGIBLE):
                break
            self._judge(candidate, candidate.subspaces, losses)
            candidate.iterations += growth.iterations
        return candidate

    def choice(self, candidate: _Candidate) -> Choice:
        """Return the least validation loss of all that was tried, with and without the gradient term."""
        points = [point for one in self.tried for point in self._points(one)]
        gain = _Gain()
        if self.plan.mode == "full":  # among equals the probe
            alone = [(self.light * factor, self._probe_losses(i)) for i, factor in enumerate(GRID.omega)]
            points = [*((Tried(v, v, math.inf, float(of.mean())), 1.0, of) for v, of in alone), *points]
            best_alone = min(range(len(alone)), key=lambda i: float(alone[i][1].mean()))
            gain = _Gain.of(self._probe_per_sample(best_alone), candidate.per_sample, self.problem.weight)
        least, length, losses = min(points, key=lambda point: point[0].loss)
        return Choice(
            least.omega_penalty,
            least.lambda1,
            least.lambda2_units,
            [point for point, _, _ in points],
            self.passes,
            length,
            losses.tolist(),
            self.plan.mode,
            self.plan.metric,
            candidate.iterations,
            gain.mean,
            gain.error,
            gain.n,
        )

    def _points(self, candidate: _Candidate) -> Iterator[tuple[Tried, float, np.ndarray]]:
        """Yield the points of one ω̄: penalties and loss, the length of its features, the loss of each split."""
        omega, lambda1 = self.light * candidate.omega, self.parts[0].lambda1
        for j, k in np.ndindex(*candidate.losses.shape[1:]):
            losses = candidate.losses[:, j, k]
            tried = Tried(omega, lambda1[j], GRID.lambda2_units[k], float(losses.mean()))
            yield tried, candidate.length, losses

    # ---- one ω̄ -----------------------------------------------------------------------------------------------------

    def _candidate(self, omega: float) -> _Candidate:
        """Return what the stages that all ω̄ share say of one, from the checkpoint where it is there."""
        problem, state, before = self.problem, self.generator.get_state(), self.passes
        first, common = _first_of_name(problem, self.plan.mode), Stages(self.stages.common)
        name = f"{first}-omega-{omega:g}-{common}-{self.plan.metric}"
        iterations = sum(growth.iterations for growth in common.common)
        kept = load_part(problem.checkpoint, name, self.generator)
        if kept is not None:
            w2, per_sample = w2_of(kept.tensors, problem.linearization.theta2), kept.tensors.get("per sample")
            self.passes += kept.values["passes"]
            losses = kept.tensors["losses"].numpy()
            return _Candidate(omega, losses, kept.values["length"], w2, per_sample, state, iterations=iterations)
        candidate = _Candidate(omega, np.zeros(0), 1.0, None, None, state, iterations=iterations)
        self._judge(candidate, self._begun(self._first, omega))
        values = {"passes": self.passes - before, "length": candidate.length}
        tensors = {"losses": torch.from_numpy(candidate.losses)}
        if candidate.per_sample is not None:
            tensors["per sample"] = candidate.per_sample
        keep_part(problem.checkpoint, name, Part(values, {**tensors, **named_w2(candidate.w2)}), self.generator)
        return candidate

    def _begun(self, parts: Sequence[_Part], omega: float, length: float | None = None) -> list[Subspace]:
        """Return the subspaces of one ω̄ on some parts after the stages that all share.

        Args:
            parts: The parts.
            omega: Its penalty in units of the best probe's.
            length: Of its gradient features, as other parts have estimated it; None: the mean of these.
        """
        subspaces = [part.begun(omega, self.generator) for part in parts]
        for part, subspace in zip(parts, subspaces, strict=True):
            self.passes += subspace.features.passes * len(part.problem.store) / len(self.problem.store)
        if length is None:
            length = sum(subspace.length for subspace in subspaces) / len(subspaces)
        for subspace in subspaces:  # so that a unit means the same in all splits
            subspace.length = length
        self._grow(parts, subspaces, *self.stages.common)
        return subspaces

    def _begun_again(self, candidate: _Candidate) -> list[Subspace]:
        """Return what `_begun` did when the random numbers were in another state; that work has been counted."""
        after, passes = self.generator.get_state(), self.passes
        self.generator.set_state(candidate.state)
        subspaces = self._begun(self._first, candidate.omega)
        self.generator.set_state(after)
        self.passes = passes
        return subspaces

    def _grow(self, parts: Sequence[_Part], subspaces: Sequence[Subspace], *growths: Growth) -> None:
        """Grow the subspaces of one ω̄."""
        paths = len(self.omegas) * len(self.stages.common) * len(self._first)
        most = paths + len(self.parts) * (1 + len(self.stages.more))
        for part, subspace in zip(parts, subspaces, strict=True):
            before = subspace.features.passes
            for growth in growths:
                grow(subspace, part.light, growth)
                self._grown += 1
                self._report(self._grown, most)
            self.passes += (subspace.features.passes - before) * len(subspace.y) / len(self.problem.store)

    # ---- losses on validation data ----------------------------------------------------------------------------------

    def _losses(self, parts: Sequence[_Part], subspaces: Sequence[Subspace]) -> np.ndarray:
        """Return the mean loss of each part's validation samples for one ω̄, (splits, λ₁, λ₂)."""
        return np.stack([part.losses(subspace) for part, subspace in zip(parts, subspaces, strict=True)])

    def _judge(self, candidate: _Candidate, subspaces: list[Subspace], losses: np.ndarray | None = None) -> None:
        """Write into a candidate what the parts that judge now say of its subspaces.

        Its w₂ is the mean over parts of the one with the least mean loss.
        """
        parts = self._first
        losses = self._losses(parts, subspaces) if losses is None else losses
        j, k = np.unravel_index(int(losses.mean(0).argmin()), losses.shape[1:])
        w2, each = subspaces[0].features.zeros(), []
        for part, subspace in zip(parts, subspaces, strict=True):
            point = subspace.minimum(Penalties(part.lambda1[j], GRID.lambda2_units[k] * subspace.unit))
            add_scaled(w2, 1 / len(subspaces), subspace.features.natural(subspace.w2(point)))
            each.append(part.validation.per_sample(subspace.logits(point, part.validation.rows)))
        candidate.losses, candidate.subspaces, candidate.length = losses, subspaces, subspaces[0].length
        candidate.w2, candidate.per_sample = w2, self._per_sample(each)

    def _probe_losses(self, i: int) -> np.ndarray:
        """Return the mean loss of each part's validation samples for a probe alone, (splits,)."""
        return np.array([part.probe_loss(i) for part in self.parts])

    def _probe_per_sample(self, i: int) -> Tensor:
        """Return the loss of each sample under a probe alone, (n,) (see `_per_sample`)."""
        return self._per_sample([part.validation.per_sample(part.probe_logits(i)) for part in self.parts])

    def _per_sample(self, each: Sequence[Tensor]) -> Tensor:
        """Return the losses of validation samples, (n,): the mean of one in several splits, NaN of one in none."""
        total = torch.zeros(len(self.problem.y), dtype=torch.float64)
        count = torch.zeros_like(total)
        for part, losses in zip(self._first, each, strict=True):
            rows = part.split.validation.cpu()
            total[rows] += losses.detach().double().cpu()
            count[rows] += 1
        return total / count


@dataclass(frozen=True)
class _Gain:
    """What a gradient term is worth: see `Choice`."""

    mean: float | None = None
    error: float | None = None
    n: int = 0

    @staticmethod
    def of(alone: Tensor, best: Tensor | None, weight: Tensor | None) -> _Gain:
        """Return the weighted mean of the samples' differences, its standard error, and how many samples they are."""
        if best is None:
            return _Gain()
        difference = alone - best
        share = (~difference.isnan()).double()
        if weight is not None:
            share *= weight[: len(share)].to(share)
        counted = share > 0
        difference, share = difference[counted], share[counted] / share.sum()
        n = len(difference)
        if n < 2:
            return _Gain(n=n)
        mean = share @ difference
        error = (share.square() @ (difference - mean).square() * n / (n - 1)).sqrt()
        return _Gain(float(mean), float(error), n)


def nearest_probe(probes: Sequence[Probe], choice: Choice) -> Probe:
    """Return the probe with the penalty that was chosen for ω̄."""
    return min(probes, key=lambda probe: abs(probe.penalty - choice.omega_penalty))


def _omegas(problem: Problem, mode: str) -> Sequence[float]:
    return problem.omega_penalties.get(mode, GRID.omega)


def _first_of_name(problem: Problem, mode: str) -> str:
    """Return the first part of a checkpoint's names: a choice among some ω̄ draws other random numbers than all."""
    known = problem.omega_penalties.get(mode)
    return mode if known is None else f"{mode}-of-{'-'.join(f'{omega:g}' for omega in known)}"


def _unpack(part: Part, theta2: Mapping[str, Tensor]) -> tuple[Choice, Weights | None]:
    choice = Choice(**{**part.values, "path": [Tried(**tried) for tried in part.values["path"]]})
    return choice, w2_of(part.tensors, theta2)
