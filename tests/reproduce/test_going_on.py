"""Runs that stop and go on, and encoders that are there already."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gradfeat.errors import BackboneError, ConfigurationError, ConvergenceError, DataError
from gradfeat.reproduce import baselines, plan, reproduce
from gradfeat.reproduce.data import digits
from gradfeat.reproduce.encoders import TINY_PLAN, Pretraining, pretrained_in_place
from gradfeat.solvers import first_order
from gradfeat.solvers.schedule import Schedule

QUICK = {"protocol": "paper", "say": lambda line: None}

pytestmark = pytest.mark.usefixtures("no_baselines")


def test_a_table_of_what_is_there_trains_no_encoder(tmp_path):
    lines = []
    with pytest.raises(ConfigurationError, match="no network of the table is left"):
        reproduce("table1", out=tmp_path, finished=True, protocol="paper", say=lines.append)
    assert any("encoder is not there yet" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_is_there_is_not_trained_again(tmp_path, monkeypatch):
    lines = []
    images, folder = digits().train[:64], tmp_path / "digits.tiny"
    quick = Pretraining(folder, epochs=1, device="cpu", say=lines.append)
    fingerprint = pretrained_in_place(TINY_PLAN, images, quick).fingerprint
    file, checkpoint = folder / "encoder.safetensors", folder / "checkpoint.safetensors"
    written = file.stat().st_mtime_ns

    def again(**more):
        found = pretrained_in_place(TINY_PLAN, images, replace(quick, **more)).fingerprint
        return found == fingerprint and file.stat().st_mtime_ns == written

    assert again()
    with pytest.raises(ConfigurationError, match="epochs 1 there, 2 now"):
        again(epochs=2)
    assert again(finished=True, epochs=2)
    checkpoint.unlink()
    assert again()
    assert any("taken as it is" in line for line in lines)
    assert again(finished=True)
    assert sum("epoch 1 of 1" in line for line in lines) == 1
    assert not checkpoint.exists()
    other = replace(TINY_PLAN, task="rotation")
    with pytest.raises(ConfigurationError, match=r"expected an encoder of the task 'rotation'.*found 'vae'"):
        pretrained_in_place(other, images, quick)
    wider = replace(TINY_PLAN, arguments={"channels": (8, 16), "strides": (1, 2)})
    with pytest.raises(ConfigurationError, match=r"channels \[8, 16\].*found.*channels \[8, 8, 16, 16, 16\]"):
        pretrained_in_place(wider, images, quick)
    file.write_bytes(b"xxxx")
    with pytest.raises(BackboneError, match="damaged"):
        again(finished=True)
    file.unlink()
    with pytest.raises(BackboneError, match="No encoder file"):
        again(finished=True)


def test_a_table_of_what_is_there_does_without_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setitem(baselines.ROWS, "stopped", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reproduce("table3", out=tmp_path, **QUICK)
    (tmp_path / "encoders" / "digits.tiny" / "checkpoint.safetensors").unlink()
    monkeypatch.setattr("gradfeat.reproduce.encoders.pretrain_encoder", None)
    shown = reproduce("table3", out=tmp_path, finished=True, **QUICK)
    assert list(shown.results) == ["digits.tiny.seed0.activation"]


def test_an_interrupted_run_shows_what_is_there_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(baselines.ROWS, "stopped", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reproduce("table3", out=tmp_path, **QUICK)
    row = (tmp_path / "table3.md").read_text().splitlines()[4]
    assert row.count("–") == 4  # all but activation
    shown = reproduce("table3", out=tmp_path, finished=True, **QUICK)  # computes nothing: it would be interrupted
    assert (tmp_path / "table3.md").read_text().splitlines()[4] == row
    cells = len(list((tmp_path / "cells").glob("*.json")))
    assert any(remark.endswith("cells are not there") and len(shown.results) == cells for remark in shown.table.remarks)
    monkeypatch.setitem(baselines.ROWS, "stopped", lambda *arguments: {"accuracy": 0.5})
    outcome = reproduce("table3", out=tmp_path, **QUICK)
    assert "–" not in "".join(outcome.table.rows[0])
    assert not any("not there" in remark for remark in outcome.table.remarks)


def test_an_error_leaves_the_table_of_what_is_there(tmp_path, monkeypatch):
    def diverges(*arguments):
        raise ConvergenceError("left the\nfinite numbers")

    def then_damaged(request, found):
        yield next(plan.settings(request, found))
        raise DataError("the next data set is damaged")

    monkeypatch.setitem(baselines.ROWS, "diverges", diverges)
    with pytest.raises(ConvergenceError, match="left the"):
        reproduce("table3", out=tmp_path, **QUICK)
    written = (tmp_path / "table3.md").read_text()
    assert "not complete, not all cells are there; stopped by ConvergenceError: left the finite numbers" in written
    assert list(json.loads((tmp_path / "table3.json").read_text())["cells"]) == ["digits.tiny.seed0.activation"]
    monkeypatch.setattr("gradfeat.reproduce.run.settings", then_damaged)
    with pytest.raises(DataError, match="next data set"):
        reproduce("table3", out=tmp_path, finished=True, **QUICK)
    rewritten = (tmp_path / "table3.md").read_text()
    assert "stopped by DataError: the next data set is damaged" in rewritten
    assert rewritten.splitlines()[4] == written.splitlines()[4]
    lines = []
    (tmp_path / "table3.json").unlink()
    (tmp_path / "table3.json").mkdir()  # nothing can be written there
    with pytest.raises(DataError, match="next data set"):
        reproduce("table3", out=tmp_path, finished=True, protocol="paper", say=lines.append)
    assert lines[-1].startswith("the table of what is there cannot be written: ")
    assert "table3.json" in lines[-1]


def test_a_cell_that_is_stopped_goes_on_in_the_middle(tmp_path, monkeypatch):
    steps, last = [], None
    original = Schedule.at

    def at(schedule, iteration):
        if len(steps) == last:
            raise KeyboardInterrupt
        steps.append(iteration)
        return original(schedule, iteration)

    monkeypatch.setattr(first_order, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(Schedule, "at", at)
    quick = {**QUICK, "protocol": "own"}  # so that fine-tuning alone takes such steps
    whole = reproduce("table3", out=tmp_path / "a", **quick)
    count = len(steps)
    steps.clear()
    last = count - 5
    with pytest.raises(KeyboardInterrupt):
        reproduce("table3", out=tmp_path / "b", **quick)
    assert list((tmp_path / "b" / "parts").glob("*finetune*/*/finetune-trial-*"))
    steps.clear()
    again = reproduce("table3", out=tmp_path / "b", **quick)
    assert 5 <= len(steps) < 5 + 4  # an epoch has four of them
    assert again.results == whole.results
    assert not list((tmp_path / "b" / "parts").iterdir())
    (cell,) = (tmp_path / "b" / "cells").glob("*finetune*.json")
    assert json.loads(cell.read_text())["resumed"] is True
