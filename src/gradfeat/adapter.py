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
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gradfeat._version import __version__
from gradfeat.backbones import Backbone, difference, fingerprint, resolve, summary
from gradfeat.contexts import plain
from gradfeat.errors import AdapterError, BackboneError, ConfigurationError, GradfeatError
from gradfeat.files import write_whole
from gradfeat.losses import Squared, loss_for, target_mean
from gradfeat.merge import MergedHead
from gradfeat.solvers.probe import Probe
from gradfeat.tensor_file import tensor_file

if TYPE_CHECKING:
    from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor

FORMAT_VERSION = 3  # 2 had no mean of a regression's targets, 1 no head of the merged network
_KEY = "gradfeat_model"  # an encoder file, of gradfeat.pretrain, has the key "gradfeat"
_SETTINGS = ("theta2", "mode", "parametrization", "batch_size", "precision", "loss", "rounds", "augment")
_OPTIONAL = ("how_", "class_names_", "feature_names_in_", "n_features_in_", "_one_output")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64)
}
_DESCRIPTION: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "settings": dict,
    "classes": (dict, type(None)),
    "fitted": dict,
    "theta2_names": list,
    "moved": bool,
    "example": dict,
    "backbone": dict,
    "preprocessing": (dict, type(None)),
    "probe": dict,
    "merged_head": (dict, type(None)),
}


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
    about = json.dumps(_describe(estimator))
    try:
        return write_whole(path, tensor_file(tensors, {_KEY: about}))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


@plain()
def load(
    path: str | Path, backbone: Any = None, *, weights: str | Path | None = None, device: str = "auto"
) -> GradientFeatureClassifier | GradientFeatureRegressor:
    """Read a saved model, which predicts as the one that was saved.

    What a new `fit` would need beside what the model is (solver, penalty, metric, cv, epochs, clip_norm, class_weight,
    random_state) is not in the file, and at its default.

    Args:
        path: File that `save` wrote.
        backbone: The network it was made for: a module, a name or a callable; None takes the name in the file.
        weights: File of the backbone's weights, for a name; None takes the one that the file names.
        device: Where it predicts: "auto", "cpu", "cuda", ...

    Returns:
        The fitted estimator.

    Raises:
        AdapterError: The file is damaged, of a newer format, or made for another backbone (the message says what
            differs), or the backbone that it names is not to be had.
    """
    from gradfeat.base import AS_FITTED
    from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor
    from gradfeat.fitting import linearize_backbone, model_from_weights

    about, tensors = read(path)
    try:
        cls = GradientFeatureRegressor if about["task"] == "regression" else GradientFeatureClassifier
        settings = {name: about["settings"][name] for name in _SETTINGS}
        stored, shape = about["backbone"], tuple(about["example"]["shape"])
        if backbone is None:
            backbone = _stored_name(path, stored["name"])
        if weights is None and isinstance(backbone, str) and backbone == stored["name"]:
            weights = stored["weights"]
        preprocessing = about["preprocessing"]
        if isinstance(backbone, str | Path) and preprocessing is not None:
            # a named backbone brings its tokenizer, perhaps from another folder than the file names
            preprocessing = {name: value for name, value in preprocessing.items() if name != "tokenizer"}
        estimator: Any = cls(backbone, weights=weights, preprocessing=preprocessing, device=device, **settings)
        X_shape, seed = (stored["built_from"][name] for name in ("X_shape", "random_state"))
        estimator._built_from = {"X_shape": None if X_shape is None else tuple(X_shape), "random_state": seed}
        found = _backbone(path, stored, backbone, weights, estimator)
        estimator.backbone_ = found if isinstance(backbone, str | Path) else found.kept()
        estimator._given = {name: settings[name] for name in AS_FITTED}
        estimator.example_ = _example(shape, about["example"]["dtype"])
        estimator.loss_ = loss_for(estimator.loss, about["task"])
        if "target_mean" in tensors:
            estimator.loss_ = Squared(mean=tensors["target_mean"].double())
        estimator.omega_, estimator.w1_, estimator.b_ = tensors["omega"], tensors["w1"], tensors["b"]
        estimator.w2_ = {name: tensors[f"w2/{name}"] for name in about["theta2_names"]}
        moved = about["moved"]
        estimator.theta2_ = {name: tensors[f"theta2/{name}"] for name in about["theta2_names"]} if moved else None
        head = about.get("merged_head")
        estimator.merged_head_ = (
            None if head is None else MergedHead(weight=tensors["head/weight"], bias=tensors["head/bias"], **head)
        )
        estimator.probe_ = Probe(omega=tensors["omega"], bias=tensors["probe_bias"], **about["probe"])
        if about["classes"] is not None:
            estimator.classes_ = _classes_from_json(about["classes"])
        for name in _OPTIONAL:
            if name in about["fitted"]:
                value = about["fitted"][name]
                setattr(estimator, name, np.array(value, dtype=object) if name == "feature_names_in_" else value)
    except GradfeatError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{path}: its description is damaged ({type(error).__name__}: {error})") from error
    estimator.modules_, precision = estimator.theta2, estimator.precision
    linearization = linearize_backbone(
        estimator.backbone_, estimator.example_, estimator.modules_, device, precision=precision
    )
    _check_theta2(path, linearization.theta2, estimator.w2_)
    mean = target_mean(estimator.loss_)
    estimator._model = model_from_weights(
        linearization,
        estimator.mode,
        estimator.parametrization,
        estimator.omega_,
        estimator.w1_,
        estimator.b_ if mean is None else estimator.b_ - mean,
        estimator.w2_,
        estimator.theta2_,
    )
    return estimator


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says about itself, and its tensors, without a backbone.

    Raises:
        AdapterError: There is no such file, or it is damaged, no model of gradfeat, or of a newer format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise AdapterError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is no safetensors file, or is damaged or cut off: {error}") from error
    if _KEY not in metadata:
        raise AdapterError(f"{path} is a safetensors file, but not a model that gradfeat saved")
    try:
        about = json.loads(metadata[_KEY])
        version = int(about["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: its description is damaged ({type(error).__name__}: {error})") from error
    if version > FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format {version}, written by gradfeat {about.get('gradfeat_version')}; this version reads up "
            f"to {FORMAT_VERSION}: upgrade gradfeat"
        )
    if version < 2:
        about.setdefault("merged_head", None)
    wrong = [name for name, kind in _DESCRIPTION.items() if not isinstance(about.get(name, ...), kind)]
    if wrong:
        raise AdapterError(f"{path}: its description is damaged: {', '.join(wrong)} missing or of another type")
    _check_tensors(path, about, tensors)
    return about, tensors


def _describe(estimator: Any) -> dict[str, Any]:
    """Return all that is no tensor, as JSON."""
    backbone: Backbone = estimator.backbone_
    head = estimator.merged_head_
    probe = {field.name: getattr(estimator.probe_, field.name) for field in dataclasses.fields(Probe)}
    return {
        "format_version": FORMAT_VERSION,
        "gradfeat_version": __version__,
        "torch_version": torch.__version__,
        "task": estimator.loss_.task,
        # a search for θ₂ is not repeated: the file names what it found
        "settings": {name: _plain(getattr(estimator, name)) for name in _SETTINGS}
        | {name: _plain(value) for name, value in estimator.as_fitted().items()}
        | {"theta2": _plain(estimator.modules_)},
        "classes": _classes_to_json(getattr(estimator, "classes_", None)),
        "fitted": {name: _plain(getattr(estimator, name)) for name in _OPTIONAL if hasattr(estimator, name)},
        "theta2_names": list(estimator.w2_),
        "moved": estimator.theta2_ is not None,
        "merged_head": None if head is None else {"step": head.step, "error": head.error},
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
        "probe": {name: _plain(value) for name, value in probe.items() if not isinstance(value, Tensor)},
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
) -> Backbone:
    """Make the backbone, and refuse another one than the model was made for."""
    try:
        found = resolve(
            backbone,
            weights=weights,
            preprocessing=estimator.preprocessing,
            **estimator._built_from,
        )
    except BackboneError as error:
        raise AdapterError(
            f"{path} was made for the backbone {stored['name'] or backbone!r}, which cannot be had: {error}\n"
            "Say where it is now: gradfeat.load(path, backbone=..., weights=...), or --backbone and --weights"
        ) from error
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


def _check_tensors(path: Path, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are missing, unknown, or of shapes that do not fit each other."""
    names = {"omega", "w1", "b", "probe_bias", *(f"w2/{name}" for name in about["theta2_names"])}
    if about["moved"]:
        names |= {f"theta2/{name}" for name in about["theta2_names"]}
    merged = about.get("merged_head") is not None
    if merged:
        names |= {"head/weight", "head/bias"}
    centred = about["task"] == "regression" and "target_mean" in tensors
    if centred:
        names |= {"target_mean"}
    if names != set(tensors):
        raise AdapterError(f"{path}: tensors are missing or unknown: {', '.join(sorted(names ^ set(tensors)))}")
    shape = tuple(tensors["omega"].shape)
    outputs = shape[-1:]
    expected = {"w1": shape, "b": outputs, "probe_bias": outputs}
    if merged:
        expected |= {"head/weight": shape, "head/bias": outputs}
    if centred:
        expected |= {"target_mean": outputs}
    if len(shape) != 2 or any(tensors[name].shape != own for name, own in expected.items()):
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in ("omega", *expected))
        raise AdapterError(f"{path}: the tensors' shapes do not fit each other: {shapes}")


def _check_theta2(path: str | Path, theta2: dict[str, Tensor], w2: dict[str, Tensor]) -> None:
    here, there = ({name: tuple(value.shape) for name, value in tensors.items()} for tensors in (theta2, w2))
    if list(here.items()) != list(there.items()):
        raise AdapterError(f"{path}: θ₂ is {_shapes(there)} there, and {_shapes(here)} with this backbone")


def _shapes(tensors: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in tensors.items())


def _example(shape: tuple[int, ...], dtype: str) -> Tensor:
    """Return samples of the right shape and dtype, to capture the network with."""
    if dtype not in _DTYPES:
        raise AdapterError(f"the samples' dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    generator = torch.Generator().manual_seed(0)
    if _DTYPES[dtype].is_floating_point:
        return torch.randn(shape, generator=generator).to(_DTYPES[dtype])
    values = torch.randint(0, 2, shape, generator=generator)
    values[..., :1] = 1  # the mask of a text (n, 2, length) has a token at least
    return values.to(_DTYPES[dtype])


def _classes_to_json(classes: np.ndarray | None) -> dict[str, Any] | None:
    if classes is None:
        return None
    objects = classes.dtype.kind == "O"
    if classes.dtype.kind not in "biufUO" or (objects and not all(isinstance(value, str) for value in classes)):
        raise ConfigurationError(
            f"classes of dtype {classes.dtype} with such values cannot be saved: use strings or numbers as labels"
        )
    return {"values": classes.tolist(), "dtype": "object" if objects else classes.dtype.str}


def _classes_from_json(classes: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(object if classes["dtype"] == "object" else classes["dtype"])
    if dtype.kind not in "biufUO":
        raise ValueError(f"classes of dtype {dtype}")
    return np.array(classes["values"], dtype=dtype)


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
