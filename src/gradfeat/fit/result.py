"""What a fit ends with."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradfeat.fit.penalties import Choice
from gradfeat.fit.steps import Rounds
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.finetune import Selection
from gradfeat.solvers.first_order import History
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.kronecker import KroneckerFactors
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Penalties, Solution


@dataclass(frozen=True)
class Linear:
    """What a linear model was fitted in.

    Attributes:
        model: With its weights.
        omega: ω̄ with its penalty; None where ω̄ is given from outside.
        features: The map Φ, in the variables that w₂ is penalized in; None where there is no gradient term.
        factors: Its preconditioner, in the same variables.
        penalties: λ₁ and λ₂.
        held_out: Where the weights are no optimum of these penalties, since the solver ended early: the loss on
            held-out samples that it ended by; None for an optimum.
    """

    model: GradientFeatureModel
    omega: Probe | None
    features: GradientFeatures | None
    factors: KroneckerFactors | None
    penalties: Penalties
    held_out: float | None = None


@dataclass(frozen=True)
class Fit:
    """A fitted model of one mode.

    Attributes:
        model: The model with its trained weights.
        seconds: Time of training this model alone, with its choices.
        history: Loss and time by epoch, or objective by iteration; None where nothing was trained.
        notes: What the user should know.
        choice: Penalties that were chosen, and the path; None where none were.
        solution: How the solver of a linear model ended; None for the probe, for fine-tuning, and where no gradient
            term was chosen.
        rounds: The moves of θ̄₂ before the last linearization; None where there was one linearization.
        selection: For fine-tuning, the learning rates tried and their scores on validation data.
        linear: What a linear model was solved in; None where a solver does not say.
    """

    model: GradientFeatureModel
    seconds: float = 0.0
    history: History | None = None
    notes: list[str] = field(default_factory=list)
    choice: Choice | None = None
    solution: Solution | None = None
    rounds: Rounds | None = None
    selection: Selection | None = None
    linear: Linear | None = None

    @property
    def moved(self) -> bool:
        """Whether rounds have moved θ̄₂."""
        return self.rounds is not None and self.rounds.chosen is not None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it; the weights are those of what was finished."""
        return self.history is not None and self.history.stopped == "interrupted"

    @property
    def epochs(self) -> int:
        """Finished epochs or iterations."""
        return 0 if self.history is None else len(self.history.loss)
