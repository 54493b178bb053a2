"""What a column of labels is: names as they are written, unless they are plainly numbers; several in a cell."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfeat.data import load_dataset
from gradfeat.data.delimited import Quoted
from gradfeat.data.label_text import Name
from gradfeat.data.labels import Labels, read_labels
from gradfeat.data.rows import Number, parse_json
from gradfeat.errors import DataError, GradfeatWarning

FILE = Path("data.csv")


def decide(values, **options) -> Labels:
    """What a column of such cells is; JSON's are parsed as the reader parses them."""
    return read_labels(FILE, "label", [(f"line {i}", value) for i, value in enumerate(values, 2)], **options)


def of_json(*values):
    cells = [parse_json(json.dumps(value)) for value in values]
    return [Name(value) if type(value) is str else value for value in cells]


# ---- one label a row ------------------------------------------------------------------------------------------------


@given(st.lists(st.text(alphabet="01259+-.eE a", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_distinct_strings_never_become_one_class(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        found = decide(labels)
    written = [label.strip() for label in labels]
    if found.task == "regression":
        assert found.y.tolist() == [float(label) for label in written]
        return
    assert len(set(found.y.tolist())) == len(set(written))
    if found.y.dtype.kind == "U":
        assert found.y.tolist() == written
    else:
        assert [float(label) for label in written] == found.y.tolist()
    assert found.classes == [str(value) for value in sorted(set(found.y.tolist()))]


@pytest.mark.filterwarnings("ignore:.*each is read as a class")
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_whole_numbers_of_64_bits_are_whole_numbers(values):
    assert decide(list(map(str, values))).y.tolist() == values
    assert decide(of_json(*values)).y.tolist() == values


@pytest.mark.filterwarnings("ignore:.*differ little")
@pytest.mark.parametrize(
    "labels",
    [
        ["01", "1", "001"],
        ["007", "8"],
        ["12345678901234567890", "12345678901234567891"],
        ["9223372036854775808", "1"],
        ["1e300", "2e300"],
        ["+1", "-1"],
        ["1", "1.0"],
        ["٣", "3"],
        ["-0", "0"],
        ["01.5", "2.5"],
        ["1_000", "2"],
        [Quoted("1"), Quoted("0")],
        ["1", Quoted("0")],
        of_json("1", "0"),
        of_json("7", 8),
        of_json(10**30, 10**30 + 1),
        of_json(1e300, 2e300),
    ],
)
def test_names_stay_as_they_are_written(labels):
    found = decide(labels)
    assert (found.task, found.y.dtype.kind) == ("multiclass", "U")
    assert found.y.tolist() == [str(label) for label in labels]
    assert found.classes == sorted(found.y.tolist())


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0.5", "1", "1e-3"], [0.5, 1, 0.001]),
        ([".5", "1."], [0.5, 1]),
        ([Quoted("1.5"), Quoted("2")], [1.5, 2]),
        (of_json(1.5, 2), [1.5, 2]),
        (["+0.5", "-1"], [0.5, -1]),
    ],
)
def test_numbers_with_fractions_are_regression(labels, expected):
    found = decide(labels)
    assert (found.task, found.classes, found.y.tolist()) == ("regression", [], expected)


def test_numbers_of_json_are_numbers():
    assert decide(of_json(1.0, 1, 2)).y.tolist() == [1, 1, 2]
    assert decide(of_json(True, False)).y.tolist() == ["true", "false"]
    assert decide([Number("1e3"), Number("2")]).y.tolist() == [1000, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Pos", "pos", "neg"], "'Pos' and 'pos'"),
        (["True", "TRUE", "False"], "'True' and 'TRUE'"),
        (["New York", "New  York"], "differ little"),
        (["01", "1"], "'01' and '1'"),
        (["a", "NaN", "b"], "1 labels in 'label' are 'NaN', as missing ones are written.*line 3"),
        (["a", "None", "b"], "as missing ones are written"),
        (["1,5", "2,5", "3"], "decimal comma"),
        (["1,5", "1,500"], "decimal comma"),
        (["10 %", "20 %", "0"], "such as '10 %' look like numbers, with units"),
        (["$1,200.50", "$900"], "thousands marked off"),
        (["1,200", "12,000", "900"], "thousands marked off"),
        (["1.5"] * 15 + ["x", "2.5", "3.5", "4.5"], "1 of 19 labels in 'label' are no numbers.*'x' in line 17"),
        ([f"id{i}" for i in range(20)], "20 are different, and each is read as a class; label_column="),
        ([str(250_000 + i) for i in range(20)], "which are whole numbers, 20 are different.*For regression"),
        ([f"id{i}" for i in range(6)], "6 are different"),
        ([str(7 * (i % 40)) for i in range(200)], "200 labels in 'label', which are whole numbers, 40 are different"),
        (['"a"', '"b"'], "the quotes in 'label' are part of the labels"),
        (["pos", "pos\u200b"], "differ little"),
        (of_json("0.5", "1.5"), "strings that look like numbers"),
        (of_json(*(str(i + 0.5) for i in range(12))), "read as numbers, for regression"),
        ([str(25 + i * 3 // 2) for i in range(214)] * 3, "642 labels in 'label', which are whole numbers, 214 are"),
        (["x;y", "x", "y"], "look like several labels"),
        (["x|y", "z"], "hold a bar"),
        ([Quoted("[0, 18]"), Quoted("[19, 65]")], "like intervals"),
    ],
)
def test_what_labels_look_like_is_said(labels, message):
    with pytest.warns(GradfeatWarning, match=message):
        found = decide(labels)
    assert found.task == ("regression" if "for regression" in message and "numbers," in message else "multiclass")


def test_ordinary_labels_are_not_warned_of():
    for labels in (
        [str(i % 77) for i in range(300)],
        [str(10 * (i % 5)) for i in range(20)],
        ["a", "b"] * 3,
        ["none", "mild", "severe"],
        ["5 EUR", "free"],
        ["0-9", "10-19"],
        [str(i % 3) for i in range(30)],
        ["0.5", "1"],
        ["1", "x"],
    ):
        decide(labels)  # a warning is an error here


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["9" * 100_000, "1"], "line 2: the label in 'label' has 100,000 characters"),
        (["0." + "9" * 100_000, "1"], "100,002 characters"),
        ([Number("1" * 100_000), Number("1")], "100,000 characters"),
        (["a\0", "a"], "zero byte"),
        (of_json("\ud800", "\ud801"), "half a character"),
        ([None, "a"], "empty"),
        (["1", "nan"], "where the other labels are numbers"),
    ],
)
def test_labels_that_cannot_be_meant(labels, message):
    with pytest.raises(DataError, match=message) as error:
        decide(labels)
    assert len(str(error.value)) < 300


# ---- several labels a row -------------------------------------------------------------------------------------------

SETS = st.lists(
    st.sets(st.sampled_from(["cat", "dog", "eel", "10", "9"]), min_size=0, max_size=4), min_size=1, max_size=6
)


@pytest.mark.filterwarnings("ignore:.*every list")
@given(SETS.filter(lambda rows: len(set().union(*rows)) > 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_lists_are_the_same_in_all_formats(rows):
    names = sorted(set().union(*rows))
    if set(names) == {"9", "10"}:
        names = ["9", "10"]  # whole numbers in their order
    expected = [[int(name in row) for name in names] for row in rows]
    lists = [sorted(row) for row in rows]
    ways = [of_json(*lists)]
    if any(len(row) != 1 for row in rows):  # text in brackets is a name where there is never more in them
        ways += [[Quoted(json.dumps(row)) for row in lists], [str(row) for row in lists]]
        if all(rows):
            ways += [[str(tuple(row)) for row in lists], [str(row) for row in rows]]
    if all(rows) and len(ways) > 1:
        ways.append([" ".join(str(row).split(",")) for row in lists])  # as numpy writes it
    for cells in ways:
        found = decide(cells)
        assert (found.task, found.classes, found.y.tolist()) == ("multilabel", names, expected)
    if all(rows):
        for mark in "|;/":
            found = decide([mark.join(row) for row in lists], separator=mark)
            assert (found.classes, found.y.tolist()) == (names, expected)


@pytest.mark.parametrize(
    "labels", [["(0, 1)", "(1, 0)"], ["('cat')", "('dog')"], ['{"a": 1}', '{"b": 2}'], ["{}", "()"]]
)
def test_brackets_round_names(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        assert decide(labels).y.tolist() == labels


def test_numbers_in_lists():
    found = decide([Quoted("[0, 1]"), "[1]", Quoted("[0, 2]"), "[]"])
    assert found.y.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]
    zeros_and_ones = decide(of_json([0, 0, 1], [1, 0, 0]))
    assert (zeros_and_ones.y.tolist(), zeros_and_ones.classes) == ([[0, 0, 1], [1, 0, 0]], ["0", "1", "2"])


def test_bars_between_labels_that_stand_alone_too():
    with pytest.warns(GradfeatWarning, match="are read as several labels; label_separator=''"):
        found = decide(["x|y", "x", "y"])
    assert (found.classes, found.y.tolist()) == (["x", "y"], [[1, 1], [1, 0], [0, 1]])
    kept = decide(["x|y", "x", "y"], separator="")
    assert (kept.task, kept.y.tolist()) == ("multiclass", ["x|y", "x", "y"])


def test_names_in_brackets_are_names():
    assert decide(["[deleted]", "ok", "[a b]"]).y.tolist() == ["[deleted]", "ok", "[a b]"]
    assert decide(["[1]", "ok"]).y.tolist() == ["[1]", "ok"]
    with pytest.warns(GradfeatWarning, match="look like lists of one label each"):
        assert decide(["[1]", "[2]", "[1]"]).y.tolist() == ["[1]", "[2]", "[1]"]
    assert decide(["[1]", "[2]"], separator="").y.tolist() == ["[1]", "[2]"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([Quoted("[0, 1]"), "2"], r"line 2: 'label' is a list of labels.*in line 3 it is the one label '2'"),
        (of_json(["x"], "y"), "in line 3 it is the one label 'y'"),
        (of_json([0, 1], [1, 0]), "may be labels 0 and 1, or an absent and a present one"),
        (of_json([0.5, 1.5], [1, 2]), "belong in the y"),
        (of_json([["a"]], ["b"]), "must be one label, or a list of labels"),
        (of_json([None], ["a"]), "line 2: the label in 'label' is empty"),
        (of_json({"a": 1}, "b"), "must be one label"),
        (of_json([1]), "two at least"),
    ],
)
def test_lists_that_cannot_be_meant(labels, message):
    with pytest.raises(DataError, match=message):
        decide(labels)


def test_an_indicator_that_would_fill_the_memory_is_refused():
    with pytest.raises(DataError, match=r"20,000 lists in 'label' hold 40,000 different labels"):
        decide([[f"a{i}", f"b{i}"] for i in range(20_000)])


# ---- as in the training part ----------------------------------------------------------------------------------------


def table(folder: Path, name: str, labels) -> Path:
    path = folder / name
    path.write_text("text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels)))
    return path


@pytest.mark.filterwarnings("ignore:.*are read as several labels")
@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (["007", "10", "9"], ["10", "9"], ["10", "9"]),  # names there, so names here
        (["0", "1", "2"], ['"1"', '"0"'], [1, 0]),
        (["0.5", "1.5"], ["3", "4"], [3.0, 4.0]),
        (["x|y", "x", "z"], ["z", "x", "z|y"], [[0, 0, 1], [1, 0, 0], [0, 1, 1]]),
        (['"[0, 2]"', "[1]"], ["[1]"], [[0, 1, 0]]),
    ],
)
def test_the_test_part_is_read_as_the_training_part(tmp_path, train, test, expected):
    fitted = load_dataset(table(tmp_path, "train.csv", train))
    data = load_dataset(table(tmp_path, "test.csv", test), like=fitted)
    assert data.y.tolist() == expected
    assert (data.task, data.y.dtype.kind) == (fitted.task, fitted.y.dtype.kind)
    if fitted.task == "multilabel":
        assert data.classes == fitted.classes


def test_labels_that_the_training_part_has_not(tmp_path):
    fitted = load_dataset(table(tmp_path, "train.csv", ['"[0, 1]"', "[1]", "[2]"]))
    with pytest.raises(DataError, match="the training data has not: '5'; known are '0', '1', '2'"):
        load_dataset(table(tmp_path, "test.csv", ["[5]", "[1]"]), like=fitted)


def test_y_is_an_array_that_estimators_take(tmp_path):
    y = load_dataset(table(tmp_path, "train.csv", ["007", "8"])).y
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.dtype("<U3")
