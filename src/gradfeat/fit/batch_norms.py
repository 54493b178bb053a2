"""Fine-tuning with the batch norms of θ₂'s layers in training mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradfeat.linearization.batch_norms import TrainableNetwork
from gradfeat.linearization.linearization import Residuals
from gradfeat.model import GradientFeatureModel


class BatchNormModel(GradientFeatureModel):
    """A `finetune` model while it is trained with batch norms in training mode.

    Args:
        model: Of mode `finetune`; it gives the head, and stays as it is.
    """

    def __init__(self, model: GradientFeatureModel) -> None:
        super().__init__(model.linearization, model.omega, mode="finetune", parametrization=model.parametrization)
        with torch.no_grad():
            self.w1.copy_(model.w1)
            self.b.copy_(model.b)
        self.network = TrainableNetwork(model.linearization)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained, and the running means and variances, which have no gradient."""
        return [self.w1, self.b, *self.network.parameters()]

    def finetuned(self, z0: Tensor | Residuals) -> Tensor:
        """Return the logits of the network above z₀, (n, c)."""
        features: Tensor = self.network(z0)
        return features.to(self.w1) @ self.w1 + self.b

    def folded(self) -> GradientFeatureModel:
        """Return the `finetune` model with the running means and variances in its layers, as in evaluation mode."""
        model = GradientFeatureModel(
            self.linearization, self.omega, mode="finetune", parametrization=self.parametrization
        )
        theta2 = self.linearization.theta2
        w2 = {name: value - theta2[name] for name, value in self.network.folded().items()}
        model.set_weights(w1=self.w1, b=self.b, w2=w2)
        return model.to(self.w1.device)
