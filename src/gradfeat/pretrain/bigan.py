"""Pre-training by a bidirectional GAN (Donahue et al. 2016; Dumoulin et al. 2016, "ALI"), a task of the paper's.

A discriminator tells pairs (x, E(x)) of an image and its code from pairs (G(z), z) of a picture and the code that it
was made from. Encoder and generator can only both deceive it by being each other's inverse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.pretrain.encoder import ConvEncoder, output_shape
from gradfeat.pretrain.loop import Task, Turn

OBJECTIVES = ("jensen-shannon", "wasserstein")
CRITIC_STEPS = 5  # Gulrajani et al. 2017: of the discriminator, for one of encoder and generator
PENALTY = 10.0


class Generator(nn.Module):
    """From codes to images: the encoder's convolutions, transposed and in reverse.

    Args:
        arguments: The encoder's.
        latent: Length of the code.
    """

    def __init__(self, arguments: dict[str, Any], latent: int) -> None:
        super().__init__()
        channels, strides = arguments["channels"], arguments["strides"]
        kernels = _kernels(arguments)
        widths = [latent, *reversed(channels[:-1]), channels[0]]
        self.blocks = nn.Sequential()
        for i, (kernel, stride) in enumerate(zip(reversed(kernels), reversed(strides), strict=True)):
            self.blocks.append(nn.ConvTranspose2d(widths[i], widths[i + 1], kernel, stride, bias=False))
            self.blocks.append(nn.BatchNorm2d(widths[i + 1]))
            self.blocks.append(nn.LeakyReLU(0.01))
        self.blocks.append(nn.Conv2d(channels[0], arguments["in_channels"], 1))
        self.blocks.append(nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Return images, (n, c, h, w) in [-1, 1], for codes z, (n, latent)."""
        return self.blocks(z[:, :, None, None])


class Discriminator(nn.Module):
    """A score of pairs of an image and a code: the larger, the more it looks like (x, E(x)).

    No batch norm: the penalty of the Wasserstein objective is on the gradient of single samples.

    Args:
        arguments: The encoder's, whose convolutions it has too.
        latent: Length of the code.
        dropout: Before every later layer.
    """

    def __init__(self, arguments: dict[str, Any], latent: int, dropout: float) -> None:
        super().__init__()
        image: list[nn.Module] = []
        before = arguments["in_channels"]
        for out, kernel, stride in zip(arguments["channels"], _kernels(arguments), arguments["strides"], strict=True):
            image += [nn.Conv2d(before, out, kernel, stride), nn.LeakyReLU(0.01), nn.Dropout(dropout)]
            before = out
        self.image = nn.Sequential(*image, nn.Flatten())
        self.code = nn.Sequential(
            nn.Linear(latent, before),
            nn.LeakyReLU(0.01),
            nn.Dropout(dropout),
            nn.Linear(before, before),
            nn.LeakyReLU(0.01),
        )
        self.pair = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * before, 2 * before), nn.LeakyReLU(0.01), nn.Dropout(dropout),
            nn.Linear(2 * before, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the scores (logits), (n,), of images x, (n, c, h, w), with codes z, (n, latent)."""
        return self.pair(torch.cat([self.image(x), self.code(z)], dim=1)).squeeze(1)


class BiGAN(Task):
    """Encoder, generator and joint discriminator.

    The encoder's code is normally distributed, with a mean and variance that are functions of its last activations, as
    in ALI. "jensen-shannon" is the original objective, with losses for encoder and generator that do not saturate;
    "wasserstein" is the difference of mean scores, with a penalty on the gradient in the pair (Gulrajani et al. 2017).

    Args:
        encoder: The network to pre-train, unpadded, whose last map has one pixel: `ConvEncoder(3, **BIGAN)` for images
            of 32 × 32.
        image_shape: Channels, height and width.
        latent: Length of the code.
        objective: One of `OBJECTIVES`.

    Raises:
        ConfigurationError: Another encoder or image size, or an unknown objective.

    Source: Mu, Liang & Li, ICLR 2020, Sec. 4.1.
    """

    network = "bigan"
    learning_rate = 2e-4
    replayed = True

    def __init__(
        self,
        encoder: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        latent: int = 64,
        objective: str = OBJECTIVES[0],
    ) -> None:
        super().__init__(encoder)
        if objective not in OBJECTIVES:
            raise ConfigurationError(
                f"Unknown objective {objective!r}. Known: {', '.join(OBJECTIVES)}."
                + did_you_mean(objective, OBJECTIVES)
            )
        if not isinstance(encoder, ConvEncoder) or encoder.arguments["padded"]:
            raise ConfigurationError("The task 'bigan' needs the network 'bigan': its generator mirrors it.")
        d, *side = output_shape(encoder, image_shape, spatial=True)
        self.objective, self.latent = objective, latent
        self.code = nn.Sequential(nn.Linear(d, d), nn.BatchNorm1d(d), nn.LeakyReLU(0.01), nn.Linear(d, 2 * latent))
        self.generator = Generator(encoder.arguments, latent)
        made = output_shape(self.generator, (latent,))
        if side != [1, 1] or made != tuple(image_shape):
            raise ConfigurationError(
                f"The BiGAN's generator makes images of {made[1]} × {made[2]}, and these have {image_shape[1]} × "
                f"{image_shape[2]}: bring them to that size."
            )
        # Dropout is no part of the Wasserstein critic.
        self.discriminator = Discriminator(encoder.arguments, latent, 0.2 if objective == OBJECTIVES[0] else 0.0)
        for part, init in ((self, _narrow), (self.discriminator, _he)):
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    init(module.weight)

    def turns(self) -> list[Turn]:
        """Return the discriminator's turn, and that of encoder and generator."""
        players = [*self.encoder.parameters(), *self.code.parameters(), *self.generator.parameters()]
        every = CRITIC_STEPS if self.objective == "wasserstein" else 1
        # Constant rates and a short memory of gradients, as games between networks need.
        return [
            Turn(
                "discriminator", list(self.discriminator.parameters()), self.discriminator_loss, 1, (0.5, 0.999), False
            ),
            Turn("encoder_generator", players, self.players_loss, every, (0.5, 0.999), False),
        ]

    def encode(self, x: Tensor) -> Tensor:
        """Return a code of each image, (n, latent): its mean in evaluation mode, drawn at random in training."""
        mean, log_variance = self.code(self.encoder(x)).chunk(2, dim=1)
        return mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean

    def draw(self, n: int, like: Tensor) -> Tensor:
        """Return codes of the prior, (n, latent)."""
        return torch.randn(n, self.latent, device=like.device, dtype=like.dtype)

    def discriminator_loss(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the loss of the discriminator for images x, (n, c, h, w)."""
        with torch.no_grad():
            code = self.encode(x)
            z = self.draw(len(x), x)
            made = self.generator(z)
        real, fake = self._scores((x, code), (made, z))
        if self.objective == "wasserstein":
            return (fake - real).mean() + PENALTY * gradient_penalty(self.discriminator, (x, code), (made, z))
        return (F.softplus(-real) + F.softplus(fake)).mean()

    def players_loss(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the loss of encoder and generator for images x, (n, c, h, w)."""
        z = self.draw(len(x), x)
        real, fake = self._scores((x, self.encode(x)), (self.generator(z), z))
        if self.objective == "wasserstein":
            return (real - fake).mean()
        return (F.softplus(real) + F.softplus(-fake)).mean()

    def _scores(self, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the discriminator's scores of both kinds of pairs, in one go: it treats each pair by itself."""
        images, codes = (torch.cat(parts) for parts in zip(real, fake, strict=True))
        return self.discriminator(images, codes).tensor_split([len(real[0])])

    def pictures(self, x: Tensor) -> list[Tensor]:
        """Return images, their reconstructions G(E(x)), and pictures of random codes."""
        return [x, self.generator(self.encode(x)), self.generator(self.draw(len(x), x))]


def gradient_penalty(discriminator: nn.Module, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean of (‖∇ D‖ - 1)² at random points between real and made pairs (Gulrajani et al. 2017, Eq. 3).

    Args:
        discriminator: D, a score of pairs.
        real: Images (n, c, h, w) and codes (n, latent).
        fake: As `real`.
    """
    t = torch.rand(len(real[0]), 1, device=real[0].device, dtype=real[0].dtype)
    between = []
    for a, b in zip(real, fake, strict=True):
        share = t.view(-1, *[1] * (a.ndim - 1))
        between.append((share * a + (1 - share) * b).detach().requires_grad_())
    gradients = torch.autograd.grad(discriminator(*between).sum(), between, create_graph=True)
    norm = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)
    return (norm - 1).square().mean()


def _narrow(weight: Tensor) -> None:
    nn.init.normal_(weight, std=0.02)  # Radford et al. 2016


def _he(weight: Tensor) -> None:
    # Without batch norm narrow weights let the code's signal die out: encoder and generator would learn apart.
    nn.init.kaiming_normal_(weight, a=0.01)


def _kernels(arguments: dict[str, Any]) -> list[int]:
    size = arguments["kernel_size"]
    return [size] * len(arguments["channels"]) if isinstance(size, int) else list(size)
