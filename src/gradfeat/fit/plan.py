"""How a problem is to be solved (step 3): one value, which every solver takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gradfeat.solvers.finetune import Search
from gradfeat.solvers.schedule import Schedule, paper_schedule
from gradfeat.solvers.subspace import Penalties

RATES = (1e-3, 3e-3)
"""Learning rates at which θ̄₂ moves, that are tried where nothing else is said."""


@dataclass(frozen=True)
class Plan:
    """How a problem is to be solved.

    Attributes:
        mode: "activation", "gradient", "full" or "finetune".
        solver: Of `gradfeat.fit.SOLVERS`, or "auto" (`gradfeat.fit.select_solver`).
        penalties: λ₁ and λ₂ where they are given; ω̄ is then the problem's probe. None: chosen on validation data, which
            are a part of the training data.
        rounds: 1: one linearization, at the pre-trained θ̄₂. More: passes over the samples in which θ̄₂ moves in each
            trial, "auto" for `gradfeat.fit.rounds.PASSES` (see there). Of mode "full" alone.
        rates: Of rounds: AdamW's learning rates that are tried, ascending.
        rival: Of rounds: whether fine-tuning is tried beside them (`gradfeat.fit.rival`).
        parametrization: The variables that w₂ is penalized and trained in.
        metric: What w₂ is penalized in: "plain", "whitened" (see `gradfeat.solvers.subspace.Subspace`), or "auto":
            plain where penalties are given, whitened where they are chosen; the better of both on validation data where
            there are fewer than `gradfeat.fit.choose.BOTH_BELOW` samples.
        splits: Validation parts, one after another; None: up to five for few samples, no sample in two of them, or
            three at random where a class has fewer than five; else one (see `gradfeat.fit.splits`).
        schedule: Of Adam and SGD; None: the paper's.
        finetuning: What fine-tuning chooses from, also as the rival of rounds; None:
            `gradfeat.solvers.finetune.honest_search`.
        seed: Of splits, views, signs of the preconditioner, order of samples; None draws one.
    """

    mode: str = "full"
    solver: str = "auto"
    penalties: Penalties | None = None
    rounds: int | str = 1
    rates: tuple[float, ...] = RATES
    rival: bool = False
    parametrization: str = "standard"
    metric: str = "auto"
    splits: int | None = None
    schedule: Schedule | None = None
    finetuning: Search | None = None
    seed: int | None = None

    def draw(self, below: int = 2**31 - 1) -> int:
        """Return a number below a limit: the seed's first one."""
        return int(np.random.RandomState(self.seed).randint(below))

    def generator(self) -> torch.Generator:
        """Return a source of random numbers, of this seed."""
        return torch.Generator().manual_seed(self.draw())

    def schedule_of(self, solver: str, n: int) -> Schedule:
        """Return the schedule, by default the paper's for an optimizer and n samples."""
        return self.schedule or paper_schedule(solver, n)
