from __future__ import annotations

import argparse
import collections
import json
import operator
import os
import pickle
import random
import runpy
import subprocess
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from gradfeat.backbones.weights import load_file, load_weights, read_weights
from gradfeat.errors import BackboneError


def own_weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def pickled(content, path, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar", ".ckpt", ".PTH", "", ".safetensors", ".json"])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_content_decides_not_the_suffix(tmp_path, state, suffix, zipped):
    path = pickled({"state_dict": state}, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
    network = nn.Linear(3, 2)
    load_file(network, path)
    assert torch.equal(network.weight, state["weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ""])
def test_reads_safetensors(tmp_path, state, suffix):
    # the length of the header is the first byte; one of these is a JSON text's brace
    for pad in range(8 if suffix else 130):
        safetensors.torch.save_file(state, tmp_path / f"w{suffix}", {"mean": "0.5", "pad": "x" * pad})
        found, metadata = read_weights(tmp_path / f"w{suffix}")
        assert torch.equal(found["bias"], state["bias"])
        assert metadata["mean"] == "0.5"


def test_reads_shards_and_folders(tmp_path, state):
    network = nn.Linear(3, 2)
    for name in state:
        safetensors.torch.save_file({name: state[name]}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in state}}))
    for path in (index, tmp_path):
        load_file(network, path)
        assert torch.equal(network.weight, state["weight"])
    (tmp_path / "bias.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"bias\.safetensors is not beside it"):
        load_file(network, index)
    index.unlink()
    load_file(nn.Linear(3, 2, bias=False), tmp_path)  # one file in a folder
    (tmp_path / "other.pth").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"other\.pth, weight\.safetensors: name one"):
        load_file(network, tmp_path)


def test_folders_of_other_kinds(tmp_path, state):
    snapshot = tmp_path / "models--timm--x" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(state, snapshot / "model.safetensors")
    network = nn.Linear(3, 2)
    load_file(network, tmp_path / "models--timm--x")
    assert torch.equal(network.weight, state["weight"])
    for name, message in {
        ".metadata": "dcp_to_torch_save",
        "zero_to_fp32.py": "DeepSpeed",
        "saved_model.pb": "TensorFlow",
    }.items():
        (tmp_path / f"of {name}").mkdir()
        (tmp_path / f"of {name}" / name).touch()
        with pytest.raises(BackboneError, match=message):
            read_weights(tmp_path / f"of {name}")
    with pytest.raises(BackboneError, match="no file of weights"):
        read_weights(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


class Settings(dict):
    pass


class Run:
    def __init__(self, network):
        self.network = network


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"abc", "damaged"),
        ("w.safetensors", b"", "damaged: it is empty"),
        ("w.pth", b"", "damaged: it is empty"),
        ("w.pth", b"hello, world", "damaged"),
        ("w.npz", b"abc", "ending in"),
        ("w.pth", pickle.dumps(Evil(), protocol=2), "executes nothing"),
        ("w.pth", pickle.dumps({"a": 1}, protocol=2), "torch.save did not write"),
        ("w.pth", pickle.dumps({"a": 1}, protocol=4), "another pickle protocol"),
        ("w.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("w.pth", b"\n<!DOCTYPE html><html>", "web page"),
        ("w.pth", b"<?xml version='1.0'?><Error>AccessDenied", "web page"),
        ("w.pth", b'{"error": "not found"}', "JSON text without weights"),
        ("w.pth", b"[" * 100_000, "JSON text"),
        ("w.h5", b"\x89HDF\r\n\x1a\n", "Keras"),
        ("w.gguf", b"GGUF\x03\x00\x00\x00", "quantized"),
        ("w.onnx", b"\x08\x07\x12\x07pytorch", "ONNX"),
        ("w.pth.gz", b"\x1f\x8b\x08\x00", "unpack it first"),
        ("model.ckpt.data-00000-of-00001", bytes(40), "TensorFlow"),
    ],
)
def test_says_what_other_files_are(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=message):
        read_weights(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_says_what_other_archives_are(tmp_path, state):
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in state.items()})
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("runs/w.pth", b"")
    with zipfile.ZipFile(pickled(state, tmp_path / "w.pth")) as archive:
        archive.extractall(tmp_path / "unpacked")
    for name, message in {
        "w.npz": "NumPy archive",
        "w.pt": r"TorchScript.*torch\.jit\.load\('w\.pt'\)\.state_dict",
        "w.zip": r"runs/w\.pth: unpack it",
        "unpacked": "unpacked as a zip archive",
    }.items():
        with pytest.raises(BackboneError, match=message):
            read_weights(tmp_path / name)


def test_refuses_truncated_files(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    for path in (tmp_path / "w.pth", tmp_path / "old.pth", tmp_path / "w.safetensors"):
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(BackboneError, match="damaged"):
            read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list"),
        ({"a": 1}, "of other kinds"),
        ({}, "is empty"),
        (torch.ones(2), "holds a Tensor"),
        (nn.LazyLinear(2).state_dict(), "lazy layers"),
        ({"model": {"weight": np.ones((2, 3)), "bias": np.ones(2)}}, "NumPy arrays"),
        ({"x": {"state": {0: {"exp_avg": torch.ones(2, 3)}}}}, "optimizer"),
        ({"state_dict": {"weight.qweight": torch.ones(2)}, "a": 1}, "quantized"),
    ],
)
def test_refuses_other_contents(tmp_path, content, message):
    with pytest.raises(BackboneError, match=message):
        load_file(nn.Linear(3, 2), pickled(content, tmp_path / "w.pth"))


def test_a_checkpoint_may_hold_objects_and_none_of_them_is_made(tmp_path, state, monkeypatch):
    content = {
        "args": argparse.Namespace(lr=0.1),
        "loss": np.float64(0.5),
        "history": np.arange(3),
        "path": tmp_path,
        "settings": Settings(depth=Settings(n=1)),
        "counts": collections.defaultdict(int, {"a": 1}),
        "better": [operator.lt, max],
        "state_dict": state,
    }
    path = pickled(content, tmp_path / "w.pth")
    monkeypatch.setattr(Settings, "__new__", lambda *args: pytest.fail("executed"))
    network = nn.Linear(3, 2)
    load_file(network, path)
    assert torch.equal(network.weight, state["weight"])


@pytest.mark.parametrize(
    "wrap",
    [lambda n: n, nn.DataParallel, lambda n: {"model": n, "ema": None}, Run],
    ids=["whole", "DP", "in dict", "in"],
)
def test_a_whole_network_is_read_without_its_code(tmp_path, wrap):
    saved = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    saved[0].running_mean += 3
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    load_file(network, pickled(wrap(saved), tmp_path / "w.pth"))
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in network.state_dict().items())
    path = pickled(wrap(saved), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(BackboneError, match="whole network in the older format"):
        load_file(network, path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", [os.system, subprocess.Popen, eval, runpy.run_path, print])
def test_a_pickle_that_asks_for_more_than_data_is_refused(tmp_path, state, monkeypatch, what, zipped):
    monkeypatch.setattr(Evil, "__reduce__", lambda self: (what, (f"touch {tmp_path}/executed",)))
    path = pickled({"state_dict": state, "x": Evil()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BackboneError, match=f"{what.__name__}.*executes nothing"):
        load_file(nn.Linear(3, 2), path)
    assert not (tmp_path / "executed").exists()


def test_a_small_pickle_that_grows_is_read_in_a_moment(tmp_path, state):
    bomb: list[object] = []
    for _ in range(60):
        bomb = [bomb] * 10
    load_file(nn.Linear(3, 2), pickled({"x": bomb, "model": state}, tmp_path / "w.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_never_gives_another_error(tmp_path, state, zipped):
    path = pickled({"model": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(150):
        place = draw.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        for damaged in (flipped, content[:place]):
            path.write_bytes(damaged)
            network = nn.Linear(3, 2)
            try:
                load_file(network, path)
            except BackboneError:
                continue
            if zipped:  # the older format has no checksums
                assert torch.equal(network.weight, state["weight"])
                assert torch.equal(network.bias, state["bias"])


def test_checksums_may_be_off(tmp_path, state):
    torch.serialization.set_crc32_options(False)
    try:
        path = pickled(state, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    network = nn.Linear(3, 2)
    load_file(network, path)
    assert torch.equal(network.weight, state["weight"])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_what_is_not_used_costs_nothing(tmp_path, state):
    huge = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (10**6, 10**6))
    for head in (huge, torch.ones(1).expand(10**6, 10**6), torch.ones(2).to(torch.float8_e4m3fn)):
        load_file(nn.Linear(3, 2), pickled({**state, "head.weight": head}, tmp_path / "w.pth"))
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02" + b"N" * 10_000_000 + b".")
    with pytest.raises(BackboneError, match="declares 10,000,003 bytes"):
        read_weights(tmp_path / "bomb.pth")


def test_names_are_printed_without_control_characters(tmp_path, state):
    path = pickled({"a\x1b[2J": state}, tmp_path / "w.pth")
    notes, _ = load_file(nn.Linear(3, 2), path)
    assert "a\\" in notes[0]
    assert "\x1b" not in notes[0]
    with pytest.raises(BackboneError) as caught:
        load_file(nn.Linear(4, 2), path)
    assert "\x1b" not in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(BackboneError, match="No weights file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(BackboneError, match="download it first"):
        read_weights("https://example.org/w.pth")
    for name in ("x" * 300, "x" * 300 + "::part", "a\0b"):
        with pytest.raises(BackboneError):
            load_file(nn.Linear(3, 2), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to(torch.float8_e4m3fn), "8-bit floats"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantized network"),
        (lambda w: w.to(torch.int8), "whole numbers"),
        (lambda w: w.to(torch.complex64), "complex"),
        (lambda w: w.to("meta"), "without values"),
    ],
    ids=["fp8", "quantized", "int8", "complex", "meta"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_says_which_values_cannot_be_used(tmp_path, state, change, message):
    path = pickled({**state, "weight": change(state["weight"])}, tmp_path / "w.pth")
    network = nn.Linear(3, 2)
    before = own_weights(network)
    with pytest.raises(BackboneError, match=f"{message}.*weight"):
        load_file(network, path)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_sparse_values_are_laid_out(tmp_path, state):
    network = nn.Linear(3, 2)
    load_file(network, pickled({**state, "weight": state["weight"].to_sparse()}, tmp_path / "w.pth"))
    assert torch.equal(network.weight, state["weight"])


def test_a_part_is_named_behind_colons(tmp_path, state):
    path = pickled({"a": state, "b": {name: -value for name, value in state.items()}}, tmp_path / "w.pth")
    network = nn.Linear(3, 2)
    with pytest.raises(BackboneError, match=r"'a', 'b'.*::a"):
        load_file(network, path)
    load_file(network, f"{path}::b")
    assert torch.equal(network.weight, -state["weight"])
    with pytest.raises(BackboneError, match="no part 'c'"):
        load_file(network, f"{path}::c")
    strange = path.rename(tmp_path / "w::b")
    with pytest.raises(BackboneError, match="Several parts"):
        load_file(network, strange)  # a file of this very name is that file


def test_loads_in_the_networks_dtype(state):
    net = nn.Linear(3, 2)
    left_out = load_weights(
        net,
        {**{k: v.half() for k, v in state.items()}, "head.weight": torch.ones(1)},
        where="w",
        ignored={"head.weight"},
    )
    assert left_out == ["head.weight"]
    assert net.weight.dtype == torch.float32
    assert torch.equal(net.weight, state["weight"])


def test_counter_of_batch_norm_may_be_missing():
    net = nn.BatchNorm1d(2)
    given = {k: v + 1 for k, v in net.state_dict().items() if k != "num_batches_tracked"}
    load_weights(net, given, where="w")
    assert torch.equal(net.running_mean, torch.ones(2))


def test_lists_every_problem_and_changes_nothing(state):
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    given = {"weight": torch.zeros(3, 3), **{f"extra{i}": torch.ones(1) for i in range(10)}}
    with pytest.raises(BackboneError) as caught:
        load_weights(net, given, where="file.pth")
    message = str(caught.value)
    assert "missing (1): bias" in message
    assert "unexpected (10): extra0" in message
    assert "extra7 and 2 more" in message
    assert "weight (3, 3) instead of (2, 3)" in message
    assert "file.pth" in message
    assert torch.equal(net.weight, before)


def test_refuses_nan(state):
    state["bias"][0] = torch.nan
    with pytest.raises(BackboneError, match=r"not finite.*bias"):
        load_weights(nn.Linear(3, 2), state, where="w")
