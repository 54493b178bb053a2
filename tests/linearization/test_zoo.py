"""The zoo has every family, measures what it says, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.zoo import __main__ as zoo
from benchmarks.zoo.entry import Entry, Subject
from benchmarks.zoo.images import TIMM
from benchmarks.zoo.measure import measure
from benchmarks.zoo.table import write_table
from torch import nn

from gradfeat.linearization import Linearization
from gradfeat.optional import require


def test_every_module_of_timm_with_a_classifier_is_there() -> None:
    timm = require("timm", extra="vision")
    assert sorted(TIMM) == sorted(timm.list_modules())
    for family, model in TIMM.items():
        assert model.partition("?")[0] in timm.list_models(module=family)


@pytest.mark.parametrize("key", ["torch/LSTM", "transformers/llama", "transformers/deberta-v2"])
def test_measured_errors_are_rounding(key: str) -> None:
    (entry,) = (entry for entry in zoo.all_entries() if entry.key == key)
    result = measure(entry)
    assert result["f"] < 1e-12
    assert all(depth["tangent"] < 1e-12 and depth["adjoint"] < 1e-12 for depth in result["depths"])


def _subject() -> Subject:
    return Subject(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 4))


def _broken() -> Subject:
    raise RuntimeError("no such model\nand more")


def _crash() -> Subject:
    import os

    os._exit(9)


def test_a_crash_loses_nothing_and_the_table_says_what_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        Entry("torch", "good", "good", _subject),
        Entry("torch", "broken", "broken", _broken),
        Entry("torch", "crash", "crash", _crash),
        Entry("torch", "last", "last", _subject),
        Entry("torch", "never", "never", _subject),
    ]
    monkeypatch.setattr(zoo, "all_entries", lambda: entries)
    out, page = tmp_path / "out", tmp_path / "coverage.md"
    monkeypatch.setattr("sys.argv", ["zoo", "torch/[!n]*", "--out", str(out)])
    zoo.main()
    found: dict[str, Any] = {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
    assert found["torch--broken"]["error"] == "RuntimeError: no such model"
    assert found["torch--crash"]["error"] == "the process ended with 9"
    assert found["torch--good"]["depths"] == found["torch--last"]["depths"]
    capsys.readouterr()
    zoo.main()
    assert capsys.readouterr().out == ""  # nothing is measured twice
    write_table(page, entries, out)
    lines = page.read_text().splitlines()
    assert "| torch | 5 | 2 |" in lines
    (never,) = (line for line in lines if line.startswith("| never "))
    assert "not measured" in never
    assert any(line.startswith("| crash | crash | the process ended with 9") for line in lines)


def test_a_wrong_derivative_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    tangent = Linearization.tangent
    monkeypatch.setattr(Linearization, "tangent", lambda *args: 1.001 * tangent(*args))
    result = measure(Entry("torch", "wrong", "wrong", _subject))
    for depth in result["depths"]:
        assert depth["tangent"] == pytest.approx(1e-3)
        assert depth["adjoint"] > 1e-6
