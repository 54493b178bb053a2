from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradfeat.cli import main
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.pretrain import input_scaling, save_encoder
from gradfeat.pretrain.encoder import BIGAN, ConvEncoder
from gradfeat.reproduce import baselines, published, reproduce, setting, table1
from gradfeat.reproduce.data import digits, find_data, load_data
from gradfeat.reproduce.encoders import BIGAN_PLAN, TINY_PLAN, VAE_PLAN, plan_of, read_encoder
from gradfeat.reproduce.protocols import PROTOCOLS
from gradfeat.reproduce.report import Number
from gradfeat.reproduce.scales import SCALES, Scale

QUICK = {"protocol": "paper", "say": lambda line: None}

ROWS = dict(baselines.ROWS)

pytestmark = pytest.mark.usefixtures("no_baselines")


def test_rows_of_other_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in ROWS.items():
        monkeypatch.setitem(baselines.ROWS, name, row)
    outcome = reproduce("table3", out=tmp_path, say=lambda line: None)
    accuracies = {name: result["accuracy"] for name, result in outcome.results.items() if ".baseline." in name}
    assert [name.rpartition(".")[2] for name in accuracies] == ["k-nn", "all-layers", "lqf"]
    assert min(accuracies.values()) > 0.5  # chance is 0.1
    assert "| k-NN | all layers | LQF |" in (tmp_path / "table3.md").read_text()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Table 1 at the smallest scale, by the paper's schedule cut to four steps."""
    folder = tmp_path_factory.mktemp("table1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "smoke", replace(SCALES["smoke"], iterations=4))
        yield folder, reproduce("table1", out=folder, **QUICK)


def test_table1_has_every_row_and_column(first):
    folder, outcome = first
    assert len(outcome.results) == 52
    content = json.loads((folder / "table1.json").read_text())
    assert content["cells"] == outcome.results
    assert set(content) == {"table", "date", "gradfeat", "configurations", "cells", "computed"}
    assert len(list((folder / "cells").glob("*.json"))) == 52
    assert content["computed"].keys() == outcome.results.keys()
    ((day, machine),) = {(origin["date"], origin["machine"]) for origin in content["computed"].values()}
    assert day == content["date"]
    assert f"computed on {machine}, {day}" in outcome.table.remarks
    rows = outcome.table.rows
    assert [row[:3] for row in rows[:8]] == [list(block) for block in published.TABLE1]
    assert [row[0] for row in rows[8:10]] == ["activation", "fine-tuning"]
    assert outcome.table.header[3:] == ["conv5", "published", "conv4-5", "published", "conv3-5", "published"]
    assert "–" not in "".join(cell for row in rows for cell in row)
    gradient = 100 * outcome.results["seed0.depth2.pre-trained.random.pre-trained.gradient"]["accuracy"]
    full = 100 * outcome.results["seed0.depth2.pre-trained.random.pre-trained.full"]["accuracy"]
    assert rows[5][5:7] == [f"{gradient:.2f} / {full:.2f}", "61.47 / 65.38"]
    text = (folder / "table1.md").read_text()
    assert "| pre-trained | random | pre-trained |" in text
    assert "schedules of at most 4 minibatches" in text
    with Image.open(folder / "table1.png") as picture:
        assert picture.width > 1000


def test_the_same_command_computes_nothing_again(first, monkeypatch):
    folder, outcome = first
    monkeypatch.setattr("gradfeat.reproduce.setting.fit", None)
    times = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    again = reproduce("table1", out=folder, **QUICK)
    assert again.results == outcome.results
    assert {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == times


def test_a_folder_of_another_protocol_is_refused(first):
    with pytest.raises(
        ConfigurationError,
        match="protocol paper, parametrization None there; protocol published-code, parametrization ntk_fan_out now",
    ):
        reproduce("table1", out=first[0], **{**QUICK, "protocol": "published-code"})


def test_only_the_gradients_are_ablated(first):
    results = first[1].results
    activation = results["seed0.activation"]["accuracy"]
    assert activation > 0.3  # a tenth by chance
    # at the paper's rate for so few steps w₁ stays near the probe, and random gradients add little to it
    for name, result in results.items():
        if ".full" in name:
            assert result["accuracy"] > activation - 0.1, name


def test_table3_over_seeds_with_a_further_row(tmp_path, monkeypatch):
    seen = []

    def constant(samples, backbone, seed, parts):
        seen.append((len(samples.y), len(samples.f_test), seed))
        return {"accuracy": 0.25 + 0.5 * seed}

    monkeypatch.setitem(baselines.ROWS, "constant", constant)
    outcome = reproduce("table3", out=tmp_path, seeds=2, scale="smoke", say=lambda line: None)
    assert seen == [(200, 997, 0), (200, 997, 1)]
    assert outcome.table.header[-1] == "constant"
    assert outcome.table.rows[0][-1] == "50.00 ± 35.36"
    assert len(outcome.results) == 2 * 5
    full = [outcome.results[f"digits.tiny.seed{s}.depth1.pre-trained.pre-trained.pre-trained.full"] for s in (0, 1)]
    mean = 50 * sum(result["accuracy"] for result in full)
    assert outcome.table.rows[0][6].startswith(f"{mean:.2f} ± ")
    assert "penalties" in full[0]["how"]
    assert (tmp_path / "table3.png").exists()


def test_a_row_of_the_topmost_layer_is_in_the_first_column_alone(tmp_path, monkeypatch):
    for name in ("other", "LQF"):
        monkeypatch.setitem(baselines.ROWS, name, lambda *arguments: {"accuracy": 0.5})
    monkeypatch.setitem(SCALES, "smoke", replace(SCALES["smoke"], iterations=4))
    cells = table1.TABLE.cells
    monkeypatch.setattr(
        type(table1.TABLE), "cells", lambda own, *rest: [c for c in cells(*rest) if "baseline" in c.name]
    )
    table = reproduce("table1", out=tmp_path, **QUICK).table
    assert table.rows[-2] == ["other", "", "", "50.00", "", "50.00", "", "50.00", ""]
    assert table.rows[-1] == ["LQF", "", "", "50.00", "", "", "", "", ""]


def test_notes_of_cells_are_said_below_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(baselines.ROWS, "noted", lambda *arguments: {"accuracy": 0.5, "notes": ["far from converged"]})
    outcome = reproduce("table3", out=tmp_path, **QUICK)
    assert any("cells have notes (table3.json has all)" in remark for remark in outcome.table.remarks)
    assert outcome.results["digits.tiny.seed0.baseline.noted"]["notes"] == ["far from converged"]


def test_numbers_over_seeds():
    results = {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.6}, "c": {"accuracy": 0.7}}
    assert str(Number.of(results, ["a", "b", "c"])) == "60.00 ± 10.00"
    assert str(Number.of(results, ["a", "z"])) == "50.00"
    assert str(Number.of(results, ["z"])) == "–"


def test_the_cells_of_table1_are_the_papers(first):
    class Names:
        def activation(self, seed):
            return ("activation", seed)

        def cell(self, seed, mode, gradients):
            return (mode, gradients.depth, gradients.theta1, gradients.theta2, gradients.omega, seed)

    cells = table1.TABLE.cells(Names(), [0])
    assert len(cells) == len(set(cells)) == 1 + 8 * 3 * 2 + 3
    assert [cell for cell in cells if cell[0] == "finetune"] == [
        ("finetune", depth, "pre-trained", "pre-trained", "pre-trained", 0) for depth in (1, 2, 3)
    ]


def test_protocols_are_the_published_ones():
    paper, code = (PROTOCOLS[name].schedule(50_000) for name in ("paper", "published-code"))
    assert (paper.optimizer, paper.iterations, paper.halve_every, paper.batch_size) == ("adam", 80_000, 20_000, 64)
    assert (paper.learning_rate, paper.betas, paper.weight_decay) == (1e-3, (0.5, 0.999), 1e-6)
    assert (code.optimizer, code.iterations, code.halve_every, code.batch_size) == ("sgd", 50_000, 10_000, 128)
    assert (code.learning_rate, code.momentum, code.weight_decay, code.clip_norm) == (0.1, 0.9, 5e-5, 10)
    voc = PROTOCOLS["paper-voc"].schedule(6400)
    assert (voc.iterations, voc.halve_every) == (50 * 100, 20 * 100)
    sgd = PROTOCOLS["paper"].finetuning[1]
    assert (sgd.optimizer, sgd.momentum, sgd.weight_decay) == ("sgd", 0.9, 5e-5)
    assert SCALES["full"].protocol == "paper"
    variables = {name: protocol.parametrization for name, protocol in PROTOCOLS.items()}
    assert variables.pop("published-code") == "ntk_fan_out"
    assert set(variables.values()) == {"standard"}


def test_the_published_code_trains_in_its_own_variables(tmp_path, monkeypatch):
    found = []
    fitted = setting.fit
    monkeypatch.setattr(setting, "fit", lambda *rest, **how: (found.append(fitted(*rest, **how)), found[-1])[1])
    monkeypatch.setitem(SCALES, "smoke", replace(SCALES["smoke"], iterations=4))
    reproduce("table3", out=tmp_path, **{**QUICK, "protocol": "published-code"})
    assert {fit.model.mode for fit in found} == {"gradient", "full", "finetune"}
    assert {fit.model.parametrization for fit in found} == {"ntk_fan_out"}


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory):
    """A CIFAR-10 of 40 + 20 images as PNG files in class folders."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, n in (("train", 4), ("test", 2)):
        for c in range(10):
            place = folder / "CIFAR-10" / split / f"class{c}"
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                pixels[0, 0] = c
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def test_data_are_found_and_drawn_by_class(small_cifar):
    path = find_data("cifar10", small_cifar)
    assert path == small_cifar / "CIFAR-10" == find_data("cifar10", path)
    assert find_data("cifar100", small_cifar) is find_data("svhn", small_cifar) is None
    data = load_data("cifar10", path)
    assert data.train.shape == (40, 32, 32, 3)
    assert (data.train[:, 0, 0, 0] == data.y).all()
    images, labels = data.labelled(20, 0)
    assert np.bincount(labels).tolist() == [2] * 10
    assert (images[:, 0, 0, 0] == labels).all()
    assert not np.array_equal(images, data.labelled(20, 1)[0])
    assert data.labelled(None, 0)[0] is data.train is data.labelled(50, 0)[0]
    assert len(data.unlabelled(7)) == 7
    other = load_data("cifar10", path)
    assert data.digest() == other.digest()
    other.y[0] += 1
    assert data.digest() != other.digest()


@pytest.mark.parametrize("left", [1, 9, 10])
def test_almost_all_labels_can_be_drawn(left):
    data = digits()
    images, labels = data.labelled(800 - left, 0)
    assert images.shape == (800 - left, 8, 8, 1)
    assert (np.bincount(data.y) - np.bincount(labels)).max() == 1  # no class loses more than another
    assert np.array_equal(images, data.labelled(800 - left, 0)[0])
    assert not np.array_equal(images, data.labelled(800 - left, 1)[0])


def test_a_run_on_images_with_a_given_encoder(small_cifar, tmp_path, monkeypatch):
    network = ConvEncoder(3, **BIGAN)
    file = save_encoder(
        network, tmp_path / "e.safetensors", task="bigan", preprocessing=input_scaling(np.zeros((1, 32, 32, 3)))
    )
    lines = []
    monkeypatch.setitem(SCALES, "reduced", Scale("reduced", {}, 10, {}, 2, "paper"))
    outcome = reproduce("table3", out=tmp_path, scale="reduced", data=small_cifar, encoder=file, say=lines.append)
    assert [row[:2] for row in outcome.table.rows] == [["bigan", "cifar10"]]
    assert outcome.table.rows[0][3::2] == ["62.87", "70.14", "70.51", "71.78"]
    missing = [line for line in lines if "not found" in line]
    assert [line.split(":")[0] for line in missing] == ["CIFAR-100", "SVHN"]
    assert "cifar-100-python.tar.gz" in missing[0]
    assert all(line in outcome.table.remarks for line in missing)


def test_encoders_of_files(tmp_path):
    scaling = input_scaling(np.zeros((1, 32, 32, 3)))
    bigan, vae = (
        save_encoder(ConvEncoder(3, **arguments), tmp_path / f"{task}.safetensors", task=task, preprocessing=scaling)
        for task, arguments in (("bigan", BIGAN), ("vae", {}))
    )
    plans = (BIGAN_PLAN, VAE_PLAN)
    assert [plan_of(file, plans) for file in (bigan, vae)] == [BIGAN_PLAN, VAE_PLAN]
    assert plan_of(vae, (BIGAN_PLAN,)) is BIGAN_PLAN
    assert read_encoder(vae, VAE_PLAN, 3).network.arguments["channels"] == [16, 32, 32, 32]
    with pytest.raises(ConfigurationError, match=r"expected the encoder 'bigan'.*512.*found.*\[16, 32, 32, 32\]"):
        read_encoder(vae, BIGAN_PLAN, 3)
    with pytest.raises(ConfigurationError, match="in_channels 1"):
        read_encoder(vae, TINY_PLAN, 1)
    other = save_encoder(ConvEncoder(3), tmp_path / "r.safetensors", task="rotation", preprocessing=scaling)
    with pytest.raises(ConfigurationError, match="'rotation'; the table has encoders of bigan, vae"):
        plan_of(other, plans)
    assert plan_of(other, plans, other=BIGAN_PLAN) is BIGAN_PLAN


@pytest.mark.parametrize(
    ("task", "arguments", "columns"),
    [
        ("bigan", BIGAN, ["conv5", "published", "conv4-5", "published", "conv3-5", "published"]),
        ("rotation", BIGAN, ["conv5", "published", "conv4-5", "published", "conv3-5", "published"]),
        ("vae", VAE_PLAN.arguments, ["conv8", "conv7-8", "conv6-8"]),
    ],
)
def test_table1_of_other_encoders(small_cifar, tmp_path, task, arguments, columns):
    scaling = input_scaling(np.zeros((1, 32, 32, 3)))
    file = save_encoder(ConvEncoder(3, **arguments), tmp_path / f"{task}.safetensors", task=task, preprocessing=scaling)
    arguments = {"scale": "reduced", "data": small_cifar, "encoder": file, "finished": True, "say": print}
    only = ["vae" if task == "vae" else "bigan"]
    table = reproduce("table1", out=tmp_path, only=only, **arguments).table  # of no cell, in no time
    assert not any("other networks" in remark for remark in table.remarks)
    assert table.header[3:] == columns
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert any(remark.startswith("published") for remark in table.remarks) == ("published" in columns)
    assert any(f"pre-trained by {task}" in remark for remark in table.remarks)


def test_table1_is_of_one_network_and_one_data_set(small_cifar, tmp_path):
    with pytest.raises(ConfigurationError, match="table1 is of one network"):
        reproduce("table1", out=tmp_path / "o", scale="reduced", data=small_cifar, only=["bigan", "vae"], say=print)
    lines = []
    with pytest.raises(ConfigurationError, match="no network of the table is left"):
        reproduce(
            "table1",
            out=tmp_path / "o",
            scale="reduced",
            data=small_cifar,
            only=["vae"],
            finished=True,
            say=lines.append,
        )
    assert [line.split(":")[0] for line in lines if "left out" in line] == ["vae"]
    assert not any("not found" in line for line in lines)  # CIFAR-10 is there, and one is enough


def test_the_vae_has_eight_convolutions_for_small_images():
    network = ConvEncoder(3, **VAE_PLAN.arguments)
    x = Inputs(np.zeros((2, 3, 32, 32), dtype=np.float32)).example()
    assert (len(network.blocks), network(x).shape) == (8, (2, 256))


def test_digits_are_split_the_same_way_each_time():
    data, again = digits(), digits()
    assert data.train.shape == (800, 8, 8, 1)
    assert (data.train.dtype, data.train.max()) == (np.uint8, 255)
    assert data.digest() == again.digest()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "tabel1"}, ConfigurationError, "Did you mean table1"),
        ({"scale": "reduce"}, ConfigurationError, "Did you mean reduced"),
        ({"protocol": "papers"}, ConfigurationError, "Did you mean paper"),
        ({"labels": 5}, ConfigurationError, "labels must be 100"),
        ({"seeds": 0}, ConfigurationError, "seeds must be 1"),
        ({"device": "cube"}, ConfigurationError, "device must be"),
        ({"scale": "reduced"}, DataError, "--data.\n  CIFAR-10: download"),
        ({"scale": "full", "data": "nowhere"}, DataError, "no folder nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(arguments, error, message, tmp_path):
    given = {"name": "table1", **arguments}
    if "data" in given:
        given["data"] = Path(given["data"])
    with pytest.raises(error, match=message):
        reproduce(out=tmp_path / "o", say=print, **given)
    assert not (tmp_path / "o").exists()


def test_another_data_set_is_no_cifar(small_cifar, tmp_path):
    with pytest.raises(DataError, match="no data set of the table was found"):
        reproduce("table1", out=tmp_path / "o", scale="reduced", data=tmp_path, say=print)
    with pytest.raises(DataError, match="100 classes"):
        load_data("cifar100", small_cifar / "CIFAR-10")
    for split in ("train", "test"):
        for c in range(10):
            place = tmp_path / "cifar10" / split / str(c)
            place.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(place / "0.png")
    with pytest.raises(DataError, match="32 × 32"):
        load_data("cifar10", tmp_path / "cifar10")


def test_the_command_shows_the_table_and_a_plain_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main_arguments = ["reproduce", "table3", "--out", str(tmp_path), "--protocol", "paper"]
    with pytest.raises(SystemExit) as end:
        main(main_arguments)
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "tiny" in out
    assert str(tmp_path / "table3.md") in out.replace("\n", "")
    with pytest.raises(SystemExit):
        main([*main_arguments, "--json"])
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 4
    with pytest.raises(SystemExit) as end:
        main([*main_arguments, "--scale", "huge"])
    assert end.value.code == 2
    assert "scale must be one of smoke, reduced, full" in capsys.readouterr().err
