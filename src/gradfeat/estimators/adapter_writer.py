"""Writing what was fitted as one safetensors file: weights as tensors, all else as JSON.

The file holds what was learnt (w₁, b, w₂, ω̄) and what must be known to use it: the classes, the names of θ₂, the
parametrization, the preprocessing, and the name and fingerprint of the backbone. It does not hold the backbone.
"""

from __future__ import annotations

import json
import numbers
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from gradfeat._version import __version__
from gradfeat.backbones import summary
from gradfeat.errors import AdapterError, ConfigurationError
from gradfeat.estimators.adapter_file import FORMAT_VERSION, KEY, is_finite
from gradfeat.estimators.fit_record import probe_to_json, record_to_json
from gradfeat.estimators.fitted import Fitted
from gradfeat.files.bounded import number_to_json
from gradfeat.files.digests import sealed
from gradfeat.files.tensor_file import tensor_file
from gradfeat.files.writing import write_whole
from gradfeat.losses import target_mean


def save(fitted: Fitted, path: str | Path, *, batch_size: int) -> Path:
    """Write what was fitted to `path`, whole or not at all.

    Args:
        fitted: From an estimator's `fitted_`.
        path: Where; an existing file is replaced only when the new one is complete.
        batch_size: Samples at a time with which a loaded estimator predicts.

    Returns:
        The path.

    Raises:
        AdapterError: The weights are not finite, or the file cannot be written.
        ConfigurationError: The classes are Python objects other than strings.
    """
    path = Path(path).expanduser()
    tensors = _tensors(fitted)
    bad = [name for name, value in tensors.items() if not is_finite(value)]
    if bad:
        raise AdapterError(f"nothing was saved: values that are not finite in {', '.join(bad)}")
    about = sealed(json.dumps(_description(fitted, batch_size), allow_nan=False), tensors)
    try:
        return write_whole(path, tensor_file(tensors, {KEY: about}))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _tensors(fitted: Fitted) -> dict[str, Tensor]:
    weights, head, mean = fitted.weights, fitted.merged_head, target_mean(fitted.targets.loss)
    probe = fitted.record.probe
    omega = probe.omega.cpu()
    same = omega.dtype == weights.omega.dtype and torch.equal(omega, weights.omega)
    return {
        "omega": weights.omega,
        "w1": weights.w1,
        "b": weights.b,
        "probe_bias": probe.bias.cpu(),
        **({} if same else {"probe_omega": omega}),  # another penalty of ω̄ was chosen, or rounds have moved it
        **({} if mean is None else {"target_mean": mean}),
        **({} if head is None else {"head/weight": head.weight.cpu(), "head/bias": head.bias.cpu()}),
        **{f"w2/{name}": value for name, value in weights.w2.items()},
        **{f"theta2/{name}": value for name, value in (weights.theta2 or {}).items()},
    }


def _description(fitted: Fitted, batch_size: int) -> dict[str, Any]:
    """Return all that is no tensor, as JSON."""
    network, loss, head = fitted.network, fitted.targets.loss, fitted.merged_head
    backbone = network.backbone
    return {
        "format_version": FORMAT_VERSION,
        "gradfeat_version": __version__,
        "torch_version": torch.__version__,
        "task": loss.task,
        "loss": loss.name,
        # a search for θ₂ is not repeated: the file names what it found
        "settings": {name: _plain(value) for name, value in asdict(fitted.settings).items()}
        | {"theta2": _plain(network.modules), "batch_size": _plain(batch_size)},
        "classes": _classes_to_json(fitted.targets.classes),
        "fitted": _of_the_data(fitted),
        "theta2_names": list(fitted.weights.w2),
        "moved": fitted.weights.theta2 is not None,
        "merged_head": None
        if head is None
        else {"step": head.step, "error": None if head.error is None else number_to_json(head.error)},
        "example": {
            "shape": list(network.example.shape),
            "dtype": str(network.example.dtype).removeprefix("torch."),
        },
        "backbone": {
            "name": backbone.name,
            "weights": _weights(network.weights),
            "features": backbone.features,
            "fingerprint": backbone.fingerprint,
            "summary": summary(backbone.network),
            "built_from": {name: _plain(value) for name, value in asdict(network.built_from).items()},
        },
        "preprocessing": None if backbone.preprocessing is None else backbone.preprocessing.to_dict(),
        "probe": probe_to_json(fitted.record.probe),
        "fit": record_to_json(fitted.record),
    }


def _of_the_data(fitted: Fitted) -> dict[str, Any]:
    """Return what some data have and others have not, by the names of an estimator's attributes."""
    names = {
        "how_": dict(fitted.record.how),
        "class_names_": _plain(fitted.class_names),
        "feature_names_in_": _plain(fitted.columns.names),
        "n_features_in_": _plain(fitted.columns.count),
        "_one_output": fitted.targets.one_output if fitted.targets.classes is None else None,
    }
    return {name: value for name, value in names.items() if value is not None}


def _weights(weights: str | Path | None) -> str | None:
    """Return a weights file in a form that holds in any working directory."""
    return None if weights is None else "random" if weights == "random" else str(Path(weights).expanduser().absolute())


def _classes_to_json(classes: np.ndarray | None) -> dict[str, Any] | None:
    if classes is None:
        return None
    objects = classes.dtype.kind == "O"
    if classes.dtype.kind not in "biufUO" or (objects and not all(isinstance(value, str) for value in classes)):
        raise ConfigurationError(
            f"classes of dtype {classes.dtype} with such values cannot be saved: use strings or numbers as labels"
        )
    return {"values": classes.tolist(), "dtype": "object" if objects else classes.dtype.str}


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays, tuples and paths as JSON has them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return value
