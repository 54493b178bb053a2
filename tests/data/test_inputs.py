from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset, TensorDataset

from gradfeat.data import Dataset, Inputs, Preprocessing, load_dataset
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
COLOUR = Preprocessing(size=(6, 6), crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


class Pairs(TorchDataset):
    """(x, y), x = [i, i], y = i mod 2."""

    def __init__(self, n=4, change=lambda i, x: x, target=int):
        self.n, self.change, self.target = n, change, target

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.change(i, torch.tensor([float(i), float(i)])), self.target(i % 2)


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file, image in zip(files, IMAGES, strict=True):
        Image.fromarray(image).save(file)
    return files


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.dtype(">f4")])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 4)])
def test_numbers_pass_through(dtype, shape):
    X = rng.normal(scale=9, size=shape).astype(dtype)
    inputs = Inputs(X)
    batch = inputs.batch([4, 0])
    assert (len(inputs), inputs.shape, inputs.random, inputs.labels()) == (5, shape, False, None)
    assert batch.numpy().dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(batch.numpy(), X[[4, 0]])
    assert np.array_equal(inputs.example().numpy(), X[:3])
    assert inputs.example(99).shape == shape
    assert inputs.batch([]).shape == (0, *shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_pass_through(dtype):
    X = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    batch = Inputs(X).batch(range(1, 3))
    assert not batch.requires_grad
    assert torch.equal(batch, X[1:3])


def test_batches_are_copies():
    for X in (np.ones((4, 2)), torch.ones(4, 2)):
        Inputs(X).batch(range(4)).zero_()
        assert X.sum() == 8


def test_arrays_that_numpy_and_torch_store_differently():
    X = np.arange(12.0).reshape(4, 3)
    X.flags.writeable = False
    assert torch.equal(Inputs(X[::-1]).batch([0]), torch.tensor(X[3:].copy()))


def test_images_in_memory():
    plain = Inputs(IMAGES).batch([1, 3])
    assert torch.equal(plain, torch.tensor(IMAGES[[1, 3]].transpose(0, 3, 1, 2) / np.float32(255)))
    assert torch.equal(Inputs(IMAGES, COLOUR).batch([1, 3]), COLOUR.from_uint8(IMAGES[[1, 3]]))
    assert torch.equal(Inputs(torch.tensor(IMAGES), COLOUR).batch([1]), COLOUR.from_uint8(IMAGES[[1]]))
    assert Inputs(IMAGES).shape == (5, 8, 9, 3)


@pytest.mark.parametrize("kind", [Path, str, np.array])
def test_paths(paths, kind):
    X = np.array([str(path) for path in paths]) if kind is np.array else [kind(path) for path in paths]
    inputs = Inputs(X, COLOUR)
    assert torch.equal(inputs.batch([4, 0, 2]), COLOUR.from_uint8(IMAGES[[4, 0, 2]]))
    assert (len(inputs), inputs.shape, inputs.random) == (5, None, False)


def test_an_image_that_is_damaged_later_is_named(paths):
    inputs = Inputs(paths, COLOUR)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    inputs.batch([0, 1])
    with pytest.raises(DataError, match=r"2\.png cannot be read"):
        inputs.batch(range(5))
    paths[2].unlink()
    with pytest.raises(DataError, match=r"2\.png cannot be read as an image: there is no such file"):
        inputs.batch([2])


def test_subsets(paths):
    for X in (IMAGES, paths, IMAGES.transpose(0, 3, 1, 2) / 255):
        inputs = Inputs(X, COLOUR)
        part = inputs.subset([4, 1, 3]).subset(np.array([True, False, True]))
        assert len(part) == 2
        assert torch.equal(part.batch([1, 0]), inputs.batch([3, 4]))
        with pytest.raises(IndexError):
            part.batch([2])
    assert Inputs(IMAGES).subset([1]).shape == (1, 8, 9, 3)


def test_torch_dataset_of_pairs():
    inputs = Inputs(Pairs())
    assert torch.equal(inputs.batch([3, 1]), torch.tensor([[3.0, 3.0], [1.0, 1.0]]))
    assert inputs.labels().tolist() == [0, 1, 0, 1]
    assert inputs.subset([1, 3]).labels().tolist() == [1, 1]
    assert (inputs.random, inputs.shape, len(inputs)) == (True, None, 4)
    assert Inputs(Subset(Pairs(), [2, 3])).batch([0])[0, 0] == 2
    assert Inputs(Pairs(target=lambda y: torch.tensor([y, 1 - y]))).labels().shape == (4, 2)
    assert Inputs(Pairs(target=lambda y: "ab"[y])).labels().tolist() == ["a", "b", "a", "b"]


def test_torch_dataset_without_labels():
    class Plain(Pairs):
        def __getitem__(self, i):
            return super().__getitem__(i)[0]

    assert Inputs(Plain()).labels() is None
    assert Inputs(Plain()).example(2).shape == (2, 2)


def test_tensor_dataset_is_its_tensors():
    x, y = torch.randn(4, 2), torch.arange(4)
    inputs = Inputs(TensorDataset(x, y))
    assert (inputs.random, inputs.shape) == (False, (4, 2))
    assert torch.equal(inputs.batch([2]), x[[2]])
    assert inputs.subset([3, 1]).labels().tolist() == [3, 1]
    assert Inputs(TensorDataset(x)).labels() is None


def test_augmentation_is_seen():
    draws = iter(range(100))
    inputs = Inputs(Pairs(change=lambda i, x: x + next(draws)))
    assert not torch.equal(inputs.batch([1]), inputs.batch([1]))


@pytest.mark.parametrize("make", [pickle.loads, copy.deepcopy])
def test_copies(paths, make):
    inputs = Inputs([*paths], COLOUR).subset([1, 2])
    again = make(pickle.dumps(inputs)) if make is pickle.loads else make(inputs)
    assert torch.equal(again.batch([0, 1]), inputs.batch([0, 1]))


NAN = np.where(np.eye(5, 3) > 0, np.nan, 0.0)[::-1]


@pytest.mark.parametrize(
    ("X", "preprocessing", "error", "message"),
    [
        (NAN, None, DataError, "3 NaN or infinite values, first in sample 2"),
        (torch.tensor(NAN.copy()), None, DataError, "3 NaN or infinite values, first in sample 2"),
        (TensorDataset(torch.tensor(NAN.copy())), None, DataError, "first in sample 2"),
        (np.zeros((0, 3)), None, DataError, "no samples"),
        ([], COLOUR, DataError, r"\(n, \.\.\.\)"),
        (np.zeros(4), None, DataError, "reshape"),
        (np.zeros((2, 8, 9, 5), np.uint8), None, DataError, r"1, 3 or 4 channels; got the shape \(2, 8, 9, 5\)"),
        (np.zeros((2, 3, 8, 9), np.uint8), None, DataError, "looks like"),
        (np.zeros((2, 8, 9), np.uint8), None, DataError, "newaxis"),
        (np.zeros((2, 8), np.uint8), None, DataError, "astype"),
        (np.zeros((2, 8, 9, 1), np.uint8), COLOUR, DataError, "np.repeat"),
        (np.zeros((2, 8, 9, 4), np.uint8), COLOUR, DataError, "alpha"),
        (np.zeros((2, 1, 8, 9)), COLOUR, DataError, r"takes \(n, 3, h, w\)"),
        (np.zeros((2, 8, 9, 3)), COLOUR, DataError, "transpose"),
        (["good", "bad film"], None, ConfigurationError, "tokenizer"),
        (["x" * 5000, "nul\0"], COLOUR, ConfigurationError, "tokenizer"),
        ([Path("nowhere.png")], COLOUR, DataError, "1 of 1 files are not there"),
        ("photo.png", COLOUR, ConfigurationError, "single path"),
        (np.zeros((2, 2), complex), None, ConfigurationError, "complex128"),
        ([[1.0], [2.0, 3.0]], None, ConfigurationError, "cannot be read"),
        (torch.eye(3).to_sparse(), None, ConfigurationError, "to_dense"),
        ([object()], None, ConfigurationError, "object"),
        (TensorDataset(*[torch.zeros(2, 2)] * 3), None, DataError, "3 tensors"),
        (Dataset(np.zeros((2, 2)), None, [], "regression", "a", "all"), None, ConfigurationError, "dataset.X"),
    ],
)
def test_bad_input(X, preprocessing, error, message):
    with pytest.raises(error, match=message):
        Inputs(X, preprocessing)


def test_paths_need_a_preprocessing(paths):
    with pytest.raises(ConfigurationError, match="give preprocessing=dict"):
        Inputs(paths)
    with pytest.raises(DataError, match="1 of 6 files are not there"):
        Inputs([*map(str, paths), "gone.png"], COLOUR)


def test_bad_datasets():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ConfigurationError, match="map-style"):
        Inputs(Stream())
    with pytest.raises(DataError, match="no samples"):
        Inputs(Pairs(0))
    with pytest.raises(DataError, match="sample 1 is a ndarray"):
        Inputs(Pairs(change=lambda i, x: x.numpy())).batch([1])
    with pytest.raises(DataError, match=r"\(3,\) at 3"):
        Inputs(Pairs(change=lambda i, x: torch.zeros(i))).batch([2, 3])
    with pytest.raises(DataError, match="Sample 2 of the Dataset has NaN"):
        Inputs(Pairs(change=lambda i, x: x / (i - 2) * (i - 2))).batch([1, 2])
    with pytest.raises(DataError, match="has 3 parts"):
        Inputs(Subset([(0, 0, 0)], [0])).batch([0])


def test_clothing10(shared_data):
    data = load_dataset(shared_data / "clothing10", split="test").subset(range(0, 372, 31))
    ours = Preprocessing(size=(96, 96), crop_pct=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = Inputs(data.X, ours).batch(range(len(data)))
    assert batch.shape == (12, 3, 96, 96)
    assert batch.abs().max() <= 1
    for i in (0, 7):
        with Image.open(data.X[i]) as image:
            assert torch.equal(batch[i], ours.from_pil(image))


def pictures(count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20 + i, 16, 3)).astype(np.uint8)) for i in range(count)]


def test_images_in_memory_are_as_those_on_disk(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    images = pictures()
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    found, expected = Inputs(images, preprocessing), Inputs(paths, preprocessing)
    assert torch.equal(found.batch([3, 0, 0]), expected.batch([3, 0, 0]))
    assert all(np.array_equal(a, b) for a, b in zip(found.pictures([1]), expected.pictures([1]), strict=True))
    opened = [Image.open(path) for path in paths]
    assert torch.equal(Inputs(opened, preprocessing).batch([1]), expected.batch([1]))


def test_images_in_memory_need_a_preprocessing_and_a_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--image-size"):
        Inputs(pictures())
    with pytest.raises(ConfigurationError, match="a single image"):
        Inputs(pictures(1)[0])
    path = tmp_path / "cut.png"
    pictures(1)[0].save(path)
    path.write_bytes(path.read_bytes()[:200])
    cut = [*pictures(1), Image.open(path)]
    with pytest.raises(DataError, match="image 1 of X cannot be read"):
        Inputs(cut, Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3))


def test_pixels_that_nobody_scaled_are_said() -> None:
    preprocessing = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)  # images are within ±2
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 3, 8, 8)).astype(np.float32)
    with pytest.warns(GradfeatWarning, match="pixels from 0 to 255 belong in a uint8 array"):
        Inputs(pixels, preprocessing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Inputs(pixels / 64 - 2, preprocessing)
        Inputs(pixels)
