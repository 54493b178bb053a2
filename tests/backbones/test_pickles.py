"""Pickles of weights: made by hand, hostile, or full of other things."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradfeat.backbones.weights import load_file, read_weights
from gradfeat.errors import BackboneError


def pickled(content, path, **options):
    torch.save(content, path, **options)
    return path


def by_hand(path, extra, state):
    """Write a file whose pickle has `extra` as the value of "x", beside the weights."""
    pickled({"x": 12345678, "model": state}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    number = b"J" + (12345678).to_bytes(4, "little")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            changed = content.replace(number, extra) if name.endswith("data.pkl") else content
            assert name[-8:] != "data.pkl" or changed != content
            archive.writestr(name, changed)
    return path


ENCODE, BYTEARRAY, NUMBER = b"c_codecs\nencode\n", b"cbuiltins\nbytearray\n", b"J\xff\xff\xff\x7f"


@pytest.mark.parametrize(
    "hostile",
    [
        BYTEARRAY + NUMBER + b"\x85R",
        BYTEARRAY + b"q\xf0(" + NUMBER + b"tR",
        NUMBER + b"q\xf2" + BYTEARRAY + b"h\xf2\x85R",
        ENCODE + b"X\x02\x00\x00\x00abX\x03\x00\x00\x00hex\x86R",
        b"X\x06\x00\x00\x00latin1q\xf0X\x03\x00\x00\x00hexq\xf0" + ENCODE + b"X\x02\x00\x00\x00abh\xf0\x86R",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + BYTEARRAY + b"h\x00" + NUMBER + b"\x85NtR",
        BYTEARRAY + NUMBER + b"\x85R" + b"c\xc3\xa9\nx\n",
    ],
    ids=[
        "number",
        "in a tuple",
        "kept number",
        "hex",
        "kept codec that changes",
        "handed on",
        "what cannot be scanned",
    ],
)
def test_bytes_of_a_pickle_are_made_of_its_texts_alone(tmp_path, state, hostile):
    with pytest.raises(BackboneError, match="makes bytes out of other things"):
        read_weights(by_hand(tmp_path / "w.pth", hostile, state))


def test_what_cannot_be_looked_through_is_not_loaded(tmp_path, state, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(BackboneError, match="damaged"):
        read_weights(by_hand(tmp_path / "w.pth", b"c\xc3\xa9\nx\n", state))
    number = b"\x80\x02\x8a\x0bl\xfc\x9cF\xf9 j\xa8P\x19\x00q\x00."  # which begins the older format, otherwise written
    (tmp_path / "w.pth").write_bytes(number + b"\x80\x02M\xe9\x03." + b"\x80\x02" + BYTEARRAY + NUMBER + b"\x85R.")
    with pytest.raises(BackboneError, match="makes bytes out of other things"):
        read_weights(tmp_path / "w.pth")
    whole = by_hand(tmp_path / "w.pth", b"N", state).read_bytes()
    older = b"\x80\x02" + BYTEARRAY + NUMBER + b"\x85R."
    (tmp_path / "w.pth").write_bytes(older + whole)  # a zip file to whoever looks for its end
    with pytest.raises(BackboneError, match="makes bytes out of other things"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_and_arrays_beside_the_weights_are_no_matter(tmp_path, state, zipped):
    data = [b"ab", b"ab", b"\xff" * 9, bytearray(b"ab"), bytearray(), b"", "latin1", np.float64(1), np.array(["a"])]
    content = {"x": [*data, *data], "model": state}
    network = nn.Linear(3, 2)
    load_file(network, pickled(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped))
    assert torch.equal(network.weight, state["weight"])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["latin1", "hex"])
    | st.binary() | st.binary().map(bytearray) | st.complex_numbers() | st.frozensets(st.binary()),
    lambda inside: st.lists(inside) | st.dictionaries(st.text() | st.binary(), inside) | st.tuples(inside, inside),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True)
@given(content=PLAIN, zipped=st.booleans())
def test_plain_data_beside_the_weights_never_matter(content, zipped):
    state, network, file = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, nn.Linear(3, 2), io.BytesIO()
    torch.save({"x": [content, content], "model": state}, file, _use_new_zipfile_serialization=zipped)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "w").write_bytes(file.getvalue())
        load_file(network, Path(folder) / "w")
    assert torch.equal(network.weight, state["weight"])


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (b"(" + b"".join(b"cm\nA%d\n)R" % i for i in range(1001)) + b"t", "names more than 1,000 classes"),
        pytest.param(b"(" + b"N" * 5_000_001 + b"t", "more than 5,000,000 steps", marks=pytest.mark.slow),
        (b"(" + b"".join(b"cm\nA%d\n)RX\x01\x00\x00\x00aNs" % i for i in range(60)) + b"t", "SETITEM"),
    ],
    ids=["names", "steps", "classes of dicts"],
)
def test_pickles_have_bounds(tmp_path, state, hostile, message):
    with pytest.raises(BackboneError, match=message):
        read_weights(by_hand(tmp_path / "w.pth", hostile, state))


def test_attributes_from_a_file_are_not_used(tmp_path, state):
    shadowed = torch.nn.Parameter(state["weight"])
    shadowed.is_complex = shadowed.element_size = shadowed.detach = 5
    network = nn.Linear(3, 2)
    load_file(network, pickled({**state, "weight": shadowed}, tmp_path / "w.pth"))
    assert torch.equal(network.weight, state["weight"])
    mapping = b"ccollections\nOrderedDict\n)R}(" + b"".join(
        b"X" + len(name).to_bytes(4, "little") + name + b"K\x05" for name in (b"items", b"keys", b"values")
    )
    module = (
        b"cm\nM\n)R}(X\x0b\x00\x00\x00_parameters" + mapping + b"ubX\x1b\x00\x00\x00_non_persistent_buffers_setK\x05ub"
    )
    for extra in (mapping + b"ub", module):
        network = nn.Linear(3, 2)
        load_file(network, by_hand(tmp_path / "w.pth", extra, state))
        assert torch.equal(network.weight, state["weight"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_no_weights(tmp_path, state):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(BackboneError, match=r"missing \(1\): weight"):
        load_file(nn.Linear(3, 2), pickled({**state, "weight": nested}, tmp_path / "w.pth"))


def test_long_names_do_not_fill_the_memory(tmp_path, state):
    content = {"k" * 1_000_000: [state["weight"]] * 5000, b"model": {k.encode(): v for k, v in state.items()}}
    network = nn.Linear(3, 2)
    notes, _ = load_file(network, pickled(content, tmp_path / "w.pth"))
    assert torch.equal(network.weight, state["weight"])
    assert max(map(len, notes)) < 1000


def test_values_too_large_for_the_network_are_refused(tmp_path, state):
    large = {**state, "weight": state["weight"].double() * 1e300}
    with pytest.raises(BackboneError, match=r"not finite.*weight"):
        load_file(nn.Linear(3, 2), pickled(large, tmp_path / "w.pth"))
    load_file(nn.Linear(3, 2).double(), tmp_path / "w.pth")
