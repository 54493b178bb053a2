"""Random crops of test images: Table 4 of the paper averages ten for each image."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gradfeat.data.inputs import Inputs
from gradfeat.errors import ConfigurationError

_LOOKED_AT = 8  # images that show whether there is room for crops


class Crops:
    """Random crops of images: sample ``i * count + j`` is crop j of image i, and is the same in every pass.

    A crop has the network's input size, at a random place of the image resized as for the centre crop, and is mirrored
    with probability ½. The crops of an image follow each other, so that a batch decodes it once.

    Args:
        inputs: Image paths, or uint8 images with a preprocessing.
        count: Crops of each image, from 1.
        random_state: Seed of places and mirrors.

    Raises:
        ConfigurationError: Another count, samples that are no images, or a preprocessing that keeps the whole image,
            which leaves no place to choose.
    """

    random = False

    def __init__(self, inputs: Inputs, count: int, random_state: int = 0) -> None:
        check_crops(count)
        preprocessing = inputs.preprocessing
        if preprocessing is None:
            raise ConfigurationError(
                "random crops are for images: paths, or a uint8 array (n, h, w, c) with a preprocessing that says the "
                "network's size. Leave out crops for other data"
            )
        first = inputs.pictures(range(min(_LOOKED_AT, len(inputs))))
        if all(picture.shape[:2] == preprocessing.size for picture in first):
            raise ConfigurationError(
                f"random crops need images larger than the network's {preprocessing.size} after resizing, and the "
                f"first {len(first)} are not: preprocessing=dict(crop_pct=0.875) at the fit (on the command "
                "line: --crop-pct 0.875) resizes them to more"
            )
        self._inputs, self._count, self._preprocessing = inputs, int(count), preprocessing
        self._draws = np.random.default_rng(random_state).random((len(inputs), self._count, 3))

    def __len__(self) -> int:
        return self._count * len(self._inputs)

    def batch(self, indices: Sequence[int] | range) -> Tensor:
        """Return samples, as `Inputs.batch` does."""
        chosen = np.asarray(indices, dtype=np.int64)
        images, which = np.unique(chosen // self._count, return_inverse=True)
        pictures = self._inputs.pictures(images.tolist())
        draws = self._draws[chosen // self._count, chosen % self._count]
        return self._preprocessing.normalised(
            np.stack([self._cut(pictures[i], *draw) for i, draw in zip(which, draws.tolist(), strict=True)])
        )

    def _cut(self, picture: np.ndarray, down: float, right: float, side: float) -> np.ndarray:
        """Return the crop of (h, w, c) that three numbers in [0, 1) choose."""
        height, width = self._preprocessing.size
        top = int(down * (picture.shape[0] - height + 1))
        left = int(right * (picture.shape[1] - width + 1))
        crop = picture[top : top + height, left : left + width]
        return crop[:, ::-1] if side < 0.5 else crop


def check_crops(count: int) -> None:
    """Refuse a number of crops that cannot be meant.

    Raises:
        ConfigurationError: No whole number from 1.
    """
    if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 1:
        raise ConfigurationError(
            f"crops must be a whole number from 1 (1 is the centre crop, the paper's Table 4 has 10), not {count!r}"
        )


def views_of(inputs: Inputs, crops: int, random_state: int | None = None) -> Inputs | Crops:
    """Return what a model sees of test samples: the samples as they are for 1, else random crops, in order.

    Args:
        inputs: The samples.
        crops: Views of each.
        random_state: Seed; None is 0, so that a test is the same each time.

    Raises:
        ConfigurationError: As for `Crops`.
    """
    check_crops(crops)
    return inputs if crops == 1 else Crops(inputs, crops, random_state or 0)
