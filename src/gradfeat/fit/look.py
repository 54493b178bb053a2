"""effort="auto": how deep θ₂ goes, and whether θ̄₂ moves, by a look at some of the samples.

Half of at most `MOST` samples are learnt, by the passes of one trial of `gradfeat.fit.rounds`, the other half judges.
The network moves in its topmost block, in two, four, eight ... of them, while that lowers the loss; where none is
better than the probe, the task is near what the network knows, and one linearization of the topmost block is all that
is fitted. Where it moves, mirror images of images are judged too: one more trial at the depth found, which draws one of
the two versions of each sample at each step. All is counted in passes, so that a look ends with the same on every
machine that has the memory for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from gradfeat.errors import LinearizationError, Theta2Error
from gradfeat.fit.checkpoint import Checkpoint, Part
from gradfeat.fit.choose import choose
from gradfeat.fit.depth import SHORT, WORTH, Depth, doubling
from gradfeat.fit.judge import Judged
from gradfeat.fit.penalties import NEGLIGIBLE
from gradfeat.fit.plan import RATES, Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.rounds import SEARCH, judged_at, search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import hold_out
from gradfeat.fit.steps import Rounds
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


Build = Callable[[Sequence[str], Probe | None], Problem]
"""Returns the problem of some samples with one choice of θ₂, and with a probe that is known or None."""


@dataclass(frozen=True)
class Look:
    """What a look at some samples found.

    Attributes:
        probe: Held-out loss of the probe, after a temperature; NaN where there was nothing to judge it by.
        linear: That of one linearization of the topmost block, or of the probe where it is less.
        tried: The depths that were looked at, with the held-out loss to which θ̄₂ moves.
        modules: θ₂ of the best of them; None where no move was clearly better than the probe, and better than one
            linearization.
        with_mirrors: Held-out loss where mirror images are learnt too, at that depth; NaN where they were not tried.
        mirrors: Whether that is clearly better.
        notes: What the user should know: depths that were left out.
        passes: Work, in passes of training over the samples that were looked at.
    """

    probe: float
    linear: float
    tried: Sequence[Depth] = ()
    modules: tuple[str, ...] | None = None
    with_mirrors: float = float("nan")
    mirrors: bool = False
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
        if not math.isnan(self.with_mirrors):
            found = f"{found}; with mirror images {self.with_mirrors:.3f}"
            ended = f"{ended}, {'with' if self.mirrors else 'without'} mirror images"
        return f"{'; '.join([found, *self.notes])}: {ended}"


class LookInterrupted(KeyboardInterrupt):
    """Ctrl-C in a look, with the best so far.

    Args:
        look: What was found.
        modules: θ₂ of the best so far.
        problem: Of the samples that were looked at, with that θ₂.
        rounds: How θ̄₂ moved there.
    """

    def __init__(self, look: Look, modules: Sequence[str], problem: Problem, rounds: Rounds) -> None:
        super().__init__()
        self.look, self.modules, self.problem, self.rounds = look, modules, problem, rounds


def look(
    candidates: Sequence[Candidate],
    build: Build,
    plan: Plan,
    progress: Progress,
    *,
    all_depths: bool = False,
    mirrored: Build | None = None,
) -> Look:
    """Move θ̄₂ in 1, 2, 4, 8 ... blocks of the network, while the loss on held-out samples falls.

    A depth whose programs cannot be built is left out. Those end it that memory has no room for.

    Args:
        candidates: The choices of θ₂ from the top down.
        build: Returns the problem of some samples.
        plan: Its seed is that of all depths.
        progress: Shows how far it is.
        all_depths: Whether deeper ones are looked at although the loss no longer falls.
        mirrored: Returns the problem of the same samples with their mirror images; None: these are not judged.

    Raises:
        Theta2Error: There is no candidate.
        LinearizationError: The programs of none of them can be built.
        LookInterrupted: Ctrl-C, after there was something that could be taken.
    """
    if not candidates:
        raise Theta2Error("no layer with a weight reaches the features; name the parameters of θ₂ instead")
    looking = _Looking(build, replace(plan, rounds="auto", rates=RATES[:1], rival=False), all_depths)
    depths = list(doubling(candidates))
    total = len(depths) + (mirrored is not None)
    try:
        with progress.step(STAGE) as report:
            for k, candidate in enumerate(depths):
                if not looking.goes_on(candidate):
                    break
                report(k + 1, total)
            if mirrored is not None:
                looking.judge_mirrors(mirrored)
            report(total, total)
    except KeyboardInterrupt:
        if looking.last is None:
            raise
        raise looking.interrupted(looking.last) from None
    for checkpoint in looking.checkpoints:  # where θ̄₂ ended at each depth: of no use to the fit
        checkpoint.drop(SEARCH)
    return looking.found()


@dataclass(frozen=True)
class _Moved:
    """How θ̄₂ moved at a depth, and how that is judged; the samples are let go."""

    modules: tuple[str, ...]
    rounds: Rounds
    judged: Judged


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
        tried: The depths so far.
        chosen: The best of them that is worth it.
        best: How θ̄₂ moved there.
        last: How it moved at the last depth.
        with_mirrors: Held-out loss of the trial with mirror images.
        mirrors: Whether they are taken.
        notes: What was left out.
        errors: Why.
        passes: Work.
        device: Of the network's programs.
        checkpoints: Where the trials are kept.
    """

    build: Build
    plan: Plan
    all_depths: bool
    probe: Probe | None = None
    start: float = float("nan")
    linear: float = float("nan")
    tried: list[Depth] = field(default_factory=list)
    chosen: Depth | None = None
    best: _Moved | None = None
    last: _Moved | None = None
    with_mirrors: float = float("nan")
    mirrors: bool = False
    notes: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    passes: float = 0.0
    device: torch.device | None = None
    checkpoints: list[Checkpoint] = field(default_factory=list)

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
        if self._is_worth_it(self.last, depth.loss):
            self.chosen, self.best = depth, self.last
        return self.all_depths or depth.loss < least * (1 - NEGLIGIBLE)

    def judge_mirrors(self, mirrored: Build) -> None:
        """Learn mirror images too, at the best depth: they are taken where that is clearly better on the same split."""
        if self.best is None:
            return
        try:
            moved = self._moved(mirrored(self.best.modules, self.probe), self.best.modules)
        except (MemoryError, torch.OutOfMemoryError):
            self.notes.append("no room in memory to look at mirror images")
            return
        if moved.rounds.interrupted:
            raise KeyboardInterrupt
        self.with_mirrors = moved.rounds.trials[0].loss
        self.mirrors = moved.rounds.chosen is not None and moved.judged.clearly_better(self.best.judged)

    def found(self) -> Look:
        """Return what was found."""
        if self.errors and not self.tried:
            raise self.errors[0]
        modules = None if self.chosen is None else self.chosen.modules
        return Look(
            *(self.start, self.linear, self.tried, modules),
            *(self.with_mirrors, self.mirrors, self.notes, self.passes),
        )

    def interrupted(self, last: _Moved) -> LookInterrupted:
        """Return the best so far: the probe, a depth, or the one that was interrupted where it is better already."""
        done = last.modules in [depth.modules for depth in self.tried]
        best = last if not done and self._is_worth_it(last, last.rounds.last_loss) else self.best
        moved = best or last
        rounds = replace(moved.rounds, interrupted=True, reason=f"interrupted in the {STAGE}")
        if best is None:
            rounds.best = -1
        return LookInterrupted(self.found(), moved.modules, self.build(moved.modules, self.probe), rounds)

    def _is_worth_it(self, moved: _Moved | None, loss: float) -> bool:
        if moved is None or moved.rounds.chosen is None:
            return False
        other = self.chosen.loss if self.chosen is not None else self.linear
        return math.isnan(other) or loss < other * (1 - WORTH)

    def _loss(self, candidate: Candidate) -> Depth | None:
        """Return how far θ̄₂ moves at a depth; None where too few samples can be held out."""
        begun = time.perf_counter()
        problem = self.build(candidate.modules, self.probe)
        self.probe, self.device = problem.probe, problem.linearization.device
        if len(hold_out(problem, self.plan.seed, 0.5).validation) < FEWEST_JUDGES:
            return None
        moved = self._moved(problem, candidate.modules)
        self.last = moved
        if moved.rounds.interrupted:
            raise KeyboardInterrupt
        if not self.tried:
            self.start = moved.rounds.start
            run = Run([hold_out(problem, self.plan.seed, 0.5)], self.plan.generator(), Progress(False))
            choice, _ = choose(problem, replace(self.plan, metric="whitened"), run, SHORT)
            self.linear = self.start if choice is None else min(choice.loss, self.start)
            self.passes += 0.0 if choice is None else choice.passes
        parameters = sum(value.numel() for value in problem.linearization.theta2.values())
        return Depth(candidate.modules, parameters, moved.rounds.trials[0].loss, time.perf_counter() - begun)

    def _moved(self, problem: Problem, modules: tuple[str, ...]) -> _Moved:
        """Return how θ̄₂ moves in one trial on half of the samples."""
        split = hold_out(problem, self.plan.seed, 0.5)
        rounds = search_rounds(problem, self.plan, Run([split], self.plan.generator(), Progress(False)))
        self.passes += rounds.passes
        if problem.checkpoint is not None:
            self.checkpoints.append(problem.checkpoint)
        return _Moved(modules, rounds, rounds.judged or judged_at(problem, rounds.point, split))
