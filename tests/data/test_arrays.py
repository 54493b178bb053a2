from __future__ import annotations

import numpy as np
import pytest
import torch

from gradfeat.data import load_dataset
from gradfeat.data.arrays import check_finite
from gradfeat.errors import DataError

X = np.random.default_rng(0).normal(size=(6, 4))
Y = np.array([0, 1, 2, 0, 1, 2])


def load(tmp_path, split="train", **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return load_dataset(tmp_path / "data.npz", split=split, format="npz")


@pytest.mark.parametrize("names", [("X", "y"), ("x", "y"), ("data", "labels"), ("images", "labels")])
def test_names(tmp_path, names):
    data = load(tmp_path, **dict(zip(names, (X, Y), strict=True)))
    assert np.array_equal(data.X, X)
    assert np.array_equal(data.y, Y)
    assert (data.classes, data.task, data.name, data.split) == (["0", "1", "2"], "multiclass", "data", "all")
    assert data.describe() == "data (all): 6 samples of shape (4,), 3 classes"


def test_images_in_memory(tmp_path):
    data = load(tmp_path, X=np.zeros((6, 8, 8, 3), np.uint8), y=Y)
    assert data.X.dtype == np.uint8
    assert data.describe() == "data (all): 6 images of shape (8, 8, 3), 3 classes"
    assert data.subset([0]).X.shape == (1, 8, 8, 3)


def test_parts(tmp_path):
    arrays = {"X_train": X, "y_train": Y, "X_test": X[:2], "y_test": Y[:2]}
    data = load(tmp_path, "test", **arrays)
    assert (len(data), data.split) == (2, "test")
    assert len(load(tmp_path, **arrays)) == 6
    with pytest.raises(DataError, match=r"no part 'tests'. Its parts: train, test. Did you mean test\?"):
        load(tmp_path, "tests", **arrays)
    plain = {"X": X, "y": Y, "X_test": X[:2], "y_test": Y[:2]}
    assert (len(load(tmp_path, **plain)), load(tmp_path, **plain).split) == (6, "train")
    assert len(load(tmp_path, "test", **plain)) == 2
    with pytest.raises(DataError, match="no part 'validation'"):
        load(tmp_path, "validation", **plain)


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (Y.astype(float), "multiclass", ["0", "1", "2"]),
        (Y[:, None], "multiclass", ["0", "1", "2"]),
        (Y > 0, "multiclass", ["False", "True"]),
        (np.array(["b", "a"] * 3), "multiclass", ["a", "b"]),
        (np.array([b"b", b"a"] * 3), "multiclass", ["a", "b"]),
        (np.array([-1, 1] * 3), "multiclass", ["-1", "1"]),
        (Y / 2, "regression", []),
        (X[:, :2], "regression", []),
        (np.eye(6, 3), "multilabel", ["0", "1", "2"]),
        (np.eye(6, 3, dtype=bool), "multilabel", ["0", "1", "2"]),
    ],
)
def test_the_task_follows_from_y(tmp_path, y, task, classes):
    data = load(tmp_path, X=X, y=y)
    assert (data.task, data.classes) == (task, classes)
    if task == "regression":
        assert np.array_equal(data.y, y)
    else:
        assert data.y.dtype.kind in "iUb"


def test_named_classes(tmp_path):
    names = np.array(["ape", "bee", "cat"])
    assert load(tmp_path, X=X, y=Y, classes=names).classes == ["ape", "bee", "cat"]
    assert load(tmp_path, X=X, y=names[Y], classes=names).y.tolist() == names[Y].tolist()
    assert load(tmp_path, X=X, y=np.eye(6, 3), classes=names).classes == ["ape", "bee", "cat"]


def test_x_alone_has_no_labels(tmp_path):
    data = load(tmp_path, X=X)
    assert data.y is None
    assert data.describe().endswith("no labels")
    assert data.subset([1]).y is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": X, "lables": Y}, r"lacks its arrays.*it has X \(6, 4\), lables \(6,\)"),
        ({}, "it has nothing"),
        ({"X": X, "y": Y[:5]}, "6 samples and y has 5 labels"),
        ({"X": X, "y": 3}, "a single value"),
        ({"X": X[:0], "y": Y[:0]}, "no samples"),
        ({"X": X.astype(str), "y": Y}, "must hold numbers"),
        ({"X": np.where(X > 1, np.nan, X), "y": Y}, "NaN or infinite"),
        ({"X": X, "y": np.array([0, 1, np.nan, 1, np.nan, 0])}, "y in .* has 2 NaN .* sample 2"),
        ({"X": X, "y": Y, "classes": ["a", "b"]}, "2 labels out of range, first 2 in sample 2; expected 0 to 1"),
        ({"X": X, "y": Y - 1, "classes": ["a", "b"]}, "2 labels out of range, first -1 in sample 0"),
        ({"X": X, "y": np.array(["a", "c"] * 3), "classes": ["a", "b"]}, "first c in sample 1; expected one of a, b"),
        ({"X": X, "y": Y / 2, "classes": ["a", "b"]}, "fractions"),
        ({"X": X, "y": np.eye(6, 3), "classes": ["a", "b"]}, "3 columns, and classes names 2"),
        ({"X": X, "y": 2 * np.eye(6, 3, dtype=int)}, "besides 0 and 1"),
        ({"X": X, "y": np.zeros((6, 2, 2))}, r"shape \(n,\)"),
        ({"X": X, "y": np.zeros(6, int)}, "only one class, '0'"),
        ({"X": X, "y": Y.astype(complex)}, "not complex128"),
        ({"X": X, "y": np.array([{}] * 6, dtype=object)}, "Python objects"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, **arrays)


def test_damaged_files(tmp_path):
    np.savez(tmp_path / "whole.npz", X=X, y=Y)
    whole = (tmp_path / "whole.npz").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"no zip"), ("empty", b"")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.npz cannot be read"):
            load_dataset(tmp_path / f"{name}.npz", format="npz")
    np.save(tmp_path / "single.npy", X)
    with pytest.raises(DataError, match="single array"):
        load_dataset(tmp_path / "single.npy", format="npz")


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_count_and_first_sample_of_values_that_are_not_finite(make):
    values = np.zeros((7, 2, 1 << 20), np.float16)  # so large that they are not looked at all together
    check_finite(make(values))
    values[3, 0, 1], values[5, 1, 1], values[5, 0, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match="X has 3 NaN or infinite values, first in sample 3"):
        check_finite(make(values))
    check_finite(make([[1, 2]]))
