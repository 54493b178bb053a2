"""How a network does on held-out data, and when one is clearly better than another: one rule for all moves of θ̄₂."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.fit.penalties import NEGLIGIBLE
from gradfeat.fit.predict import store_logits
from gradfeat.fit.problem import Problem
from gradfeat.fit.splits import Split
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.finetune import judged, paired
from gradfeat.solvers.probe import Probe, fit_probe


@dataclass(frozen=True)
class Judged:
    """A network on validation data, after the best temperature there.

    Attributes:
        loss: Weighted mean; infinite where outputs are not finite.
        errors: Share of wrong classes.
        temperature: The best one.
        each: Loss of each sample, (k,).
        share: Weight of each, of sum one.
        interrupted: Whether its training was.
    """

    loss: float
    errors: float
    temperature: float
    each: Tensor
    share: Tensor
    interrupted: bool = False

    @staticmethod
    def of(problem: Problem, model: GradientFeatureModel, split: Split, *, interrupted: bool = False) -> Judged:
        """Judge a network by the held-out samples of a problem; of several versions of one by the first."""
        part = problem.subset(split.validation)
        logits = store_logits(model, part.store)
        found = judged(logits, part.y, problem.loss, part.weight, tempered=True)
        each = problem.loss.per_sample(logits.double() / found.temperature, part.y).cpu()
        share = torch.ones_like(each) if part.weight is None else part.weight.to(each)
        loss = found.loss if math.isfinite(found.loss) else math.inf
        return Judged(loss, found.errors, found.temperature, each, share / share.sum(), interrupted)

    def clearly_better(self, other: Judged) -> bool:
        """Whether the loss is lower by more than the error of the paired difference, and not by next to nothing.

        Args:
            other: Judged by the same samples.
        """
        mean, error = paired(other.each - self.each, self.share)
        return mean > error and self.loss < other.loss * (1 - NEGLIGIBLE)


def probe_of(problem: Problem, split: Split, factor: float = 1.0) -> Probe:
    """Return the probe of the samples that are not held out, with so many times the penalty of that of all."""
    rows = problem.all_views(split.train)
    return fit_probe(
        problem.store.features[rows],
        problem.y[rows],
        problem.loss,
        sample_weight=problem.weight_of(rows),
        penalty=factor * problem.probe.penalty,
        outputs=problem.outputs,
    )
