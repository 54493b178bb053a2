"""Table 1's question: which part of the gradient's network must be pre-trained (Sec. 4.2)?

Activations always come from the pre-trained network. Only the network that gradients are taken of is varied: its θ₁,
its θ₂ and its ω are each pre-trained or random.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.data.inputs import in_parts
from gradfeat.errors import ConfigurationError
from gradfeat.fit import Problem
from gradfeat.losses import Loss
from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.pretrain.loop import seeded
from gradfeat.samples.store import Batches, SampleStore
from gradfeat.solvers.probe import Probe

STATES = ("random", "pre-trained")

_STATISTICS_BATCH = 256
_LAYERS, _OMEGA = 1, 2  # separate streams of one seed, apart from that which the encoder was pre-trained with


def top_layers(encoder: ConvEncoder, depth: int) -> list[str]:
    """Return the names of the topmost `depth` blocks (convolution, batch norm, activation): θ₂.

    Raises:
        ConfigurationError: The encoder has not so many.
    """
    blocks = len(encoder.blocks)
    if not 1 <= depth <= blocks:
        raise ConfigurationError(f"θ₂ must be 1 to {blocks} of the encoder's convolutions, not {depth}")
    return [f"blocks.{i}" for i in range(blocks - depth, blocks)]


def conv_columns(encoder: ConvEncoder, depths: int) -> dict[str, list[str]]:
    """Return θ₂ of the columns of a table, the topmost convolution first, by their names.

    Example:
        >>> conv_columns(ConvEncoder(1), 2)
        {'conv4': ['blocks.3'], 'conv3-4': ['blocks.2', 'blocks.3']}
    """
    top = len(encoder.blocks)
    names = [f"conv{top}" if depth == 1 else f"conv{top - depth + 1}-{top}" for depth in range(1, depths + 1)]
    return {name: top_layers(encoder, depth) for depth, name in enumerate(names, 1)}


def mixed_network(
    pretrained: nn.Module,
    top: Sequence[str],
    *,
    theta1: str,
    theta2: str,
    images: Batches,
    seed: int,
    device: str = "cpu",
) -> nn.Module:
    """Return the network with its bottom or its top layers, or both, initialized anew.

    Random layers are of the same architecture, with PyTorch's initial weights. The statistics of a fresh batch norm
    (mean 0, variance 1) are of no data, so they are estimated on `images`, in this network. Pre-trained layers keep
    their own statistics.

    Args:
        pretrained: The network; not changed.
        top: Names of the modules that are θ₂; all others are θ₁.
        theta1: "random" or "pre-trained".
        theta2: The same.
        images: What statistics are estimated on: training data.
        seed: Of the random layers.
        device: Where the statistics are estimated; the network returns to the CPU.

    Raises:
        ConfigurationError: A state that is not known, or parameters that no layer of PyTorch's own kind initializes.
    """
    for name, state in (("theta1", theta1), ("theta2", theta2)):
        if state not in STATES:
            raise ConfigurationError(f"{name} must be one of {', '.join(STATES)}, not {state!r}")
    network = copy.deepcopy(pretrained).eval()
    anew = {}
    with seeded(_stream(seed, _LAYERS)):
        for name, module in copy.deepcopy(network).named_modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()  # all layers draw, so that a layer's weights do not depend on which others are random
            state = theta2 if any(name == t or name.startswith(f"{t}.") for t in top) else theta1
            if state == "pre-trained":
                continue
            if reset is not None:
                anew[name] = module.state_dict()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ConfigurationError(f"{name} ({type(module).__name__}) cannot be initialized anew")
    for name, fresh in anew.items():
        network.get_submodule(name).load_state_dict(fresh)
    if anew:
        estimate_statistics(network.to(device), [network.get_submodule(name) for name in anew], images)
    return network.cpu()


def estimate_statistics(network: nn.Module, layers: Iterable[nn.Module], images: Batches) -> None:
    """Set the running statistics of the batch norms in some layers to the mean over batches of images.

    Args:
        network: In evaluation mode; changed in these statistics alone.
        layers: Modules of it.
        images: What it runs on.
    """
    norms = [module for layer in layers for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way to say: the mean of all batches
        norm.train()
    device = next(network.parameters()).device
    with torch.no_grad():
        for rows in _batches(len(images)):
            network(images.batch(rows).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def random_probe(probe: Probe, seed: int) -> Probe:
    """Return a probe whose ω is random: normal entries, scaled to the Frobenius norm of the given one.

    The norm matters to a penalized w₂ and to the first steps of Adam, and to nothing else; so rows with random and
    trained ω differ in its direction alone.
    """
    drawn = torch.randn(probe.omega.shape, generator=torch.Generator().manual_seed(_stream(seed, _OMEGA)))
    omega = (drawn * (probe.omega.norm().cpu() / drawn.norm())).to(probe.omega)
    return replace(probe, omega=omega, note="random")


def ablation_problem(store: SampleStore, y: Tensor, loss: Loss, probe: Probe, *, omega: Probe | None = None) -> Problem:
    """Return a problem whose activations and probe are of one network, and whose gradients are of another.

    Args:
        store: The training samples, with the linearization of the network that J(x) is of, and with the activations
            f(x) of the pre-trained network as `features`, (n, d).
        y: Targets, (n,).
        loss: The task's loss.
        probe: Fitted to these activations: where w₁ starts.
        omega: ω of the gradients, if it is not a probe on these activations.
    """
    return Problem(store, y, None, loss, probe, fixed_omega=omega)


def _batches(n: int) -> Sequence[range]:
    """Return batches of all samples; a last one too small to have a variance is left out."""
    return [part for part in in_parts(n, _STATISTICS_BATCH) if len(part) >= min(n, 16)]


def _stream(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])
