"""Files of fitted models that are not as `save` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gradfeat.estimators.adapter_file import KEY
from gradfeat.files.digests import sealed

CHECKSUM_FROM = 3
"""The first format whose files have a checksum."""


def network(seed: int = 0, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, width), nn.ReLU())


def rewritten(saved: Path, path: Path, change: Any = None, tensors: Any = None, raw: str | None = None) -> Path:
    """Write a file again with another description or other tensors, as one does it who knows the format."""
    with safe_open(str(saved), framework="pt") as file:
        about = json.loads(file.metadata()[KEY])
    if change is not None:
        change(about)
    values = load_file(saved)
    if tensors is not None:
        tensors(values)
    about.pop("sha256", None)
    description = raw if raw is not None else json.dumps(about)
    if raw is None and about.get("format_version", 0) >= CHECKSUM_FROM:
        description = sealed(description, values)  # as one writes it who knows the format
    save_file(values, path, metadata={KEY: description})
    return path
