"""effort="auto": how deep θ₂ goes, and whether θ̄₂ moves, by a look at some of the samples.

Half of at most `MOST` samples are learnt, by the passes of one trial of `gradfeat.fit.rounds`, the other half judges.
The network moves in its topmost block, in two, four, eight ... of them, while that lowers the loss; where none is
better than the probe, the task is near what the network knows, and one linearization of the topmost block is all that
is fitted. All is counted in passes, so that a look ends with the same on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gradfeat.errors import Theta2Error
from gradfeat.fit.depth import WORTH, Depth, doubling
from gradfeat.fit.penalties import NEGLIGIBLE
from gradfeat.fit.plan import RATES, Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import hold_out
from gradfeat.linearization.theta2 import Candidate
from gradfeat.progress import Progress
from gradfeat.solvers.probe import Probe

MOST = 1000
"""Samples that are looked at, at most; half of them are learnt."""

FEWEST = 100
"""Fewer samples say too little: θ₂ is then the topmost block, and θ̄₂ stays."""

STAGE = "look at depths"


@dataclass(frozen=True)
class Look:
    """What a look at some samples found.

    Attributes:
        probe: Held-out loss of the probe.
        tried: The depths that were looked at, with the held-out loss to which θ̄₂ moves.
        modules: θ₂ of the best of them; None where no move was better than the probe.
        passes: Work, in passes of training over the samples that were looked at.
    """

    probe: float
    tried: Sequence[Depth] = ()
    modules: tuple[str, ...] | None = None
    passes: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        losses = ", ".join(f"{depth.loss:.3f} down to {depth.modules[-1]}" for depth in self.tried)
        ended = "the topmost block, where it is" if self.modules is None else f"θ̄₂ moves, down to {self.modules[-1]}"
        return f"held-out loss {self.probe:.3f} of the probe; as θ̄₂ moves {losses}: {ended}"


def look(
    candidates: Sequence[Candidate],
    build: Callable[[Sequence[str], Probe | None], Problem],
    plan: Plan,
    progress: Progress,
    *,
    all_depths: bool = False,
) -> Look:
    """Move θ̄₂ in 1, 2, 4, 8 ... blocks of the network, while the loss on held-out samples falls.

    Args:
        candidates: The choices of θ₂ from the top down.
        build: Returns the problem of some samples with one choice, and with a probe that is known or None.
        plan: Its seed is that of all depths.
        progress: Shows how far it is.
        all_depths: Whether deeper ones are looked at although the loss no longer falls.

    Raises:
        Theta2Error: There is no candidate.
    """
    if not candidates:
        raise Theta2Error("no layer with a weight reaches the features; name the parameters of θ₂ instead")
    tried: list[Depth] = []
    chosen: Depth | None = None
    start = best = least = float("inf")
    probe: Probe | None = None
    passes, quick = 0.0, replace(plan, rounds="auto", rates=RATES[:1])
    depths = list(doubling(candidates))
    with progress.step(STAGE) as report:
        for k, candidate in enumerate(depths):
            begun = time.perf_counter()
            problem = build(candidate.modules, probe)
            probe = problem.probe
            run = Run([hold_out(problem, plan.seed, 0.5)], plan.generator(), Progress(False))
            rounds = search_rounds(problem, quick, run)
            if rounds.interrupted:
                raise KeyboardInterrupt
            passes += rounds.passes
            parameters = sum(value.numel() for value in problem.linearization.theta2.values())
            loss = rounds.trials[0].loss
            tried.append(Depth(candidate.modules, parameters, loss, time.perf_counter() - begun))
            report(k + 1, len(depths))
            if k == 0:
                start = best = rounds.start
            if loss < best * (1 - WORTH):
                best, chosen = loss, tried[-1]
            if loss >= least * (1 - NEGLIGIBLE) and not all_depths:
                break
            least = min(least, loss)
    return Look(start, tried, None if chosen is None else chosen.modules, passes)
