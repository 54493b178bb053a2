"""`gradfeat demo`: the whole method on data that scikit-learn brings, in a minute or two."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradfeat.cli.outputs import check_folder
from gradfeat.cli.requests import Demo
from gradfeat.cli.show import note, print_json, table
from gradfeat.comparison.side_by_side import Comparison, compare
from gradfeat.estimators.adapter import load
from gradfeat.pretrain import input_scaling, pretrain_encoder, save_encoder
from gradfeat.pretrain.encoder_file import FILE
from gradfeat.progress import Progress

LABELLED, TEST = 300, 1000
PRETRAIN_EPOCHS, EPOCHS = 40, 100


@dataclass(frozen=True)
class Digits:
    """The 1,797 digits, divided; images are uint8, (n, 8, 8, 1).

    Attributes:
        unlabelled: Images to pre-train on.
        X: Images among them that have labels.
        y: Their labels.
        X_test: Images apart from both.
        y_test: Their labels.
    """

    unlabelled: np.ndarray
    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


def digits(seed: int) -> Digits:
    """Divide scikit-learn's digits: images without labels, labelled ones among them, and a test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    train, test, y_train, y_test = train_test_split(pixels, labels, test_size=TEST, stratify=labels, random_state=seed)
    some, _, y_some, _ = train_test_split(train, y_train, train_size=LABELLED, stratify=y_train, random_state=seed)
    return Digits(train, some, y_some, test, y_test)


def run(request: Demo) -> None:
    """Pre-train without labels, fit the four models, show and keep the results, load a model again and predict."""
    out, json = request.out, request.json
    start = time.perf_counter()
    check_folder(out)
    data = digits(request.seed)
    note(
        json,
        f"1. Pre-train a small encoder on {len(data.unlabelled)} digits without their labels (variational "
        "auto-encoder).",
    )
    weights = out / FILE
    _pretrain(data.unlabelled, request, weights)
    after_pretraining = time.perf_counter()
    note(
        json,
        f"2. Fit the four models to {len(data.X)} labelled digits; test on {len(data.X_test)} others. "
        "θ₂ is the topmost convolution.",
    )
    backbone = f"gradfeat/{weights}"
    result = _compare(backbone, data, request)
    after_fit = time.perf_counter()
    model = result.estimators["full"].save(out / "model.safetensors")
    picture = result.plot(
        out / "comparison.png", title=f"digits, {len(data.X)} labels: VAE encoder without labels, then four models"
    )
    result.save_json(out / "comparison.json")
    predicted = load(model, backbone=backbone).predict(data.X_test)
    report = DemoReport(
        result,
        model,
        picture,
        same=bool((predicted == result.estimators["full"].predict(data.X_test)).all()),
        predicted=predicted,
        truth=data.y_test,
        seconds={
            "pre-training": after_pretraining - start,
            "four models": after_fit - after_pretraining,
            "all": time.perf_counter() - start,
        },
    )
    if json:
        print_json(report.to_dict())
    else:
        report.show()


def _pretrain(images: np.ndarray, request: Demo, weights: Path) -> None:
    """Train an encoder on images, and write it to a file."""
    with Progress(not request.json).step("pre-training") as done:
        encoder = pretrain_encoder(
            images,
            epochs=PRETRAIN_EPOCHS,
            random_state=request.seed,
            progress=lambda epoch, epochs, loss: done(epoch, epochs),
        )
    save_encoder(encoder, weights, task="vae", preprocessing=input_scaling(images))


def _compare(backbone: str, data: Digits, request: Demo) -> Comparison:
    """Return the four models side by side."""
    return compare(
        backbone,
        data.X,
        data.y,
        data.X_test,
        data.y_test,
        epochs=EPOCHS,
        solver="subspace",
        random_state=request.seed,
        verbose=not request.json,
    )


@dataclass(frozen=True)
class DemoReport:
    """What the demonstration says at its end.

    Attributes:
        result: The four models side by side.
        model: The file of one of them.
        picture: The file of their picture.
        same: Whether the model that was loaded again predicts as the one that was saved.
        predicted: Its predictions for the test digits, (n,).
        truth: Their classes, (n,).
        seconds: That each part took.
    """

    result: Comparison
    model: Path
    picture: Path
    same: bool
    predicted: np.ndarray
    truth: np.ndarray
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            **self.result.to_dict(),
            "model": str(self.model),
            "picture": str(self.picture),
            "loaded_model_predicts_the_same": self.same,
            "seconds": self.seconds,
            "torch_threads": torch.get_num_threads(),
        }

    def show(self) -> None:
        """Print it for people."""
        table(*self.result.cells())
        for text in self.result.remarks():
            note(False, text)
        if self.result.verdict is not None:
            note(False, self.result.verdict.text)
        size = self.model.stat().st_size / 1e3
        note(
            False,
            f"3. Saved {self.model} ({size:.0f} kB) and {self.picture}; loaded the model again: its predictions are "
            f"{'the same' if self.same else 'NOT the same'}. The first ten test digits: predicted "
            f"{self.predicted[:10].tolist()}, true {self.truth[:10].tolist()}.",
        )
        note(False, ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds.items()))
