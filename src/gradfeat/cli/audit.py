"""What `audit` does: the training samples of a saved model by how implausible their label is; and fits without them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from gradfeat.cli.audit_sheet import sheet
from gradfeat.cli.outputs import check_file, written
from gradfeat.cli.reading import labels
from gradfeat.cli.requests import Audit as Request
from gradfeat.cli.requests import Fit
from gradfeat.cli.saved import load_saved, training_data
from gradfeat.cli.show import note, print_json, table
from gradfeat.data import Dataset
from gradfeat.errors import ConfigurationError
from gradfeat.estimators.auditing import Audit, Finding
from gradfeat.files.writing import write_text

_SHEET = 300
"""Suspects that the sheet shows at most, if there is no call for more."""

_NAMED = 5
_CELL = 48  # characters of a name in the table; a text may be long


def audit_command(request: Request) -> None:
    """Show the training samples whose labels fit least, and write all of them."""
    _check_outputs(request)
    estimator = load_saved(request.saved, request.json)
    dataset = training_data(estimator, request, request.data)
    audit: Audit = estimator.audit(names_of(dataset))
    if request.out is not None:
        written(request.out, audit.to_csv)
    if request.html is not None:
        _write_sheet(request.html, request.first, audit, dataset)
    if request.json:
        about = {"model": str(request.saved.model), "data": dataset.name, "split": dataset.split}
        print_json({**about, **audit.to_dict(request.first)})
        return
    table(*_cells(audit, request.first), title=f"{request.saved.model} on {dataset.name}: labels that fit least")
    note(False, str(audit))
    for path, what in ((request.out, "all labels"), (request.html, "sheet")):
        if path is not None:
            note(False, f"{what} written to {path}")


def _check_outputs(request: Request) -> None:
    """Refuse outputs that cannot be written, before any work."""
    for path in (request.out, request.html):
        check_file(path, request.saved.model, request.data)
    if request.out is not None and request.html is not None and request.out.absolute() == request.html.absolute():
        raise ConfigurationError("--out and --html are one file: name two")


def names_of(dataset: Dataset) -> list[str]:
    """Return what samples are called: files, texts, or numbers from 0."""
    if isinstance(dataset.X, np.ndarray):
        return [str(i) for i in range(len(dataset))]
    return [str(sample) for sample in dataset.X]


def _cells(audit: Audit, first: int) -> tuple[list[str], list[list[str]]]:
    found = audit.findings(first)
    several = any(one.which for one in found)
    regression = audit.task == "regression"
    header = ["sample", *(["target" if regression else "label of it"] if several else [])]
    header += ["value", "prediction", "deviations"] if regression else ["label", "p %", "would fit", "p % of that"]
    return [*header, "suspect"], [_row(one, several) for one in found]


def _row(one: Finding, several: bool) -> list[str]:
    name = textwrap.shorten(one.name, _CELL, placeholder="…") if " " in one.name else one.name
    start = [name, *([one.which] if several else [])]
    if one.p_given is None or one.p_fitting is None:
        middle = [f"{one.given:.6g}", f"{one.fitting:.6g}", f"{one.distance:.1f}"]
    else:
        middle = [str(one.given), f"{100 * one.p_given:.1f}", str(one.fitting), f"{100 * one.p_fitting:.1f}"]
    return [*start, *middle, "yes" if one.suspect else ""]


def _write_sheet(path: Path, first: int, audit: Audit, dataset: Dataset) -> None:
    count = max(first, min(int(audit.suspects.sum()), _SHEET))
    text = sheet(f"{dataset.name}: labels that fit least", audit, dataset.X, count)
    written(path, lambda file: write_text(file, text))


# ---- a fit that minds them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minded:
    """What became of the suspects in a fit.

    Attributes:
        audit: Of one linearization fitted to all samples.
        weights: Of the samples in the fit that followed, (n,).
        dropped: Whether suspects were left out; else all were reweighted.
    """

    audit: Audit
    weights: np.ndarray
    dropped: bool

    @property
    def samples(self) -> Sequence[int]:
        """Indices of the suspects, the least plausible label first."""
        return [int(i) for i in self.audit.order if self.audit.suspects[i]]

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "how": "left out" if self.dropped else "reweighted",
            "left_out": int((self.weights == 0).sum()),
            "mean_weight": float(self.weights.mean()),
            "rule": self.audit.rule,
            "suspects": [{"index": i, "name": self.audit.names[i]} for i in self.samples],
        }

    def __str__(self) -> str:
        found, n = self.samples, len(self.weights)
        shown = "; ".join(textwrap.shorten(self.audit.names[i], _CELL, placeholder="…") for i in found[:_NAMED])
        listed = f" ({shown}{' ...' if len(found) > _NAMED else ''})" if found else ""
        if self.dropped:
            return f"{int((self.weights == 0).sum()):,} of {n:,} samples with suspect labels are left out{listed}"
        return (
            f"samples are weighted by how their label fits without them: the mean is {self.weights.mean():.2f}; "
            f"{len(found):,} of {n:,} labels are suspect{listed}"
        )


def mind_suspects(estimator: Any, dataset: Dataset, request: Fit) -> Minded | None:
    """Fit one linearization to all samples, and return what it says of their labels; None where nobody asks.

    Its network has not been moved by the labels that are judged. Nothing else of it is kept.
    """
    if not (request.drop_suspects or request.reweight):
        return None
    first = clone(estimator)
    if first.mode == "full":
        first.set_params(rounds=1)
    if first.checkpoint is not None:
        first.set_params(checkpoint=Path(first.checkpoint) / "audit")
    first.fit(dataset.X, labels(dataset))
    audit: Audit = first.audit(names_of(dataset))
    if request.drop_suspects:
        return Minded(audit, audit.without_suspects(), dropped=True)
    return Minded(audit, audit.reweighted(), dropped=False)
