"""`gradfeat audit`, and fits that mind suspect labels."""

from __future__ import annotations

import csv
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradfeat import load

ODD = "7 <script>alert(1)<script> & 'é\"\u202e.png"
LOW = ("--effort", "low")


@pytest.fixture(scope="module")
def wrong(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, of which one of the light ones is in the folder of the dark ones, under an odd name."""
    root = tmp_path_factory.mktemp("wrong") / "shades"
    shutil.copytree(pictures, root)
    (root / "train" / "light" / "7.png").rename(root / "train" / "dark" / ODD)
    return root


@pytest.fixture(scope="module")
def fitted(wrong: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gradfeat.cli import main

    path = tmp_path_factory.mktemp("fitted") / "model.safetensors"
    with pytest.raises(SystemExit) as end:
        main(["fit", str(wrong), "-b", f"gradfeat/{encoder}", "-o", str(path), *LOW, "--json"])
    assert not end.value.code
    return path


class Page(HTMLParser):
    """What a browser takes a page for: its elements, their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_wrong_one_is_first_everywhere(run: Any, wrong: Path, fitted: Path, tmp_path: Path) -> None:
    found = run(
        "audit", wrong, "-m", fitted, "-k", 3, "--json", "-o", tmp_path / "a.csv", "--html", tmp_path / "a.html"
    )
    assert found.code == 0, found.err
    assert found.json["judged"] == 20
    assert len(found.json["samples"]) == 3
    first = found.json["samples"][0]
    assert first["name"].endswith(ODD)
    assert (first["given"], first["fitting"], first["suspect"]) == ("dark", "light", True)
    assert first["p_given"] < 0.5 < first["p_fitting"]

    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert rows[0]["name"].endswith(ODD)
    assert sorted(int(row["index"]) for row in rows) == list(range(20))

    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert not page.of("script")
    assert len(page.of("img")) == len(page.of("li")) >= 3
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.of("img"))
    assert not any("href" in attributes for _, attributes in page.elements)
    assert any("<script>alert(1)<script> & 'é\"\\u202e.png" in text for text in page.said)


def test_it_is_shown_as_a_table(run: Any, wrong: Path, fitted: Path) -> None:
    found = run("audit", wrong, "-m", fitted, "-k", 2)
    assert found.code == 0, found.err
    assert "would fit" in found.out
    assert "of 20 labels are suspect" in " ".join(found.out.split())
    assert "\u202e" not in found.out


@pytest.mark.parametrize("kind", ["text", "values"])
def test_other_kinds_of_samples(run: Any, tmp_path: Path, encoder: Path, kind: str) -> None:
    """Numbers have no picture; a regression has no probabilities."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=40)
    X = (128 + 30 * y[:, None, None, None] + rng.normal(size=(40, 8, 8, 1))).clip(0, 255).astype(np.uint8)
    y[5] += 40
    if kind == "text":
        y = np.array(["a<b", "c&d"])[(rng.permutation(40) % 2)]
    np.savez(tmp_path / "data.npz", X=X, y=y)
    model = tmp_path / "m.safetensors"
    assert run("fit", tmp_path / "data.npz", "-b", f"gradfeat/{encoder}", "-o", model, *LOW).code == 0
    found = run("audit", tmp_path / "data.npz", "-m", model, "--html", tmp_path / "a.html", "-o", tmp_path / "a.csv")
    assert found.code == 0, found.err
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert len(page.of("img")) >= 20
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if kind == "values":
        assert rows[0]["index"] == "5"
        assert float(rows[0]["given"]) == pytest.approx(y[5], rel=1e-5)
        assert "deviations" in found.out
    else:
        assert {row["given"] for row in rows} == {"a<b", "c&d"}


def test_what_is_wrong_is_said(
    run: Any, wrong: Path, pictures: Path, fitted: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.csv"
    for data, options, match in (
        (pictures, (), "not the samples and labels that the model was fitted to"),
        (wrong, ("--split", "test"), "not the samples and labels that the model was fitted to"),
        (wrong, ("-k", "0"), "-k"),
        (wrong, ("--html", out), "are one file"),
        (wrong, ("-m", tmp_path / "none.safetensors"), "none.safetensors"),
        (tmp_path / "nowhere", (), "nowhere"),
    ):
        found = run("audit", data, "-m", fitted, "-o", out, *options)
        assert found.code == 2, found.out
        assert match in " ".join(found.err.split())
        assert "Traceback" not in found.err
        assert not out.exists()
    tuned = tmp_path / "tuned.safetensors"
    options = ("--mode", "finetune", "--epochs", "1", "--json")
    assert run("fit", wrong, "-b", f"gradfeat/{encoder}", "-o", tuned, *options).code == 0
    found = run("audit", wrong, "-m", tuned)
    assert (found.code, "no linear model" in found.err) == (2, True)


@pytest.mark.parametrize("option", ["--drop-suspects", "--reweight"])
def test_a_fit_minds_suspects(run: Any, wrong: Path, encoder: Path, tmp_path: Path, option: str) -> None:
    model = tmp_path / "m.safetensors"
    found = run("fit", wrong, "-b", f"gradfeat/{encoder}", "-o", model, *LOW, option, "--json")
    assert found.code == 0, found.err
    said = found.json["labels"]
    assert any(one["name"].endswith(ODD) for one in said["suspects"])
    assert said["left_out"] == (len(said["suspects"]) if option == "--drop-suspects" else 0)
    assert said["mean_weight"] < 1
    assert load(model).class_names_ == ["dark", "light"]
    shown = run("fit", wrong, "-b", f"gradfeat/{encoder}", "-o", model, *LOW, option)
    assert "are left out" in shown.out or "samples are weighted" in shown.out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--drop-suspects", "--reweight"), "give one of them"),
        (("--drop-suspects", "--mode", "finetune"), "--drop-suspects would do nothing"),
        (("--reweight", "--solver", "adam"), "--reweight would do nothing"),
    ],
)
def test_a_fit_that_cannot_mind_them(
    run: Any, wrong: Path, encoder: Path, tmp_path: Path, options: tuple[str, ...], match: str
) -> None:
    found = run("fit", wrong, "-b", f"gradfeat/{encoder}", "-o", tmp_path / "m.safetensors", *options)
    assert found.code == 2
    assert match in found.err
    assert list(tmp_path.iterdir()) == []
