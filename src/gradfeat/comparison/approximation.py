"""How good the linear model is as an approximation: of the real network along w₂, of the merged one, of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.fit.merge import MergedHead
from gradfeat.losses import Loss
from gradfeat.metrics.evaluation import agreement
from gradfeat.model import GradientFeatureModel
from gradfeat.samples.store import SampleStore

RADII = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares r of w₂ at which the network is compared with its linearization."""


@dataclass(frozen=True)
class Approximation:
    """What the linearization leaves out, on data that the model was not fitted to.

    Attributes:
        remainder: (r, relative error) of the Taylor expansion along w₂:
            ``‖ω̄ᵀ f(x; θ̄₂ + r w₂) - ω̄ᵀ (f(x) + r J(x) w₂)‖ / ‖r ω̄ᵀ J(x) w₂‖`` over the samples; about linear in r
            where the second order rules, and 0 for a network that is linear in θ₂.
        w2_norm: ‖w₂‖.
        theta2_norm: ‖θ̄₂‖.
        merged_agreement: Share of equal decisions of the linear model and the merged network (see `agreement`); None if
            there is none.
        finetune_agreement: The same with fine-tuning; None if it was not fitted.
    """

    remainder: list[tuple[float, float]]
    w2_norm: float
    theta2_norm: float
    merged_agreement: float | None
    finetune_agreement: float | None = None

    def __str__(self) -> str:
        relative = self.w2_norm / self.theta2_norm if self.theta2_norm else math.inf
        text = (
            f"‖w₂‖ is {relative:.2g} of ‖θ̄₂‖; the network differs from its linearization by "
            f"{100 * self.remainder[0][1]:.0f} % of the step at {self.remainder[0][0]:g} of w₂ and by "
            f"{100 * self.remainder[-1][1]:.0f} % at all of it"
        )
        shares = {"the merged network": self.merged_agreement, "fine-tuning": self.finetune_agreement}
        known = [f"{name} in {100 * share:.1f} %" for name, share in shares.items() if share is not None]
        return f"{text}; of decisions agree with `full`: {', '.join(known)}" if known else text

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, for JSON."""
        return asdict(self)


@plain()
def approximation(
    model: GradientFeatureModel,
    store: SampleStore,
    loss: Loss,
    *,
    head: MergedHead | None = None,
    radii: Sequence[float] = RADII,
    batch_size: int = 64,
) -> Approximation:
    """Compare the linear model with the network that it linearizes.

    Args:
        model: Of mode "full".
        store: Samples that it was not fitted to.
        loss: The task's loss.
        head: Of the merged network; None if there is none.
        radii: Shares of w₂.
        batch_size: Samples at a time.
    """
    lin, omega = model.linearization, model.omega
    w2 = {name: value.detach() for name, value in model.w2.items()}
    wrong, length = [0.0] * len(radii), 0.0
    linear, merged = [], []
    merged_logits = None if head is None else head.network(model)
    exact = lin.full_precision()  # half precision would round a small r w₂ away
    with torch.no_grad():
        for batch in torch.arange(len(store)).split(min(batch_size, store.room.batch)):
            f, residuals = store.primal(batch)
            z0 = store.z0(batch)
            step = lin.tangent(w2, residuals).to(omega) @ omega
            start = (f if exact is lin else exact.network(exact.theta2, z0)).to(omega)
            length += float(step.double().square().sum())
            for i, r in enumerate(radii):
                moved = exact.network({name: v + r * w2[name].to(v) for name, v in exact.theta2.items()}, z0)
                remainder = (moved.to(omega) - start) @ omega - r * step
                wrong[i] += float(remainder.double().square().sum())
            linear.append(model.logits(f, residuals))
            if merged_logits is not None:
                merged.append(merged_logits(z0))
    errors = [math.sqrt(error / (r * r * length)) if length else 0.0 for r, error in zip(radii, wrong, strict=True)]
    return Approximation(
        list(zip(radii, errors, strict=True)),
        _norm(w2),
        _norm(lin.theta2),
        agreement(torch.cat(linear), torch.cat(merged), loss) if merged else None,
    )


def _norm(values: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values.values()))
