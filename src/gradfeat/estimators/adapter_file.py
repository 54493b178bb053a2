"""Reading the file of a fitted model: all that it says is checked, against bounds and itself, before use.

A file may be damaged, or made to do harm. Its checksum finds the first. For the second the description is a tree whose
every value has a type and bounds, the tensors are looked at by their names, types and shapes before one is read, and
what is said twice must be the same. So nothing is built, asked for or waited for by a number from a file alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradfeat.backbones.names import parse_name
from gradfeat.data import Preprocessing, TextPreprocessing
from gradfeat.errors import AdapterError, ConfigurationError
from gradfeat.estimators.fit_record import CHECK as RECORD
from gradfeat.estimators.fit_record import CHECK_PROBE
from gradfeat.estimators.older_files import as_of_this_version
from gradfeat.estimators.parameters import EFFORTS
from gradfeat.files.bounded import (
    IMAGE_FIELDS,
    Check,
    distinct,
    either,
    fields,
    flag,
    listing,
    nullable,
    one_of,
    parse_json,
    real,
    shown,
    table,
    text,
    whole,
)
from gradfeat.files.digests import check_sealed
from gradfeat.fit.linearize import PRECISIONS
from gradfeat.linearization import PARAMETRIZATIONS
from gradfeat.losses import LOSSES, loss_for
from gradfeat.model import MODES

FORMAT_VERSION = 8  # what the older ones had is in `gradfeat.estimators.older_files`
KEY = "gradfeat_model"
"""Name of the description in the metadata; an encoder file, of gradfeat.pretrain, has the key "gradfeat"."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64)
}
"""Of samples, by their names in the file."""

_HEADER = 1 << 24  # bytes: the names of half a million columns
_ENTRIES, _NESTED = 2_000_000, 100_000  # values, and lists and objects, of a description
_SAMPLE = 1 << 27  # values of all samples of the example: three colour images of 3,800 × 3,800
_SIDE = 1 << 31
_LABELS = 1 << 26  # bytes of all class labels
_WEIGHTS = ("F64", "F32", "F16", "BF16")
_BLOCK = 1 << 22  # values whose finiteness is looked at together

_NAME = text(4096)
_COUNT = whole(0, 2**63)
_TEXTS: dict[str, Check] = {
    "tokenizer": text(4096, empty=False),
    "max_length": whole(1, 1 << 17),
    "length": nullable(whole(1, 1 << 17)),
    "lengths": nullable(listing(whole(1, 1 << 17), 1, 16)),
    "limit": nullable(whole(1, 1 << 17)),
}
_CHILD = fields({"class": _NAME, "n_parameters": _COUNT, "layers": _NAME, "weights": _NAME})
_DESCRIPTION = fields(
    {
        "gradfeat_version": text(100),
        "torch_version": text(100),
        "task": one_of("multiclass", "multilabel", "regression"),
        "settings": fields(
            {
                "theta2": either(text(4096, empty=False), listing(text(4096, empty=False), 1, 100_000)),
                "mode": one_of(*MODES),
                "parametrization": one_of("ntk", *PARAMETRIZATIONS),
                "batch_size": whole(1, 2**31 - 1),
                "precision": one_of("auto", *PRECISIONS),
                "loss": one_of("auto", *LOSSES),
                "effort": one_of(*EFFORTS),
                "rounds": either(one_of("auto", None), whole(1, 2**31 - 1)),
                "augment": one_of(None, "mirror"),
            }
        ),
        "classes": nullable(
            fields({"values": listing(lambda value, where: None, 2, 1_000_000), "dtype": text(20, empty=False)})
        ),
        "fitted": fields(
            {},
            {
                "how_": table(text(100_000), 100, 100),
                "class_names_": nullable(listing(text(1_000_000), 1, 1_000_000)),
                "feature_names_in_": listing(text(1_000_000), 1, 1_000_000),
                "n_features_in_": whole(1, _SIDE),
                "_one_output": flag,
            },
        ),
        "theta2_names": listing(text(4096, empty=False), 1, 100_000),
        "moved": flag,
        "merged_head": nullable(fields({"step": real(1e-6, 1), "error": nullable(real(0, finite=False))}, closed=True)),
        "example": fields({"shape": listing(whole(1, _SIDE), 2, 8), "dtype": one_of(*DTYPES)}),
        "backbone": fields(
            {
                "name": nullable(_NAME),
                "weights": nullable(_NAME),
                "features": nullable(_NAME),
                "fingerprint": text(64, empty=False),
                "summary": fields(
                    {"class": _NAME, "n_parameters": _COUNT, "children": table(_CHILD, 4096, 100_000)},
                ),
                "built_from": fields(
                    {
                        "X_shape": nullable(listing(whole(0, _SIDE), 1, 8)),
                        "random_state": nullable(whole(0, 2**64 - 1)),
                    }
                ),
            }
        ),
        "preprocessing": nullable(lambda value, where: _preprocessing(value, where)),
        "probe": CHECK_PROBE,
    }
)


def _preprocessing(value: Any, where: str) -> None:
    known = _TEXTS if isinstance(value, dict) and "tokenizer" in value else IMAGE_FIELDS
    fields({}, known)(value, where)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says about itself, and its tensors, without a backbone.

    All of it is checked: it can be used as it is.

    Raises:
        AdapterError: There is no such file, or it is damaged, no model of gradfeat, or of a newer format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise AdapterError(f"there is no file {path}")
    try:
        _check_header(path)
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise AdapterError(f"{path} is a safetensors file, but not a model that gradfeat saved")
            about = _description(path, metadata[KEY])
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
            _check_tensors(path, about, shapes, {name: part.get_dtype() for name, part in parts.items()})
            _check_agreement(path, about, shapes["omega"][1])
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{path} is no safetensors file, or is damaged or cut off: {error}") from error
    _check_values(path, about, tensors, metadata[KEY])
    return about, tensors


def on_this_machine(name: str | None) -> bool:
    r"""Whether a name or path from a file asks no other machine: it is no address, and no path of a network.

    Example:
        >>> [on_this_machine(name) for name in ("timm/resnet18", "/data/w.pth", "https://host/w", r"\\host\share\w")]
        [True, True, False, False]
    """
    if name is None:
        return True
    path = name.partition("/")[2] if name.startswith(("gradfeat/", "hf/", "sentence-transformers/")) else name
    return "://" not in name and not PureWindowsPath(path).drive.startswith(("\\\\", "//"))


# ---- the description ------------------------------------------------------------------------------------------------


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if _HEADER < length <= path.stat().st_size:
        raise AdapterError(
            f"{path} is damaged, or no model of gradfeat: its description would have {length:,} bytes, and "
            f"{_HEADER:,} are enough for any"
        )


def _description(path: Path, content: str) -> dict[str, Any]:
    """Return the description, of the form of this version."""
    try:
        if content.count(",") > _ENTRIES or content.count("[") + content.count("{") > _NESTED:
            raise ValueError("it has more entries than any fit writes")
        about: dict[str, Any] = parse_json(content)
        version = about["format_version"]
        whole(1, 2**31)(version, "format_version")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if version > FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format {version}, written by gradfeat {shown(about.get('gradfeat_version'))}; this version "
            f"reads up to {FORMAT_VERSION}: upgrade gradfeat"
        )
    try:
        if version < FORMAT_VERSION:
            as_of_this_version(about, version)
        if version >= 3:
            parse_json(content, finite=True)
        _DESCRIPTION(about, "")
        nullable(RECORD)(about["fit"], "fit")
        for where, name in _outside_names(about).items():
            if any(ord(character) < 32 for character in name or ""):
                raise ValueError(f"{where}: expected a name without control characters, found {shown(name)}")
        distinct(about["theta2_names"], "theta2_names")
        if about["preprocessing"] is not None:
            kind = TextPreprocessing if "tokenizer" in about["preprocessing"] else Preprocessing
            kind.from_dict(about["preprocessing"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    return about


def _outside_names(about: dict[str, Any]) -> dict[str, str | None]:
    """Return what a file names outside of itself."""
    stored = about["backbone"]
    tokenizer = (about["preprocessing"] or {}).get("tokenizer")
    return {"backbone.name": stored["name"], "backbone.weights": stored["weights"], "tokenizer": tokenizer}


def check_outside(path: str | Path, about: dict[str, Any]) -> None:
    """Refuse a file that names another machine, or a network of absurd options.

    Raises:
        AdapterError: It does.
    """
    for where, name in _outside_names(about).items():
        if not on_this_machine(name):
            raise AdapterError(
                f"{path} names {shown(name)} as its {where}, which is on another machine: give backbone=... and "
                "weights=... yourself, or allow_download=True (on the command line: --allow-download)"
            )
    name = about["backbone"]["name"]
    if name is None or "/" not in name:
        return
    try:
        options = parse_name(name).options
    except ConfigurationError as error:
        raise AdapterError(f"{path} was made for a backbone that cannot be had: {error}") from error
    for option, value in options.items():
        if isinstance(value, int | float) and abs(value) > 1 << 14:
            raise AdapterError(f"{path} names the backbone {shown(name)}, whose option {option} is no network's")


# ---- the tensors, and what is said twice ----------------------------------------------------------------------------


def _check_tensors(
    path: Path, about: dict[str, Any], shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]
) -> None:
    """Refuse tensors that are missing, unknown, no numbers, or of shapes that do not fit each other."""
    names = {"omega", "w1", "b", "probe_bias", *(f"w2/{name}" for name in about["theta2_names"])}
    if about["moved"]:
        names |= {f"theta2/{name}" for name in about["theta2_names"]}
    if about["merged_head"] is not None:
        names |= {"head/weight", "head/bias"}
    # a probe's own ω where the model has another one, and the mean of a regression's targets
    optional = ("probe_omega", *(("target_mean",) if about["task"] == "regression" else ()))
    names |= {name for name in optional if name in shapes}
    if names != set(shapes):
        raise AdapterError(f"{path}: tensors are missing or unknown: {_listed(sorted(names ^ set(shapes)))}")
    strange = [f"{name} {dtype}" for name, dtype in dtypes.items() if dtype not in _WEIGHTS]
    if strange:
        raise AdapterError(f"{path}: weights are floating-point numbers, and these are none: {_listed(strange)}")
    shape = shapes["omega"]
    outputs = shape[-1:]
    expected: dict[str, tuple[int, ...]] = {
        name: shape for name in ("w1", "head/weight", "probe_omega") if name in names
    }
    expected |= {name: outputs for name in ("b", "probe_bias", "head/bias", "target_mean") if name in names}
    if len(shape) != 2 or 0 in shape or any(shapes[name] != size for name, size in expected.items()):
        said = ", ".join(f"{name} {shapes[name]}" for name in ("omega", *expected))
        raise AdapterError(f"{path}: the tensors' shapes do not fit each other: {said}")
    empty = [name for name, size in shapes.items() if 0 in size]
    moved = [
        name for name in about["theta2_names"] if about["moved"] and shapes[f"theta2/{name}"] != shapes[f"w2/{name}"]
    ]
    if empty or moved:
        raise AdapterError(f"{path}: the tensors' shapes do not fit each other: {_listed(empty or moved)}")


def _check_agreement(path: Path, about: dict[str, Any], outputs: int) -> None:
    """Refuse a description that contradicts itself, or the number of outputs."""
    try:
        for what, good in _agreements(about, outputs).items():
            if not good:
                raise ValueError(what)
        loss = loss_for(about["settings"]["loss"], about["task"])
        if about["fit"] is not None and about["loss"] != loss.name:
            raise ValueError(f"a model of the loss {shown(about['loss'])} is no {about['task']} model")
        if about["classes"] is not None:
            classes = classes_from_json(about["classes"])
            if about["task"] == "multilabel" and classes.tolist() != list(range(outputs)):
                raise ValueError("the classes of a multi-label model are its columns' numbers")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(path, str(error)) from error


def _agreements(about: dict[str, Any], outputs: int) -> dict[str, bool]:
    """Return what must be so, by what is wrong where it is not."""
    task, mode, fitted = about["task"], about["settings"]["mode"], about["fitted"]
    classes, names, columns = about["classes"], fitted.get("class_names_"), fitted.get("feature_names_in_")
    fit: dict[str, Any] = about["fit"] or {}
    choice = fit.get("choice_")
    shape = about["example"]["shape"]
    return {
        f"a {task} model has {'no classes' if task == 'regression' else 'classes'}": (
            (classes is None) == (task == "regression")
        ),
        f"there are {outputs} outputs, and another number of classes": (
            classes is None or len(classes["values"]) == outputs
        ),
        "class_names_ has not one name for each class": names is None
        or (task != "regression" and len(names) == outputs),
        "feature_names_in_ has not one name for each column": (
            columns is None or len(columns) == fitted.get("n_features_in_")
        ),
        "a regression model says whether y was a vector, which has one output": (
            task != "regression" or ("_one_output" in fitted and (not fitted["_one_output"] or outputs == 1))
        ),
        f"mode {mode!r} has no θ̄₂ that has moved": not about["moved"] or mode == "full",
        f"the penalties are of mode {choice and choice['mode']!r}": choice is None or choice["mode"] == mode,
        f"mode {mode!r} chooses no learning rate": fit.get("selection_") is None or mode == "finetune",
        f"samples of {shape} are too large": math.prod(shape) <= _SAMPLE and shape[0] <= 64,
        f"samples of {shape} fit neither the preprocessing nor X": _fits(
            shape[1:], about["backbone"]["built_from"]["X_shape"], about["preprocessing"]
        ),
    }


def _fits(sample: list[int], X_shape: list[int] | None, preprocessing: dict[str, Any] | None) -> bool:
    """Whether samples of a shape can have come from X, as it was or through the preprocessing."""
    if preprocessing is not None and "tokenizer" in preprocessing:
        return preprocessing.get("length") is None or sample == [2, preprocessing["length"]]
    possible = [] if X_shape is None else [X_shape[1:], [*X_shape[3:], *X_shape[1:3]]]  # images have their colours last
    if preprocessing is not None:
        possible.append([preprocessing.get("channels", 3), *preprocessing["size"]])
    return not possible or sample in possible


def _check_values(path: Path, about: dict[str, Any], tensors: dict[str, Tensor], content: str) -> None:
    """Refuse tensors that are not finite, or another description or others than were written together."""
    for name, value in tensors.items():
        if not is_finite(value):
            raise AdapterError(f"{path}: values that are not finite in {shown(name)}: the file is damaged")
    try:
        if not check_sealed(content, tensors) and about["format_version"] >= 3:
            raise ValueError("it has no checksum")
    except ValueError as error:
        raise AdapterError(f"{path} is damaged: {error}. Copy it again, or fit again") from error
    mode, w2 = about["settings"]["mode"], [value for name, value in tensors.items() if name.startswith("w2/")]
    if mode == "activation" and any(bool(value.any()) for value in w2):
        raise _damaged(path, "mode 'activation' has no w₂")
    if mode == "gradient" and about["fit"] is not None and not torch.equal(tensors["w1"], tensors["omega"]):
        raise _damaged(path, "mode 'gradient' has no w₁ besides ω̄")


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite; looked at in parts, so that a check needs no copy."""
    flat = value.detach().reshape(-1)
    return all(bool(torch.isfinite(flat[i : i + _BLOCK]).all()) for i in range(0, len(flat), _BLOCK))


def classes_from_json(classes: dict[str, Any]) -> np.ndarray:
    """Return the classes that a file describes, each of them once.

    Raises:
        ValueError: They are of another type than they say, too large, or not distinct.
    """
    values, name = classes["values"], classes["dtype"]
    if name != "object" and not re.fullmatch(r"[<>|=]?([bifu](1|2|4|8|16)|U[0-9]{1,9})", name):
        raise ValueError(f"classes of dtype {shown(name)}")
    dtype = np.dtype(object if name == "object" else name)
    kinds: dict[str, type | tuple[type, ...]] = {"b": bool, "i": int, "u": int, "f": (int, float), "U": str, "O": str}
    kind = kinds[dtype.kind]
    if dtype.itemsize * len(values) > _LABELS:
        raise ValueError(f"{len(values)} classes of dtype {name} are too large")
    if not all(isinstance(value, kind) and (dtype.kind == "b" or not isinstance(value, bool)) for value in values):
        raise ValueError(f"classes of dtype {name}, and values of another type")
    labels = np.array(values, dtype=dtype)
    same = dtype.kind == "f" or labels.tolist() == values  # a string may be cut, a number wrapped
    if not same or (dtype.kind == "f" and not np.isfinite(labels).all()):
        raise ValueError(f"classes that dtype {name} does not hold")
    distinct(labels.tolist(), "classes")
    return labels


def _damaged(path: str | Path, why: str) -> AdapterError:
    return AdapterError(f"{path}: its description is damaged: {why}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name if len(name) <= 200 else shown(name) for name in names[:10]) + (
        f" and {len(names) - 10} more" if len(names) > 10 else ""
    )
