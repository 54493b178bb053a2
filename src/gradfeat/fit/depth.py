"""theta2="search": how deep θ₂ goes, chosen by the loss on held-out training data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gradfeat.errors import Theta2Error
from gradfeat.fit.choose import STAGES, choose
from gradfeat.fit.penalties import NEGLIGIBLE, best_omega_penalty
from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.run import Run
from gradfeat.fit.spans import Stages
from gradfeat.linearization.theta2 import Candidate
from gradfeat.progress import Progress
from gradfeat.solvers.probe import Probe

WORTH = 0.01
"""A deeper θ₂, which is twice as many blocks, is taken where the held-out loss is lower by this share at least."""

SHORT = Stages((*STAGES.common, STAGES.more[0]))
"""How far the subspaces grow by which depths are compared."""


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
    build: Callable[[Sequence[str], Probe | None], Problem],
    plan: Plan,
    progress: Progress | None = None,
) -> tuple[Problem, Depth | None, list[Depth]]:
    """Linearize 1, 2, 4, 8 ... blocks and choose penalties for each, while the validation loss falls.

    A deeper θ₂ costs more to fit. So it is taken only where its loss is lower by `WORTH`, while still deeper ones are
    tried as long as it falls at all, since small falls may add up. All penalties of ω̄ are tried for the topmost block,
    where that is cheap, and the best of them alone for the others: about three passes for each. All depths together
    cost less than one fine-tuning run of 20 epochs through the last of them.

    Args:
        candidates: The choices of θ₂ from the top down (`gradfeat.linearization.build.theta2_candidates`).
        build: Returns the problem of one choice, with a probe that is known or, for None, its own.
        plan: Of the model whose validation loss counts, "full" or "gradient"; its seed is that of all depths.
        progress: Shows how far it is.

    Returns:
        The problem of the chosen depth, which knows the ω̄ that was best for the topmost block, so that a fit does not
        search it again; that depth; and all that were tried. Where there are too few samples to hold some out: the
        problem of the topmost block, None, and nothing tried.

    Raises:
        Theta2Error: There is no candidate.
    """
    if not candidates:
        raise Theta2Error("theta2='search': no layer with a weight reaches the features; name the parameters instead")
    best: Problem
    least = float("inf")
    chosen: Depth | None = None
    tried: list[Depth] = []
    omega_penalties: dict[str, list[float]] = {}
    before: list[Problem] = []
    probe: Probe | None = None  # f(x), and with it the probe, is the same at all depths
    for candidate in doubling(candidates):
        begun = time.perf_counter()
        for other in before:  # residuals of two depths would be twice the memory
            other.store.release()
        problem = replace(build(candidate.modules, probe), omega_penalties=omega_penalties)
        probe = problem.probe
        choice, _ = choose(problem, plan, Run.of(problem, plan, progress), SHORT)
        if choice is None:
            return problem, None, []
        parameters = sum(value.numel() for value in problem.linearization.theta2.values())
        if not omega_penalties:
            omega_penalties = {plan.mode: [best_omega_penalty(choice, problem.probe)]}
            problem = replace(problem, omega_penalties=omega_penalties)
        tried.append(Depth(candidate.modules, parameters, choice.loss, time.perf_counter() - begun))
        if chosen is None or choice.loss < chosen.loss * (1 - WORTH):
            best, chosen = problem, tried[-1]
        if choice.loss >= least * (1 - NEGLIGIBLE):
            break
        least, before = choice.loss, [best, problem]
    if best is not problem:
        problem.store.release()
        best.store.keep_again()
    return best, chosen, tried


def doubling(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield the candidates of 1, 2, 4 ... blocks, and the last one."""
    count = 1
    while count < len(candidates):
        yield candidates[count - 1]
        count *= 2
    yield candidates[-1]
