from __future__ import annotations

import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from gradfeat.backbones.weights import load_weights, read_weights
from gradfeat.errors import BackboneError


@pytest.fixture
def state():
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"state_dict": {"module._orig_mod." + k: v for k, v in s.items()}},
    ],
    ids=["plain", "state_dict", "model", "DataParallel", "nested and wrapped"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_reads_torch_files(tmp_path, state, wrap, suffix):
    torch.save(wrap(state), tmp_path / f"w{suffix}")
    found, metadata = read_weights(tmp_path / f"w{suffix}")
    assert metadata == {}
    assert found.keys() == state.keys()
    assert torch.equal(found["weight"], state["weight"])


def test_reads_safetensors(tmp_path, state):
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", {"mean": "0.5"})
    found, metadata = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(found["bias"], state["bias"])
    assert metadata == {"mean": "0.5"}


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"abc", "damaged"),
        ("w.safetensors", b"", "damaged"),
        ("w.pth", b"", "damaged"),
        ("w.pth", b"hello, world", "damaged"),
        ("w.npz", b"abc", "ending in"),
        ("w.pth", pickle.dumps(Evil(), protocol=2), "executes nothing"),
    ],
)
def test_refuses_bad_files(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=message):
        read_weights(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_refuses_truncated_files(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors"):
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(BackboneError, match="damaged"):
            read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [([1], "holds a list"), ({"a": 1}, "of other kinds"), ({}, "is empty"), (nn.Linear(1, 1), "load it yourself")],
)
def test_refuses_other_contents(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=message):
        read_weights(tmp_path / "w.pth")


def test_no_such_file(tmp_path):
    with pytest.raises(BackboneError, match="No weights file"):
        read_weights(tmp_path / "none.pth")


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
