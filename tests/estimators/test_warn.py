"""Warnings of a fit point at the line of the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare
from gradfeat.errors import GradfeatWarning

X = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
DAYS = np.arange("2020-01-01", "2020-01-25", dtype="datetime64[D]")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5))


def _classifier(**parameters: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), random_state=0, **parameters)


SAID: dict[str, tuple[Callable[[], Any], str]] = {
    "a schedule that is not used": (lambda: _classifier(penalty=0.1, epochs=2).fit(X, Y), "solved without them"),
    "a penalty that is not used": (
        lambda: _classifier(penalty=(0.1, 0.1), solver="adam", epochs=1).fit(X, Y),
        "has no penalty of w₂",
    ),
    "dates": (
        lambda: GradientFeatureRegressor(network(), mode="activation", penalty=0.1).fit(X, DAYS),
        "y holds dates",
    ),
    "a spread that single precision loses": (
        lambda: GradientFeatureRegressor(network(), mode="activation", penalty=0.1).fit(X, 1e-20 * X[:, 0]),
        "from its mean at most",
    ),
    "the same, in a comparison": (
        lambda: compare(
            network(), X, 1e-20 * X[:, 0], X, X[:, 0], modes=["activation"], task="regression", penalty=0.1
        ),
        "from its mean at most",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_a_warning_points_at_the_line_of_the_caller(case: str) -> None:
    call, text = SAID[case]
    with pytest.warns(GradfeatWarning) as caught:
        call()
    (found,) = (warning for warning in caught if text in str(warning.message))
    lines, first = inspect.getsourcelines(call)
    assert found.filename == __file__
    assert first <= found.lineno < first + len(lines)
