"""Penalties as values: λ₁ of w₁, λ₂ of w₂ and that of ω̄; the grids that are tried; what was tried and chosen.

λ₂ stands in two units. `lambda2` is λ₂ itself, as in ``mean loss + λ₂/2 ‖w₂‖²``. `lambda2_units` counts units of the
problem's own: the mean squared length of a sample's gradient features (`length`) over the number of samples n, so that
``lambda2 = lambda2_units · length / n``, and one grid serves all problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Penalties

HEAVIEST = 1e30
"""A heavier penalty is taken as this one, which single precision holds: its weights are zero to rounding."""

NEGLIGIBLE = 1e-3
"""A fall of the validation loss by a smaller share is none."""


@dataclass(frozen=True)
class Grid:
    """The penalties that a choice tries.

    Attributes:
        omega: Of ω̄, ascending, in units of the best probe's; heavier ones only while the validation loss still falls.
        lambda1: Of w₁, ascending, in the same units: beside gradients it may want less of a penalty than alone, or
            more.
        lambda2_units: Of w₂, from heavy to light, in units of the gradient features.
    """

    omega: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    lambda1: tuple[float, ...] = (0.3, 1.0, 10.0, 100.0)
    lambda2_units: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))


GRID = Grid()


@dataclass(frozen=True)
class ScaledPenalties:
    """Penalties of a problem of any number of samples.

    Attributes:
        lambda1: λ₁.
        lambda2_units: λ₂ in units of the gradient features.
        length: Their mean squared length: a unit is `length` / n.
    """

    lambda1: float
    lambda2_units: float
    length: float

    def on(self, n: int) -> Penalties:
        """Return λ₁ and λ₂ of a fit to n samples."""
        return Penalties(self.lambda1, self.lambda2_units * self.length / n)


@dataclass(frozen=True)
class Tried:
    """One point of the penalty path.

    Attributes:
        omega_penalty: Penalty of ω̄.
        lambda1: λ₁.
        lambda2_units: λ₂ in units of the gradient features; infinite without the gradient term.
        loss: Mean loss on validation data, a part of the training data that was held out.
    """

    omega_penalty: float
    lambda1: float
    lambda2_units: float
    loss: float

    @property
    def gradients(self) -> bool:
        """Whether the gradient term is in it."""
        return self.lambda2_units < math.inf

    def to_dict(self) -> dict[str, float | None]:
        """Return it for JSON, which has no infinity: without a gradient term λ₂ is null."""
        return {**asdict(self), "lambda2_units": self.lambda2_units if self.gradients else None}


@dataclass(frozen=True)
class Choice:
    """The penalties that were chosen.

    Attributes:
        omega_penalty: Penalty of ω̄.
        lambda1: λ₁.
        lambda2_units: λ₂ in units of the gradient features; infinite for no gradient term.
        path: What was judged on all parts: all that was tried of few samples, and of 1,000 to 1,500; of others no ω̄
            but the best one is (see `gradfeat.fit.splits`).
        passes: Work, in passes over the samples.
        length: The gradient features' mean squared length, as it was estimated for this choice. Another estimate may be
            far from it where samples are few.
        losses: Its loss on each validation part.
        mode: Of the model; `gradient` has no w₁.
        metric: What w₂ is penalized in.
        iterations: Of the subspace whose loss it was: a fit that goes on longer has another.
        gain: How much less the best validation loss with a gradient term is than the best one without, a mean over the
            validation samples; None where one of the two was not tried, or samples were not told apart.
        gain_error: The standard error of `gain`, paired: that of the samples' differences.
        n_validation: How many samples were in a validation part.
    """

    omega_penalty: float
    lambda1: float
    lambda2_units: float
    path: list[Tried]
    passes: float
    length: float = 1.0
    losses: list[float] = field(default_factory=list)
    mode: str = "full"
    metric: str = "plain"
    iterations: int = 0
    gain: float | None = None
    gain_error: float | None = None
    n_validation: int = 0

    def __str__(self) -> str:
        if not self.gradients:
            return f"no gradient term, penalty {self.lambda1:.3g}"
        w1 = f"{self.lambda1:.3g} of w₁, " if self.mode == "full" else ""
        metric = "" if self.metric == "plain" else f" ({self.metric})"
        return f"penalties {self.omega_penalty:.3g} of ω̄, {w1}{self.lambda2_units:.3g} units of w₂{metric}"

    @property
    def loss(self) -> float:
        """Its loss on validation data."""
        return min(tried.loss for tried in self.path)

    def loss_on(self, parts: int) -> float:
        """Return its mean loss on the first so many validation parts."""
        return sum(self.losses[:parts]) / min(parts, len(self.losses))

    @property
    def gradients(self) -> bool:
        """Whether the gradient term is in it."""
        return self.lambda2_units < math.inf

    @property
    def clear(self) -> bool:
        """Whether a gradient term that is in it is better by more than the standard error, where that is known."""
        return self.gain is None or self.gain_error is None or self.gain > self.gain_error

    def without_gradients(self) -> Choice:
        """Return the best of what was tried without a gradient term."""
        best = min((tried for tried in self.path if not tried.gradients), key=lambda tried: tried.loss)
        return replace(self, omega_penalty=best.omega_penalty, lambda1=best.lambda1, lambda2_units=math.inf)

    def penalties(self, n: int) -> Penalties:
        """Return λ₁ and λ₂ of a fit to n samples."""
        return ScaledPenalties(self.lambda1, self.lambda2_units, self.length).on(n)


def lightest(probe: Probe) -> float:
    """Return the penalty that the path of ω̄ and w₁ begins with: the best probe's, which may be zero."""
    return max(probe.penalty, 1e-12)


def best_omega_penalty(choice: Choice, probe: Probe) -> float:
    """Return the penalty of the ω̄ whose gradient term had the least validation loss, in units of the best probe's."""
    least = min((tried for tried in choice.path if tried.gradients), key=lambda tried: tried.loss)
    ratio = least.omega_penalty / lightest(probe)
    return min(GRID.omega, key=lambda value: abs(value - ratio))


def given_penalties(penalty: float | Sequence[float]) -> Penalties:
    """Return λ of w₁ and of w₂ from one number for both, or a pair; none heavier than leaves no weight at all."""
    w1, w2 = penalty if isinstance(penalty, Sequence) else (penalty, penalty)
    return Penalties(min(float(w1), HEAVIEST), min(float(w2), HEAVIEST))
