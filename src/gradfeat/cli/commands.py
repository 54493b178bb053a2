"""What `fit` and `compare` do."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.following import after_compare, after_fit, has_test_part, say_verdict
from gradfeat.cli.given import Given
from gradfeat.cli.idle import idle_for_data, idle_in_modes, kind_of, refuse
from gradfeat.cli.outputs import check_file, check_folder, kept_in, written
from gradfeat.cli.show import note, print_json, table
from gradfeat.comparison.edges import edge_note
from gradfeat.comparison.plots import choice_charts
from gradfeat.comparison.side_by_side import Comparison, check_modes, compare
from gradfeat.comparison.verdict import verdict_of_fit
from gradfeat.data import Dataset, Preprocessing, load_dataset
from gradfeat.data.dataset import WHOLE
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.files.writing import write_text
from gradfeat.fit.checkpoint import ABOUT
from gradfeat.linearization.theta2 import layers_of
from gradfeat.model import MODES


@dataclass(frozen=True)
class Source:
    """How data are read."""

    format: str = "auto"
    skip_unreadable: bool = False
    text_column: str | None = None
    label_column: str | None = None
    encoding: str | None = None
    seconds: float | None = None
    image_column: str | None = None
    image_root: Path | None = None
    label_separator: str | None = None


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
    crop_pct: float | None
    max_length: int | None
    penalty: str
    loss: str
    class_weight: str | None
    epochs: int | None
    batch_size: int
    solver: str
    rounds: str
    augment: str | None
    parametrization: str
    metric: str
    precision: str
    cache: str
    checkpoint: Path | None
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
        for name in ("resize", "crop_pct", "max_length"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        given = {} if self.class_weight is None else {"class_weight": self.class_weight}
        return {
            **given,
            "penalty": self.penalty if self.penalty == "auto" else _numbers("penalty", self.penalty),
            "loss": self.loss,
            "weights": self.weights,
            "theta2": names_of(self.theta2) or "auto",
            "image_size": self.image_size,
            "preprocessing": changes or None,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "solver": self.solver,
            "rounds": int(self.rounds) if self.rounds.isdecimal() else self.rounds,
            "augment": self.augment,
            "parametrization": self.parametrization,
            "metric": self.metric,
            "precision": self.precision,
            "cache": self.cache,
            "checkpoint": self.checkpoint,
            "device": self.device,
            "random_state": self.seed,
            "verbose": not self.json,
        }


def names_of(theta2: list[str] | None) -> list[str]:
    """Return the names of θ₂, which may be given in several options or separated by commas.

    Raises:
        ConfigurationError: It was given, and names nothing.
    """
    names = [name for given in theta2 or [] for part in given.split(",") if (name := part.strip())]
    if theta2 and not names:
        raise ConfigurationError("--theta2 names nothing: give modules or parameters, or leave it out")
    return [] if names == ["auto"] else names


def _numbers(name: str, text: str) -> float | tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--{name} must be numbers separated by commas, not {text!r}") from None
    return values[0] if len(values) == 1 else values


def read(path: Path, split: str, source: Source, like: Dataset | None = None) -> Dataset:
    """Read labelled data; the labels of a table as those of `like`, which the models are or were fitted to."""
    return load_dataset(
        path,
        split=split,
        format=source.format,
        on_error="skip" if source.skip_unreadable else "raise",
        text_column=source.text_column,
        label_column=source.label_column,
        encoding=source.encoding,
        seconds=source.seconds,
        image_column=source.image_column,
        image_root=source.image_root,
        label_separator=source.label_separator,
        like=like,
    )


def labels(dataset: Dataset) -> np.ndarray:
    """Return labels, with NaN where a multi-label entry is to be ignored (VOC's `difficult`)."""
    if dataset.y is None:
        raise DataError(f"{dataset.name} has no labels")
    if dataset.task == "multilabel" and dataset.ignore is not None:
        return np.where(dataset.ignore, np.nan, dataset.y)
    return dataset.y


def class_names(dataset: Dataset, classes: np.ndarray | None) -> list[str] | None:
    """Return the name of each of an estimator's classes; whole numbers count the names that a data set gives.

    Args:
        dataset: What the estimator was fitted to.
        classes: The estimator's `classes_`; None for regression.
    """
    if classes is None:
        return None
    if dataset.task == "multilabel":
        return list(dataset.classes)
    numbered = classes.dtype.kind in "iu" and dataset.classes != [str(value) for value in classes]
    return [dataset.classes[value] if numbered else str(value) for value in classes.tolist()]


def fit_command(
    data: Path,
    split: str,
    source: Source,
    settings: Settings,
    mode: str,
    out: Path,
    pictures: Path | None,
    given: Given,
) -> None:
    """Fit one model and save it."""
    check_modes([mode])
    refuse(given, idle_in_modes(given, [mode]))
    check_file(
        out,
        data,
        Path(settings.backbone.removeprefix("gradfeat/")),
        None if settings.weights is None else Path(settings.weights),
    )
    check_folder(pictures)
    dataset = read(data, split, source)
    check_part(data, split, "train", dataset)
    refuse(given, idle_for_data(given, kind_of(dataset, data, source.format), dataset.task))
    cls = GradientFeatureRegressor if dataset.task == "regression" else GradientFeatureClassifier
    estimator: Any = cls(settings.backbone, mode=mode, **settings.parameters())
    note(settings.json, dataset.describe())
    _note_checkpoint(settings)
    try:
        with nullcontext() if settings.checkpoint is None else kept_in(settings.checkpoint):
            estimator.fit(dataset.X, labels(dataset))
    except KeyboardInterrupt:
        on = f"; the same command goes on from {settings.checkpoint}" if settings.checkpoint is not None else ""
        sys.stderr.write(f"nothing was saved{on}\n")
        raise
    estimator.class_names_ = class_names(dataset, getattr(estimator, "classes_", None))
    path = written(out, estimator.save)
    if pictures is not None:
        _keep_choice(estimator, pictures)
    choice, rounds = estimator.choice_, estimator.rounds_
    verdict = None if choice is None else verdict_of_fit(choice, rounds)
    edge = edge_note(estimator, len(dataset))
    following = after_fit(
        given, data, settings.backbone, path, mode, choice if rounds is None else None, has_test_part(data, dataset)
    )
    parameters = sum(p.numel() for p in estimator._fitted_model().trained())
    size = path.stat().st_size
    treatment = _treatment(estimator, dataset)
    result = {
        "model": str(path),
        "bytes": size,
        "mode": mode,
        "theta2": list(estimator.w2_),
        "depths": [str(depth) for depth in estimator.depths_],
        "trained_parameters": parameters,
        "probe_penalty": float(estimator.probe_.penalty),
        **dict.fromkeys(("solver", "penalties", "rounds")),
        **estimator.how_,
        "seconds": estimator.seconds_,
        "preprocessing": None if treatment is None else treatment.to_dict(),
        "notes": [*estimator.backbone_.notes, *([edge] if edge else [])],
        "verdict": None if verdict is None else verdict.to_dict(),
        "next": following,
    }
    if settings.json:
        print_json(result)
    else:
        rows = [
            ["saved as", f"{path} ({size / 1e6:.2f} MB)"],
            ["θ₂", layers_of(list(estimator.w2_))],
            *(["tried", depth] for depth in result["depths"]),
            ["trained parameters", f"{parameters:,}"],
            ["probe penalty", f"{estimator.probe_.penalty:.3g}"],
            ["time", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in estimator.seconds_.items())],
            *([name, value] for name, value in estimator.how_.items()),
            *([["images", treatment.describe()]] if treatment is not None else []),
        ]
        table(["model", mode], rows)
        for text in result["notes"]:
            note(False, text)
        say_verdict("" if verdict is None else verdict.text, following)
    if estimator.history_ is not None and estimator.history_.stopped == "interrupted":
        raise KeyboardInterrupt


def _treatment(estimator: Any, dataset: Dataset) -> Preprocessing | None:
    """Return how images become inputs; None for data that are no images."""
    images = isinstance(dataset.X, list) or dataset.X.dtype == np.uint8
    found = estimator.backbone_.preprocessing
    return found if images and isinstance(found, Preprocessing) else None


def compare_command(
    data: Path,
    test_data: Path | None,
    split: str,
    test_split: str,
    source: Source,
    settings: Settings,
    modes: str,
    out: Path | None,
    crops: int,
    given: Given,
) -> None:
    """Fit the four models, show the table, and keep what was asked for."""
    names = [mode.strip() for mode in modes.split(",")]
    check_modes(names)
    refuse(given, idle_in_modes(given, names))
    check_folder(out)
    train = read(data, split, source)
    check_part(data, split, "train", train)
    test = read(test_data or data, test_split, source, train)
    check_part(test_data or data, test_split, "test", test, "--test-split")
    _check_apart(data, test_data, train, test)
    refuse(given, idle_for_data(given, kind_of(train, data, source.format), train.task))
    note(settings.json, f"train: {train.describe()}\ntest:  {test.describe()}")
    _note_checkpoint(settings)
    result = compare(
        settings.backbone,
        train.X,
        labels(train),
        test.X,
        labels(test),
        modes=names,
        task="regression" if train.task == "regression" else "classification",
        crops=crops,
        **settings.parameters(),
    )
    title = f"{train.name}: {settings.backbone}, θ₂ = {', '.join(settings.theta2 or ['auto'])}"
    if not result.rows:
        raise ConfigurationError("no model was finished: " + "; ".join(result.notes))
    if out is not None:
        written(out, lambda folder: _keep(result, train, folder, title))
    following = after_compare(given, data, settings.backbone, test_data, test_split, result, out)
    if settings.json:
        print_json({**result.to_dict(), "next": following})
    else:
        table(*result.cells(), title=title)
        for text in result.remarks():
            note(False, text)
        if out is not None:
            note(
                False,
                f"written to {out}: comparison.md, .json, .png, pictures of what was chosen, a model for each row",
            )
            older = [
                file.name for mode in MODES if mode not in result.estimators and (file := _model_in(out, mode)).exists()
            ]
            if older:
                note(False, f"of an earlier run there is still {', '.join(older)}")
        say_verdict("" if result.verdict is None else result.verdict.text, following)
    if result.interrupted:
        raise KeyboardInterrupt


def _keep_choice(estimator: Any, folder: Path) -> None:
    """Write what was chosen for a fitted estimator: pictures, and the penalty path as JSON."""
    choice_charts(folder, estimator.mode, estimator.choice_, estimator.rounds_)
    if estimator.choice_ is not None:  # JSON has no infinity: null is no gradient term
        path = [tried.to_dict() for tried in estimator.choice_.path]
        write_text(folder / f"penalty_{estimator.mode}.json", dumps(path, indent=1) + "\n")


def _check_apart(data: Path, test_data: Path | None, train: Dataset, test: Dataset) -> None:
    """Refuse to test on the training data."""
    if (test_data or data).resolve() != data.resolve() or train.split != test.split:
        return
    advice = "give other data with --test-data"
    if train.split == WHOLE:
        raise DataError(
            f"{data} has no parts, so the models would be tested on their training data: {advice}, or divide it into "
            "the folders train and test (in an .npz file: X_train, y_train, X_test, y_test; texts: train.csv and "
            "test.csv in one folder)"
        )
    raise ConfigurationError(
        f"--split and --test-split are both {train.split!r}, so the models would be tested on their training data: "
        f"name another part, or {advice}"
    )


def check_part(data: Path, split: str, usual: str, dataset: Dataset, option: str = "--split") -> None:
    """Refuse another part than the usual one of data that have none.

    Raises:
        ConfigurationError: The data have no parts.
    """
    if dataset.split == WHOLE and split != usual:
        raise ConfigurationError(f"{data} has no parts, so there is no {split!r} in it: leave out {option}")


def _note_checkpoint(settings: Settings) -> None:
    if settings.checkpoint is not None and (settings.checkpoint.expanduser() / ABOUT).exists():
        note(settings.json, f"going on from what is finished in {settings.checkpoint}")


def _model_in(out: Path, mode: str) -> Path:
    return out / f"{mode}.safetensors"


def _keep(result: Comparison, train: Dataset, out: Path, title: str) -> Path:
    for pattern in ("penalty_*.png", "rounds_*.png", "remainder.png"):  # of an earlier run, with other modes
        for picture in out.glob(pattern):
            picture.unlink()
    result.save_json(out / "comparison.json")
    said = [result.verdict.text] if result.verdict is not None and result.verdict.text else []
    remarks = "\n".join(f"- {text}" for text in [*said, *result.remarks()])
    write_text(out / "comparison.md", f"{title}\n\n{result}\n\n{remarks}\n")
    result.plot(out / "comparison.png", title=title)
    result.plot_more(out)
    for mode, estimator in result.estimators.items():
        estimator.class_names_ = class_names(train, getattr(estimator, "classes_", None))
        estimator.save(_model_in(out, mode))
    return out
