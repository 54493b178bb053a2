"""One fit while it goes on: what is random in it, its clock, its progress, its notes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.splits import Split, splits_of
from gradfeat.progress import Progress


@dataclass
class Run:
    """One fit while it goes on.

    Attributes:
        splits: Parts to choose on, the same for all choices; none if there are too few samples.
        generator: Of views and of the preconditioner's signs.
        progress: Shows how far it is.
        notes: What the user should know.
        passes: Work that led to nothing.
        begun: When it began, in seconds of `time.perf_counter`.
    """

    splits: list[Split]
    generator: torch.Generator
    progress: Progress = field(default_factory=lambda: Progress(False))
    notes: list[str] = field(default_factory=list)
    passes: float = 0.0
    begun: float = field(default_factory=time.perf_counter)

    @staticmethod
    def of(problem: Problem, plan: Plan, progress: Progress | None = None) -> Run:
        """Return the run of a plan's seed."""
        generator = plan.generator()
        return Run(splits_of(problem, plan), generator, progress or Progress(False))

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.perf_counter() - self.begun
