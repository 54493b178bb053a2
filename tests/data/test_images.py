"""Image files of every kind of pixel, damaged ones, and those that are no images."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, PngImagePlugin

from gradfeat.data import Inputs, Preprocessing
from gradfeat.data.images import read_image
from gradfeat.data.pixels import eight_bit
from gradfeat.errors import DataError, GradfeatWarning

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: np.ndarray, depth: int = 8, chunks: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of (h, w, c), written from its specification."""
    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    return b"".join(
        (
            *(b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), chunks, chunk(b"IDAT", zlib.compress(rows)), after),
            chunk(b"IEND", b""),
        )
    )


def tiff(values: np.ndarray, order: str, packed: bool) -> bytes:
    """A TIFF of 16 bits a colour, (h, w, 3), written from its specification."""
    height, width, channels = values.shape
    data = values.astype(order + "u2").tobytes()
    data = zlib.compress(data) if packed else data
    data += b"\0" * (len(data) % 2)
    bits, at = struct.pack(order + "3H", 16, 16, 16), 8 + len(data)
    fields = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, at), (259, 3, 1, 8 if packed else 1)]
    fields += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(data))]
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, count)
        + (struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value))
        for tag, kind, count, value in fields
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at + len(bits))
    return head + data + bits + struct.pack(order + "H", len(fields)) + entries + struct.pack(order + "I", 0)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


# ---- transparency ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays.arrays(np.uint8, (3, 4, 4)), st.sampled_from(["RGBA", "LA", "RGBa"]))
def test_transparent_images_are_laid_over_white(values: np.ndarray, mode: str) -> None:
    values[0, 0, -1], values[0, 1, -1] = 0, 255  # else wholly clear or opaque, which the next test is of
    image = Image.fromarray(values)
    if mode == "LA":
        image = Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))
        values = values[..., [0, 0, 0, 3]]
    elif mode == "RGBa":
        image = image.convert("RGBa")
    found = np.asarray(eight_bit(image).convert("RGB")).astype(float)
    expected = over_white(values[..., :3].astype(float), values[..., 3])
    assert np.abs(found - expected).max() <= (1 if mode != "RGBa" else 2)  # premultiplied colours are rounded twice


@pytest.mark.parametrize("alpha", [0, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_that_says_nothing_changes_nothing(mode: str, alpha: int) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 4), dtype=np.uint8)
    image = Image.fromarray(grey).convert(mode)
    image.putalpha(alpha)
    assert np.array_equal(np.asarray(eight_bit(image).convert("L")), grey)


@pytest.mark.parametrize(
    "name", ["logo.png", "logo.gif", "logo.webp", "grey.png", "palette.png", "clear.png", "grey16.png"]
)
def test_a_black_logo_in_alpha_is_black_on_white(tmp_path: Path, name: str) -> None:
    shape = np.zeros((8, 8), bool)
    shape[2:5, 2:5] = True
    logo = np.zeros((8, 8, 4), np.uint8)
    logo[shape, 3] = 255
    clear = np.where(shape, 0, 7).astype(np.uint8)  # what is 7 is transparent
    if name == "clear.png":
        (tmp_path / name).write_bytes(
            png(np.stack([clear] * 3, -1), chunks=chunk(b"tRNS", struct.pack(">3H", 7, 7, 7)))
        )
    elif name == "grey.png":
        (tmp_path / name).write_bytes(png(clear[..., None], chunks=chunk(b"tRNS", struct.pack(">H", 7))))
    elif name == "grey16.png":
        (tmp_path / name).write_bytes(png(clear[..., None], 16, chunks=chunk(b"tRNS", struct.pack(">H", 7))))
    elif name == "palette.png":
        picture = Image.fromarray(np.where(shape, 0, 1).astype(np.uint8)).convert("P")
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.save(tmp_path / name, transparency=b"\xff\x00")
    else:
        options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
        Image.fromarray(logo).save(tmp_path / name, **options)
    found = np.asarray(read_image(tmp_path / name).convert("L"))
    assert np.array_equal(found, np.where(shape, 0, 255))


# ---- more than eight bits -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays.arrays(np.uint16, (3, 3)), st.sampled_from([8, 10, 12, 14, 16]))
def test_deep_pixels_are_scaled_by_the_bits_that_they_need(values: np.ndarray, bits: int) -> None:
    full = 2**bits - 1
    values = np.minimum(values, full)
    values[0, 0] = full
    big = Image.frombytes("I;16B", (3, 3), values.astype(">u2").tobytes())
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32)), big):
        found = np.asarray(eight_bit(image)).astype(float)
        assert np.abs(found - values * (255 / full)).max() <= 0.5


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "png with alpha", "tiff <", "tiff >", "tiff < packed", "tiff > packed"])
def test_colours_of_sixteen_bits_are_scaled_by_what_they_hold(tmp_path: Path, kind: str, bits: int) -> None:
    colours = np.stack([RAMP, RAMP**2, RAMP[::-1]], -1)
    values = (colours * (2**bits - 1)).round()
    if kind.startswith("png"):
        clear = [np.full((8, 8, 1), 65535)] if "alpha" in kind else []
        (tmp_path / "a.png").write_bytes(png(np.concatenate([values, *clear], -1), 16))
    else:
        (tmp_path / "a.png").write_bytes(tiff(values, kind.split()[1], "packed" in kind))
    full = {9: 10}.get(bits, bits)
    found = np.asarray(read_image(tmp_path / "a.png")).astype(float)
    assert np.abs(found - values * (255 / (2**full - 1))).max() <= 1  # 16 bits are cut to 8 by Pillow, not rounded


def test_wide_integers_are_not_black_and_values_below_zero_are_refused(tmp_path: Path) -> None:
    for largest in (100_000, 2**31 - 1):
        Image.fromarray((RAMP * largest).astype(np.int32)).save(tmp_path / "a.tif")
        found = np.asarray(read_image(tmp_path / "a.tif"))
        assert (found.min(), found.max() >= 127) == (0, True)
    Image.fromarray((RAMP * 2000 - 1000).astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif .*whole numbers from -1000 to 1000.*store 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def test_a_declared_largest_value_is_believed(tmp_path: Path) -> None:
    dark = (RAMP * 1000).round()
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 4095\n" + dark.astype(">u2").tobytes())
    assert np.abs(np.asarray(read_image(tmp_path / "a.pgm")) - dark * (255 / 4095)).max() <= 0.51


def test_deep_images_are_spoken_of_once(tmp_path: Path) -> None:
    scaling = Preprocessing(size=(8, 8), mean=(0.0,), std=(1.0,), channels=1)
    for bits in (12, 16):
        Image.fromarray((RAMP * (2**bits - 1)).astype(np.uint16)).save(tmp_path / f"{bits}.png")
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "8.png")
    inputs = Inputs([tmp_path / f"{bits}.png" for bits in (8, 12, 16)], scaling)
    with pytest.warns(GradfeatWarning, match=r"16 or 32 bits .* 12 bits only.*12\.png") as caught:
        batches = [inputs.batch(range(3)) for _ in range(2)]
    assert len(caught) == 1
    assert np.abs(batches[0].numpy() - RAMP).max() <= 1.01 / 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Inputs([tmp_path / "8.png", tmp_path / "16.png"], scaling).batch(range(2))


# ---- files ----------------------------------------------------------------------------------------------------------


def test_postscript_never_reaches_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def started(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="EPS")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image: it is a PostScript file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"", "an empty file"),
        (bytes(300), "a file of zeros"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image.*pillow-heif"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"<?xml version='1.0'?><svg/>", "an SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"hello", "not an image of a kind that is read"),
    ],
)
def test_what_is_no_image_is_said_as_what_it_is(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(start)
    with pytest.raises(DataError, match=kind):
        read_image(tmp_path / "a.jpg")


def test_long_texts_and_profiles_are_no_damage(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    long = zlib.compress(b"x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK))
    text, profile = chunk(b"zTXt", b"a\0\0" + long), chunk(b"iCCP", b"a\0\0" + long)
    for name, options in {"before": {"chunks": text}, "after": {"after": text}, "profile": {"chunks": profile}}.items():
        (tmp_path / f"{name}.png").write_bytes(png(values, **options))
        assert np.array_equal(np.asarray(read_image(tmp_path / f"{name}.png")), values)


def test_images_over_pillows_limit_are_too_large_and_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((100, 100, 1), np.uint8)))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
        with pytest.raises(DataError, match=r"10,000 pixels, and images of up to 8,000 are read.*shrink it"):
            read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == (100, 100)


def test_large_images_are_worked_on_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Lock

    from gradfeat.data import images

    monkeypatch.setattr(images, "LARGE", 100)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for path in paths:
        path.write_bytes(png(np.zeros((20, 20, 1), np.uint8)))
    inside, together = Lock(), []

    def work(image: Image.Image) -> None:
        together.append(not inside.acquire(blocking=False))
        image.resize((300, 300))
        inside.release()

    images.in_threads(lambda path: images.with_image(path, work), paths)
    assert together == [False] * 8


@pytest.mark.parametrize(
    "exif", [b"garbage", b"MM\0*\0\0\0\x08\xff\xff", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0"]
)
def test_damaged_exif_is_no_damage_of_the_image(tmp_path: Path, exif: bytes) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 0, 0)).save(stream, "JPEG", exif=b"Exif\0\0" + exif)
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    assert read_image(tmp_path / "a.jpg").size == (8, 6)


def test_animated_images_give_their_first_picture(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        assert read_image(tmp_path / name).convert("RGB").getpixel((3, 3)) == (255, 0, 0)


# ---- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda X: X[::-1],
        lambda X: X[..., ::-1],
        lambda X: X[:, :, ::-2],
        lambda X: X.astype(">f4"),
        lambda X: X.astype(">f8"),
        lambda X: np.asfortranarray(X),
        lambda X: np.broadcast_to(X[:1], X.shape),
        lambda X: X.astype(np.float16)[::-1],
    ],
)
def test_arrays_in_any_memory_order_are_the_same_numbers(change: Any) -> None:
    scaling = Preprocessing(size=(4, 4), mean=(0.5,) * 3, std=(0.5,) * 3)
    X = change(np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32))
    batch = Inputs(X, scaling).batch([4, 1])
    assert np.array_equal(batch.numpy(), np.ascontiguousarray(X[[4, 1]]))
    huge = Inputs(np.full((2, 3, 4, 4), 3, ">f4")[::-1], scaling)
    assert len(huge) == 2
    with pytest.warns(GradfeatWarning, match="Floats are taken as they are"):
        Inputs(np.full((2, 3, 4, 4), 255, ">f4")[::-1], scaling)
