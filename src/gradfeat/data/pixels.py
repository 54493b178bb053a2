"""From whatever a pixel is in a file to 8 bits of grey or colour: upright, on white, scaled by what it holds."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from gradfeat.errors import DataError

BITS = "gradfeat_bits"
"""Key of `Image.info`: the bits that the pixels of a deep image are known or were found to have."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits of the pixels of cameras, scanners and microscopes, whose files hold 16."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where Pillow finds an orientation
_LAYERED = ("LA", "La", "PA", "RGBA", "RGBa")


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says; itself, and no copy, where it is upright."""
    image.load()  # which turns a TIFF by itself
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data say nothing of the pixels, and fail in more ways than OSError
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in _ORIENTED:
        turned.info.pop(key, None)
    return turned


def eight_bit(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel and nothing transparent.

    Pillow's own conversions cut values above 255 off, and let the colour that a transparent pixel happens to have show.
    Here integers of 16 and 32 bits are scaled by the least of `DEPTHS` that holds the image's largest value (above 16
    bits by that value's own number of bits), which ``info[BITS]`` tells; what is transparent is laid over white.

    Raises:
        DataError: Its values have no known range: floating point, or below zero.
    """
    if image.mode == "F":
        raise DataError("its pixels are floating point numbers, whose range is not known; store 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;"):
        return _scaled(image)
    if image.mode in _LAYERED or "transparency" in image.info:
        return _over_white(image)
    return image


def depth_of(largest: int) -> int:
    """Return how many bits pixels have whose largest value is known.

    Example:
        >>> [depth_of(value) for value in (0, 255, 256, 4095, 65535, 65536)]
        [8, 8, 10, 12, 16, 17]
    """
    return next((bits for bits in DEPTHS if largest < 2**bits), largest.bit_length())


def to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Return whole numbers from 0 to 2**bits - 1 as uint8 from 0 to 255, rounded."""
    full = 2**bits - 1
    return ((values.astype(np.int64) * 510 + full) // (2 * full)).astype(np.uint8)


def _scaled(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise DataError(
            f"its pixels are whole numbers from {low} to {high}, and which of them are black and white is not known; "
            "store 8 or 16 bits from 0"
        )
    bits = image.info.get(BITS) or depth_of(high)
    scaled = to_eight_bits(values, bits)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        scaled[values == clear] = 255
    found = Image.fromarray(scaled)
    if bits != 16:
        found.info[BITS] = bits
    return found


def _over_white(image: Image.Image) -> Image.Image:
    layered = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if layered.getchannel("A").getextrema() in ((255, 255), (0, 0)):  # opaque; or wholly clear, which nobody would draw
        layered.putalpha(255)
        return layered.convert("RGB")
    white = Image.new("RGBA", layered.size, "white")
    white.alpha_composite(layered)
    return white.convert("RGB")
