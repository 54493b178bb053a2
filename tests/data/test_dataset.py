from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradfeat.data import Dataset
from gradfeat.errors import ConfigurationError, DataError

X = np.arange(12.0).reshape(4, 3)


def make(X=X, y=(0, 1, 0, 1), classes=("a", "b"), task="multiclass", **rest):
    return Dataset(X, None if y is None else np.array(y), list(classes), task, "pets", "train", **rest)


@pytest.mark.parametrize(
    "indices", [[3, 1], np.array([3, 1]), range(3, 0, -2), np.array([False, True, False, True])[::1]]
)
@pytest.mark.parametrize("kind", [np.asarray, lambda X: [Path(str(row[0])) for row in X]], ids=["array", "paths"])
def test_subset(indices, kind):
    ignore = np.eye(4, 2, dtype=bool)
    data = make(kind(X), np.eye(4, 2, dtype=int), task="multilabel", ignore=ignore)
    part = data.subset(indices)
    order = np.arange(4)[np.asarray(indices)]
    assert len(part) == 2
    assert all(np.all(found == data.X[i]) for found, i in zip(part.X, order, strict=True))
    assert np.array_equal(part.y, data.y[order])
    assert np.array_equal(part.ignore, ignore[order])
    assert (part.classes, part.name, part.split) == (data.classes, data.name, data.split)


def test_subset_of_nothing_and_outside():
    assert len(make().subset([])) == 0
    with pytest.raises(IndexError):
        make().subset([4])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (make(), "pets (train): 4 samples of shape (3,), 2 classes"),
        (make(np.zeros((4, 8, 8, 3), np.uint8)), "pets (train): 4 images of shape (8, 8, 3), 2 classes"),
        (make([Path("a")] * 4), "pets (train): 4 images, 2 classes"),
        (make(y=None), "pets (train): 4 samples of shape (3,), no labels"),
        (make(y=np.eye(4, 2), task="multilabel"), "pets (train): 4 samples of shape (3,), 2 labels (multi-label)"),
        (make(task="regression", classes=()), "pets (train): 4 samples of shape (3,), regression with 1 output"),
        (make(y=X, task="regression"), "pets (train): 4 samples of shape (3,), regression with 3 outputs"),
    ],
)
def test_describe(data, line):
    assert data.describe() == line


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"task": "multilable"}, ConfigurationError, "Did you mean multilabel"),
        ({"y": [0, 1]}, DataError, "4 samples and y has 2 labels"),
        ({"task": "multilabel"}, DataError, r"indicator \(n, 2\).*got shape \(4,\)"),
        ({"task": "multilabel", "y": np.eye(4, 3)}, DataError, r"got shape \(4, 3\)"),
        ({"ignore": np.zeros((4, 2), bool)}, DataError, "ignore must have the shape"),
        ({"y": None, "ignore": np.zeros((4, 2), bool)}, DataError, "ignore must have the shape"),
    ],
)
def test_parts_that_do_not_fit(change, error, message):
    with pytest.raises(error, match=message):
        make(**change)
