"""Choosing fine-tuning's optimizer and learning rate on held-out training data, so that it is a fair rival."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.solvers.schedule import PAPER, PAPER_FINETUNE_SGD, Schedule

FINETUNE_GRID: tuple[Schedule, ...] = (
    *(replace(PAPER_FINETUNE_SGD, learning_rate=rate) for rate in (1e-3, 3e-3, 1e-2, 3e-2)),
    *(replace(PAPER, learning_rate=rate) for rate in (1e-4, 1e-3)),
)
"""SGD with momentum and Adam, both with the paper's other settings, at several learning rates."""


@dataclass(frozen=True)
class Selection:
    """What was tried, and what won.

    Attributes:
        best: The winner.
        scores: Each candidate's score on held-out training data; -inf where training diverged.
    """

    best: Schedule
    scores: list[tuple[Schedule, float]]

    def __str__(self) -> str:
        return f"{self.best}, the best of {len(self.scores)}"


def trial_of(candidate: Schedule) -> str:
    """Return the name of a run that tries a candidate."""
    return f"trial of {candidate}"


def select(candidates: Sequence[Schedule], run: Callable[[Schedule], float]) -> Selection:
    """Train with each candidate and return the one with the highest score.

    Args:
        candidates: At least one; among equals the first wins.
        run: Trains with a schedule and returns a score on held-out data; a run that diverges scores -inf.

    Raises:
        ConfigurationError: There is no candidate.
        ConvergenceError: Every candidate diverged.

    Example:
        >>> select(FINETUNE_GRID, lambda schedule: -abs(schedule.learning_rate - 0.01)).best.learning_rate
        0.01
    """
    if not candidates:
        raise ConfigurationError("there must be at least one schedule to choose from")
    scores: list[tuple[Schedule, float]] = []
    for candidate in candidates:
        try:
            score = run(candidate)
        except ConvergenceError:
            score = -math.inf
        scores.append((candidate, score if math.isfinite(score) else -math.inf))
    best, score = max(scores, key=lambda pair: pair[1])
    if score == -math.inf:
        raise ConvergenceError(f"fine-tuning diverged with every one of: {', '.join(map(str, candidates))}")
    return Selection(best, scores)
