"""The attributes of a fitted estimator, read off what was fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from gradfeat.backbones import Backbone
from gradfeat.estimators.fitted import Fitted
from gradfeat.fit.depth import Depth
from gradfeat.fit.merge import MergedHead
from gradfeat.fit.penalties import Choice
from gradfeat.fit.steps import Rounds
from gradfeat.losses import Loss
from gradfeat.solvers.finetune import Selection
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Solution


class FittedAttributes:
    """Attributes that an estimator has after a fit, and not before: without `fitted_` each is an `AttributeError`.

    Attributes:
        fitted_: All that was fitted, as one frozen value.
    """

    fitted_: Fitted

    @property
    def omega_(self) -> Tensor:
        """The probe ω̄, (d, c)."""
        return self.fitted_.weights.omega

    @property
    def w1_(self) -> Tensor:
        """Weights of the activations, (d, c)."""
        return self.fitted_.weights.w1

    @property
    def b_(self) -> Tensor:
        """Intercept, (c,)."""
        return self.fitted_.weights.b

    @property
    def w2_(self) -> Mapping[str, Tensor]:
        """Weights of the gradients, by the names of θ₂."""
        return self.fitted_.weights.w2

    @property
    def theta2_(self) -> Mapping[str, Tensor] | None:
        """Where rounds have moved θ̄₂, by the names of θ₂; None where it did not move."""
        return self.fitted_.weights.theta2

    @property
    def modules_(self) -> str | Sequence[str]:
        """θ₂ as it was asked for, or found by a look or a search."""
        return self.fitted_.network.modules

    @property
    def augment_(self) -> str | None:
        """What was added to images: "mirror", as asked for or as a look found, or None."""
        return self.fitted_.settings.augment

    @property
    def backbone_(self) -> Backbone:
        """The network as it was when `fit` began, with its preprocessing."""
        return self.fitted_.network.backbone

    @property
    def example_(self) -> Tensor:
        """Some samples as the network takes them, (k, ...)."""
        return self.fitted_.network.example

    @property
    def loss_(self) -> Loss:
        """The task's loss."""
        return self.fitted_.targets.loss

    @property
    def merged_head_(self) -> MergedHead | None:
        """Step and head of the merged network; None where it has none."""
        return self.fitted_.merged_head

    @property
    def probe_(self) -> Probe:
        """The probe, with the path of its penalty."""
        return self.fitted_.record.probe

    @property
    def choice_(self) -> Choice | None:
        """Penalties that were chosen, with the path; None where none were."""
        return self.fitted_.record.choice

    @property
    def solution_(self) -> Solution | None:
        """How the solver ended; None where no gradient term was fitted."""
        return self.fitted_.record.solution

    @property
    def rounds_(self) -> Rounds | None:
        """The moves of θ̄₂ and the validation losses; None for one linearization."""
        return self.fitted_.record.rounds

    @property
    def selection_(self) -> Selection | None:
        """Optimizers and rates that fine-tuning tried; None elsewhere."""
        return self.fitted_.record.selection

    @property
    def history_(self) -> History | None:
        """Training loss by epoch, or objective by iteration."""
        return self.fitted_.record.history

    @property
    def how_(self) -> Mapping[str, str]:
        """Effort, solver, penalties and rounds in words."""
        return self.fitted_.record.how

    @property
    def seconds_(self) -> Mapping[str, float]:
        """Time of each part of the fit."""
        return self.fitted_.record.seconds

    @property
    def depths_(self) -> Sequence[Depth]:
        """Depths of θ₂ that a search tried."""
        return self.fitted_.record.depths

    @property
    def n_iter_(self) -> int | None:
        """Epochs or iterations; None for a model from a file that does not say."""
        return self.fitted_.record.n_iter

    @property
    def class_names_(self) -> Sequence[str] | None:
        """A name for each class, where the caller has given some."""
        return self.fitted_.class_names

    @class_names_.setter
    def class_names_(self, names: Sequence[str] | None) -> None:
        self.fitted_ = dataclasses.replace(self.fitted_, class_names=names)
