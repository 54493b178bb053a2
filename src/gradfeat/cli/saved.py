"""What `predict` and `evaluate` do with a saved model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.given import Given
from gradfeat.cli.idle import idle_for_data, kind_for, refuse
from gradfeat.cli.outputs import check_file, written
from gradfeat.cli.reading import check_part, class_names, labels, read
from gradfeat.cli.requests import Audit, Evaluate, Explain, Forget, Predict, SavedModel, Source, Suggest
from gradfeat.cli.rules import TEXTS
from gradfeat.cli.show import note, print_data, print_json, table
from gradfeat.cli.show_report import show_report
from gradfeat.cli.unlabelled import as_fitted, is_recordings, samples_of
from gradfeat.comparison.report_charts import report_chart
from gradfeat.comparison.side_by_side import PERCENT, TITLES
from gradfeat.data import Dataset
from gradfeat.data.dataset import WHOLE
from gradfeat.data.load import TABLES
from gradfeat.data.table import is_table
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.adapter import load
from gradfeat.estimators.reading import read_truth
from gradfeat.files.csv_text import csv_text
from gradfeat.files.writing import is_stream, write_text
from gradfeat.metrics.evaluation import metrics_of
from gradfeat.metrics.report import report_of


def predict_command(request: Predict) -> None:
    """Write a line for each sample: its name, its class, and the probability of each class."""
    out = request.out
    check_file(out, request.saved.model, request.data)
    estimator = load_saved(request.saved, request.json)
    refuse_idle(request.given, estimator, request.data.expanduser(), request.source, None)
    X, names = samples_of(estimator, request)
    regression = estimator.loss_.task == "regression"
    header, rows = (_values if regression else _probabilities)(estimator, X, request.crops)
    if request.json:
        entries = [_entry(name, header, row) for name, row in zip(names, rows, strict=True)]
        result = {"model": str(request.saved.model), "predictions": entries}
        if out is None:
            print_json(result)
            return
        text = json_module.dumps(result, indent=2, ensure_ascii=False) + "\n"
    else:
        cells = [
            [name, *(_cell(value, exact=regression) for value in row)] for name, row in zip(names, rows, strict=True)
        ]
        text = csv_text([["sample", *header], *cells])
        if out is None:
            print_data(text)
            return
    written(out, lambda path: write_text(path, text))
    note(request.json or is_stream(out), f"{len(names):,} predictions written to {out}")


def evaluate_command(request: Evaluate) -> None:
    """Show the metrics of a saved model, class by class, and draw what it confuses."""
    model, picture = request.saved.model, request.picture
    check_file(picture)
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigurationError(f"--picture is a PNG: name a file that ends in .png, not {picture.name}")
    estimator = load_saved(request.saved, request.json)
    dataset = _labelled(estimator, request)
    truth = read_truth(labels(dataset), estimator.loss_.task, getattr(estimator, "classes_", None))
    logits = estimator.logits(dataset.X, request.crops).double().numpy()
    report = report_of(estimator.loss_, logits, truth, names_of_classes(estimator))
    metrics = {**metrics_of(estimator.loss_, logits, truth), **report.metrics()}
    if picture is not None:
        report_chart(picture, report, f"{model.name} on {dataset.name} ({dataset.split}), {len(dataset):,} samples")
    if request.json:
        about = {"model": str(model), "data": dataset.name, "split": dataset.split, "n": len(dataset)}
        drawn = {} if picture is None else {"picture": str(picture)}
        print_json({**about, "crops": request.crops, **metrics, **report.to_dict(), **drawn})
        return
    rows = [
        [TITLES[name], f"{100 * value:.2f}" if name in PERCENT else f"{value:.4f}"] for name, value in metrics.items()
    ]
    how = f", the mean over {request.crops} random crops of each image" if request.crops > 1 else ""
    table(["metric", "value"], rows, title=f"{model} on {dataset.name}{how}")
    show_report(report)
    if picture is not None:
        note(False, f"drawn: {picture}")


def _labelled(estimator: Any, request: Evaluate) -> Dataset:
    """Return the data to judge a model on: of the kind that it was fitted to."""
    data = request.data.expanduser()
    refuse_idle(request.given, estimator, data, request.source, estimator.loss_.task)
    dataset = read(request.data, request.split, as_fitted(estimator, data, request.source), fitted_to(estimator))
    check_part(request.data, request.split, "test", dataset)
    if dataset.split == WHOLE:
        note(
            request.json,
            f"{request.data} has no parts: all of it is judged; samples that the model was fitted to tell little",
        )
    check_same_task(request.saved.model, estimator, dataset)
    note(request.json, dataset.describe())
    return dataset


def training_data(estimator: Any, request: Audit | Explain | Forget | Suggest, given: Path) -> Dataset:
    """Return the data that a model was fitted to, and give it them back.

    Args:
        estimator: The model.
        request: Whose part of the data it is.
        given: Where they are.

    Raises:
        DataError: The model was fitted to others.
    """
    data = given.expanduser()
    refuse_idle(request.given, estimator, data, request.source, estimator.loss_.task)
    dataset = read(given, request.split, as_fitted(estimator, data, request.source), fitted_to(estimator))
    check_part(given, request.split, "train", dataset)
    check_same_task(request.saved.model, estimator, dataset)
    note(request.json or isinstance(request, Suggest), dataset.describe())  # whose output is for programs
    estimator.recall(dataset.X, labels(dataset))
    return dataset


def fitted_to(estimator: Any) -> Dataset:
    """Return data without samples, whose labels are those of an estimator's training data."""
    task, classes = estimator.loss_.task, getattr(estimator, "classes_", np.empty(0))
    known = getattr(estimator, "class_names_", None)
    names = [str(name) for name in (classes if known is None else known)]
    y = np.empty((0, len(names)), dtype=np.int64) if task == "multilabel" else classes[:0]
    return Dataset([], y, names, task, "training data", WHOLE)


def load_saved(saved: SavedModel, json: bool) -> Any:
    """Return the estimator of a file, which says how far it is unless the output is JSON."""
    estimator = load(
        saved.model,
        backbone=saved.backbone,
        weights=saved.weights,
        device=saved.device,
        allow_download=saved.allow_download,
    )
    estimator.verbose = not json
    return estimator


def _probabilities(estimator: Any, X: Any, crops: int) -> tuple[list[str], list[list[Any]]]:
    """Return the head and the rows of the predictions: class (for multi-label the classes), then all probabilities."""
    names = names_of_classes(estimator)
    probability = estimator.predict_proba(X, crops=crops)
    if estimator.multilabel_:
        chosen: list[Any] = [[name for name, p in zip(names, row, strict=True) if p > 0.5] for row in probability]
    else:
        chosen = [names[index] for index in probability.argmax(1)]
    return ["prediction", *names], [[label, *map(float, row)] for label, row in zip(chosen, probability, strict=True)]


def names_of_classes(estimator: Any) -> list[str]:
    """Return the names of a model's classes or labels, or these themselves; of a regression none."""
    known = getattr(estimator, "class_names_", None)
    return [str(name) for name in (getattr(estimator, "classes_", []) if known is None else known)]


def refuse_idle(given: Given, estimator: Any, data: Path, source: Source, task: str | None) -> None:
    """Refuse options that do nothing for the samples that a model takes."""
    preprocessing = estimator.backbone_.preprocessing
    kind = kind_for(preprocessing, is_recordings(data, source) if data.exists() else False)
    table = source.data_format in TABLES or is_table(data)
    refuse(given, idle_for_data(given, kind, task, table=kind == TEXTS or table))


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


def _cell(value: Any, exact: bool = False) -> str:
    """Return a cell: six digits say all of a probability; a target may need all that it has."""
    if isinstance(value, float):
        return repr(value) if exact else f"{value:.6g}"
    return value if isinstance(value, str) else ";".join(value)


def check_same_task(model: Path, estimator: Any, dataset: Dataset) -> None:
    """Refuse labels of another kind, or with other columns, than the model was fitted to."""
    task = estimator.loss_.task
    if dataset.task != task:
        raise DataError(f"{model} is a {task} model, and {dataset.name} has {dataset.task} labels")
    known = getattr(estimator, "class_names_", None)
    if task == "multilabel" and known is not None and class_names(dataset, estimator.classes_) != known:
        raise DataError(
            f"{dataset.name} has the labels {', '.join(dataset.classes)}; {model} was fitted to {', '.join(known)}"
        )
