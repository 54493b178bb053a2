"""SVHN in its official layout, made small, and what may be wrong with its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from gradfeat.data import Inputs, Preprocessing, load_dataset
from gradfeat.data.svhn import CHECKSUMS, OFFICIAL, is_svhn
from gradfeat.errors import DataError

LABELS = {"train": [1, 10, 9, 10, 5], "test": [10, 2], "extra": [3, 4, 6]}
DIGITS = {"train": ["1", "0", "9", "0", "5"], "test": ["0", "2"], "extra": ["3", "4", "6"]}


def images(split: str) -> np.ndarray:
    """Images as they are to be read, (n, 32, 32, 3); each has its own colours."""
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (len(LABELS[split]), 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, labels in LABELS.items():
        content = {"X": images(split).transpose(1, 2, 3, 0), "y": np.array(labels, dtype=np.uint8)[:, None]}
        savemat(tmp_path / f"{split}_32x32.mat", content, do_compression=True)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test", "extra"])
@pytest.mark.parametrize("format", ["auto", "svhn"])
def test_official_layout(folder: Path, split: str, format: str) -> None:
    data = load_dataset(folder, split=split, format=format)
    np.testing.assert_array_equal(data.X, images(split))
    assert data.X.dtype == np.uint8
    assert data.y is not None
    assert data.y.tolist() == DIGITS[split]
    assert data.classes == list("0123456789")
    assert (data.name, data.task, data.split) == ("SVHN", "multiclass", split)


def test_the_order_in_memory_changes_nothing(folder: Path) -> None:
    smaller = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)  # resizes each image
    found = Inputs(load_dataset(folder).X, smaller).batch([3, 0])
    assert torch.equal(found, Inputs(np.ascontiguousarray(images("train")), smaller).batch([3, 0]))


def test_another_number_of_images_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_dataset(folder, split="extra").note == "officially 531,131 images"
    assert load_dataset(folder, split="train").describe() == (
        "SVHN (train): 5 images of shape (32, 32, 3), 10 classes (officially 73,257 images)"
    )


def test_a_file_of_other_bytes_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "test_32x32.mat"
    monkeypatch.setitem(OFFICIAL, "test", 2)
    assert load_dataset(folder, split="test").note == (
        "by checksum not the official test_32x32.mat: unless packed anew, download it again"
    )
    monkeypatch.setitem(CHECKSUMS, "test", hashlib.md5(file.read_bytes()).hexdigest())
    assert load_dataset(folder, split="test").note == ""


@pytest.mark.parametrize("compressed", [True, False])
def test_no_file_that_ends_early_is_read_as_if_it_were_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    file = folder / "test_32x32.mat"
    savemat(file, {"X": X, "y": Y}, do_compression=compressed)
    content = file.read_bytes()
    monkeypatch.setitem(OFFICIAL, "test", 2)
    monkeypatch.setitem(CHECKSUMS, "test", hashlib.md5(content).hexdigest())
    assert load_dataset(folder, split="test").note == ""
    for kept in {*range(0, len(content), 97), *range(max(0, len(content) - 300), len(content))}:
        file.write_bytes(content[:kept])
        try:
            note = load_dataset(folder, split="test").note
        except DataError as error:
            note = str(error)
        assert "test_32x32.mat" in note, kept


def test_only_the_file_of_the_split_is_needed(folder: Path) -> None:
    (folder / "train_32x32.mat").unlink()
    assert is_svhn(folder)
    assert len(load_dataset(folder, split="test")) == 2
    with pytest.raises(DataError, match=r"no file train_32x32.mat: download it from http://ufldl.stanford.edu/hous"):
        load_dataset(folder, split="train")


def test_other_folders(tmp_path: Path) -> None:
    assert not is_svhn(tmp_path)
    assert not is_svhn(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no file test_32x32.mat.*put it there"):
        load_dataset(tmp_path, split="test", format="svhn")


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(DataError, match=r"splits train, test, extra, not 'extras'. Did you mean extra\?"):
        load_dataset(folder, split="extras")


@pytest.mark.parametrize("kept", [0, 60, 200, 4000])  # nothing, in the header, in the first array, in its data
def test_files_that_end_early(folder: Path, kept: int) -> None:
    file = folder / "train_32x32.mat"
    content = file.read_bytes()
    assert len(content) > kept
    file.write_bytes(content[:kept])
    with pytest.raises(DataError, match=r"train_32x32.mat (is cut off or damaged|is not a file of SVHN)"):
        load_dataset(folder)


def test_a_file_that_is_no_matlab_file(folder: Path) -> None:
    (folder / "train_32x32.mat").write_text("<html>404 Not Found</html>" * 20)
    with pytest.raises(DataError, match=r"train_32x32.mat is cut off or damaged, or no MATLAB file"):
        load_dataset(folder)


X, Y = np.zeros((32, 32, 3, 2), np.uint8), np.array([[1], [10]], np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": X}, "expected the arrays X and y, found X"),
        ({"digits": X, "y": Y}, "expected the arrays X and y, found digits, y"),
        ({}, "found none"),
        ({"X": X.astype(float), "y": Y}, r"X as uint8 \(32, 32, 3, n\), found float64"),
        ({"X": X.transpose(3, 0, 1, 2), "y": Y}, r"found uint8 \(2, 32, 32, 3\)"),
        ({"X": X[..., 0], "y": Y}, r"found uint8 \(32, 32, 3\)"),
        ({"X": X, "y": Y[:1]}, r"y as numbers \(2, 1\), found uint8 \(1, 1\)"),
        ({"X": X, "y": np.array([["one"], ["two"]])}, r"y as numbers"),
        ({"X": X, "y": np.array([[0], [1]])}, "labels 1 to 10, where 10 is the digit 0; found 0"),
        ({"X": X, "y": np.array([[1.5], [1.0]])}, r"found 1\.5"),
    ],
)
def test_other_contents(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(DataError, match=rf"train_32x32\.mat.*{message}"):
        load_dataset(tmp_path)
