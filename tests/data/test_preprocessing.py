from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gradfeat.data import Inputs, Preprocessing
from gradfeat.errors import ConfigurationError, DataError, MissingDependencyError
from gradfeat.optional import require

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = {"wide": (40, 67), "tall": (61, 33), "square": (50, 50), "small": (9, 14), "exact": (32, 32)}


def library(name: str):
    try:
        return require(name, extra="vision")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels over a gradient: every resampling and every shift of the crop shows."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, channels))
    slope = np.linspace(0, 127, width)[None, :, None] * np.linspace(1, 0.5, height)[:, None, None]
    return (noise + slope).astype(np.uint8)


def grey(**changes) -> Preprocessing:
    return Preprocessing(**{"size": (4, 4), "mean": (0.5,), "std": (0.5,), "channels": 1, **changes})


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("size", "crop_pct"), [((32, 32), 0.875), ((32, 32), 1.0), ((31, 31), 0.95), ((24, 36), 0.9)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_from_pil_is_timms_evaluation_transform(shape, interpolation, size, crop_pct, resize):
    transform = library("timm.data").create_transform(
        (3, *size),
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        crop_pct=crop_pct,
        crop_mode={"shortest": "center", "squash": "squash"}[resize],
    )
    image = Image.fromarray(picture(*shape))
    ours = Preprocessing(
        size=size, crop_pct=crop_pct, interpolation=interpolation, mean=MEAN, std=STD, resize=resize
    ).from_pil(image)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("resized", range(224, 264, 3))
def test_torchvisions_resized_side_is_found_again(resized):
    library("torchvision")
    from torchvision.transforms._presets import ImageClassification

    transform = ImageClassification(crop_size=224, resize_size=resized, antialias=True)
    image = Image.fromarray(picture(260, 300))
    ours = Preprocessing(size=(224, 224), crop_pct=224 / resized, mean=MEAN, std=STD).from_pil(image)
    torch.testing.assert_close(ours, transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_arrays_and_images_give_the_same(shape, channels, resize):
    ours = Preprocessing(
        size=(32, 32), crop_pct=0.9, mean=MEAN[:channels], std=STD[:channels], channels=channels, resize=resize
    )
    images = np.stack([picture(*shape, channels, seed) for seed in range(3)])
    expected = [ours.from_pil(Image.fromarray(image.squeeze(-1) if channels == 1 else image)) for image in images]
    assert torch.equal(ours.from_uint8(images), torch.stack(expected))


def test_by_hand():
    # 2 × 4 pixels; the shorter side already fits, the two middle columns stay
    image = np.array([[0, 51, 102, 153], [204, 255, 0, 51]], np.uint8)
    ours = grey(size=(2, 2))
    expected = torch.tensor([[[51.0, 102.0], [255.0, 0.0]]]) / 255 * 2 - 1
    torch.testing.assert_close(ours.from_pil(Image.fromarray(image)), expected)
    torch.testing.assert_close(ours.from_uint8(image[None, ..., None])[0], expected)


def test_any_number_of_channels_is_resized_channel_by_channel():
    four = Preprocessing(size=(5, 6), mean=(0,) * 4, std=(1,) * 4, channels=4, resize="squash")
    one = grey(size=(5, 6), mean=(0,), std=(1,), resize="squash")
    images = picture(11, 13, 4)[None]
    expected = torch.cat([one.from_uint8(images[..., i : i + 1]) for i in range(4)], dim=1)
    assert torch.equal(four.from_uint8(images), expected)
    with pytest.raises(ConfigurationError, match="1 or 3 channels, and the network takes 4"):
        four.from_pil(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation, suffix, tmp_path):
    upright = picture(4, 4, 1)[..., 0]
    undo = {  # how a camera stores the upright picture, by the orientation it notes
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(tmp_path / f"a.{suffix}", exif=exif)
    expected = grey().from_pil(Image.fromarray(upright))
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert torch.equal(grey().from_pil(image), expected)
    assert torch.equal(Inputs([tmp_path / f"a.{suffix}"], grey()).batch([0])[0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted(mode, channels):
    ours = Preprocessing(size=(4, 4), mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)
    found = ours.from_pil(Image.new("RGB", (6, 5), (255, 255, 255)).convert(mode))
    assert found.shape == (channels, 4, 4)
    torch.testing.assert_close(found, torch.ones(channels, 4, 4))


def test_sixteen_bits_are_scaled_and_not_cut_off():
    image = Image.fromarray(np.array([[0, 65535], [257, 32896]], np.uint16))
    found = grey(size=(2, 2), mean=(0,), std=(1,)).from_pil(image) * 255
    torch.testing.assert_close(found, torch.tensor([[[0.0, 255.0], [1.0, 128.0]]]))
    with pytest.raises(DataError, match="floating point"):
        grey().from_pil(Image.new("F", (4, 4)))


def test_dict_and_json_bring_it_back():
    ours = Preprocessing(
        size=(8, 9), crop_pct=np.float32(0.75), interpolation="bicubic", mean=MEAN, std=STD, resize="squash"
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours
    short = Preprocessing.from_dict({"size": [8, 9], "mean": list(MEAN), "std": list(STD)})
    assert short == Preprocessing(size=(8, 9), mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": [4, 4]}, "Unknown field 'sizes'.*Did you mean size"),
        ({"size": [4]}, "size must be"),
        ({"size": [4, 2.5]}, "size must be"),
        ({"size": 4}, "size must be a list"),
        ({"crop_pct": 0}, "crop_pct must be"),
        ({"crop_pct": 1.5}, "crop_pct must be"),
        ({"crop_pct": float("nan")}, "crop_pct must be"),
        ({"crop_pct": "0.9"}, "crop_pct must be"),
        ({"channels": "3"}, "channels must be"),
        ({"interpolation": "bilinea"}, "Did you mean bilinear"),
        ({"resize": "squish"}, "Did you mean squash"),
        ({"mean": [0.5, 0.5]}, "mean must have one value for each of 1 channels, not 2"),
        ({"mean": ["a"]}, "mean must be a list of numbers"),
        ({"std": [0.0]}, "std positive"),
        ({"channels": 0}, "channels must be"),
    ],
)
def test_fields_that_cannot_be_meant(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        Preprocessing.from_dict({**grey().to_dict(), **fields})


def test_missing_fields_are_named():
    with pytest.raises(ConfigurationError, match="lacks size, std"):
        Preprocessing.from_dict({"mean": [0.5]})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), "uint8 images"),
        (np.zeros((2, 4, 4, 1)), "got float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"1 channel\(s\), X has 3"),
    ],
)
def test_arrays_that_do_not_fit(images, message):
    with pytest.raises(DataError, match=message):
        grey().from_uint8(images)


def test_grey_arrays_for_a_colour_network():
    with pytest.raises(DataError, match=r"np\.repeat"):
        Preprocessing(size=(4, 4), mean=MEAN, std=STD).from_uint8(np.zeros((2, 4, 4, 1), np.uint8))
