"""LoRA on the layers of θ₂, as a rival: W + B A instead of W, with B and A of rank r (Hu et al., ICLR 2022).

Every weight of two or more axes (convolution, linear) is taken as a matrix (outputs, inputs · taps). B starts at zero
and A by He's uniform distribution, so that training starts at the pre-trained network with the probe as its head; the
scale α / r is one. Biases and gains stay. The head is trained along, as in fine-tuning.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.errors import ConvergenceError
from gradfeat.fit import Fit, Problem
from gradfeat.fit.finetune import cool
from gradfeat.fit.judge import probe_of
from gradfeat.fit.point import starting_model
from gradfeat.fit.predict import store_logits
from gradfeat.fit.splits import hold_out
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.finetune import Recipe, Search, Trial, judged, select
from gradfeat.solvers.first_order import History, train

RANK = 8


class LowRank(nn.Module):
    """θ₂ = θ̄₂ + B A, and the head."""

    def __init__(self, problem: Problem, rank: int, generator: torch.Generator, head: str = "probe") -> None:
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
        share = 1.0 if head == "probe" else 0.0
        self.w1 = nn.Parameter(share * problem.probe.omega)
        self.bias = nn.Parameter(share * problem.probe.bias)

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


def train_lora(problem: Problem, indices: Tensor, recipe: Recipe, rank: int, seed: int) -> tuple[LowRank, History]:
    """Train on some samples by a recipe."""
    generator = torch.Generator().manual_seed(seed)
    lora = LowRank(problem, rank, generator, recipe.head)

    def step_loss(picked: Tensor) -> Tensor:
        batch = problem.random_views(indices[picked], generator)
        return problem.loss.per_sample(lora(batch), problem.y[batch]).mean()

    n = len(indices)
    return lora, train(list(lora.parameters()), step_loss, n, recipe.schedule_of(n), generator=generator)


def fit_lora(problem: Problem, search: Search, *, rank: int = RANK, seed: int = 0) -> Fit:
    """Fit as fine-tuning is: a recipe of the same search by held-out training data, then all samples."""
    begun, search = time.perf_counter(), replace(search, batch_norms=False)  # W + B A is of the folded weights
    split = hold_out(problem, seed)
    validation = problem.subset(split.validation)
    selection, recipe = None, search.recipes[0]
    if len(split.validation):
        started = replace(problem, probe=probe_of(problem, split))  # no head that a trial starts with knows what judges

        def run(candidate: Recipe) -> Trial:
            lora, history = train_lora(started, split.train, candidate, rank, seed)
            if history.stopped == "interrupted":  # half a search chooses nothing
                raise KeyboardInterrupt
            logits = store_logits(lora.model(), validation.store)
            return judged(logits, validation.y, problem.loss, validation.weight, tempered=search.tempered)

        selection = select(search, run)
        selection, recipe = replace(selection, seconds=time.perf_counter() - begun), selection.best
    lora, history = train_lora(problem, torch.arange(problem.n), recipe, rank, seed)
    if not np.isfinite(history.loss).all():
        raise ConvergenceError(f"LoRA diverged with {recipe}")
    model = lora.model()
    if selection is not None:
        cool(model, selection.temperature)
    return Fit(model, time.perf_counter() - begun, history, selection=selection)
