"""Prediction intervals and sets from fits without each sample: jackknife+ and CV+, with a guarantee.

Whatever the model, where samples are exchangeable a new one is covered with probability ``1 - 2α`` at least, and in
practice nearly ``1 - α`` (Barber, Candès, Ramdas & Tibshirani 2021; Romano, Sesia & Candès 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError


def rank_of(n: int, coverage: float) -> int:
    """Return ``⌈coverage · (n + 1)⌉``, the rank of the score of n that bounds a new one's.

    Raises:
        ConfigurationError: A coverage outside 0 to 1, or one that so few samples cannot promise.

    Example:
        >>> rank_of(19, 0.9)
        18
    """
    if not 0 < coverage < 1:
        raise ConfigurationError(f"coverage must be between 0 and 1, not {coverage}")
    rank = math.ceil(coverage * (n + 1) - 1e-9)
    if rank > n:
        least = math.ceil(coverage / (1 - coverage))
        raise ConfigurationError(f"a coverage of {coverage:g} takes {least} training samples at least, not {n}")
    return rank


def jackknife_plus(predictions: Tensor, residuals: Tensor, coverage: float) -> Tensor:
    """Return intervals, (m, 2), by the predictions of new samples without each training sample.

    Args:
        predictions: Of m samples, each by the n models without one, (m, n).
        residuals: Distance of each training sample to its prediction without it, (n,).
        coverage: 1 - α.

    Example:
        >>> jackknife_plus(torch.zeros(1, 9), torch.arange(1.0, 10.0), 0.8)
        tensor([[-8.,  8.]])
    """
    n = len(residuals)
    rank = rank_of(n, coverage)
    upper = (predictions + residuals).kthvalue(rank, 1).values
    lower = (predictions - residuals).kthvalue(n + 1 - rank, 1).values
    return torch.stack([lower, upper], 1)


def cv_plus_sets(scores: Tensor, own: Tensor, coverage: float) -> Tensor:
    """Return which classes belong to the set of each sample, (m, c).

    A class does unless it is stranger, by the model without a training sample, than that sample's own class for nearly
    all training samples.

    Args:
        scores: How strange each class of m samples is by the n models without one sample, (m, n, c).
        own: How strange each training sample's class is by the model without it, (n,).
        coverage: 1 - α.
    """
    rank = rank_of(len(own), coverage)
    stranger = (scores > own[:, None]).sum(1)
    return stranger < rank
