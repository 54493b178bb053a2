from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.pretrain import ConvEncoder, pretrain_encoder
from gradfeat.pretrain.colorization import (
    GRID,
    TEMPERATURE,
    Colorization,
    annealed_mean,
    colour_bins,
    rebalancing,
    soft_encoding,
)
from gradfeat.pretrain.encoder import activation_map
from gradfeat.pretrain.lab import lab_to_rgb, rgb_to_lab
from gradfeat.pretrain.loop import Recipe, seeded, train


def lab(*rgb: float) -> list[float]:
    return rgb_to_lab(torch.tensor(rgb, dtype=torch.float64).view(3, 1, 1)).flatten().tolist()


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
        ((1, 1, 0), (97.14, -21.55, 94.48)),
    ],
)
def test_known_colours(rgb: tuple[float, ...], expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(lab(*rgb), expected, atol=0.011)


def test_there_and_back() -> None:
    rgb = torch.rand(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rgb[0, :, 0] *= 0.01  # the linear parts of both curves
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-9)
    grey = torch.rand(5, 1, 1, 1, dtype=torch.float64).expand(-1, 3, 1, 1)
    assert rgb_to_lab(grey)[:, 1:].abs().max() < 1e-12


def test_bins_are_those_that_srgb_reaches() -> None:
    bins = colour_bins()
    known = {tuple(row) for row in bins.tolist()}
    assert len(known) == len(bins)
    assert all(value % GRID == 0 for row in known for value in row)
    # the other way round: each bin holds a colour (a, b) that some lightness makes one of sRGB, and no other bin does
    steps = torch.arange(-113.75, 115, 2.5)  # none on the border of two bins
    a, b, lightness = torch.meshgrid(steps, steps, torch.arange(0, 100.5, 1.0), indexing="ij")
    rgb = lab_to_rgb(torch.stack([lightness, a, b]).flatten(1)[:, :, None])
    inside = ((rgb >= 0) & (rgb <= 1)).all(0).view(a.shape).any(2)
    found = (torch.stack([a[..., 0], b[..., 0]])[:, inside] / GRID).round() * GRID
    reached = {tuple(row) for row in found.T.tolist()}
    assert reached <= known
    assert len(known - reached) <= 15  # of a few bins sRGB has but a corner, which falls between these steps


def test_soft_encoding_shares_a_colour_out_to_its_neighbours() -> None:
    bins = colour_bins()
    ab = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, 3, 1)
    nearest, share = soft_encoding(ab, bins)
    assert nearest.shape == share.shape == (2, 5, 3, 1)
    centres = [[0.0, 0.0], [10.0, 0.0], [0.0, -10.0], [0.0, 10.0], [10.0, -10.0]]
    assert bins[nearest[1, :, 2, 0]].tolist()[:2] == centres[:2]
    assert sorted(bins[nearest[1, :, 2, 0]].tolist()) == sorted(centres)
    weight = [math.exp(-((c[0] - 3) ** 2 + (c[1] + 1) ** 2) / 50) for c in bins[nearest[0, :, 0, 0]].tolist()]
    np.testing.assert_allclose(share[0, :, 0, 0], np.array(weight) / sum(weight), rtol=1e-5)


def test_rare_colours_weigh_more() -> None:
    bins = colour_bins().double()
    counts = torch.ones(len(bins), dtype=torch.float64)
    grey = int((bins == 0).all(1).nonzero()[0])
    counts[grey] = 1e4
    torch.testing.assert_close(rebalancing(counts, bins, 1.0), torch.ones(len(bins)).double())
    weight = rebalancing(counts, bins, 0.5)
    assert weight.argmin() == grey
    # far from grey a bin's share is its own: the ratio is that of the formula
    share = counts / counts.sum()
    far = int((bins == torch.tensor([40.0, 0.0])).all(1).nonzero()[0])
    kernel = np.array([math.exp(-((10 * i) ** 2 + (10 * j) ** 2) / 50) for i in range(-9, 10) for j in range(-9, 10)])
    own = lambda p: 0.5 * p + 0.5 / len(bins)  # noqa: E731
    smooth = float(share[grey]) / kernel.sum()
    assert float(weight[far] / weight[grey]) == pytest.approx(own(smooth) / own(float(share[far])), rel=0.05)
    # smoothing loses nothing: the mean weight over pixels is one
    spread = torch.exp(-torch.cdist(bins, bins).square() / 50)
    smoothed = spread @ (share / spread.sum(0))
    assert float(smoothed.sum()) == pytest.approx(1)
    assert float(smoothed @ weight) == pytest.approx(1)


def test_annealed_mean_lies_between_mean_and_mode() -> None:
    bins = torch.tensor([[10.0, 0.0], [-10.0, 20.0]])
    p = torch.tensor([0.8, 0.2])
    found = annealed_mean(p.log().view(1, 2, 1, 1), bins).flatten()
    sharp = p ** (1 / TEMPERATURE)
    torch.testing.assert_close(found, (sharp / sharp.sum()) @ bins)


def test_the_loss_is_a_weighted_cross_entropy_of_soft_targets() -> None:
    torch.manual_seed(0)
    task = Colorization(ConvEncoder(3, channels=(4, 5), strides=(2, 1)), (3, 12, 8), width=3).double().eval()
    x = torch.rand(4, 3, 12, 8, dtype=torch.float64) * 2 - 1
    task.look_at((x + 1) / 2)
    colours = rgb_to_lab((x + 1) / 2)
    ab = F.avg_pool2d(colours[:, 1:], 4)
    target = torch.zeros(4, len(task.bins), 3, 2, dtype=torch.float64)
    target.scatter_(1, *soft_encoding(ab, task.bins))
    logits = task.predict(colours[:, :1] / 50 - 1)
    assert logits.shape == target.shape
    weight = task.weight[torch.cdist(ab.movedim(1, -1).flatten(0, 2), task.bins).argmin(1)].view(4, 3, 2)
    torch.testing.assert_close(task(x), (weight * F.cross_entropy(logits, target, reduction="none")).mean())


def test_the_encoder_sees_grey_alone() -> None:
    seen = []

    class Spy(ConvEncoder):
        def forward_map(self, x):
            seen.append(x)
            return super().forward_map(x)

    task = Colorization(Spy(3), (3, 8, 8))
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    task(x)
    lightness = rgb_to_lab((x + 1) / 2)[:, 0] / 50 - 1
    assert seen[-1].shape == x.shape
    assert all(torch.allclose(seen[-1][:, i], lightness) for i in range(3))


def stripes(n: int, seed: int) -> np.ndarray:
    """Rows of stripes are reddish and columns bluish, at the same lightness: colour is in the texture."""
    rng = np.random.default_rng(seed)
    images = np.empty((n, 8, 8, 3), np.uint8)
    for i in range(n):
        lightness = np.where(np.arange(8) % 2, 70.0, 30.0)[:, None].repeat(8, 1) + rng.normal(0, 3, (8, 8))
        across = i % 2
        colour = np.array([40.0, 25.0] if across else [15.0, -45.0])
        value = torch.tensor(
            np.stack([lightness if across else lightness.T, *np.broadcast_to(colour[:, None, None], (2, 8, 8))])
        )
        images[i] = (lab_to_rgb(value).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return images


def test_colours_that_are_in_the_texture_are_learned() -> None:
    x, fresh = (torch.from_numpy(stripes(n, seed).transpose(0, 3, 1, 2).copy()) for n, seed in ((64, 0), (20, 1)))
    with seeded(0):
        task = Colorization(ConvEncoder(3, channels=(8, 16), strides=(1, 2)), (3, 8, 8), width=16)
        task.look_at(x)
        history = train(task, x, recipe=Recipe(12, 16, 1e-2))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    with torch.no_grad():
        original, grey, painted = task.pictures(fresh.float() / 127.5 - 1)
    assert (grey.std(1) < 1e-4).all()
    true, guess = (rgb_to_lab((rows + 1) / 2)[:, 2].mean((1, 2)) for rows in (original, painted))
    assert (true.sign() == guess.sign()).double().mean() > 0.9  # yellow or blue; always the same is 0.5


def test_maps_of_other_networks() -> None:
    from gradfeat.backbones import resolve
    from gradfeat.optional import require

    require("timm", extra="vision")
    x = torch.rand(2, 3, 32, 32)
    for name, places in (("timm/test_resnet", (1, 1)), ("timm/test_vit?img_size=32", None)):
        network = resolve(name, weights="random", random_state=0).network.eval()
        found = activation_map(network, x)
        torch.testing.assert_close(found.mean((2, 3)), network(x))
        assert found.shape[2:] == (places or (1, 1))
        task = Colorization(network, (3, 32, 32), width=4)
        assert task.predict(x[:, :1]).shape == (2, len(task.bins), 8, 8)
    wide = resolve("timm/test_resnet", weights="random").network.eval()
    assert activation_map(wide, torch.rand(1, 3, 96, 64)).shape[2:] == (3, 2)
    assert activation_map(nn.Flatten(), x).shape == (2, 3072, 1, 1)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (np.zeros((4, 16, 16, 1), np.uint8), {}, ConfigurationError, "these have 1 channels"),
        (np.zeros((4, 7, 16, 3), np.uint8), {}, ConfigurationError, "8 × 8 or more; got 7 × 16"),
        (np.full((4, 8, 8, 3), 90, np.uint8), {}, DataError, "all of these are grey"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"rebalance": 0.0}, ConfigurationError, "rebalance"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"rebalence": 0.5}, ConfigurationError, "Did you mean rebalance"),
    ],
)
def test_bad_input(images: np.ndarray, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        pretrain_encoder(images, task="colorization", options=options)
