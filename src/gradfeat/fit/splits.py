"""Training samples divided into a part that is fitted to and a part that judges: for choices, never for a report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.solvers.probe import folds

ONE_SPLIT_FROM = 1000
"""From this number of samples on, one validation part is enough."""

JUDGED = 300
"""Samples of fewer that judge a choice, where there are as many: so many parts are held out, one after another. Each
costs further subspaces, which take a pass for each direction."""

PATH_BELOW = (850, 600, 430, 310)
"""Below each of these numbers of samples one part more judges the penalties of ω̄, some 200 samples in all; the other
parts judge λ₁ and λ₂ of the best ω̄ alone. So a sample less costs little more."""

METRIC_BELOW = (400, 350, 320, 300)
"""Below each of them one part more judges the second metric, where there is one."""

WHOLE, TRAINED, JUDGING = 1500, 800, 400
"""Of more than `WHOLE` samples ω̄ is chosen on so many of the first part, fitted to and judged by."""

PARTS = 5
"""Disjoint parts into which fewer samples are divided. All of the fewest are held out, each once, else some parts."""

SPLITS = 3
"""The same where a class has fewer samples than that: parts drawn at random, which overlap."""

SHARE = 0.2
"""Share of the samples in a part that is drawn at random."""


@dataclass(frozen=True)
class Split:
    """The samples of a data set in two parts, as indices without views.

    Attributes:
        train: Fitted to, (m,).
        validation: Judged by, (k,).
    """

    train: Tensor
    validation: Tensor


def count_of(n: int) -> int:
    """Return how many parts of n samples judge a choice.

    Example:
        >>> [count_of(n) for n in (100, 300, 375, 500, 750, 999, 1000)]
        [5, 5, 4, 3, 2, 2, 1]
    """
    return 1 if n >= ONE_SPLIT_FROM else min(PARTS, math.ceil(PARTS * JUDGED / n))


def path_count_of(n: int) -> int:
    """Return how many of these parts judge ω̄.

    Example:
        >>> [path_count_of(n) for n in (100, 300, 375, 500, 750, 999, 1000)]
        [5, 5, 4, 3, 2, 1, 1]
    """
    return min(count_of(n), 1 + sum(n < below for below in PATH_BELOW))


def metric_count_of(n: int) -> int:
    """Return how many of them judge a second metric.

    Example:
        >>> [metric_count_of(n) for n in (100, 300, 375)]
        [5, 4, 2]
    """
    return min(count_of(n), 1 + sum(n < below for below in METRIC_BELOW))


def some_of(split: Split, generator: torch.Generator) -> Split:
    """Return some of a split's samples, at random, for the choice of ω̄."""
    parts = ((split.train, TRAINED), (split.validation, JUDGING))
    train, validation = (
        rows[torch.randperm(len(rows), generator=generator)[:most].sort().values] for rows, most in parts
    )
    return Split(train, validation)


def splits_of(problem: Problem, plan: Plan) -> list[Split]:
    """Return the splits that penalties are chosen on; none if there are too few samples.

    Of few samples each is in one validation part: parts drawn at random leave a third of them out, and the least of
    many means over so few is often that of a penalty far too light.
    """
    first, count, n = plan.draw(2**31 - 1 - SPLITS), plan.splits, problem.n
    if count is None and n < ONE_SPLIT_FROM:
        pairs, note = folds(problem.y[:n].cpu(), problem.loss, PARTS, first)
        if pairs and not note:
            pairs = pairs[: count_of(n)]
            return [Split(torch.from_numpy(train), torch.from_numpy(validation)) for train, validation in pairs]
        count = SPLITS  # rare classes
    splits = [hold_out(problem, first + i) for i in range(count or 1)]
    return splits if all(len(split.validation) for split in splits) else []


def hold_out(problem: Problem, seed: int | None, share: float = SHARE) -> Split:
    """Split the samples in two, by class where there are classes; fewer than five are all trained on."""
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    n = problem.n
    y = problem.y[:n].cpu().numpy()
    size = max(1, round(share * n))
    if n < 5:
        return Split(torch.arange(n), torch.arange(0))
    if y.ndim == 1 and y.dtype.kind in "iu":
        counts = np.bincount(y)
        classes = int((counts > 0).sum())
        if counts[counts > 0].min() < 2 or size < classes or n - size < classes:
            return _spare_last(y, size, seed)
        splitter: Any = StratifiedShuffleSplit(1, test_size=size, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=size, random_state=seed)
    train, validation = next(splitter.split(np.zeros(n), y))
    return Split(torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(validation)))


def _spare_last(y: np.ndarray, size: int, seed: int | None) -> Split:
    """Hold out samples at random, but of no class its last one: for classes too rare to be stratified."""
    left = np.bincount(y)
    validation: list[int] = []
    for i in np.random.RandomState(seed).permutation(len(y)):
        if len(validation) < size and left[y[i]] > 1:
            left[y[i]] -= 1
            validation.append(int(i))
    train = np.setdiff1d(np.arange(len(y)), validation)
    return Split(torch.from_numpy(train), torch.from_numpy(np.sort(np.array(validation, dtype=np.int64))))
