"""Pre-training by predicting where a patch lies beside another (Doersch, Gupta & Efros, ICCV 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError
from gradfeat.pretrain.encoder import output_shape
from gradfeat.pretrain.loop import Task

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Steps down and to the right, from the first patch to the second."""

# In the paper's pixels: patches of 96, a gap of half a patch between them, and up to 7 pixels of jitter.
_PATCH, _GAP, _JITTER = 96, 48, 7
_LEAST = 4


class Context(Task):
    """Where does one patch of an image lie, seen from another: above, to the left ...; one of eight directions.

    Both patches go through the encoder alone; a small classifier reads both f(patch). Between them is a gap, and the
    second is moved at random by some pixels, so that lines that run on from patch to patch do not give the answer away.

    Args:
        encoder: The network to pre-train; it sees patches, which have three eighths of the image's side.
        image_shape: Channels, height and width.
        drop_colours: Keep one of the three colours of each patch, drawn at random, and put noise in place of the
            others: lenses bend colours differently towards the border of a photograph, which tells where a patch was.
        width: Hidden units of the classifier.

    Raises:
        ConfigurationError: The patches are too small, or the colours to drop are not three.
    """

    def __init__(
        self,
        encoder: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        drop_colours: bool = False,
        width: int = 256,
    ) -> None:
        super().__init__(encoder)
        channels, height, width_px = image_shape
        side = min(height, width_px)
        # what two patches, the gap and the jitter take is the image's side
        self.patch = int(side * _PATCH / (2 * _PATCH + _GAP + _JITTER))
        self.gap = round(self.patch * _GAP / _PATCH)
        self.jitter = max(0, min(max(1, round(self.patch * _JITTER / _PATCH)), side - 2 * self.patch - self.gap))
        if self.patch < _LEAST:
            raise ConfigurationError(
                f"Patches of {self.patch} pixels are too small: the task 'context' needs images of 11 × 11 or more."
            )
        if drop_colours and channels != 3:
            raise ConfigurationError(f"drop_colours needs colour images; these have {channels} channels.")
        self.drop_colours = drop_colours
        (d,) = output_shape(encoder, (channels, self.patch, self.patch))
        self.classifier = nn.Sequential(nn.Linear(2 * d, width), nn.ReLU(), nn.Linear(width, len(DIRECTIONS)))
        self.directions: Tensor
        self.register_buffer("directions", torch.tensor(DIRECTIONS))

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return two patches of each image x, (n, c, h, w), and the direction from the first to the second.

        Returns:
            (n, c, p, p) twice, and (n,), int64.
        """
        drawn = torch.randint(len(DIRECTIONS), (len(x),)).to(x.device)
        jitter = torch.randint(-self.jitter, self.jitter + 1, (len(x), 2)).to(x.device)
        step = self.directions[drawn] * (self.patch + self.gap) + jitter  # (n, 2), down and right
        room = torch.tensor(x.shape[2:], device=x.device) - self.patch - step.abs()  # both patches are in the image
        free = (torch.rand(len(x), 2).to(x.device) * (room + 1)).long().minimum(room)
        first = free - step.clamp_max(0)
        return self._cut(x, first), self._cut(x, first + step), drawn

    def _cut(self, x: Tensor, corner: Tensor) -> Tensor:
        """Return the patch of each image whose upper left corner is given, (n, 2)."""
        place = torch.arange(self.patch, device=x.device)
        rows, columns = (corner[:, axis, None] + place for axis in (0, 1))  # (n, p)
        image = torch.arange(len(x), device=x.device)[:, None, None]
        return x.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)

    def one_colour(self, patches: Tensor) -> Tensor:
        """Return patches, (n, 3, p, p), with one colour each, drawn at random.

        Noise with a hundredth of its standard deviation replaces the other two.
        """
        drawn = torch.randint(3, (len(patches),)).to(patches.device)
        colour = patches[torch.arange(len(patches), device=patches.device), drawn]  # (n, p, p)
        noise = torch.randn(patches.shape).to(patches) * colour.std(dim=(1, 2))[:, None, None, None] / 100
        keep = F.one_hot(drawn, 3).bool()[:, :, None, None]
        return torch.where(keep, patches, noise)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of images x, (n, c, h, w), each with one pair of patches drawn at random."""
        first, second, direction = self.pairs(x)
        patches = torch.cat([first, second])
        if self.drop_colours:
            patches = self.one_colour(patches)
        features = torch.cat(self.encoder(patches).chunk(2), dim=1)  # (n, 2 d)
        return F.cross_entropy(self.classifier(features), direction)
