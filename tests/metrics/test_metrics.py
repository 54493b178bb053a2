from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics

from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning
from gradfeat.metrics.scores import (
    accuracy,
    average_precision,
    average_precisions,
    expected_calibration_error,
    log_loss,
    mean_average_precision,
    r2,
    rmse,
)

RNG = np.random.default_rng(0)


def test_against_scikit_learn() -> None:
    y, predicted = RNG.integers(0, 3, 50), RNG.integers(0, 3, 50)
    p = RNG.dirichlet(np.ones(3), 50)
    assert accuracy(y, predicted) == sklearn.metrics.accuracy_score(y, predicted)
    assert log_loss(y, p) == pytest.approx(sklearn.metrics.log_loss(y, p))
    target, value = RNG.normal(size=(50, 2)), RNG.normal(size=(50, 2))
    assert r2(target, value) == pytest.approx(sklearn.metrics.r2_score(target, value))
    assert rmse(target, value) == pytest.approx(sklearn.metrics.mean_squared_error(target, value) ** 0.5)


def test_log_loss_of_labels_leaves_ignored_ones_out() -> None:
    y = np.array([[1.0, 0.0], [np.nan, 1.0]])
    p = np.array([[0.8, 0.4], [0.1, 0.5]])
    assert log_loss(y, p) == pytest.approx(-(np.log(0.8) + np.log(0.6) + np.log(0.5)) / 3)


@pytest.mark.parametrize("ties", [False, True])
def test_step_is_scikit_learns(ties: bool) -> None:
    scores, labels = RNG.normal(size=200), RNG.integers(0, 2, 200)
    if ties:
        scores = scores.round(0)
    expected = sklearn.metrics.average_precision_score(labels, scores)
    assert average_precision(scores, labels, "step") == pytest.approx(expected)


def test_envelope_by_hand() -> None:
    # ranked: hit, miss, miss, hit, hit -> precision 1, 1/2, 1/3, 2/4, 3/5 at recall 1/3, 1/3, 1/3, 2/3, 1
    scores, labels = [5, 4, 3, 2, 1], [1, 0, 0, 1, 1]
    # the envelope is 1 up to recall 1/3 and 3/5 from there to 1
    assert average_precision(scores, labels, "area") == pytest.approx(1 / 3 + 2 / 3 * 3 / 5)
    # recalls 0, .1, .2, .3 see 1; .4 ... 1 see 3/5
    assert average_precision(scores, labels, "11point") == pytest.approx((4 * 1 + 7 * 3 / 5) / 11)
    assert average_precision(scores, labels, "step") == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_ties_enter_together() -> None:
    for method in ("area", "11point", "step"):
        forward = average_precision([1, 1, 1, 0], [1, 0, 0, 1], method)
        assert forward == average_precision([1, 1, 1, 0], [0, 0, 1, 1], method)
    assert average_precision([1, 1], [1, 0]) == 0.5


def test_classes_without_positives_and_ignored_entries() -> None:
    scores = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    values = average_precisions(scores, labels)
    assert values[0] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert np.isnan(values[1])
    with pytest.warns(GradfeatWarning, match="class 1"):
        assert mean_average_precision(scores, labels) == values[0]
    ignore = np.array([[False, False], [True, False], [False, False]])
    assert average_precisions(scores, labels, ignore=ignore)[0] == 1.0  # the one miss does not count
    with pytest.raises(DataError, match="no class has a positive"):
        mean_average_precision(scores, 0 * labels)


def test_calibration_error_by_hand() -> None:
    # confidence 0.9 twice with one right: |0.9 - 0.5|; confidence 0.6 once, right: |0.6 - 1|
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert expected_calibration_error([0, 1, 1], p, bins=10) == pytest.approx((2 * 0.4 + 0.4) / 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: accuracy([1, 2], [1]),
        lambda: accuracy([], []),
        lambda: log_loss([0, 3], [[0.5, 0.5], [0.5, 0.5]]),
        lambda: log_loss([0], [[1.5, -0.5]]),
        lambda: average_precision([np.nan], [1]),
        lambda: average_precision([1.0], [2]),
        lambda: mean_average_precision(np.zeros((2, 2)), np.zeros((2, 3))),
        lambda: r2([1.0, 2.0], [1.0]),
        lambda: r2([1.0, np.nan], [1.0, 2.0]),
        lambda: rmse(["a"], [1.0]),
        lambda: accuracy(["a", "b"], [0, 1]),
        lambda: log_loss([0, np.nan], [[0.5, 0.5], [0.5, 0.5]]),
        lambda: log_loss(0, [[0.5, 0.5]]),
        lambda: log_loss([0], [[2.0, -1.0]]),
        lambda: log_loss([[np.nan, np.nan]], [[0.5, 0.5]]),
        lambda: average_precision([1.0, 2.0], ["a", "b"]),
        lambda: average_precision(["a", "b"], [0, 1]),
        lambda: average_precision([1.0, 2.0], [1.0, np.nan]),
        lambda: average_precision([[1.0]], [[1]]),
        lambda: average_precisions(np.eye(2), np.eye(2), ignore=np.array([[0, np.nan], [0, 0]])),
        lambda: average_precisions(np.eye(2), np.eye(2), ignore=np.zeros(2, dtype=bool)),
        lambda: expected_calibration_error([0], [[5.0, -4.0]]),
        lambda: expected_calibration_error([], np.zeros((0, 2))),
    ],
)
def test_bad_input(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError):
        call()


@pytest.mark.parametrize("metric", [log_loss, expected_calibration_error])
def test_scores_are_not_taken_for_probabilities(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"those of sample 1 sum to 1\.4"):
        metric([0, 1], [[0.5, 0.5], [0.7, 0.7]])
    half = np.array([[1 / 3, 2 / 3], [0.9, 0.1]], dtype=np.float16)
    assert np.isfinite(metric([0, 1], half))


def test_labels_of_any_value_may_be_ignored() -> None:
    labels = np.array([[1, np.nan], [0, 1], [-1, 0]])
    ignore = np.array([[False, True], [False, False], [True, False]])
    assert mean_average_precision([[3, 0], [2, 2], [1, 1]], labels, ignore=ignore) == 1.0


def test_r2_of_constant_targets() -> None:
    # the mean of three times 0.1 is not 0.1 in floating point
    assert r2([0.1] * 3, [0.1, 0.1, 0.2]) == 0.0
    assert r2([0.1] * 3, [0.1] * 3) == 1.0


def test_no_bins() -> None:
    with pytest.raises(ConfigurationError, match="bins"):
        expected_calibration_error([0], [[1.0, 0.0]], bins=0)


def test_metrics_do_without_torch() -> None:
    code = "import gradfeat.metrics, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_method() -> None:
    with pytest.raises(ConfigurationError, match="11point"):
        average_precision([1.0], [1], "12point")
