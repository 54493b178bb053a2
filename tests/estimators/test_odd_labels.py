"""Labels and weights in the forms that users bring: read as what they say, or refused in a sentence."""

from __future__ import annotations

import datetime
import fractions
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import DataConversionWarning
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.labels import as_labels
from gradfeat.fit.penalties import given_penalties
from gradfeat.solvers.subspace import Penalties

B = np.array([0, 1] * 4)
TWO = np.stack([B, 1 - B], 1)
N = len(B)


class NA:
    """What pandas has for missing: it is not a truth value."""

    def __ne__(self, other: object) -> Any:
        return self

    def __eq__(self, other: object) -> Any:
        return self

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


class Column:
    """A column of a table: an array of objects by its protocol."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return objects(self.values) if dtype is None else objects(self.values).astype(dtype)


def objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def samples() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def model(kind: Any, **parameters: Any) -> Any:
    return kind(network(), **{"mode": "activation", "penalty": 0.1, "theta2": "*", **parameters})


READ: dict[str, tuple[Any, np.ndarray]] = {
    "bfloat16": (torch.tensor(B).bfloat16(), B),
    "a list of tensors": ([torch.tensor(float(b)).bfloat16() for b in B], B),
    "a tensor with gradients": (torch.tensor(B, dtype=torch.float32, requires_grad=True), B),
    "a sparse tensor": (torch.tensor(TWO).to_sparse(), TWO),
    "csr": (sp.csr_matrix(TWO), TWO),
    "csc of booleans": (sp.csc_array(TWO > 0), TWO),
    "a column of numbers": (Column([1, 0] * 4), 1 - B),
    "a column of booleans": (Column([True, False] * 4), 1 - B),
    "fractions": ([fractions.Fraction(int(b)) for b in B], B),
    "nothing masked": (np.ma.masked_array(B, mask=False), B),
    "texts that name numbers": (["nan", "None"] * 4, np.array(["nan", "None"] * 4)),
    "a column of texts": (Column(["a", "b"] * 4), np.array(["a", "b"] * 4, dtype=object)),
    "big endian": (B.astype(">i4"), B),
}


@pytest.mark.parametrize("case", READ)
def test_labels_are_read(case: str) -> None:
    y, same = READ[case]
    own, other = (model(GradientFeatureClassifier).fit(samples(), labels) for labels in (y, same))
    assert own.classes_.tolist() == other.classes_.tolist()
    np.testing.assert_array_equal(own.predict(samples()), other.predict(samples()))
    assert own.score(samples(), y) == other.score(samples(), same)
    if same.dtype.kind not in "UO":
        own, other = (model(GradientFeatureRegressor).fit(samples(), labels) for labels in (y, same))
        np.testing.assert_allclose(own.predict(samples()), other.predict(samples()), atol=1e-6)


REFUSED: dict[str, tuple[Any, str]] = {
    "no columns": (np.zeros((N, 0)), "no columns"),
    "one number": (np.array(3), r"of shape \(\)"),
    "three axes": (np.zeros((N, 2, 2)), "matrix"),
    "complex": (B + 1j, "complex"),
    "a complex tensor": (torch.tensor(B) * 1j, "complex"),
    "NaN among texts": (["neg", float("nan"), "pos", "neg"] * 2, "2 of 8, first in sample 1"),
    "NaN among numpy's texts": (tuple([np.str_("a"), np.nan, np.str_("b"), "a"] * 2), "missing"),
    "None among texts": (["neg", None, "pos", "neg"] * 2, "missing"),
    "None among numbers": ([0, None, 1, 0] * 2, "missing"),
    "NA among texts": (Column(["a", NA(), "b", "a"] * 2), "2 of 8, first in sample 1"),
    "NA among numbers": (Column([1, NA(), 0, 1] * 2), "missing"),
    "numbers among texts": ([1, "a"] * 4, "different kinds"),
    "booleans among texts": ([True, "a"] * 4, "different kinds"),
    "bytes among texts": ([b"a", "a"] * 4, "different kinds"),
    "masked": (np.ma.masked_array(B, mask=[1] + [0] * 7), "1 of 8 entries are masked, first in sample 0"),
    "no time": (np.array(["2020-01-01", "NaT"] * 4, dtype="M8[D]"), "4 of 8, first in sample 1"),
    "dates as objects": ([datetime.date(2020, 1, 1 + b) for b in B], "dates"),
    "records": (np.array([(1, 2.0)] * N, dtype=[("a", int), ("b", float)]), "several fields, a, b"),
    "arrays as labels": (objects([np.array([0]), np.array([1])] * 4), "one label"),
    "a dict": ({"a": 1}, "dict"),
    "a set": ({0, 1}, "set"),
    "a generator": ((b for b in B), "generator"),
    "more labels": (np.tile(B, 2), "8 samples and y has 16"),
    "fewer labels": (B[:5], "8 samples and y has 5"),
}


@pytest.mark.parametrize("kind", [GradientFeatureClassifier, GradientFeatureRegressor])
@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_cannot_be_meant_are_refused(case: str, kind: Any) -> None:
    y, word = REFUSED[case]
    with pytest.raises(DataError, match=word):
        model(kind).fit(samples(), y)


def test_classes_beyond_64_bits_are_to_be_texts() -> None:
    ids = [10**30 + int(b) for b in B]
    with pytest.raises(DataError, match="beyond 64 bits: make them texts"):
        model(GradientFeatureClassifier).fit(samples(), ids)
    texts = [str(label) for label in ids]
    assert set(model(GradientFeatureClassifier).fit(samples(), texts).predict(samples())) <= set(texts)


def test_bytes_are_refused_as_classes() -> None:
    for y in (np.array([b"a", b"b"] * 4), objects([b"a", b"b"] * 4)):
        with pytest.raises(DataError, match="bytes: decode"):
            model(GradientFeatureClassifier).fit(samples(), y)


def test_a_masked_or_missing_entry_of_an_indicator_is_ignored() -> None:
    ignored = np.where(np.eye(N, 2) > 0, np.nan, TWO)
    expected = model(GradientFeatureClassifier).fit(samples(), ignored).predict_proba(samples())
    missing = objects([NA() if np.isnan(v) else v for v in ignored.ravel().tolist()]).reshape(N, 2)
    for y in (np.ma.masked_array(TWO, mask=np.isnan(ignored)), missing):
        np.testing.assert_array_equal(
            model(GradientFeatureClassifier).fit(samples(), y).predict_proba(samples()), expected
        )


def test_a_sparse_column_is_a_vector() -> None:
    with pytest.warns(DataConversionWarning):
        assert model(GradientFeatureClassifier).fit(samples(), sp.coo_matrix(B[:, None])).classes_.tolist() == [0, 1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["a", "nan", "1", "", 1, 0, True, 2.5, None, float("nan"), float("inf"), b"a"]),
        min_size=1,
        max_size=6,
    )
)
def test_a_list_says_what_its_labels_say_or_is_refused(labels: list[Any]) -> None:
    try:
        found = as_labels(labels).tolist()
    except DataError:
        odd = [v for v in labels if v is None or (isinstance(v, float) and not np.isfinite(v))]
        assert odd or len({type(v) if isinstance(v, str | bytes) else None for v in labels}) > 1
        return
    assert [v for v in found if v == v] == [v for v in labels if v == v]
    assert [isinstance(v, str) for v in found] == [isinstance(v, str) for v in labels]


BAD_WEIGHTS: dict[str, Any] = {
    "a matrix": np.ones((N, 1)),
    "another length": np.ones(5),
    "complex": np.ones(N) + 1j,
    "NaN": np.array([np.nan] + [1.0] * 7),
    "infinite": np.array([np.inf] + [1.0] * 7),
    "below zero": -np.ones(N),
    "all zero": np.zeros(N),
    "texts": ["a"] * N,
    "None": [None] + [1.0] * 7,
    "NA": Column([NA()] + [1.0] * 7),
    "masked": np.ma.masked_array(np.ones(N), mask=[1] + [0] * 7),
    "sparse": sp.csr_matrix(np.ones((1, N))),
    "dates": np.array(["2020-01-01"] * N, dtype="M8[D]"),
    "a dict": {"a": 1},
}


@pytest.mark.parametrize("kind", [GradientFeatureClassifier, GradientFeatureRegressor])
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_cannot_be_meant_are_refused(case: str, kind: Any) -> None:
    with pytest.raises(DataError, match="sample_weight"):
        model(kind).fit(samples(), B, sample_weight=BAD_WEIGHTS[case])


def test_weights_are_read() -> None:
    weight = np.array([1.0, 2.0] * 4)
    expected = model(GradientFeatureRegressor).fit(samples(), B, sample_weight=weight).predict(samples())
    for same in (torch.tensor(weight).bfloat16(), torch.tensor(weight, requires_grad=True), Column(weight.tolist())):
        found = model(GradientFeatureRegressor).fit(samples(), B, sample_weight=same).predict(samples())
        np.testing.assert_array_equal(found, expected)


# ---- penalties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "penalty",
    [np.inf, np.nan, -1, -1e-300, "0.1", "", None, True, np.bool_(True), 1j, (0.1,), (0.1, 0.2, 0.3), [0.1, "auto"],
     (0.1, -1.0), (np.nan, 0.1), 10**400, np.array([0.1, 0.2])],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_penalties_that_cannot_be_meant_are_refused(penalty: Any) -> None:
    with pytest.raises(ConfigurationError, match="penalty must be"):
        model(GradientFeatureClassifier, penalty=penalty).fit(samples(), B)


@pytest.mark.parametrize("mode", ["activation", "gradient", "full"])
@pytest.mark.parametrize("solver", ["subspace", "dual"])
@pytest.mark.parametrize("penalty", [1e300, (1e300, 1.7e308)])
def test_a_penalty_beyond_single_precision_leaves_the_mean(solver: str, mode: str, penalty: Any) -> None:
    y = np.array([0, 1, 1, 1] * 2)
    shared: dict[str, Any] = {"solver": solver, "mode": mode, "penalty": penalty, "random_state": 0}
    regressor = model(GradientFeatureRegressor, **shared).fit(samples(), y)
    np.testing.assert_allclose(regressor.predict(samples()), 0.75, atol=1e-6)
    classifier = model(GradientFeatureClassifier, **shared).fit(samples(), y)
    np.testing.assert_allclose(classifier.predict_proba(samples())[:, 1], 0.75, atol=1e-4)


def test_numbers_of_other_kinds_are_penalties() -> None:
    for value in (np.float32(0.5), np.float64(0.5), fractions.Fraction(1, 2)):
        assert given_penalties(value) == Penalties(0.5, 0.5)
        model(GradientFeatureRegressor, penalty=value).fit(samples(), B)
