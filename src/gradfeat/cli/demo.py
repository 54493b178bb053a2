"""`gradfeat demo`: the whole method on data that scikit-learn brings, in a minute or two."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradfeat.cli.outputs import check_folder
from gradfeat.cli.show import note, print_json, table
from gradfeat.comparison.side_by_side import Comparison, compare
from gradfeat.estimators.adapter import load
from gradfeat.pretrain import input_scaling, pretrain_encoder, save_encoder
from gradfeat.pretrain.encoder_file import FILE
from gradfeat.progress import Progress

LABELLED, TEST = 300, 1000
PRETRAIN_EPOCHS, EPOCHS = 40, 100


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split the 1,797 digits: images without labels, labelled ones among them, and a test set apart from both.

    Returns:
        Unlabelled images, labelled images, their labels, test images, their labels; images are uint8, (n, 8, 8, 1).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    train, test, y_train, y_test = train_test_split(pixels, labels, test_size=TEST, stratify=labels, random_state=seed)
    some, _, y_some, _ = train_test_split(train, y_train, train_size=LABELLED, stratify=y_train, random_state=seed)
    return train, some, y_some, test, y_test


def run(out: Path, seed: int, json: bool) -> None:
    """Pre-train without labels, fit the four models, show and keep the results, load a model again and predict."""
    start = time.perf_counter()
    check_folder(out)
    unlabelled, X, y, X_test, y_test = digits(seed)
    note(
        json,
        f"1. Pre-train a small encoder on {len(unlabelled)} digits without their labels (variational auto-encoder).",
    )
    progress = Progress(not json)
    with progress.step("pre-training") as done:
        encoder = pretrain_encoder(
            unlabelled,
            epochs=PRETRAIN_EPOCHS,
            random_state=seed,
            progress=lambda epoch, epochs, loss: done(epoch, epochs),
        )
    weights = out / FILE
    save_encoder(encoder, weights, task="vae", preprocessing=input_scaling(unlabelled))
    after_pretraining = time.perf_counter()

    note(
        json,
        f"2. Fit the four models to {len(X)} labelled digits; test on {len(X_test)} others. "
        "θ₂ is the topmost convolution.",
    )
    result = compare(
        f"gradfeat/{weights}",
        X,
        y,
        X_test,
        y_test,
        epochs=EPOCHS,
        solver="subspace",
        random_state=seed,
        verbose=not json,
    )
    after_fit = time.perf_counter()

    model = result.estimators["full"].save(out / "model.safetensors")
    picture = result.plot(
        out / "comparison.png", title=f"digits, {len(X)} labels: VAE encoder without labels, then four models"
    )
    result.save_json(out / "comparison.json")
    again = load(model, backbone=f"gradfeat/{weights}")
    predicted = again.predict(X_test)
    same = bool((predicted == result.estimators["full"].predict(X_test)).all())
    seconds = {
        "pre-training": after_pretraining - start,
        "four models": after_fit - after_pretraining,
        "all": time.perf_counter() - start,
    }
    _show(result, model, picture, same, predicted, y_test, seconds, json)


def _show(
    result: Comparison,
    model: Path,
    picture: Path,
    same: bool,
    predicted: np.ndarray,
    truth: np.ndarray,
    seconds: dict[str, float],
    json: bool,
) -> None:
    if json:
        about: dict[str, Any] = {
            **result.to_dict(),
            "model": str(model),
            "picture": str(picture),
            "loaded_model_predicts_the_same": same,
            "seconds": seconds,
            "torch_threads": torch.get_num_threads(),
        }
        print_json(about)
        return
    table(*result.cells())
    for text in result.remarks():
        note(False, text)
    if result.verdict is not None:
        note(False, result.verdict.text)
    size = model.stat().st_size / 1e3
    note(
        False,
        f"3. Saved {model} ({size:.0f} kB) and {picture}; loaded the model again: its predictions are "
        f"{'the same' if same else 'NOT the same'}. The first ten test digits: predicted {predicted[:10].tolist()}, "
        f"true {truth[:10].tolist()}.",
    )
    note(False, ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
