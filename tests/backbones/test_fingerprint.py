from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from gradfeat.backbones import difference, fingerprint, summary

BUILD = (
    "import torch; from torch import nn; torch.manual_seed(0); "
    "net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))"
)


@pytest.fixture
def network() -> nn.Module:
    scope: dict[str, nn.Module] = {}
    with torch.random.fork_rng():
        exec(BUILD, scope)
    return scope["net"]


def test_same_in_another_process(network):
    code = f"{BUILD}; from gradfeat.backbones import fingerprint; print(fingerprint(net, 'input:4'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == fingerprint(network, "input:4")
    assert len(found) == 64


def test_ignores_mode_layout_and_copies(network):
    other = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
    for parameter in other.parameters():
        parameter.requires_grad_(False)
    assert fingerprint(other) == fingerprint(network.eval())
    assert difference(summary(network), summary(other)) == []


def change_weight(net):
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = torch.nextafter(net[0].weight[0, 0, 0, 0], torch.tensor(9.0))


def change_buffer(net):
    net[1].running_mean[0] += 1


def change_dtype(net):
    net[4].half()


def change_setting(net):
    net[0].padding = (1, 1)


def change_layer(net):
    net[2] = nn.GELU()


def add_layer(net):
    net.append(nn.ReLU())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (change_weight, "0: the same layers with other weights"),
        (change_buffer, "1: the same layers with other weights"),
        (change_dtype, "4: other layers, shapes or settings inside"),
        (change_setting, "0: other layers, shapes or settings inside"),
        (change_layer, "2: expected ReLU, found GELU"),
        (add_layer, "5: not expected (ReLU)"),
    ],
)
def test_says_what_changed(network, change, line):
    other = copy.deepcopy(network)
    change(other)
    assert fingerprint(other) != fingerprint(network)
    assert difference(summary(network), summary(other)) == [line]


def test_missing_child_and_count(network):
    lines = difference(summary(network), summary(network[:4]))
    assert lines[0].startswith("parameters: expected 154, found 120")
    assert lines[1] == "4: missing (Linear expected)"


def test_parameters_of_the_network_itself():
    class Own(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(value))

    assert difference(summary(Own(1.0)), summary(Own(2.0))) == ["(top level): the same layers with other weights"]


def test_features_are_part_of_it_and_summary_survives_json(network):
    assert len({fingerprint(network), fingerprint(network, "3"), fingerprint(network, "input:4")}) == 3
    there_and_back = json.loads(json.dumps(summary(network)))
    assert difference(there_and_back, summary(network)) == []


def test_bfloat16_and_scalars():
    net = nn.Linear(2, 2).bfloat16()
    net.register_buffer("scalar", torch.tensor(3))
    net.register_buffer("empty", torch.empty(0))
    assert fingerprint(net) == fingerprint(copy.deepcopy(net))
