"""Rounds: linearize, fit, move θ̄₂ by w₂, take ω̄ = w₁, linearize again. Fine-tuning without a learning rate.

Each round is a convex problem at the present point, of which one preconditioned step is taken (a damped Gauss-Newton
step), in the span of a preconditioned gradient, or of two or three, and the step before. How far it goes, the penalties
of w₁ and w₂ say: they are a trust region, chosen by the loss of the real network on held-out training data, that no fit
has seen. Rounds end where no step lowers it. The same steps, with the same penalties, are then repeated on all training
data, and the last linearization is solved there.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.checkpoint import Part, keep_part, like_theta2, load_part, named_w2, w2_of
from gradfeat.fit.fitting import Problem
from gradfeat.fit.selection import GRID, NEGLIGIBLE, Choice, Stages, grow, held_losses, lightest, make_subspace
from gradfeat.linearization import Linearization
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.newton import Combination
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.subspace import Penalties, Solution, Subspace

MOST = 12
"""Steps at most, for "auto"; the last linearization comes after them."""

PLACE = 4
"""Place of the grid at which a round's step is preconditioned: λ₂ of one unit."""

DIRECTIONS = (1, 2, 3, 9)
"""Of a round's subspace: one, more where none of its steps is better; so many as the last in the first round alone,
which may begin at a saddle."""

HEADS = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))
"""Penalties of w₁, from heavy to light, in units of the one that was chosen for ω̄, with which the rounds begin. As θ̄₂
learns the training data, w₁ wants heavier ones."""

LIGHTEST = 0.01
"""The lightest of `HEADS` that are tried; lighter ones only as far as the best probe's penalty."""

AROUND = (10.0, 10**0.5, 1.0, 10**-0.5, 0.1)
"""The same of the last linear model, in units of the last step's."""

FIRST = Stages(common=((2, 1), (4, 2)))
"""Of the choice of ω̄'s penalty: what is best for short steps, under heavier penalties of w₂, is what rounds begin with
best, which move ω̄ themselves."""

LAST = (*FIRST.common, (6, 2))
"""Growths of the last linearization's subspace at most."""

SEARCH, REPETITION = "rounds-search", "rounds-repetition"
"""Names of their parts of a checkpoint."""

_BATCH = 128


@dataclass(frozen=True)
class Point:
    """A linearization and a linear model at it.

    Attributes:
        theta2: Where θ̄₂ is.
        omega: ω̄, (d, c).
        w1: (d, c).
        b: (c,).
        w2: By the names of θ₂, in its units; None is zero.
        move: By what θ̄₂ moved to come here, in the same units; None where it starts.
    """

    theta2: dict[str, Tensor]
    omega: Tensor
    w1: Tensor
    b: Tensor
    w2: dict[str, Tensor] | None = None
    move: dict[str, Tensor] | None = None

    def model(self, problem: Problem, parametrization: str, mode: str = "full") -> GradientFeatureModel:
        """Return the model of a mode with these weights."""
        lin = self.linearization(problem)
        dtype = torch.float64 if lin.dtype == torch.float64 else torch.float32
        model = GradientFeatureModel(
            lin, self.omega.to(lin.device, dtype), mode=mode, parametrization=parametrization
        ).to(lin.device)
        w2 = self.w2 if self.w2 is not None else {name: torch.zeros_like(v) for name, v in lin.theta2.items()}
        model.set_weights(w1=self.w1, b=self.b, w2=w2)
        return model

    def linearization(self, problem: Problem) -> Linearization:
        """Return the network's linearization at this point: the problem's own where θ̄₂ has not moved."""
        lin = problem.linearization
        same = all(self.theta2[name] is value for name, value in lin.theta2.items())
        return lin if same else lin.at(self.theta2)

    def with_weights(self, w1: Tensor, b: Tensor, w2: dict[str, Tensor]) -> Point:
        """Return the linear model with other weights at the same point."""
        return Point(self.theta2, self.omega, w1, b, w2)

    def moved(self, w1: Tensor, b: Tensor, w2: dict[str, Tensor]) -> Point:
        """Return the point to which θ̄₂ moves by w₂, where ω̄ = w₁."""
        theta2 = {name: value + w2[name].to(value) for name, value in self.theta2.items()}
        w1 = w1.to(self.omega)
        return Point(theta2, w1, w1, b.to(self.omega), move=w2)

    def pack(self) -> dict[str, Tensor]:
        """Return its tensors by name."""
        theta2 = {f"theta2/{name}": value for name, value in self.theta2.items()}
        directions = named_w2(self.w2) | named_w2(self.move, "move/")
        return {"omega": self.omega, "w1": self.w1, "b": self.b, **theta2, **directions}

    @staticmethod
    def unpack(tensors: Mapping[str, Tensor], theta2: Mapping[str, Tensor]) -> Point:
        """Return the point of some tensors, each in memory as θ₂'s own."""
        device = next(iter(theta2.values())).device
        omega, w1, b = (tensors[name].to(device) for name in ("omega", "w1", "b"))
        w2, move = w2_of(tensors, theta2), w2_of(tensors, theta2, "move/")
        return Point(like_theta2(tensors, "theta2/", theta2), omega, w1, b, w2, move)


@dataclass(frozen=True)
class Step:
    """A move of θ̄₂.

    Attributes:
        w1: λ₁.
        w2: λ₂, times the number of samples that it was found on.
        iterations: How many directions its subspace had.
        loss: The network's loss on held-out training data after it.
    """

    w1: float
    w2: float
    iterations: int
    loss: float


@dataclass
class Rounds:
    """What was found on the samples that were not held out.

    Attributes:
        start: Held-out loss of the probe that the rounds start from.
        steps: Moves that lowered it.
        last: Penalties of the last linearization, as in `Step`; λ₂ is infinite where the network itself was better.
        last_loss: The held-out loss there; before the last linearization is chosen, that of the network.
        stages: How many stages its subspace grew for.
        reason: Why the rounds ended.
        passes: Work.
        point: Where they ended, and the last linear model there; of a model that was loaded from a file the model's
            own. It is not compared.
        interrupted: Whether Ctrl-C ended them.
    """

    start: float
    point: Point = field(compare=False)
    steps: list[Step] = field(default_factory=list)
    last: tuple[float, float] = (0.0, float("inf"))
    last_loss: float = float("inf")
    stages: int = 0
    reason: str = ""
    passes: float = 0.0
    interrupted: bool = False

    def pack(self, done: bool) -> Part:
        """Return all of it, as a part of a checkpoint: after a step, or when it is done."""
        names = ("start", "last", "last_loss", "stages", "reason", "passes")
        values = {name: getattr(self, name) for name in names} | {"steps": [asdict(step) for step in self.steps]}
        return Part({**values, "done": done}, self.point.pack())

    @staticmethod
    def unpack(part: Part, theta2: Mapping[str, Tensor]) -> Rounds:
        """Return what `pack` was given."""
        values = {name: value for name, value in part.values.items() if name != "done"}
        values["steps"] = [Step(**step) for step in values["steps"]]
        return Rounds(**{**values, "last": tuple(values["last"])}, point=Point.unpack(part.tensors, theta2))

    def __str__(self) -> str:
        losses = ", ".join(f"{step.loss:.3f}" for step in self.steps)
        return (
            f"{len(self.steps)} steps, held-out loss of the network {self.start:.3f} -> {losses}; of the last "
            f"linear model {self.last_loss:.3f}; {self.reason}"
        )


def search_rounds(
    problem: Problem,
    choice: Choice,
    seen: Tensor,
    held: Tensor,
    *,
    most: int | str,
    parametrization: str,
    generator: torch.Generator,
    progress: Progress,
    metric: str = "plain",
) -> Rounds:
    """Move θ̄₂ while the network's loss on held-out samples falls; then choose the last linear model's penalties.

    Args:
        problem: The data, the network and the loss.
        choice: Says the penalty of the probe that the rounds start from.
        seen: Samples to fit to.
        held: Samples to choose by.
        most: Most linearizations, or "auto".
        parametrization: The variables that w₂ is penalized in.
        generator: Of views and signs.
        progress: Shows how far it is.
        metric: What w₂ is penalized in.
    """
    checkpoint, theta2 = problem.checkpoint, problem.linearization.theta2
    kept = load_part(checkpoint, SEARCH, generator)
    if kept is not None:
        rounds = Rounds.unpack(kept, theta2)
        if kept.values["done"]:
            return rounds
    else:
        point = _start(problem, choice.omega, problem.all_views(seen))
        start = _network_loss(problem, point, held)
        rounds = Rounds(start, point, last_loss=start)
    least = min(LIGHTEST * choice.omega, lightest(problem.probe)) * (1 - 1e-6)
    heads = [head for head in (choice.omega * factor for factor in HEADS) if head >= least]
    limit = MOST if isinstance(most, str) else int(most) - 1
    asked = "are taken" if isinstance(most, str) else "were asked for"
    rounds.reason = f"at most {limit} steps {asked}"
    shared: dict[str, Any] = {"parametrization": parametrization, "metric": metric, "generator": generator}
    with progress.step("rounds") as done:
        done(len(rounds.steps), limit)
        try:
            for k in range(len(rounds.steps), limit):
                rows = torch.cat([problem.random_views(seen, generator), held])
                subspace = _subspace(problem, rounds.point, rows, len(seen), **shared)
                found, head = None, rounds.steps[-1].w1 if rounds.steps else choice.omega
                for before, directions in itertools.pairwise((0, *(DIRECTIONS if k == 0 else DIRECTIONS[:-1]))):
                    grow(subspace, choice.omega, PLACE, directions - before, tolerance=0.0)
                    found = _best_step(problem, rounds.point, subspace, heads, head, held, directions)
                    if found is not None and found[0].loss < rounds.last_loss * (1 - NEGLIGIBLE):
                        break
                    found = None
                rounds.passes += subspace.features.passes * len(rows) / len(problem.store)
                if found is None:
                    rounds.reason = "no further step lowered the network's held-out loss"
                    break
                rounds.steps.append(found[0])
                rounds.point, rounds.last_loss = found[1], found[0].loss
                keep_part(checkpoint, SEARCH, rounds.pack(done=False), generator)
                done(k + 1, limit)
            if rounds.steps:
                _choose_last(problem, rounds, seen, held, **shared)
            keep_part(checkpoint, SEARCH, rounds.pack(done=True), generator)
        except ConvergenceError as error:
            rounds.reason = str(error)
        except KeyboardInterrupt:
            rounds.interrupted = True
    return rounds


def repeat_rounds(
    problem: Problem,
    choice: Choice,
    rounds: Rounds,
    *,
    parametrization: str,
    generator: torch.Generator,
    progress: Progress,
    metric: str = "plain",
) -> tuple[Point, Solution]:
    """Repeat the steps that were found on all samples, and solve the last linearization there."""
    everything = torch.arange(problem.n)
    checkpoint, first = problem.checkpoint, 0
    kept = load_part(checkpoint, REPETITION, generator)
    if kept is None:
        point = _start(problem, choice.omega, problem.all_views(everything))
    else:
        point, first = Point.unpack(kept.tensors, problem.linearization.theta2), len(kept.values["objective"])
    shared: dict[str, Any] = {"parametrization": parametrization, "metric": metric, "generator": generator}
    solution = Solution("rounds", False, f"{len(rounds.steps)} steps")
    if kept is not None:
        solution.objective, solution.passes = kept.values["objective"], kept.values["passes"]
    with progress.step("rounds on all samples") as done:
        done(first, len(rounds.steps) + 1)
        for i, step in enumerate(rounds.steps[first:], first):
            subspace = _subspace(problem, point, problem.random_views(everything, generator), problem.n, **shared)
            for before, directions in itertools.pairwise((0, *DIRECTIONS)):  # as in the search
                if directions <= step.iterations:
                    grow(subspace, choice.omega, PLACE, directions - before, tolerance=0.0)
            found = subspace.minimum(Penalties(step.w1, step.w2 / problem.n))
            solution.objective.append(found.objective)
            solution.passes += subspace.features.passes / problem.views
            point = point.moved(*_weights(subspace, found))
            part = Part({"objective": solution.objective, "passes": solution.passes}, point.pack())
            keep_part(checkpoint, REPETITION, part, generator)
            done(i + 1, len(rounds.steps) + 1)
        head, light = rounds.last
        if light < float("inf"):
            rows = problem.all_views(everything)
            subspace = _subspace(problem, point, rows, len(rows), **shared)
            for stage in LAST[: rounds.stages]:
                grow(subspace, rounds.steps[-1].w1, *stage)
            found = subspace.minimum(Penalties(head, light / len(rows)))
            solution.objective.append(found.objective)
            solution.passes += subspace.features.passes
            point = point.with_weights(*_weights(subspace, found))
    return point, solution


def _start(problem: Problem, penalty: float, rows: Tensor) -> Point:
    weight = problem.weight_of(rows)
    probe = fit_probe(
        problem.store.features[rows],
        problem.y[rows],
        problem.loss,
        sample_weight=weight,
        penalty=penalty,
        outputs=problem.loss.n_outputs(problem.y),
    )
    return Point(problem.linearization.theta2, probe.omega, probe.omega, probe.bias)


def _subspace(problem: Problem, point: Point, rows: Tensor, count: int, **shared: Any) -> Subspace:
    """Return the problem at a point, fitted to the first `count` of some samples of the store.

    Its first direction of w₂ is the move that led there, as momentum is in first-order methods.
    """
    store = problem.store.rows(rows)
    lin = point.linearization(problem)
    if lin is not problem.linearization:
        store = store.at(lin)
    weight = problem.weight_of(rows)
    subspace = make_subspace(
        store,
        problem.y[rows],
        problem.loss,
        [point.w1],
        point.omega,
        point.b,
        torch.arange(count),
        mode="full",
        weight=weight,
        **shared,
    )
    if point.move is not None:
        subspace.add_w2(subspace.features.variables(point.move))
    return subspace


def _weights(subspace: Subspace, found: Combination) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    w1, b, w2 = subspace.weights(found)
    if w1 is None:
        raise ConvergenceError("rounds need w₁")
    return w1, b, w2


def _best_step(
    problem: Problem, point: Point, subspace: Subspace, heads: list[float], head: float, held: Tensor, directions: int
) -> tuple[Step, Point] | None:
    """Find the penalties whose step has the least loss of the real network on held-out samples, the subspace's last.

    The network is evaluated at a few places of the grid alone: from where the linear model's own held-out loss is
    least, which costs nothing, to heavier penalties of w₂ (shorter steps) or lighter ones while its loss falls; then
    in the same way from the penalty of w₁ `head` to others.
    """
    places = len(subspace.y) - len(held) + torch.arange(len(held))
    linear = held_losses(subspace, problem.loss, problem.y[held], places, problem.weight_of(held), [head])
    place = int(linear.argmin())
    best: tuple[Step, Point] | None = None

    @functools.cache
    def loss(j: int, k: int) -> float:
        nonlocal best
        there = point.moved(*_weights(subspace, subspace.minimum(Penalties(heads[j], GRID[k] * subspace.unit))))
        value = _network_loss(problem, there, held)
        if not math.isfinite(value):
            return math.inf
        if best is None or value < best[0].loss:
            best = Step(heads[j], GRID[k] * subspace.length, directions, value), there
        return value

    @functools.cache
    def least(j: int) -> float:
        nonlocal place
        found = _descend(functools.partial(loss, j), place, len(GRID))
        if best is not None and best[0].w1 == heads[j]:
            place = found
        return loss(j, found)

    _descend(least, heads.index(head), len(heads))
    return best


def _descend(loss: Callable[[int], float], place: int, count: int) -> int:
    """Return the place of a minimum among `count` places: downwards from one, the way that begins steeper."""
    ways = [way for way in (-1, 1) if 0 <= place + way < count]
    way = min(ways, key=lambda way: loss(place + way))
    while 0 <= place + way < count and (loss(place + way) < loss(place) or loss(place) == math.inf):
        place += way
    return place


def _network_loss(problem: Problem, point: Point, held: Tensor) -> float:
    """Return the loss of the network itself at a point, on some samples."""
    lin, rows = problem.linearization, []
    with torch.no_grad():
        for batch in held.split(_BATCH):
            rows.append(lin.network(point.theta2, problem.store.z0(batch)).to(point.w1) @ point.w1 + point.b)
    weight = problem.weight_of(held)
    return float(problem.loss.value(torch.cat(rows).double(), problem.y[held], weight))


def _choose_last(problem: Problem, rounds: Rounds, seen: Tensor, held: Tensor, **shared: Any) -> None:
    """Choose the penalties of the last linear model, or none where the network at this point is better."""
    views = problem.all_views(seen)
    rows = torch.cat([views, held])
    subspace = _subspace(problem, rounds.point, rows, len(views), **shared)
    places = len(views) + torch.arange(len(held))
    weight = problem.weight_of(held)
    last = rounds.steps[-1].w1
    heads = [last * factor for factor in AROUND]
    for stages, stage in enumerate(LAST, 1):
        grow(subspace, last, *stage)
        losses = held_losses(subspace, problem.loss, problem.y[held], places, weight, heads)
        if not losses.min() < rounds.last_loss * (1 - NEGLIGIBLE):
            if stages == 1:
                continue  # one direction may be too few
            break
        j, k = divmod(int(losses.argmin()), len(GRID))
        rounds.last, rounds.last_loss = (heads[j], GRID[k] * subspace.length), float(losses.min())
        rounds.stages = stages
        found = subspace.minimum(Penalties(heads[j], GRID[k] * subspace.unit))
        rounds.point = rounds.point.with_weights(*_weights(subspace, found))
    rounds.passes += subspace.features.passes * len(rows) / len(problem.store)
