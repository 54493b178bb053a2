"""theta2="search": how deep θ₂ goes, chosen by the loss on held-out training data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradfeat.convex import choose
from gradfeat.fitting import Problem
from gradfeat.linearization.theta2 import Candidate
from gradfeat.progress import Progress
from gradfeat.selection import COMMON, NEGLIGIBLE


@dataclass(frozen=True)
class Depth:
    """One depth that was tried.

    Attributes:
        modules: θ₂, top first.
        parameters: Number of its parameters.
        loss: Loss on held-out training data with the best penalties; of the probe alone where that is less.
        seconds: Time that it took.
    """

    modules: tuple[str, ...]
    parameters: int
    loss: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"down to {self.modules[-1]} ({self.parameters:,} parameters): held-out loss {self.loss:.4f}, "
            f"{self.seconds:.0f} s"
        )


def choose_depth(
    candidates: Sequence[Candidate],
    build: Callable[[Sequence[str]], Problem],
    *,
    mode: str,
    parametrization: str = "standard",
    random_state: int | None = None,
    progress: Progress | None = None,
) -> tuple[Problem, list[Depth]]:
    """Linearize 1, 2, 4, 8 ... blocks and choose penalties for each, while the held-out loss falls.

    A deeper θ₂ costs more to fit. So a depth is kept only where its loss is lower by more than a negligible share.

    Args:
        candidates: The choices of θ₂ from the top down (`gradfeat.linearization.build.theta2_candidates`).
        build: Returns the problem of one choice.
        mode: "full" or "gradient", the model whose held-out loss counts.
        parametrization: The variables that w₂ is penalized in.
        random_state: Seed of the held-out part, the same for all depths.
        progress: Shows how far it is.

    Returns:
        The problem with the least held-out loss, and all depths that were tried, the chosen one the first of the least
        loss. Only the topmost block, and nothing tried, where there are too few samples to hold some out.
    """
    progress = progress or Progress(False)
    best, tried = build(candidates[0].modules), list[Depth]()
    count = 1
    problem = best
    while True:
        begun = time.perf_counter()
        candidate = candidates[min(count, len(candidates)) - 1]
        if count > 1:
            problem = build(candidate.modules)
        choice = choose(
            problem,
            mode,
            parametrization=parametrization,
            random_state=random_state,
            progress=progress,
            stages=COMMON,
        )
        if choice is None:
            return best, []
        found = Depth(candidate.modules, candidate.parameters, choice.loss, time.perf_counter() - begun)
        better = not tried or found.loss < min(depth.loss for depth in tried) * (1 - NEGLIGIBLE)
        tried.append(found)
        if better:
            best = problem
        if not better or count >= len(candidates):
            return best, tried
        count *= 2
