"""LoRA on the layers of θ₂, as a rival: W + B A instead of W, with B and A of rank r (Hu et al., ICLR 2022).

Every weight of two or more axes (convolution, linear) is taken as a matrix (outputs, inputs · taps). B starts at zero
and A by He's uniform distribution, so that training starts at the pre-trained network with the probe as its head; the
scale α / r is one. Biases and gains stay. The head is trained along, as in fine-tuning.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.errors import ConvergenceError
from gradfeat.fit import Fit, Problem
from gradfeat.fit.finetune import TRIAL_LENGTH
from gradfeat.fit.point import starting_model
from gradfeat.fit.predict import loss_at
from gradfeat.fit.splits import hold_out
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.finetune import FINETUNE_GRID, select
from gradfeat.solvers.first_order import History, train
from gradfeat.solvers.schedule import Schedule

RANK = 8


class LowRank(nn.Module):
    """θ₂ = θ̄₂ + B A, and the head."""

    def __init__(self, problem: Problem, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.problem = problem
        self.shapes: dict[str, torch.Size] = {}
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for name, value in problem.linearization.theta2.items():
            if value.ndim < 2:
                continue
            outputs, inputs = len(value), value[0].numel()
            rank_of_weight = min(rank, outputs, inputs)
            a = torch.empty(rank_of_weight, inputs)
            nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator)
            self.shapes[name] = value.shape
            self.a.append(nn.Parameter(a.to(value)))
            self.b.append(nn.Parameter(torch.zeros(outputs, rank_of_weight).to(value)))
        self.w1 = nn.Parameter(problem.probe.omega.clone())
        self.bias = nn.Parameter(problem.probe.bias.clone())

    def moved(self) -> dict[str, Tensor]:
        """Return θ₂ - θ̄₂ of the weights."""
        parts = zip(self.shapes.items(), self.a, self.b, strict=True)
        return {name: (b @ a).view(shape) for (name, shape), a, b in parts}

    def forward(self, batch: Tensor) -> Tensor:
        """Return the logits of some samples of the store."""
        lin, moved = self.problem.linearization, self.moved()
        theta2 = {name: value + moved[name] if name in moved else value for name, value in lin.theta2.items()}
        return lin.network(theta2, self.problem.store.z0(batch)).to(self.w1) @ self.w1 + self.bias

    def model(self) -> GradientFeatureModel:
        """Return it as a fine-tuned model."""
        model = starting_model(self.problem, "finetune")
        with torch.no_grad():
            zeros = {name: torch.zeros_like(value) for name, value in self.problem.linearization.theta2.items()}
            model.set_weights(w1=self.w1, b=self.bias, w2=zeros | self.moved())
        return model


def train_lora(problem: Problem, indices: Tensor, schedule: Schedule, rank: int, seed: int) -> tuple[LowRank, History]:
    """Train on some samples by a schedule."""
    generator = torch.Generator().manual_seed(seed)
    lora = LowRank(problem, rank, generator)

    def step_loss(picked: Tensor) -> Tensor:
        batch = problem.random_views(indices[picked], generator)
        return problem.loss.per_sample(lora(batch), problem.y[batch]).mean()

    return lora, train(list(lora.parameters()), step_loss, len(indices), schedule, generator=generator)


def fit_lora(problem: Problem, schedule: Schedule, *, rank: int = RANK, seed: int = 0) -> Fit:
    """Fit as fine-tuning is: optimizer and rate from the same grid by held-out training data, then all samples."""
    begun = time.perf_counter()
    split = hold_out(problem, seed)
    selection = None
    if len(split.validation):
        trial = schedule.shortened(max(1, round(TRIAL_LENGTH * schedule.iterations)))

        def run(candidate: Schedule) -> float:
            lora, history = train_lora(problem, split.train, candidate, rank, seed)
            if history.stopped == "interrupted":  # half a search chooses nothing
                raise KeyboardInterrupt
            return -loss_at(problem, lora.model(), split.validation)

        selection = select([trial.with_optimizer(candidate) for candidate in FINETUNE_GRID], run)
    schedule = schedule.with_optimizer(FINETUNE_GRID[0] if selection is None else selection.best)
    lora, history = train_lora(problem, torch.arange(problem.n), schedule, rank, seed)
    if not np.isfinite(history.loss).all():
        raise ConvergenceError(f"LoRA diverged with {schedule}")
    return Fit(lora.model(), time.perf_counter() - begun, history, selection=selection)
