"""scikit-learn's own contract for estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor


class Tabular:
    """Builds a small network for tables; named the same in every process, as the tests' names need."""

    def __call__(self, shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[1], 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())

    def __repr__(self) -> str:
        return "tabular"


CANNOT_APPLY = {
    "check_sample_weight_equivalence_on_dense_data": "asks for equality to 1e-7; Adam divides gradients by their own "
    "size and amplifies rounding to about 1e-6 (weights equal repetition in test_weights_equal_repetition)",
}

SETTINGS: dict[str, Any] = {"epochs": 2, "cv": 2, "random_state": 0, "precision": "float64"}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [GradientFeatureClassifier(Tabular(), **SETTINGS), GradientFeatureRegressor(Tabular(), **SETTINGS)],
    expected_failed_checks=lambda estimator: CANNOT_APPLY,
)
def test_scikit_learn_contract(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
