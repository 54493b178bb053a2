"""What a fit says of itself (`gradfeat.estimators.fitted.Record`), as JSON and back.

Each is a dataclass of numbers, words and lists. They are written field by field, by the fields' types, with all digits
of a number; the file of a fitted model keeps them, so that a loaded model knows what the fitted one did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import Field
from typing import Any, NamedTuple

from torch import Tensor

from gradfeat.estimators.fitted import Record
from gradfeat.files.bounded import (
    Check,
    fields,
    flag,
    listing,
    nullable,
    number_from_json,
    number_to_json,
    real,
    row,
    table,
    text,
    whole,
)
from gradfeat.fit.depth import Depth
from gradfeat.fit.penalties import Choice, Tried
from gradfeat.fit.point import Point
from gradfeat.fit.steps import Rounds, Trial
from gradfeat.solvers.finetune import Recipe, Selection
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.schedule import Schedule
from gradfeat.solvers.subspace import Solution

_MOST = 1_000_000  # epochs, iterations, points of a path
_NUMBER, _WORDS = real(finite=False), text(10_000)


class _Kind(NamedTuple):
    """How a field of a type is checked, written and read."""

    check: Check
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _optional(kind: _Kind) -> _Kind:
    check, write, read = kind
    return _Kind(
        nullable(check),
        lambda value: None if value is None else write(value),
        lambda value: None if value is None else read(value),
    )


def _list(kind: _Kind, most: int = _MOST) -> _Kind:
    check, write, read = kind
    return _Kind(
        listing(check, 0, most),
        lambda values: [write(value) for value in values],
        lambda values: [read(value) for value in values],
    )


def _tuple(*kinds: _Kind) -> _Kind:
    return _Kind(
        row(*(kind.check for kind in kinds)),
        lambda values: [kind.write(value) for kind, value in zip(kinds, values, strict=True)],
        lambda values: tuple(kind.read(value) for kind, value in zip(kinds, values, strict=True)),
    )


_FLOAT = _Kind(_NUMBER, number_to_json, number_from_json)
_STR = _Kind(_WORDS, str, str)
_KINDS: dict[str, _Kind] = {  # by the annotation of a field
    "float": _FLOAT,
    "float | None": _optional(_FLOAT),
    "int": _Kind(whole(-(2**63), 2**63), int, int),
    "int | None": _optional(_Kind(whole(-(2**63), 2**63), int, int)),
    "bool": _Kind(flag, bool, bool),
    "str": _STR,
    "tuple[float, float] | None": _optional(_tuple(_FLOAT, _FLOAT)),
    "list[float]": _list(_FLOAT),
    "tuple[float, float]": _tuple(_FLOAT, _FLOAT),
    "list[tuple[float, float, float]]": _list(_tuple(_FLOAT, _FLOAT, _FLOAT)),
    "tuple[str, ...]": _Kind(listing(_WORDS, 0, 100_000), list, tuple),
}


def _dataclass(cls: Any, left_out: tuple[str, ...] = ()) -> _Kind:
    """Return how a dataclass is written: its fields by their types, but for those that are left out, read as None."""
    written: list[Field[Any]] = [field for field in dataclasses.fields(cls) if field.name not in left_out]
    kinds = {field.name: _KINDS[str(field.type)] for field in written}
    has_default = {
        field.name
        for field in written
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    check = fields(
        {name: kind.check for name, kind in kinds.items() if name not in has_default},
        {name: kind.check for name, kind in kinds.items() if name in has_default},
        closed=True,
    )
    return _Kind(
        check,
        lambda value: {name: kind.write(getattr(value, name)) for name, kind in kinds.items()},
        lambda entry: cls(
            **{name: kinds[name].read(value) for name, value in entry.items()}, **dict.fromkeys(left_out)
        ),
    )


_KINDS["list[Tried]"] = _list(_dataclass(Tried))
_KINDS["list[Trial]"] = _list(_dataclass(Trial))
_KINDS["Schedule"] = _dataclass(Schedule)
_KINDS["Recipe"] = _dataclass(Recipe)
_KINDS["list[tuple[Recipe, float]]"] = _list(_tuple(_KINDS["Recipe"], _FLOAT))

_PROBE = _dataclass(Probe, ("omega", "bias"))


def _checked_rounds(kind: _Kind) -> _Kind:
    """Refuse rounds also whose best trial is none of them."""

    def check(value: Any, where: str) -> None:
        kind.check(value, where)
        if not -1 <= value.get("best", -1) < len(value.get("trials", [])):
            raise ValueError(f"{where}.best is none of its trials")

    return _Kind(check, kind.write, kind.read)


_ROUNDS = _checked_rounds(_dataclass(Rounds, ("point", "judged")))
_SECONDS = _Kind(
    table(_NUMBER, 100, 1000),
    lambda seconds: {name: number_to_json(value) for name, value in seconds.items()},
    lambda seconds: {name: number_from_json(value) for name, value in seconds.items()},
)
_RECORD: dict[str, _Kind] = {  # by the fields of `Record`; in the file as the estimators' attributes
    "history": _optional(_dataclass(History)),
    "selection": _optional(_dataclass(Selection)),
    "choice": _optional(_dataclass(Choice)),
    "solution": _optional(_dataclass(Solution)),
    "rounds": _optional(_ROUNDS),
    "depths": _list(_dataclass(Depth), 10_000),
    "seconds": _SECONDS,
    "n_iter": _optional(_KINDS["int"]),
}

CHECK = fields({f"{name}_": kind.check for name, kind in _RECORD.items()})
"""Refuses a record that `record_to_json` cannot have written."""

CHECK_PROBE = _PROBE.check
"""Refuses a probe that `probe_to_json` cannot have written."""


def record_to_json(record: Record) -> dict[str, Any]:
    """Return what a fit says of itself, as JSON; the probe and the words of `how` stand elsewhere in the file."""
    return {f"{name}_": kind.write(getattr(record, name)) for name, kind in _RECORD.items()}


def record_from_json(record: dict[str, Any] | None, probe: Probe, how: dict[str, str], point: Point) -> Record:
    """Return the record that `record_to_json` was given.

    Args:
        record: From `record_to_json`, and checked; None for a file that has none.
        probe: The probe.
        how: How the model was fitted, in words.
        point: Stands for the point where rounds ended: its tensors would double the file.
    """
    if record is None:
        return Record(probe, how=how, depths=[])
    values = {name: kind.read(record[f"{name}_"]) for name, kind in _RECORD.items()}
    if values["rounds"] is not None:
        values["rounds"].point = point
    return Record(probe=probe, how=how, **values)


def probe_to_json(probe: Probe) -> dict[str, Any]:
    """Return all of a probe but its weights, as JSON."""
    entry: dict[str, Any] = _PROBE.write(probe)
    return entry


def probe_from_json(entry: dict[str, Any], omega: Tensor, bias: Tensor) -> Probe:
    """Return the probe that `probe_to_json` was given, with its weights."""
    probe: Probe = _PROBE.read(entry)
    return dataclasses.replace(probe, omega=omega, bias=bias)
