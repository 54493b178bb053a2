"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their official binary and python layouts.

The python layout is made of pickles, which can run code when they are read; it is the one exception to the rule that
gradfeat reads no pickle. The unpickler here knows plain containers, and stand-ins for numpy's array and dtype; it
refuses anything else. Numpy's own reconstruction is not called: a dtype with forged fields would let it read outside
of an array.
"""

from __future__ import annotations

import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from gradfeat.data.checksum import differences_from_official
from gradfeat.data.dataset import Dataset
from gradfeat.data.memory import free_memory
from gradfeat.errors import DataError
from gradfeat.files.bounded import shown

PIXELS = 3 * 32 * 32
_LARGEST = 1 << 30  # bytes; the largest official file has 155 million
_LONGEST = 1 << 20  # bytes of the classes' names
_STEPS = 2_000_000  # of an unpickler; the longest official file needs a sixth of them
_WIDEST, _DEEPEST = 16, 4  # tuples: the state of an array holds its shape, that of a dtype holds none
OFFICIAL = {"train": 50_000, "test": 10_000}  # images, of both data sets
CHECKSUMS = {  # folder -> file -> checksum
    # MD5, as in torchvision/datasets/cifar.py (torchvision 0.28)
    "cifar-10-batches-py": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    "cifar-100-python": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
    # SHA-1, as in Apache MXNet's gluon/data/vision.py of 2017, which checked the files of the official archive by them
    "cifar-10-batches-bin": {
        "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
    },
    "cifar-100-binary": {},  # no published checksum of its files is known
}


@dataclass(frozen=True)
class _Layout:
    folder: str
    title: str
    train: str  # glob
    batches: int  # official number of training files
    test: str
    meta: str
    labels: int  # label bytes before the pixels; the last one is the class
    key: bytes  # of the classes' names or the labels, in a pickle


_BINARY = (
    _Layout(
        "cifar-10-batches-bin", "CIFAR-10", "data_batch_[1-5].bin", 5, "test_batch.bin", "batches.meta.txt", 1, b""
    ),
    _Layout("cifar-100-binary", "CIFAR-100", "train.bin", 1, "test.bin", "fine_label_names.txt", 2, b""),
)
_PYTHON = (
    _Layout("cifar-10-batches-py", "CIFAR-10", "data_batch_[1-5]", 5, "test_batch", "batches.meta", 0, b"labels"),
    _Layout("cifar-100-python", "CIFAR-100", "train", 1, "test", "meta", 0, b"fine_labels"),
)


def is_cifar(path: Path) -> bool:
    """Whether `path` is one of the four official folders, by its name or its files, or holds one."""
    return _find(path) is not None


def load_cifar(path: Path, split: str) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 (its 100 fine labels).

    Args:
        path: ``cifar-10-batches-bin``, ``cifar-10-batches-py``, ``cifar-100-binary``, ``cifar-100-python``, or the
            folder around it.
        split: "train" (all training batches that are there) or "test".

    Returns:
        Images, uint8 (n, 32, 32, 3), and the names of their classes; a note where there are not as many images as
        officially, or a file with as many is not the official one.

    Raises:
        DataError: A file is missing, cut off or damaged, or holds what these files never hold; the message names it.
    """
    found = _find(path)
    if found is None:
        names = ", ".join(layout.folder for layout in (*_BINARY, *_PYTHON))
        raise DataError(f"{path} holds none of the official folders: {names}")
    folder, layout = found
    if split not in ("train", "test"):
        raise DataError(f"{layout.title} has the splits train and test, not {split!r}")
    pattern = layout.train if split == "train" else layout.test
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    if not files:
        raise DataError(f"{folder} has no file {pattern}")
    if layout.batches > 1 and split == "train":
        _check_batches(files, layout)
    meta = folder / layout.meta
    if not meta.is_file():
        raise DataError(f"{folder} has no file {layout.meta}, which names the classes")
    official = OFFICIAL[split] // (layout.batches if split == "train" else 1)  # images of a file
    if layout in _BINARY:
        if meta.stat().st_size > _LONGEST:
            raise DataError(f"{meta} has {meta.stat().st_size:,} bytes, and names classes alone")
        classes = meta.read_text(encoding="utf-8", errors="replace").split()
        batches = [_read_binary(file, layout.labels, official) for file in files]
    else:
        key = b"label_names" if layout.key == b"labels" else b"fine_label_names"
        classes = _names(_entry(_content(meta), key, meta), meta)
        batches = [_read_pickle(file, layout.key) for file in files]
    labels = np.concatenate([batch[0] for batch in batches])
    pixels = np.concatenate([batch[1] for batch in batches])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{folder}: labels from {labels.min()} to {labels.max()}, but {layout.meta} names {len(classes)} classes"
        )
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Dataset(
        X=images,
        y=np.array(classes)[labels],
        classes=classes,
        task="multiclass",
        name=layout.title,
        split=split,
        note=_note({file: len(batch[0]) for file, batch in zip(files, batches, strict=True)}, official, split, layout),
    )


def _note(counts: dict[Path, int], official: int, split: str, layout: _Layout) -> str:
    """Say what is not as officially: the number of images, in which files it is another one, the bytes of the rest."""
    notes = [] if sum(counts.values()) == OFFICIAL[split] else [f"officially {OFFICIAL[split]:,} images"]
    others: dict[int, list[str]] = {}  # number of images -> files
    for file, count in counts.items():
        if count != official:
            others.setdefault(count, []).append(file.name)
    notes += [f"{count:,} of {official:,} in {', '.join(names)}" for count, names in others.items()]
    known = CHECKSUMS[layout.folder]
    whole = {file: known[file.name] for file, count in counts.items() if count == official and file.name in known}
    notes.append(differences_from_official(whole))
    return "; ".join(filter(None, notes))


def _find(path: Path) -> tuple[Path, _Layout] | None:
    if not path.is_dir():
        return None
    for layout in (*_BINARY, *_PYTHON):
        if path.name == layout.folder or ((path / layout.meta).is_file() and any(path.glob(layout.train))):
            return path, layout
    for layout in (*_BINARY, *_PYTHON):
        if (path / layout.folder).is_dir():
            return path / layout.folder, layout
    return None


def _check_batches(files: list[Path], layout: _Layout) -> None:
    """Refuse a batch missing among others; a set that ends early is a subset, and the data set's note says so."""
    there = {file.name for file in files}
    wanted = [layout.train.replace("[1-5]", str(number)) for number in range(1, layout.batches + 1)]
    last = max(i for i, name in enumerate(wanted) if name in there)
    missing = [name for name in wanted[:last] if name not in there]
    if missing:
        raise DataError(f"{files[0].parent} has {wanted[last]}, but lacks {', '.join(missing)}")


def _read_binary(file: Path, label_bytes: int, official: int) -> tuple[np.ndarray, np.ndarray]:
    record = label_bytes + PIXELS
    size = file.stat().st_size
    if not size or size % record:
        raise DataError(
            f"{file} is cut off or damaged: it has {size:,} bytes, expected a multiple of {record:,}, the size of a "
            f"record; the official file has {official * record:,} bytes"
        )
    if size > free_memory():
        raise DataError(f"{file} has {size:,} bytes, more than there is memory for")
    rows = np.fromfile(file, dtype=np.uint8).reshape(-1, record)
    return rows[:, label_bytes - 1].astype(np.int64), rows[:, label_bytes:]


def _read_pickle(file: Path, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    content = _content(file)
    labels, pixels = _numbers(content, key, file), _numbers(content, b"data", file)
    if (
        pixels.dtype != np.uint8
        or pixels.shape[1:] != (PIXELS,)
        or labels.dtype.kind not in "iu"
        or labels.shape != (len(pixels),)
    ):
        raise DataError(
            f"{file}: expected uint8 data (n, {PIXELS}) and n labels, whole numbers; found {pixels.dtype} "
            f"{pixels.shape} and labels of {labels.dtype} {labels.shape}"
        )
    return labels.astype(np.int64), pixels


def _numbers(content: dict[Any, Any], key: bytes, file: Path) -> np.ndarray:
    value = _entry(content, key, file)
    if not len(value):
        raise DataError(f"{file} has no samples: its {key.decode()} is empty")
    if isinstance(value, list) and not all(type(number) is int and abs(number) < 2**31 for number in value):
        raise DataError(f"{file}: expected {key.decode()} to be a list of whole numbers, found {shown(value)}")
    return np.asarray(value)


def _names(found: list[Any] | np.ndarray, meta: Path) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(name, (bytes, str)) for name in found):
        raise DataError(f"{meta}: expected a list of class names")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in found]


def _content(file: Path) -> dict[Any, Any]:
    if file.stat().st_size > _LARGEST:
        raise DataError(f"{file} has {file.stat().st_size:,} bytes, many times as many as a CIFAR file")
    try:
        content = _Unpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{file} is cut off or damaged: {str(error)[:200] or 'it ends early'}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, not the dict of a CIFAR batch")
    return content


def _entry(content: dict[Any, Any], key: bytes, file: Path) -> list[Any] | np.ndarray:
    value = content.get(key, content.get(key.decode()))
    if value is None:
        raise DataError(f"{file} has no entry {key.decode()!r}; found {_keys(content)}")
    value = value.values if isinstance(value, _Array) else value
    if not isinstance(value, (list, np.ndarray)):
        raise DataError(f"{file}: expected {key.decode()} to be a list or an array, found {type(value).__name__}")
    return value


def _keys(content: dict[Any, Any]) -> str:
    names = [_text(key)[:60] for key in content if isinstance(key, (bytes, str))]
    return ", ".join(names[:10]) or "none"


class _Dtype:
    """Stands in for numpy's dtype: its kind, size and byte order are all that is taken from the file."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def plain(self) -> np.dtype:
        if not re.fullmatch("[buif][1248]", self.code) or self.order not in set("<>|="):
            raise DataError(f"refused: the pickle has an array of the type {shown(self.code)}, not of plain numbers")
        return np.dtype(self.order + self.code)


class _Array:
    """Stands in for numpy's array, and for the function that makes an empty one to be filled."""

    def __init__(self, *_: Any) -> None:
        self.values = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self._fill(raw, dtype, shape, "F" if fortran else "C")

    def _fill(self, raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> None:
        # an array's own dtype is plain numbers, so its bytes cannot be read as anything else
        self.values = np.frombuffer(raw, dtype.plain()).reshape(shape, order=order)


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """Stand in for the function by which numpy's arrays are written since protocol 5."""
    array = _Array()
    array._fill(raw, dtype, shape, "F" if _text(order) == "F" else "C")
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for the function by which Python 3 writes bytes for Python 2: latin1, and no other codec."""
    if _text(encoding) != "latin1":
        raise DataError(f"refused: the pickle asks for the codec {shown(encoding)}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand in for `bytes`, by which Python 3 writes an empty one for Python 2."""
    return b""


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_UNUSED = {  # codes of persistent ids, extensions, classes, sets and buffers, which no CIFAR file has
    code[0]
    for code in (
        *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ),
        *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BUILD),
        *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    )
}


def _counted(step: Any) -> Any:
    """Return a step of the unpickler that counts, and looks at the tuple that it may have made."""

    def count(self: Any) -> None:
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > _STEPS:
            raise DataError(f"refused: the pickle has more than {_STEPS:,} steps")
        step(self)
        made = self.stack[-1] if self.stack else None
        if type(made) is tuple and (len(made) > _WIDEST or _depth(made) > _DEEPEST):
            raise DataError("refused: the pickle has a tuple as no array has it")

    return count


def _depth(value: Any) -> int:
    """Return how deep tuples are nested in one another."""
    return 1 + max(map(_depth, value), default=0) if type(value) is tuple else 0


class _Unpickler(pickle._Unpickler):
    """Reads containers, text, and arrays of plain numbers; nothing else can be looked up, so nothing can be run.

    It is Python's own unpickler in Python: that in C makes room for as many memorized values as a file says, and hashes
    nested tuples for as long as it takes. Here steps are counted, and tuples are short and flat.
    """

    stack: list[Any]
    append: Any
    read: Any
    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        ("_codecs", "encode"): _encode,
        ("__builtin__", "bytes"): _no_bytes,
    }
    dispatch: ClassVar[dict[int, Any]] = {
        code: _counted(step) for code, step in pickle._Unpickler.dispatch.items() if code not in _UNUSED
    }

    def build(self) -> None:
        """Let a stand-in for an array or dtype take its state; nothing else has one."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise DataError(f"refused: the pickle changes a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def bytes_to_change(self) -> None:
        """Read bytes as numpy writes them since protocol 5: no room is made for more than there are."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch |= {pickle.BUILD[0]: build, pickle.BYTEARRAY8[0]: bytes_to_change}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a known name; refuse all others."""
        if (module, name) not in self._KNOWN:
            raise DataError(f"refused: the pickle asks for {module[:60]}.{name[:60]}, which no CIFAR file needs")
        return self._KNOWN[module, name]
