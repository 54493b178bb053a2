"""Tables 2 and 4: images with several labels, and networks that have seen other images."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from gradfeat.baselines import AllLayersProbe, NearestNeighbours
from gradfeat.data import Inputs
from gradfeat.errors import BackboneError, ConfigurationError, DataError
from gradfeat.metrics.scores import mean_average_precision
from gradfeat.pretrain import input_scaling, save_encoder
from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.reproduce import networks, published, reproduce, table2, table4
from gradfeat.reproduce.ablation import mixed_network
from gradfeat.reproduce.baselines import LABEL_ROWS
from gradfeat.reproduce.protocols import protocol_named
from gradfeat.reproduce.scales import SCALES
from gradfeat.reproduce.scenes import SceneData, digit_scenes, find_scenes, load_scenes
from gradfeat.reproduce.setting import Conditions, Setting

QUIET = {"say": lambda line: None}


@pytest.fixture(scope="module")
def quick():
    """The smallest scale with four steps of the paper's schedule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "smoke", replace(SCALES["smoke"], iterations=4))
        yield {"protocol": "paper-voc", **QUIET}


def test_the_labels_of_a_scene_are_the_digits_in_it() -> None:
    data, first = digit_scenes()
    digits = np.round(load_digits().data.reshape(-1, 64) * (255 / 16)).astype(np.uint8)
    known = {digit.tobytes(): label for digit, label in zip(digits, load_digits().target, strict=True)}
    for scene, labels, corner in zip(data.train[:20], data.y[:20], first[:20], strict=True):
        shown = [known[scene[i : i + 8, j : j + 8, 0].tobytes()] for i in (0, 8) for j in (0, 8)]
        assert set(np.flatnonzero(labels)) == set(shown)
        assert corner == shown[0]
    assert data.train.shape == (600, 16, 16, 1)
    assert data.y_test.shape == (300, 10)


def test_table2_has_every_row_and_both_precisions(tmp_path: Path, quick: dict[str, object]) -> None:
    outcome = reproduce("table2", out=tmp_path, **quick)
    assert len(outcome.results) == 1 + 2 + 2 * (3 * 2 + 1)
    assert [tuple(row[:3]) for row in outcome.table.rows[:3]] == list(published.TABLE2)
    assert outcome.table.header[3:] == ["conv3", "published", "conv2-3", "published"]
    result = outcome.results["seed0.depth2.pre-trained.pre-trained.pre-trained.full"]
    assert outcome.table.rows[0][5].endswith(f"/ {100 * result['map_11point']:.2f}")
    assert outcome.table.more is not None
    assert outcome.table.more[1][0][5].endswith(f"/ {100 * result['map_area']:.2f}")
    assert [row[4] for row in outcome.table.rows] == [
        "83.05 / 83.50", "80.74 / 83.15", "15.63 / 82.84", "82.65", "82.97", "", "",
    ]  # fmt: skip
    text = (tmp_path / "table2.md").read_text()
    assert "area under the curve" in text
    assert "83.05 / 83.50" in text
    assert "protocol paper-voc: 50 epochs" in text
    again = reproduce("table2", out=tmp_path, **quick)
    assert again.results == outcome.results


def test_some_networks_alone_leave_their_cells_to_the_whole_table(tmp_path: Path, quick: dict[str, object]) -> None:
    alone = reproduce("table4", out=tmp_path, only=["rotation"], **quick)
    assert [row[0] for row in alone.table.rows] == ["rotation"]
    assert "only rotation" in (tmp_path / "table4.md").read_text()
    assert sorted(path.name for path in (tmp_path / "encoders").iterdir()) == ["digits.rotation"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    both = reproduce("table4", out=tmp_path, only=["rotation", "jigsaw"], **quick)
    assert [row[0] for row in both.table.rows] == ["jigsaw", "rotation"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(
    ("table", "only", "message"),
    [
        ("table4", "rotations", "table4 has the networks jigsaw, rotation, supervised, not 'rotations'.*rotation"),
        ("table2", "ImageNet", "table2 has one network"),
        ("table3", "vae", "table3 has one network at the scale 'smoke'"),
    ],
)
def test_networks_that_the_table_has_not_are_refused(tmp_path: Path, table: str, only: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        reproduce(table, out=tmp_path, only=[only], **QUIET)
    assert not list(tmp_path.iterdir())


def test_table4_averages_crops_of_three_networks(tmp_path: Path, quick: dict[str, object]) -> None:
    outcome = reproduce("table4", out=tmp_path, **quick)
    assert [row[:2] for row in outcome.table.rows] == [[task, "digits"] for task in networks.TASKS]
    assert len(outcome.results) == 3 * (4 + 2)
    content = json.loads((tmp_path / "table4.json").read_text())
    assert content["configurations"]["jigsaw digits"]["crops"] == 10
    assert content["configurations"]["jigsaw digits"]["theta2"] == {"conv3": ["blocks.2"]}
    assert len({result["map_area"] for result in outcome.results.values()}) > 3
    with Image.open(tmp_path / "table4.png") as picture:
        assert picture.width > 1000


def test_the_mean_over_crops_is_of_probabilities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    y = (rng.random((30, 3)) < 0.5).astype(float)
    data = SceneData("digits", images, y, images[:12], y[:12])
    network = ConvEncoder(1, channels=(4, 6), strides=(1, 2))
    scaling = input_scaling(np.zeros((1, 8, 8, 1)))
    own = networks.own_network(save_encoder(network, tmp_path / "e.safetensors", task="vae", preprocessing=scaling))
    assert own is not None
    task, backbone = own
    assert task == "vae"
    assert networks.own_network(_no_encoder(tmp_path)) is None
    assert backbone.preprocessing.crop_pct == 0.875
    conditions = Conditions(SCALES["smoke"], protocol_named("own"))
    setting = Setting(data, backbone, conditions, columns={"top": ["blocks.1"]}, crops=5)
    samples = setting.samples(0)
    assert len(samples.f_test) == 60
    logits = samples.f_test @ samples.probe.omega + samples.probe.bias
    mean = logits.double().sigmoid().unflatten(0, (12, 5)).mean(1).numpy()
    expected = mean_average_precision(mean, y[:12], method="11point")
    assert setting.activation(0).compute()["map_11point"] == pytest.approx(expected)
    # other methods' probabilities are averaged over the same crops
    share = NearestNeighbours().fit(samples.f.numpy(), y).predict_proba(samples.f_test.numpy())
    expected = mean_average_precision(share.reshape(12, 5, 3).mean(1), y[:12], method="area")
    assert LABEL_ROWS["k-NN"](samples, backbone, 0, None)["map_area"] == pytest.approx(expected)
    probe = AllLayersProbe(network, random_state=0, features_per_layer=128).fit(samples.inputs, y)
    each = np.stack([probe.predict_proba(samples.test.batch(range(i, 60, 5))) for i in range(5)])
    expected = mean_average_precision(each.mean(0), y[:12], method="area")
    assert LABEL_ROWS["all layers"](samples, backbone, 0, None)["map_area"] == pytest.approx(expected)


def _no_encoder(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    return path


def test_difficult_labels_do_not_count(tmp_path: Path) -> None:
    folder = _small_voc(tmp_path / "VOCdevkit" / "VOC2007")
    assert find_scenes("voc07", tmp_path) == folder
    assert find_scenes("coco2014", tmp_path) is None
    data = load_scenes("voc07", folder)
    assert data.y.shape == (4, 2)
    assert np.isnan(data.y).sum() == 1
    assert np.isnan(data.y[1, 0])
    assert "2 classes: cat, dog" in data.note
    assert "officially 5,011" in data.note
    images, labels = data.labelled(2, 0)
    assert len(images) == 2
    assert labels.shape == (2, 2)
    before = data.digest()
    (folder / "JPEGImages" / "000001.jpg").write_bytes(b"another")
    assert data.digest() != before


@pytest.mark.parametrize("inside", ["VOCdevkit", "", "voc", "voc/VOCdevkit"])
def test_voc_2007_is_found_beside_other_years(tmp_path: Path, inside: str) -> None:
    _small_voc(tmp_path / inside / "VOC2012")
    assert find_scenes("voc07", tmp_path) is None
    folder = _small_voc(tmp_path / inside / "VOC2007")
    assert find_scenes("voc07", tmp_path) == folder
    assert find_scenes("voc07", folder) == folder
    assert load_scenes("voc07", folder).y.shape == (4, 2)


def _small_voc(folder: Path) -> Path:
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for split, names in (("trainval", "1234"), ("test", "5678")):
        for c, name in enumerate(("cat", "dog")):
            signs = ["1" if (int(n) + c) % 2 else "-1" for n in names]
            if split == "trainval" and c == 0:
                signs[1] = "0"
            lines = [f"00000{n} {sign}" for n, sign in zip(names, signs, strict=True)]
            (folder / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("\n".join(lines))
        for n in names:
            Image.new("RGB", (40, 30), (int(n) * 20, 0, 0)).save(folder / "JPEGImages" / f"00000{n}.jpg")
    return folder


def test_what_to_download_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VOCtrainval_06-Nov-2007(.|\n)*COCO 2014: not found.*: put annotations/"):
        reproduce("table4", out=tmp_path / "out", scale="reduced", data=tmp_path, **QUIET)
    with pytest.raises(DataError, match="give their folder with --data"):
        reproduce("table2", out=tmp_path / "out", scale="full", **QUIET)


def test_random_layers_of_any_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    ).eval()
    x = Inputs(np.random.default_rng(0).normal(size=(20, 1, 7, 7)).astype(np.float32))
    mixed = mixed_network(network, ["3"], theta1="random", theta2="pre-trained", images=x, seed=0)
    assert torch.equal(mixed[3][0].weight, network[3][0].weight)
    assert not torch.equal(mixed[0].weight, network[0].weight)
    moments = mixed[0](x.batch(range(20)))
    assert torch.allclose(mixed[1].running_mean, moments.mean((0, 2, 3)), atol=1e-5)
    other = mixed_network(network, ["3"], theta1="random", theta2="random", images=x, seed=0)
    assert torch.equal(other[0].weight, mixed[0].weight)  # the same draw, whatever else is random
    network[3].token = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigurationError, match=r"3 \(Sequential\) cannot be initialized anew"):
        mixed_network(network, ["3"], theta1="pre-trained", theta2="random", images=x, seed=0)


def test_the_tables_ask_for_what_was_published() -> None:
    assert table4.CROPS == 10
    assert Counter(key[0] for key in published.TABLE4) == {"jigsaw": 2, "ImageNet": 2}
    assert list(networks.RESNET.columns) == ["layer4.1", "layer4.0-1"]
    assert table2.TABLE.depths == (1, 2)


def test_an_own_encoder_takes_the_place_of_a_pretrained_one(tmp_path: Path, quick: dict[str, object]) -> None:
    scaling = input_scaling(np.zeros((1, 16, 16, 1)))
    network = ConvEncoder(1, **networks.TINY)
    file = save_encoder(network, tmp_path / "own.safetensors", task="jigsaw", preprocessing=scaling)
    outcome = reproduce("table4", out=tmp_path / "out", encoder=file, **quick)
    assert [row[0] for row in outcome.table.rows] == ["jigsaw", "rotation", "supervised"]
    assert not (tmp_path / "out" / "encoders" / "digits.jigsaw").exists()
    assert any("own.safetensors, pre-trained by jigsaw" in remark for remark in outcome.table.remarks)


@pytest.mark.parametrize(
    ("file", "table", "arguments", "error", "message"),
    [
        ("nosuch.safetensors", "table4", {"only": ["rotation"]}, BackboneError, "No weights file at .*nosuch"),
        ("junk.safetensors", "table2", {}, BackboneError, "junk.safetensors is damaged"),
        ("junk.pth", "table4", {"scale": "reduced"}, BackboneError, "junk.pth is damaged"),
        ("junk.safetensors", "table3", {}, BackboneError, "junk.safetensors is damaged"),
        ("newer.safetensors", "table4", {}, BackboneError, "Upgrade"),
        ("weights.safetensors", "table2", {}, ConfigurationError, "was not written by `gradfeat pretrain`.*'smoke'"),
        ("jigsaw.safetensors", "table4", {"only": ["rotation"]}, ConfigurationError, "'jigsaw', but only rotation"),
        (
            "weights.safetensors",
            "table4",
            {"scale": "reduced", "only": ["rotation", "jigsaw"]},
            ConfigurationError,
            "'ImageNet', but only rotation, jigsaw is wanted",
        ),
        (
            "vae.safetensors",
            "table3",
            {"scale": "reduced", "only": ["bigan"]},
            ConfigurationError,
            "'vae', but only bigan",
        ),
    ],
)
def test_a_file_that_no_row_is_computed_with_is_refused_before_any_work(
    tmp_path: Path, file: str, table: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    _no_encoder(tmp_path)
    for name in ("junk.safetensors", "junk.pth"):
        (tmp_path / name).write_bytes(b"xxxx")
    scaling = input_scaling(np.zeros((1, 16, 16, 1)))
    for task in ("jigsaw", "vae"):
        network = ConvEncoder(1, **networks.TINY)
        written = save_encoder(network, tmp_path / f"{task}.safetensors", task=task, preprocessing=scaling)
    old, new = b'"format_version":"1"', b'"format_version":"9"'
    (tmp_path / "newer.safetensors").write_bytes(written.read_bytes().replace(old, new))
    with pytest.raises(error, match=message):
        reproduce(table, out=tmp_path / "out", data=tmp_path, encoder=tmp_path / file, **arguments, **QUIET)
    assert not (tmp_path / "out").exists()
