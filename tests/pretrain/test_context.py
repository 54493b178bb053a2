from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError
from gradfeat.pretrain import ConvEncoder, pretrain_encoder
from gradfeat.pretrain.context import DIRECTIONS, Context
from gradfeat.pretrain.loop import Recipe, seeded, train


def places(n: int, height: int, width: int) -> torch.Tensor:
    """Images whose two channels are the row and the column of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([rows, columns]).expand(n, -1, -1, -1)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 64), (11, 11), (12, 30)])
def test_pairs_lie_in_the_direction_that_is_told(height: int, width: int) -> None:
    task = Context(ConvEncoder(2, channels=(2,), strides=(1,)), (2, height, width))
    torch.manual_seed(0)
    first, second, drawn = task.pairs(places(4000, height, width))
    side = task.patch
    assert first.shape == second.shape == (4000, 2, side, side)
    for patch in (first, second):  # a patch is a square of neighbouring pixels, inside the image
        corner = patch[:, :, 0, 0]
        assert torch.equal(patch - corner[:, :, None, None], places(4000, side, side))
        assert (corner >= 0).all()
        assert (corner + side <= torch.tensor([height, width])).all()
    step = second[:, :, 0, 0] - first[:, :, 0, 0]
    aim = torch.tensor(DIRECTIONS)[drawn] * (side + task.gap)
    assert (step - aim).abs().max() == task.jitter
    # all directions, and each corner of the image is used
    counts = torch.bincount(drawn, minlength=8)
    assert (counts > 4000 / 8 - 5 * math.sqrt(4000 / 8)).all()
    assert len(set(DIRECTIONS)) == 8
    assert (0, 0) not in DIRECTIONS
    corners = torch.cat([first, second])[:, :, 0, 0]
    assert corners.amin(0).tolist() == [0, 0]
    assert corners.amax(0).tolist() == [height - side, width - side]


def test_the_sizes_are_those_of_the_paper() -> None:
    task = Context(ConvEncoder(3), (3, 247, 300))
    assert (task.patch, task.gap, task.jitter) == (96, 48, 7)
    small = Context(ConvEncoder(3), (3, 32, 32))
    assert (small.patch, small.gap, small.jitter) == (12, 6, 1)


def test_the_classifier_reads_the_first_patch_and_then_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Corner(nn.Module):
        def forward(self, x):
            return x[:, :, 0, 0]

    task = Context(Corner(), (2, 32, 32))
    monkeypatch.setattr(F, "cross_entropy", lambda logits, y: (seen[0], y))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(task.classifier, "forward", seen.append)
    features, direction = task(places(50, 32, 32))
    step = features[:, 2:] - features[:, :2]
    aim = torch.tensor(DIRECTIONS)[direction] * 18
    assert (step - aim).abs().max() <= 1


def test_one_colour_of_each_patch_is_kept() -> None:
    task = Context(ConvEncoder(3), (3, 16, 16), drop_colours=True)
    torch.manual_seed(0)
    patches = torch.rand(300, 3, 6, 6) + 5
    dropped = task.one_colour(patches)
    same = (dropped == patches).all(3).all(2)  # (n, 3)
    assert (same.sum(1) == 1).all()
    assert (same.sum(0) > 60).all()
    noise = torch.cat([row[~keep].flatten() for row, keep in zip(dropped, same, strict=True)])
    assert abs(float(noise.mean())) < 1e-3
    assert float(noise.std()) == pytest.approx(12**-0.5 / 100, rel=0.05)


@pytest.mark.parametrize("drop_colours", [False, True])
def test_directions_are_learned_where_brightness_tells_the_place(drop_colours: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.linspace(0, 1, 16)[:, None], torch.linspace(0, 1, 16)[None]
    # Brighter towards the right; stripes that are stronger further down, which every colour shows.
    pattern = 0.5 * columns + 0.4 * rows * (torch.arange(16) % 2)[None]
    x = (pattern.expand(96, 3, 16, 16) + 0.02 * torch.rand(96, 3, 16, 16, generator=generator)).clamp(0, 1)
    with seeded(0):
        task = Context(
            ConvEncoder(3, channels=(8, 16), strides=(1, 1)), (3, 16, 16), drop_colours=drop_colours, width=64
        )
        history = train(task, x, recipe=Recipe(25, 32, 1e-2))
    assert history[-1]["loss"] < 0.7 * math.log(8)  # log 8 is chance
    assert history[0]["loss"] > 0.9 * math.log(8)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((4, 10, 10, 3), np.uint8), {}, "Patches of 3 pixels are too small.*11 × 11"),
        (np.zeros((4, 8, 40, 3), np.uint8), {}, "too small"),
        (np.zeros((4, 16, 16, 1), np.uint8), {"drop_colours": True}, "these have 1 channels"),
        (np.zeros((4, 16, 16, 1), np.uint8), {"drop_colors": True}, "Did you mean drop_colours"),
    ],
)
def test_bad_input(images: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pretrain_encoder(images, task="context", options=options)
