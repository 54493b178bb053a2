"""What `forget` does: a saved model without some of its training samples, and a report of what that changed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.outputs import check_file, written
from gradfeat.cli.requests import Forget
from gradfeat.cli.saved import load_saved, training_data
from gradfeat.cli.show import note, print_json, table
from gradfeat.data import Dataset
from gradfeat.errors import DataError
from gradfeat.fit.update import Certificate


@dataclass(frozen=True)
class Report:
    """What forgetting has done.

    Attributes:
        removed: How many samples.
        left: How many are left.
        gap_before: Bound on the gap of the model before; None where it had none.
        certificate: Of the new one; None where it has none.
        how: What was done, in words.
        largest: Largest change of a logit among the samples that are left, and among the others; of a softmax less
            their mean over the classes of both models.
        changed: How many samples that are left are now taken for another class; None of a regression.
        ended: Classes that are no more.
    """

    removed: int
    left: int
    gap_before: float | None
    certificate: Certificate | None
    how: str
    largest: tuple[float, float]
    changed: int | None
    ended: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        found = self.certificate
        return {
            "removed": self.removed,
            "left": self.left,
            "ended_classes": self.ended,
            "how": self.how,
            "gap_before": self.gap_before,
            "gap": None if found is None else found.gap,
            "bound_w1": None if found is None or not np.isfinite(found.w1) else found.w1,
            "bound_w2": None if found is None or not np.isfinite(found.w2) else found.w2,
            "largest_logit_change": {"left": self.largest[0], "removed": self.largest[1]},
            "predictions_changed": self.changed,
        }

    def rows(self) -> list[list[str]]:
        """Return what is printed for people."""
        before = "not known" if self.gap_before is None else f"{self.gap_before:.1e}"
        after = "not known" if self.certificate is None else f"{self.certificate.gap:.1e}"
        return [
            ["samples removed", f"{self.removed:,}"],
            ["samples left", f"{self.left:,}"],
            *([["classes ended", ", ".join(self.ended)]] if self.ended else []),
            ["how", self.how],
            ["gap before", before],
            ["gap", after],
            ["largest change of a logit", f"{self.largest[0]:.3g} of those left, {self.largest[1]:.3g} of the others"],
            *([["predictions changed", f"{self.changed:,} of those left"]] if self.changed is not None else []),
        ]


def forget_command(request: Forget) -> None:
    """Write a model without some of its training samples, and say what that changed."""
    check_file(request.out, request.saved.model, request.data, request.remove)
    names = _listed(request.remove)
    estimator = load_saved(request.saved, request.json)
    dataset = training_data(estimator, request, request.data)
    gone = indices_of(names, dataset, request.data.expanduser())
    new = estimator.update(remove=gone)
    report = _report(estimator, new, dataset, gone)
    path = written(request.out, new.save)
    if request.json:
        print_json({"model": str(path), "from": str(request.saved.model), **report.to_dict()})
        return
    table(["forgotten", str(path)], report.rows())
    if report.certificate is not None:
        note(False, str(report.certificate))
    note(False, f"{request.saved.model} still has what it learnt of them: delete it, and its copies")


def _listed(path: Path) -> list[str]:
    """Return the lines of a list that are not empty."""
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} names no samples to remove")
    return lines


def indices_of(names: list[str], dataset: Dataset, data: Path) -> list[int]:
    """Return the indices of samples by what a list calls them: a path, a text, or a number from 0.

    Raises:
        DataError: A name that no sample has, or several have; or one that is there twice.
    """
    known: dict[str, set[int]] = defaultdict(set)
    if isinstance(dataset.X, list):
        samples: list[Path] | list[str] = dataset.X
        for i, sample in enumerate(samples):
            for name in _names(sample if isinstance(sample, Path) else str(sample), data):
                known[name].add(i)
    found: dict[int, str] = {}
    for name in names:
        places = known.get(name) or known.get(str(Path(name).expanduser().resolve())) or set()
        if not places and name.isdecimal() and int(name) < len(dataset):
            places = {int(name)}
        if len(places) != 1:
            what = f"{len(places)} samples" if places else "no sample"
            raise DataError(f"the list names {name!r}, which is {what} of the {len(dataset):,} in {dataset.name}")
        (index,) = places
        if index in found:
            raise DataError(f"the list names one sample twice: {found[index]!r} and {name!r}")
        found[index] = name
    return sorted(found)


def _names(sample: Path | str, data: Path) -> set[str]:
    """Return all that a sample may be called."""
    if not isinstance(sample, Path):
        return {str(sample).strip()}
    names = {str(sample), str(sample.resolve())}
    root, whole = data.resolve(), sample.resolve()
    if whole.is_relative_to(root):
        inner = whole.relative_to(root)
        names |= {str(inner), *([str(Path(*inner.parts[1:]))] if len(inner.parts) > 2 else [])}
    return names


def _report(before: Any, after: Any, dataset: Dataset, gone: list[int]) -> Report:
    task = before.loss_.task
    old, new = (model.logits(dataset.X).double().numpy() for model in (before, after))
    ended: list[str] = []
    if task == "regression":  # distances to means that are not the same
        old, new = (np.reshape(model.predict(dataset.X), (len(dataset), -1)) for model in (before, after))
    elif task == "multiclass":
        stays = np.isin(before.classes_, after.classes_)
        names = before.class_names_ or before.classes_
        ended = [str(name) for name, there in zip(names, stays, strict=True) if not there]
        old = old[:, stays] - old[:, stays].mean(1, keepdims=True)
        new = new - new.mean(1, keepdims=True)
    left: np.ndarray = np.ones(len(dataset), dtype=bool)
    left[gone] = False
    moved = np.abs(new - old).max(1)
    changed = None
    if task != "regression":
        differ = before.predict(dataset.X) != after.predict(dataset.X)
        changed = int((differ.any(1) if differ.ndim == 2 else differ)[left].sum())
    gap = None if before.solution_ is None or not np.isfinite(before.solution_.gap) else before.solution_.gap
    return Report(
        removed=len(gone),
        left=int(left.sum()),
        gap_before=gap,
        certificate=Certificate.of(after.solution_, after.model_),
        how=after.how_["update"],
        largest=(float(moved[left].max()), float(moved[gone].max())),
        changed=changed,
        ended=ended,
    )
