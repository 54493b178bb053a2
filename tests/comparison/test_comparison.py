from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from sklearn.datasets import load_digits
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare
from gradfeat.comparison.side_by_side import Comparison
from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.estimators.reading import read_truth
from gradfeat.fit import SOLVERS, Fit, Plan, Problem
from gradfeat.fit.schedule import ScheduleSolver
from gradfeat.losses import CrossEntropy
from gradfeat.metrics.evaluation import metrics_of
from gradfeat.model import MODES
from gradfeat.progress import Progress

SETTINGS: dict[str, Any] = {"solver": "adam", "epochs": 3, "penalty": 0.1, "random_state": 0}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 3, padding=1), nn.ReLU()
    )


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    X = (images.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32)
    return X[:200], labels[:200], X[200:500], labels[200:500]


@pytest.fixture(scope="module")
def result(digits: tuple[np.ndarray, ...]) -> Comparison:
    return compare(network(), *digits, **SETTINGS)


# ---- the table ----------------------------------------------------------------------------------


def test_one_row_for_each_model(result: Comparison, digits: tuple[np.ndarray, ...]) -> None:
    assert [row.mode for row in result.rows] == list(MODES) == list(result.estimators)
    assert (result.n_train, result.n_test) == (200, 300)
    assert result.theta2 == ["3.weight", "3.bias"]
    head, theta2 = 12 * 10 + 10, 12 * 6 * 9 + 12
    expected = {"activation": head, "gradient": theta2 + 10, "full": head + theta2, "finetune": head + theta2}
    assert {row.mode: row.parameters for row in result.rows} == expected


@pytest.mark.parametrize("mode", MODES)
def test_metrics_are_those_of_scikit_learn(result: Comparison, digits: tuple[np.ndarray, ...], mode: str) -> None:
    X, y, X_test, y_test = digits
    estimator = result.estimators[mode]
    row = next(row for row in result.rows if row.mode == mode)
    assert row.metrics["accuracy"] == metrics.accuracy_score(y_test, estimator.predict(X_test))
    probability = estimator.predict_proba(X_test)
    assert row.metrics["log_loss"] == pytest.approx(metrics.log_loss(y_test, probability), rel=1e-5)
    assert row.train_loss == pytest.approx(metrics.log_loss(y, estimator.predict_proba(X)), rel=1e-4)


def test_full_goes_on_from_the_probe(result: Comparison) -> None:
    loss = {row.mode: row.train_loss for row in result.rows}
    assert loss["full"] < loss["activation"]
    assert loss["finetune"] < loss["activation"]


@pytest.mark.parametrize("mode", MODES)
def test_the_estimators_are_those_fitted_alone(result: Comparison, digits: tuple[np.ndarray, ...], mode: str) -> None:
    X, y, X_test, _ = digits
    alone = GradientFeatureClassifier(network(), mode=mode, **SETTINGS).fit(X, y)
    together = result.estimators[mode]
    np.testing.assert_allclose(together.decision_function(X_test), alone.decision_function(X_test), atol=1e-4)
    assert together.get_params()["mode"] == mode
    np.testing.assert_array_equal(together.classes_, alone.classes_)


def test_the_estimators_can_be_saved(result: Comparison, digits: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    from gradfeat import load

    before = result.estimators["full"]
    after = load(before.save(tmp_path / "m.safetensors"), backbone=network())
    np.testing.assert_array_equal(after.predict(digits[2]), before.predict(digits[2]))


def test_str_is_a_markdown_table(result: Comparison) -> None:
    lines = str(result).splitlines()
    assert len(lines) == 2 + len(MODES)
    assert lines[0] == "| model | accuracy % | log loss | train loss | parameters | time |"
    assert lines[1] == "|---|---|---|---|---|---|"
    row = result.rows[2]
    assert lines[4].startswith(f"| full | {100 * row.metrics['accuracy']:.2f} | {row.metrics['log_loss']:.4f} |")
    assert len({line.count("|") for line in lines}) == 1


def test_remarks_say_what_was_chosen(result: Comparison) -> None:
    text = "\n".join(result.remarks())
    assert "activation: penalty 0.1" in text
    assert re.search(r"adamw \S+, 3 epochs, .*, the best of [678] on held-out training data", text)
    assert "θ₂: 3.weight, 3.bias" in text


def test_numbers_survive_json(result: Comparison, tmp_path: Path) -> None:
    stored = json.loads(result.save_json(tmp_path / "c.json").read_text(), parse_constant=pytest.fail)
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert [row["mode"] for row in stored["rows"]] == list(MODES)
    assert stored["rows"][0]["metrics"] == result.rows[0].metrics


def test_best_reads_the_main_metric(result: Comparison) -> None:
    best = max(row.metrics["accuracy"] for row in result.rows)
    assert next(row for row in result.rows if row.mode == result.best()).metrics["accuracy"] == best


def test_plot_is_a_picture(result: Comparison, tmp_path: Path) -> None:
    path = result.plot(tmp_path / "c.png", title="digits")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


# ---- tasks --------------------------------------------------------------------------------------


def test_multilabel(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_test, y_test = digits
    labels, truth = (np.stack([d % 2 == 0, d > 4, d == 3], 1).astype(int) for d in (y, y_test))
    table = compare(network(), X, labels, X_test, truth, modes=["activation", "full"], **SETTINGS)
    assert table.metric_names == ["map_11point", "map_area", "log_loss"]
    for row in table.rows:
        estimator = table.estimators[row.mode]
        probability = estimator.predict_proba(X_test)
        expected = np.mean([metrics.log_loss(truth[:, i], probability[:, i]) for i in range(3)])
        assert row.metrics["log_loss"] == pytest.approx(expected, rel=1e-5)
        # scikit-learn sums steps without the envelope: a little less than the area under it
        steps = metrics.average_precision_score(truth, estimator.decision_function(X_test))
        assert steps - 1e-6 <= row.metrics["map_area"] <= steps + 0.05
        assert estimator.score(X_test, truth) == pytest.approx(row.metrics["map_area"], abs=1e-6)


def test_ignored_labels_count_nowhere(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_test, y_test = digits
    labels, truth = (np.stack([d % 2, d > 4], 1).astype(float) for d in (y, y_test))
    truth[:150, 0] = np.nan
    table = compare(network(), X, labels, X_test, truth, modes=["activation"], **SETTINGS)
    probability = table.estimators["activation"].predict_proba(X_test)
    columns = [(truth[150:, 0], probability[150:, 0]), (truth[:, 1], probability[:, 1])]
    losses = np.concatenate([-np.log(np.where(t == 1, p, 1 - p)) for t, p in columns])
    assert table.rows[0].metrics["log_loss"] == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_regression(digits: tuple[np.ndarray, ...], outputs: int) -> None:
    X, y, X_test, y_test = digits
    targets, truth = (np.stack([d, d**2 / 9], 1)[:, :outputs].squeeze() for d in (y, y_test))
    table = compare(network(), X, targets, X_test, truth, modes=["activation", "full"], task="regression", **SETTINGS)
    assert table.metric_names == ["r2", "rmse"]
    for row in table.rows:
        estimator = table.estimators[row.mode]
        assert isinstance(estimator, GradientFeatureRegressor)
        predicted = estimator.predict(X_test)
        assert row.metrics["r2"] == pytest.approx(metrics.r2_score(truth, predicted), abs=1e-5)
        assert row.metrics["rmse"] == pytest.approx(metrics.mean_squared_error(truth, predicted) ** 0.5, rel=1e-5)


def test_string_labels_and_sample_weights(digits: tuple[np.ndarray, ...]) -> None:
    X, y, X_test, y_test = digits
    names = np.array([f"digit {i}" for i in range(10)])
    weight = np.ones(200)
    weight[:20] = 0
    table = compare(
        network(), X, names[y], X_test, names[y_test], modes=["activation"], sample_weight=weight, **SETTINGS
    )
    alone = GradientFeatureClassifier(network(), mode="activation", **SETTINGS).fit(X[20:], names[y[20:]])
    assert table.rows[0].metrics["accuracy"] == pytest.approx(alone.score(X_test, names[y_test]), abs=0.01)
    assert table.n_train == 180


# ---- what goes wrong ----------------------------------------------------------------------------


class Failing(ScheduleSolver):
    """Adam, which fails with one mode."""

    def __init__(self, mode: str, error: BaseException) -> None:
        super().__init__("adam")
        self.mode, self.error = mode, error

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        if plan.mode == self.mode:
            raise self.error
        return super().fit(problem, plan, progress)


def test_interruption_keeps_the_rows_before_it(digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOLVERS, "adam", Failing("full", KeyboardInterrupt()))
    table = compare(network(), *digits, **SETTINGS)
    assert [row.mode for row in table.rows] == ["activation", "gradient"] == list(table.estimators)
    assert any("interrupted in full" in note for note in table.notes)


def test_interruption_within_the_search_of_a_learning_rate_ends_it(
    digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfeat.fit import training

    train = training.train
    runs: list[str] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        runs.append("run")
        history = train(*args, **kwargs)
        if len(runs) == 2:
            history.stopped = "interrupted"
        return history

    monkeypatch.setattr(training, "train", interrupted)
    table = compare(network(), *digits, modes=["activation", "finetune"], **SETTINGS)
    assert len(runs) == 2
    assert [row.mode for row in table.rows] == ["activation"]


def test_interruption_between_epochs_is_said_in_the_row(
    digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfeat.fit import training

    train = training.train

    def interrupted(*args: Any, on_epoch: Any, **kwargs: Any) -> Any:
        def stop(epoch: int, history: Any) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

        return train(*args, on_epoch=stop, **kwargs)

    monkeypatch.setattr(training, "train", interrupted)
    table = compare(network(), *digits, modes=["full", "gradient"], **SETTINGS)
    assert [(row.mode, row.note) for row in table.rows] == [("full", "stopped after 2 epochs")]


def test_a_model_that_diverges_leaves_the_others(
    digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOLVERS, "adam", Failing("gradient", ConvergenceError("the loss became nan")))
    table = compare(network(), *digits, modes=["activation", "gradient", "full"], **SETTINGS)
    assert [row.mode for row in table.rows] == ["activation", "full"]
    assert "gradient has no row: the loss became nan" in table.notes


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"modes": ["activaton"]}, "Did you mean activation"),
        ({"modes": []}, "modes must be some of"),
        ({"modes": "full"}, "modes must be some of"),
        ({"modes": ["full", "full"]}, "each once"),
        ({"task": "ranking"}, "task must be"),
        ({"epoch": 3}, "Did you mean epochs"),
        ({"mode": "full"}, "unknown parameter 'mode'"),
        ({"solver": "lbfgsb"}, "solver must be"),
    ],
)
def test_arguments_that_cannot_be_meant(digits: tuple[np.ndarray, ...], arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        compare(network(), *digits, **{**SETTINGS, **arguments})


def test_test_labels_are_checked_before_any_work(
    digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, X_test, y_test = digits

    def no_work(*args: Any) -> Any:
        pytest.fail("the network was linearized")

    monkeypatch.setattr(GradientFeatureClassifier, "prepare", no_work)
    with pytest.raises(DataError, match=r"classes that the training data has not: 9"):
        compare(network(), X[y < 9], y[y < 9], X_test, y_test, **SETTINGS)
    numbers, names = np.array([2, 10]), np.array(["10", "2"])  # one data set, whose files differ in their quotes
    assert read_truth(names, "multiclass", numbers).tolist() == [1, 0]
    assert read_truth(numbers, "multiclass", names).tolist() == [1, 0]
    with pytest.raises(DataError, match="has not: 02"):
        read_truth(np.array(["02"]), "multiclass", numbers)
    with pytest.raises(DataError, match="300 samples and y has 299"):
        compare(network(), X, y, X_test, y_test[:-1], **SETTINGS)
    with pytest.raises(DataError, match="3 columns, the training labels 2"):
        compare(network(), X, np.eye(2)[y % 2], X_test, np.eye(3)[y_test % 3], **SETTINGS)
    with pytest.raises(DataError, match="positive"):
        compare(network(), X, np.eye(2)[y % 2], X_test, np.zeros((len(y_test), 2), int), **SETTINGS)


def test_an_empty_comparison_says_so() -> None:
    empty = Comparison([], [], {}, 0, 0)
    assert json.loads(json.dumps(empty.to_dict()))["rows"] == []
    with pytest.raises(ConfigurationError, match="no finished model"):
        empty.best()


def test_truth_of_each_task() -> None:
    np.testing.assert_array_equal(read_truth(np.array(["b", "a"]), "multiclass", np.array(["a", "b"])), [1, 0])
    assert read_truth(np.array([1, 2]), "regression", None).shape == (2, 1)
    with pytest.raises(DataError, match="must be numbers"):
        read_truth(np.array(["b", "a"]), "regression", None)
    with pytest.raises(DataError, match="NaN"):
        read_truth(np.array([np.nan]), "regression", None)
    with pytest.raises(DataError, match="shape"):
        read_truth(np.eye(2), "multiclass", np.array([0, 1]))


def test_metrics_by_hand() -> None:
    logits = np.log([[0.5, 0.5], [0.2, 0.8]])
    found = metrics_of(CrossEntropy(), logits, np.array([0, 1]))
    assert found["accuracy"] == 1.0  # of equals the first counts
    assert found["log_loss"] == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)
