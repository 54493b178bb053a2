from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradfeat.comparison.report_charts import report_chart
from gradfeat.losses import CrossEntropy, MultiLabelLogistic, OneHotSquared, Squared
from gradfeat.metrics.evaluation import metrics_of, per_sample_of
from gradfeat.metrics.report import ClassReport, LabelReport, ValueReport, class_report, report_of


def labels(classes: int, n: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    pair = st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1))
    return st.lists(pair, min_size=1, max_size=n)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 6).flatmap(lambda c: st.tuples(st.just(c), labels(c, 30))))
@pytest.mark.filterwarnings("ignore::UserWarning")  # of scikit-learn, on classes without samples
def test_classes_agree_with_scikit_learn(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    c, pairs = drawn
    truth, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    found = class_report(truth, predicted, [f"class {i}" for i in range(c)])
    np.testing.assert_array_equal(found.confusion, reference.confusion_matrix(truth, predicted, labels=range(c)))
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        truth, predicted, labels=range(c), zero_division=0
    )
    np.testing.assert_allclose(np.nan_to_num(found.precision), precision)
    np.testing.assert_allclose(np.nan_to_num(found.recall), recall)
    np.testing.assert_allclose(np.nan_to_num(found.f1), f1)
    np.testing.assert_array_equal(found.support, support)
    assert np.isnan(found.recall).tolist() == (support == 0).tolist()
    assert np.isnan(found.precision).tolist() == (np.bincount(predicted, minlength=c) == 0).tolist()
    assert found.metrics() == pytest.approx(
        {
            "macro_f1": reference.f1_score(truth, predicted, average="macro"),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted),
        }
    )
    errors = [(int(i[6:]), int(j[6:]), count) for i, j, count in found.confused(1000)]
    assert sum(count for _, _, count in errors) == (truth != predicted).sum()
    assert all(i != j and count == ((truth == i) & (predicted == j)).sum() for i, j, count in errors)
    assert [count for *_, count in errors] == sorted((count for *_, count in errors), reverse=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(2, 4))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_labels_agree_with_scikit_learn(seed: int, n: int, c: int) -> None:
    rng = np.random.default_rng(seed)
    logits, truth = rng.normal(size=(n, c)), rng.integers(0, 2, size=(n, c)).astype(float)
    truth[:, 0] = 0  # a label that nobody has
    found = report_of(MultiLabelLogistic(), logits, truth, list("abcd")[:c])
    assert isinstance(found, LabelReport)
    said = (logits > 0).astype(int)
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        truth, said, average=None, zero_division=0
    )
    np.testing.assert_allclose(np.nan_to_num(found.precision), precision)
    np.testing.assert_allclose(np.nan_to_num(found.recall), recall)
    np.testing.assert_allclose(np.nan_to_num(found.f1), f1)
    np.testing.assert_array_equal(found.support, support)
    assert found.metrics()["macro_f1"] == pytest.approx(reference.f1_score(truth, said, average="macro"))
    assert np.isnan(found.average_precision[0])


def test_labels_that_are_ignored_count_neither_way() -> None:
    logits = np.array([[2.0, -1.0], [1.0, 1.0], [-1.0, 2.0]])
    truth = np.array([[1.0, np.nan], [np.nan, 1.0], [0.0, 0.0]])
    found = report_of(MultiLabelLogistic(), logits, truth, ["a", "b"])
    assert isinstance(found, LabelReport)
    assert (found.support.tolist(), found.predicted.tolist(), found.right.tolist()) == ([1, 1], [1, 2], [1, 1])


def test_values_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, values = rng.normal(size=(2, 20, 2))
    found = report_of(Squared(), values, truth, [])
    assert found.metrics() == pytest.approx({"mae": reference.mean_absolute_error(truth, values)})
    for i, row in enumerate(found.to_dict()["outputs"]):
        assert row == pytest.approx(
            {
                "r2": reference.r2_score(truth[:, i], values[:, i]),
                "mae": reference.mean_absolute_error(truth[:, i], values[:, i]),
                "rmse": reference.root_mean_squared_error(truth[:, i], values[:, i]),
            }
        )
    assert report_of(Squared(), values[:, :1], truth[:, :1], []).to_dict() == {}


def test_values_have_the_mean_that_their_targets_were_centred_by() -> None:
    rng = np.random.default_rng(0)
    truth, values = 1e3 + rng.normal(size=(2, 20, 2))
    mean = truth.mean(0)
    loss = Squared(mean=torch.from_numpy(mean))
    found = report_of(loss, values - mean, truth, [])
    np.testing.assert_allclose(found.values, values)
    assert found.metrics() == pytest.approx({"mae": reference.mean_absolute_error(truth, values)})
    errors = per_sample_of(loss, values - mean, truth)["squared_error"]
    np.testing.assert_allclose(errors, ((truth - values) ** 2).mean(1))
    assert np.sqrt(errors.mean()) == pytest.approx(metrics_of(loss, values - mean, truth)["rmse"])


@pytest.mark.parametrize("loss", [CrossEntropy(), OneHotSquared(), MultiLabelLogistic(), Squared()])
def test_means_over_samples_are_the_metrics(loss: CrossEntropy | OneHotSquared | MultiLabelLogistic | Squared) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(30, 3))
    truth: np.ndarray = rng.integers(0, 3, size=30)
    if loss.task == "multilabel":
        truth = rng.integers(0, 2, size=(30, 3)).astype(float)
    elif loss.task == "regression":
        truth = rng.normal(size=(30, 3))
    metrics, samples = metrics_of(loss, logits, truth), per_sample_of(loss, logits, truth)
    for name, each in samples.items():
        assert each.shape == (30,)
        mean = each.mean()
        assert (np.sqrt(mean) if name == "squared_error" else mean) == pytest.approx(
            metrics["rmse" if name == "squared_error" else name]
        )


def test_plain_objects_have_no_nan() -> None:
    found = class_report(np.array([0, 0]), np.array([0, 0]), ["a", "b"]).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["classes"][1] == {
        "class": "b",
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
    }
    many = class_report(np.array([0, 7]), np.array([0, 3]), [str(i) for i in range(300)]).to_dict()
    assert "confusion" not in many
    assert many["confused"] == [{"class": "7", "taken_for": "3", "count": 1}]


# ---- pictures -----------------------------------------------------------------------------------


def report(c: int) -> ClassReport:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, c, size=20 * c)
    predicted = np.where(rng.random(20 * c) < 0.7, truth, rng.integers(0, c, size=20 * c))
    return class_report(truth, predicted, [f"class number {i}" for i in range(c)])


@pytest.mark.parametrize("c", [2, 10, 40, 100])
@pytest.mark.filterwarnings("error")
def test_a_picture_of_any_number_of_classes(c: int, tmp_path: Path) -> None:
    path = report_chart(tmp_path / "confusion.png", report(c), "m.safetensors on data")
    with Image.open(path) as picture:
        assert min(picture.size) > 300
        assert max(picture.size) < 3000
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


@pytest.mark.parametrize("name", ["$x^", "$a$", "tab\tand\nline", "\\frac", "%s {0}", "a" * 300, ""])
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    found = class_report(np.array([0, 1, 1]), np.array([0, 1, 0]), [name, "b"])
    assert report_chart(tmp_path / "confusion.png", found, name).stat().st_size > 1000
    label = LabelReport([name], np.array([0.5]), np.array([1]), np.array([1]), np.array([1]))
    assert report_chart(tmp_path / "labels.png", label, name).stat().st_size > 1000


def test_a_picture_of_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in (1, 3, 6):
        values = ValueReport(rng.normal(size=(50, k)), rng.normal(size=(50, k)))
        assert report_chart(tmp_path / f"{k}.png", values).stat().st_size > 1000
