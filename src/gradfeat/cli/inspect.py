"""`gradfeat inspect`: what a network offers as θ₂, and what it costs."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path

import torch

from gradfeat.adapter import read
from gradfeat.backbones import Backbone, resolve
from gradfeat.cli.show import note, table
from gradfeat.errors import ConfigurationError
from gradfeat.inspection import Inspection, inspect_network


def run(
    backbone: str, weights: str | None, theta2: list[str] | None, image_size: int | None, most: int, json: bool
) -> None:
    """Show a network's candidates of θ₂, or what a saved model says about itself."""
    path = Path(backbone)
    if path.is_file() and _is_model(path):
        _show_model(path, json)
        return
    found = resolve(backbone, weights=weights or _no_download(backbone), image_size=image_size, random_state=0)
    example = torch.randn(3, *input_shape(found))
    result = inspect_network(found.network, example, features=found.features, theta2=theta2, most=most)
    if json:
        about = {
            "backbone": found.name,
            "fingerprint": found.fingerprint,
            "preprocessing": None if found.preprocessing is None else found.preprocessing.to_dict(),
            "notes": list(found.notes),
            **result.to_dict(),
        }
        sys.stdout.write(json_module.dumps(about, indent=2) + "\n")
        return
    _show_network(found, example, result)


def input_shape(backbone: Backbone) -> tuple[int, ...]:
    """Return the shape of one sample that the backbone takes, (c, h, w)."""
    if backbone.preprocessing is None:
        raise ConfigurationError("the backbone does not say what its input looks like: give --image-size")
    return (backbone.preprocessing.channels, *backbone.preprocessing.size)


def _no_download(name: str) -> str | None:
    """Shapes and costs need no weights, so none are fetched for a timm or torchvision name."""
    return "random" if name.startswith(("timm/", "torchvision/")) else None


def _is_model(path: Path) -> bool:
    from gradfeat.errors import AdapterError

    try:
        read(path)
    except AdapterError:
        return False
    return True


def _show_model(path: Path, json: bool) -> None:
    about, tensors = read(path)
    if json:
        sys.stdout.write(json_module.dumps(about, indent=2) + "\n")
        return
    backbone, classes = about["backbone"], about["class_names"] or (about["classes"] or {}).get("values", [])
    rows: list[list[str]] = [
        ["model", f"{about['settings']['mode']}, {about['task']}, {tensors['w1'].shape[1]} outputs"],
        ["classes", ", ".join(map(str, classes[:20])) + (" ..." if len(classes) > 20 else "")],
        [
            "backbone",
            f"{backbone['name']}, {backbone['summary']['class']}, {backbone['summary']['n_parameters']:,} parameters",
        ],
        ["fingerprint", backbone["fingerprint"]],
        ["features", "the network's output" if backbone["features"] is None else backbone["features"]],
        ["θ₂", ", ".join(about["theta2_names"])],
        ["parametrization", about["settings"]["parametrization"]],
        ["probe penalty", f"{about['penalty']:.3g}"],
        ["preprocessing", json_module.dumps(about["preprocessing"])],
        [
            "written by",
            f"gradfeat {about['gradfeat_version']}, torch {about['torch_version']}, format {about['format_version']}",
        ],
    ]
    table(["", str(path)], rows)


def _show_network(backbone: Backbone, example: torch.Tensor, result: Inspection) -> None:
    header = [
        "θ₂ up to",
        "parameters",
        "z₀ / sample",
        "residuals / sample",
        "below θ₂",
        "primal",
        "full: pass",
        "fine-tuning: pass",
    ]
    rows = [
        [
            row.name,
            f"{row.parameters:,}",
            _bytes(row.z0_bytes),
            _bytes(row.residual_bytes),
            _operations(row.bottom_macs),
            _operations(row.primal_macs),
            _operations(row.full_macs),
            _operations(row.finetune_macs),
        ]
        for row in result.rows
    ]
    shape = " × ".join(str(size) for size in example.shape[1:])
    table(
        header,
        rows,
        title=f"{backbone.name}: input {shape}, {result.features} features, {result.parameters:,} parameters",
    )
    note(
        False,
        "Costs are multiply-adds per sample; a pass is forward and backward. 'below θ₂' and 'primal' run once per sample.",
    )
    note(False, f"theta2='auto' is {result.auto}. Each row takes all rows above it along.")
    for text in [*result.notes, *backbone.notes]:
        note(False, text)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _operations(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
