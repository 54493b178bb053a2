"""The problem of step 3 written out in full, in double precision: what a solver is compared with.

Nothing here is of `gradfeat.solvers`: Jacobians are torch's own, and the minimum is Newton's method over every weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

from gradfeat.losses import Loss
from gradfeat.model import GradientFeatureModel

_STEPS, _HALVINGS = 100, 40
_LAST_DIGIT = 1e-15  # of the objective


@dataclass(frozen=True)
class DenseProblem:
    """``Σ shareᵢ loss(logitsᵢ, yᵢ) + λ₁/2 ‖w₁‖² + λ₂/2 ‖w₂‖²`` as a function of one vector, (w₂, w₁, b).

    Attributes:
        design: Maps the vector to logits, (n, c, p).
        penalty: Of each entry of the vector, (p,); zero of b.
        y: Targets of the n samples.
        loss: Of the task.
        share: Of each sample in the loss, (n,), of sum one.
    """

    design: Tensor
    penalty: Tensor
    y: Tensor
    loss: Loss
    share: Tensor

    def objective(self, vector: Tensor) -> Tensor:
        """Return the penalized mean loss."""
        return self.mean_loss(vector) + 0.5 * self.penalty @ vector.square()

    def mean_loss(self, vector: Tensor) -> Tensor:
        """Return the mean loss alone."""
        return self.share @ self.loss.per_sample(self.design @ vector, self.y)

    def minimum(self) -> float:
        """Return the least objective, by Newton's method with halved steps, to the last digit."""
        point = self.design.new_zeros(self.design.shape[2])
        least = self.objective(point)
        for _ in range(_STEPS):
            slope = grad(self.objective)(point)[:, None]
            step = torch.linalg.lstsq(hessian(self.objective)(point), slope, driver="gelsd").solution[:, 0]
            lengths = (point - 0.5**k * step for k in range(_HALVINGS))
            lower = next((end for end in lengths if self.objective(end) < least), None)
            if lower is None:
                break
            before, least, point = least, self.objective(lower), lower
            if before - least < _LAST_DIGIT * abs(before):
                break
        return float(least)


@dataclass(frozen=True)
class DenseFeatures:
    """Activations and Jacobians of all rows of a problem, each sample's own.

    Attributes:
        f: Activations, (n, d).
        jacobian: By the names of θ₂, (n, d, numel).
    """

    f: Tensor
    jacobian: dict[str, Tensor]

    @staticmethod
    def of(network: nn.Module, x: Tensor, names: list[str]) -> DenseFeatures:
        """Return those of a network, by torch's reverse mode."""
        theta2 = {name: value.detach() for name, value in network.named_parameters() if name in names}

        def features(values: Mapping[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(network, dict(values), (sample[None],))[0]

        jacobian = vmap(jacrev(features), in_dims=(None, 0))(theta2, x)
        f = network(x).detach()
        return DenseFeatures(f, {name: jacobian[name].detach().flatten(2) for name in names})

    def gradient_features(self, omega: Tensor) -> Tensor:
        """Return ω̄ᵀJ of each sample and output, (n, c, |θ₂|), for an ω̄, (d, c)."""
        return torch.cat([torch.einsum("ndp,dc->ncp", part, omega) for part in self.jacobian.values()], 2)

    def design(self, omega: Tensor, mode: str) -> Tensor:
        """Return the map of (w₂, w₁, b) to logits, (n, c, p); mode "gradient" has no w₁."""
        n, c = len(self.f), omega.shape[1]
        eye = torch.eye(c, dtype=self.f.dtype)
        of_w1 = torch.einsum("nd,kl->nkdl", self.f, eye).flatten(2)
        parts = [self.gradient_features(omega), *([of_w1] if mode == "full" else []), eye.expand(n, c, c)]
        return torch.cat(parts, 2)


def weights_of(model: GradientFeatureModel, names: list[str]) -> Tensor:
    """Return a model's (w₂, w₁, b) as one vector in double precision; mode "gradient" has no w₁."""
    parts = [*(model.w2[name] for name in names), *([model.w1] if model.mode == "full" else []), model.b]
    return torch.cat([part.detach().double().flatten() for part in parts])
