"""`gradfeat forget`: the new file is the model of the samples that are left; what cannot be meant leaves no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradfeat import load

GIVEN = ("--penalty", "0.01,0.01", "--rounds", "1", "--precision", "float64")


@pytest.fixture
def fitted(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "given.safetensors"
    found = run("fit", pictures, "-b", encoder, "-o", path, *GIVEN)
    assert found.code == 0, found.err
    return path


def listed(folder: Path, *lines: object) -> Path:
    path = folder / "list.txt"
    path.write_text("\n".join(map(str, lines)) + "\n")
    return path


def test_the_new_file_is_the_model_of_what_is_left(run: Any, pictures: Path, fitted: Path, tmp_path: Path) -> None:
    out, train = tmp_path / "new.safetensors", pictures / "train"
    names = listed(tmp_path, train / "dark" / "3.png", "light/4.png", 0)
    found = run("forget", fitted, "--data", pictures, "--remove", names, "-o", out, "--json")
    assert found.code == 0, found.err
    assert (found.json["removed"], found.json["left"], found.json["ended_classes"]) == (3, 17, [])
    assert found.json["gap"] <= 1e-4
    assert found.json["largest_logit_change"]["left"] > 0
    assert "3 removed" in found.json["how"]
    X = sorted((train / "dark").iterdir()) + sorted((train / "light").iterdir())
    left = [path for path in X if path not in (X[0], train / "dark" / "3.png", train / "light" / "4.png")]
    y = np.array([path.parent.name for path in left])
    old, new = load(fitted), load(out)
    old.set_params(solver="dual", penalty=(0.01, 0.01), rounds=1, precision="float64")
    refit = old.fit(list(map(str, left)), y)
    np.testing.assert_allclose(new.predict_proba(X), refit.predict_proba(X), atol=2e-3)
    assert "3 removed" in new.how_["update"]
    assert len(new.recall(left, y).loo_.proba) == 17


def test_a_report_for_people(run: Any, pictures: Path, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    found = run("forget", fitted, "--data", pictures, "--remove", listed(tmp_path, 1), "-o", out)
    assert found.code == 0, found.err
    assert "samples removed" in found.out
    assert "above its minimum" in found.out
    assert "delete it" in found.out


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["nobody.png"], "no sample"),
        ([99], "no sample"),
        ([0, 0], "twice"),
        ([0, "dark/0.png"], "twice"),
        ([""], "names no samples"),
        (range(19), "1 training sample"),
        (range(10), "one class"),
    ],
    ids=["unknown", "out of range", "twice", "by two names", "empty", "all but one", "a class of two"],
)
def test_what_cannot_be_meant(
    run: Any, pictures: Path, fitted: Path, tmp_path: Path, lines: list[object], words: str
) -> None:
    out = tmp_path / "new.safetensors"
    found = run("forget", fitted, "--data", pictures, "--remove", listed(tmp_path, *lines), "-o", out)
    assert found.code
    assert words in " ".join(found.err.split())
    assert not out.exists()


def test_nothing_is_overwritten(run: Any, pictures: Path, fitted: Path, tmp_path: Path) -> None:
    names = listed(tmp_path, 1)
    before = fitted.read_bytes()
    found = run("forget", fitted, "--data", pictures, "--remove", names, "-o", fitted)
    assert found.code
    assert "would be lost" in " ".join(found.err.split())
    assert fitted.read_bytes() == before
