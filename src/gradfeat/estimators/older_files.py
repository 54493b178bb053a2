"""Descriptions of older files, as this version has them.

Format 1 had no head of the merged network, 2 no checksum, no mean of targets, and of the fit only words; 3 had a
record of the fit by other names and in another unit; up to 4 fine-tuning chose among schedules alone; up to 5 rounds
were few large steps, and there was no effort; up to 6 fine-tuning had no batch norms in training mode; up to
7 no penalties in force were said. What a file says
is checked as it stands, and then translated.
"""

from __future__ import annotations

from typing import Any

from gradfeat.files.bounded import Check, fields, flag, listing, nullable, real, row, text, whole

_NUMBER, _COUNT, _WORDS = real(finite=False), whole(0, 2**63), text(10_000)
_MOST = 1_000_000  # points of a path, moves


def _anything(value: Any, where: str) -> None:
    """Take what is not read."""


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
_ROUNDS = fields(  # what a step was, beside its loss, is left out: up to 3, and 4 and 5, had it by other names
    {"start": _NUMBER},
    {
        "steps": listing(fields({"loss": _NUMBER}, closed=False), 0, _MOST),
        "last": _anything,
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
    about["settings"] = {"effort": "low", **about["settings"]}
    if version < 3:
        about["fit"] = None
    if about["fit"] is None:
        return
    selection = about["fit"]["selection_"]
    if version < 5 and selection is not None:
        _SELECTION(selection, "fit.selection_")
        scores = [[_recipe(schedule), score] for schedule, score in selection["scores"]]
        about["fit"]["selection_"] = {"best": _recipe(selection["best"]), "scores": scores}
    choice, rounds = about["fit"]["choice_"], about["fit"]["rounds_"]
    if version < 6:
        nullable(_ROUNDS)(rounds, "fit.rounds_")
        about["fit"]["rounds_"] = None if rounds is None else _rounds(rounds)
    if version < 4:
        nullable(_CHOICE)(choice, "fit.choice_")
        about["fit"]["choice_"] = None if choice is None else _choice(choice)


def _recipe(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule as a recipe: the head started as the probe."""
    return {"schedule": entry, "head": "probe", "epochs": None}


def _renamed(entry: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in entry.items()}


def _choice(entry: dict[str, Any]) -> dict[str, Any]:
    return _renamed({**entry, "path": [_renamed(tried, _PENALTIES) for tried in entry["path"]]}, _OF_A_CHOICE)


def _rounds(entry: dict[str, Any]) -> dict[str, Any]:
    """Return rounds of few large steps as one trial, with the held-out loss after each step; its rate is none."""
    losses = [step["loss"] for step in entry.get("steps", [])]
    last = entry.get("last_loss", "inf")
    trial = {"rate": 0.0, "passes": len(losses), "loss": last, "training": losses}
    about: dict[str, Any] = {name: entry[name] for name in ("reason", "passes", "interrupted") if name in entry}
    return {"start": entry["start"], "trials": [trial], "best": 0, **about}
