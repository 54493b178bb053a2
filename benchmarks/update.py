"""Samples added to and removed from a fitted model, beside a fit of the changed data from nothing.

    python -m benchmarks.update DATA -b BACKBONE [--weights FILE] [--image-size N] [--max-length N] --theta2 NAME
        [--labelled N] [--penalty λ₁,λ₂] [--out FILE]

One in a hundred of the training samples is removed, and one in twenty added that the model has not seen. Compared with
`fit` on the changed data with the same penalties: processor time, the gaps, and the logits of held-out samples, beside
how much the change of the data moves these. The penalties are given: λ₁ of w₁ and ω̄, and λ₂ in the plain metric.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat import GradientFeatureClassifier
from gradfeat.data import load_dataset
from gradfeat.files.writing import write_text


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and its processor time in seconds."""
    begun = time.process_time()
    result = what()
    return result, time.process_time() - begun


def centred(model: Any, X: Any) -> np.ndarray:
    """Return logits of samples less their mean over classes, which a softmax does not see."""
    logits = model.logits(X).double().numpy()
    return np.asarray(logits - logits.mean(1, keepdims=True))


def compared(new: Any, refit: Any, before: Any, X: Any) -> dict[str, float]:
    """Return how far an update is from a refit, beside what the change of the data does."""
    found, expected = centred(new, X), centred(refit, X)
    moved = centred(before, X) - expected
    error = found - expected
    return {
        "largest_difference": float(np.abs(error).max()),
        "relative_to_the_change": float(np.linalg.norm(error) / max(np.linalg.norm(moved), 1e-30)),
        "largest_change": float(np.abs(moved).max()),
        "same_predictions": float((found.argmax(1) == expected.argmax(1)).mean()),
    }


def main() -> None:
    """Fit, update, fit from nothing, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-b", "--backbone", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--theta2", required=True)
    parser.add_argument("--labelled", type=int, default=400)
    parser.add_argument("--penalty", default="0.003,0.001")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data, split="train")
    order = np.random.default_rng(0).permutation(len(dataset))
    n, more = arguments.labelled, max(1, arguments.labelled // 20)
    X, y = np.asarray(dataset.X, dtype=object), np.asarray(dataset.y)
    data, new, held_out = (order[:n], order[n : n + more], order[n + more : n + more + 300])
    settings = {"weights": arguments.weights, "image_size": arguments.image_size}
    settings["penalty"] = tuple(map(float, arguments.penalty.split(",")))
    if arguments.max_length:
        settings["preprocessing"] = {"max_length": arguments.max_length}

    def fitted(rows: np.ndarray) -> Any:
        estimator = GradientFeatureClassifier(
            arguments.backbone, theta2=arguments.theta2, rounds=1, augment=None, random_state=0, **settings
        )
        return estimator.fit(list(X[rows]), y[rows])

    judged = list(X[held_out])
    model, seconds = timed(lambda: fitted(data))
    result: dict[str, Any] = {"n": n, "penalty": settings["penalty"], "fit": seconds, "gap": model.solution_.gap}
    result["accuracy"] = model.score(judged, y[held_out])
    print(result, flush=True)
    gone = np.random.default_rng(1).choice(n, max(1, n // 100), replace=False)
    ways = {
        "removed 1 %": ({"remove": gone}, np.delete(data, gone)),
        "added 5 %": ({"add": (list(X[new]), y[new])}, np.concatenate([data, new])),
    }
    for name, (changes, rows) in ways.items():
        updated, of_update = timed(lambda changes=changes: model.update(**changes))
        refit, of_refit = timed(lambda rows=rows: fitted(rows))
        result[name] = {
            "samples": abs(len(rows) - n),
            "update": of_update,
            "refit": of_refit,
            "share": of_update / of_refit,
            "parts": dict(updated.seconds_.items()),
            "parts_of_refit": dict(refit.seconds_),
            "passes": updated.solution_.passes,
            "passes_of_refit": refit.solution_.passes,
            "gap": updated.solution_.gap,
            "gap_of_refit": refit.solution_.gap,
            **compared(updated, refit, model, judged),
        }
        print(name, json.dumps(result[name], indent=1), flush=True)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
