"""Options that would do nothing, names that are nearly right, and what commands say at the end."""

from __future__ import annotations

import csv
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradfeat import load
from gradfeat.cli.following import after_fit
from gradfeat.cli.given import Given, command, wrapped
from gradfeat.cli.table import TABLE
from gradfeat.fit.penalties import Choice

# ---- options that would do nothing --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (("--mode", "finetune", "--rounds", "auto"), ["--rounds"]),
        (("--mode", "gradient", "--rounds", "3"), ["--rounds"]),
        (("--mode", "gradient", "--effort", "low"), ["--effort"]),
        (("--theta2", "blocks.0", "--effort", "high"), ["--effort"]),
        (("--rounds", "1", "--effort", "high"), ["--effort"]),
        (("--penalty", "0.1", "--effort", "high"), ["--effort"]),
        (("--mode", "activation", "--solver", "subspace"), ["--solver"]),
        (("--mode", "finetune", "--solver", "sgd"), ["--solver"]),
        (("--solver", "pairs"), ["--solver"]),
        (("--mode", "activation", "--solver", "pairs"), ["--solver"]),
        (("--mode", "finetune", "--solver", "pairs", "--epochs", "5"), ["--epochs"]),
        (("--mode", "activation", "--epochs", "5"), ["--epochs"]),
        (("--epochs", "5"), ["--epochs"]),
        (("--solver", "subspace", "--epochs", "5"), ["--epochs"]),
        (("--mode", "activation", "--metric", "plain"), ["--metric"]),
        (("--mode", "finetune", "--parametrization", "ntk_fan_in"), ["--parametrization"]),
        (("--mode", "activation", "--theta2", "blocks.0"), ["--theta2"]),
        (("--mode", "activation", "--penalty", "0.1,0.01"), ["--penalty"]),
        (("--solver", "adam", "--penalty", "0.1,0.01"), ["--penalty"]),
        (("--mode", "activation", "--pictures", "p"), ["--pictures"]),
        (("--penalty", "0.1", "--pictures", "p"), ["--pictures"]),
        (
            ("--mode", "activation", "--rounds", "2", "--epochs", "3", "--solver", "dual"),
            ["--rounds", "--epochs", "--solver"],
        ),
        (("--max-length", "32"), ["--max-length"]),
        (("--seconds", "2"), ["seconds"]),
        (("--text-column", "x"), ["text_column"]),
        (("--encoding", "latin-1"), ["encoding"]),
    ],
    ids=" ".join,
)
def test_fit_refuses_what_would_do_nothing_before_any_work(
    run: Any, pictures: Path, tmp_path: Path, options: tuple[str, ...], refused: list[str]
) -> None:
    found = run("fit", pictures, "-b", "gradfeat/none", "-o", tmp_path / "m.safetensors", *options)
    assert found.code == 2
    assert "none" not in found.err  # the encoder, which is not there, is not looked for
    assert all(name in found.err for name in refused)
    assert len(found.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--mode", "finetune", "--rounds", "1"),  # which says what is so anyway
        ("--theta2", "blocks.0", "--effort", "low"),  # the same
        ("--theta2", "blocks.0", "--effort", "high", "--rounds", "auto"),  # more rates
        ("--effort", "high"),
        ("--mode", "activation", "--solver", "auto", "--penalty", "0.1"),
        ("--mode", "gradient", "--penalty", "0.1,0.01", "--metric", "plain"),
        ("--solver", "adam", "--penalty", "0.1,0", "--epochs", "2"),
        ("--mode", "finetune", "--epochs", "2", "--theta2", "blocks.0"),
        ("--mode", "finetune", "--solver", "pairs", "--theta2", "blocks.0"),
        ("--augment", "none"),
        (
            "--mode",
            "activation",
            "--batch-size",
            "8",
            "--cache",
            "none",
            "--memory",
            "1GB",
            "--precision",
            "float64",
            "--seed",
            "3",
        ),
        ("--skip-unreadable", "--mean", "0.4", "--image-size", "8", "--crop-pct", "1", "--class-weight", "balanced"),
    ],
    ids=" ".join,
)
def test_fit_takes_what_does_something(run: Any, pictures: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    found = run("fit", pictures, "-b", "gradfeat/none", "-o", tmp_path / "m.safetensors", *options)
    assert (found.code, "would do nothing" in found.err) == (2, False)
    assert "none" in found.err  # as far as the encoder that is not there


def test_compare_refuses_what_no_mode_uses(run: Any, pictures: Path) -> None:
    def said(*options: str) -> str:
        error: str = run("compare", pictures, "-b", "gradfeat/none", *options).err
        return error

    assert "--rounds would do nothing" in said("--modes", "activation,gradient", "--rounds", "2")
    assert "--effort would do nothing" in said("--modes", "activation,gradient", "--effort", "low")
    assert "--epochs would do nothing" in said("--modes", "activation, full", "--epochs", "2")
    assert "would do nothing" not in said("--modes", "activation,finetune", "--epochs", "2")
    assert "--solver would do nothing" in said("--modes", "activation,finetune", "--solver", "pairs")
    assert "would do nothing" not in said("--rounds", "2", "--epochs", "2", "--solver", "subspace", "--theta2", "x")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(10)))
    return path


@pytest.mark.parametrize("option", ["--image-size", "--mean", "--std", "--crop-pct", "--resize", "--augment"])
def test_options_of_images_are_refused_for_texts(run: Any, texts: Path, option: str) -> None:
    value = {"--resize": "squash", "--augment": "mirror", "--image-size": "8"}.get(option, "0.5")
    found = run("fit", texts, "-b", "gradfeat/none", option, value)
    assert found.err == f"error: {option} would do nothing: it is for images, and the data are texts\n"


def test_class_weights_are_refused_for_regression(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "values.npz"
    rng = np.random.default_rng(0)
    np.savez(path, X=rng.normal(size=(20, 3)).astype(np.float32), y=rng.normal(size=20))
    found = run("fit", path, "-b", "gradfeat/none", "--class-weight", "balanced")
    assert (
        found.err
        == "error: --class-weight would do nothing: it is for one class a sample, and here regression has no classes\n"
    )


def test_predict_and_evaluate_refuse_too(run: Any, model: Path, pictures: Path) -> None:
    image = pictures / "test" / "dark" / "0.png"
    for options in (("--encoding", "latin-1"), ("--text-column", "a"), ("--seconds", "3")):
        found = run("predict", model, image, *options)
        assert (found.code, f"{options[0]} would do nothing" in found.err) == (2, True)
    assert "--seconds would do nothing" in run("evaluate", model, pictures, "--seconds", "3").err
    assert "has no part 'tets'" in run("predict", model, pictures, "--split", "tets").err
    assert "Did you mean test" in run("predict", model, pictures, "--split", "tets").err
    assert run("predict", model, pictures, "--split", "train").code == 0
    assert run("predict", model, image, "--split", "test").code == 0


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("probe", "activation"),
        ("Probe", "activation"),
        ("linear", "activation"),
        ("linear-probe", "activation"),
        ("finetuning", "finetune"),
        ("fine-tune", "finetune"),
        ("fine_tuning", "finetune"),
        ("FULL", "full"),
        ("gradients", "gradient"),
        ("fulll", "full"),
        ("ntk", "gradient"),
    ],
)
def test_a_mode_by_another_name(run: Any, pictures: Path, written: str, meant: str) -> None:
    for words in (("fit", "--mode"), ("compare", "--modes")):
        found = run(words[0], pictures, "-b", "gradfeat/none", words[1], written)
        assert (found.code, found.out) == (2, "")
        assert f"Did you mean {meant}?" in found.err


@pytest.mark.parametrize(
    ("option", "written", "meant"),
    [
        ("--solver", "Subspace", "subspace"),
        ("--solver", "closed-form", "dual"),
        ("--precision", "fp32", "float32"),
        ("--precision", "bf16", "bfloat16"),
        ("--metric", "white", "whitened"),
        ("--cache", "residual", "residuals"),
        ("--augment", "flip", "mirror"),
        ("--parametrization", "ntk_fanin", "ntk_fan_in"),
        ("--resize", "Squash", "squash"),
        ("--data-format", "Folder", "folder"),
    ],
)
def test_a_choice_that_is_nearly_right(
    run: Any, pictures: Path, encoder: Path, option: str, written: str, meant: str
) -> None:
    found = run("fit", pictures, "-b", encoder, option, written)
    assert (found.code, found.out.count("model")) == (2, 0)
    assert f"Did you mean {meant}" in found.err


@pytest.mark.parametrize("names", [("blocks.0,blocks.1",), ("blocks.0", "blocks.1"), (" blocks.0 , blocks.1 ",)])
def test_theta2_is_a_list(run: Any, pictures: Path, encoder: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "m.safetensors"
    options = [part for name in names for part in ("--theta2", name)]
    found = run("fit", pictures, "-b", encoder, "-o", path, *options, "--penalty", "0.1", "--json")
    assert found.code == 0, found.err
    assert {name.split(".")[1] for name in found.json["theta2"]} == {"0", "1"}


# ---- what is said at the end --------------------------------------------------------------------


def following(out: str) -> list[str]:
    """The words of the next command, as a shell has them."""
    return shlex.split(out[out.index("Next:\n") + 6 :].replace("\\\n", " "))


def test_the_next_command_of_a_comparison_can_be_pasted(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "my results"
    options = ("--modes", "activation,full", "--penalty", "0.1")
    found = run("compare", pictures, "-b", f"gradfeat/{encoder}", *options, "--out", out)
    assert found.code == 0, found.err
    assert "test samples" in found.out
    words = following(found.out)
    assert words[:2] == ["gradfeat", "evaluate"]
    again = run(*words[1:])
    assert again.code == 0, again.err
    assert (out / "confusion.png").is_file()
    assert "recall %" in again.out
    kept = json.loads((out / "comparison.json").read_text())["verdict"]
    assert kept["text"] in " ".join((out / "comparison.md").read_text().split())


def test_the_next_command_after_a_comparison_that_kept_nothing_fits_the_model(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--modes", "activation,finetune", "--epochs", "1", "--seed", "3", "--skip-unreadable")
    found = run("compare", pictures, "-b", f"gradfeat/{encoder}", *options, "--json")
    assert found.code == 0, found.err
    ship, words = found.json["verdict"]["ship"], shlex.split(found.json["next"])
    assert words[:4] == ["gradfeat", "fit", str(pictures), "-b"]
    assert ("--epochs" in words) == (ship == "finetune")  # which the probe would refuse
    assert words[words.index("--seed") + 1] == "3"
    again = run(*words[1:])
    assert again.code == 0, again.err
    assert load(tmp_path / f"{ship}.safetensors").mode == ship


def test_fit_says_what_the_gradient_term_was_worth_and_how_to_go_on(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, "--metric", "plain")
    assert found.code == 0, found.err
    assert "On held-out training data the loss is" in " ".join(found.out.split())
    words = following(found.out)
    assert words[1] in ("compare", "evaluate")
    assert words[2] in (str(pictures), str(path))
    alone = run("fit", pictures / "train", "-b", f"gradfeat/{encoder}", "-o", path, "--mode", "activation", "--json")
    assert alone.json["verdict"] is None
    assert shlex.split(alone.json["next"]) == ["gradfeat", "predict", str(path), str(pictures / "train")]


def test_the_next_command_reads_the_data_as_the_fit_did() -> None:
    values = {"label_column": "tags", "label_separator": "", "skip_unreadable": True, "seed": 3}
    options = Given(values, {option.name: option for option in TABLE if "fit" in option.commands})
    about = (options, Path("-data"), "hf/folder", Path("m.safetensors"))
    evaluate = shlex.split(after_fit(*about, "activation", None, True))
    assert evaluate[:4] == ["gradfeat", "evaluate", "m.safetensors", "./-data"]
    assert evaluate[4:9] == ["--label-column", "tags", "--label-separator", "", "--skip-unreadable"]
    predict = shlex.split(after_fit(*about, "activation", None, False))
    assert predict == ["gradfeat", "predict", "m.safetensors", "./-data", "--skip-unreadable"]


def test_a_fit_that_found_no_gradient_term_is_not_compared_with_the_probe_that_it_is() -> None:
    about = (Given(), Path("data"), "hf/folder", Path("m.safetensors"), "full")
    probe, gradients = (Choice(1.0, 1.0, w2, [], 0.5) for w2 in (math.inf, 1.0))
    assert shlex.split(after_fit(*about, probe, True))[1] == "evaluate"
    assert shlex.split(after_fit(*about, gradients, True))[1] == "compare"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), max_size=6), st.integers(10, 100))
def test_a_wrapped_command_is_the_same_command(parts: list[str], width: int) -> None:
    line = command("fit", *parts)
    assert shlex.split(line) == ["gradfeat", "fit", *parts]
    assert shlex.split(wrapped(line, width).replace(" \\\n", " ")) == shlex.split(line)


def test_evaluate_shows_each_class(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

    picture = tmp_path / "pictures" / "confusion.png"
    found = run("evaluate", model, pictures, "--json", "--picture", picture)
    assert found.code == 0, found.err
    paths = sorted((pictures / "test").rglob("*.png"))
    truth, predicted = [path.parent.name for path in paths], load(model).predict(paths)
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, zero_division=0)
    for i, row in enumerate(found.json["classes"]):
        assert row["class"] == ("dark", "light")[i]
        values = [row[name] or 0 for name in ("precision", "recall", "f1", "support")]
        assert values == pytest.approx([precision[i], recall[i], f1[i], support[i]])
    assert found.json["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found.json["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert np.sum(found.json["confusion"]) == 12
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    shown = run("evaluate", model, pictures)
    assert max(map(len, shown.out.splitlines())) <= 80
    for word in ("dark", "light", "precision %", "recall %", "support", "macro-F1 %", "balanced accuracy %"):
        assert word in shown.out


def test_of_many_classes_the_worst_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from gradfeat.cli.show_report import show_report
    from gradfeat.metrics.report import class_report

    truth = np.repeat(np.arange(120), 3)
    predicted = np.where(truth == 77, 5, truth)  # one class is always wrong, and spoils another one
    show_report(class_report(truth, predicted, [f"name {i}" for i in range(120)]))
    out = capsys.readouterr().out
    assert "The 20 of 120 with the least F1; --json has all" in out
    rows = [line for line in out.splitlines() if line.strip().startswith("name ")]
    assert len(rows) == 20
    assert (rows[0].split()[1], rows[1].split()[1]) == ("77", "5")
    assert "most frequent errors: name 77 taken for name 5 3×" in out


def test_evaluate_of_values_and_of_labels(run: Any, encoder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, size=(30, 8, 8, 1), dtype=np.uint8)
    kinds = {"values": images.mean((1, 2, 3)), "labels": (rng.random((30, 3)) < 0.5).astype(int)}
    for name, y in kinds.items():
        data, path = tmp_path / f"{name}.npz", tmp_path / f"{name}.safetensors"
        np.savez(data, X_train=images, y_train=y, X_test=images, y_test=y)
        done = run("fit", data, "-b", f"gradfeat/{encoder}", "-o", path, "--mode", "activation", "--json")
        assert done.code == 0, done.err
        picture = tmp_path / f"{name}.png"
        found = run("evaluate", path, data, "--json", "--picture", picture)
        assert found.code == 0, found.err
        assert picture.is_file()
        if name == "values":
            predicted = load(path).predict(images)
            assert found.json["mae"] == pytest.approx(np.abs(predicted - y).mean())
            assert {"r2", "rmse"} <= set(found.json)
        else:
            said = load(path).predict(images)
            assert [row["support"] for row in found.json["classes"]] == y.sum(0).tolist()
            right = (said * y).sum(0)
            assert [row["recall"] for row in found.json["classes"]] == pytest.approx((right / y.sum(0)).tolist())
            assert "AP %" in run("evaluate", path, data).out


def test_json_and_predictions_are_all_of_standard_output(run: Any, model: Path, pictures: Path) -> None:
    found = run("predict", model, pictures / "test")
    assert len(list(csv.DictReader(found.out.splitlines()))) == 12
    assert found.err == ""
    found = run("evaluate", model, pictures, "--json")
    assert found.json["n"] == 12
    assert (found.err, found.progress) == ("", [])


def test_inspect_refuses_too(run: Any, model: Path, encoder: Path) -> None:
    assert "--most would do nothing" in run("inspect", model, "--most", "2").err
    assert "--most would do nothing" in run("inspect", encoder, "--theta2", "blocks.0", "--most", "2").err
    assert run("inspect", model, "--json").code == 0
    several = run("inspect", encoder, "--theta2", "blocks.0,blocks.1", "--json")
    assert several.json["rows"][0]["name"] == "blocks.0, blocks.1"


def test_a_part_of_data_without_parts_and_a_list_without_names(run: Any, pictures: Path) -> None:
    options = ("-b", "gradfeat/none", "--test-data", pictures / "test", "--test-split", "val")
    assert "leave out --test-split" in run("compare", pictures / "train", *options).err
    assert "--theta2 names nothing" in run("fit", pictures, "-b", "gradfeat/none", "--theta2", " , ").err


def test_a_picture_is_a_png(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    assert "ends in .png" in run("evaluate", model, pictures, "--picture", tmp_path / "confusion.jpg").err
    assert list(tmp_path.iterdir()) == []
