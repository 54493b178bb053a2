"""`gradfeat inspect`: what a network offers as θ₂, and what it costs."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

import torch

from gradfeat.backbones import Backbone, resolve
from gradfeat.backbones.names import LIBRARIES
from gradfeat.cli.converters import names_of
from gradfeat.cli.idle import idle_for_data, refuse
from gradfeat.cli.requests import Inspect
from gradfeat.cli.rules import TEXTS
from gradfeat.cli.show import note, print_json, table
from gradfeat.data import Preprocessing, TextPreprocessing
from gradfeat.errors import ConfigurationError
from gradfeat.estimators.adapter import read
from gradfeat.inspection import Inspection, inspect_network
from gradfeat.linearization.theta2 import layers_of
from gradfeat.progress import Progress

_TOKENS = 64  # of the text whose costs are shown: two or three sentences


def run(request: Inspect) -> None:
    """Show a network's candidates of θ₂, or what a saved model says about itself."""
    given, path = request.given, Path(request.backbone)
    if path.is_file() and _is_model(path):
        refuse(
            given, {name: f"{path} is a saved model, which says what it is" for name in given.values if name != "json"}
        )
        _show_model(path, request.json)
        return
    weights = request.weights or _no_download(request.backbone)
    backbone = resolve(request.backbone, weights=weights, image_size=request.image_size, random_state=0)
    if isinstance(backbone.preprocessing, TextPreprocessing):
        refuse(given, idle_for_data(given, TEXTS))
    theta2 = names_of("--theta2", request.theta2) or None
    if theta2:
        refuse(given, {"most": "one candidate is named"} if "most" in given else {})
    example = example_of(backbone)
    with Progress(not request.json).step("candidates of θ₂") as done:
        result = inspect_network(
            backbone.network, example, features=backbone.features, theta2=theta2, most=request.most, progress=done
        )
    if request.json:
        about = {
            "backbone": backbone.name,
            "fingerprint": backbone.fingerprint,
            "preprocessing": None if backbone.preprocessing is None else backbone.preprocessing.to_dict(),
            "notes": list(backbone.notes),
            **result.to_dict(),
        }
        print_json(about)
        return
    _show_network(backbone, example, result)


def example_of(backbone: Backbone, n: int = 3) -> torch.Tensor:
    """Return n samples as the backbone takes them: images (n, c, h, w), or tokens of texts (n, 2, length)."""
    preprocessing = backbone.preprocessing
    if preprocessing is None:
        raise ConfigurationError("the backbone does not say what its input looks like: give --image-size")
    if isinstance(preprocessing, TextPreprocessing):
        return torch.ones(n, 2, min(_TOKENS, preprocessing.max_length), dtype=torch.int64)
    return torch.randn(n, preprocessing.channels, *preprocessing.size)


def _no_download(name: str) -> str | None:
    """Shapes and costs need no weights, so none are fetched for a published model."""
    return "random" if name.startswith(tuple(f"{library}/" for library in LIBRARIES if library != "gradfeat")) else None


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
        print_json(about)
        return
    backbone, network = about["backbone"], about["backbone"]["summary"]
    classes = about["fitted"].get("class_names_") or (about["classes"] or {}).get("values", [])
    rows: list[list[str]] = [
        ["model", f"{about['settings']['mode']}, {about['task']}, {tensors['w1'].shape[1]} outputs"],
        *([["classes", ", ".join(map(str, classes[:20])) + (" ..." if len(classes) > 20 else "")]] if classes else []),
        ["backbone", f"{backbone['name'] or 'a module'}, {network['class']}, {network['n_parameters']:,} parameters"],
        ["fingerprint", backbone["fingerprint"]],
        ["features", "the network's output" if backbone["features"] is None else backbone["features"]],
        ["θ₂", layers_of(about["theta2_names"])],
        ["parametrization", about["settings"]["parametrization"]],
        *([["augment", about["settings"]["augment"]]] if about["settings"]["augment"] else []),
        ["probe penalty", f"{about['probe']['penalty']:.3g}"],
        *([name, str(value)] for name, value in about["fitted"].get("how_", {}).items()),
        ["preprocessing", _treatment(about["preprocessing"])],
        [
            "written by",
            f"gradfeat {about['gradfeat_version']}, torch {about['torch_version']}, format {about['format_version']}",
        ],
    ]
    table(["", str(path)], rows)


def _treatment(stored: dict[str, Any] | None) -> str:
    """Return in words what is done to images; texts' fields as they are stored."""
    if stored is None or "mean" not in stored:
        return json_module.dumps(stored)
    return f"images: {Preprocessing.from_dict(stored).describe()}"


def _show_network(backbone: Backbone, example: torch.Tensor, result: Inspection) -> None:
    shape = " × ".join(str(size) for size in example.shape[1:])
    if isinstance(backbone.preprocessing, TextPreprocessing):
        shape = f"a text of {example.shape[2]} tokens"
    treatment = backbone.preprocessing
    images = f"images: {treatment.describe()}\n" if isinstance(treatment, Preprocessing) else ""
    note(
        False,
        f"{backbone.name}: input {shape}, {result.features} features, {result.parameters:,} parameters\n{images}"
        f"theta2='auto' takes {result.auto}",
    )
    header = ["θ₂ from", "parameters", "z₀", "residuals", "once", "full", "finetune"]
    rows = [
        [
            row.name,
            _count(row.parameters),
            _bytes(row.z0_bytes),
            _bytes(row.residual_bytes),
            _count(row.bottom_macs + row.primal_macs),
            _count(row.full_macs),
            _count(row.finetune_macs),
        ]
        for row in result.rows
    ]
    table(header, rows)
    note(
        False,
        "Each row takes all rows above it along. z₀, residuals: memory for each sample that is kept. Multiply-adds "
        "for each sample: once (θ₁, f(x) and residuals), and a training pass, forward and backward, of full and of "
        "finetune.",
    )
    if result.more:
        note(False, f"{result.more} more candidates below: --most {len(result.rows) + result.more} shows them all.")
    for text in backbone.notes:
        note(False, text)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _count(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
