"""A file of a fitted model, as the value that was written, beside the backbone that it was made for.

Nothing in the file is executed, and no other machine is asked for anything unless that is allowed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat.backbones import Backbone, difference, fingerprint, resolve, summary
from gradfeat.data import TextPreprocessing
from gradfeat.errors import AdapterError, BackboneError, ConfigurationError
from gradfeat.estimators.adapter_file import DTYPES, check_outside, classes_from_json, read
from gradfeat.estimators.fit_record import probe_from_json, record_from_json
from gradfeat.estimators.fitted import (
    BuiltFrom,
    Columns,
    Fitted,
    Network,
    Record,
    Settings,
    Targets,
    Weights,
)
from gradfeat.files.bounded import number_from_json
from gradfeat.fit.linearize import check_device
from gradfeat.fit.merge import MergedHead
from gradfeat.linearization import Linearization
from gradfeat.losses import Loss, Squared, loss_for
from gradfeat.model import GradientFeatureModel
from gradfeat.optional import offline


@dataclass(frozen=True)
class Given:
    """What the caller says of a file's backbone.

    Attributes:
        backbone: The network: a module, a name or a callable; None takes the name in the file.
        weights: File of a named backbone's weights; None takes the one that the file names.
        device: Where the model predicts.
        allow_download: Whether weights and tokenizers that are not on this machine may be fetched.
    """

    backbone: Any = None
    weights: str | Path | None = None
    device: str = "auto"
    allow_download: bool = False


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds, beside its backbone.

    Attributes:
        fitted: All that was fitted.
        model: The model with its programs.
        backbone: As an estimator is given it: a module, a name or a callable.
        preprocessing: Of the backbone, as the file has it.
        batch_size: Samples at a time in prediction.
    """

    fitted: Fitted
    model: GradientFeatureModel
    backbone: Any
    preprocessing: dict[str, Any] | None
    batch_size: int


def read_fitted(path: str | Path, given: Given) -> Stored:
    """Return what a file holds, with its network.

    Raises:
        AdapterError: The file is damaged, of a newer format, or made for another backbone (the message says what
            differs), or the backbone that it names is not to be had.
        ConfigurationError: An argument that cannot be meant.
    """
    check_device(given.device)
    about, tensors = read(path)
    if not given.allow_download:
        check_outside(path, about)
    source = _Source.of(path, about["backbone"], about["preprocessing"], given)
    network = _network(path, about, source, given.allow_download)
    settings = Settings(**{field.name: about["settings"][field.name] for field in dataclasses.fields(Settings)})
    targets, weights = _targets(about, tensors), _weights(about, tensors)
    linearization = _linearized(path, network, given.device, settings.precision, len(weights.omega))
    _check_theta2(path, linearization.theta2, dict(weights.w2))
    fitted = Fitted(
        settings=settings,
        network=network,
        targets=targets,
        columns=_columns(about),
        weights=weights,
        record=_record(about, tensors, weights, targets.loss, linearization),
        merged_head=_merged_head(about, tensors),
        class_names=about["fitted"].get("class_names_"),
    )
    batch_size = about["settings"]["batch_size"]
    return Stored(fitted, fitted.model(linearization), source.backbone, source.preprocessing, batch_size)


# ---- the parts of what was fitted -----------------------------------------------------------------------------------


def _targets(about: dict[str, Any], tensors: dict[str, Tensor]) -> Targets:
    loss = loss_for(about["settings"]["loss"], about["task"])
    if "target_mean" in tensors:
        loss = Squared(mean=tensors["target_mean"].double())
    classes = None if about["classes"] is None else classes_from_json(about["classes"])
    return Targets(loss, classes, about["fitted"].get("_one_output", False))


def _columns(about: dict[str, Any]) -> Columns:
    names = about["fitted"].get("feature_names_in_")
    return Columns(about["fitted"].get("n_features_in_"), None if names is None else np.array(names, dtype=object))


def _weights(about: dict[str, Any], tensors: dict[str, Tensor]) -> Weights:
    names = about["theta2_names"]
    return Weights(
        omega=tensors["omega"],
        w1=tensors["w1"],
        b=tensors["b"],
        w2={name: tensors[f"w2/{name}"] for name in names},
        theta2={name: tensors[f"theta2/{name}"] for name in names} if about["moved"] else None,
    )


def _merged_head(about: dict[str, Any], tensors: dict[str, Tensor]) -> MergedHead | None:
    head = about["merged_head"]
    if head is None:
        return None
    error = None if head["error"] is None else number_from_json(head["error"])
    return MergedHead(float(head["step"]), tensors["head/weight"], tensors["head/bias"], error)


def _record(
    about: dict[str, Any], tensors: dict[str, Tensor], weights: Weights, loss: Loss, linearization: Linearization
) -> Record:
    """Return what the fit says of itself; the point where rounds ended is the model's, whose tensors are there once."""
    probe = probe_from_json(about["probe"], tensors.get("probe_omega", tensors["omega"]), tensors["probe_bias"])
    point = weights.point(linearization, loss)
    theta2 = {name: value.detach().cpu() for name, value in point.theta2.items()}
    how = about["fitted"].get("how_", {})
    return record_from_json(about["fit"], probe, how, dataclasses.replace(point, theta2=theta2))


# ---- the network ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Which network is to be made: what the caller says, and else the file.

    Attributes:
        backbone: A module, a name or a callable.
        weights: File of its weights, or None.
        preprocessing: As the file has it.
        by_file: Whether the backbone is the file's own word.
    """

    backbone: Any
    weights: str | Path | None
    preprocessing: dict[str, Any] | None
    by_file: bool

    @staticmethod
    def of(path: str | Path, stored: dict[str, Any], preprocessing: dict[str, Any] | None, given: Given) -> _Source:
        backbone = _stored_name(path, stored["name"]) if given.backbone is None else given.backbone
        weights = given.weights
        if weights is None and isinstance(backbone, str) and backbone == stored["name"]:
            weights = stored["weights"]
        if isinstance(backbone, str | Path) and preprocessing is not None:
            # a named backbone brings its tokenizer, perhaps from another folder than the file names
            preprocessing = {name: value for name, value in preprocessing.items() if name != "tokenizer"}
        return _Source(backbone, weights, preprocessing, given.backbone is None)


def _network(path: str | Path, about: dict[str, Any], source: _Source, allow_download: bool) -> Network:
    """Make the network that the file was made for."""
    stored = about["backbone"]
    X_shape, seed = (stored["built_from"][name] for name in ("X_shape", "random_state"))
    built_from = BuiltFrom(None if X_shape is None else tuple(X_shape), seed)
    with offline(not allow_download):
        backbone = _backbone(path, stored, source, built_from)
        if not isinstance(source.backbone, str | Path):
            backbone = backbone.kept()
        if isinstance(backbone.preprocessing, TextPreprocessing):
            texts = dataclasses.replace(backbone.preprocessing, download=allow_download)
            backbone = dataclasses.replace(backbone, preprocessing=texts)
    example = _example(about["example"]["shape"], about["example"]["dtype"])
    return Network(backbone, about["settings"]["theta2"], example, built_from, source.weights)


def _linearized(path: str | Path, network: Network, device: str, precision: str, features: int) -> Linearization:
    """Build the network's programs, and see whether it has as many features as the weights are of."""
    try:
        linearization = network.linearization(device, precision)
        with torch.no_grad():
            given = linearization(network.example).shape[1]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # samples or a θ₂ that are not the network's make it fail in many ways
        raise AdapterError(f"{path} does not fit this backbone: {error}") from error
    if given != features:
        raise AdapterError(f"{path} has weights of {features} features; this backbone gives {given}")
    return linearization


def _stored_name(path: str | Path, name: str | None) -> str:
    if name is None or "/" not in name:
        raise AdapterError(
            f"{path} was made for a backbone given as {'a module' if name is None else f'the callable {name}'}, which "
            "no file holds: pass it, gradfeat.load(path, backbone=...)"
        )
    return name


def _backbone(path: str | Path, stored: dict[str, Any], source: _Source, built_from: BuiltFrom) -> Backbone:
    """Make the backbone, and refuse another one than the model was made for."""
    backbone = _made(path, stored, source, built_from)
    if backbone.fingerprint == stored["fingerprint"]:
        return backbone
    given = source.backbone
    if isinstance(given, nn.Module) and fingerprint(given, stored["features"]) == stored["fingerprint"]:
        # fitted where f(x) was read elsewhere: by a callable, or by a version that knew fewer kinds of classifiers
        return dataclasses.replace(
            backbone, network=given, features=stored["features"], fingerprint=stored["fingerprint"]
        )
    lines = difference(stored["summary"], summary(backbone.network)) or [
        f"features: expected {stored['features']!r}, found {backbone.features!r}"
    ]
    if stored["name"] is not None and callable(given) and built_from.random_state is None:
        lines.append("(a callable that draws random weights must be fitted with a random_state, or load its own)")
    raise AdapterError(f"{path} was made for another backbone:\n  " + "\n  ".join(lines))


def _made(path: str | Path, stored: dict[str, Any], source: _Source, built_from: BuiltFrom) -> Backbone:
    """Make a backbone, whichever it is."""
    try:
        return resolve(
            source.backbone,
            weights=source.weights,
            preprocessing=source.preprocessing,
            X_shape=built_from.X_shape,
            random_state=built_from.random_state,
        )
    except (BackboneError, ConfigurationError) as error:
        if isinstance(error, ConfigurationError) and not source.by_file:
            raise  # of an argument
        raise AdapterError(
            f"{path} was made for the backbone {stored['name'] or source.backbone!r}, which cannot be had: {error}\n"
            "Say where it is now: gradfeat.load(path, backbone=..., weights=...), or --backbone and --weights"
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if not source.by_file:
            raise
        raise AdapterError(f"{path} was made for a backbone that cannot be built: {str(error)[:1000]}") from error


def _check_theta2(path: str | Path, theta2: dict[str, Tensor], w2: dict[str, Tensor]) -> None:
    given, expected = ({name: tuple(value.shape) for name, value in tensors.items()} for tensors in (theta2, w2))
    if list(given.items()) != list(expected.items()):
        raise AdapterError(f"{path}: θ₂ is {_shapes(expected)} there, and {_shapes(given)} with this backbone")


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
