"""How far predictions can be trusted: coverage of sets, calibration, and which predictions are wrong.

    python -m benchmarks.uncertainty DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--labelled N] [--draws N]
        [--coverage P] [--out FILE]

For each draw of labelled samples one linearization is fitted, its penalties chosen on held-out training data, and
judged on the test part, which chooses nothing: the share of samples whose class is in its set (CV+), and the mean size
of a set; log loss and calibration error of the model as it is, after the temperature of its leave-one-out logits, and
of the mean over its posterior; how well the highest probability tells right from wrong (AUROC); and the accuracy and
log loss that leave-one-out foretold. Means over draws with their standard errors.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.time_to_accuracy import data_parser, estimator, markdown, read
from gradfeat.files.writing import write_text
from gradfeat.metrics.scores import expected_calibration_error


def of_probabilities(proba: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return log loss, calibration error, and AUROC of right against wrong predictions."""
    right = proba.argmax(1) == truth
    loss = -np.log(np.clip(proba[np.arange(len(truth)), truth], 1e-12, None)).mean()
    wrong = float(roc_auc_score(right, proba.max(1))) if 0 < right.sum() < len(right) else float("nan")
    return {"log_loss": float(loss), "calibration_error": expected_calibration_error(truth, proba), "auroc": wrong}


def one_draw(arguments: argparse.Namespace, draw: int) -> dict[str, Any]:
    """Fit to a draw, and judge."""
    arguments.draw = draw
    data = read(arguments)
    begun = time.process_time()
    model = estimator(arguments, theta2=arguments.theta2 or "top", rounds=1, random_state=0)
    model.fit(data.samples, data.labels)
    fitted = time.process_time()
    left = model.loo_
    answered = time.process_time()
    truth = np.searchsorted(model.classes_, np.asarray(data.truth))
    logits = model.logits(data.rest).double()
    proba = logits.softmax(1).numpy()
    found = model.predict_set(data.rest, arguments.coverage)
    result: dict[str, Any] = {
        "accuracy": float((proba.argmax(1) == truth).mean()),
        "foretold accuracy": left.accuracy.value,
        "foretold log loss": left.log_loss.value,
        "coverage": float(found[np.arange(len(truth)), truth].mean()),
        "set size": float(found.sum(1).mean()),
        "temperature": model.temperature_,
        "covariance scale": model.covariance_scale_,
        "seconds": {"fit": fitted - begun, "leave-one-out": answered - fitted},
    }
    ways = {
        "as it is": proba,
        "after the temperature": (logits / model.temperature_).softmax(1).numpy(),
        "over the posterior": model.predict_proba(data.rest, uncertainty=True),
    }
    return {**result, "ways": {name: of_probabilities(one, truth) for name, one in ways.items()}}


def table(draws: list[dict[str, Any]]) -> str:
    """Return means over draws ± standard errors."""

    def cell(values: list[float], digits: int = 3) -> str:
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"

    names = ("accuracy", "foretold accuracy", "foretold log loss", "coverage", "set size")
    first = markdown(list(names), [[cell([one[name] for one in draws]) for name in names]])
    metrics = list(draws[0]["ways"]["as it is"])
    rows = [
        [way, *(cell([one["ways"][way][metric] for one in draws]) for metric in metrics)] for way in draws[0]["ways"]
    ]
    return f"{first}\n\n{markdown(['probabilities', *metrics], rows)}"


def main() -> None:
    """Fit to several draws, and print the table."""
    parser = data_parser(__doc__ or "")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    draws = []
    for draw in range(arguments.draws):
        draws.append(one_draw(arguments, draw))
        print(draw, draws[-1], flush=True)
    print(table(draws))
    if arguments.out is not None:
        given = {"data": arguments.data.name, "labelled": arguments.labelled, "theta2": arguments.theta2}
        about = {**given, "coverage": arguments.coverage, "threads": torch.get_num_threads()}
        write_text(arguments.out, json.dumps({**about, "draws": draws}, indent=1) + "\n")


if __name__ == "__main__":
    main()
