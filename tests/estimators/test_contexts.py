"""What the caller has set in torch reaches neither a fit nor a prediction."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare, linearize, load, tangent_kernel
from gradfeat.baselines import AllLayersProbe
from gradfeat.contexts import plain
from gradfeat.inspection import inspect_network
from gradfeat.pretrain import pretrain_encoder

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 2, 6, 6)).astype(np.float32)
y = (X.mean((1, 2, 3)) > 0).astype(int)
NEW = RANDOM.normal(size=(6, 2, 6, 6)).astype(np.float32)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()


NETWORK = make_network()
GIVEN: dict[str, Any] = {"theta2": "3", "penalty": (0.01, 0.01), "random_state": 0}


@contextlib.contextmanager
def set_for_the_process(turn: Callable[[Any], Any], on: Any, off: Any) -> Iterator[None]:
    turn(on)
    try:
        yield
    finally:
        turn(off)


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference_mode and autocast": all_at_once,
    "default dtype": lambda: set_for_the_process(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: set_for_the_process(torch.set_default_device, "meta", None),
    "deterministic algorithms": lambda: set_for_the_process(torch.use_deterministic_algorithms, True, False),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
}


def life(folder: Path) -> list[np.ndarray]:
    """Return what a model predicts when it was fitted, copied, saved and loaded, and merged."""
    estimator = GradientFeatureClassifier(NETWORK, **GIVEN).fit(X, y)
    loaded: Any = load(estimator.save(folder / "model"), NETWORK)
    head = estimator.merge(NEW, y[:6]).head.weight.detach().numpy()
    return [*(found.predict_proba(NEW) for found in (estimator, copy.deepcopy(estimator), loaded)), head]


def other_fits(folder: Path) -> list[np.ndarray]:
    tuned = GradientFeatureRegressor(NETWORK, **{**GIVEN, "mode": "finetune"}, epochs=1).fit(X, X[:, 0, 0, 0])
    network = lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Tanh(), nn.Linear(4, 3))  # noqa: E731
    built = GradientFeatureClassifier(network, penalty=(0.01, 0.01), random_state=0, device="cpu")
    probe = AllLayersProbe(NETWORK, random_state=0).fit(X, y)
    found = [tuned.predict(NEW), probe.predict_proba(NEW)]
    if (torch.empty(0).device.type, torch.get_default_dtype()) == ("cpu", torch.float32):
        found.append(built.fit(X, y).predict_proba(NEW))  # else the caller's function makes another network
    return found


def engine(folder: Path) -> list[np.ndarray]:
    x = torch.from_numpy(X)
    linearization = linearize(NETWORK, x, "3")
    f, residuals = linearization.primal(linearization.bottom(x))
    w2 = {name: torch.full_like(value, 0.1) for name, value in linearization.theta2.items()}
    pulled = [linearization.transpose(torch.ones_like(f), residuals)["3.weight"].numpy() for _ in range(3)]
    moved = linearization.tangent(w2, residuals), linearization.network(w2, linearization.bottom(x))
    kernel = tangent_kernel(linearization, f[:4].T.contiguous(), x[:4])
    return [f.numpy(), *pulled, *(value.numpy() for value in moved), kernel.numpy()]


def studies(folder: Path) -> list[Any]:
    table = compare(NETWORK, X, y, NEW, y[:6], modes=("activation", "full"), **GIVEN)
    costs = inspect_network(NETWORK, torch.from_numpy(X), most=1)
    return [np.array([list(row.metrics.values()) for row in table.rows]), costs.to_dict()]


def pretraining(folder: Path) -> list[np.ndarray]:
    images = np.random.default_rng(0).random((8, 8, 8, 1))
    encoder = pretrain_encoder(images, epochs=1, batch_size=4, random_state=0)
    return [value.detach().numpy() for value in encoder.parameters()]


HARDEST = ("inference_mode and autocast", "default dtype", "default device")
CASES = [(name, part) for name in CONTEXTS for part in (life, engine)] + [
    (name, part) for name in HARDEST for part in (other_fits, studies, pretraining)
]
_usual: dict[Any, list[Any]] = {}


@pytest.mark.parametrize(("name", "part"), CASES)
def test_results_are_those_without(name: str, part: Callable[[Path], list[Any]], tmp_path: Path) -> None:
    if part not in _usual:
        _usual[part] = part(tmp_path)
    with CONTEXTS[name]():
        found = part(tmp_path)
    for got, usual in zip(found, _usual[part], strict=False):
        if isinstance(usual, np.ndarray):
            assert got.dtype == usual.dtype
            assert np.array_equal(got, usual)
        else:
            assert got == usual


def test_networks_and_samples_of_inference_mode_and_with_gradients(tmp_path: Path) -> None:
    usual = GradientFeatureClassifier(NETWORK, **GIVEN).fit(X, y).predict_proba(NEW)
    with torch.inference_mode():
        network, x, labels = make_network(), torch.from_numpy(X.copy()), torch.from_numpy(y)
    assert network[0].weight.is_inference()
    estimator = GradientFeatureClassifier(network, **GIVEN).fit(x, labels)
    assert np.array_equal(estimator.predict_proba(NEW), usual)
    assert np.array_equal(copy.deepcopy(estimator).predict_proba(NEW), usual)
    loaded: Any = load(estimator.save(tmp_path / "model"), network)
    assert np.array_equal(loaded.predict_proba(NEW), usual)
    assert not linearize(network, x, "3").theta2["3.weight"].is_inference()
    with_gradients = torch.from_numpy(X).requires_grad_(), torch.ones(16, requires_grad=True)
    again = GradientFeatureClassifier(NETWORK, **GIVEN).fit(with_gradients[0], labels, with_gradients[1])
    assert np.allclose(again.predict_proba(torch.from_numpy(NEW).requires_grad_()), usual, atol=1e-4)


def test_a_network_that_makes_tensors_computes_in_the_dtype_that_it_was_captured_in() -> None:
    class Shifted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.full((x.shape[0], 1), 0.1)

    torch.manual_seed(0)
    x = torch.randn(4, 3)
    linearization = linearize(Shifted(3, 2), x, "weight")
    usual = linearization(x)
    with CONTEXTS["default dtype"]():
        assert torch.equal(linearization(x), usual)
        assert linearization(x).dtype == torch.float32


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_the_callers_context_is_left_as_it_was(context: Callable[[], Any]) -> None:
    def state() -> list[Any]:
        flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return [*flags, torch.get_default_dtype(), torch.empty(0).device]

    with context():
        before = state()
        with plain():
            assert state()[:3] == [True, False, False]
            assert torch.empty(0).device.type == "cpu"
        assert state() == before
        with contextlib.suppress(ZeroDivisionError), plain():
            raise ZeroDivisionError
        assert state() == before
