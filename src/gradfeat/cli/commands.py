"""What `fit` and `compare` do."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.audit import Minded, mind_suspects
from gradfeat.cli.following import after_compare, after_fit, has_test_part, say_verdict
from gradfeat.cli.idle import idle_for_data, idle_in_modes, kind_of, refuse
from gradfeat.cli.outputs import check_file, check_folder, kept_in, written
from gradfeat.cli.reading import check_part, class_names, labels, read
from gradfeat.cli.requests import Compare, Fit, Settings
from gradfeat.cli.show import note, print_json, table
from gradfeat.comparison.edges import edge_note
from gradfeat.comparison.plots import choice_charts
from gradfeat.comparison.side_by_side import Comparison, check_modes, compare
from gradfeat.comparison.verdict import Verdict, verdict_of_fit
from gradfeat.data import Dataset, Preprocessing
from gradfeat.data.dataset import WHOLE
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.estimators.left_out import LeftOut
from gradfeat.files.writing import write_text
from gradfeat.fit.checkpoint import ABOUT
from gradfeat.linearization.theta2 import layers_of
from gradfeat.model import MODES


def fit_command(request: Fit) -> None:
    """Fit one model and save it."""
    settings = request.settings
    _check_before_fit(request)
    dataset = read(request.data, request.split, request.source)
    check_part(request.data, request.split, "train", dataset)
    _refuse_for_data(request, dataset)
    cls = GradientFeatureRegressor if dataset.task == "regression" else GradientFeatureClassifier
    estimator: Any = cls(settings.backbone, **settings.parameters.converted(), verbose=not settings.json)
    note(settings.json, dataset.describe())
    _note_checkpoint(settings)
    minded = _fit(estimator, dataset, request)
    path = written(request.out, estimator.save)
    if request.pictures is not None:
        _keep_choice(estimator, request.pictures)
    report = _report(request, estimator, dataset, path, minded)
    if settings.json:
        print_json(report.to_dict())
    else:
        report.show()
    if estimator.history_ is not None and estimator.history_.stopped == "interrupted":
        raise KeyboardInterrupt


def _check_before_fit(request: Fit) -> None:
    """Refuse what can be known to be wrong before any data are read."""
    settings = request.settings
    check_modes([request.mode])
    refuse(request.given, idle_in_modes(request.given, [request.mode]))
    if request.drop_suspects and request.reweight:
        raise ConfigurationError("--drop-suspects and --reweight are two ways: give one of them")
    check_file(
        request.out,
        request.data,
        Path(settings.backbone.removeprefix("gradfeat/")),
        None if settings.weights is None else Path(settings.weights),
    )
    check_folder(request.pictures)


def _refuse_for_data(request: Fit | Compare, dataset: Dataset) -> None:
    """Refuse options that do nothing for the data that were read."""
    kind = kind_of(dataset, request.data, request.source.data_format)
    refuse(request.given, idle_for_data(request.given, kind, dataset.task))


def _fit(estimator: Any, dataset: Dataset, request: Fit) -> Minded | None:
    """Fit an estimator, and give it the names of its classes; an interruption says what is left.

    Returns:
        What became of suspect labels, where these are minded.
    """
    checkpoint = request.settings.checkpoint
    try:
        with nullcontext() if checkpoint is None else kept_in(checkpoint):
            minded = mind_suspects(estimator, dataset, request)
            estimator.fit(dataset.X, labels(dataset), None if minded is None else minded.weights)
    except KeyboardInterrupt:
        on = f"; the same command goes on from {checkpoint}" if checkpoint is not None else ""
        sys.stderr.write(f"nothing was saved{on}\n")
        raise
    estimator.class_names_ = class_names(dataset, getattr(estimator, "classes_", None))
    return minded


@dataclass(frozen=True)
class FitReport:
    """What `fit` says of a model that it has fitted and saved.

    Attributes:
        path: Of its file.
        estimator: The model.
        treatment: How images become inputs; None for data that are no images.
        notes: Remarks on the backbone and the choice.
        verdict: What the gradient term is worth; None where nothing was chosen.
        left_out: Each training sample by the model without it; None where that is not known.
        following: The next command.
        minded: What became of suspect labels, where these are minded.
    """

    path: Path
    estimator: Any
    treatment: Preprocessing | None
    notes: list[str]
    verdict: Verdict | None
    left_out: LeftOut | None
    following: str
    minded: Minded | None = None

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return self.path.stat().st_size

    @property
    def trained_parameters(self) -> int:
        """How many numbers were trained."""
        return sum(p.numel() for p in self.estimator.model_.trained())

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "model": str(self.path),
            "bytes": self.size,
            "mode": self.estimator.mode,
            "theta2": list(self.estimator.w2_),
            "depths": [str(depth) for depth in self.estimator.depths_],
            "augment": self.estimator.augment_,
            "trained_parameters": self.trained_parameters,
            "probe_penalty": float(self.estimator.probe_.penalty),
            **dict.fromkeys(("effort", "solver", "penalties", "rounds")),
            **self.estimator.how_,
            "seconds": self.estimator.seconds_,
            "preprocessing": None if self.treatment is None else self.treatment.to_dict(),
            "notes": self.notes,
            **({} if self.minded is None else {"labels": self.minded.to_dict()}),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "leave_one_out": None if self.left_out is None else self.left_out.metrics(),
            "next": self.following,
        }

    def show(self) -> None:
        """Print it for people."""
        rows = [
            ["saved as", f"{self.path} ({self.size / 1e6:.2f} MB)"],
            ["θ₂", layers_of(list(self.estimator.w2_))],
            *(["tried", str(depth)] for depth in self.estimator.depths_),
            *([["augment", self.estimator.augment_]] if self.estimator.augment_ else []),
            ["trained parameters", f"{self.trained_parameters:,}"],
            ["probe penalty", f"{self.estimator.probe_.penalty:.3g}"],
            ["time", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.estimator.seconds_.items())],
            *([name, value] for name, value in self.estimator.how_.items()),
            *([["images", self.treatment.describe()]] if self.treatment is not None else []),
        ]
        table(["model", self.estimator.mode], rows)
        for text in [*self.notes, *([] if self.minded is None else [str(self.minded)])]:
            note(False, text)
        if self.left_out is not None:
            note(False, str(self.left_out))
        say_verdict("" if self.verdict is None else self.verdict.text, self.following)


def _report(request: Fit, estimator: Any, dataset: Dataset, path: Path, minded: Minded | None) -> FitReport:
    """Return what there is to say of a model that was fitted to some data and saved."""
    choice, rounds = estimator.choice_, estimator.rounds_
    edge = edge_note(estimator, len(dataset))
    following = after_fit(
        request.given,
        request.data,
        request.settings.backbone,
        path,
        request.mode,
        choice if rounds is None else None,
        has_test_part(request.data, dataset),
    )
    return FitReport(
        path,
        estimator,
        treatment=_treatment(estimator, dataset),
        notes=[*estimator.backbone_.notes, *([edge] if edge else [])],
        verdict=verdict_of_fit(choice, rounds),
        left_out=_left_out(estimator),
        following=following,
        minded=minded,
    )


def _left_out(estimator: Any) -> LeftOut | None:
    """Return each training sample by the model without it, where that takes no longer than a part of the fit."""
    finished = estimator.history_ is None or estimator.history_.stopped != "interrupted"
    return estimator.loo_ if finished and estimator.answers_soon else None


def _treatment(estimator: Any, dataset: Dataset) -> Preprocessing | None:
    """Return how images become inputs; None for data that are no images."""
    images = isinstance(dataset.X, list) or dataset.X.dtype == np.uint8
    treatment = estimator.backbone_.preprocessing
    return treatment if images and isinstance(treatment, Preprocessing) else None


def compare_command(request: Compare) -> None:
    """Fit the four models, show the table, and keep what was asked for."""
    settings, given, out = request.settings, request.given, request.out
    modes = [mode.strip() for mode in request.modes.split(",")]
    check_modes(modes)
    refuse(given, idle_in_modes(given, modes))
    check_folder(out)
    train, test = _read_both(request)
    _refuse_for_data(request, train)
    note(settings.json, f"train: {train.describe()}\ntest:  {test.describe()}")
    _note_checkpoint(settings)
    result = compare(
        settings.backbone,
        train.X,
        labels(train),
        test.X,
        labels(test),
        modes=modes,
        task="regression" if train.task == "regression" else "classification",
        crops=request.crops,
        **settings.parameters.converted(),
        verbose=not settings.json,
    )
    if not result.rows:
        raise ConfigurationError("no model was finished: " + "; ".join(result.notes))
    title = f"{train.name}: {settings.backbone}, θ₂ = {', '.join(settings.theta2 or ['auto'])}"
    if out is not None:
        written(out, lambda folder: _keep(result, train, folder, title))
    following = after_compare(
        given, request.data, settings.backbone, request.test_data, request.test_split, result, out
    )
    if settings.json:
        print_json({**result.to_dict(), "next": following})
    else:
        _show_comparison(result, title, out)
        say_verdict("" if result.verdict is None else result.verdict.text, following)
    if result.interrupted:
        raise KeyboardInterrupt


def _read_both(request: Compare) -> tuple[Dataset, Dataset]:
    """Return the training and the test data, which must be apart."""
    data, test_data = request.data, request.test_data
    train = read(data, request.split, request.source)
    check_part(data, request.split, "train", train)
    test = read(test_data or data, request.test_split, request.source, train)
    check_part(test_data or data, request.test_split, "test", test, "--test-split")
    _check_apart(data, test_data, train, test)
    return train, test


def _show_comparison(result: Comparison, title: str, out: Path | None) -> None:
    """Print a comparison for people, and what of it is in a folder."""
    table(*result.cells(), title=title)
    for text in result.remarks():
        note(False, text)
    if out is None:
        return
    note(False, f"written to {out}: comparison.md, .json, .png, pictures of what was chosen, a model for each row")
    older = [file.name for mode in MODES if mode not in result.estimators and (file := _model_in(out, mode)).exists()]
    if older:
        note(False, f"of an earlier run there is still {', '.join(older)}")


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
