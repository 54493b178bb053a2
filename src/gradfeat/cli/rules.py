"""When an option would do nothing: by the modes that are fitted, and by the kind of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

IMAGES, TEXTS, RECORDINGS, ARRAYS = "images", "texts", "recordings", "arrays"
"""What samples are; an option of images also serves arrays, which may stand for images."""

TABLES, CLASSES = "tables", "classes"
"""Two more things that an option may be for: samples that come from a table, and labels of one class a sample."""

LINEAR = ("gradient", "full")
"""The modes with w₂, which is solved for."""


@dataclass(frozen=True)
class Plan:
    """What a command shall fit, as far as options hang on it.

    Attributes:
        modes: Which models.
        solver: As it was given, or "auto".
        scheduled: Whether this solver goes by epochs.
        penalty: As it was given, or "".
        rounds: The same.
        effort: As it was given, or "auto".
        named: Whether θ₂ is named, or one linearization is asked for: by a penalty, a solver, a metric ...
    """

    modes: tuple[str, ...]
    solver: str
    scheduled: bool
    penalty: str
    rounds: str = ""
    effort: str = "auto"
    named: bool = False

    @property
    def linear(self) -> bool:
        """Whether some mode has a w₂."""
        return any(mode in LINEAR for mode in self.modes)

    def __str__(self) -> str:
        return f"{'--mode' if len(self.modes) == 1 else '--modes'} {','.join(self.modes)}"


Rule = Callable[[Plan], str | None]
"""Returns why an option that was given would do nothing; None where it does something."""


def only_in(modes: tuple[str, ...], lack: str) -> Rule:
    """Return the rule of an option of some modes alone.

    Args:
        modes: Those that use it.
        lack: What the others do not have.
    """
    return lambda plan: None if set(modes) & set(plan.modes) else f"{plan} has no {lack}"


def without_rounds(plan: Plan) -> str | None:
    """Rounds are of `full`; one round is what the others have."""
    return None if "full" in plan.modes or plan.rounds == "1" else f"{plan} has no rounds: they are of full"


def without_solver(plan: Plan) -> str | None:
    """Solvers are of the modes with w₂; pairs are of fine-tuning, and nothing stands beside them."""
    if plan.solver == "pairs":
        return None if plan.modes == ("finetune",) else f"{plan} has no pairs: they are of --mode finetune"
    return None if plan.linear else f"{plan} has no solver to choose: it is of gradient and full"


def without_look(plan: Plan) -> str | None:
    """Effort decides on θ₂ and on moves of `full`, and on the rates of rounds; low effort is what the rest has."""
    if "full" not in plan.modes:
        return f"{plan} has no depth and no moves to decide on: they are of full"
    if plan.effort == "low" or not plan.named or plan.rounds not in ("", "1"):
        return None
    return "θ₂ is named or one linearization asked for, which leaves nothing to decide; --rounds auto would"


def without_epochs(plan: Plan) -> str | None:
    """Epochs are of fine-tuning and of the solvers with a schedule; pairs have a number of steps of their own."""
    if plan.solver == "pairs":
        return "--solver pairs has a number of steps of its own"
    if "finetune" in plan.modes or (plan.linear and plan.scheduled):
        return None
    return f"{plan} is solved without epochs: they are of finetune, and of --solver adam or sgd"


def without_second_penalty(plan: Plan) -> str | None:
    """A penalty of w₂ is of the solvers without a schedule; a penalty of zero is none."""
    if "," not in plan.penalty or (plan.linear and not plan.scheduled):
        return None
    if not plan.penalty.rpartition(",")[2].strip().strip("0."):
        return None
    why = f"--solver {plan.solver} has no penalty of w₂" if plan.linear else f"{plan} has no w₂"
    return f"{why}: give one number"


def without_choice(plan: Plan) -> str | None:
    """Penalties are chosen for w₂, unless they are given or the solver has a schedule."""
    if plan.linear and not plan.scheduled and not plan.penalty:
        return None
    return "nothing is chosen that could be drawn: penalties and rounds are of gradient and full"


def without_leave_one_out(plan: Plan) -> str | None:
    """Labels are judged by leave-one-out, which a linear model at its optimum has."""
    if plan.modes == ("finetune",):
        return f"{plan} is no linear model, which alone tells what it is without a sample"
    if plan.scheduled and plan.linear:
        return f"--solver {plan.solver} ends before the optimum, at which leave-one-out is computed"
    return None
