"""Pre-training by a variational auto-encoder (Kingma & Welling 2014), a task of the paper's (Sec. 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.pretrain.encoder import ConvEncoder


class VariationalAutoencoder(nn.Module):
    """Encoder, latent code and decoder; its forward is the negative evidence lower bound per image.

    The code is a linear function of the encoder's last activations *before* they are averaged: reconstruction needs to
    know where things are. The features f(x) are their average, as in the paper. The gradients of the topmost
    convolution see the activations where they are, so they bring back what the average loses.

    Why this task first: it is one of the paper's own, asks nothing of the images, and suits small ones. Predicting
    rotations gave far weaker features on digits (many look alike when turned), and a denoising auto-encoder
    no better ones.

    Args:
        encoder: The network to pre-train.
        image_size: Height and width of the images.
        latent: Length of the code.
        width: Channels of the decoder.

    Source: Mu, Liang & Li, ICLR 2020, Sec. 4.1.
    """

    def __init__(self, encoder: ConvEncoder, image_size: tuple[int, int], *, latent: int = 16, width: int = 64) -> None:
        super().__init__()
        height, width_px = image_size
        channels = encoder.arguments["in_channels"]
        with torch.no_grad():
            # In evaluation mode a look at the shape leaves batch norm's statistics alone.
            code_size = encoder.eval().forward_map(torch.zeros(1, channels, height, width_px)).numel()
        self.encoder = encoder
        self.code = nn.Linear(code_size, 2 * latent)
        coarse = (-(-height // 2), -(-width_px // 2))
        self.decoder = nn.Sequential(
            nn.Linear(latent, width * coarse[0] * coarse[1]),
            nn.Unflatten(1, (width, *coarse)),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.01),
            nn.Upsample(size=(height, width_px)),
            nn.Conv2d(width, width // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.01),
            nn.Conv2d(width // 2, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean loss of images x, (n, c, h, w), scaled to [-1, 1]."""
        mean, log_variance = self.code(self.encoder.forward_map(x).flatten(1)).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        # Pixels as probabilities of Bernoulli variables.
        likelihood = F.binary_cross_entropy_with_logits(self.decoder(z), (x + 1) / 2, reduction="none")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return (likelihood.flatten(1).sum(dim=1) + divergence.sum(dim=1)).mean()
