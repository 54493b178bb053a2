"""Pre-training by a variational auto-encoder (Kingma & Welling 2014), a task of the paper's (Sec. 4.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError
from gradfeat.pretrain.encoder import ConvEncoder, output_shape
from gradfeat.pretrain.loop import Task


class VariationalAutoencoder(Task):
    """Encoder, latent code and decoder; its forward is the negative evidence lower bound per image.

    The code is a linear function of the encoder's last activations *before* they are averaged: reconstruction needs to
    know where things are. The features f(x) are their average, as in the paper. The gradients of the topmost
    convolution see the activations where they are, so they bring back what the average loses.

    Why this task first: it is one of the paper's own, asks nothing of the images, and suits small ones. Predicting
    rotations gave far weaker features on digits (many look alike when turned), and a denoising auto-encoder
    no better ones.

    Args:
        encoder: The network to pre-train, a `ConvEncoder`.
        image_shape: Channels, height and width of the images.
        latent: Length of the code.
        width: Channels of the decoder.
        beta: Weight of the divergence (Higgins et al. 2017); 1 is the evidence lower bound.

    Raises:
        ConfigurationError: Another encoder, or a negative beta.

    Source: Mu, Liang & Li, ICLR 2020, Sec. 4.1.
    """

    replayed = True

    def __init__(
        self,
        encoder: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        latent: int = 16,
        width: int = 64,
        beta: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        if not isinstance(encoder, ConvEncoder):
            raise ConfigurationError("The task 'vae' needs a network of gradfeat's own: small or bigan.")
        if not 0 <= beta < math.inf:
            raise ConfigurationError(f"beta must be finite and not negative, not {beta}.")
        channels, height, width_px = image_shape
        self.beta = beta
        self.code = nn.Linear(math.prod(output_shape(encoder, image_shape, spatial=True)), 2 * latent)
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

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of the codes of images x, each (n, latent)."""
        activations: Tensor = self.encoder.forward_map(x)  # type: ignore[operator]
        mean, log_variance = self.code(activations.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean loss of images x, (n, c, h, w), scaled to [-1, 1]."""
        mean, log_variance = self.encode(x)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        # Pixels as probabilities of Bernoulli variables.
        likelihood = F.binary_cross_entropy_with_logits(self.decoder(z), (x + 1) / 2, reduction="none")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return (likelihood.flatten(1).sum(dim=1) + self.beta * divergence.sum(dim=1)).mean()

    def pictures(self, x: Tensor) -> list[Tensor]:
        """Return images, their reconstructions, and pictures of random codes."""
        codes = self.encode(x)[0]
        return [x, *(self.decoder(z).sigmoid() * 2 - 1 for z in (codes, torch.randn_like(codes)))]
