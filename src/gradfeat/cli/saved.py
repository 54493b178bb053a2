"""What `predict` and `evaluate` do with a saved model."""

from __future__ import annotations

import csv
import dataclasses
import io
import json as json_module
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.adapter import load
from gradfeat.cli.commands import Source, check_part, class_names, labels, read
from gradfeat.cli.outputs import check_file
from gradfeat.cli.show import note, print_json, table
from gradfeat.comparison import PERCENT, TITLES
from gradfeat.data import Dataset, TextPreprocessing, load_images
from gradfeat.data.audio import RATE, SECONDS, load_recordings
from gradfeat.data.audio import SUFFIXES as SOUND
from gradfeat.data.dataset import WHOLE
from gradfeat.data.images import without_unreadable
from gradfeat.data.load import TABLES, existing, is_sound, official
from gradfeat.data.table import SUFFIXES, load_texts
from gradfeat.errors import DataError
from gradfeat.evaluation import metrics_of
from gradfeat.validation import read_truth


def predict_command(
    model: Path,
    data: Path,
    out: Path | None,
    split: str,
    source: Source,
    backbone: str | None,
    weights: str | None,
    json: bool,
    crops: int = 1,
    device: str = "auto",
    allow_download: bool = False,
) -> None:
    """Write a line for each sample: its name, its class, and the probability of each class."""
    check_file(out)
    estimator = _load(model, backbone, weights, json, device, allow_download)
    X, names = _samples(estimator, data, split, source)
    table_of = _values if estimator.loss_.task == "regression" else _probabilities
    header, rows = table_of(estimator, X, crops)
    if json:
        text = json_module.dumps(
            {
                "model": str(model),
                "predictions": [_entry(name, header, row) for name, row in zip(names, rows, strict=True)],
            },
            indent=2,
            ensure_ascii=False,
        )
        text += "\n"
    else:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["sample", *header])
        for name, row in zip(names, rows, strict=True):
            writer.writerow([name, *map(_cell, row)])
        text = stream.getvalue()
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
        note(json, f"{len(names):,} predictions written to {out}")


def evaluate_command(
    model: Path,
    data: Path,
    split: str,
    source: Source,
    backbone: str | None,
    weights: str | None,
    json: bool,
    crops: int = 1,
    device: str = "auto",
    allow_download: bool = False,
) -> None:
    """Show the metrics of a saved model."""
    estimator = _load(model, backbone, weights, json, device, allow_download)
    dataset = read(data, split, _as_fitted(estimator, data.expanduser(), source))
    check_part(data, split, "test", dataset)
    if dataset.split == WHOLE:
        note(json, f"{data} has no parts: all of it is judged; samples that the model was fitted to tell little")
    _check_same_task(model, estimator, dataset)
    note(json, dataset.describe())
    truth = read_truth(labels(dataset), estimator.loss_.task, getattr(estimator, "classes_", None))
    metrics = metrics_of(estimator.loss_, estimator._logits(dataset.X, crops).double().numpy(), truth)
    if json:
        about = {"model": str(model), "data": dataset.name, "split": dataset.split, "n": len(dataset), "crops": crops}
        print_json({**about, **metrics})
        return
    rows = [
        [TITLES[name], f"{100 * value:.2f}" if name in PERCENT else f"{value:.4f}"] for name, value in metrics.items()
    ]
    how = f", the mean over {crops} random crops of each image" if crops > 1 else ""
    table(["metric", "value"], rows, title=f"{model} on {dataset.name}{how}")


def _load(model: Path, backbone: str | None, weights: str | None, json: bool, device: str, allow_download: bool) -> Any:
    estimator = load(model, backbone=backbone, weights=weights, device=device, allow_download=allow_download)
    estimator.verbose = not json
    return estimator


def _samples(estimator: Any, data: Path, split: str, source: Source) -> tuple[Any, list[str]]:
    """Read samples and their names; texts, and images or recordings in a folder, need no labels."""
    data = data.expanduser()
    if isinstance(estimator.backbone_.preprocessing, TextPreprocessing) and source.format in ("auto", *TABLES):
        columns = {"text_column": source.text_column, "encoding": source.encoding}
        texts = load_texts(existing(data), split, source.format, **columns)
        return texts, list(texts)
    part = data / split if (data / split).is_dir() else data
    if _is_sound(part, source):
        found, files = load_recordings(part, seconds=_as_fitted(estimator, part, source).seconds or SECONDS)
        return found, [str(file) for file in files]
    layout = source.format == "auto" and data.exists() and data.suffix.lower() not in (".npz", *SUFFIXES)
    if not layout or official(data) is not None:
        X = read(data, split, source).X
    else:
        dataset = Dataset(list(load_images(part)), None, [], "multiclass", data.resolve().name, split)
        X = without_unreadable(dataset, "skip" if source.skip_unreadable else "raise").X
    return X, [str(i) for i in range(len(X))] if isinstance(X, np.ndarray) else [str(sample) for sample in X]


def _is_sound(data: Path, source: Source) -> bool:
    if data.is_file():
        return data.suffix.lower() in SOUND
    return source.format == "wav" or (source.format == "auto" and data.is_dir() and is_sound(data))


def _as_fitted(estimator: Any, data: Path, source: Source) -> Source:
    """Let recordings have the length that the model was fitted to, unless another one is asked for."""
    if source.seconds is not None or not _is_sound(data, source) or estimator.example_.ndim != 2:
        return source
    return dataclasses.replace(source, seconds=estimator.example_.shape[1] / RATE)


def _probabilities(estimator: Any, X: Any, crops: int) -> tuple[list[str], list[list[Any]]]:
    """Return the head and the rows of the predictions: class (for multi-label the classes), then all probabilities."""
    known = getattr(estimator, "class_names_", None)
    names = [str(name) for name in (estimator.classes_ if known is None else known)]
    probability = estimator.predict_proba(X, crops=crops)
    if estimator.multilabel_:
        chosen: list[Any] = [[name for name, p in zip(names, row, strict=True) if p > 0.5] for row in probability]
    else:
        chosen = [names[index] for index in probability.argmax(1)]
    return ["prediction", *names], [[label, *map(float, row)] for label, row in zip(chosen, probability, strict=True)]


def _values(estimator: Any, X: Any, crops: int) -> tuple[list[str], list[list[Any]]]:
    values = estimator.predict(X, crops=crops)
    if values.ndim == 1:
        return ["prediction"], [[float(value)] for value in values]
    return [f"prediction {i + 1}" for i in range(values.shape[1])], [list(map(float, row)) for row in values]


def _entry(name: str, header: list[str], row: list[Any]) -> dict[str, Any]:
    if header[0] != "prediction":
        return {"sample": name, "prediction": row}
    scores = {"probability": dict(zip(header[1:], row[1:], strict=True))} if len(row) > 1 else {}
    return {"sample": name, "prediction": row[0], **scores}


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else ";".join(value)


def _check_same_task(model: Path, estimator: Any, dataset: Dataset) -> None:
    """Refuse labels of another kind, or with other columns, than the model was fitted to."""
    task = estimator.loss_.task
    if dataset.task != task:
        raise DataError(f"{model} is a {task} model, and {dataset.name} has {dataset.task} labels")
    known = getattr(estimator, "class_names_", None)
    if task == "multilabel" and known is not None and class_names(dataset, estimator.classes_) != known:
        raise DataError(
            f"{dataset.name} has the labels {', '.join(dataset.classes)}; {model} was fitted to {', '.join(known)}"
        )
