"""Random crops: images whose pixels say where they are from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch.utils.data import TensorDataset

from gradfeat.data import Crops, Inputs, Preprocessing
from gradfeat.data.crops import views_of
from gradfeat.errors import ConfigurationError

HEIGHT, WIDTH, SIDE = 12, 16, 8
PLAIN = Preprocessing(size=(SIDE, SIDE), crop_pct=SIDE / HEIGHT, mean=(0, 0, 0), std=(1, 1, 1))  # resizes nothing here
WINDOWS = (HEIGHT - SIDE + 1) * (WIDTH - SIDE + 1)


def located(n: int) -> np.ndarray:
    """Images (n, h, w, 3) of which each pixel holds its row, its column and the number of its image."""
    rows, columns, numbers = np.broadcast_arrays(
        np.arange(HEIGHT)[:, None], np.arange(WIDTH), np.arange(n)[:, None, None]
    )
    return np.stack([rows, columns, numbers], axis=-1).astype(np.uint8)


def pixels(crops: Crops, indices: Any) -> np.ndarray:
    """The crops as uint8 (n, h, w, c)."""
    return (255 * crops.batch(indices)).round().byte().numpy().transpose(0, 2, 3, 1)


def test_a_crop_is_a_window_of_its_image_or_its_mirror() -> None:
    images = located(3)
    crops = Crops(Inputs(images, PLAIN), 5)
    assert len(crops) == 15
    for i, crop in enumerate(pixels(crops, range(15))):
        top, columns = int(crop[0, 0, 0]), crop[0, :, 1]
        window = images[i // 5, top : top + SIDE, columns.min() : columns.min() + SIDE]
        np.testing.assert_array_equal(crop, window if columns[0] < columns[-1] else window[:, ::-1])


def test_every_place_and_side_is_as_likely() -> None:
    crops = pixels(Crops(Inputs(located(4), PLAIN), 900), range(3600))
    left = crops[:, 0, :, 1].min(1).astype(int)
    mirrored = crops[:, 0, 0, 1] > crops[:, 0, -1, 1]
    kinds = (crops[:, 0, 0, 0].astype(int) * (WIDTH - SIDE + 1) + left) * 2 + mirrored
    counts = np.bincount(kinds, minlength=2 * WINDOWS)
    assert len(counts) == 2 * WINDOWS
    assert chisquare(counts).pvalue > 1e-3


def test_crops_are_the_same_in_every_order() -> None:
    crops = Crops(Inputs(located(4), PLAIN), 3)
    whole = crops.batch(range(12))
    order = [7, 0, 11, 7, 1, 6]
    assert torch.equal(crops.batch(order), whole[order])
    assert not crops.random
    assert torch.equal(Crops(Inputs(located(4), PLAIN), 3, 0).batch(range(12)), whole)
    assert not torch.equal(Crops(Inputs(located(4), PLAIN), 3, 1).batch(range(12)), whole)


def test_files_are_cropped_as_arrays_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    crops = Crops(Inputs(images, PLAIN), 4)
    assert torch.equal(Crops(Inputs(paths, PLAIN), 4).batch(range(12)), crops.batch(range(12)))
    # each is a window of the image resized as for the centre crop
    small = np.asarray(Image.fromarray(images[1]).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    windows = np.lib.stride_tricks.sliding_window_view(small, (SIDE, SIDE, 3)).reshape(-1, SIDE, SIDE, 3)
    both = np.concatenate([windows, windows[:, :, ::-1]])
    for crop in pixels(crops, range(4, 8)):
        assert (both == crop).all((1, 2, 3)).sum() == 1


def test_values_are_normalised_as_for_the_centre_crop() -> None:
    half = Preprocessing(size=(SIDE, SIDE), crop_pct=0.5, mean=(0.5,), std=(0.25,), channels=1)
    images = np.full((2, 16, 16, 1), 51, np.uint8)
    assert Crops(Inputs(images, half), 2).batch([3]).unique().tolist() == pytest.approx([(0.2 - 0.5) / 0.25])


def test_one_view_is_the_sample_itself() -> None:
    inputs = Inputs(np.zeros((2, 3)))
    assert views_of(inputs, 1) is inputs
    assert len(views_of(Inputs(located(2), PLAIN), 10)) == 20


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "10", None])
def test_counts_that_cannot_be_meant(count: Any) -> None:
    with pytest.raises(ConfigurationError, match="crops must be a whole number from 1"):
        views_of(Inputs(located(2), PLAIN), count)


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs(np.zeros((2, 3, 12, 12), np.float32), PLAIN),
        Inputs(np.zeros((2, 5))),
        Inputs(located(2)),  # uint8, but the network's size is not known
        Inputs(TensorDataset(torch.zeros(2, 3, 8, 8))),
    ],
)
def test_samples_that_are_no_images(inputs: Inputs) -> None:
    with pytest.raises(ConfigurationError, match="random crops are for images"):
        Crops(inputs, 10)


def test_images_without_room() -> None:
    whole = Preprocessing(size=(SIDE, SIDE), mean=(0, 0, 0), std=(1, 1, 1))
    square = np.zeros((2, 20, 20, 3), np.uint8)
    with pytest.raises(ConfigurationError, match=r"larger than the network's \(8, 8\).*the first 2 are not.*crop_pct"):
        Crops(Inputs(square, whole), 10)
    assert len(Crops(Inputs(located(2), whole), 10)) == 20  # a longer side is cut anyhow
