"""Step 1 of the method: the linearization of a resolved backbone, on a device and in a precision by name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradfeat.backbones import Backbone
from gradfeat.data.text import TextPreprocessing
from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.linearization import Linearization, linearize
from gradfeat.linearization.build import theta2_candidates
from gradfeat.linearization.lengths import linearize_lengths
from gradfeat.linearization.theta2 import Candidate

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def check_device(device: Any) -> None:
    """Refuse a device that torch does not have here."""
    if isinstance(device, str) and device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        meant = did_you_mean(str(device), ["cpu", "cuda"], {"gpu": "cuda"})
        raise ConfigurationError(
            f"device must be 'auto' or one that torch has here, not {device!r}: {reason}.{meant}"
        ) from error


def linearize_backbone(
    backbone: Backbone, example: Any, theta2: str | Sequence[str], device: str = "auto", precision: str = "auto"
) -> Linearization:
    """Linearize a resolved backbone, on a device and in a precision by name ("auto": CUDA if there is one; float32)."""
    floating, network_device, example = _as_network(backbone, example)
    check_device(device)
    network = backbone.network
    if floating in (torch.bfloat16, torch.float16):  # whose rounding would hide whether the tangent is right
        network = copy.deepcopy(network).float()
        example = example.float() if isinstance(example, Tensor) and example.is_floating_point() else example
    lengths = backbone.preprocessing.lengths if isinstance(backbone.preprocessing, TextPreprocessing) else None
    if lengths is None:
        linearization = linearize(network, example, theta2, features=backbone.features)
    else:
        linearization = linearize_lengths(network, example, theta2, lengths, features=backbone.features)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and network_device.type == "cpu" else str(network_device)
    dtype = torch.float32 if precision == "auto" and floating != torch.float64 else PRECISIONS.get(precision, floating)
    return linearization.to(device=torch.device(device), dtype=dtype)


def backbone_candidates(backbone: Backbone, example: Any) -> list[Candidate]:
    """Return the choices of θ₂ of a resolved backbone, from the top down."""
    return theta2_candidates(backbone.network, _as_network(backbone, example)[2], features=backbone.features)


def _as_network(backbone: Backbone, example: Any) -> tuple[torch.dtype, torch.device, Any]:
    """Return the network's dtype and device, and the example with them."""
    floating = next((p.dtype for p in backbone.network.parameters() if p.dtype.is_floating_point), torch.float32)
    device = next((p.device for p in backbone.network.parameters()), torch.device("cpu"))
    if isinstance(example, Tensor):
        example = example.to(device, floating if example.is_floating_point() else example.dtype)
    return floating, device, example
