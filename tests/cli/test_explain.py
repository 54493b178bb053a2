"""`explain` and `suggest`: what they say of pictures, texts' kin and numbers, their sheet, and what they refuse."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradfeat import load

LOW = ("--effort", "low", "--json")
EVIL = "<b> & 'é\".png"


@pytest.fixture
def fitted(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "fitted.safetensors"
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, *LOW)
    assert found.code == 0, found.err
    return path


def test_who_speaks_for_a_prediction(run: Any, pictures: Path, fitted: Path, tmp_path: Path) -> None:
    photo, sheet = tmp_path / EVIL, tmp_path / "sheet.html"
    Image.fromarray(np.full((8, 8), 220, np.uint8)).save(photo)
    found = run("explain", fitted, photo, "--data", pictures, "-k", 3, "--json", "--html", sheet)
    assert found.code == 0, found.err
    (one,) = found.json["explained"]
    assert (one["prediction"], found.json["unit"]) == ("light", "nats")
    assert 0 < len(one["for"]) <= 3
    model = load(fitted)
    files = sorted((pictures / "train").glob("*/*.png"))
    labels = [file.parent.name for file in files]
    effects = -model.recall(files, np.array(labels)).influence([photo])[0]
    for entry in (*one["for"], *one["against"]):
        place = files.index(Path(entry["name"]))
        assert entry["nats"] == pytest.approx(effects[place], rel=1e-4, abs=1e-7)
        assert entry["label"] == labels[place]
    assert one["for"][0]["nats"] == pytest.approx(effects.max(), rel=1e-4)
    assert all(entry["nats"] > 0 for entry in one["for"])
    assert all(entry["nats"] < 0 for entry in one["against"])

    text = sheet.read_text(encoding="utf-8")
    assert text.count("<img") == 1 + len(one["for"]) + len(one["against"])
    assert "&lt;b&gt; &amp; &#x27;é&quot;.png" in text
    assert "<b>" not in text
    assert set(re.findall(r'src="([a-z]+:)', text)) == {"data:"}

    shown = run("explain", fitted, pictures, "--data", pictures, "-k", 2)
    assert shown.code == 0, shown.err
    assert "nats" in shown.out


def test_values_have_units_of_the_target(run: Any, encoder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=30)
    X = (128 + 30 * y[:, None, None, None] + rng.normal(size=(30, 8, 8, 1))).clip(0, 255).astype(np.uint8)
    np.savez(tmp_path / "data.npz", X=X, y=y)
    model = tmp_path / "m.safetensors"
    assert run("fit", tmp_path / "data.npz", "-b", f"gradfeat/{encoder}", "-o", model, *LOW).code == 0
    about = ("--data", tmp_path / "data.npz")
    found = run("explain", model, tmp_path / "data.npz", *about, "--json", "--html", tmp_path / "sheet.html")
    assert found.code == 0, found.err
    assert found.json["unit"] == "units of the target"
    assert len(found.json["explained"]) == 30
    found = run("suggest", model, tmp_path / "data.npz", *about, "-k", 30, "--json")
    assert sorted(int(one["sample"]) for one in found.json["suggested"]) == list(range(30))


def test_what_to_label(run: Any, pictures: Path, fitted: Path, tmp_path: Path) -> None:
    pool = pictures / "test"
    found = run("suggest", fitted, pool, "--data", pictures, "-k", 4, "-o", tmp_path / "next.csv")
    assert found.code == 0, found.err
    with (tmp_path / "next.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["sample"] for row in rows}) == 4
    assert all(Path(row["sample"]).is_file() and row["prediction"] in ("dark", "light") for row in rows)
    assert all(float(row["gain"]) > 0 for row in rows)
    printed = run("suggest", fitted, pool, "--data", pictures, "-k", 4)
    assert [row["sample"] for row in csv.DictReader(printed.out.splitlines())] == [row["sample"] for row in rows]


@pytest.mark.parametrize("command", ["explain", "suggest"])
def test_what_is_wrong_is_said(run: Any, pictures: Path, fitted: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    to = ("--html" if command == "explain" else "-o", out)
    data = ("--data", pictures)
    for options, match in (
        ((pictures / "test",), "--data"),
        ((pictures / "test", *data, "-k", "1000"), "-k is 1000"),
        ((pictures / "test", *data, "-k", "0"), "-k"),
        ((tmp_path / "nowhere", *data), "nowhere"),
    ):
        found = run(command, fitted, *options, *to)
        assert found.code == 2, (options, found.out)
        assert match in " ".join(found.err.split())
        assert "Traceback" not in found.err
        assert not out.exists()
