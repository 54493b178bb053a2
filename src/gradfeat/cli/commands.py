"""What `fit`, `compare`, `predict` and `evaluate` do."""

from __future__ import annotations

import csv
import io
import json as json_module
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.adapter import load
from gradfeat.cli.show import note, table
from gradfeat.comparison import compare, test_metrics
from gradfeat.data import Dataset, load_dataset, load_images
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor


@dataclass(frozen=True)
class Settings:
    """What `fit` and `compare` share."""

    backbone: str
    weights: str | None
    theta2: list[str] | None
    image_size: int | None
    mean: str | None
    std: str | None
    resize: str | None
    epochs: int | None
    batch_size: int
    solver: str
    parametrization: str
    precision: str
    cache: str
    device: str
    seed: int
    json: bool

    def parameters(self) -> dict[str, Any]:
        """Return the estimator's parameters."""
        changes: dict[str, Any] = {}
        for name in ("mean", "std"):
            text = getattr(self, name)
            if text is not None:
                changes[name] = _numbers(name, text)
        if self.resize is not None:
            changes["resize"] = self.resize
        return {
            "weights": self.weights,
            "theta2": self.theta2 or "auto",
            "image_size": self.image_size,
            "preprocessing": changes or None,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "solver": self.solver,
            "parametrization": self.parametrization,
            "precision": self.precision,
            "cache": self.cache,
            "device": self.device,
            "random_state": self.seed,
            "verbose": not self.json,
        }


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--{name} must be numbers separated by commas, not {text!r}") from None
    return values * 3 if len(values) == 1 else values


def read(path: Path, split: str, data_format: str, skip: bool) -> Dataset:
    """Read labelled data."""
    return load_dataset(path, split=split, format=data_format, on_error="skip" if skip else "raise")


def labels(dataset: Dataset) -> np.ndarray:
    """Return labels, with NaN where a multi-label entry is to be ignored (VOC's `difficult`)."""
    if dataset.y is None:
        raise DataError(f"{dataset.name} has no labels")
    if dataset.task == "multilabel" and dataset.ignore is not None:
        return np.where(dataset.ignore, np.nan, dataset.y)
    return dataset.y


def fit_command(data: Path, split: str, data_format: str, skip: bool, settings: Settings, mode: str, out: Path) -> None:
    """Fit one model and save it."""
    dataset = read(data, split, data_format, skip)
    cls = GradientFeatureRegressor if dataset.task == "regression" else GradientFeatureClassifier
    estimator = cls(settings.backbone, mode=mode, **settings.parameters())
    note(settings.json, f"{dataset.describe()}")
    estimator.fit(dataset.X, labels(dataset))
    estimator.class_names_ = [str(name) for name in dataset.classes]
    path = estimator.save(out)
    parameters = sum(p.numel() for p in estimator._fitted_model().trained())
    size = path.stat().st_size
    result = {
        "model": str(path),
        "bytes": size,
        "mode": mode,
        "theta2": list(estimator.w2_),
        "trained_parameters": parameters,
        "probe_penalty": float(estimator.probe_.penalty),
        "seconds": estimator.seconds_,
        "notes": list(estimator.backbone_.notes),
    }
    if settings.json:
        _print_json(result)
        return
    rows = [
        ["model", f"{path} ({size / 1e6:.2f} MB)"],
        ["θ₂", ", ".join(estimator.w2_)],
        ["trained parameters", f"{parameters:,}"],
        ["probe penalty", f"{estimator.probe_.penalty:.3g}"],
        *([f"time: {name}", f"{seconds:.1f} s"] for name, seconds in estimator.seconds_.items()),
        *(["note", text] for text in estimator.backbone_.notes),
    ]
    table(["", mode], rows)


def compare_command(
    data: Path,
    test_data: Path,
    split: str,
    test_split: str,
    data_format: str,
    skip: bool,
    settings: Settings,
    modes: str,
    out: Path | None,
) -> None:
    """Fit the four models, show the table, and keep what was asked for."""
    train, test = read(data, split, data_format, skip), read(test_data, test_split, data_format, skip)
    note(settings.json, f"train: {train.describe()}\ntest:  {test.describe()}")
    result = compare(
        settings.backbone,
        train.X,
        labels(train),
        test.X,
        labels(test),
        modes=[mode.strip() for mode in modes.split(",")],
        task="regression" if train.task == "regression" else "classification",
        **settings.parameters(),
    )
    title = f"{train.name}: {settings.backbone}, θ₂ = {', '.join(settings.theta2 or ['auto'])}"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        result.save_json(out / "comparison.json")
        (out / "comparison.md").write_text(f"{title}\n\n{result}\n")
        result.plot(out / "comparison.png", title=title)
        for mode, estimator in result.estimators.items():
            estimator.class_names_ = [str(name) for name in train.classes]
            estimator.save(out / f"{mode}.safetensors")
    if settings.json:
        _print_json(result.to_dict())
        return
    header, body = result.cells()
    table(header, body, title=title)
    shared = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.shared_seconds.items())
    note(False, f"θ₂: {', '.join(result.theta2)}\nshared by all models: {shared}")
    for text in result.notes:
        note(False, text)
    if out is not None:
        note(False, f"written to {out}: comparison.md, .json, .png, and a model file for each row")


def _load(model: Path, backbone: str | None, weights: str | None, json: bool) -> Any:
    estimator = load(model, backbone=backbone, weights=weights)
    estimator.verbose = not json
    return estimator


def _class_names(estimator: Any) -> list[str]:
    names = getattr(estimator, "class_names_", None)
    return [str(name) for name in (names if names is not None else getattr(estimator, "classes_", ["value"]))]


def predict_command(
    model: Path,
    data: Path,
    out: Path | None,
    split: str,
    data_format: str,
    backbone: str | None,
    weights: str | None,
    skip: bool,
    json: bool,
) -> None:
    """Write a line for each sample: its name, its class, and the probability of each class."""
    estimator = _load(model, backbone, weights, json)
    names, X = _samples(data, split, data_format, skip)
    classes = _class_names(estimator)
    predicted = estimator.predict(X)
    probability = (
        estimator.predict_proba(X)
        if hasattr(estimator, "predict_proba")
        else np.asarray(predicted).reshape(len(names), -1)
    )
    shown = [_label(row, classes, estimator) for row in predicted]
    if json:
        _print_json(
            [
                {"sample": name, "prediction": label, "scores": dict(zip(classes, map(float, row), strict=False))}
                for name, label, row in zip(names, shown, probability, strict=True)
            ]
        )
        return
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["sample", "prediction", *classes])
    for name, label, row in zip(names, shown, probability, strict=True):
        writer.writerow(
            [name, label if isinstance(label, str) else ";".join(label), *(f"{value:.6f}" for value in row)]
        )
    if out is None:
        sys.stdout.write(stream.getvalue())
    else:
        out.write_text(stream.getvalue())
        note(False, f"{len(names)} predictions written to {out}")


def _label(row: Any, classes: list[str], estimator: Any) -> str | list[str]:
    if getattr(estimator, "multilabel_", False):
        return [name for name, on in zip(classes, row, strict=True) if on]
    return str(row)


def _samples(data: Path, split: str, data_format: str, skip: bool) -> tuple[list[str], Any]:
    """Read samples with or without labels; return their names and X."""
    if data_format == "auto" and (data.is_file() and data.suffix.lower() != ".npz"):
        paths = load_images(data)
        return [str(path) for path in paths], paths
    try:
        X = read(data, split, data_format, skip).X
    except DataError:
        if data_format != "auto" or not data.is_dir():
            raise
        X = load_images(data)
    return [str(x) if isinstance(x, (str, Path)) else str(i) for i, x in enumerate(X)], X


def evaluate_command(
    model: Path,
    data: Path,
    split: str,
    data_format: str,
    backbone: str | None,
    weights: str | None,
    skip: bool,
    json: bool,
) -> None:
    """Show the metrics of a saved model."""
    estimator = _load(model, backbone, weights, json)
    dataset = read(data, split, data_format, skip)
    note(json, dataset.describe())
    logits = estimator._logits(dataset.X).double().numpy()
    metrics = test_metrics(estimator, logits, labels(dataset))
    if json:
        _print_json({"model": str(model), "data": dataset.name, "split": split, "n": len(dataset), **metrics})
        return
    table(
        ["metric", "value"],
        [[name, f"{value:.4f}"] for name, value in metrics.items()],
        title=f"{model} on {dataset.name}",
    )


def _print_json(value: Any) -> None:
    sys.stdout.write(json_module.dumps(value, indent=2, ensure_ascii=False) + "\n")
