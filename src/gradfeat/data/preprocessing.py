"""From an image to the network's input: resize, crop, scale to [0, 1], normalise, as timm and torchvision evaluate."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradfeat.data.images import in_threads
from gradfeat.data.pixels import eight_bit, upright
from gradfeat.errors import ConfigurationError, DataError, did_you_mean, refuse_unknown_fields

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_RESIZES = ("shortest", "squash")
_MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network was trained to see.

    An image is resized to `size` / `crop_pct` (its shorter side, or with "squash" both), its centre of `size` is cut
    out, its values are scaled to [0, 1], and each channel is shifted by `mean` and divided by `std`.

    Args:
        size: Height and width that the network gets, in pixels.
        crop_pct: The part of the resized image's side that is kept, in (0, 1].
        interpolation: "bilinear", "bicubic" or "nearest"; smoothed when an image shrinks, as Pillow does.
        mean: Of each channel, for values in [0, 1].
        std: Of each channel, for values in [0, 1].
        channels: 3 for colour, 1 for grey; a network with others can take arrays only, not image files.
        resize: "shortest" keeps the aspect ratio, "squash" does not.

    Raises:
        ConfigurationError: A value that cannot be meant.

    Example:
        >>> half = Preprocessing(size=(2, 2), mean=(0.5,), std=(0.5,), channels=1)
        >>> half.from_uint8(np.full((1, 2, 2, 1), 255, np.uint8)).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    resize: str = "shortest"

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        wrong = []
        if len(self.size) != 2 or not all(map(_is_count, self.size)):
            wrong.append(f"size must be (height, width) in whole pixels, not {self.size}")
        if not (isinstance(self.crop_pct, numbers.Real) and 0 < self.crop_pct <= 1):
            wrong.append(f"crop_pct must be above 0 and at most 1, not {self.crop_pct!r}")
        if not _is_count(self.channels):
            wrong.append(f"channels must be a whole number from 1, not {self.channels!r}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                wrong.append(
                    f"{name} must have one value for each of {self.channels} channels, not {len(getattr(self, name))}"
                )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std, default=1) <= 0:
            wrong.append(f"mean and std must be finite and std positive, not {self.mean} and {self.std}")
        for name, known in (("interpolation", tuple(_RESAMPLING)), ("resize", _RESIZES)):
            value = getattr(self, name)
            if value not in known:
                wrong.append(
                    f"{name} must be one of {', '.join(known)}, not {value!r}.{did_you_mean(str(value), known)}"
                )
        if wrong:
            raise ConfigurationError("Preprocessing: " + "; ".join(wrong))
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        object.__setattr__(self, "crop_pct", float(self.crop_pct))
        object.__setattr__(self, "channels", int(self.channels))

    def from_pil(self, image: Image.Image) -> Tensor:
        """Return an image as the network's input.

        Args:
            image: In any mode; turned upright as its EXIF orientation says.

        Returns:
            (c, h, w), float32.

        Raises:
            ConfigurationError: The network takes neither 1 nor 3 channels.
            DataError: Its pixels have no known range.
        """
        return self.normalised(self._cropped(self.resized_pil(image)[None]))[0]

    def resized_pil(self, image: Image.Image) -> np.ndarray:
        """Return an image as it is before the crop, (h, w, c), uint8; arguments and errors are those of `from_pil`."""
        if self.channels not in _MODES:
            raise ConfigurationError(
                f"Images have 1 or 3 channels, and the network takes {self.channels}: pass X as arrays "
                f"(n, h, w, {self.channels})"
            )
        picture = eight_bit(upright(image)).convert(_MODES[self.channels])
        height, width = self._resized(picture.height, picture.width)
        if (height, width) != (picture.height, picture.width):
            picture = picture.resize((width, height), _RESAMPLING[self.interpolation])
        return np.asarray(picture).reshape(height, width, self.channels)

    def from_uint8(self, images: np.ndarray) -> Tensor:
        """Return images in memory as the network's input; the same values as `from_pil`.

        Args:
            images: (n, h, w, c), uint8.

        Returns:
            (n, c, h, w), float32.

        Raises:
            DataError: Another shape, type, or number of channels.
        """
        return self.normalised(self._cropped(self.resized_uint8(images)))

    def resized_uint8(self, images: np.ndarray) -> np.ndarray:
        """Return images as they are before the crop, (n, h, w, c); arguments and errors are those of `from_uint8`."""
        images = np.asarray(images)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(f"Expected uint8 images (n, h, w, c); got {images.dtype} of shape {images.shape}")
        self.check_channels(images.shape[3])
        height, width = self._resized(*images.shape[1:3])
        if (height, width) != images.shape[1:3]:
            resample = _RESAMPLING[self.interpolation]
            images = np.stack(in_threads(lambda image: _resize(image, height, width, resample), list(images)))
        return images

    def normalised(self, images: np.ndarray) -> Tensor:
        """Return uint8 images (n, h, w, c) of the network's size as (n, c, h, w), scaled and normalised."""
        values = to_unit(images)
        mean, std = (torch.tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in (self.mean, self.std))
        return values.sub_(mean).div_(std)

    def check_channels(self, channels: int) -> None:
        """Refuse arrays of images with another number of channels than the network takes.

        Raises:
            DataError: Another number; the message says how to change it.
        """
        if channels == self.channels:
            return
        way = {
            (1, 3): "repeat it: np.repeat(X, 3, axis=-1)",
            (4, 3): "lay it over white, or drop the alpha channel: X[..., :3]",
        }.get((channels, self.channels), "choose a network for these images, or convert them")
        raise DataError(f"The network takes images with {self.channels} channel(s), X has {channels}: {way}")

    def describe(self) -> str:
        """Return one line that says what is done to an image.

        Example:
            >>> Preprocessing(size=(8, 8), crop_pct=0.8, mean=(0.5,), std=(1,), channels=1).describe()
            'shorter side to 10 pixels (bilinear), centre of 8 × 8 (crop_pct 0.8 cuts the border off); mean 0.5, std 1'
        """
        height, width = self._target()
        square = height == width
        to = f"{height} pixels" if square else f"cover {height} × {width} pixels"
        side = f"squashed to {height} × {width} pixels" if self.resize == "squash" else f"shorter side to {to}"
        if (height, width) != self.size:
            crop = f"centre of {self.size[0]} × {self.size[1]} (crop_pct {self.crop_pct:.4g} cuts the border off)"
        elif self.resize == "squash":
            crop = "nothing is cut off"
        else:
            whole = "square images" if square else "images of this shape"
            crop = f"centre of {height} × {width} ({whole} are kept whole; resize squash keeps others whole too)"
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{side} ({self.interpolation}), {crop}; mean {mean}, std {std}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain lists, numbers and strings, for JSON."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `to_dict` wrote.

        Args:
            fields: Some of them may be left out where the class has a default.

        Raises:
            ConfigurationError: Unknown or missing fields, or values that cannot be meant.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        refuse_unknown_fields(fields, list(known), "the preprocessing")
        missing = [n for n, field in known.items() if field.default is dataclasses.MISSING and n not in fields]
        if missing:
            raise ConfigurationError(f"The preprocessing lacks {', '.join(missing)}")
        return cls(**fields)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width before the crop."""
        target = self._target()
        if self.resize == "squash":
            return target
        # torchvision cuts the longer side off for square inputs; timm rounds it for others.
        whole = int if target[0] == target[1] else round
        if height * target[1] <= width * target[0]:
            return target[0], whole(target[0] * width / height)
        return whole(target[1] * height / width), target[1]

    def _target(self) -> tuple[int, int]:
        """Return the height and width that the network's size is a part of."""
        # torchvision gives the resized side, from which crop_pct is a rounded quotient; 1e-6 brings the side back.
        height, width = (math.floor(side / self.crop_pct + 1e-6) for side in self.size)
        return height, width

    def _cropped(self, images: np.ndarray) -> np.ndarray:
        """Return the centre of images (n, h, w, c)."""
        top, left = (round((images.shape[1 + i] - self.size[i]) / 2) for i in (0, 1))
        return images[:, top : top + self.size[0], left : left + self.size[1]]


def to_unit(images: np.ndarray) -> Tensor:
    """Return uint8 images (n, h, w, c) as float32 (n, c, h, w) in [0, 1]."""
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), np.float32, order="C")).div_(255)


def _resize(image: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """Resize one image (h, w, c)."""
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), resample))
    # Channel by channel: Pillow would take a fourth one for transparency, and weight the colours by it.
    parts = [Image.fromarray(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])]
    return np.stack([np.asarray(part.resize((width, height), resample)) for part in parts], axis=-1)


def _is_count(value: Any) -> bool:
    """Whether `value` is a whole number from 1."""
    return isinstance(value, numbers.Real) and float(value) >= 1 and float(value).is_integer()


def _numbers(name: str, value: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"Preprocessing: {name} must be a list of numbers, not {value!r}") from error
