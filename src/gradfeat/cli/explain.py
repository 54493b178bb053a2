"""What `explain` and `suggest` do: which training samples speak for a prediction; which samples to label next."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.given import Given
from gradfeat.cli.outputs import check_file, written
from gradfeat.cli.reading import labels
from gradfeat.cli.requests import Explain, Predict, Suggest
from gradfeat.cli.saved import load_saved, names_of_classes, training_data
from gradfeat.cli.show import note, print_data, print_json, table
from gradfeat.cli.unlabelled import samples_of
from gradfeat.comparison.sheet import bar, grid, is_texts, page, safe, shown
from gradfeat.data import Dataset
from gradfeat.errors import ConfigurationError
from gradfeat.files.csv_text import csv_text
from gradfeat.files.writing import is_stream, write_text

_CELL = 48  # characters of a name in a table; a text may be long
_SHEET = 200  # queries that a sheet shows

_STYLE = """
.query { max-width: 24rem; } h3 { font-size: .95rem; margin: 1rem 0 -.6rem; } section h2 { margin-top: .6rem; }
"""


@dataclass(frozen=True)
class Speaker:
    """A training sample that speaks for a prediction, or against it.

    Attributes:
        index: Among the training samples.
        name: Its file or text, or its index.
        label: As the data have it.
        effect: What it adds to the log-probability of the prediction, in nats; of a regression to the value.
    """

    index: int
    name: str
    label: str
    effect: float

    def to_dict(self, unit: str) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"index": self.index, "name": self.name, "label": self.label, unit: self.effect}


@dataclass(frozen=True)
class Explained:
    """A prediction, and who speaks for it and against it, the strongest first."""

    index: int
    name: str
    prediction: str
    p: float | None
    for_it: Sequence[Speaker]
    against: Sequence[Speaker]

    def to_dict(self, unit: str) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "sample": self.name,
            "prediction": self.prediction,
            **({} if self.p is None else {"probability": self.p}),
            "for": [one.to_dict(unit) for one in self.for_it],
            "against": [one.to_dict(unit) for one in self.against],
        }


def explain_command(request: Explain) -> None:
    """Show the training samples that speak most for and against each prediction."""
    check_file(request.html, request.saved.model, request.queries, request.data)
    estimator = load_saved(request.saved, request.json)
    dataset = _recalled(estimator, request)
    if request.most > len(dataset):
        raise ConfigurationError(f"-k is {request.most}, and there are {len(dataset)} training samples")
    X, names = samples_of(estimator, _unlabelled(request, request.queries))
    found = explained(estimator, X, names, dataset, request.most)
    unit = _unit(estimator)
    if request.html is not None:
        text = sheet(f"{request.saved.model.name}: what speaks for each prediction", found, X, dataset.X, unit)
        written(request.html, lambda path: write_text(path, text))
    if request.json:
        about = {"model": str(request.saved.model), "data": dataset.name, "unit": unit}
        print_json({**about, "explained": [one.to_dict(unit) for one in found]})
        return
    for one in found:
        p = "" if one.p is None else f" ({100 * one.p:.1f} %)"
        rows = [
            [f"{speaker.effect:+.4f}", _short(speaker.name), speaker.label] for speaker in (*one.for_it, *one.against)
        ]
        title = f"{_short(one.name)}: {one.prediction}{p}"
        table([unit, "training sample", "label"], rows, title=title)
    if request.html is not None:
        note(False, f"sheet written to {request.html}")


def explained(estimator: Any, X: Any, names: Sequence[str], dataset: Dataset, most: int) -> list[Explained]:
    """Return the predictions of samples with the training samples that speak most for and against each.

    Args:
        estimator: A fitted model, which has its training data.
        X: The samples.
        names: Of them.
        dataset: The training data.
        most: Training samples of each sign, at most.
    """
    effects = -estimator.influence(X)  # what a sample adds is lost without it
    samples = estimator.loo_.samples
    predictions, p = _predictions(estimator, X)
    known, own = _names_of(dataset), _labels_of(estimator, dataset)

    def speakers(row: np.ndarray, sign: int) -> list[Speaker]:
        order = np.argsort(-sign * row, kind="stable")[:most]
        return [
            Speaker(int(samples[j]), known[samples[j]], own[samples[j]], float(row[j]))
            for j in order
            if sign * row[j] > 0
        ]

    return [
        Explained(i, name, prediction, of_it, speakers(row, 1), speakers(row, -1))
        for i, (name, prediction, of_it, row) in enumerate(zip(names, predictions, p, effects, strict=True))
    ]


def sheet(title: str, found: Sequence[Explained], X: Any, training: Any, unit: str) -> str:
    """Return explanations as one HTML page, the pictures or texts in it.

    Args:
        title: Above it.
        found: The explanations.
        X: The samples that were explained.
        training: The training samples.
        unit: Of the effects.
    """
    regression = unit != "nats"
    of = "value" if regression else "log-probability of what is predicted"
    parts = [
        f"<header><h1>{safe(title)}</h1><p>Beside each training sample stands what it adds to the {of}, in "
        f"{safe(unit)}: what would be gone if the model had been fitted without it, to first order.</p>"
    ]
    if len(found) > _SHEET:
        parts.append(f"<p>The first {_SHEET} of {len(found):,} samples are shown.</p>")
    parts.append("</header><main>")
    for one in found[:_SHEET]:
        p = "" if one.p is None else f" · {100 * one.p:.1f} %"
        name = "" if is_texts(X) else f'<p class="name">{safe(one.name)}</p>'
        parts.append(f'<section><div class="query">{shown(X, one.index)}</div><h2>{safe(one.prediction)}{p}</h2>{name}')
        largest = max((abs(speaker.effect) for speaker in (*one.for_it, *one.against)), default=1.0)
        for what, kind, speakers in (("for", "good", one.for_it), ("against", "bad", one.against)):
            if speakers:
                items = [_item(speaker, kind, largest, training) for speaker in speakers]
                parts.append(f"<h3>{what} it</h3>{grid(items, wide=is_texts(training))}")
        parts.append("</section>")
    return page(title, "\n".join([*parts, "</main>"]), _STYLE)


def _item(speaker: Speaker, kind: str, largest: float, training: Any) -> str:
    name = "" if is_texts(training) else f'<div class="name">{safe(speaker.name)}</div>'
    return (
        f'<li>{shown(training, speaker.index)}<div class="about"><div>{safe(speaker.label)}</div>{name}'
        f'<div class="{kind}">{speaker.effect:+.4f}{bar(abs(speaker.effect) / largest)}</div></div></li>'
    )


# ---- what to label next ---------------------------------------------------------------------------------------------


def suggest_command(request: Suggest) -> None:
    """Write the samples of a pool that are to be labelled next."""
    check_file(request.out, request.saved.model, request.pool, request.data)
    estimator = load_saved(request.saved, request.json)
    _recalled(estimator, request)
    X, names = samples_of(estimator, _unlabelled(request, request.pool))
    if request.most > len(names):
        raise ConfigurationError(f"-k is {request.most}, and there are {len(names)} samples in {request.pool}")
    found = estimator.suggest(X, request.most)
    predictions, _ = _predictions(estimator, _rows(X, found.samples))
    rows = [
        (names[index], prediction, float(gain))
        for index, prediction, gain in zip(found.samples, predictions, found.gains, strict=True)
    ]
    if request.json:
        entries = [{"sample": name, "prediction": prediction, "gain": gain} for name, prediction, gain in rows]
        print_json({"model": str(request.saved.model), "unknown": found.before, "suggested": entries})
    text = csv_text([["sample", "prediction", "gain"], *([name, label, f"{gain:.6g}"] for name, label, gain in rows)])
    if request.out is not None:
        written(request.out, lambda path: write_text(path, text))
        note(request.json or is_stream(request.out), f"{len(rows):,} samples to label written to {request.out}")
    elif not request.json:
        print_data(text)


# ---- of both --------------------------------------------------------------------------------------------------------


def _recalled(estimator: Any, request: Explain | Suggest) -> Dataset:
    """Give a model its training data back, and return them.

    Raises:
        ConfigurationError: They were not named.
    """
    if request.data is None:
        raise ConfigurationError("the file of a model does not hold its training data: give them with --data")
    return training_data(estimator, request, request.data)


def _unlabelled(request: Explain | Suggest, path: Path) -> Predict:
    """Return the request that reads samples without labels."""
    return Predict(path, "test", 1, None, request.json, request.source, request.saved, Given())


def _unit(estimator: Any) -> str:
    return "units of the target" if estimator.loss_.task == "regression" else "nats"


def _predictions(estimator: Any, X: Any) -> tuple[list[str], list[float | None]]:
    """Return what is predicted, in words, and its probability; of several labels and of a regression None."""
    if estimator.loss_.task == "regression":
        values = np.atleast_2d(np.asarray(estimator.predict(X)).T).T
        return [", ".join(f"{value:.6g}" for value in row) for row in values], [None] * len(values)
    p, names = estimator.predict_proba(X), names_of_classes(estimator)
    if estimator.loss_.task == "multilabel":
        chosen = [", ".join(name for name, of in zip(names, row, strict=True) if of > 0.5) or "none" for row in p]
        return chosen, [None] * len(p)
    return [names[index] for index in p.argmax(1)], [float(value) for value in p.max(1)]


def _names_of(dataset: Dataset) -> list[str]:
    if isinstance(dataset.X, np.ndarray):
        return [str(i) for i in range(len(dataset))]
    return [str(sample) for sample in dataset.X]


def _labels_of(estimator: Any, dataset: Dataset) -> list[str]:
    """Return the label of each training sample, in words."""
    y, task = labels(dataset), estimator.loss_.task
    if task == "multilabel":
        names = names_of_classes(estimator)
        return [", ".join(name for name, of in zip(names, row, strict=True) if of == 1) or "none" for row in y]
    if task == "regression":
        return [", ".join(f"{value:.6g}" for value in np.atleast_1d(row)) for row in y]
    place = dict(zip(estimator.classes_.tolist(), names_of_classes(estimator), strict=True))
    return [place.get(value, str(value)) for value in np.asarray(y).tolist()]


def _rows(X: Any, indices: np.ndarray) -> Any:
    return X[indices] if isinstance(X, np.ndarray) else [X[i] for i in indices]


def _short(name: str) -> str:
    return textwrap.shorten(name, _CELL, placeholder="…") if " " in name else name
