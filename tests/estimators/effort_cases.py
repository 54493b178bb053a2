"""Networks and samples on which effort has something to decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier
from gradfeat.estimators.preparing import Prepared
from gradfeat.fit.look import Look


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


def network(blocks: int = 2, *, blind: bool = True) -> nn.Module:
    """Return residual blocks; a blind network's lowest layer does not see the first input, unless it learns to."""
    torch.manual_seed(0)
    lowest = nn.Linear(5, 5)
    if blind:
        with torch.no_grad():
            lowest.weight[:, 0] = 0
    return nn.Sequential(lowest, *(Block() for _ in range(blocks - 1))).eval()


def samples(n: int = 200, seed: int = 0) -> np.ndarray:
    """Return samples whose first input is large, so that small steps of its weights show."""
    return (np.random.default_rng(seed).normal(size=(n, 5)) * [10, 1, 1, 1, 1]).astype(np.float32)


def far(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return samples whose labels hang on what the blind layer does not see."""
    X = samples(n, seed)
    return X, (X[:, 0] > 0).astype(int)


def near(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return samples whose labels are by chance, but for what a linear model on the features says."""
    X = samples(n, seed)
    with torch.no_grad():
        logits = 2 * network()(torch.from_numpy(X))[:, 0].numpy()
    return X, (np.random.default_rng(seed).random(n) < 1 / (1 + np.exp(-logits))).astype(int)


def classifier(backbone: nn.Module | None = None, **settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network() if backbone is None else backbone, **{"random_state": 0, **settings})


def top_of(blocks: int) -> list[str]:
    return [f"{blocks - 1}.layer.weight", f"{blocks - 1}.layer.bias"]


def prepared(X: Any, y: Any = None, weight: Any = None, **settings: Any) -> Prepared:
    """Return what an estimator of some settings fits a model to."""
    estimator = classifier(**settings)
    return estimator.prepare(estimator.read(X, y, weight))


def losses_of(found: Prepared | GradientFeatureClassifier) -> list[float]:
    return [depth.loss for depth in (found.depths if isinstance(found, Prepared) else found.depths_)]


def refuse(*args: Any, **settings: Any) -> Look:
    raise AssertionError("there was a look")
