"""What `benchmarks.uncertainty` measures, on scikit-learn's digits, in a minute a draw.

    python -m benchmarks.uncertainty_digits [--draws N] [--out FILE]

A network of three layers is trained to tell odd from even digits on 500 images. For each draw all of it is linearized
and fitted to the ten classes of 150 others, and to the horizontal centre of their ink; the remaining ones judge.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.uncertainty import of_probabilities
from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.files.writing import write_text

COVERAGES = (0.8, 0.9, 0.95)


def mean_field(logits: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return probabilities by MacKay's rule for each logit."""
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    scaled = torch.from_numpy(logits / np.sqrt(1 + np.pi * variance / 8))
    return np.asarray(scaled.softmax(1).numpy())


def summary(draws: list[Any]) -> Any:
    """Return mean and standard error over draws of every number."""
    if isinstance(draws[0], dict):
        return {name: summary([draw[name] for draw in draws]) for name in draws[0]}
    return [float(np.mean(draws)), float(np.std(draws, ddof=1) / len(draws) ** 0.5) if len(draws) > 1 else 0.0]


def pretrained(X: np.ndarray, y: np.ndarray) -> nn.Module:
    """Return a network trained to tell odd from even."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
    head = nn.Linear(32, 2)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(network(torch.from_numpy(X))), torch.from_numpy(y % 2)).backward()
        optimizer.step()
    return network


def measured(network: nn.Module, X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Fit both estimators to some samples, and judge them by others."""
    begun = time.process_time()
    model = GradientFeatureClassifier(network, theta2="*", rounds=1, random_state=0).fit(X[train], y[train])
    result: dict[str, Any] = {"fit": time.process_time() - begun}
    begun = time.process_time()
    result |= {"temperature": model.temperature_, "leave_one_out": time.process_time() - begun}
    result["scale"] = model.covariance_scale_
    logits, covariance = model.logits(X[test]).double().numpy(), model.predict_variance(X[test])
    ways = {
        "plain": model.predict_proba(X[test]),
        "temperature": model.predict_proba(X[test], calibrated=True),
        "integrated": model.predict_proba(X[test], uncertainty=True),
        "mean field, unscaled": mean_field(logits, covariance),
        "mean field, scaled": mean_field(logits, result["scale"] * covariance),
    }
    result["ways"] = {name: of_probabilities(p, y[test]) for name, p in ways.items()}
    result["accuracy"] = float((ways["plain"].argmax(1) == y[test]).mean())
    begun, rows = time.process_time(), np.arange(len(test))
    sets = {coverage: model.predict_set(X[test], coverage) for coverage in COVERAGES}
    result["seconds_of_sets"] = (time.process_time() - begun) / len(COVERAGES)
    result["sets"] = {
        str(coverage): {"covered": float(found[rows, y[test]].mean()), "size": float(found.sum(1).mean())}
        for coverage, found in sets.items()
    }
    centre = (X.reshape(-1, 8, 8) * np.arange(8)).sum((1, 2)) / X.sum(1)
    regressor = GradientFeatureRegressor(network, theta2="*", rounds=1, random_state=0).fit(X[train], centre[train])
    result["r2"], result["intervals"] = float(regressor.score(X[test], centre[test])), {}
    for coverage in COVERAGES:
        low, high = regressor.predict_interval(X[test], coverage).T
        inside = float(((low <= centre[test]) & (centre[test] <= high)).mean())
        width = float((high - low).mean() / centre[test].std())
        result["intervals"][str(coverage)] = {"covered": inside, "width": width}
    return result


def main() -> None:
    """Measure some draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(X))
    network, rest = pretrained(X[order[:500]], y[order[:500]]), order[500:]
    draws: list[dict[str, Any]] = []
    for draw in range(arguments.draws):
        some = np.random.default_rng(draw + 1).permutation(rest)
        draws.append(measured(network, X, y, some[:150], some[150:]))
        print(draw, json.dumps(draws[-1]), flush=True)
        if arguments.out is not None:
            write_text(arguments.out, json.dumps({"draws": draws, "mean": summary(draws)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
