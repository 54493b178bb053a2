"""What logits are worth under a task's loss: its metrics, and how far two models agree."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradfeat.losses import Loss
from gradfeat.metrics.scores import accuracy, log_loss, mean_average_precision, r2, rmse


def metrics_of(loss: Loss, logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the metrics of a task on test data, the main one first.

    Args:
        loss: The task's loss.
        logits: (n, c).
        truth: From `read_truth`.
    """
    if loss.task == "regression":
        values = loss.predict_proba(torch.from_numpy(logits)).numpy()
        return {"r2": r2(truth, values), "rmse": rmse(truth, values)}
    probability = loss.predict_proba(torch.from_numpy(logits)).numpy()
    if loss.task == "multilabel":
        return {**precisions_of(logits, truth), "log_loss": log_loss(truth, probability)}
    return {"accuracy": accuracy(truth, probability.argmax(1)), "log_loss": log_loss(truth, probability)}


def precisions_of(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the mean average precisions of scores for several labels, (n, c); NaN in `truth` does not count."""
    ignore, labels = np.isnan(truth), np.nan_to_num(truth)
    return {
        "map_11point": mean_average_precision(scores, labels, ignore=ignore, method="11point"),
        "map_area": mean_average_precision(scores, labels, ignore=ignore, method="area"),
    }


def mean_of_views(logits: Tensor, views: int, loss: Loss) -> Tensor:
    """Return logits that stand for the mean prediction over the views of each sample, (n, c).

    Probabilities are averaged, not logits: the paper says only that ten crops are averaged (Table 4), and probabilities
    are what a prediction is. The mean goes back to logits, as everything after it takes them; in logarithms, so that
    none is rounded to 0 or 1. A regression's values are averaged.

    Args:
        logits: (n · views, c), the views of a sample in a row.
        views: Their number.
        loss: The task's loss.

    Example:
        >>> from gradfeat.losses import MultiLabelLogistic
        >>> two = torch.tensor([[0.0], [math.log(3)]])  # probabilities 1/2 and 3/4, whose mean is 5/8
        >>> round(mean_of_views(two, 2, MultiLabelLogistic()).sigmoid().item(), 6)
        0.625
    """
    if views == 1:
        return logits
    parts = logits.double().unflatten(0, (-1, views))
    if loss.task == "regression":
        return parts.mean(1)
    if loss.task == "multilabel":
        return F.logsigmoid(parts).logsumexp(1) - F.logsigmoid(-parts).logsumexp(1)
    return parts.log_softmax(2).logsumexp(1) - math.log(views)


def agreement(a: Tensor, b: Tensor, loss: Loss) -> float:
    """Return the share of equal decisions: of classes, or of labels; for regression the squared correlation.

    Example:
        >>> from gradfeat.losses import CrossEntropy
        >>> agreement(torch.eye(2), torch.tensor([[2.0, 1.0], [2.0, 1.0]]), CrossEntropy())
        0.5
    """
    if loss.task == "multiclass":
        return float((a.argmax(1) == b.argmax(1)).double().mean())
    if loss.task == "multilabel":
        return float(((a > 0) == (b > 0)).double().mean())
    a, b = (value.double() - value.double().mean(0) for value in (a, b))
    scale = (a.square().sum(0) * b.square().sum(0)).clamp_min(torch.finfo(torch.float64).tiny)
    return float(((a * b).sum(0).square() / scale).mean())


def per_sample_of(loss: Loss, logits: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each sample adds to a task's metrics, (n,) each, the main one first.

    Args:
        loss: The task's loss.
        logits: (n, c).
        truth: From `read_truth`.

    Returns:
        "accuracy" (1 where the class is right, else 0) and "log_loss"; for several labels "log_loss", the mean over
        those that count, NaN without any; for regression "squared_error", the mean over outputs.
    """
    probability = loss.predict_proba(torch.from_numpy(logits)).numpy()
    if loss.task == "regression":
        return {"squared_error": np.square(probability - truth).mean(1)}
    eps = np.finfo(np.float64).eps
    p = np.clip(probability, eps, 1 - eps)
    if loss.task == "multilabel":
        known = ~np.isnan(truth)
        losses = -np.where(truth == 1, np.log(p), np.log1p(-p))
        count = known.sum(1)
        return {"log_loss": np.where(count, (losses * known).sum(1) / np.maximum(count, 1), np.nan)}
    right = (probability.argmax(1) == truth).astype(float)
    return {"accuracy": right, "log_loss": -np.log(p[np.arange(len(p)), truth])}
