"""Wherever in a file the weights are, and however they are wrapped, they are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradfeat.backbones.contents import tensors_of
from gradfeat.backbones.state import choose
from gradfeat.backbones.weights import load_weights
from gradfeat.errors import BackboneError

State = dict[str, Tensor]


def network() -> nn.Sequential:
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(1, 2, 3))
    net.add_module("bn1", nn.BatchNorm2d(2))
    net.add_module("layer1", nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    return net


OWN: State = network().state_dict()
HEAD = {"fc.weight": torch.ones(5, 2), "fc.bias": torch.ones(5)}
WEIGHTS: State = {
    name: torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape) for name, value in OWN.items()
}
OTHER: State = {name: value + 1 for name, value in WEIGHTS.items()}

WORDS = ("_orig_mod", "module", "model", "backbone", "encoder", "encoder_q", "student", "visual.trunk", "net", "0")
NESTS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "ema", "teacher", "params", "weights", "x")
BESIDE = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 1, 3, 3)}}, "param_groups": [{"lr": 0.1}]}}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def taken(content: object, entry: str | None = None) -> tuple[State, str]:
    found = choose(tensors_of(content), OWN, set(HEAD), entry)
    net = network()
    load_weights(net, found.state, where="w", ignored={*HEAD, *found.extra})
    return dict(net.state_dict()), found.note() or ""


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    names=st.lists(st.sampled_from(WORDS) | st.text("abcdef_", min_size=1, max_size=5), max_size=4),
    nests=st.lists(st.sampled_from(NESTS) | st.text("abcdef_", min_size=1, max_size=5), max_size=3),
    beside=st.booleans(),
    head=st.booleans(),
)
def test_wrappings_in_any_order(names: list[str], nests: list[str], beside: bool, head: bool) -> None:
    content: dict[str, Any] = {**WEIGHTS, **(HEAD if head else {})}
    for name in names:
        content = prefixed(name, content)
    for nest in nests:
        content = {nest: content, **(BESIDE if beside else {})}
    state, note = taken(content)
    assert same(state, WEIGHTS)
    path = ".".join([*reversed(nests), *reversed(names)])
    assert (f"under {path!r} in the file" in note) == bool(path)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"state_dict": OTHER, "state_dict_ema": WEIGHTS}, "'state_dict', which fits as well"),
        ({"model": OTHER, "model_ema": prefixed("module", WEIGHTS)}, "'model_ema.module'"),
        ({"params": OTHER, "params_ema": WEIGHTS}, "'params_ema'"),
        (
            {"model": OTHER, "ema": {**prefixed("online_model", OTHER), **prefixed("ema_model", WEIGHTS)}},
            "'ema.online_model', which fits as well",
        ),
        ({"model": OTHER, "modelEMA": WEIGHTS}, "'modelEMA'"),
        ({"state_dict": OTHER, "callbacks": {"EMACallback": {"avg_model": WEIGHTS}}}, "EMACallback"),
        ({"student": prefixed("module", OTHER), "teacher": prefixed("backbone", WEIGHTS)}, "'teacher.backbone'"),
        (
            {"state_dict": {**prefixed("encoder_k", OTHER), **prefixed("encoder_q", WEIGHTS), "queue": torch.ones(1)}},
            "'state_dict.encoder_k', which fits as well, 'state_dict.queue'",
        ),
        ({"backbone": WEIGHTS, "backbone_momentum": OTHER}, "'backbone_momentum', which fits as well"),
        ({"model": OTHER, "state_dict": WEIGHTS}, "'state_dict'"),
        ({"a": WEIGHTS, "b": dict(WEIGHTS)}, "'b', which fits as well"),
        ({**prefixed("module", WEIGHTS), "n_averaged": torch.tensor(1)}, "'n_averaged'"),
        ({**WEIGHTS, "optimizer": BESIDE["optimizer"]}, "not used: 'optimizer'"),
        ([WEIGHTS, 3], "under '0'"),
    ],
)
def test_the_better_of_several_and_a_note_of_the_rest(content: object, note: str) -> None:
    state, said = taken(content)
    assert same(state, WEIGHTS)
    assert note in said


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("layer1.", "layer1.module."),
        lambda name: f"_fsdp_wrapped_module.{name}".replace("layer1.", "layer1._checkpoint_wrapped_module."),
        lambda name: f"a.{name.replace('layer1.', 'layer1._orig_mod.')}",
    ],
    ids=["DataParallel of a part", "FSDP", "compiled part"],
)
def test_wrappers_in_the_midst_of_names(rename: Callable[[str], str]) -> None:
    assert same(taken({rename(name): value for name, value in {**WEIGHTS, **HEAD}.items()})[0], WEIGHTS)


@pytest.mark.parametrize(
    "extra",
    ["fc.2.weight", "head.mlp.0.weight", "projector.weight", "mask_token", "decoder_blocks.0.x", "bn1.total_ops"],
)
def test_heads_and_counters_may_be_there(extra: str) -> None:
    assert same(taken({**WEIGHTS, extra: torch.ones(7)})[0], WEIGHTS)


@pytest.mark.parametrize(
    "extra",
    [
        "layer1.2.weight",
        "cls_token",
        "fc_norm.weight",
        "stem.weight",
        "conv_head.weight",
        "norm_head.weight",
        "proj_in.x",
    ],
)
def test_parts_that_the_network_would_miss_are_refused(extra: str) -> None:
    for content in ({**WEIGHTS, extra: torch.ones(7)}, {"model": prefixed("net", {**WEIGHTS, extra: torch.ones(7)})}):
        with pytest.raises(BackboneError, match=rf"unexpected \(1\): {extra}"):
            taken(content)


def test_what_does_not_fit_is_said_of_the_part_that_fits_best() -> None:
    lacking = {name: value for name, value in WEIGHTS.items() if not name.startswith("bn1")}
    with pytest.raises(BackboneError, match=r"Keys missing \(4\): bn1.weight"):
        taken({"optimizer": BESIDE["optimizer"], "model": prefixed("module", lacking)})
    with pytest.raises(BackboneError, match=r"conv1.weight \(2, 3, 3, 3\) instead of \(2, 1, 3, 3\)"):
        taken({"model": {**WEIGHTS, "conv1.weight": torch.ones(2, 3, 3, 3)}})


def test_equal_rank_and_other_values_is_an_error() -> None:
    content = {"online": WEIGHTS, "target": OTHER}
    with pytest.raises(BackboneError, match=r"'online', 'target'.*FILE::online"):
        taken(content)
    assert same(taken(content, "target")[0], OTHER)
