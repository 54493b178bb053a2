"""Pre-training by solving jigsaw puzzles (Noroozi & Favaro, ECCV 2016)."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError
from gradfeat.pretrain.encoder import output_shape
from gradfeat.pretrain.loop import Task

SIDE = 3
TILES = SIDE * SIDE


def permutation_set(count: int, length: int = TILES) -> np.ndarray:
    """Return permutations that are far from each other, chosen greedily (Algorithm 1 of the paper).

    Each next one has the largest Hamming distance to the nearest of those already chosen, and among these the largest
    sum of distances; the first in lexical order where several are equal. The paper starts from a random permutation;
    here it is the identity, so that the set is always the same.

    Args:
        count: How many.
        length: Of each permutation.

    Returns:
        (count, length), int64.

    Raises:
        ConfigurationError: Fewer than two, or more than there are.

    Example:
        >>> permutation_set(3, 3).tolist()
        [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    everything = np.array(list(itertools.permutations(range(length))), dtype=np.int8)
    if not 2 <= count <= len(everything):
        raise ConfigurationError(f"Expected between 2 and {len(everything)} permutations; got {count}.")
    chosen = [0]
    nearest = np.full(len(everything), length)
    total = np.zeros(len(everything), dtype=np.int64)
    while len(chosen) < count:
        distance = (everything != everything[chosen[-1]]).sum(1)
        nearest = np.minimum(nearest, distance)
        total += distance
        # A chosen permutation has distance 0 to itself, so it is never the farthest.
        chosen.append(int(np.argmax(nearest * (total.max() + 1) + total)))
    return everything[chosen].astype(np.int64)


def normalized(tiles: Tensor) -> Tensor:
    """Return every channel of every tile, (..., h, w), with mean zero and deviation one; a flat one is zero.

    Example:
        >>> normalized(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]])).round(decimals=2).tolist()
        [[[-1.0, 1.0], [-1.0, 1.0]]]
    """
    return F.layer_norm(tiles, tiles.shape[-2:])


class Jigsaw(Task):
    """In which of a set of orders were the nine tiles of an image laid out?

    Every tile goes through the encoder alone; a small classifier reads the nine f(tile) side by side. Two things would
    give the order away without a look at what is in the picture. Lines and edges run over a border: so every tile of
    every image is cut out of its cell at a random place of its own. Neighbours are of like brightness and contrast: so
    every tile is normalized.

    Args:
        encoder: The network to pre-train; it sees tiles, which have less than a third of the image's side.
        image_shape: Channels, height and width.
        permutations: How many orders there are to tell apart.
        width: Hidden units of the classifier.

    Raises:
        ConfigurationError: The tiles are too small.
    """

    def __init__(
        self, encoder: nn.Module, image_shape: tuple[int, int, int], *, permutations: int = 100, width: int = 256
    ) -> None:
        super().__init__(encoder)
        channels, height, width_px = image_shape
        self.cell = (height // SIDE, width_px // SIDE)
        # The paper's 64 of 75 pixels.
        self.tile = (round(self.cell[0] * 64 / 75), round(self.cell[1] * 64 / 75))
        if min(self.tile) < 4:
            raise ConfigurationError(
                f"Tiles of {self.tile} pixels are too small: jigsaws need images of 14 × 14 or more."
            )
        self.orders: Tensor
        self.register_buffer("orders", torch.from_numpy(permutation_set(permutations)))
        (d,) = output_shape(encoder, (channels, *self.tile))
        self.classifier = nn.Sequential(nn.Linear(TILES * d, width), nn.ReLU(), nn.Linear(width, permutations))

    def tiles(self, x: Tensor) -> Tensor:
        """Return the tiles of images x, (n, c, h, w), row by row: (n, 9, c, h', w')."""
        cell = torch.arange(TILES)
        top, left = self._places(len(x), cell // SIDE, axis=0), self._places(len(x), cell % SIDE, axis=1)
        windows = x.unfold(2, self.tile[0], 1).unfold(3, self.tile[1], 1)  # at every place; a view
        image = torch.arange(len(x), device=x.device).unsqueeze(1)
        return windows[image, :, top.to(x.device), left.to(x.device)]

    def _places(self, n: int, cell: Tensor, axis: int) -> Tensor:
        """Return the first row (axis 0) or column (axis 1) of the tiles of n images, (n, 9): at random in its cell."""
        return cell * self.cell[axis] + torch.randint(self.cell[axis] - self.tile[axis] + 1, (n, TILES))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of images x, (n, c, h, w), each in an order drawn at random."""
        drawn = torch.randint(len(self.orders), (len(x),)).to(x.device)
        tiles = normalized(self.tiles(x))
        shuffled = tiles[torch.arange(len(x), device=x.device).unsqueeze(1), self.orders[drawn]]
        features = self.encoder(shuffled.flatten(0, 1)).view(len(x), -1)  # (n, 9 d)
        return F.cross_entropy(self.classifier(features), drawn)
