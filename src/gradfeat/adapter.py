"""The fitted model as one safetensors file: weights as tensors, all else as JSON. Nothing in it is ever executed.

The file holds what was learnt (w₁, b, w₂, ω̄) and what must be known to use it: the classes, the names of θ₂, the parametrization, the
preprocessing, and the name and fingerprint of the backbone. It does not hold the backbone.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradfeat._version import __version__
from gradfeat.backbones import difference, resolve, summary
from gradfeat.errors import AdapterError, ConfigurationError

if TYPE_CHECKING:
    from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor

FORMAT_VERSION = 1
_KEY = "gradfeat"
_SETTINGS = ("theta2", "mode", "parametrization", "batch_size", "precision", "loss")


def save(estimator: Any, path: str | Path) -> Path:
    """Write a fitted estimator to `path`, whole or not at all.

    Args:
        estimator: A fitted `GradientFeatureClassifier` or `GradientFeatureRegressor`.
        path: Where; an existing file is replaced only when the new one is complete.

    Returns:
        The path.

    Raises:
        AdapterError: The weights are not finite.
    """
    path = Path(path)
    tensors = {"omega": estimator.omega_, "w1": estimator.w1_, "b": estimator.b_}
    tensors |= {f"w2/{name}": value for name, value in estimator.w2_.items()}
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise AdapterError(f"nothing was saved: {', '.join(bad)} has values that are not finite")
    backbone = estimator.backbone_
    example = estimator.example_
    about = {
        "format_version": FORMAT_VERSION,
        "gradfeat_version": __version__,
        "torch_version": torch.__version__,
        "estimator": type(estimator).__name__,
        "task": estimator.loss_.task,
        "settings": {name: _plain(getattr(estimator, name)) for name in _SETTINGS},
        "classes": _classes_to_json(getattr(estimator, "classes_", None)),
        "class_names": getattr(estimator, "class_names_", None),
        "one_output": getattr(estimator, "_one_output", None),
        "n_features_in": getattr(estimator, "n_features_in_", None),
        "theta2_names": list(estimator.w2_),
        "example": {"shape": [1, *example.shape[1:]], "dtype": str(example.dtype).removeprefix("torch.")},
        "backbone": {
            "name": backbone.name,
            "weights": None if estimator.weights is None else str(estimator.weights),
            "features": backbone.features
            if backbone.features is None or isinstance(backbone.features, str)
            else "a function",
            "fingerprint": backbone.fingerprint,
            "summary": summary(backbone.network),
        },
        "preprocessing": None if backbone.preprocessing is None else backbone.preprocessing.to_dict(),
        "penalty": float(estimator.probe_.penalty),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, temporary, metadata={_KEY: json.dumps(about)}
        )
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def load(
    path: str | Path, backbone: Any = None, *, weights: str | Path | None = None
) -> GradientFeatureClassifier | GradientFeatureRegressor:
    """Read a saved model.

    Args:
        path: File that `save` wrote.
        backbone: The network it was made for: a module, a name or a callable; None takes the name in the file.
        weights: File of the backbone's weights, for a name; None takes the one that the file names.

    Returns:
        The fitted estimator.

    Raises:
        AdapterError: The file is damaged, of a newer format, or made for another backbone (the message says what differs).
    """
    from gradfeat.data import Preprocessing
    from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor
    from gradfeat.losses import loss_for

    about, tensors = read(path)
    stored = about["backbone"]
    if backbone is None:
        if stored["name"] is None or "/" not in stored["name"]:
            raise AdapterError(
                f"{path} was made for a backbone given as {'a module' if stored['name'] is None else 'the callable ' + stored['name']}: pass "
                "it, gradfeat.load(path, backbone=...)"
            )
        backbone, weights = stored["name"], weights if weights is not None else stored["weights"]
    settings = {
        **about["settings"],
        "preprocessing": None if about["preprocessing"] is None else about["preprocessing"],
    }
    cls = {
        "GradientFeatureClassifier": GradientFeatureClassifier,
        "GradientFeatureRegressor": GradientFeatureRegressor,
    }.get(about["estimator"])
    if cls is None:
        raise AdapterError(f"{path} holds a {about['estimator']!r}, which this version does not know")
    estimator = cls(backbone, weights=weights, **settings)
    preprocessing = None if about["preprocessing"] is None else Preprocessing.from_dict(about["preprocessing"])
    shape = tuple(about["example"]["shape"])
    resolved = resolve(backbone, weights=weights, X_shape=shape, preprocessing=preprocessing, random_state=0)
    if resolved.fingerprint != stored["fingerprint"]:
        lines = difference(stored["summary"], summary(resolved.network)) or [
            f"features: expected {stored['features']!r}, found {resolved.features!r}"
        ]
        raise AdapterError(f"{path} was made for another backbone:\n  " + "\n  ".join(lines))
    estimator.backbone_ = resolved
    estimator.example_ = _example(shape, about["example"]["dtype"])
    estimator.loss_ = loss_for("auto", about["task"])
    estimator.omega_, estimator.w1_, estimator.b_ = tensors["omega"], tensors["w1"], tensors["b"]
    estimator.w2_ = {name: tensors[f"w2/{name}"] for name in about["theta2_names"]}
    if about["classes"] is not None:
        estimator.classes_ = np.asarray(about["classes"]["values"], dtype=about["classes"]["dtype"])
    for name, value in (
        ("class_names_", about["class_names"]),
        ("_one_output", about["one_output"]),
        ("n_features_in_", about["n_features_in"]),
    ):
        if value is not None:
            setattr(estimator, name, value)
    estimator.probe_ = _Known(about["penalty"])
    present = list(estimator.linearization_.theta2)
    if present != about["theta2_names"]:
        raise AdapterError(
            f"{path}: θ₂ is {', '.join(about['theta2_names'])} there, and {', '.join(present)} with this backbone"
        )
    return estimator


class _Known:
    """What a file knows of the probe: its penalty."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says about itself, and its tensors, without a backbone.

    Raises:
        AdapterError: There is no such file, or it is damaged, no model of gradfeat, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, struct.error, OSError, ValueError) as error:
        raise AdapterError(f"{path} is no safetensors file, or is damaged or cut off: {error}") from error
    if _KEY not in metadata:
        raise AdapterError(f"{path} is a safetensors file, but not a model that gradfeat saved")
    try:
        about = json.loads(metadata[_KEY])
        version = int(about["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: its description is damaged") from error
    if version > FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format {version}, written by gradfeat {about.get('gradfeat_version')}; this version reads up to {FORMAT_VERSION}: upgrade gradfeat"
        )
    names = {"omega", "w1", "b", *(f"w2/{name}" for name in about["theta2_names"])}
    if names != set(tensors):
        raise AdapterError(f"{path}: tensors are missing or unknown: {', '.join(sorted(names ^ set(tensors)))}")
    return about, tensors


def _example(shape: tuple[int, ...], dtype: str) -> Tensor:
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point:
        return torch.randn(3, *shape[1:], generator=generator).to(kind)
    return torch.randint(0, 2, (3, *shape[1:]), generator=generator).to(kind)


def _classes_to_json(classes: np.ndarray | None) -> dict[str, Any] | None:
    if classes is None:
        return None
    if classes.dtype.kind == "O":
        if not all(isinstance(value, str) for value in classes):
            raise ConfigurationError(
                "classes of mixed Python objects cannot be saved: use strings or numbers as labels"
            )
        classes = classes.astype(str)
    return {"values": classes.tolist(), "dtype": classes.dtype.str}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
