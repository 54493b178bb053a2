"""Step 3 without a learning rate: `full` and `gradient` solved with chosen penalties, once or in rounds.

A fit has three parts: choose penalties on held-out training data; with rounds, move θ̄₂ while the network's held-out
loss falls; solve the last linearization on all training data.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.fit.checkpoint import Part, named_w2, resumed, w2_of
from gradfeat.fit.fitting import Fit, Problem, hold_out, loss_at, new_model
from gradfeat.fit.rounds import FIRST, Point, repeat_rounds, search_rounds
from gradfeat.fit.selection import (
    ONE_SPLIT_FROM,
    PARTS,
    SPLITS,
    STAGES,
    Choice,
    Stages,
    Tried,
    as_pair,
    choose_penalties,
    lightest,
    make_subspace,
    of_omegas,
    probes_of,
)
from gradfeat.progress import Progress
from gradfeat.solvers.first_order import History
from gradfeat.solvers.gradient_features import Weights
from gradfeat.solvers.probe import folds
from gradfeat.solvers.subspace import GAP, Penalties, Solution

GIVEN_ITERATIONS = 200
"""Most iterations with given penalties, which are solved to convergence."""

ASTRAY = 0.05
"""Share of the rounds' gain by which the loss may be higher where the rounds are repeated on all samples."""


def fit_convex(
    problem: Problem,
    mode: str,
    *,
    penalty: float | Sequence[float] | str = "auto",
    rounds: int | str = 1,
    parametrization: str = "standard",
    metric: str = "auto",
    splits: int | None = None,
    random_state: int | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit `full` or `gradient` without a learning rate, with chosen or given penalties.

    Given penalties are solved to convergence, chosen ones for as many iterations as were judged on held-out data.

    Args:
        problem: From `prepare`, with samples that do not change.
        mode: "full" or "gradient"; rounds are of "full".
        penalty: "auto"; or λ of w₁ and of w₂, one number for both or a pair. ω̄ is then the problem's probe.
        rounds: Most linearizations; "auto" goes on while the held-out loss falls (see `gradfeat.fit.rounds`).
        parametrization: The variables that w₂ is penalized in.
        metric: What w₂ is penalized in: "plain", "whitened" (see `gradfeat.solvers.subspace.Subspace`), or "auto":
            plain where its penalty is given, whitened where it is chosen; the better of both on held-out data where
            there are fewer than `ONE_SPLIT_FROM` samples.
        splits: Parts held out, one after another, to choose penalties on; None: five for few samples, each sample in
            one of them, or three at random where a class has fewer than five; else one.
        random_state: Seed of the splits and of the preconditioner.
        progress: Shows how far it is.
    """
    progress = progress or Progress(False)
    begun = time.perf_counter()
    store, y, loss, weight = problem.store, problem.y, problem.loss, problem.weight
    generator = _generator(random_state)
    shared: dict[str, Any] = {"parametrization": parametrization, "generator": generator}
    parts = _splits(problem, random_state, splits)
    notes: list[str] = []
    choice: Choice | None = None
    start: Weights | None = None
    if rounds != 1 and problem.head is not None:
        raise ConfigurationError("rounds move θ̄₂ with ω̄, which is fixed from outside: give rounds=1")
    if isinstance(penalty, str):
        if rounds == 1:
            choice, start = _choose(problem, mode, parts, progress, STAGES, metric, **shared)
        else:  # which begin with an ω̄ of their own
            choice, _ = _choose(replace(problem, omegas={}), mode, parts, progress, FIRST, metric, **shared)
        if choice is None:
            notes.append(f"{mode}: too few samples to choose penalties on held-out data")
    spent = 0.0  # passes that led to nothing
    if rounds != 1 and choice is not None:
        fit, spent = _fit_rounds(problem, choice, parts[0], rounds, progress, begun, metric=choice.metric, **shared)
        if fit is not None:
            return fit
        notes.append(f"{mode}: no step of the network was better than one linearization")
        choice, start = _choose(problem, mode, parts, progress, STAGES, metric, **shared)  # as without rounds
    elif rounds != 1:
        notes.append(f"{mode}: one linearization, since there is no held-out data to choose steps on")
    omega, probes = problem.head or problem.probe, [problem.probe]
    if choice is not None:
        probes = probes_of(store.features, y, loss, weight, torch.arange(len(store)), lightest(problem.probe))
        best = min(probes, key=lambda probe: abs(probe.penalty - choice.omega))
        if not choice.gradients:
            notes.append(f"{mode}: on held-out training data no gradient term was better than the probe alone")
            model = new_model(problem, mode, parametrization, best)
            return Fit(model, None, None, time.perf_counter() - begun, notes, choice)
        omega, metric = problem.head or best, choice.metric
    elif metric == "auto":
        metric = "plain"
    heads = [probe.omega for probe in probes] if mode == "full" else []
    everything = torch.arange(len(store))
    subspace = make_subspace(
        store,
        y,
        loss,
        heads,
        omega.omega,
        omega.bias,
        everything,
        mode=mode,
        weight=weight,
        metric=metric,
        **shared,
    )
    if choice is not None:
        penalties = choice.penalties(problem.n)
    elif isinstance(penalty, str):
        penalties = Penalties(problem.probe.penalty, subspace.length / problem.n)
    else:
        penalties = Penalties(*as_pair(penalty))
    if start is not None:
        subspace.add_w2(subspace.features.variables(start))
    with progress.step("fit") as done:
        if choice is None:  # how many iterations it takes is not known
            combination, solution = subspace.solve(
                penalties, gap=GAP, iterations=GIVEN_ITERATIONS, report=lambda k: done(k, None)
            )
        else:  # no longer than what was judged: under light penalties the optimum has learnt noise by heart
            most = choice.iterations
            combination, solution = subspace.solve(penalties, iterations=most, report=lambda k: done(k, most))
            if not (solution.converged or solution.interrupted):
                solution.reason = f"{len(solution.objective)} iterations, as chosen on held-out data"
    solution.passes = spent + subspace.features.passes + (0.0 if choice is None else choice.passes)
    solution.seconds = time.perf_counter() - begun
    w1, b, w2 = subspace.weights(combination)
    point = Point(problem.linearization.theta2, omega.omega, omega.omega if w1 is None else w1, b, w2)
    model = point.model(problem, parametrization, mode)
    _check(model, mode)
    if not solution.converged and (choice is None or solution.interrupted):
        notes.append(f"{mode}: not converged: {solution}")
    return Fit(model, _history(solution), None, solution.seconds, notes, choice, solution)


def choose(
    problem: Problem,
    mode: str,
    *,
    parametrization: str = "standard",
    metric: str = "auto",
    random_state: int | None = None,
    progress: Progress | None = None,
    stages: Stages = STAGES,
) -> Choice | None:
    """Choose the penalties alone, as `fit_convex` does; None where there are too few samples to hold some out."""
    shared: dict[str, Any] = {"parametrization": parametrization, "generator": _generator(random_state)}
    splits = _splits(problem, random_state)
    return _choose(problem, mode, splits, progress or Progress(False), stages, metric, **shared)[0]


def _choose(
    problem: Problem,
    mode: str,
    splits: list[tuple[torch.Tensor, torch.Tensor]],
    progress: Progress,
    stages: Stages,
    metric: str,
    *,
    generator: torch.Generator,
    **shared: Any,
) -> tuple[Choice | None, Weights | None]:
    """Return the choice and the w₂ that it is of (see `choose_penalties`), under the metric that is best."""
    if not splits:
        return None, None
    checkpoint = problem.checkpoint
    omegas = problem.omegas.get(mode)

    def under(name: str) -> tuple[Choice, Weights | None]:
        return resumed(
            checkpoint,
            f"{of_omegas(mode, omegas)}-penalties-{stages}-{name}",
            lambda: choose_penalties(
                problem.store,
                problem.y,
                problem.loss,
                [(problem.random_views(seen, generator), held) for seen, held in splits],
                problem.probe,
                mode=mode,
                weight=problem.weight,
                generator=generator,
                progress=progress,
                stages=stages,
                checkpoint=checkpoint,
                head=problem.head,
                omegas=omegas,
                metric=name,
                **shared,
            ),
            lambda found: Part(asdict(found[0]), named_w2(found[1])),
            lambda part: _unpack(part, problem.linearization.theta2),
            generator,
        )

    metrics = [metric]
    if metric == "auto":
        metrics = ["whitened"] if problem.n >= ONE_SPLIT_FROM else ["plain", "whitened"]
    found = [under(name) for name in metrics]
    choice, w2 = min(found, key=lambda pair: pair[0].loss)
    return replace(choice, passes=sum(other.passes for other, _ in found)), w2


def _unpack(part: Part, theta2: Mapping[str, torch.Tensor]) -> tuple[Choice, Weights | None]:
    choice = Choice(**{**part.values, "path": [Tried(**tried) for tried in part.values["path"]]})
    return choice, w2_of(part.tensors, theta2)


def _generator(random_state: int | None) -> torch.Generator:
    return torch.Generator().manual_seed(np.random.RandomState(random_state).randint(2**31 - 1))


def _fit_rounds(
    problem: Problem,
    choice: Choice,
    split: tuple[torch.Tensor, torch.Tensor],
    most: int | str,
    progress: Progress,
    begun: float,
    **shared: Any,
) -> tuple[Fit | None, float]:
    """Search steps on a split, repeat them on all samples; None where one linearization has less held-out loss.

    Returns:
        The fit, and the passes of the choice and of the search.
    """
    parametrization = shared["parametrization"]
    search = search_rounds(problem, choice, *split, most=most, progress=progress, **shared)
    found = (
        search.point.model(problem, parametrization) if search.steps else new_model(problem, "full", parametrization)
    )
    notes: list[str] = []
    solution: Solution | None = None
    interrupted = search.interrupted
    if not interrupted:
        if not search.steps or search.last_loss > choice.held[0]:  # on the same samples
            return None, choice.passes + search.passes
        try:
            point, solution = repeat_rounds(problem, choice, search, progress=progress, **shared)
            repeated = point.model(problem, parametrization)
            _check(repeated, "full")
            # what was held out has been fitted to now; a clearly higher loss there says that the repetition went astray
            allowed = search.last_loss + ASTRAY * (search.start - search.last_loss)
            if not loss_at(problem, repeated, split[1]) <= allowed:
                raise ConvergenceError("the loss rose where it was held out before")
            found = repeated
        except ConvergenceError as error:
            notes.append(f"full: the rounds went astray when repeated on all samples: {error}; {_SEARCHED}")
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        more = "" if problem.checkpoint is None else "; the same fit goes on from its checkpoint"
        notes.append(f"full: interrupted in the rounds after {len(search.steps)} steps; {_SEARCHED}{more}")
    losses, passes = [step.loss for step in search.steps], choice.passes + search.passes
    if solution is not None:
        solution.passes += passes
        losses, passes = solution.objective, solution.passes
    seconds = time.perf_counter() - begun
    if solution is not None:
        solution.seconds = seconds
    history = History(losses, passes, seconds, "interrupted" if interrupted else "finished")
    return Fit(found, history, None, seconds, notes, choice, solution, search), passes


_SEARCHED = "the weights are those of the search, which left a part of the samples out"


def _splits(
    problem: Problem, random_state: int | None, count: int | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return pairs of samples (seen, held out), by places of their first views; none if there are too few.

    Of few samples each is held out once: parts drawn at random leave a third of them out, and the least of many means
    over so few is often that of a penalty far too light.
    """
    first = np.random.RandomState(random_state).randint(2**31 - 1 - SPLITS)
    if count is None and problem.n < ONE_SPLIT_FROM:
        pairs, note = folds(problem.y[: problem.n].cpu(), problem.loss, PARTS, first)
        if pairs and not note:
            return [(torch.from_numpy(seen), torch.from_numpy(held)) for seen, held in pairs]
        count = SPLITS  # rare classes
    splits = [hold_out(problem, first + i) for i in range(count or 1)]
    return splits if all(len(held) for _, held in splits) else []


def _history(solution: Solution) -> History:
    stopped = "interrupted" if solution.interrupted else "finished"
    return History(solution.objective, solution.passes, solution.seconds, stopped)


def _check(model: Any, mode: str) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in model.trained()):
        raise ConvergenceError(f"the weights of {mode} are not finite")
