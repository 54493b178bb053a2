"""Files of data that are damaged, or made to do harm: one sentence, in bounded memory and time."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from gradfeat.data import load_dataset
from gradfeat.data.matlab import read_matrices
from gradfeat.errors import DataError

RNG = np.random.default_rng(0)
FAMILY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextmanager
def little_memory(most: float = 50e6) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def changed(content: bytes, data: st.DataObject, first: int | None = None) -> bytes:
    """Return bytes with one to three of them, among the first ones, replaced."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        found[data.draw(st.integers(0, min(len(found), first or len(found)) - 1))] = data.draw(st.integers(0, 255))
    return bytes(found)


# ---- .npz -----------------------------------------------------------------------------------------------------------


def header(shape: Any, descr: Any = "<f4") -> bytes:
    text = (str({"descr": descr, "fortran_order": False, "shape": shape}) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(path: Path, X: bytes) -> Path:
    y = BytesIO()
    np.save(y, np.arange(4) % 2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("X.npy", X)
        file.writestr("y.npy", y.getvalue())
    return path


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (header((5 << 30,)), "X declares 21,474,836,480 bytes"),
        (header((-4, 3)), "damaged"),
        (header((4, 0)), "no samples"),
        (header((4,), "|O") + b"x" * 99, "Python objects"),
        (header((1,), "<U500000000"), "X declares 2,000,000,000 bytes"),
        (header((4,), [("a", "<f4")]) + bytes(16), "must hold numbers"),
        (header((4, 2), "<c8") + bytes(64), "must hold numbers, not complex64"),
        (header((10**30, 0)), "cannot be read"),
        (header("(" * 5000), "cannot be read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", "cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=["20 GiB", "negative", "empty", "objects", "text", "record", "complex", "huge", "nested", "head", "9", "none"],
)
def test_arrays_that_are_not_what_their_headers_say(tmp_path: Path, X: bytes, match: str) -> None:
    with little_memory(), pytest.raises(DataError, match=match):
        load_dataset(archive(tmp_path / "a.npz", X))


def test_an_archive_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.npz", header((4, 1 << 20), "|u1") + bytes(4 << 20))
    assert len(load_dataset(path)) == 4
    monkeypatch.setattr("gradfeat.data.arrays.free_memory", lambda: 1 << 20)
    with little_memory(1e6), pytest.raises(DataError, match=r"4,19\d,\d+ bytes in memory out of"):
        load_dataset(path)
    monkeypatch.undo()
    monkeypatch.setattr("gradfeat.data.arrays.LARGE", 1 << 20)  # and where there is memory for it
    with little_memory(1e6), pytest.raises(DataError, match=r"bytes in memory out of"):
        load_dataset(path)
    np.savez(path, X=np.zeros((4, 1 << 20), np.uint8), y=np.arange(4) % 2)  # as large, and not packed
    assert len(load_dataset(path)) == 4


def test_a_single_array_is_not_read_to_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(header((5 << 30,)))
    with little_memory(), pytest.raises(DataError, match="single array"):
        load_dataset(tmp_path / "a.npz")


def test_whole_numbers_that_no_integer_holds_stay_distinct(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.zeros((4, 2)), y=np.array([1e300, 2e300, 1e300, 5.0]))
    assert load_dataset(tmp_path / "a.npz").classes == ["5.0", "1e+300", "2e+300"]


@FAMILY
@given(data=st.data())
def test_changed_archives(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, X=np.arange(12.0).reshape(4, 3), y=np.arange(4) % 2)
    path.write_bytes(changed(path.read_bytes(), data))
    try:
        assert load_dataset(path).X.shape[0] == 4
    except DataError:
        return


# ---- CIFAR's pickles ------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"ape", b"bee"]}, 2))
    (folder / "test_batch").write_bytes(pickle.dumps({b"labels": [0, 1, 1], b"data": PIXELS}, 2))
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"labels": [0, 1, 1], b"data": PIXELS}, 2))
    return folder


PIXELS = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)


def twice(depth: int, pair: bytes) -> bytes:
    """Return steps that make a pair of the last value, again and again."""
    return b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + pair for i in range(depth))


BOMBS: dict[str, bytes] = {
    "a key of 2^60 tuples": b"\x80\x02}K\x01\x85" + twice(60, b"\x86") + b"K\x01s.",
    "labels of 2^60 lists": b"\x80\x02}U\x06labels](K\x01e" + twice(60, b"\x86") + b"s.",
    "memory for 2^31 values": b"\x80\x02}r\xff\xff\xff\x7f.",
    "2^62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "20 GiB to change": b"\x80\x05\x96" + struct.pack("<Q", 20 << 30) + b".",
    "a frame of 2^40": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.",
    "digits": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
    "a number of 2 GiB": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "a key of 5000 digits": pickle.dumps({10**5000: 1}, 2),
    "nested lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "the class of arrays": b"\x80\x02cnumpy\nndarray\n}U\x06valuesK\x01sb.",
    "a function": b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__K\x01s\x86b.",
    "labels beyond integers": pickle.dumps({b"labels": [10**30, 1, 1], b"data": PIXELS}, 2),
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_mean_harm(cifar: Path, name: str) -> None:
    (cifar / "test_batch").write_bytes(BOMBS[name])
    with little_memory(), pytest.raises(DataError, match="test_batch") as caught:
        load_dataset(cifar, split="test")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("as_array", [False, True], ids=["list", "array"])
def test_pickles_of_all_protocols(cifar: Path, protocol: int, as_array: bool) -> None:
    labels: Any = np.array([0, 1, 1]) if as_array else [0, 1, 1]
    (cifar / "test_batch").write_bytes(pickle.dumps({b"labels": labels, b"data": PIXELS}, protocol))
    data = load_dataset(cifar, split="test")
    assert data.y.tolist() == ["ape", "bee", "bee"]
    np.testing.assert_array_equal(data.X.transpose(0, 3, 1, 2).reshape(3, -1), PIXELS)


@FAMILY
@given(data=st.data())
def test_changed_pickles(cifar: Path, data: st.DataObject) -> None:
    content = pickle.dumps({b"labels": [0, 1, 1], b"data": PIXELS}, 2)
    (cifar / "test_batch").write_bytes(changed(content, data, 300))
    try:
        assert load_dataset(cifar, split="test").X.shape[1:] == (32, 32, 3)
    except DataError as error:
        assert "test_batch" in str(error) or "labels from" in str(error)  # noqa: PT017


# ---- MATLAB files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"])
def test_matrices_are_those_that_scipy_reads(tmp_path: Path, dtype: str, packed: bool) -> None:
    path = tmp_path / "a.mat"
    arrays = {"a": RNG.integers(0, 100, (3, 2, 4)).astype(dtype), "long_name": np.ones((1, 1), dtype)}
    savemat(path, arrays, do_compression=packed)
    expected, found = loadmat(path), read_matrices(path, ("a", "long_name"))
    for name in arrays:
        np.testing.assert_array_equal(found[name], expected[name])
        assert found[name].dtype == expected[name].dtype  # type: ignore[union-attr]
    assert read_matrices(path, ("a",))["long_name"] == "numbers"


def svhn(folder: Path, **arrays: Any) -> Path:
    images = RNG.integers(0, 256, (32, 32, 3, 3), dtype=np.uint8)
    savemat(folder / "train_32x32.mat", {"X": images, "y": np.array([[1], [2], [10]]), **arrays}, do_compression=False)
    return folder / "train_32x32.mat"


def test_a_matrix_that_lies_about_its_shape(tmp_path: Path) -> None:
    path = svhn(tmp_path)
    content = path.read_bytes()
    good = struct.pack("<4i", 32, 32, 3, 3)
    for shape in ((32, 32, 3, 2**31 - 1), (-1, -1, -1, 3), (32, 32, 3, 4)):
        path.write_bytes(content.replace(good, struct.pack("<4i", *shape)))
        with little_memory(), pytest.raises(DataError, match="array of the shape"):
            load_dataset(tmp_path)


def test_a_matrix_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svhn(tmp_path)
    monkeypatch.setattr("gradfeat.data.matlab.free_memory", lambda: 1 << 10)
    with pytest.raises(DataError, match="X would be 9,216 bytes in memory"):
        load_dataset(tmp_path)


@FAMILY
@given(data=st.data())
def test_changed_matlab_files(tmp_path: Path, data: st.DataObject) -> None:
    path = svhn(tmp_path)
    path.write_bytes(changed(path.read_bytes(), data, 400))
    try:
        assert load_dataset(tmp_path).X.shape[1:] == (32, 32, 3)
    except DataError as error:
        assert "train_32x32.mat" in str(error)  # noqa: PT017


# ---- annotations and lists ------------------------------------------------------------------------------------------


def coco(folder: Path, content: str) -> Path:
    (folder / "annotations").mkdir()
    (folder / "train2014").mkdir()
    (folder / "annotations" / "instances_train2014.json").write_text(content)
    return folder


GOOD = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 1}],
    "categories": [{"id": 1, "name": "cat"}],
}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "[" * 100_000,
        lambda text: '{"images": ' + "[" * 900 + "]" * 900 + ', "annotations": [], "categories": []}',
        lambda text: text.replace('{"image_id": 1, "category_id": 1}', "[" * 900 + "]" * 900),
        lambda text: text.replace("1", "9" * 100_000),
        lambda text: text.replace('"image_id": 1', '"image_id": 1e999'),
        lambda text: text.replace("a.jpg", "x" * 1_000_000),
        lambda text: text.replace("a.jpg", "\\u0000"),
        lambda text: text.replace("a.jpg", "../../a.jpg"),
        lambda text: text.replace('"id": 1', '"id": {}'),
    ],
    ids=["deep", "deep images", "deep annotation", "digits", "infinite", "long", "zero", "outside", "unhashable"],
)
def test_annotations_that_mean_harm(tmp_path: Path, change: Callable[[str], str]) -> None:
    folder = coco(tmp_path, change(json.dumps(GOOD)))
    with little_memory(), pytest.raises(DataError) as caught:
        load_dataset(folder, format="coco")
    assert len(str(caught.value)) < 1000


def test_a_matrix_of_labels_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [{"id": i, "name": str(i), "file_name": str(i)} for i in range(1000)]
    folder = coco(tmp_path, json.dumps({"images": many, "categories": many, "annotations": []}))
    monkeypatch.setattr("gradfeat.data.coco.free_memory", lambda: 1 << 20)
    with pytest.raises(DataError, match="1,000 images and 1,000 categories"):
        load_dataset(folder, format="coco")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * 1_000_000, b"a\0b 1\n", b"a " + b"9" * 100_000])
def test_lists_that_are_none(tmp_path: Path, content: bytes) -> None:
    year = tmp_path / "VOC2007"
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "JPEGImages").mkdir()
    (year / "ImageSets" / "Main" / "cat_train.txt").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset(year, split="train-only")
    assert len(str(caught.value)) < 1000
