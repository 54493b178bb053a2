"""The record of rounds: what was tried on held-out training data, and how far θ̄₂ moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from gradfeat.fit.checkpoint import Part
from gradfeat.fit.judge import Judged
from gradfeat.fit.point import Point


@dataclass(frozen=True)
class Trial:
    """One learning rate, or fine-tuning by the best recipe, that was tried on the samples that were not held out.

    Attributes:
        rate: Of the optimizer.
        passes: Over these samples.
        loss: On validation data, after the temperature; infinite where training diverged.
        errors: Share of wrong classes there; 0 where targets are no classes.
        temperature: The best one there.
        training: Mean training loss of each pass.
        recipe: Of fine-tuning, in words; of rounds there is none.
    """

    rate: float
    passes: int
    loss: float
    errors: float = 0.0
    temperature: float = 1.0
    training: list[float] = field(default_factory=list)
    recipe: str = ""

    @property
    def name(self) -> str:
        """What was tried, in words."""
        return f"fine-tuning ({self.recipe})" if self.recipe else f"rate {self.rate:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON, which has no infinity: a loss that is none is None."""
        return {**asdict(self), "loss": self.loss if math.isfinite(self.loss) else None}

    def __str__(self) -> str:
        return f"{self.name}: held-out loss {self.loss:.3f}"


@dataclass
class Rounds:
    """How θ̄₂ moved.

    Attributes:
        start: Validation loss of the probe that the trials start from, after a temperature.
        point: Where the best trial ended, with its head as ω̄ = w₁; of a model that was loaded from a file the model's
            own. It is not compared.
        trials: The rates that were tried; fine-tuning last, where it was.
        best: Which of them is the best; -1 where none is better than the probe.
        more: Mean training loss of each further pass, over all samples.
        reason: Why they ended.
        passes: Work, in passes of training over all samples.
        interrupted: Whether Ctrl-C ended it.
        judged: The best of them, or the probe, on validation data; None where that is not known. It is not compared.
    """

    start: float
    point: Point = field(compare=False)
    trials: list[Trial] = field(default_factory=list)
    best: int = -1
    more: list[float] = field(default_factory=list)
    reason: str = ""
    passes: float = 0.0
    interrupted: bool = False
    judged: Judged | None = field(default=None, compare=False)

    @property
    def chosen(self) -> Trial | None:
        """The best trial; None where none is better than the probe."""
        return None if self.best < 0 else self.trials[self.best]

    @property
    def last_loss(self) -> float:
        """The validation loss of the best trial, or of the probe where none is better."""
        return self.start if self.chosen is None else self.chosen.loss

    def pack(self) -> Part:
        """Return all of it, as a part of a checkpoint."""
        values = {"start": self.start, "passes": self.passes, "best": self.best}
        return Part({**values, "trials": [asdict(trial) for trial in self.trials]}, self.point.pack())

    @staticmethod
    def unpack(part: Part, theta2: Mapping[str, Tensor]) -> Rounds:
        """Return what `pack` was given."""
        trials = [Trial(**trial) for trial in part.values["trials"]]
        values = {name: part.values[name] for name in ("start", "passes", "best")}
        return Rounds(**values, trials=trials, point=Point.unpack(part.tensors, theta2))

    def __str__(self) -> str:
        tried = "; ".join(map(str, self.trials))
        return f"held-out loss of the probe {self.start:.3f}; {tried}; {self.reason}"
