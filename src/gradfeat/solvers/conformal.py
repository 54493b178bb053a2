"""Sets and intervals of a stated coverage, from the fits without each training sample and from no further data.

Jackknife+ (Barber, Candès, Ramdas & Tibshirani, 2021), and its sets of classes, CV+ with n folds (Romano, Sesia &
Candès, 2020). What a new sample conforms to is not one model: it is compared with each training sample i by the model
without i, which has seen neither. Whatever the data are, if all samples are exchangeable, at least ``1 - 2α`` of new
samples are covered, for a nominal ``1 - α``; of stable models close to ``1 - α``. Every training sample counts once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError, DataError

_ROUNDING = 1e-9  # 0.9 · 10 is not 9.000000000000002 samples


def rank(n: int, coverage: float) -> int:
    """Return which of n scores in ascending order bounds a new one's: ``⌈(n + 1) coverage⌉``, more than n for none.

    Raises:
        ConfigurationError: The coverage is not between 0 and 1.

    Example:
        >>> rank(9, 0.9), rank(8, 0.9)
        (9, 9)
    """
    if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 < coverage < 1:
        raise ConfigurationError(f"coverage must be between 0 and 1, 0.9 for nine of ten, not {coverage!r}")
    return max(1, math.ceil((n + 1) * coverage - _ROUNDING))


def check_count(n: int, coverage: float) -> None:
    """Refuse fewer samples than a coverage needs.

    Raises:
        DataError: They are too few: only all values there are would be covered so often.
        ConfigurationError: As of `rank`.
    """
    if rank(n, coverage) > n:
        least = math.ceil(coverage / (1 - coverage) - _ROUNDING)
        raise DataError(
            f"coverage {coverage} needs at least {least} training samples, and the model was fitted to {n}: "
            f"at most {n / (n + 1):.4g} can be had"
        )


def intervals(predictions: Tensor, errors: Tensor, coverage: float) -> Tensor:
    """Return intervals by jackknife+, (m, 2, ...).

    Args:
        predictions: Of m samples by the model without each of n training samples, (m, n, ...).
        errors: Absolute errors of each training sample by the model without it, (n, ...).
        coverage: Nominal share of new samples whose value is inside.

    Raises:
        DataError: n is too small for the coverage.
        ConfigurationError: As of `rank`.

    Example:
        >>> zero = torch.zeros(1, 4)
        >>> intervals(zero, torch.tensor([1.0, 4.0, 2.0, 3.0]), 0.8)
        tensor([[-4.,  4.]])
    """
    n = len(errors)
    check_count(n, coverage)
    k = rank(n, coverage)
    low = -(errors - predictions).kthvalue(k, 1).values
    high = (predictions + errors).kthvalue(k, 1).values
    return torch.stack([low, high], 1)


def sets(scores: Tensor, own: Tensor, coverage: float) -> Tensor:
    """Return which classes belong to the sets of m samples by CV+ with n folds, (m, c), booleans.

    Args:
        scores: How badly each class fits each sample by the model without each of n training samples, (m, n, c).
        own: How badly the class of each training sample fits it by the model without it, (n,).
        coverage: Nominal share of new samples whose class is in their set.

    Returns:
        A class belongs to it unless it fits worse than their own class does for `rank` training samples or more.

    Raises:
        ConfigurationError: As of `rank`.

    Example:
        >>> sets(torch.tensor([[[0.1, 0.5, 0.9]]]).expand(1, 4, 3), torch.tensor([0.0, 0.2, 0.4, 0.6]), 0.7)
        tensor([[ True,  True, False]])
    """
    worse = (own[:, None] < scores).sum(1)
    return worse < rank(len(own), coverage)
