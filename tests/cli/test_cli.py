from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gradfeat import load
from gradfeat.cli import demo
from gradfeat.cli.app import app
from gradfeat.data.preprocessing import Preprocessing
from gradfeat.pretrain import save_encoder
from gradfeat.pretrain.encoder import ConvEncoder

COMMANDS = ("demo", "fit", "compare", "predict", "evaluate", "audit", "forget", "inspect", "pretrain")
CLASSES = ("dark", "light")


# ---- help ---------------------------------------------------------------------------------------


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom gradfeat.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    found = CliRunner().invoke(app, [command, "--help"])
    assert found.exit_code == 0
    assert "--json" in found.stdout


def test_version() -> None:
    from gradfeat import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"gradfeat {__version__}\n"


def test_unknown_command_and_option(run: Any) -> None:
    assert run("fitt").code == 2
    assert run("fit", "--nonsense").code == 2


def above_the_command(out: str) -> list[str]:
    """The lines without the next command, whose paths are as long as they are."""
    return out.split("Next:")[0].splitlines()


# ---- fit ----------------------------------------------------------------------------------------


def test_fit_shows_a_table(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    found = run("fit", pictures, "-b", encoder, "-o", path, "--mode", "activation")
    assert found.code == 0, found.err
    assert path.is_file()
    assert "trained parameters" in found.out
    assert max(map(len, above_the_command(found.out))) <= 80


def test_fit_json_is_all_of_standard_output(
    run: Any, fast: tuple[str, ...], pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, "--theta2", "blocks.0", *fast, "--json")
    assert found.code == 0, found.err
    assert found.json["model"] == str(path)
    assert found.json["bytes"] == path.stat().st_size
    estimator = load(path)
    assert found.json["theta2"] == list(estimator.w2_) == ["blocks.0.0.weight", "blocks.0.0.bias"]
    assert estimator.class_names_ == list(CLASSES)


def test_fit_says_what_effort_has_decided(run: Any, encoder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=110)
    X = (rng.normal(size=(110, 8, 8, 1)) * 30 + 90 + 40 * y[:, None, None, None]).clip(0, 255).astype(np.uint8)
    data, model = tmp_path / "data.npz", tmp_path / "m.safetensors"
    np.savez(data, X=X, y=y)
    found = run("fit", data, "-b", f"gradfeat/{encoder}", "-o", model, "--effort", "high", "--json")
    assert found.code == 0, found.err
    assert load(model).effort == "high"
    assert found.json["effort"] == load(model).how_["effort"]
    assert len(found.json["depths"]) == 2  # all of them
    low = run("fit", data, "-b", f"gradfeat/{encoder}", "-o", model, "--effort", "low", "--json")
    assert (low.json["effort"], low.json["depths"], low.json["rounds"]) == (None, [], None)
    wrong = run("fit", data, "-b", f"gradfeat/{encoder}", "-o", model, "--effort", "hgih")
    assert wrong.code == 2
    assert "Did you mean high" in wrong.err


def test_mean_and_std_of_one_number_serve_every_channel(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    options = ("--mean", "0.25", "--std", "0.75", "--resize", "squash", "--mode", "activation")
    found = run("fit", pictures, "-b", encoder, "-o", path, *options, "--json")
    assert found.code == 0, found.err
    expected = Preprocessing(size=(8, 8), mean=(0.25,), std=(0.75,), channels=1, resize="squash")
    assert load(path).backbone_.preprocessing == expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--mean", "grey"), "--mean must be numbers"),
        (("--mode", "ful"), "Did you mean full"),
        (("--mode", "finetune", "--epochs", "0"), "epochs must be"),
        (("--theta2", "nowhere"), "matches no module"),
        (("--split", "trian"), "Did you mean train"),
        (("--data-format", "zip"), "format must be one of"),
        (("-b", "timmm/resnet18"), "Did you mean timm"),
        (("-b", "gradfeat/none.safetensors"), "none.safetensors"),
    ],
)
def test_errors_are_one_message(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path, arguments: tuple[str, ...], match: str
) -> None:
    found = run("fit", pictures, "-b", encoder, "-o", tmp_path / "m.safetensors", *arguments, "--json")
    assert found.code == 2
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert match in found.err
    assert "Traceback" not in found.err
    assert list(tmp_path.iterdir()) == []


def test_missing_data_and_a_file_that_cannot_be_written(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    found = run("fit", tmp_path / "nothing", "-b", encoder)
    assert (found.code, "There is no" in found.err) == (2, True)
    (tmp_path / "file").write_text("")
    found = run("fit", pictures, "-b", encoder, "-o", tmp_path / "file" / "m.safetensors", "--mode", "activation")
    assert (found.code, found.err.startswith("error: ")) == (2, True)


# ---- compare ------------------------------------------------------------------------------------


def test_compare_shows_and_keeps_everything(
    run: Any, fast: tuple[str, ...], pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    found = run("compare", pictures, "-b", f"gradfeat/{encoder}", "--out", out, *fast)
    assert found.code == 0, found.err
    assert max(map(len, above_the_command(found.out))) <= 80
    modes = ("activation", "gradient", "full", "finetune")
    assert all(f"\n {mode} " in found.out for mode in modes)
    for name in ("parameters", "accuracy %", "train loss"):
        assert name in found.out
    results = {"comparison.json", "comparison.md", "comparison.png", "remainder.png"}
    files = {*results, *(f"{mode}.safetensors" for mode in modes)}
    assert {path.name for path in out.iterdir()} == files
    assert load(out / "full.safetensors").class_names_ == list(CLASSES)


def test_compare_json(run: Any, fast: tuple[str, ...], pictures: Path, encoder: Path) -> None:
    found = run("compare", pictures, "-b", encoder, "--modes", "activation, full", *fast, "--json")
    assert found.code == 0, found.err
    assert [row["mode"] for row in found.json["rows"]] == ["activation", "full"]
    assert (found.json["n_train"], found.json["n_test"]) == (20, 12)


def test_compare_never_tests_on_training_data(run: Any, pictures: Path, encoder: Path) -> None:
    undivided = run("compare", pictures / "train", "-b", encoder, "--json")
    assert (undivided.code, undivided.out) == (2, "")
    assert "--test-data" in undivided.err
    same = run("compare", pictures, "-b", encoder, "--test-split", "train")
    assert same.code == 2
    assert "--test-split" in same.err
    apart = ("--test-data", pictures / "test", "--modes", "activation", "--json")
    found = run("compare", pictures / "train", "-b", encoder, *apart)
    assert found.code == 0, found.err
    assert found.json["n_test"] == 12


def test_penalties_losses_and_weights_by_hand(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    options = ("--penalty", "0.1,0.01", "--loss", "one_hot_squared", "--class-weight", "balanced", "--json")
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, *options)
    assert found.code == 0, found.err
    assert found.json["probe_penalty"] == 0.1
    assert found.json["penalties"] is None
    assert load(path).loss == "one_hot_squared"
    wrong = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, "--penalty", "light")
    assert wrong.code == 2
    assert "--penalty must be numbers" in wrong.err


# ---- predict and evaluate -----------------------------------------------------------------------


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_predict_one_image(run: Any, model: Path, pictures: Path) -> None:
    path = pictures / "test" / "light" / "0.png"
    found = run("predict", model, path)
    assert found.code == 0, found.err
    (row,) = rows(found.out)
    assert list(row) == ["sample", "prediction", *CLASSES]
    assert row["sample"] == str(path)
    assert float(row["dark"]) + float(row["light"]) == pytest.approx(1, abs=1e-5)
    assert row["prediction"] == max(CLASSES, key=lambda name: float(row[name]))


def test_predict_a_folder_without_labels(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / f"{name}.png").write_bytes((pictures / "test" / name / "0.png").read_bytes())
    found = run("predict", model, tmp_path)
    assert found.code == 0, found.err
    assert [Path(row["sample"]).name for row in rows(found.out)] == ["dark.png", "light.png"]


def test_predict_class_folders_agrees_with_the_estimator(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    found = run("predict", model, pictures, "-o", out)
    assert found.code == 0, found.err
    assert "12 predictions" in found.out
    table = rows(out.read_text())
    paths = [Path(row["sample"]) for row in table]
    assert {path.parent.parent.name for path in paths} == {"test"}
    assert [row["prediction"] for row in table] == list(load(model).predict(paths))


def test_predict_json(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    found = run("predict", model, pictures / "test", "--json")
    assert found.code == 0, found.err
    assert found.json["model"] == str(model)
    assert len(found.json["predictions"]) == 12
    first = found.json["predictions"][0]
    assert set(first) == {"sample", "prediction", "probability"}
    assert set(first["probability"]) == set(CLASSES)
    written = run("predict", model, pictures / "test", "--json", "-o", tmp_path / "p.json")
    assert written.out == ""
    assert json.loads((tmp_path / "p.json").read_text()) == found.json


@pytest.mark.filterwarnings("default::gradfeat.errors.GradfeatWarning")
def test_predict_names_a_broken_image_or_leaves_it_out(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes((pictures / "test" / "dark" / "0.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = run("predict", model, tmp_path)
    assert found.code == 2
    assert "broken.png" in found.err
    found = run("predict", model, tmp_path, "--skip-unreadable")
    assert found.code == 0
    assert found.err.startswith("warning: ")
    assert [Path(row["sample"]).name for row in rows(found.out)] == ["good.png"]


def test_evaluate_agrees_with_the_estimator(run: Any, model: Path, pictures: Path) -> None:
    found = run("evaluate", model, pictures, "--json")
    assert found.code == 0, found.err
    paths = sorted((pictures / "test").rglob("*.png"))
    truth = np.array([path.parent.name for path in paths])
    assert found.json["accuracy"] == (load(model).predict(paths) == truth).mean()
    assert (found.json["n"], found.json["split"]) == (12, "test")
    shown = run("evaluate", model, pictures)
    assert f"{100 * found.json['accuracy']:.2f}" in shown.out


def test_crops_of_test_images(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    wider = tmp_path / "wider.safetensors"  # images become 10 x 10 pixels, of which the network sees 8 x 8
    torch.manual_seed(0)
    scaling = {"size": [8, 8], "crop_pct": 0.8, "mean": [0.5], "std": [0.5], "channels": 1}
    network = ConvEncoder(1, channels=(4, 6), strides=(2, 2)).eval()
    save_encoder(network, wider, task="vae", preprocessing=scaling)
    out = tmp_path / "out"
    table = run(
        "compare", pictures, "-b", f"gradfeat/{wider}", "--modes", "activation", "--crops", 3, "-o", out, "--json"
    )
    assert table.code == 0, table.err
    assert (table.json["n_test"], "mean over 3 random crops" in table.json["notes"][-1]) == (12, True)
    found = run("evaluate", out / "activation.safetensors", pictures, "--crops", 3, "--json")
    assert found.code == 0, found.err
    paths = sorted((pictures / "test").rglob("*.png"))
    truth = [CLASSES.index(path.parent.name) for path in paths]
    probability = load(out / "activation.safetensors").predict_proba(paths, crops=3)
    expected = -np.log(probability[range(12), truth]).mean()
    assert found.json["log_loss"] == pytest.approx(expected, abs=1e-6)
    assert table.json["rows"][0]["metrics"]["log_loss"] == pytest.approx(expected, abs=1e-6)
    assert (found.json["crops"], found.json["n"]) == (3, 12)
    shown = run("evaluate", out / "activation.safetensors", pictures, "--crops", 3)
    assert "mean over 3 random crops" in " ".join(shown.out.split())
    without = run("compare", pictures, "-b", f"gradfeat/{encoder}", "--modes", "activation", "--crops", 3)
    assert (without.code, "random crops need images larger" in " ".join(without.err.split())) == (2, True)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_models_that_cannot_be_read(run: Any, pictures: Path, encoder: Path, tmp_path: Path, command: str) -> None:
    for path, match in ((tmp_path / "none", "no file"), (encoder, "not a model that gradfeat saved")):
        found = run(command, path, pictures)
        assert (found.code, found.out) == (2, "")
        assert match in found.err


# ---- arrays: multi-label, regression, named classes ---------------------------------------------


def arrays(path: Path, y: Any, **more: Any) -> Path:
    images = np.random.default_rng(0).integers(0, 256, size=(24, 8, 8, 1), dtype=np.uint8)
    np.savez(path, X_train=images[:16], y_train=y[:16], X_test=images[16:], y_test=y[16:], **more)
    return path


def test_multilabel_predictions_name_the_labels(run: Any, encoder: Path, tmp_path: Path) -> None:
    y = np.random.default_rng(1).integers(0, 2, size=(24, 3))
    data = arrays(tmp_path / "d.npz", y, classes=["cat", "dog", "eel"])
    path = tmp_path / "m.safetensors"
    assert run("fit", data, "-b", f"gradfeat/{encoder}", "-o", path, "--mode", "activation", "--json").code == 0
    found = run("predict", path, data, "--json")
    assert found.code == 0, found.err
    for entry in found.json["predictions"]:
        assert entry["prediction"] == [name for name, p in entry["probability"].items() if p > 0.5]
    table = rows(run("predict", path, data).out)
    assert [row["prediction"] for row in table] == [";".join(e["prediction"]) for e in found.json["predictions"]]
    assert set(run("evaluate", path, data, "--json").json) >= {"map_area", "map_11point", "log_loss"}
    other = arrays(tmp_path / "other.npz", y, classes=["dog", "cat", "eel"])
    refused = run("evaluate", path, other)
    assert refused.code == 2
    assert "fitted to cat, dog, eel" in refused.err


def test_regression(run: Any, encoder: Path, tmp_path: Path) -> None:
    y = np.random.default_rng(1).normal(size=24)
    data = arrays(tmp_path / "d.npz", y)
    path = tmp_path / "m.safetensors"
    assert run("fit", data, "-b", f"gradfeat/{encoder}", "-o", path, "--mode", "activation", "--json").code == 0
    assert list(rows(run("predict", path, data).out)[0]) == ["sample", "prediction"]
    assert set(run("evaluate", path, data, "--json").json) >= {"r2", "rmse"}
    labelled = arrays(tmp_path / "l.npz", np.arange(24) % 2)
    assert "is a regression model" in run("evaluate", path, labelled).err


def test_numbered_classes_get_their_names(run: Any, encoder: Path, tmp_path: Path) -> None:
    y = np.array([0, 2] * 12)  # the class 1 has no sample
    data = arrays(tmp_path / "d.npz", y, classes=["cat", "dog", "eel"])
    path = tmp_path / "m.safetensors"
    assert run("fit", data, "-b", f"gradfeat/{encoder}", "-o", path, "--mode", "activation", "--json").code == 0
    table = rows(run("predict", path, data).out)
    assert list(table[0]) == ["sample", "prediction", "cat", "eel"]
    assert {row["prediction"] for row in table} <= {"cat", "eel"}


# ---- inspect ------------------------------------------------------------------------------------


def test_inspect_an_encoder(run: Any, encoder: Path) -> None:
    found = run("inspect", encoder)
    assert found.code == 0, found.err
    assert max(map(len, found.out.splitlines())) <= 80
    assert "theta2='auto' takes" in found.out
    about = run("inspect", encoder, "--json", "--most", "1").json
    assert len(about["rows"]) == 1
    assert about["rows"][0]["name"] == about["auto"]
    assert about["preprocessing"]["size"] == [8, 8]


def test_inspect_a_saved_model(run: Any, model: Path) -> None:
    found = run("inspect", model)
    assert found.code == 0, found.err
    assert "dark, light" in found.out
    assert max(map(len, found.out.splitlines())) <= 80
    assert run("inspect", model, "--json").json["task"] == "multiclass"


def test_a_saved_model_says_how_it_was_fitted(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    fitted = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, "--penalty", "0.1,0.1", "--json").json
    assert fitted["solver"].startswith("subspace: ")
    assert "epochs" not in fitted  # a solver has iterations
    again = load(path)
    assert again.how_["solver"] == fitted["solver"]
    again.save(path)
    for seen in (path, again.save(tmp_path / "again.safetensors")):
        shown = run("inspect", seen)
        assert shown.code == 0, shown.err
        assert "solver" in shown.out
        assert "subspace: " in shown.out


def test_fit_keeps_what_was_chosen(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen"
    command = ("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", tmp_path / "model.safetensors", "--json")
    found = run(*command, "--rounds", "1", "--pictures", out)
    assert found.code == 0, found.err
    assert {path.name for path in out.iterdir()} == {"penalty_full.png", "penalty_full.json"}
    path = json.loads((out / "penalty_full.json").read_text())
    assert {point["lambda2_units"] is None for point in path} == {True, False}
    assert all(set(point) == {"omega_penalty", "lambda1", "lambda2_units", "loss"} for point in path)
    assert found.json["solver='auto'"].startswith("subspace: ")
    moved = run(*command, "--rounds", "2", "--pictures", tmp_path / "rounds")
    assert moved.code == 0, moved.err
    pictures_of_rounds = {path.name for path in (tmp_path / "rounds").iterdir()}
    if moved.json["rounds"] is not None:
        assert pictures_of_rounds == {"rounds_full.png"}
        assert "held-out loss of the probe" in moved.json["rounds"]
    else:  # no move was better than the probe
        assert pictures_of_rounds == {"penalty_full.png", "penalty_full.json"}


def test_what_is_done_to_an_image_is_said(run: Any, model: Path, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    whole = "shorter side to 8 pixels (bilinear), centre of 8 × 8 (square images are kept whole"
    mode = ("--mode", "activation", "-o", out)
    for shown in (
        run("fit", pictures, "-b", f"gradfeat/{encoder}", *mode),
        run("compare", pictures, "-b", f"gradfeat/{encoder}", "--modes", "activation"),
        run("inspect", encoder),
        run("inspect", model),
    ):
        assert shown.code == 0, shown.err
        assert f"images: {whole}" in " ".join(shown.out.split()).replace("images shorter", "images: shorter")
    cropped = run("fit", pictures, "-b", f"gradfeat/{encoder}", *mode, "--crop-pct", 0.8, "--json")
    assert (cropped.json["preprocessing"]["crop_pct"], cropped.json["preprocessing"]["size"]) == (0.8, [8, 8])


def test_inspect_unknown(run: Any) -> None:
    found = run("inspect", "resnet18")
    assert found.code == 2
    assert "timm/resnet18" in found.err


# ---- demo ---------------------------------------------------------------------------------------


def test_demo(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PRETRAIN_EPOCHS", 1)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "TEST", 1400)
    monkeypatch.setattr(demo, "LABELLED", 60)
    found = run("demo", "--out", tmp_path / "demo", "--json")
    assert found.code == 0, found.err
    assert found.json["loaded_model_predicts_the_same"] is True
    assert len(found.json["rows"]) == 4
    files = {"encoder.safetensors", "model.safetensors", "comparison.png", "comparison.json"}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == files


def test_checkpoint_of_another_command_is_refused(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    command = ("fit", pictures, "-b", f"gradfeat/{encoder}", "--mode", "activation", "--checkpoint", tmp_path / "parts")
    first, again = (run(*command, "-o", tmp_path / name, "--json") for name in ("a.safetensors", "b.safetensors"))
    assert first.code == again.code == 0, first.err
    assert list((tmp_path / "parts").glob("*/probe.safetensors"))
    assert first.json["probe_penalty"] == again.json["probe_penalty"]
    assert "going on from" in run(*command, "-o", tmp_path / "b.safetensors").out
    other = run(*command, "-o", tmp_path / "c.safetensors", "--seed", "1")
    assert other.code
    assert "random_state 0 there, 1 now" in " ".join(other.err.split())


def test_no_part_but_the_usual_of_data_without_parts(run: Any, pictures: Path, model: Path) -> None:
    whole = pictures / "test"
    found = run("evaluate", model, whole)
    assert found.code == 0
    assert "has no parts: all of it is judged" in " ".join((found.out + found.err).split())
    found = run("evaluate", model, whole, "--split", "validation")
    assert found.code == 2
    assert "no parts" in found.err
    assert "no parts" in run("fit", whole, "-b", "gradfeat/none", "--split", "test").err


def test_predictions_of_crops_and_on_a_device(run: Any, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    plain, roomy = tmp_path / "plain.safetensors", tmp_path / "roomy.safetensors"
    network = ("-b", f"gradfeat/{encoder}", "--penalty", "0.1", "--json")
    assert run("fit", pictures, *network, "-o", plain).code == 0
    assert run("fit", pictures, *network, "--crop-pct", "0.5", "-o", roomy).code == 0
    found = run("predict", plain, pictures / "test", "--crops", "2")
    assert found.code == 2
    assert "--crop-pct" in found.err
    one, many = (rows(run("predict", roomy, pictures / "test", "--crops", crops).out) for crops in ("1", "3"))
    assert [row["sample"] for row in one] == [row["sample"] for row in many]
    assert one != many
    assert rows(run("predict", roomy, pictures / "test", "--device", "cpu").out) == one
    assert run("evaluate", roomy, pictures, "--device", "none").code == 2
