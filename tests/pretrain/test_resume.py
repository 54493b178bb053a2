from __future__ import annotations

import csv
import errno
import io
import json

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.pretrain import ConvEncoder, pretrain_encoder
from gradfeat.pretrain.checkpoint import ASIDE, FILE, LOG
from gradfeat.pretrain.loop import seeded

CASES = {
    "vae": {},
    "rotation": {},
    "supervised": {},
    "jigsaw": {"permutations": 4},
    "bigan": {"latent": 3},
    "colorization": {"width": 4},
    "context": {"drop_colours": True},
    "wasserstein": {"latent": 3, "objective": "wasserstein"},
}


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


def pretrain(case, folder, *, weights=3, **more):
    """A run of three epochs with three batches, on a network as small as can be."""
    side = 15 if case in ("jigsaw", "context") else 8
    channels = 3 if case in ("colorization", "context") else 1
    images = np.random.default_rng(0).integers(0, 256, (10, side, side, channels), np.uint8)
    if case in ("bigan", "wasserstein"):  # 8 -> 3 -> 1 pixels
        arguments = {"channels": (3, 4), "strides": (2, 1), "kernel_size": (4, 3), "padded": False}
    else:
        arguments = {"channels": (3, 4), "strides": (1, 2)}
    with seeded(weights):
        encoder = ConvEncoder(channels, **arguments)
    settings = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "random_state": 0, "options": CASES[case]} | more
    return pretrain_encoder(
        images,
        np.arange(10) % 3 if case == "supervised" else None,
        task="bigan" if case == "wasserstein" else case,
        network=encoder,
        folder=folder,
        **settings,
    )


def kill_at(batch):
    def step(done, total):
        assert total == 9
        if done == batch:
            raise Killed

    return step


def content(path):
    """Return the tensors and the metadata of a checkpoint, without its checksum, so that it can be changed."""
    with safetensors.safe_open(path, "pt") as file:
        about = {name: value for name, value in file.metadata().items() if name != "sha256"}
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_as_an_uninterrupted_one_bit_for_bit(case, tmp_path):
    whole = pretrain(case, tmp_path / "whole").state_dict()
    # In the middle of the first, the second and the third epoch, and once more at the end of the third.
    for batch in (2, 5, 7, 9):
        with pytest.raises(Killed):
            pretrain(case, tmp_path / "parts", step=kill_at(batch))
    epochs = []
    resumed = pretrain(case, tmp_path / "parts", progress=lambda epoch, of, loss: epochs.append(epoch)).state_dict()
    assert epochs == [3]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    tensors, about = content(tmp_path / "whole" / FILE)
    again, about_again = content(tmp_path / "parts" / FILE)
    assert tensors.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in tensors.items())
    assert about == about_again
    for name in (LOG, *(["pictures.png"] if case in ("vae", "colorization", "bigan", "wasserstein") else [])):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_resuming_differs_from_starting_with_the_same_seed(tmp_path):
    """The test above would pass for a loop that ignores its checkpoint, but for the epochs; this one would not."""
    with pytest.raises(Killed):
        pretrain("vae", tmp_path, step=kill_at(4))
    path = tmp_path / FILE
    tensors, about = content(path)
    tensors["task/encoder.blocks.0.0.weight"] += 1
    safetensors.torch.save_file(tensors, path, about)
    changed = pretrain("vae", tmp_path).state_dict()
    assert not torch.equal(changed["blocks.0.0.weight"], pretrain("vae", None).state_dict()["blocks.0.0.weight"])


def test_a_finished_run_is_not_trained_again_and_no_resume_starts_again(tmp_path):
    first = pretrain("vae", tmp_path).state_dict()
    epochs = []
    again = pretrain("vae", tmp_path, progress=lambda epoch, of, loss: epochs.append(epoch)).state_dict()
    assert epochs == []
    assert all(torch.equal(first[name], again[name]) for name in first)
    pretrain("vae", tmp_path, resume=False, progress=lambda epoch, of, loss: epochs.append(epoch))
    assert epochs == [1, 2, 3]


def test_a_new_start_that_is_killed_early_does_not_go_on_as_the_old_run(tmp_path):
    pretrain("vae", tmp_path)
    finished = (tmp_path / FILE).read_bytes()
    # Before the new run's first state, after it, and before the first state of one more start.
    for batch, there in ((2, False), (5, True), (2, False)):
        with pytest.raises(Killed):
            pretrain("vae", tmp_path, resume=False, step=kill_at(batch))
        assert (tmp_path / FILE).exists() == there
        assert (tmp_path / ASIDE).read_bytes() == finished
    epochs = []
    new = pretrain("vae", tmp_path, random_state=1, progress=lambda epoch, of, loss: epochs.append(epoch)).state_dict()
    assert epochs == [1, 2, 3]
    fresh = pretrain("vae", None, random_state=1).state_dict()
    assert all(torch.equal(fresh[name], new[name]) for name in fresh)
    assert not (tmp_path / ASIDE).exists()


def test_keeping_checkpoints_changes_nothing(tmp_path):
    a, b = pretrain("vae", tmp_path).state_dict(), pretrain("vae", None).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_state_every_second_epoch_and_after_the_last_one(tmp_path):
    epochs = []
    with pytest.raises(Killed):  # in the third epoch of three
        pretrain("vae", tmp_path, checkpoint_every=2, step=kill_at(8))
    whole = pretrain("vae", tmp_path, checkpoint_every=2, progress=lambda epoch, of, loss: epochs.append(epoch))
    assert epochs == [3]
    assert len(list(csv.DictReader(io.StringIO((tmp_path / LOG).read_text())))) == 3
    pretrain("vae", tmp_path, progress=lambda epoch, of, loss: epochs.append(epoch))  # all is there
    assert epochs == [3]
    with pytest.raises(Killed):  # in the second epoch: nothing is there yet
        pretrain("vae", tmp_path / "new", checkpoint_every=2, step=kill_at(5))
    again = pretrain("vae", tmp_path / "new", progress=lambda epoch, of, loss: epochs.append(epoch))
    assert epochs == [3, 1, 2, 3]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(ConfigurationError, match="checkpoint_every"):
        pretrain("vae", None, checkpoint_every=0)


def test_the_log_has_the_losses(tmp_path):
    losses = []
    pretrain("bigan", tmp_path, progress=lambda epoch, of, loss: losses.append(loss))
    rows = list(csv.DictReader(io.StringIO((tmp_path / LOG).read_text())))
    assert list(rows[0]) == ["epoch", "discriminator", "encoder_generator"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["discriminator"]) for row in rows] == losses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 4}, "epochs 3 there, 4 now"),
        ({"learning_rate": 0.5}, r"learning_rate 0\.01 there, 0\.5 now"),
        ({"random_state": 1}, "random_state 0 there, 1 now"),
        ({"options": {"beta": 2.0}}, r"beta None there, 2\.0 now"),
    ],
)
def test_another_configuration_is_an_error_that_names_what_differs(tmp_path, change, message):
    pretrain("vae", tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigurationError, match=message) as error:
        pretrain("vae", tmp_path, **change)
    assert "batch_size" not in str(error.value)  # only what differs
    assert "--no-resume" in str(error.value)
    assert (tmp_path / FILE).read_bytes() == before


def test_another_task_and_other_images_are_another_configuration(tmp_path):
    pretrain("vae", tmp_path)
    with pytest.raises(ConfigurationError, match="task vae there, rotation now"):
        pretrain("rotation", tmp_path)
    images = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 1), np.uint8)
    with pytest.raises(ConfigurationError, match="content "):
        pretrain_encoder(images, folder=tmp_path, random_state=0)


def test_a_module_of_other_initial_weights_is_another_run(tmp_path):
    with pytest.raises(Killed):
        pretrain("vae", tmp_path, step=kill_at(5))
    with pytest.raises(ConfigurationError, match=r"run: initial_weights \w{16} there, \w{16} now\. To go on, give"):
        pretrain("vae", tmp_path, weights=4)
    whole, resumed = (pretrain("vae", folder).state_dict() for folder in (None, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_that_does_not_say_its_initial_weights_is_taken(tmp_path):
    """As they were written once."""
    pretrain("vae", tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain("vae", tmp_path, step=kill_at(5))
    path = tmp_path / FILE
    tensors, about = content(path)
    configuration = json.loads(about["configuration"])
    del configuration["initial_weights"]
    safetensors.torch.save_file(tensors, path, about | {"configuration": json.dumps(configuration)})
    epochs = []
    pretrain("vae", tmp_path, progress=lambda epoch, of, loss: epochs.append(epoch))
    assert epochs == [2, 3]
    assert content(path)[1] == content(tmp_path / "whole" / FILE)[1]  # and says them now


def test_truncated_and_foreign_checkpoints(tmp_path):
    pretrain("vae", tmp_path)
    path = tmp_path / FILE
    good = path.read_bytes()
    for length in (0, 7, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(DataError, match=r"damaged or no checkpoint.*--no-resume"):
            pretrain("vae", tmp_path)
    path.write_bytes(good)
    tensors, about = content(path)
    for change in ({"format": "other"}, {"format_version": "99"}, {"history": "{"}, {"format_version": "one"}):
        safetensors.torch.save_file(tensors, path, about | change)
        with pytest.raises(DataError, match="damaged or no checkpoint"):
            pretrain("vae", tmp_path)
    for name in ("task/encoder.blocks.0.0.weight", "random/cpu"):
        safetensors.torch.save_file({k: v for k, v in tensors.items() if k != name}, path, about)
        with pytest.raises(DataError, match="does not fit"):
            pretrain("vae", tmp_path)
    safetensors.torch.save_file(tensors, path, about | {"optimizers": json.dumps([])})
    with pytest.raises(DataError, match="does not fit"):
        pretrain("vae", tmp_path)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    whole = pretrain("vae", tmp_path).state_dict()
    path = tmp_path / FILE
    good = path.read_bytes()
    noticed = 0
    for place in np.random.default_rng(0).integers(0, len(good), 25):
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(place) % 8
        path.write_bytes(flipped)
        try:
            again = pretrain("vae", tmp_path).state_dict()
        except (DataError, ConfigurationError) as error:
            assert str(tmp_path) in str(error)  # noqa: PT017  (a bit of a name may change nothing)
            assert "--no-resume" in str(error)  # noqa: PT017
            noticed += 1
        else:
            assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert noticed > 20


def test_a_full_disk_keeps_the_epoch_before(tmp_path, monkeypatch):
    whole = pretrain("vae", None).state_dict()
    calls = []

    def full(file):
        calls.append(file)
        if len(calls) == 4:  # a table and a state for each epoch
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gradfeat.files.writing.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        pretrain("vae", tmp_path)
    assert error.value.filename == str(tmp_path / FILE)
    monkeypatch.undo()
    epochs = []
    resumed = pretrain("vae", tmp_path, progress=lambda epoch, of, loss: epochs.append(epoch)).state_dict()
    assert epochs == [2, 3]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == [FILE, LOG, "pictures.png"]
