"""Commands on tables: of images and labels, and of texts whose labels are names that look like numbers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from gradfeat import load

pytestmark = pytest.mark.filterwarnings("default::gradfeat.errors.GradfeatWarning")

FAST = ("--mode", "activation")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def images_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


@pytest.fixture
def contest(pictures: Path, tmp_path: Path) -> Path:
    """Tables train.csv and test.csv of the pictures, with names that are relative to their folder and lack a suffix."""
    for part in ("train", "test"):
        names = [image.relative_to(pictures).with_suffix("") for image in images_in(pictures / part)]
        lines = [f"{name},{'007' if name.parent.name == 'dark' else '7'}" for name in names]
        (tmp_path / f"{part}.csv").write_text("image_id,label\n" + "\n".join(lines) + "\n")
    return tmp_path


def test_a_table_of_images_is_a_data_set_of_every_command(
    run: Any, contest: Path, pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    found = run("fit", contest / "train.csv", "-b", encoder, "-o", path, "--image-root", pictures, *FAST)
    assert found.code == 0, found.err
    assert "20 images, 2 classes" in found.out
    assert load(path).classes_.tolist() == ["007", "7"]
    assert "'007' and '7'" in found.err  # they look like the same number, and are two classes

    judged = run("evaluate", path, contest / "test.csv", "--image-root", pictures, "--json")
    assert judged.code == 0, judged.err
    assert judged.json["n"] == 12

    (contest / "unlabelled.csv").write_text("image_id\ntest/light/0\ntest/dark/1\n")
    told = run("predict", path, contest / "unlabelled.csv", "--image-root", pictures)
    assert told.code == 0, told.err
    assert [row["sample"] for row in rows(told.out)] == ["test/light/0", "test/dark/1"]
    expected = load(path).predict([pictures / "test/light/0.png", pictures / "test/dark/1.png"])
    assert [row["prediction"] for row in rows(told.out)] == list(expected)

    table = run(
        *("compare", contest / "train.csv", "--test-data", contest / "test.csv", "-b", encoder),
        *("--image-root", pictures, "--image-column", "image_id", "--modes", "activation", "--json"),
    )
    assert table.code == 0, table.err
    assert table.json["n_test"] == 12


def test_images_of_a_table_that_are_missing(run: Any, contest: Path, pictures: Path, model: Path) -> None:
    with (contest / "test.csv").open("a") as file:
        file.write("test/dark/nothing,007\n")
    arguments = ("predict", model, contest / "test.csv", "--image-root", pictures)
    found = run(*arguments)
    assert found.code == 2
    assert "line 14" in found.err
    assert str(pictures / "test/dark/nothing") in found.err
    skipped = run(*arguments, "--skip-unreadable")
    assert skipped.code == 0, skipped.err
    assert len(rows(skipped.out)) == 12


def test_options_of_images_for_other_data(run: Any, pictures: Path, model: Path) -> None:
    for data in (pictures, images_in(pictures)[0]):
        assert run("predict", model, data, "--image-column", "image").code == 2


@pytest.fixture
def fit_texts(run: Any, tiny_bert: Path, tmp_path: Path) -> Any:
    def fit(content: str, *options: str) -> Path:
        (tmp_path / "train.csv").write_text(content)
        path = tmp_path / "m.safetensors"
        found = run("fit", tmp_path / "train.csv", "-b", f"hf/{tiny_bert}", "-o", path, *FAST, *options)
        assert found.code == 0, found.err
        return path

    return fit


TEXTS = ("a good film", "it was bad", "the plot", "very good", "bad film", "the very bad plot") * 4


def table_of(labels: list[str]) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(TEXTS, labels, strict=False))


def test_classes_are_told_as_they_are_written(run: Any, fit_texts: Any, tmp_path: Path) -> None:
    path = fit_texts(table_of(["01", "002", "10"] * 8))
    (tmp_path / "texts.txt").write_bytes("a good film\u2028bad\rthe plot\n".encode())  # two lines, not three
    told = run("predict", path, tmp_path / "texts.txt")
    assert told.code == 0, told.err
    table = rows(told.out)
    assert [row["sample"] for row in table] == ["a good film\u2028bad", "the plot"]
    assert list(table[0]) == ["sample", "prediction", "002", "01", "10"]
    (tmp_path / "half.jsonl").write_text(json.dumps({"text": "good \ud800 film"}) + "\n")
    halved = run("predict", path, tmp_path / "half.jsonl")
    assert halved.code == 0
    assert "U+FFFD: line 1" in halved.err
    assert rows(halved.out)[0]["sample"] == "good \ufffd film"
    (tmp_path / "test.csv").write_text(table_of(["10"] * 3))  # numbers here, names in the training data
    judged = run("evaluate", path, tmp_path / "test.csv", "--json")
    assert judged.code == 0, judged.err
    assert judged.json["n"] == 3


def test_several_labels_of_a_text(run: Any, fit_texts: Any, tmp_path: Path) -> None:
    path = fit_texts(table_of(["x/y", "x", "z/y", "z"] * 6), "--label-separator", "/")
    (tmp_path / "test.csv").write_text(table_of(["z", "y/x", "x"]))
    judged = run("evaluate", path, tmp_path / "test.csv", "--label-separator", "/", "--json")
    assert judged.code == 0, judged.err
    told = run("predict", path, tmp_path / "test.csv", "--json")
    assert list(told.json["predictions"][0]["probability"]) == ["x", "y", "z"]


def test_whole_numbers_are_targets_where_the_training_data_had_fractions(
    run: Any, fit_texts: Any, tmp_path: Path
) -> None:
    path = fit_texts(table_of([str(i / 2) for i in range(24)]))
    (tmp_path / "test.csv").write_text(table_of(["3", "4", "5"]))
    judged = run("evaluate", path, tmp_path / "test.csv", "--json")
    assert judged.code == 0, judged.err
    assert "r2" in judged.json


def test_images_of_a_table_without_labels_are_pretrained_on(run: Any, contest: Path, pictures: Path) -> None:
    (contest / "unlabelled.csv").write_text("image_id\ntest/light/0\ntest/dark/1\n")
    arguments = (contest / "unlabelled.csv", "--image-root", pictures, "-o", contest / "o")
    found = run("pretrain", "vae", *arguments, "--epochs", 1, "--image-size", 8, "--latent", 2, "--json")
    assert found.code == 0, found.err
    assert Path(found.json["encoder"]).is_file()
