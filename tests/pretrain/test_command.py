from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from gradfeat import GradientFeatureClassifier
from gradfeat.backbones import resolve
from gradfeat.cli import main
from gradfeat.errors import BackboneError, MissingDependencyError
from gradfeat.optional import require
from gradfeat.pretrain import load_encoder, save_encoder

FAST = ("--epochs", 2, "--batch-size", 8)


def needs_timm():
    try:
        require("timm", extra="vision")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def weights(path):
    """The file's tensors: the order of its metadata is not fixed, so bytes are no measure."""
    return safetensors.torch.load_file(path)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


PROGRESS = re.compile(r"\[\d+:\d\d\] ")  # which hangs on the clock


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command line in this process; return its exit code, output and messages but its progress."""
    monkeypatch.setenv("COLUMNS", "100")

    def command(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        messages = [line for line in captured.err.splitlines(keepends=True) if not PROGRESS.match(line)]
        return code, captured.out, "".join(messages)

    return command


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Colour images in which the class is the brightness, as an .npz file."""
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    X = (rng.integers(0, 128, (24, 16, 16, 3)) + 128 * y[:, None, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "shades.npz"
    np.savez(path, X=X, y=y)
    return path, X, y


@pytest.mark.parametrize("task", ["vae", "rotation", "jigsaw", "supervised", "colorization", "context"])
def test_the_encoder_is_a_backbone_with_its_preprocessing(task, arrays, tmp_path, run):
    path, X, y = arrays
    code, out, err = run("pretrain", task, path, "--out", tmp_path / "o", *FAST)
    assert code == 0
    assert err == ""
    encoder = tmp_path / "o" / "encoder.safetensors"
    assert str(encoder) in out
    backbone = resolve(str(encoder))
    assert (backbone.preprocessing.size, backbone.preprocessing.mean) == ((16, 16), (0.5, 0.5, 0.5))
    assert load_encoder(encoder)[1]["task"] == task
    assert (tmp_path / "o" / "pictures.png").exists() == (task in ("vae", "colorization"))
    probe = GradientFeatureClassifier(str(encoder), mode="activation").fit(X, y)
    assert probe.score(X, y) == 1.0


def test_bigan_resizes_files_that_lie_loose_in_a_folder(tmp_path, run):
    folder = tmp_path / "loose"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24 + i, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    out = tmp_path / "o"
    code, text, _ = run("pretrain", "bigan", folder, "-o", out, "--epochs", 1, "--objective", "wasserstein", "--json")
    assert code == 0
    result = json.loads(text)
    assert set(result["losses"]) == {"discriminator", "encoder_generator"}
    assert result["epochs_resumed"] == 0
    network, metadata = load_encoder(out / "encoder.safetensors")
    assert metadata["preprocessing"]["size"] == [32, 32]
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    # Three rows of as many pictures as there are images, with a gap of two pixels.
    assert Image.open(result["pictures"]).size == (3 * 34, 3 * 34)


@pytest.mark.parametrize("task", ["rotation", "colorization", "context"])
def test_a_network_of_timm_by_name_is_built_again_from_the_file(task, arrays, tmp_path, run):
    needs_timm()
    path, X, y = arrays
    name = "timm/test_resnet"
    code, _, err = run("pretrain", task, path, "-o", tmp_path, "-n", name, *FAST)
    assert (code, err) == (0, "")
    encoder = tmp_path / "encoder.safetensors"
    backbone = resolve(str(encoder))
    random = resolve(name, weights="random", random_state=0)
    x = torch.rand(2, 3, 16, 16)
    assert not torch.allclose(backbone.network(x), random.network(x))
    again = resolve(str(encoder), weights="random", random_state=0)
    assert torch.equal(again.network(x), random.network(x))
    assert backbone.preprocessing.size == again.preprocessing.size == (16, 16)
    assert backbone.name == f"gradfeat/{encoder}"
    with pytest.raises(BackboneError, match="holds timm/test_resnet"):
        load_encoder(encoder)
    estimator = GradientFeatureClassifier(str(encoder), mode="activation").fit(X, y)
    assert estimator.predict(X).shape == (24,)


def test_no_other_library_is_built_from_a_file(tmp_path):
    with pytest.raises(BackboneError, match="Expected one of"):
        save_encoder(torch.nn.Linear(1, 1), tmp_path / "e.safetensors", task="x", preprocessing={}, name="hf/model")


def test_the_command_resumes_and_says_so(arrays, tmp_path, run):
    path = arrays[0]
    command = ("pretrain", "rotation", path, "-o", tmp_path, *FAST)
    assert run(*command)[0] == 0
    before = weights(tmp_path / "encoder.safetensors")
    (tmp_path / "encoder.safetensors").unlink()
    code, out, _ = run(*command)
    assert code == 0
    assert "after epoch 2 of 2" in out
    assert same(weights(tmp_path / "encoder.safetensors"), before)
    assert len(list(csv.reader((tmp_path / "losses.csv").open()))) == 3
    code, out, err = run(*command, "--seed", 1)
    assert (code, out.count("encoder.safetensors")) == (2, 0)
    assert "random_state 0 there, 1 now" in err
    assert run(*command, "--seed", 1, "--no-resume")[0] == 0
    assert not same(weights(tmp_path / "encoder.safetensors"), before)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("epoch,loss\n1,")])
def test_a_table_of_losses_that_is_gone_is_written_again(damage, arrays, tmp_path, run):
    command = ("pretrain", "rotation", arrays[0], "-o", tmp_path, *FAST)
    assert run(*command)[0] == 0
    table = (tmp_path / "losses.csv").read_text()
    damage(tmp_path / "losses.csv")
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert "after epoch 2 of 2" in out
    assert (tmp_path / "losses.csv").read_text() == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rotations",), "Did you mean rotation"),
        (("rotation", "--network", "smal"), "Did you mean small"),
        (("rotation", "--network", "timm/resnet999"), "timm has no model"),
        (("rotation", "--beta", "2"), "no option 'beta'"),
        (("jigsaw", "--drop-colours"), "no option 'drop_colours'"),
        (("colorization", "--rebalance", "0"), "rebalance must be above 0"),
        (("context", "--image-size", "10"), "11 × 11 or more"),
        (("rotation", "--image-size", "0"), "image_size must be positive"),
        (("vae", "--epochs", "0"), "epochs >= 1"),
        (("vae", "--network", "timm/test_resnet"), "of gradfeat's own"),
        (("vae", "--device", "cube"), "device must be"),
    ],
)
def test_bad_arguments_leave_nothing_behind(arguments, message, arrays, tmp_path, run):
    if any("timm/" in argument for argument in arguments):
        needs_timm()
    task, *more = arguments
    code, _, err = run("pretrain", task, arrays[0], "-o", tmp_path / "o", *more)
    assert code == 2
    assert message in err
    assert not (tmp_path / "o").exists()


def test_data_that_are_no_images(tmp_path, run):
    table = tmp_path / "t.csv"
    table.write_text("text,label\na,0\nb,1\n")
    code, _, err = run("pretrain", "vae", table, "-o", tmp_path / "o")
    assert code == 2
    assert "takes images" in err
    code, _, err = run("pretrain", "vae", tmp_path / "none")
    assert code == 2
    assert "There is no" in err


@pytest.mark.filterwarnings("default::gradfeat.errors.GradfeatWarning")
def test_a_damaged_image_is_named_and_may_be_left_out(tmp_path, run):
    folder = tmp_path / "loose"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"nothing")
    command = ("pretrain", "rotation", folder, "-o", tmp_path / "o", "--image-size", 8, *FAST)
    code, _, err = run(*command)
    assert code == 2
    assert "bad.png" in err
    code, out, err = run(*command, "--skip-unreadable")
    assert code == 0
    assert "left out" in err
    assert "3 images of 8 × 8" in out
