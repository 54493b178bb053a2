"""Samples, networks and problems for rounds, and what ends them early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier, linearize
from gradfeat.data import Inputs, Mirrored
from gradfeat.fit import Fit, Problem, prepare
from gradfeat.fit.run import Run
from gradfeat.fit.splits import Split
from gradfeat.losses import CrossEntropy, Loss
from gradfeat.progress import Progress, Step

PENALTY = 0.02  # of the probe


def data(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, (X[:, 0] * X[:, 1] + X[:, 2] > 0).astype(int)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 12), nn.Tanh())


def images(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures with a bright or a dark half on top: the same seen in a mirror."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2, 8, 8)).astype(np.float32)
    y = np.arange(n) % 2
    X[:, :, :4] += np.where(y, 0.7, -0.7)[:, None, None, None].astype(np.float32)
    return X, y


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Tanh()),
        *(nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    network(torch.randn(40, 2, 8, 8) * 2 + 1)  # so that the batch norms are no identities
    return network.eval()


def classifier(backbone: Any = None, **settings: Any) -> GradientFeatureClassifier:
    defaults: dict[str, Any] = {"theta2": "*", "random_state": 0, "rounds": "auto"}
    return GradientFeatureClassifier(network() if backbone is None else backbone, **{**defaults, **settings})


def problem_of(X: np.ndarray, y: np.ndarray, backbone: nn.Module | None = None, *, mirror: bool = False) -> Problem:
    """Return a problem in double precision, where what should be equal is."""
    return given(X, torch.from_numpy(y), CrossEntropy(), backbone, mirror=mirror)


def given(
    X: np.ndarray,
    y: Tensor,
    loss: Loss,
    backbone: nn.Module | None = None,
    *,
    weight: Tensor | None = None,
    mirror: bool = False,
) -> Problem:
    backbone = (network() if backbone is None else backbone).double()
    inputs = Inputs(X.astype(np.float64), None)
    lin = linearize(backbone, inputs.example(3), "*")
    samples = Mirrored(inputs) if mirror else inputs
    views = 2 if mirror else 1
    return prepare(lin, samples, y, loss, weight=weight, penalty=PENALTY, views=views, random_state=0)


def run_of(*splits: Split, progress: Progress | None = None) -> Run:
    return Run(list(splits), torch.Generator().manual_seed(0), progress or Progress(False))


class Ending(Progress):
    """Ends a stage when it reports for the n-th time."""

    def __init__(self, stage: str, report: int, error: type[BaseException] | BaseException = KeyboardInterrupt) -> None:
        super().__init__(False)
        self.stage, self.left, self.error = stage, report, error

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        def report(done: int, total: int | None) -> None:
            self.left -= name == self.stage
            if self.left == 0 and name == self.stage:
                raise self.error

        with super().step(name):
            yield report


def loss_of(problem: Problem, fit: Fit) -> float:
    """Return the loss of a fitted model on the samples."""
    X, y = data()
    with torch.no_grad():
        return float(problem.loss.value(fit.model(torch.from_numpy(X).double()), torch.from_numpy(y)))


def probe_loss(problem: Problem) -> float:
    logits = problem.store.features @ problem.probe.omega + problem.probe.bias
    return float(problem.loss.value(logits, problem.y))


def at_the_point(fit: Fit) -> bool:
    """Whether a model is at the point that the search found."""
    assert fit.rounds is not None
    theta2 = fit.model.linearization.theta2
    return all(torch.equal(theta2[name], value) for name, value in fit.rounds.point.theta2.items())
