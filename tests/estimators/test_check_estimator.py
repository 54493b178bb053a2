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
        return nn.Sequential(nn.Linear(shape[1], 16), nn.Tanh())

    def __repr__(self) -> str:
        return "tabular"


# The penalty is given, for time (the checks fit some hundred models), and because weights equal repetition to 1e-7 only
# so: cross-validation puts repeated samples into different folds. (Tested with it in test_estimators.py.)
SETTINGS: dict[str, Any] = {"solver": "adam", "epochs": 2, "penalty": 1e-3, "random_state": 0, "precision": "float64"}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [GradientFeatureClassifier(Tabular(), **SETTINGS), GradientFeatureRegressor(Tabular(), **SETTINGS)]
)
def test_scikit_learn_contract(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "penalties are chosen by folds, and copies of a sample fall into "
    "different ones",
    "check_methods_subset_invariance": "single precision is the default: batches of other sizes differ at 1e-6",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [GradientFeatureClassifier(Tabular()), GradientFeatureRegressor(Tabular())],
    expected_failed_checks=lambda estimator: EXPECTED,
)
def test_scikit_learn_contract_of_the_default_settings(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
