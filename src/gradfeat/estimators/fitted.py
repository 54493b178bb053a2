"""What was fitted, as one frozen value: all that an estimator knows after a fit, and all that its file keeps.

A fit makes it, an estimator's attributes are read off it, the adapter writes and reads it, and `compare` makes one for
each mode. It does not hold the network's programs, which are built again from it (`Fitted.model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from gradfeat.backbones import Backbone
from gradfeat.fit.depth import Depth
from gradfeat.fit.linearize import linearize_backbone
from gradfeat.fit.merge import MergedHead
from gradfeat.fit.penalties import Choice
from gradfeat.fit.point import Point
from gradfeat.fit.steps import Rounds
from gradfeat.linearization import Linearization
from gradfeat.losses import Loss, target_mean
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.finetune import Selection
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Solution


@dataclass(frozen=True)
class Settings:
    """Parameters that a fitted model depends on, as they were in `fit`, whatever is set for a next one.

    Attributes:
        mode: "activation", "gradient", "full" or "finetune".
        parametrization: The variables that w₂ was trained in.
        precision: Of the network's programs, by name.
        loss: As it was asked for: a name, or "auto".
        effort: As it was asked for.
        rounds: As they were asked for; None: by effort.
        augment: "mirror" where mirror images were learnt, as asked for or as a look found; else None.
    """

    mode: str
    parametrization: str
    precision: str
    loss: str
    effort: str
    rounds: int | str | None
    augment: str | None


@dataclass(frozen=True)
class BuiltFrom:
    """What a callable backbone, or random weights, were made from.

    Attributes:
        X_shape: Shape of X, (n, ...); None where it has none.
        random_state: Seed; None where there was none.
    """

    X_shape: tuple[int, ...] | None
    random_state: int | None


@dataclass(frozen=True, eq=False)
class Network:
    """The network that the model is of, as it was when `fit` began.

    Attributes:
        backbone: The network with its preprocessing.
        modules: θ₂ as it was asked for, or found by a search.
        example: Some samples as the network takes them, (k, ...): its programs are captured with them.
        built_from: What a callable or random weights were made from.
        weights: File of a named backbone's weights, "random", or None.
    """

    backbone: Backbone
    modules: str | Sequence[str]
    example: Tensor
    built_from: BuiltFrom
    weights: str | Path | None = None

    def linearization(self, device: str, precision: str) -> Linearization:
        """Return the network's programs, built now, on a device and in a precision by name."""
        return linearize_backbone(self.backbone, self.example, self.modules, device, precision)


@dataclass(frozen=True, eq=False)
class Targets:
    """What y was.

    Attributes:
        loss: The task's loss, with the mean of a regression's targets.
        classes: Class labels, (c,); None for a regression.
        one_output: Whether the targets of a regression were a vector, (n,).
    """

    loss: Loss
    classes: np.ndarray | None = None
    one_output: bool = False


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a table, as scikit-learn counts and names them.

    Attributes:
        count: How many; None for samples that are no table.
        names: Their names, (count,), where the table has some.
    """

    count: int | None = None
    names: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """The model's weights, in main memory.

    Attributes:
        omega: ω̄, (d, c).
        w1: Weights of the activations, (d, c); of mode "gradient" they are ω̄, and not used.
        b: Intercept of what is predicted, (c,): of a regression in double precision, with the mean of the targets.
        w2: Weights of the gradients, by the names of θ₂, in its units.
        theta2: Where rounds have moved θ̄₂, by the names of θ₂; None where it did not move.
    """

    omega: Tensor
    w1: Tensor
    b: Tensor
    w2: dict[str, Tensor]
    theta2: dict[str, Tensor] | None = None

    def point(self, linearization: Linearization, loss: Loss) -> Point:
        """Return the linear model at θ̄₂: where rounds have moved it, else where a linearization has it."""
        return Point(self.theta2 or linearization.theta2, self.omega, self.w1, logit_bias(self.b, loss), self.w2)


@dataclass(frozen=True, eq=False)
class Record:
    """What a fit says of itself.

    Attributes:
        probe: The probe, with the path of its penalty.
        choice: Penalties that were chosen, with the path; None where none were.
        solution: How the solver ended; None where no gradient term was fitted.
        rounds: The moves of θ̄₂; None for one linearization.
        selection: Optimizers and rates that fine-tuning tried; None elsewhere.
        history: Training loss by epoch, or objective by iteration.
        how: Solver, penalties and rounds in words.
        seconds: Time of each part of the fit.
        depths: Depths of θ₂ that a search tried.
        n_iter: Epochs or iterations; None where a file does not say.
    """

    probe: Probe
    choice: Choice | None = None
    solution: Solution | None = None
    rounds: Rounds | None = None
    selection: Selection | None = None
    history: History | None = None
    how: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    depths: Sequence[Depth] = ()
    n_iter: int | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """All that was fitted.

    Attributes:
        settings: Parameters that the model depends on.
        network: What it is a model of.
        targets: What it predicts.
        columns: Of the table that it was fitted to.
        weights: ω̄, w₁, b, w₂ and θ̄₂.
        record: How it was fitted.
        merged_head: Step and head of the merged network; None where it has none.
        class_names: A name for each class, where the caller has given some.
    """

    settings: Settings
    network: Network
    targets: Targets
    columns: Columns
    weights: Weights
    record: Record
    merged_head: MergedHead | None = None
    class_names: Sequence[str] | None = None

    def model(self, linearization: Linearization) -> GradientFeatureModel:
        """Return the model, of the network's programs at the θ̄₂ that the fit began with.

        Args:
            linearization: From `Network.linearization`.
        """
        point = self.weights.point(linearization, self.targets.loss)
        return point.model(linearization, self.settings.mode, self.settings.parametrization)


def value_bias(bias: Tensor, loss: Loss) -> Tensor:
    """Return the intercept of what is predicted from that of the logits, (c,).

    A regression's logits are distances to the mean of its targets, which single precision may not hold: so its
    intercept is in double precision, in main memory.
    """
    mean = target_mean(loss)
    return bias if mean is None else bias.detach().cpu().double() + mean


def logit_bias(bias: Tensor, loss: Loss) -> Tensor:
    """Return the intercept of the logits, (c,), from what `value_bias` returned."""
    mean = target_mean(loss)
    return bias if mean is None else bias - mean
