"""Samples of a class brought near each other: the loss of pairs of samples, and how θ₂ is moved by it.

Some samples of each class say little of the classes, but n of them are n (n - 1) / 2 pairs. The squared error of their
cosines, to 1 for a pair of one class and to 0 for others, is the loss of SetFit (Tunstall et al. 2022, "Efficient
few-shot learning without prompts"), and that of the networks of sentences themselves. SetFit runs the network for each
pair that it draws; here a minibatch of m samples is run once and counts for all of its m (m - 1) / 2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gradfeat.solvers.schedule import Schedule

BATCH = 64
"""Samples in a minibatch."""

STEPS = 20
"""Of one minibatch's samples at most; of more samples there are as many more as the root of their number."""

MOVE = 0.1
"""How far the first step moves the features, in units of their length."""

STOPS = (0.25, 0.5, 1.0)
"""Shares of the steps after which held-out samples may end them."""


def pair_loss(f: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared error of cosines of pairs, half of it of pairs of one class, half of the others.

    Args:
        f: Features, (m, d).
        y: Classes, (m,).
        weight: Of each sample, (m,); a pair has the product. None: all count the same.

    Example:
        >>> f = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
        >>> pair_loss(f, torch.tensor([0, 0, 1, 1]))
        tensor(0.)
        >>> pair_loss(f, torch.tensor([0, 1, 0, 1]))  # pairs of one class at 0 instead of 1, half of the others at 1
        tensor(0.7500)
    """
    unit = F.normalize(f, dim=1)
    cosine = unit @ unit.T
    counts = torch.ones_like(cosine) if weight is None else (weight[:, None] * weight).to(cosine)
    counts = counts.triu(diagonal=1)
    same = (y[:, None] == y).to(cosine)
    return 0.5 * (_mean((1 - cosine).square(), counts * same) + _mean(cosine.square(), counts * (1 - same)))


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return a weighted mean, zero where there is nothing."""
    return (values * counts).sum() / counts.sum().clamp_min(torch.finfo(counts.dtype).tiny)


def first_step(gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Adam's first step for a learning rate of one."""
    return {name: -value.sign() for name, value in gradient.items()}


def schedule_for(f: Tensor, tangent: Tensor, n: int) -> Schedule:
    """Return the schedule of n samples: Adam at a constant rate, which says how far features move.

    A learning rate means another thing for each network, and for each choice of θ₂; a part of the features' length
    means the same. A constant rate makes a shorter schedule the beginning of a longer one.

    Args:
        f: Features of some samples, (m, d).
        tangent: How they move by Adam's first step at a learning rate of one, at first order, (m, d).
        n: Number of samples.
    """
    lengths = [float(values.double().square().sum(1).mean().sqrt()) for values in (f, tangent)]
    rate = MOVE * lengths[0] / lengths[1] if lengths[1] > 0 and math.isfinite(lengths[1]) else 1e-12
    steps = math.ceil(STEPS * max(1.0, math.sqrt(n / BATCH)))
    return Schedule("adam", rate, steps, steps, BATCH)
