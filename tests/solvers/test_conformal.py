"""Intervals and sets by their definitions, sample by sample; and their coverage on made-up data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradfeat.errors import ConfigurationError
from gradfeat.solvers.conformal import cv_plus_sets, jackknife_plus, rank_of


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_intervals_are_those_of_the_definition(coverage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    predictions, residuals = torch.randn(5, 37, generator=generator), torch.rand(37, generator=generator)
    found = jackknife_plus(predictions, residuals, coverage)
    for row, (lower, upper) in zip(predictions, found, strict=True):  # Barber et al., Sec. 1.3
        below, above = sorted((row - residuals).tolist()), sorted((row + residuals).tolist())
        assert lower == below[math.floor((1 - coverage) * 38 + 1e-9) - 1]
        assert upper == above[math.ceil(coverage * 38 - 1e-9) - 1]


def test_sets_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, own = torch.randn(6, 29, 4, generator=generator), torch.randn(29, generator=generator)
    found = cv_plus_sets(scores, own, 0.8)
    for x in range(6):
        for k in range(4):  # Romano et al., Eq. 11
            count = sum(bool(own[i] < scores[x, i, k]) for i in range(29))
            assert bool(found[x, k]) == (count < 0.8 * 30)


def test_a_mean_of_samples_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        y = torch.from_numpy(generator.standard_t(4, size=41))
        train, new = y[:40], y[40]
        without = (train.sum() - train) / 39
        lower, upper = jackknife_plus(without[None], (train - without).abs(), 0.9)[0]
        covered.append(bool(lower <= new <= upper))
    assert abs(np.mean(covered) - 0.9) < 4 * math.sqrt(0.09 / 300)


def test_ranks_and_what_cannot_be_promised() -> None:
    assert rank_of(9, 0.9) == 9
    for coverage in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            rank_of(100, coverage)
    with pytest.raises(ConfigurationError, match="takes 19 training samples"):
        rank_of(18, 0.95)
