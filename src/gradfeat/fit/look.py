"""effort="auto": how deep θ₂ goes, and whether θ̄₂ moves, by a look at some of the samples.

Half of at most `MOST` samples are learnt, by the passes of one trial of `gradfeat.fit.rounds`, the other half judges.
The network moves in its topmost block, in two, four, eight ... of them, while that lowers the loss; where none is
better than the probe, the task is near what the network knows, and one linearization of the topmost block is all that
is fitted. All is counted in passes, so that a look ends with the same on every machine that has the memory for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from gradfeat.errors import LinearizationError, Theta2Error
from gradfeat.fit.checkpoint import Part
from gradfeat.fit.choose import choose
from gradfeat.fit.depth import SHORT, WORTH, Depth, doubling
from gradfeat.fit.penalties import NEGLIGIBLE
from gradfeat.fit.plan import RATES, Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import hold_out
from gradfeat.linearization.theta2 import Candidate
from gradfeat.progress import Progress
from gradfeat.samples.store import available_memory
from gradfeat.solvers.probe import Probe

MOST = 1000
"""Samples that are looked at, at most; half of them are learnt."""

FEWEST = 100
"""Fewer samples say too little: θ₂ is then the topmost block, and θ̄₂ stays."""

FEWEST_JUDGES = 25
"""So do fewer held-out ones, which there are where most classes have one sample."""

STAGE = "look at depths"

_COPIES = 8
"""Of θ₂ in memory while it moves: itself, w₂, its gradient, two moments, where it is, where it ends, one to spare."""


@dataclass(frozen=True)
class Look:
    """What a look at some samples found.

    Attributes:
        probe: Held-out loss of the probe, after a temperature; NaN where there was nothing to judge it by.
        linear: That of one linearization of the topmost block, or of the probe where it is less.
        tried: The depths that were looked at, with the held-out loss to which θ̄₂ moves.
        modules: θ₂ of the best of them; None where no move was clearly better than the probe, and better than one
            linearization.
        notes: What the user should know: depths that were left out.
        passes: Work, in passes of training over the samples that were looked at.
    """

    probe: float
    linear: float
    tried: Sequence[Depth] = ()
    modules: tuple[str, ...] | None = None
    notes: Sequence[str] = ()
    passes: float = field(default=0.0, compare=False)

    def pack(self) -> Part:
        """Return all of it, as a part of a checkpoint."""
        return Part(asdict(self))

    @staticmethod
    def unpack(part: Part) -> Look:
        """Return what `pack` was given."""
        values = dict(part.values)
        tried = [Depth(**{**depth, "modules": tuple(depth["modules"])}) for depth in values.pop("tried")]
        modules = values.pop("modules")
        return Look(tried=tried, modules=None if modules is None else tuple(modules), **values)

    def __str__(self) -> str:
        ended = "the topmost block, where it is" if self.modules is None else f"θ̄₂ moves, down to {self.modules[-1]}"
        if not self.tried:
            return "; ".join([*self.notes, ended])
        losses = ", ".join(f"{depth.loss:.3f} down to {depth.modules[-1]}" for depth in self.tried)
        found = (
            f"held-out loss {self.probe:.3f} of the probe, {self.linear:.3f} of one linearization of the topmost block"
        )
        found = f"{found}; as θ̄₂ moves {losses}"
        return f"{'; '.join([found, *self.notes])}: {ended}"


def look(
    candidates: Sequence[Candidate],
    build: Callable[[Sequence[str], Probe | None], Problem],
    plan: Plan,
    progress: Progress,
    *,
    all_depths: bool = False,
) -> Look:
    """Move θ̄₂ in 1, 2, 4, 8 ... blocks of the network, while the loss on held-out samples falls.

    A depth whose programs cannot be built is left out. Those end it that memory has no room for.

    Args:
        candidates: The choices of θ₂ from the top down.
        build: Returns the problem of some samples with one choice, and with a probe that is known or None.
        plan: Its seed is that of all depths.
        progress: Shows how far it is.
        all_depths: Whether deeper ones are looked at although the loss no longer falls.

    Raises:
        Theta2Error: There is no candidate.
        LinearizationError: The programs of none of them can be built.
    """
    if not candidates:
        raise Theta2Error("no layer with a weight reaches the features; name the parameters of θ₂ instead")
    looking = _Looking(build, replace(plan, rounds="auto", rates=RATES[:1]), all_depths)
    depths = list(doubling(candidates))
    with progress.step(STAGE) as report:
        for k, candidate in enumerate(depths):
            if not looking.goes_on(candidate):
                break
            report(k + 1, len(depths))
    return looking.found()


@dataclass
class _Looking:
    """A look while it goes on.

    Attributes:
        build: As `look` is given it.
        plan: Of one trial.
        all_depths: As `look` is given it.
        probe: Of the samples; the same at all depths, since f(x) is.
        start: Its held-out loss.
        linear: That of one linearization of the topmost block, or of the probe where it is less.
        clear: Whether the last depth was clearly better than the probe.
        tried: The depths so far.
        chosen: The best of them that is worth it.
        notes: What was left out.
        errors: Why.
        passes: Work.
        device: Of the network's programs.
    """

    build: Callable[[Sequence[str], Probe | None], Problem]
    plan: Plan
    all_depths: bool
    probe: Probe | None = None
    start: float = float("nan")
    linear: float = float("nan")
    clear: bool = False
    tried: list[Depth] = field(default_factory=list)
    chosen: Depth | None = None
    notes: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    passes: float = 0.0
    device: torch.device | None = None

    def goes_on(self, candidate: Candidate) -> bool:
        """Look at one depth; return whether a deeper one is to be looked at."""
        least = min((depth.loss for depth in self.tried), default=float("inf"))
        if self.tried and _COPIES * 4 * candidate.parameters > available_memory(self.device) // 2:
            self.notes.append(f"no room in memory to look down to {candidate.name}")
            return False
        try:
            depth = self._loss(candidate)
        except (LinearizationError, Theta2Error) as error:  # of an operation down there; the next may do without
            self.errors.append(error)
            self.notes.append(f"not looked down to {candidate.name}: {str(error).splitlines()[0]}")
            return True
        except (MemoryError, torch.OutOfMemoryError):
            if not self.tried:
                raise
            self.notes.append(f"no room in memory to look down to {candidate.name}")
            return False
        if depth is None:
            self.notes.append("too few samples to hold some out")
            return False
        self.tried.append(depth)
        if self.clear and depth.loss < (self.linear if self.chosen is None else self.chosen.loss) * (1 - WORTH):
            self.chosen = depth
        return self.all_depths or depth.loss < least * (1 - NEGLIGIBLE)

    def found(self) -> Look:
        """Return what was found."""
        if self.errors and not self.tried:
            raise self.errors[0]
        modules = None if self.chosen is None else self.chosen.modules
        return Look(self.start, self.linear, self.tried, modules, self.notes, self.passes)

    def _loss(self, candidate: Candidate) -> Depth | None:
        """Return how far θ̄₂ moves at a depth; None where too few samples can be held out."""
        begun = time.perf_counter()
        problem = self.build(candidate.modules, self.probe)
        self.probe, self.device = problem.probe, problem.linearization.device
        split = hold_out(problem, self.plan.seed, 0.5)
        if len(split.validation) < FEWEST_JUDGES:
            return None
        run = Run([split], self.plan.generator(), Progress(False))
        rounds = search_rounds(problem, self.plan, run)
        if rounds.interrupted:
            raise KeyboardInterrupt
        self.passes += rounds.passes
        self.clear = rounds.chosen is not None
        if not self.tried:
            self.start = rounds.start
            choice, _ = choose(problem, replace(self.plan, metric="whitened"), run, SHORT)
            self.linear = self.start if choice is None else min(choice.loss, self.start)
            self.passes += 0.0 if choice is None else choice.passes
        parameters = sum(value.numel() for value in problem.linearization.theta2.values())
        return Depth(candidate.modules, parameters, rounds.trials[0].loss, time.perf_counter() - begun)
