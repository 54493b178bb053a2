"""A linearization and a linear model at it: the one place where models are made from weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.fit.checkpoint import like_theta2, named_w2, w2_of
from gradfeat.fit.problem import Problem
from gradfeat.linearization import Linearization
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.gradient_features import Weights
from gradfeat.solvers.probe import Probe


@dataclass(frozen=True)
class Point:
    """A linearization and a linear model at it.

    Attributes:
        theta2: Where θ̄₂ is.
        omega: ω̄, (d, c).
        w1: (d, c).
        b: (c,).
        w2: By the names of θ₂, in its units; None is zero.
    """

    theta2: Weights
    omega: Tensor
    w1: Tensor
    b: Tensor
    w2: Weights | None = None

    def model(self, linearization: Linearization, mode: str, parametrization: str) -> GradientFeatureModel:
        """Return the model of a mode with these weights, of a network that is linearized at θ̄₂ or elsewhere."""
        lin = self.linearization(linearization)
        dtype = torch.float64 if lin.dtype == torch.float64 else torch.float32
        model = GradientFeatureModel(
            lin, self.omega.to(lin.device, dtype), mode=mode, parametrization=parametrization
        ).to(lin.device)
        w2 = self.w2 if self.w2 is not None else {name: torch.zeros_like(v) for name, v in lin.theta2.items()}
        model.set_weights(w1=self.w1, b=self.b, w2=w2)
        return model

    def linearization(self, linearization: Linearization) -> Linearization:
        """Return a network's linearization at this point: the given one where θ̄₂ has not moved."""
        same = all(self.theta2[name] is value for name, value in linearization.theta2.items())
        return linearization if same else linearization.at(self.theta2)

    @staticmethod
    def of_network(model: GradientFeatureModel) -> Point:
        """Return the point where the network of a `finetune` model is, with its head as ω̄ = w₁."""
        w1, b, w2 = model.w1.detach().clone(), model.b.detach().clone(), model.w2
        start = model.linearization.theta2
        return Point({name: value + w2[name].detach().to(value) for name, value in start.items()}, w1, w1, b)

    def pack(self) -> dict[str, Tensor]:
        """Return its tensors by name."""
        theta2 = {f"theta2/{name}": value for name, value in self.theta2.items()}
        return {"omega": self.omega, "w1": self.w1, "b": self.b, **theta2, **named_w2(self.w2)}

    @staticmethod
    def unpack(tensors: Mapping[str, Tensor], theta2: Mapping[str, Tensor]) -> Point:
        """Return the point of some tensors, each in memory as θ₂'s own."""
        device = next(iter(theta2.values())).device
        omega, w1, b = (tensors[name].to(device) for name in ("omega", "w1", "b"))
        return Point(like_theta2(tensors, "theta2/", theta2), omega, w1, b, w2_of(tensors, theta2))


def starting_model(
    problem: Problem, mode: str, parametrization: str = "standard", probe: Probe | None = None
) -> GradientFeatureModel:
    """Return an untrained model of a mode: the problem's probe, or another, with w₂ = 0.

    Raises:
        ConfigurationError: `finetune` of an ablation, whose ω is no head of the network.
    """
    if problem.fixed_omega is not None and mode == "finetune":
        raise ConfigurationError("an ablation has no finetune: its head and its network are not of one model")
    probe = probe or problem.probe
    b = torch.zeros_like(probe.bias) if mode == "gradient" else probe.bias
    omega = (problem.fixed_omega or probe).omega
    return Point(problem.linearization.theta2, omega, probe.omega, b).model(
        problem.linearization, mode, parametrization
    )


def check_finite(model: GradientFeatureModel, mode: str) -> GradientFeatureModel:
    """Return a model whose weights are finite.

    Raises:
        ConvergenceError: They are not.
    """
    if not all(bool(torch.isfinite(value).all()) for value in model.trained()):
        raise ConvergenceError(f"the weights of {mode} are not finite")
    return model
