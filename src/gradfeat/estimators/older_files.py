"""Descriptions of older files, as this version has them.

Format 1 had no head of the merged network, 2 no checksum, no mean of targets, and of the fit only words; 3 had a
record of the fit by other names and in another unit; up to 4 fine-tuning chose among schedules alone. What a file says
is checked as it stands, and then translated.
"""

from __future__ import annotations

from typing import Any

from gradfeat.files.bounded import Check, fields, flag, listing, nullable, real, row, text, whole

_NUMBER, _COUNT, _WORDS = real(finite=False), whole(0, 2**63), text(10_000)
_MOST = 1_000_000  # points of a path, moves

_TRIED = fields({"omega": _NUMBER, "w1": _NUMBER, "w2": _NUMBER, "loss": _NUMBER}, closed=True)
_CHOICE = fields(
    {"omega": _NUMBER, "w1": _NUMBER, "w2": _NUMBER, "path": listing(_TRIED, 0, _MOST), "passes": _NUMBER},
    {
        "length": _NUMBER,
        "held": listing(_NUMBER, 0, _MOST),
        "mode": _WORDS,
        "metric": _WORDS,
        "iterations": _COUNT,
        "gain": nullable(_NUMBER),
        "gain_error": nullable(_NUMBER),
        "judged": _COUNT,
    },
    closed=True,
)
_STEP = fields({"w1": _NUMBER, "w2": _NUMBER, "iterations": _COUNT, "loss": _NUMBER}, closed=True)
_ROUNDS = fields(
    {"start": _NUMBER},
    {
        "steps": listing(_STEP, 0, _MOST),
        "last": row(_NUMBER, _NUMBER),
        "last_loss": _NUMBER,
        "stages": _COUNT,
        "reason": _WORDS,
        "passes": _NUMBER,
        "interrupted": flag,
    },
    closed=True,
)
_SCHEDULE: Check = fields({"optimizer": _WORDS, "learning_rate": _NUMBER}, closed=False)
_SELECTION: Check = fields({"best": _SCHEDULE, "scores": listing(row(_SCHEDULE, _NUMBER), 0, _MOST)}, closed=True)
_RECORD: Check = fields({"choice_": nullable(_CHOICE), "rounds_": nullable(_ROUNDS)})

_PENALTIES = {"omega": "omega_penalty", "w1": "lambda1", "w2": "lambda2_units"}
_OF_A_CHOICE = {**_PENALTIES, "held": "losses", "judged": "n_validation"}


def as_of_this_version(about: dict[str, Any], version: int) -> None:
    """Make the description of an older file one of this version; what it does not say is None.

    Args:
        about: The description; changed.
        version: Its format.

    Raises:
        ValueError: Its record of the fit is none that the older version can have written.
        KeyError: A part of it is missing.
    """
    if version < 2:
        about.setdefault("merged_head", None)
        about["settings"] = {"rounds": 1, "augment": None, **about["settings"]}
        about["backbone"] = {"built_from": {"X_shape": None, "random_state": None}, **about["backbone"]}
    if version < 3:
        about["fit"] = None
    if about["fit"] is None:
        return
    selection = about["fit"]["selection_"]
    if selection is not None:
        _SELECTION(selection, "fit.selection_")
        scores = [[_recipe(schedule), score] for schedule, score in selection["scores"]]
        about["fit"]["selection_"] = {"best": _recipe(selection["best"]), "scores": scores}
    if version < 4:
        _RECORD(about["fit"], "fit")
        choice, rounds = about["fit"]["choice_"], about["fit"]["rounds_"]
        about["fit"]["choice_"] = None if choice is None else _choice(choice)
        about["fit"]["rounds_"] = None if rounds is None else _rounds(rounds)


def _recipe(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule as a recipe: the head started as the probe."""
    return {"schedule": entry, "head": "probe", "epochs": None}


def _renamed(entry: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in entry.items()}


def _choice(entry: dict[str, Any]) -> dict[str, Any]:
    return _renamed({**entry, "path": [_renamed(tried, _PENALTIES) for tried in entry["path"]]}, _OF_A_CHOICE)


def _rounds(entry: dict[str, Any]) -> dict[str, Any]:
    """Return rounds whose penalties of w₂ count units: λ₂ times n is so many units of length 1."""
    steps = [
        {**_scaled(step["w1"], step["w2"]), "directions": step["iterations"], "loss": step["loss"]}
        for step in entry.get("steps", [])
    ]
    lambda1, lambda2_n = entry.get("last", (0.0, "inf"))
    last = None if lambda2_n == "inf" else _scaled(lambda1, lambda2_n)
    return {**entry, "steps": steps, "last": last}


def _scaled(lambda1: Any, lambda2_n: Any) -> dict[str, Any]:
    return {"lambda1": lambda1, "lambda2_units": lambda2_n, "length": 1.0}
