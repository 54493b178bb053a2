"""Logits and losses of a model on samples, kept or new."""

from __future__ import annotations

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.problem import Problem
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.samples import Batches, SampleStore


def store_of(model: GradientFeatureModel, store: SampleStore) -> SampleStore:
    """Return the samples as the model's linearization needs them, which rounds may have moved."""
    return store if model.linearization is store.linearization else store.at(model.linearization)


def batch_logits(model: GradientFeatureModel, store: SampleStore, batch: Tensor) -> Tensor:
    """Return the logits of some kept samples, (n, c), by the shortest way that the mode allows."""
    if model.mode == "finetune":
        return model.finetuned(store.z0(batch))
    if model.mode == "activation":
        return model.logits(store.all_features(batch), ())
    return model.logits(*store.primal(batch))


def store_logits(model: GradientFeatureModel, store: SampleStore, batch_size: int = 256) -> Tensor:
    """Return the logits of all kept samples, (n, c), wherever the model's linearization is."""
    store = store_of(model, store)
    batch_size = min(batch_size, store.room.batch)
    with torch.no_grad():
        return torch.cat([batch_logits(model, store, part) for part in torch.arange(len(store)).split(batch_size)])


def loss_at(problem: Problem, model: GradientFeatureModel, rows: Tensor) -> float:
    """Return the mean loss of some rows of the problem's store."""
    part = problem.subset(rows)
    return float(problem.loss.value(store_logits(model, part.store), part.y, part.weight))


def predict_logits(
    model: GradientFeatureModel, inputs: Batches, batch_size: int, progress: Progress | None = None
) -> Tensor:
    """Return the logits of new samples, (n, c)."""
    n = len(inputs)
    logits: list[Tensor] = []
    with (progress or Progress(False)).step("predict") as done, torch.no_grad():
        for start in range(0, n, batch_size):
            indices = range(start, min(start + batch_size, n))
            logits.append(model(inputs.batch(indices)))
            done(indices.stop, n)
    return finite(torch.cat(logits), "the model's outputs are not finite")


def finite(logits: Tensor, otherwise: str) -> Tensor:
    """Return logits that are finite.

    Raises:
        ConvergenceError: They are not.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ConvergenceError(otherwise)
    return logits
