"""A fitted model is the one that was fitted, whatever becomes of the caller's network, settings and random numbers."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from gradfeat import GradientFeatureClassifier, load
from gradfeat.baselines import AllLayersProbe
from gradfeat.errors import BackboneError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 2, 6, 6)).astype(np.float32)
y = (X.mean((1, 2, 3)) > 0).astype(int)
NEW = RANDOM.normal(size=(6, 2, 6, 6)).astype(np.float32)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.scale = 1.0
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.scale


def fitted(network: Any, **parameters: Any) -> GradientFeatureClassifier:
    given = {"theta2": "body.3", "penalty": (0.01, 0.01), "random_state": 0, **parameters}
    return GradientFeatureClassifier(network, **given).fit(X, y)


def step(network: Any) -> None:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    network(torch.from_numpy(X)).square().sum().backward()
    optimizer.step()
    network.eval()


def running_statistics(network: Any) -> None:
    network.train()
    network(torch.from_numpy(5 * X + 1))
    network.eval()


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(network: Any) -> None:
        *path, last = name.split(".")
        setattr(network.get_submodule(".".join(path)), last, value)

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a step of an optimizer": step,
    "a forward pass in training mode": running_statistics,
    "other weights": lambda network: network.load_state_dict({k: v * 3 for k, v in network.state_dict().items()}),
    "a setting of a layer": attribute("body.1.eps", 1.0),
    "an attribute": attribute("scale", 3.0),
    "another layer": attribute("body.2", nn.Tanh()),
    "a hook": lambda network: network.body[0].register_forward_hook(lambda module, inputs, output: 2 * output),
    "half precision": lambda network: network.half(),
    "double precision": lambda network: network.double(),
    "training mode": lambda network: network.train(),
    "no gradients": lambda network: network.requires_grad_(False),
    "no values": lambda network: network.to("meta"),
}


def unpickled(estimator: Any) -> Any:
    return pickle.loads(pickle.dumps(estimator))


def from_joblib(estimator: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_done_to_the_network_afterwards_changes_nothing(change: Callable[[Any], Any]) -> None:
    network = Network()
    estimator = fitted(network)
    before, merged = estimator.predict_proba(NEW), estimator.merge()(torch.from_numpy(NEW))
    change(network)
    assert np.array_equal(estimator.predict_proba(NEW), before)
    assert np.array_equal(unpickled(estimator).predict_proba(NEW), before)
    assert torch.equal(estimator.merge()(torch.from_numpy(NEW)), merged)


@pytest.mark.filterwarnings("ignore:full. no move of the network")
@pytest.mark.parametrize(
    ("again", "parameters"),
    [
        (copy.deepcopy, {"mode": "finetune", "epochs": 1}),
        (from_joblib, {"precision": "bfloat16"}),
        pytest.param(from_joblib, {"rounds": 30, "penalty": "auto"}, marks=pytest.mark.slow),
    ],
)
def test_copies_of_every_kind_of_model_are_the_same(again: Callable[[Any], Any], parameters: dict[str, Any]) -> None:
    network = Network()
    estimator = fitted(network, **parameters)
    before = estimator.predict_proba(NEW)
    step(network)
    found = again(again(estimator))
    assert np.array_equal(found.predict_proba(NEW), before)
    step(found.backbone)  # which is another network than the one that it keeps
    assert np.array_equal(again(found).predict_proba(NEW), before)


def test_a_loaded_model_keeps_its_network_too(tmp_path: Path) -> None:
    estimator = fitted(Network())
    network = Network()
    found: Any = load(estimator.save(tmp_path / "model"), network)
    step(network)
    assert np.array_equal(unpickled(found).predict_proba(NEW), estimator.predict_proba(NEW))


def computed(network: Any) -> None:
    """Give a network tensors that torch does not copy: computed from its weights, with gradients."""
    network.register_buffer("twice", network.body[0].weight * 2)
    network.kept = {"thrice": [network.body[0].weight * 3]}


def weight_normalized(network: Any) -> None:
    nn.utils.weight_norm(network.body[3])
    network(torch.from_numpy(NEW))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("prepare", [computed, weight_normalized])
def test_networks_that_torch_does_not_copy(prepare: Callable[[Any], None]) -> None:
    network = Network()
    prepare(network)
    estimator = fitted(network, theta2="body.0")
    before = estimator.predict_proba(NEW)
    assert np.array_equal(copy.deepcopy(estimator).predict_proba(NEW), before)
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(2)
    network(torch.from_numpy(NEW))
    found = copy.deepcopy(unpickled(estimator))
    assert np.array_equal(found.predict_proba(NEW), before)
    assert torch.equal(found.backbone.body[0].weight, network.body[0].weight)


def test_a_model_is_whole_without_the_given_network() -> None:
    estimator = fitted(Network())
    before = estimator.predict_proba(NEW)
    del estimator.backbone
    assert np.array_equal(unpickled(estimator).predict_proba(NEW), before)


def test_a_callable_may_return_the_same_network_again() -> None:
    network = Network()
    estimator = fitted(lambda shape: network)
    merged = estimator.merge()(torch.from_numpy(NEW))
    step(network)
    assert torch.equal(estimator.merge()(torch.from_numpy(NEW)), merged)


def test_settings_for_a_next_fit_are_not_of_the_fitted_model(tmp_path: Path) -> None:
    estimator = fitted(Network())
    before = estimator.predict_proba(NEW)
    estimator.set_params(mode="gradient", parametrization="ntk", precision="float64", loss="one_hot_squared")
    found: Any = load(estimator.save(tmp_path / "model"), Network())
    assert np.array_equal(found.predict_proba(NEW), before)
    assert np.array_equal(unpickled(estimator).predict_proba(NEW), before)
    assert np.array_equal(unpickled(found.set_params(mode="activation")).predict_proba(NEW), before)


@pytest.mark.parametrize("use", [pickle.dumps, copy.deepcopy, lambda estimator: estimator.merge()])
def test_a_change_of_the_network_that_the_model_keeps_is_refused(use: Callable[[Any], Any]) -> None:
    estimator = fitted(Network())
    before = estimator.predict_proba(NEW)
    step(estimator.backbone_.network)
    assert np.array_equal(estimator.predict_proba(NEW), before)
    with pytest.raises(BackboneError, match=r"changed since:\n  body: the same layers with other weights"):
        use(estimator)


def test_a_network_that_cannot_be_copied_is_fitted_and_checked() -> None:
    network: Any = Network()
    network.lock = threading.Lock()
    estimator = fitted(network)
    estimator.predict(NEW)
    with pytest.raises(TypeError):
        estimator.merge()
    step(network)
    with pytest.raises(BackboneError, match="body: the same layers with other weights"):
        estimator.merge()


def test_a_method_of_another_network_is_found_out() -> None:
    network = Network()
    body = network.body[0].forward
    network.body[0].forward = lambda x: body(x)  # a copy of the network goes on to use this one's weights
    estimator = fitted(network)
    before = estimator.predict_proba(NEW)
    assert np.allclose(copy.deepcopy(estimator).predict_proba(NEW), before, atol=1e-5)
    step(network)
    assert np.array_equal(estimator.predict_proba(NEW), before)
    with pytest.raises(BackboneError, match="belongs to another network"):
        copy.deepcopy(estimator).predict(NEW)


def test_a_pickle_holds_the_network_once() -> None:
    class Large(Network):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ballast", torch.zeros(100_000))

    state = fitted(Large()).__getstate__()
    assert state["backbone"] is state["fitted_"].network.backbone.network


def test_a_clone_is_not_fitted() -> None:
    network = Network()
    again = clone(fitted(network))
    assert not [name for name in vars(again) if name.endswith("_") or name.startswith("_")]
    assert again.backbone is not network


def test_all_layers_are_those_that_were_fitted() -> None:
    network = Network()
    probe = AllLayersProbe(network, random_state=0).fit(X, y)
    before = probe.predict_proba(NEW)
    step(network)
    assert np.array_equal(probe.predict_proba(NEW), before)


def streams() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # noqa: NPY002


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    network = Network()
    before = streams()
    for mode in ("full", "finetune"):
        estimator = fitted(network, mode=mode, epochs=2 if mode == "finetune" else None)
        assert estimator.merge(NEW).report is not None
        load(estimator.save(tmp_path / mode), network).predict(NEW)
    fitted(lambda shape: Network())  # which seeds torch itself
    assert streams() == before
