"""Files of older formats: the record of a fit by its older names, rounds that were few large steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rewriting import network, rewritten

import gradfeat
from gradfeat import GradientFeatureClassifier
from gradfeat.errors import AdapterError
from gradfeat.estimators.adapter import FORMAT_VERSION, read
from gradfeat.fit.penalties import Choice, Tried
from gradfeat.fit.steps import Trial

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)

CHOICE: dict[str, Any] = {
    "omega": 0.5,
    "w1": 0.25,
    "w2": 4.0,
    "path": [
        {"omega": 0.5, "w1": 0.5, "w2": "inf", "loss": 0.75},
        {"omega": 0.5, "w1": 0.25, "w2": 4.0, "loss": 0.625},
    ],
    "passes": 12.5,
    "length": 3.0,
    "held": [0.5, 0.75],
    "mode": "full",
    "metric": "whitened",
    "iterations": 16,
    "gain": 0.125,
    "gain_error": None,
    "judged": 20,
}

ROUNDS: dict[str, Any] = {
    "start": 0.875,
    "steps": [
        {"w1": 0.125, "w2": 80.0, "iterations": 2, "loss": 0.5},
        {"w1": 0.25, "w2": 8.0, "iterations": 3, "loss": 0.375},
    ],
    "last": [0.5, 40.0],
    "last_loss": 0.25,
    "stages": 2,
    "reason": "no step lowers it",
    "passes": 30.0,
    "interrupted": False,
}

FIFTH: dict[str, Any] = {  # the same rounds as formats 4 and 5 had them
    **ROUNDS,
    "steps": [
        {"lambda1": 0.125, "lambda2_units": 80.0, "length": 1.0, "directions": 2, "loss": 0.5},
        {"lambda1": 0.25, "lambda2_units": 8.0, "length": 1.0, "directions": 3, "loss": 0.375},
    ],
    "last": {"lambda1": 0.5, "lambda2_units": 40.0, "length": 1.0},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = GradientFeatureClassifier(network(), penalty=(0.1, 0.2), random_state=0).fit(X, Y)
    return model.save(tmp_path_factory.mktemp("older") / "model.safetensors")


def third(choice: Any = CHOICE, rounds: Any = ROUNDS) -> Callable[[dict[str, Any]], None]:
    def change(about: dict[str, Any]) -> None:
        about["format_version"] = 3
        about["fit"] = {**about["fit"], "choice_": copy.deepcopy(choice), "rounds_": copy.deepcopy(rounds)}

    return change


def test_the_choice_of_an_older_file_has_its_values_by_the_newer_names(saved: Path, tmp_path: Path) -> None:
    model = gradfeat.load(rewritten(saved, tmp_path / "m.safetensors", third()), backbone=network())
    assert model.choice_ == Choice(
        omega_penalty=0.5,
        lambda1=0.25,
        lambda2_units=4.0,
        path=[Tried(0.5, 0.5, math.inf, 0.75), Tried(0.5, 0.25, 4.0, 0.625)],
        passes=12.5,
        length=3.0,
        losses=[0.5, 0.75],
        mode="full",
        metric="whitened",
        iterations=16,
        gain=0.125,
        gain_error=None,
        n_validation=20,
    )
    assert [tried.gradients for tried in model.choice_.path] == [False, True]


def fifth(rounds: Any, version: int = 5) -> Callable[[dict[str, Any]], None]:
    def change(about: dict[str, Any]) -> None:
        about["format_version"] = version
        about["fit"] = {**about["fit"], "rounds_": copy.deepcopy(rounds)}

    return change


@pytest.mark.parametrize("change", [third(None), fifth(FIFTH), fifth(FIFTH, 4)], ids=["3", "5", "4"])
def test_large_steps_of_an_older_file_are_one_trial_with_their_losses(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    model = gradfeat.load(rewritten(saved, tmp_path / "m.safetensors", change), backbone=network())
    rounds = model.rounds_
    assert rounds is not None
    assert rounds.trials == [Trial(0.0, 2, 0.25, training=[0.5, 0.375])]
    assert (rounds.start, rounds.last_loss, rounds.best, rounds.passes) == (0.875, 0.25, 0, 30.0)
    assert (rounds.reason, rounds.interrupted, rounds.more) == ("no step lowers it", False, [])
    assert torch.equal(rounds.point.w1, model.w1_)


def test_older_rounds_without_a_step_are_a_trial_without_a_pass(saved: Path, tmp_path: Path) -> None:
    older = rewritten(saved, tmp_path / "m.safetensors", fifth({"start": 0.875, "last_loss": 0.75}))
    rounds = gradfeat.load(older, backbone=network()).rounds_
    assert rounds is not None
    assert rounds.trials == [Trial(0.0, 0, 0.75)]


def test_rounds_of_this_format_are_read_as_they_are_and_others_are_refused(saved: Path, tmp_path: Path) -> None:
    trials = [
        {"rate": 0.001, "passes": 8, "loss": "inf"},
        {"rate": 0.003, "passes": 8, "loss": 0.5, "training": [0.75]},
    ]
    change = fifth({"start": 0.875, "trials": trials, "best": 1}, FORMAT_VERSION)
    rounds = gradfeat.load(rewritten(saved, tmp_path / "m.safetensors", change), backbone=network()).rounds_
    assert rounds is not None
    assert rounds.trials == [Trial(1e-3, 8, math.inf), Trial(3e-3, 8, 0.5, training=[0.75])]
    assert rounds.last_loss == 0.5
    for wrong in (FIFTH, *({"start": 0.875, "trials": trials, "best": best} for best in (-2, 2))):
        path = rewritten(saved, tmp_path / "m.safetensors", fifth(wrong, FORMAT_VERSION))
        with pytest.raises(AdapterError):
            gradfeat.load(path, backbone=network())


@pytest.mark.parametrize(("choice", "rounds"), [(None, None), (CHOICE, None), (None, ROUNDS)])
def test_an_older_file_predicts_the_same_and_is_of_this_format_when_saved_again(
    saved: Path, tmp_path: Path, choice: Any, rounds: Any
) -> None:
    older = gradfeat.load(rewritten(saved, tmp_path / "m.safetensors", third(choice, rounds)), backbone=network())
    newer = gradfeat.load(saved, backbone=network())
    np.testing.assert_array_equal(older.predict_proba(X), newer.predict_proba(X))
    path = older.save(tmp_path / "again.safetensors")
    assert read(path)[0]["format_version"] == FORMAT_VERSION
    again = gradfeat.load(path, backbone=network())
    assert (again.choice_, again.rounds_, again.seconds_) == (older.choice_, older.rounds_, newer.seconds_)


def _other(record: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**record, **values}


@pytest.mark.parametrize(
    ("choice", "rounds"),
    [
        ({"omega": 1.0}, None),
        (_other(CHOICE, judged=-1), None),
        (_other(CHOICE, path=[{"omega": 0.5, "w1": 0.5, "w2": 1.0}]), None),
        (_other(CHOICE, path={"omega": 0.5}), None),
        (_other(CHOICE, w2="x" * 1000), None),
        (_other(CHOICE, held=None), None),
        (_other(CHOICE, losses=[0.5]), None),
        (_other(CHOICE, omega_penalty=1.0), None),
        (_other(CHOICE, mode="gradient"), None),
        ([CHOICE], None),
        (None, _other(ROUNDS, last_loss=None)),
        (None, _other(ROUNDS, start=[0.5])),
        (None, _other(ROUNDS, trials=[])),
        (None, _other(ROUNDS, steps=[{"w1": 0.5, "w2": 1.0, "iterations": 2}])),
        (None, _other(ROUNDS, steps=[{"w1": 0.5, "w2": 1.0, "iterations": 2, "loss": 10**400}])),
        (None, _other(ROUNDS, steps=[0.5])),
        (None, _other(ROUNDS, steps=None)),
        (None, _other(ROUNDS, reason="x" * 100_000)),
        (None, "rounds"),
    ],
)
def test_a_record_that_the_older_version_did_not_write_is_refused(
    saved: Path, tmp_path: Path, choice: Any, rounds: Any
) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", third(choice, rounds))
    with pytest.raises(AdapterError) as caught:
        gradfeat.load(path, backbone=network())
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("fit", [None, [], "x", {}])
def test_a_record_that_is_none_is_read_or_refused(saved: Path, tmp_path: Path, fit: Any) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", lambda about: about.update(format_version=3, fit=fit))
    if fit is None:
        assert gradfeat.load(path, backbone=network()).choice_ is None
        return
    with pytest.raises(AdapterError):
        gradfeat.load(path, backbone=network())


def test_the_checksum_of_an_older_file_counts(saved: Path, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "m.safetensors", third())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match="checksum"):
        gradfeat.load(path, backbone=network())
