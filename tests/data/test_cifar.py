"""CIFAR in its four official layouts, made small, and what may be wrong with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradfeat.data.cifar import is_cifar, load_cifar
from gradfeat.errors import DataError

NAMES = ["airplane", "automobile", "bird"]
LAYOUTS = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python")


def samples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3), as they are to be read, and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, len(NAMES), n)


def planes(images: np.ndarray) -> np.ndarray:
    """All red values row by row, then green, then blue: a row of the official files."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_binary(file: Path, images: np.ndarray, labels: np.ndarray, coarse: bool) -> None:
    columns = [np.full(len(labels), 17), labels] if coarse else [labels]
    file.write_bytes(np.column_stack([*columns, planes(images)]).astype(np.uint8).tobytes())


def write_python(file: Path, content: Any) -> None:
    # protocol 2 with byte strings as keys is what Python 3 reads from the official files, which Python 2 wrote
    file.write_bytes(pickle.dumps(content, protocol=2))


def write(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fill a folder in the layout of its name; return what each split holds."""
    folder.mkdir(parents=True)
    hundred, binary = folder.name.startswith("cifar-100"), "bin" in folder.name
    ending = ".bin" if binary else ""
    train = ["train"] if hundred else ["data_batch_1", "data_batch_2"]
    batches = {name: samples(4 + i, i) for i, name in enumerate([*train, "test" if hundred else "test_batch"])}
    for name, (images, labels) in batches.items():
        if binary:
            write_binary(folder / f"{name}{ending}", images, labels, coarse=hundred)
        else:
            key = b"fine_labels" if hundred else b"labels"
            content = {b"data": planes(images), key: labels.tolist(), b"batch_label": b"", b"filenames": [b"a.png"]}
            write_python(folder / name, content | ({b"coarse_labels": [0] * len(labels)} if hundred else {}))
    if binary:
        (folder / ("fine_label_names.txt" if hundred else "batches.meta.txt")).write_text("\n".join(NAMES) + "\n\n")
    else:
        key = b"fine_label_names" if hundred else b"label_names"
        write_python(folder / ("meta" if hundred else "batches.meta"), {key: [name.encode() for name in NAMES]})
    *training, test = batches.values()
    return {
        "train": (np.concatenate([part[0] for part in training]), np.concatenate([part[1] for part in training])),
        "test": test,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_official_layouts(tmp_path: Path, layout: str, split: str) -> None:
    images, labels = write(tmp_path / layout)[split]
    for path in (tmp_path / layout, tmp_path):  # the folder itself, or the one around it
        assert is_cifar(path)
        data = load_cifar(path, split)
        np.testing.assert_array_equal(data.X, images)
        assert data.X.dtype == np.uint8
        assert data.y is not None
        assert data.y.tolist() == [NAMES[label] for label in labels]
        assert data.classes == NAMES
        assert (data.task, data.split) == ("multiclass", split)
        assert data.name == ("CIFAR-100" if "100" in layout else "CIFAR-10")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_renamed_folder_is_known_by_its_files(tmp_path: Path, layout: str) -> None:
    write(tmp_path / layout)
    (tmp_path / layout).rename(tmp_path / "mine")
    assert load_cifar(tmp_path / "mine", "test").name == ("CIFAR-100" if "100" in layout else "CIFAR-10")


def test_training_batches_are_in_order_and_may_be_few(tmp_path: Path) -> None:
    folder = tmp_path / LAYOUTS[0]
    images, _ = write(folder)["train"]
    (folder / "data_batch_2.bin").unlink()
    np.testing.assert_array_equal(load_cifar(folder, "train").X, images[:4])


def test_other_folders_are_not_cifar(tmp_path: Path) -> None:
    assert not is_cifar(tmp_path)
    assert not is_cifar(tmp_path / "absent")
    with pytest.raises(DataError, match=r"none of the official folders: cifar-10-batches-bin, cifar-100-binary"):
        load_cifar(tmp_path, "train")


def test_python_files_of_python_3(tmp_path: Path) -> None:
    """Keys and names as text, and any protocol: files that were written again."""
    folder = tmp_path / LAYOUTS[1]
    images, labels = write(folder)["test"]
    for protocol in range(2, 6):
        content = {"data": planes(images), "labels": labels.tolist()}
        (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=protocol))
        np.testing.assert_array_equal(load_cifar(folder, "test").X, images)


# ---- bad files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unknown_split(tmp_path: Path, layout: str) -> None:
    write(tmp_path / layout)
    with pytest.raises(DataError, match="splits train and test, not 'validation'"):
        load_cifar(tmp_path, "validation")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0.0, 0.55, 0.97])  # none is a whole number of records
def test_truncated_file_is_named(tmp_path: Path, layout: str, keep: float) -> None:
    folder = tmp_path / layout
    write(folder)
    file = next(file for file in sorted(folder.iterdir()) if file.name.startswith("test"))
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=f"{file.name} is cut off or damaged"):
        load_cifar(folder, "test")
    assert len(load_cifar(folder, "train"))  # the rest can still be read


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_files_are_named(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    write(folder)
    next(file for file in folder.iterdir() if file.name.startswith("test")).unlink()
    with pytest.raises(DataError, match="has no file test"):
        load_cifar(folder, "test")
    meta = next(file for file in folder.iterdir() if "meta" in file.name or "names" in file.name)
    meta.unlink()
    with pytest.raises(DataError, match=f"has no file {meta.name}, which names the classes"):
        load_cifar(folder, "train")


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_label_without_a_name(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    write(folder)
    images, _ = samples(2, 0)
    if "bin" in layout:
        write_binary(folder / "test_batch.bin", images, np.array([0, 3]), coarse=False)
    else:
        write_python(folder / "test_batch", {b"data": planes(images), b"labels": [0, 3]})
    with pytest.raises(DataError, match=r"labels from 0 to 3, but batches.meta(.txt)? names 3 classes"):
        load_cifar(folder, "test")


PIXELS = planes(samples(2, 0)[0])
BAD_CONTENT: dict[str, tuple[Any, str]] = {
    "no data": ({b"labels": [0, 1]}, "no entry 'data'; found labels"),
    "no labels": ({b"data": PIXELS}, "no entry 'labels'; found data"),
    "a list": ([PIXELS, [0, 1]], "holds a list, not the dict"),
    "too few labels": ({b"data": PIXELS, b"labels": [0]}, r"expected uint8 data \(n, 3072\) and n labels"),
    "pixels as floats": ({b"data": PIXELS / 255, b"labels": [0, 1]}, "found float64"),
    "pixels cropped": ({b"data": PIXELS[:, 1:], b"labels": [0, 1]}, r"found uint8 \(2, 3071\)"),
    "pixels as a list": ({b"data": [1, 2], b"labels": [0, 1]}, "found int64"),
    "ragged pixels": ({b"data": [[1], [2, 3]], b"labels": [0, 1]}, "data"),
    "labels as text": ({b"data": PIXELS, b"labels": ["cat", "dog"]}, "labels"),
    "labels with fractions": ({b"data": PIXELS, b"labels": [0.5, 1.0]}, "labels"),
    "no samples": ({b"data": PIXELS[:0], b"labels": []}, "no samples"),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_python_file_with_other_content(tmp_path: Path, case: str) -> None:
    folder = tmp_path / LAYOUTS[1]
    write(folder)
    content, message = BAD_CONTENT[case]
    write_python(folder / "test_batch", content)
    with pytest.raises(DataError, match=message) as caught:
        load_cifar(folder, "test")
    assert "test_batch" in str(caught.value)


class Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("file", ["test_batch", "batches.meta"])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, file: str, protocol: int) -> None:
    folder, trace = tmp_path / LAYOUTS[1], tmp_path / "trace"
    write(folder)
    malicious = Runs(exec, f"open({str(trace)!r}, 'w').close()")
    (folder / file).write_bytes(pickle.dumps({b"labels": [malicious]}, protocol=protocol))
    with pytest.raises(DataError, match=rf"{file}: refused: the pickle asks for (__builtin__|builtins).exec"):
        load_cifar(folder, "test")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "load"),
        ("numpy.core.multiarray", "frombuffer"),
        ("numpy", "dtype.__class__"),
        ("_codecs", "lookup"),
        ("os", "system"),
        ("builtins", "getattr"),
    ],
)
def test_only_arrays_can_be_looked_up(tmp_path: Path, module: str, name: str) -> None:
    folder = tmp_path / LAYOUTS[1]
    write(folder)
    by_name = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93."
    (folder / "test_batch").write_bytes(by_name)
    with pytest.raises(DataError, match=f"refused: the pickle asks for {module}.{name}"):
        load_cifar(folder, "test")


def test_object_arrays_cannot_smuggle_code(tmp_path: Path) -> None:
    folder, trace = tmp_path / LAYOUTS[1], tmp_path / "trace"
    write(folder)
    inner = np.empty(1, dtype=object)
    inner[0] = Runs(exec, f"open({str(trace)!r}, 'w').close()")
    write_python(folder / "test_batch", {b"data": inner, b"labels": [0]})
    with pytest.raises(DataError, match="refused"):
        load_cifar(folder, "test")
    assert not trace.exists()


# ---- real data -----------------------------------------------------------------------------------------------------


def test_real_files(shared_data: Path) -> None:
    folder = shared_data / "cifar10_5k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    train, test = load_cifar(folder, "train"), load_cifar(folder, "test")
    assert (len(train), len(test)) == (4000, 1000)
    assert train.classes[:3] == ["airplane", "automobile", "bird"]
    assert np.unique(train.y, return_counts=True)[1].tolist() == [400] * 10
    assert train.X.shape == (4000, 32, 32, 3)
    # photographs: neighbours in a row are alike, which they are not if planes or axes are mixed up
    values = train.X[:500].astype(float)
    assert np.abs(np.diff(values, axis=2)).mean() < 0.3 * np.abs(values - values[::-1]).mean()
