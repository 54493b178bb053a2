"""CIFAR's files as Python 2 wrote them, pickles that mean harm, and sets that are not complete."""

from __future__ import annotations

import codecs
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gradfeat.data import load_dataset
from gradfeat.data.cifar import CHECKSUMS, OFFICIAL
from gradfeat.errors import DataError

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 2, 0]
NAMES = [b"ape", b"bee", b"cat"]


class Python2Pickler(pickle._Pickler):  # type: ignore[misc]
    """Writes byte strings as Python 2 did, and numpy's module under its old name: as the official files are."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_str(self, value: Any) -> None:
        raw = value.encode() if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_str


def dump(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump(content)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def python10(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    dump(folder / "batches.meta", {b"label_names": NAMES, b"num_vis": 3072})
    for number in (1, 2):
        rows = slice(2 * number - 2, 2 * number)
        content = {b"batch_label": b"a batch", b"labels": LABELS[rows], b"data": PIXELS[rows], b"filenames": [b"a"] * 2}
        dump(folder / f"data_batch_{number}", content)
    dump(folder / "test_batch", {b"labels": LABELS[4:], b"data": PIXELS[4:]})
    return folder


def python100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir()
    dump(folder / "meta", {b"fine_label_names": NAMES, b"coarse_label_names": [b"beast"]})
    for name, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        fine = LABELS[rows]
        dump(folder / name, {b"fine_labels": fine, b"coarse_labels": [0] * len(fine), b"data": PIXELS[rows]})
    return folder


def binary10(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_bytes(b"\n".join(NAMES) + b"\n\n")
    records = np.column_stack([np.array(LABELS, np.uint8), PIXELS])
    for name, rows in (("data_batch_1", slice(0, 2)), ("data_batch_2", slice(2, 4)), ("test_batch", slice(4, 6))):
        (folder / f"{name}.bin").write_bytes(records[rows].tobytes())
    return folder


def binary100(root: Path) -> Path:
    folder = root / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_bytes(b"\n".join(NAMES))
    records = np.column_stack([np.full(6, 19, np.uint8), np.array(LABELS, np.uint8), PIXELS])
    (folder / "train.bin").write_bytes(records[:4].tobytes())
    (folder / "test.bin").write_bytes(records[4:].tobytes())
    return folder


LAYOUTS = {"10-python": python10, "10-binary": binary10, "100-python": python100, "100-binary": binary100}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 4)), ("test", slice(4, 6))])
def test_every_layout_gives_the_same(tmp_path, make, split, rows):
    folder = make(tmp_path)
    data = load_dataset(folder, split=split)
    assert data.X.dtype == np.uint8
    for i, pixels in enumerate(PIXELS[rows]):  # the red plane, then green, then blue, row by row
        assert np.array_equal(data.X[i, 5, 7], pixels[[5 * 32 + 7, 1024 + 5 * 32 + 7, 2048 + 5 * 32 + 7]])
    assert data.y.tolist() == [NAMES[label].decode() for label in LABELS[rows]]
    assert (data.classes, data.task, data.split) == (["ape", "bee", "cat"], "multiclass", split)
    around = load_dataset(tmp_path, split=split)
    assert np.array_equal(around.X, data.X)


def test_a_count_that_is_not_the_official_one_is_noted(tmp_path):
    data = load_dataset(binary10(tmp_path))
    note = "officially 50,000 images; 2 of 10,000 in data_batch_1.bin, data_batch_2.bin"
    assert (data.name, data.note) == ("CIFAR-10", note)
    line = f"CIFAR-10 (train): 2 images of shape (32, 32, 3), 3 classes ({note})"
    assert data.subset([0, 1]).describe() == line


def test_the_official_file_is_the_plain_name(tmp_path, monkeypatch):
    folder = binary10(tmp_path)
    content = bytes(10_000 * 3073)
    (folder / "test_batch.bin").write_bytes(content)
    data = load_dataset(folder, split="test")
    assert (len(data), data.note) == (
        10_000,
        "by checksum not the official test_batch.bin: unless packed anew, download it again",
    )
    monkeypatch.setitem(CHECKSUMS[folder.name], "test_batch.bin", hashlib.sha1(content).hexdigest())
    assert load_dataset(folder, split="test").note == ""


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_files_of_other_counts_and_of_other_bytes_are_named(tmp_path, make, monkeypatch):
    folder = make(tmp_path)
    layout = CHECKSUMS[folder.name]
    monkeypatch.setitem(OFFICIAL, "train", 10 if "cifar-10-" in folder.name else 4)  # two of a batch
    data = load_dataset(folder)
    named = sorted(file.name for file in folder.iterdir() if file.name in layout and "test" not in file.name)[:2]
    if named:  # of the binary layout of CIFAR-100 no checksum is known
        again = "it" if len(named) == 1 else "them"
        assert data.note.endswith(
            f"by checksum not the official {', '.join(named)}: unless packed anew, download {again} again"
        )
    for name in named:
        kind = hashlib.md5 if len(layout[name]) == 32 else hashlib.sha1
        monkeypatch.setitem(layout, name, kind((folder / name).read_bytes()).hexdigest())
    assert load_dataset(folder).note == ("officially 10 images" if "cifar-10-" in folder.name else "")


def test_a_binary_file_cut_off_between_two_images_is_named(tmp_path, monkeypatch):
    folder = binary10(tmp_path)
    monkeypatch.setitem(OFFICIAL, "train", 10)
    file = folder / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:3073])
    first = hashlib.sha1((folder / "data_batch_1.bin").read_bytes()).hexdigest()
    monkeypatch.setitem(CHECKSUMS[folder.name], "data_batch_1.bin", first)
    assert load_dataset(folder).note == "officially 10 images; 1 of 2 in data_batch_2.bin"


def test_no_python_file_that_ends_early_is_read(tmp_path):
    folder = python10(tmp_path)
    content = (folder / "test_batch").read_bytes()
    for kept in {*range(0, len(content), 97), *range(len(content) - 50, len(content))}:
        (folder / "test_batch").write_bytes(content[:kept])
        with pytest.raises(DataError, match="test_batch is cut off or damaged"):
            load_dataset(folder, split="test")


def test_a_missing_batch_is_named_and_a_subset_is_not_one(tmp_path):
    folder = binary10(tmp_path)
    (folder / "data_batch_2.bin").rename(folder / "data_batch_4.bin")
    with pytest.raises(DataError, match=r"has data_batch_4.bin, but lacks data_batch_2.bin, data_batch_3.bin"):
        load_dataset(folder)
    (folder / "data_batch_4.bin").unlink()
    assert len(load_dataset(folder)) == 2
    (folder / "data_batch_1.bin").unlink()
    with pytest.raises(DataError, match="has no file data_batch_"):
        load_dataset(folder)


@pytest.mark.parametrize("size", [0, 3072, 2 * 3073 - 1])
def test_binary_file_cut_off(tmp_path, size):
    folder = binary10(tmp_path)
    file = folder / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:size])
    expected = (
        rf"data_batch_2.bin is cut off .* has {size:,} bytes, expected a multiple of 3,073.* has 30,730,000 bytes"
    )
    with pytest.raises(DataError, match=expected):
        load_dataset(folder)


class Call:
    """Pickles as a call of a function, and optionally a state for the result."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Call(getattr, ("a", "upper")), r"asks for (builtins|__builtin__).getattr"),
        (Call(np.load, ("a.npy",)), r"asks for .*load"),
        (Call(codecs.encode, ("a", "rot13")), "asks for the codec 'rot13'"),
        (Path("a"), "asks for (pathlib|copy_reg)"),
    ],
    ids=["getattr", "load", "codec", "path"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_ask_for_more_are_refused(tmp_path, value, message, protocol):
    folder = python10(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": value, b"labels": [0, 1]}, protocol))
    with pytest.raises(DataError, match=f"data_batch_1: refused: the pickle {message}"):
        load_dataset(folder)


def test_a_forged_dtype_never_reaches_numpy(tmp_path):
    # numpy would take this state, and read a million bytes behind an array's end
    forged = Call(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("u1"), 10**6)}, 8, 1, 0))
    array = Call(PIXELS.__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2, 3072), forged, False, PIXELS[:2].tobytes()))
    folder = python10(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"labels": [0, 1], b"data": array}, 4))
    with pytest.raises(DataError, match="array of the type 'V8'"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"labels": [0, 1], b"data": b"text"}, "expected data to be a list or an array, found bytes"),
        ({b"labels": 7, b"data": PIXELS[:2]}, "expected labels to be a list or an array, found int"),
        ({b"labels": [0, None], b"data": PIXELS[:2]}, r"list of whole numbers, found \[0, None\]"),
        ({b"labels": [[0], [1]], b"data": PIXELS[:2]}, r"list of whole numbers, found \[\[0\], \[1\]\]"),
        ({b"labels": [0, -1], b"data": PIXELS[:2]}, "labels from -1 to"),
        ({b"labels": [0, 1], b"data": np.array([None, "a"])}, "array of the type 'O8'"),
    ],
    ids=["bytes", "number", "none", "matrix", "negative", "objects"],
)
def test_python_files_with_other_contents(tmp_path, content, message):
    folder = python10(tmp_path)
    dump(folder / "data_batch_1", content)
    with pytest.raises(DataError, match=message):
        load_dataset(folder)


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_of_labels(tmp_path, order):
    folder = python10(tmp_path)
    dump(folder / "data_batch_1", {b"labels": np.array(LABELS[:2], f"{order}i8"), b"data": PIXELS[:2]})
    assert load_dataset(folder).y.tolist() == ["cat", "ape", "bee", "bee"]


def test_fortran_order(tmp_path):
    folder = python10(tmp_path)
    expected = load_dataset(folder).X
    for protocol in (2, 4, 5):
        content = {b"labels": LABELS[:2], b"data": np.asfortranarray(PIXELS[:2])}
        (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol))
        assert np.array_equal(load_dataset(folder).X, expected)


@pytest.mark.parametrize("names", [3, [1, 2, 3], b"ape bee cat"], ids=["number", "numbers", "text"])
def test_python_meta_with_other_contents(tmp_path, names):
    folder = python10(tmp_path)
    dump(folder / "batches.meta", {b"label_names": names})
    with pytest.raises(DataError, match=r"batches\.meta: expected"):
        load_dataset(folder)


@pytest.mark.parametrize(("split", "count", "official"), [("train", 4000, "50,000"), ("test", 1000, "10,000")])
def test_cifar10_5k_is_noted_to_be_a_part(shared_data, split, count, official):
    data = load_dataset(shared_data / "cifar10_5k", split=split)
    assert len(data) == count
    assert data.note.startswith(f"officially {official} images; 1,000 of 10,000 in ")
    assert data.note.endswith("data_batch_4.bin" if split == "train" else "test_batch.bin")
