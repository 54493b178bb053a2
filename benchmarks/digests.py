"""Digests of what fits end with, to know that a change of the code has changed no number.

    python -m benchmarks.digests write FILE
    python -m benchmarks.digests compare FILE OTHER

`write` fits small models in many settings (modes, solvers, metrics, rounds, mirror images, weights, checkpoints, images
and texts of different lengths) and writes a digest of each one's weights, intercept, ω̄, θ̄₂, predictions, penalties and
how the fit ended. `compare` says which differ. Numbers differ between kinds of machines, so both files must come from
one machine; before and after a redesign they must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare
from gradfeat.errors import GradfeatWarning
from gradfeat.files.writing import write_text
from gradfeat.optional import require


def images(n: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images, (n, 8, 8, 3), and labels that the activations alone do not tell."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = rng.normal(128, 40, size=(n, 8, 8, 3))
    X[:, 2:6, 2:6, 0] += 40 * (y == 1)[:, None, None] * rng.choice([-1, 1], n)[:, None, None]
    X[:, :4, :, 1] += 25 * (y == 2)[:, None, None]
    return X.clip(0, 255).astype(np.uint8), y


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors, (n, 6), and noisy labels of which a product of two entries tells most."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, (X[:, 0] * X[:, 1] + 0.7 * X[:, 2] + 0.7 * rng.normal(size=n) > 0).astype(int)


def texts(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Return texts of one to twelve words, and whether they have the word "good"."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    words = ("a", "film", "the", "was", "it")
    X = []
    for label in y:
        text = [*rng.choice(words, rng.integers(0, 12)), "good" if label else "bad"]
        rng.shuffle(text)
        X.append(" ".join(text))
    return X, y


def convolutional() -> nn.Module:
    """Return a network of images with batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()


def dense() -> nn.Module:
    """Return a network of vectors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 10), nn.Tanh())


def transformer(folder: Path) -> str:
    """Write a random BERT of two layers and its tokenizer; return its name."""
    tokenizers, transformers = require("tokenizers", extra="text"), require("transformers", extra="text")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=12, max_position_embeddings=16, initializer_range=0.5, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "the", "was", "it", "plot")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return f"hf/{folder}"


def settings(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names, and functions that return a fitted estimator, or a comparison."""
    vectors, pictures, many = rows(90), images(80), images(1010, 1)
    weight = np.random.default_rng(3).choice([0.0, 0.5, 1.0, 3.0], 90)
    indicator = np.stack([vectors[1], vectors[0][:, 3] * vectors[0][:, 4] > 0], 1).astype(float)
    indicator[3, 1] = np.nan
    targets = np.stack([vectors[0][:, 0] * vectors[0][:, 1], vectors[0][:, 2]], 1) + 7

    def of(cls: Any, network: Any, X: Any, y: Any, sample_weight: Any = None, **given: Any) -> Callable[[], Any]:
        return lambda: cls(network(), **{"random_state": 0, "theta2": "*", **given}).fit(X, y, sample_weight)

    def dense_of(**given: Any) -> Callable[[], Any]:
        return of(GradientFeatureClassifier, dense, *vectors, **given)

    def images_of(**given: Any) -> Callable[[], Any]:
        return of(GradientFeatureClassifier, convolutional, *pictures, **{"theta2": "auto", **given})

    def resumed(**given: Any) -> Callable[[], Any]:
        def run() -> Any:
            with tempfile.TemporaryDirectory() as kept:
                fit = dense_of(checkpoint=kept, **given)
                fit()
                for part in sorted(Path(kept).rglob("*.safetensors"))[::2]:
                    part.unlink()
                return fit()

        return run

    yield "activation", dense_of(mode="activation")
    yield "gradient", dense_of(mode="gradient")
    yield "full", dense_of()
    yield "full, plain", dense_of(metric="plain")
    yield "full, whitened", dense_of(metric="whitened")
    yield "full, weights", dense_of(sample_weight=weight)
    yield "full, balanced", dense_of(class_weight="balanced")
    yield "full, given penalties", dense_of(penalty=(1e-2, 1e-3))
    yield "full, given penalties, whitened", dense_of(penalty=(1e-2, 1e-3), metric="whitened")
    yield "full, NTK parametrization", dense_of(parametrization="ntk")
    yield "full, double precision", dense_of(precision="float64")
    yield "full, rounds", dense_of(rounds="auto")
    yield "full, three rounds, weights", dense_of(rounds=3, sample_weight=weight)
    yield "full, search", dense_of(theta2="search")
    yield "full, dual", dense_of(solver="dual")
    yield "gradient, dual, given penalties", dense_of(mode="gradient", solver="dual", penalty=1e-2)
    yield "full, Adam", dense_of(solver="adam", epochs=4)
    yield "gradient, SGD, weights", dense_of(mode="gradient", solver="sgd", epochs=3, sample_weight=weight)
    yield "finetune", dense_of(mode="finetune", epochs=4)
    yield "one-hot squared", dense_of(loss="one_hot_squared")
    yield "one-hot squared, subspace", dense_of(loss="one_hot_squared", solver="subspace")
    yield "multi-label", of(GradientFeatureClassifier, dense, vectors[0], indicator)
    yield "multi-label, dual", of(GradientFeatureClassifier, dense, vectors[0], indicator, solver="dual")
    yield "regression, closed form", of(GradientFeatureRegressor, dense, vectors[0], targets)
    yield "regression, weights", of(GradientFeatureRegressor, dense, vectors[0], targets, weight)
    yield "regression, subspace", of(GradientFeatureRegressor, dense, vectors[0], targets, solver="subspace")
    yield "images", images_of()
    yield "images, mirror", images_of(augment="mirror")
    yield "images, mirror, rounds", images_of(augment="mirror", rounds=4)
    yield "images, mirror, one-hot squared, dual", images_of(augment="mirror", loss="one_hot_squared", solver="dual")
    yield "images, mirror, finetune", images_of(augment="mirror", mode="finetune", epochs=2)
    yield "images, z0 kept", images_of(cache="z0")
    yield "images, search", images_of(theta2="search", mode="gradient")
    yield "many images", of(GradientFeatureClassifier, convolutional, *many, theta2="auto")
    yield "many images, rounds", of(GradientFeatureClassifier, convolutional, *many, theta2="auto", rounds=3)
    yield "full, resumed", resumed()
    yield "rounds, resumed", resumed(rounds="auto")
    yield "finetune, resumed", resumed(mode="finetune", epochs=4)
    yield "closed form, resumed", resumed(loss="one_hot_squared")
    bert = transformer(folder)
    yield "texts", of(GradientFeatureClassifier, lambda: bert, *texts(60), theta2="auto")
    two = {"theta2": "auto", "preprocessing": {"length": 14, "lengths": [7, 14]}}
    yield "texts of two lengths", of(GradientFeatureClassifier, lambda: bert, *texts(120), **two)
    yield "texts, rounds", of(GradientFeatureClassifier, lambda: bert, *texts(60), theta2="auto", rounds=3)
    test = rows(40, 1)
    yield "compared", lambda: compare(dense(), *vectors, *test, theta2="*", random_state=0, epochs=3, rounds=3)


def digest(*values: Any) -> str:
    """Return a digest of numbers and words."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor | np.ndarray):
            array = np.asarray(value)
            found.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def described(estimator: Any, X: Any) -> dict[str, str]:
    """Return the digests of a fitted estimator."""
    choice, rounds, solution, head = (
        estimator.choice_,
        estimator.rounds_,
        estimator.solution_,
        estimator.merged_head_,
    )
    moved = estimator.theta2_ or {}
    found = {
        "w1": digest(estimator.w1_),
        "b": digest(estimator.b_),
        "omega": digest(estimator.omega_),
        "w2": digest(*(part for item in estimator.w2_.items() for part in item)),
        "theta2": digest(*(part for item in moved.items() for part in item)),
        "probe": digest(estimator.probe_.penalty, estimator.probe_.path, estimator.probe_.bias),
        "predictions": digest(np.asarray(estimator.predict(X))),
        "how": digest(*(f"{name}: {text}" for name, text in estimator.how_.items())),
    }
    if choice is not None:
        values = (choice.omega_penalty, choice.length, choice.losses, choice.iterations, choice.gain, choice.gain_error)
        path = [tuple(vars(tried).values()) for tried in choice.path]
        found["choice"] = digest(*values, choice.metric, choice.passes, path)
    if rounds is not None:
        found["rounds"] = digest(rounds.start, [trial.loss for trial in rounds.trials], rounds.more, rounds.reason)
    if solution is not None:
        found["solution"] = digest(solution.objective, solution.passes, solution.gap, solution.reason)
    if head is not None:
        found["merged head"] = digest(head.step, head.weight, head.bias)
    return found


def write(path: Path) -> None:
    """Fit in all settings, and write the digests as JSON."""
    found: dict[str, dict[str, str]] = {}
    warnings.simplefilter("ignore", GradfeatWarning)
    with tempfile.TemporaryDirectory() as folder:
        for name, fit in settings(Path(folder)):
            fitted = fit()
            samples = texts(20, 5)[0] if name.startswith("texts") else None
            if samples is None:
                samples = images(20, 5)[0] if "images" in name else rows(20, 5)[0]
            estimators = fitted.estimators if name == "compared" else {"": fitted}
            for mode, estimator in estimators.items():
                found[f"{name} {mode}".strip()] = described(estimator, samples)
            print(name, flush=True)
    write_text(path, json.dumps(found, indent=1) + "\n")


def differences(first: dict[str, dict[str, str]], second: dict[str, dict[str, str]]) -> list[str]:
    """Return what differs between two files' digests."""
    lines = [f"{name}: in one file only" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        parts = [part for part in first[name] | second[name] if first[name].get(part) != second[name].get(part)]
        lines += [f"{name}: other {', '.join(parts)}"] if parts else []
    return lines


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write").add_argument("file", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("file", type=Path)
    comparing.add_argument("other", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(arguments.file)
        return
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.file, arguments.other))
    lines = differences(first, second)
    print("\n".join(lines) or f"all {len(first)} are equal")
    raise SystemExit(1 if lines else 0)


if __name__ == "__main__":
    main()
