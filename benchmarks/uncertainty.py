"""How sure a model is: log loss, calibration, what it has not been fitted to, and coverage of sets and intervals.

    python -m benchmarks.uncertainty DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--labelled N]
        [--draws N] [--judged N] [--elsewhere DATA] [--out FILE]

For each draw a model is fitted to N samples of the training part, and judged by others of it. Side by side: its
probabilities as they are; with the temperature of the leave-one-out logits; integrated over the covariance of its
logits by 1,024 points, and by the mean-field rule ``z / √(1 + π v / 8)``, with v a logit's own variance; and
laplace-torch on the last layer of the probe, where it can be imported. Regressions are to a number of each sample
itself: the logarithm of a text's length, the mean brightness of a photo.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.time_to_accuracy import Data, changes_of, data_parser, estimator, read, settings
from gradfeat import GradientFeatureRegressor
from gradfeat.data import Inputs, load_dataset
from gradfeat.files.writing import write_text
from gradfeat.metrics.scores import expected_calibration_error, log_loss
from gradfeat.samples import SampleStore

COVERAGES = (0.8, 0.9, 0.95)


def mean_field(logits: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return probabilities by MacKay's rule for each logit."""
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    scaled = torch.from_numpy(logits / np.sqrt(1 + np.pi * variance / 8))
    return np.asarray(scaled.softmax(1).numpy())


def last_layer(model: Any, data: Data, others: list[Any]) -> list[np.ndarray] | None:
    """Return laplace-torch's probabilities of the probe's last layer for some samples; None where there is none."""
    try:
        from laplace import Laplace
    except ImportError as error:
        print("no laplace-torch:", error, flush=True)
        return None
    probe, backbone = model.probe_, model.backbone_

    def features(X: Any) -> torch.Tensor:
        return SampleStore(model.linearization_, Inputs(X, backbone.preprocessing)).features.detach().float()

    f = features(data.samples)
    mean = f.mean(0)
    head = nn.Linear(*probe.omega.shape)
    head.weight.data, head.bias.data = probe.omega.T.float().clone(), (probe.bias + mean @ probe.omega).float().clone()
    y = torch.from_numpy(np.searchsorted(model.classes_, data.labels))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(f - mean, y), batch_size=64)
    network = nn.Sequential(nn.Identity(), head)
    found = Laplace(network, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    found.fit(loader)
    found.optimize_prior_precision(method="marglik")
    return [found(features(X) - mean, link_approx="probit").detach().double().numpy() for X in others]


def of_probabilities(p: np.ndarray, truth: np.ndarray, elsewhere: np.ndarray | None) -> dict[str, float]:
    """Return how good probabilities are, and how well doubt tells wrong ones, and data from elsewhere, apart."""
    doubt = 1 - p.max(1)
    p = p / p.sum(1, keepdims=True)
    found = {"log_loss": log_loss(truth, p), "calibration_error": expected_calibration_error(truth, p)}
    found["wrong"] = float(roc_auc_score(p.argmax(1) != truth, doubt))
    if elsewhere is not None:
        far = np.concatenate([doubt, 1 - elsewhere.max(1)])
        found["elsewhere"] = float(roc_auc_score(np.repeat([0, 1], [len(p), len(elsewhere)]), far))
    return found


def classes(arguments: argparse.Namespace, data: Data, far: Any) -> dict[str, Any]:
    """Fit a classifier, and judge its probabilities and sets."""
    model = estimator(arguments, theta2=arguments.theta2 or "top", rounds=1, random_state=0)
    begun = time.process_time()
    model.fit(data.samples, data.labels)
    fitted = time.process_time() - begun
    others = [data.rest] if far is None else [data.rest, far]
    truth = np.searchsorted(model.classes_, data.truth)
    begun = time.process_time()
    temperature = model.temperature_
    left_out = time.process_time() - begun
    ways: dict[str, list[np.ndarray]] = {
        "plain": [model.predict_proba(X) for X in others],
        "temperature": [model.predict_proba(X, calibrated=True) for X in others],
        "integrated": [model.predict_proba(X, uncertainty=True) for X in others],
        "mean field": [mean_field(model.logits(X).double().numpy(), model.predict_variance(X)) for X in others],
    }
    peer = last_layer(model, data, others)
    if peer is not None:
        ways["laplace-torch"] = peer
    result: dict[str, Any] = {"fit": fitted, "leave_one_out": left_out, "temperature": temperature}
    result["ways"] = {
        name: of_probabilities(p[0], truth, p[1] if far is not None else None) for name, p in ways.items()
    }
    begun = time.process_time()
    result["sets"] = {}
    for coverage in COVERAGES:
        found = model.predict_set(data.rest, coverage)
        covered = float(found[np.arange(len(truth)), truth].mean())
        result["sets"][str(coverage)] = {"covered": covered, "size": float(found.sum(1).mean())}
    result["seconds_of_sets"] = (time.process_time() - begun) / len(COVERAGES)
    result["accuracy"] = float((ways["plain"][0].argmax(1) == truth).mean())
    return result


def numbers_of(samples: Any) -> np.ndarray:
    """Return a number of each sample: the logarithm of a text's length, or the mean brightness of a photo."""
    if Path(str(samples[0])).suffix.lower() not in (".jpg", ".jpeg", ".png"):
        return np.log([len(str(text)) for text in samples])
    return np.array([np.asarray(Image.open(path).convert("L")).mean() / 255 for path in samples])


def values(arguments: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Fit a regressor, and judge its intervals."""
    model = GradientFeatureRegressor(
        arguments.backbone,
        weights=arguments.weights,
        image_size=arguments.image_size,
        preprocessing=changes_of(arguments),
        theta2=arguments.theta2 or "top",
        rounds=1,
        random_state=0,
    ).fit(data.samples, numbers_of(data.samples))
    truth, result = numbers_of(data.rest), {}
    for coverage in COVERAGES:
        low, high = model.predict_interval(data.rest, coverage).T
        inside = float(((low <= truth) & (truth <= high)).mean())
        result[str(coverage)] = {"covered": inside, "width": float((high - low).mean() / truth.std())}
    result["r2"], result["noise"] = float(model.score(data.rest, truth)), float(model.noise_variance_[0])
    return result


def summary(draws: list[dict[str, Any]]) -> Any:
    """Return mean and standard error over draws of every number."""
    if isinstance(draws[0], dict):
        return {name: summary([draw[name] for draw in draws]) for name in draws[0]}
    return [float(np.mean(draws)), float(np.std(draws, ddof=1) / len(draws) ** 0.5) if len(draws) > 1 else 0.0]


def main() -> None:
    """Fit, judge, and write what was found."""
    parser = data_parser(__doc__ or "")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--judged", type=int, default=400)
    parser.add_argument("--elsewhere", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    far = (
        None if arguments.elsewhere is None else load_dataset(arguments.elsewhere, split="train").X[: arguments.judged]
    )
    draws = []
    for draw in range(arguments.draws):
        arguments.draw = draw
        data = read(arguments, test=False)
        data = Data(data.samples, data.labels, data.rest[: arguments.judged], data.truth[: arguments.judged])
        draws.append({"classes": classes(arguments, data, far), "values": values(arguments, data)})
        print(draw, json.dumps(draws[-1]), flush=True)
        if arguments.out is not None:
            about = {**settings(arguments), "elsewhere": arguments.elsewhere and arguments.elsewhere.name}
            content = {**about, "draws": draws, "mean": summary(draws)}
            write_text(arguments.out, json.dumps(content, indent=1) + "\n")
    print(json.dumps(summary(draws), indent=1))


if __name__ == "__main__":
    main()
