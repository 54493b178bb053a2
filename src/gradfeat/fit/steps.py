"""The record of rounds: each move of θ̄₂, and how they ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor

from gradfeat.fit.checkpoint import Part
from gradfeat.fit.penalties import ScaledPenalties
from gradfeat.fit.point import Point
from gradfeat.solvers.subspace import Penalties


@dataclass(frozen=True)
class Step:
    """A move of θ̄₂.

    Attributes:
        lambda1: λ₁.
        lambda2_units: λ₂ in units of the gradient features.
        length: Their mean squared length there: a unit is `length` / n (see `gradfeat.fit.penalties`).
        directions: How many directions its subspace had.
        loss: The network's loss on validation data after it.
    """

    lambda1: float
    lambda2_units: float
    length: float
    directions: int
    loss: float

    def on(self, n: int) -> Penalties:
        """Return λ₁ and λ₂ of the same step with n samples."""
        return ScaledPenalties(self.lambda1, self.lambda2_units, self.length).on(n)


@dataclass
class Rounds:
    """What was found on the samples that were not held out.

    Attributes:
        start: Validation loss of the probe that the rounds start from.
        point: Where they ended, and the last linear model there; of a model that was loaded from a file the model's
            own. It is not compared.
        steps: Moves that lowered it.
        last: Penalties of the last linearization; None where the network itself was better.
        last_loss: The validation loss there; before the last linearization is chosen, that of the network.
        stages: How many stages its subspace grew for.
        reason: Why the rounds ended.
        passes: Work.
        interrupted: Whether Ctrl-C ended them.
    """

    start: float
    point: Point = field(compare=False)
    steps: list[Step] = field(default_factory=list)
    last: ScaledPenalties | None = None
    last_loss: float = float("inf")
    stages: int = 0
    reason: str = ""
    passes: float = 0.0
    interrupted: bool = False

    def pack(self, done: bool) -> Part:
        """Return all of it, as a part of a checkpoint: after a step, or when it is done."""
        names = ("start", "last_loss", "stages", "reason", "passes")
        values = {name: getattr(self, name) for name in names} | {"steps": [asdict(step) for step in self.steps]}
        last = None if self.last is None else asdict(self.last)
        return Part({**values, "last": last, "done": done}, self.point.pack())

    @staticmethod
    def unpack(part: Part, theta2: Mapping[str, Tensor]) -> Rounds:
        """Return what `pack` was given."""
        values = {name: value for name, value in part.values.items() if name != "done"}
        values["steps"] = [Step(**step) for step in values["steps"]]
        values["last"] = values["last"] and ScaledPenalties(**values["last"])
        return Rounds(**values, point=Point.unpack(part.tensors, theta2))

    def __str__(self) -> str:
        losses = ", ".join(f"{step.loss:.3f}" for step in self.steps)
        return (
            f"{len(self.steps)} steps, held-out loss of the network {self.start:.3f} -> {losses}; of the last "
            f"linear model {self.last_loss:.3f}; {self.reason}"
        )
