"""Pre-training by giving grey images their colours (Zhang, Isola & Efros, ECCV 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.pretrain.encoder import activation_map, output_shape
from gradfeat.pretrain.lab import lab_to_rgb, rgb_to_lab
from gradfeat.pretrain.loop import Task, scaled

GRID = 10
"""Side of a bin of colours, in a and in b."""

NEIGHBOURS, SIGMA = 5, 5.0
"""Bins that a colour is shared out to, and the width of the Gaussian that it is shared out by."""

TEMPERATURE = 0.38
"""Of the annealed mean: between the mean of all colours (1), which is grey, and the likeliest (0), which is patchy."""

_STRIDE = 4  # the paper predicts colours at a quarter of the image's side
_FACE = 129  # steps along an edge of the cube of colours; more reach no further bin


def colour_bins() -> Tensor:
    """Return the centres (a, b) of all 10 × 10 bins that a colour of sRGB falls in, (Q, 2).

    Every (a, b) of the cube of colours is also one of its surface, so that the six faces suffice. They reach 261 bins;
    the paper counts 313 with its own rule for which are in gamut.

    Example:
        >>> colour_bins().shape
        torch.Size([261, 2])
    """
    u, v = torch.meshgrid(*[torch.linspace(0, 1, _FACE, dtype=torch.float64)] * 2, indexing="ij")
    faces = [
        torch.stack([u, v, torch.full_like(u, end)])[order]
        for end in (0.0, 1.0)
        for order in ([0, 1, 2], [0, 2, 1], [2, 0, 1])
    ]
    ab = rgb_to_lab(torch.stack(faces))[:, 1:].movedim(1, -1).reshape(-1, 2)
    return (torch.unique((ab / GRID).round().long(), dim=0) * GRID).float()


def soft_encoding(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Return how a colour is shared out to its nearest bins.

    Args:
        ab: Colours, (n, 2, h, w).
        bins: Centres, (Q, 2).

    Returns:
        The bins, (n, 5, h, w), int64, nearest first; and their shares, which sum to one.

    Example:
        >>> nearest, share = soft_encoding(torch.zeros(1, 2, 1, 1), colour_bins())
        >>> colour_bins()[nearest[0, 0, 0, 0]].tolist(), (share[0, 1] / share[0, 0]).log().round(decimals=4).item()
        ([0.0, 0.0], -2.0)
    """
    points = ab.movedim(1, -1)
    distance, nearest = torch.cdist(points.flatten(0, 2), bins).topk(NEIGHBOURS, largest=False)
    share = (-distance.square() / (2 * SIGMA**2)).softmax(1)
    nearest, share = (value.view(*points.shape[:3], NEIGHBOURS).movedim(-1, 1) for value in (nearest, share))
    return nearest, share


def rebalancing(counts: Tensor, bins: Tensor, mix: float) -> Tensor:
    """Return the weight of each bin in the loss, (Q,): the rarer its colour, the heavier.

    ``w ∝ 1 / ((1 - λ) p̃ + λ / Q)`` with ``Σ p̃ w = 1``, p̃ being the share of each bin among all pixels, smoothed over
    neighbouring bins by the Gaussian of the soft encoding (Eq. 4).

    Args:
        counts: Pixels in each bin, (Q,).
        bins: Centres, (Q, 2).
        mix: λ; 1 weighs all bins alike.
    """
    kernel = (-torch.cdist(bins, bins).square() / (2 * SIGMA**2)).exp()
    p = kernel @ (counts / counts.sum() / kernel.sum(0))  # each bin's share goes to its neighbours and is kept
    weight = 1 / ((1 - mix) * p + mix / len(p))
    return weight / (p @ weight)


def annealed_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Return one colour (a, b) for each distribution: the mean under ``softmax(logits / T)`` (Eq. 5), (n, 2, h, w).

    Args:
        logits: (n, Q, h, w).
        bins: Centres, (Q, 2).
    """
    return torch.einsum("nqhw,qc->nchw", (logits / TEMPERATURE).softmax(1), bins)


class Colorization(Task):
    """Which colours had an image that is shown in grey? A distribution over bins of colours for each place.

    The encoder keeps its three input channels: it gets the lightness L three times, scaled to [-1, 1] as images are. So
    it can be used on colour images with its own preprocessing later.

    Colours are predicted at a quarter of the image's side, from the encoder's last activations before they are
    averaged where the encoder shows them (`encoder.activation_map`), else from f(x). The decoder is as small as it can
    be, so that the encoder does the work: each place of the map paints its own patch, and a 3 × 3 convolution joins
    them.

    Args:
        encoder: The network to pre-train.
        image_shape: Channels (three), height and width.
        rebalance: λ of the weights of rare colours; 1 weighs all bins alike.
        width: Channels of the decoder.

    Raises:
        ConfigurationError: Images without three channels or below 8 × 8, or another λ than from above 0 to 1.
    """

    def __init__(
        self, encoder: nn.Module, image_shape: tuple[int, int, int], *, rebalance: float = 0.5, width: int = 64
    ) -> None:
        super().__init__(encoder)
        channels, height, width_px = image_shape
        if channels != 3:
            raise ConfigurationError(f"The task 'colorization' needs colour images; these have {channels} channels.")
        if min(height, width_px) < 2 * _STRIDE:
            raise ConfigurationError(
                f"The task 'colorization' needs images of 8 × 8 or more; got {height} × {width_px}."
            )
        if not 0 < rebalance <= 1:
            raise ConfigurationError(f"rebalance must be above 0 and up to 1, not {rebalance}.")
        self.rebalance = rebalance
        self.places = (-(-height // _STRIDE), -(-width_px // _STRIDE))
        self.bins: Tensor
        self.weight: Tensor
        self.register_buffer("bins", colour_bins())
        self.register_buffer("weight", torch.ones(len(self.bins)))
        d, *size = output_shape(encoder, image_shape, spatial=True)
        down, right = (max(1, -(-place // side)) for place, side in zip(self.places, size, strict=True))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(d, width, (down, right), (down, right), bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.01),
            nn.Conv2d(width, len(self.bins), 3, padding=1),
        )

    def look_at(self, x: Tensor) -> None:
        """Count the colours of the training images, for their weights.

        Raises:
            DataError: All images are grey.
        """
        counts = torch.zeros(len(self.bins), dtype=torch.float64)
        largest = 0.0
        for part in x.split(256):
            ab = self._split(scaled(part))[1]
            largest = max(largest, float(ab.abs().max()))
            nearest = torch.cdist(ab.movedim(1, -1).reshape(-1, 2), self.bins.to(ab)).argmin(1)
            counts += torch.bincount(nearest.cpu(), minlength=len(counts))
        if largest < 1:
            raise DataError("The task 'colorization' needs colour images; all of these are grey.")
        self.weight.copy_(rebalancing(counts, self.bins.double().cpu(), self.rebalance))

    def predict(self, grey: Tensor) -> Tensor:
        """Return logits over bins, (n, Q, h / 4, w / 4), for lightness (n, 1, h, w) in [-1, 1]."""
        logits = self.decoder(activation_map(self.encoder, grey.expand(-1, 3, -1, -1)))
        if logits.shape[2:] == self.places:
            return logits
        return F.interpolate(logits, size=self.places, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy, weighted by bin, of images x, (n, 3, h, w), in [-1, 1] (Eq. 2)."""
        grey, ab = self._split(x)
        nearest, share = soft_encoding(ab, self.bins)
        log_p = self.predict(grey).log_softmax(1).gather(1, nearest)
        return -(self.weight[nearest[:, 0]] * (share * log_p).sum(1)).mean()

    def pictures(self, x: Tensor) -> list[Tensor]:
        """Return images, the same in grey, and coloured by the network."""
        grey = self._split(x)[0]
        ab = annealed_mean(self.predict(grey), self.bins)
        ab = F.interpolate(ab, size=x.shape[2:], mode="bilinear", align_corners=False)
        lightness = (grey + 1) * 50
        shown = [lab_to_rgb(torch.cat([lightness, colour], dim=1)) * 2 - 1 for colour in (torch.zeros_like(ab), ab)]
        return [x, *shown]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lightness, (n, 1, h, w), in [-1, 1], and the colours (a, b) at a quarter of the side."""
        lab = rgb_to_lab((x + 1) / 2)
        return lab[:, :1] / 50 - 1, F.adaptive_avg_pool2d(lab[:, 1:], self.places)
