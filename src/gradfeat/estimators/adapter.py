"""The fitted model as one safetensors file: weights as tensors, all else as JSON. Nothing in it is ever executed.

The file holds what was learnt (w₁, b, w₂, ω̄) and what must be known to use it: the classes, the names of θ₂, the
parametrization, the preprocessing, and the name and fingerprint of the backbone. It does not hold the backbone.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gradfeat._version import __version__
from gradfeat.backbones import Backbone, difference, fingerprint, resolve, summary
from gradfeat.contexts import plain
from gradfeat.data import TextPreprocessing
from gradfeat.errors import AdapterError, BackboneError, ConfigurationError
from gradfeat.estimators.adapter_file import DTYPES, FORMAT_VERSION, KEY, check_outside, classes_from_json, read
from gradfeat.estimators.fit_record import UNKNOWN, probe_from_json, probe_to_json, record_of, restore
from gradfeat.estimators.rebuilt import AS_FITTED
from gradfeat.files.bounded import number_from_json, number_to_json
from gradfeat.files.digests import sealed
from gradfeat.files.tensor_file import tensor_file
from gradfeat.files.writing import write_whole
from gradfeat.fit.linearize import check_device, linearize_backbone
from gradfeat.fit.merge import MergedHead
from gradfeat.fit.point import Point
from gradfeat.linearization import Linearization
from gradfeat.losses import Squared, loss_for, target_mean
from gradfeat.optional import offline

if TYPE_CHECKING:
    from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor

__all__ = ["FORMAT_VERSION", "load", "read", "save"]

_SETTINGS = ("theta2", "mode", "parametrization", "batch_size", "precision", "loss", "rounds", "augment")
_OPTIONAL = ("how_", "class_names_", "feature_names_in_", "n_features_in_", "_one_output")


def save(estimator: Any, path: str | Path) -> Path:
    """Write a fitted estimator to `path`, whole or not at all.

    Args:
        estimator: A fitted `GradientFeatureClassifier` or `GradientFeatureRegressor`.
        path: Where; an existing file is replaced only when the new one is complete.

    Returns:
        The path.

    Raises:
        AdapterError: The weights are not finite, or the file cannot be written.
        ConfigurationError: The classes are Python objects other than strings.
    """
    path = Path(path).expanduser()
    head = estimator.merged_head_
    tensors = {
        "omega": estimator.omega_,
        "w1": estimator.w1_,
        "b": estimator.b_,
        "probe_bias": estimator.probe_.bias.cpu(),
        **({} if (mean := target_mean(estimator.loss_)) is None else {"target_mean": mean}),
        **({} if head is None else {"head/weight": head.weight.cpu(), "head/bias": head.bias.cpu()}),
        **{f"w2/{name}": value for name, value in estimator.w2_.items()},
        **{f"theta2/{name}": value for name, value in (estimator.theta2_ or {}).items()},
    }
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise AdapterError(f"nothing was saved: values that are not finite in {', '.join(bad)}")
    about = sealed(json.dumps(_describe(estimator), allow_nan=False), tensors)
    try:
        return write_whole(path, tensor_file(tensors, {KEY: about}))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


@plain()
def load(
    path: str | Path,
    backbone: Any = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    allow_download: bool = False,
) -> GradientFeatureClassifier | GradientFeatureRegressor:
    """Read a saved model, which predicts as the one that was saved.

    What a new `fit` would need beside what the model is (solver, penalty, metric, cv, epochs, clip_norm, class_weight,
    random_state) is not in the file, and at its default. Nothing in the file is executed, and no other machine is asked
    for anything unless that is allowed: weights that a library has on this machine are used.

    Args:
        path: File that `save` wrote.
        backbone: The network it was made for: a module, a name or a callable; None takes the name in the file.
        weights: File of the backbone's weights, for a name; None takes the one that the file names.
        device: Where it predicts: "auto", "cpu", "cuda", ...
        allow_download: Whether weights and tokenizers that are not on this machine may be fetched.

    Returns:
        The fitted estimator. The attributes that say how it was fitted are as they were; of a file of an older version
        they are None or empty.

    Raises:
        AdapterError: The file is damaged, of a newer format, or made for another backbone (the message says what
            differs), or the backbone that it names is not to be had.
        ConfigurationError: An argument that cannot be meant.
    """
    from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor

    check_device(device)
    about, tensors = read(path)
    if not allow_download:
        check_outside(path, about)
    stored = about["backbone"]
    named = backbone is None
    if backbone is None:
        backbone = _stored_name(path, stored["name"])
    if weights is None and isinstance(backbone, str) and backbone == stored["name"]:
        weights = stored["weights"]
    preprocessing = about["preprocessing"]
    if isinstance(backbone, str | Path) and preprocessing is not None:
        # a named backbone brings its tokenizer, perhaps from another folder than the file names
        preprocessing = {name: value for name, value in preprocessing.items() if name != "tokenizer"}
    cls = GradientFeatureRegressor if about["task"] == "regression" else GradientFeatureClassifier
    settings = {name: about["settings"][name] for name in _SETTINGS}
    estimator: Any = cls(backbone, weights=weights, preprocessing=preprocessing, device=device, **settings)
    estimator._given = {name: settings[name] for name in AS_FITTED}
    _adopt(estimator, about, tensors)
    with offline(not allow_download):
        found = _backbone(path, stored, backbone, weights, estimator, named)
        estimator.backbone_ = found if isinstance(backbone, str | Path) else found.kept()
        if isinstance(estimator.backbone_.preprocessing, TextPreprocessing):
            texts = dataclasses.replace(estimator.backbone_.preprocessing, download=allow_download)
            estimator.backbone_ = dataclasses.replace(estimator.backbone_, preprocessing=texts)
    linearization = _linearized(path, estimator)
    _check_theta2(path, linearization.theta2, estimator.w2_)
    mean = target_mean(estimator.loss_)
    b = estimator.b_ if mean is None else estimator.b_ - mean
    point = Point(estimator.theta2_ or linearization.theta2, estimator.omega_, estimator.w1_, b, estimator.w2_)
    estimator._model = point.model(linearization, estimator.mode, estimator.parametrization)
    theta2 = {name: value.detach().cpu() for name, value in point.theta2.items()}
    point = dataclasses.replace(point, theta2=theta2)
    restore(estimator, about["fit"] or UNKNOWN, point)
    return estimator


def _adopt(estimator: Any, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Give an estimator all that a file says, which has been checked."""
    X_shape, seed = (about["backbone"]["built_from"][name] for name in ("X_shape", "random_state"))
    estimator._built_from = {"X_shape": None if X_shape is None else tuple(X_shape), "random_state": seed}
    estimator.modules_ = estimator.theta2
    estimator.example_ = _example(about["example"]["shape"], about["example"]["dtype"])
    estimator.loss_ = loss_for(estimator.loss, about["task"])
    if "target_mean" in tensors:
        estimator.loss_ = Squared(mean=tensors["target_mean"].double())
    estimator.omega_, estimator.w1_, estimator.b_ = tensors["omega"], tensors["w1"], tensors["b"]
    names, head = about["theta2_names"], about["merged_head"]
    estimator.w2_ = {name: tensors[f"w2/{name}"] for name in names}
    estimator.theta2_ = {name: tensors[f"theta2/{name}"] for name in names} if about["moved"] else None
    estimator.merged_head_ = head and MergedHead(
        step=float(head["step"]),
        weight=tensors["head/weight"],
        bias=tensors["head/bias"],
        error=None if head["error"] is None else number_from_json(head["error"]),
    )
    estimator.probe_ = probe_from_json(about["probe"], tensors["omega"], tensors["probe_bias"])
    if about["classes"] is not None:
        estimator.classes_ = classes_from_json(about["classes"])
    estimator.how_ = {}
    for name in _OPTIONAL:
        if name in about["fitted"]:
            value = about["fitted"][name]
            setattr(estimator, name, np.array(value, dtype=object) if name == "feature_names_in_" else value)


def _linearized(path: str | Path, estimator: Any) -> Linearization:
    """Linearize the backbone as the file says, and see whether its features are those that the weights are of."""
    try:
        linearization = linearize_backbone(
            estimator.backbone_, estimator.example_, estimator.modules_, estimator.device, estimator.precision
        )
        with torch.no_grad():
            features = linearization(estimator.example_).shape[1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # samples or a θ₂ that are not the network's make it fail in many ways
        raise AdapterError(f"{path} does not fit this backbone: {error}") from error
    if features != len(estimator.omega_):
        raise AdapterError(f"{path} has weights of {len(estimator.omega_)} features; this backbone gives {features}")
    return linearization


def _describe(estimator: Any) -> dict[str, Any]:
    """Return all that is no tensor, as JSON."""
    backbone: Backbone = estimator.backbone_
    head = estimator.merged_head_
    return {
        "format_version": FORMAT_VERSION,
        "gradfeat_version": __version__,
        "torch_version": torch.__version__,
        "task": estimator.loss_.task,
        "loss": estimator.loss_.name,
        # a search for θ₂ is not repeated: the file names what it found
        "settings": {name: _plain(getattr(estimator, name)) for name in _SETTINGS}
        | {name: _plain(value) for name, value in estimator.as_fitted().items()}
        | {"theta2": _plain(estimator.modules_)},
        "classes": _classes_to_json(getattr(estimator, "classes_", None)),
        "fitted": {name: _plain(getattr(estimator, name)) for name in _OPTIONAL if hasattr(estimator, name)},
        "theta2_names": list(estimator.w2_),
        "moved": estimator.theta2_ is not None,
        "merged_head": None if head is None else {"step": head.step, "error": _optional(head.error)},
        "example": {
            "shape": list(estimator.example_.shape),
            "dtype": str(estimator.example_.dtype).removeprefix("torch."),
        },
        "backbone": {
            "name": backbone.name,
            "weights": _weights(estimator.weights),
            "features": backbone.features,
            "fingerprint": backbone.fingerprint,
            "summary": summary(backbone.network),
            "built_from": {name: _plain(value) for name, value in estimator._built_from.items()},
        },
        "preprocessing": None if backbone.preprocessing is None else backbone.preprocessing.to_dict(),
        "probe": probe_to_json(estimator.probe_),
        "fit": record_of(estimator),
    }


def _weights(weights: str | Path | None) -> str | None:
    """Return a weights file in a form that holds in any working directory."""
    return None if weights is None else "random" if weights == "random" else str(Path(weights).expanduser().absolute())


def _stored_name(path: str | Path, name: str | None) -> str:
    if name is None or "/" not in name:
        raise AdapterError(
            f"{path} was made for a backbone given as {'a module' if name is None else f'the callable {name}'}, which "
            "no file holds: pass it, gradfeat.load(path, backbone=...)"
        )
    return name


def _backbone(
    path: str | Path,
    stored: dict[str, Any],
    backbone: Any,
    weights: str | Path | None,
    estimator: Any,
    named: bool,
) -> Backbone:
    """Make the backbone, and refuse another one than the model was made for."""
    try:
        found = resolve(
            backbone,
            weights=weights,
            preprocessing=estimator.preprocessing,
            **estimator._built_from,
        )
    except (BackboneError, ConfigurationError) as error:
        if isinstance(error, ConfigurationError) and not named:
            raise  # of an argument
        raise AdapterError(
            f"{path} was made for the backbone {stored['name'] or backbone!r}, which cannot be had: {error}\n"
            "Say where it is now: gradfeat.load(path, backbone=..., weights=...), or --backbone and --weights"
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if not named:
            raise
        raise AdapterError(f"{path} was made for a backbone that cannot be built: {str(error)[:1000]}") from error
    if found.fingerprint == stored["fingerprint"]:
        return found
    if isinstance(backbone, nn.Module) and fingerprint(backbone, stored["features"]) == stored["fingerprint"]:
        # fitted where f(x) was read elsewhere: by a callable, or by a version that knew fewer kinds of classifiers
        return dataclasses.replace(
            found, network=backbone, features=stored["features"], fingerprint=stored["fingerprint"]
        )
    lines = difference(stored["summary"], summary(found.network)) or [
        f"features: expected {stored['features']!r}, found {found.features!r}"
    ]
    if stored["name"] is not None and callable(backbone) and estimator._built_from["random_state"] is None:
        lines.append("(a callable that draws random weights must be fitted with a random_state, or load its own)")
    raise AdapterError(f"{path} was made for another backbone:\n  " + "\n  ".join(lines))


def _check_theta2(path: str | Path, theta2: dict[str, Tensor], w2: dict[str, Tensor]) -> None:
    here, there = ({name: tuple(value.shape) for name, value in tensors.items()} for tensors in (theta2, w2))
    if list(here.items()) != list(there.items()):
        raise AdapterError(f"{path}: θ₂ is {_shapes(there)} there, and {_shapes(here)} with this backbone")


def _shapes(tensors: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in tensors.items())


def _example(shape: list[int], dtype: str) -> Tensor:
    """Return samples of the right shape and dtype, to capture the network with."""
    generator = torch.Generator().manual_seed(0)
    if DTYPES[dtype].is_floating_point:
        return torch.randn(shape, generator=generator).to(DTYPES[dtype])
    values = torch.randint(0, 2, shape, generator=generator)
    values[..., :1] = 1  # the mask of a text (n, 2, length) has a token at least
    return values.to(DTYPES[dtype])


def _classes_to_json(classes: np.ndarray | None) -> dict[str, Any] | None:
    if classes is None:
        return None
    objects = classes.dtype.kind == "O"
    if classes.dtype.kind not in "biufUO" or (objects and not all(isinstance(value, str) for value in classes)):
        raise ConfigurationError(
            f"classes of dtype {classes.dtype} with such values cannot be saved: use strings or numbers as labels"
        )
    return {"values": classes.tolist(), "dtype": "object" if objects else classes.dtype.str}


def _optional(value: float | None) -> float | str | None:
    return None if value is None else number_to_json(value)


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
