"""A recurrent network and a network of sound, each trained on one task and adapted to another.

    python -m benchmarks.sequences [--out FOLDER]

- digits: a GRU reads an 8 × 8 digit row by row (scikit-learn's built-in digits). It is trained on 0 to 4 and adapted to
  5 to 9 with ten labels of each.
- sound: convolutions over waveforms of half a second, made here: a note of random pitch, phase and loudness in noise.
  The network is trained to tell four timbres apart (which overtones are there), and adapted to three ways of fading
  with ten labels of each.

Five draws of the labels each; mean ± standard error of the accuracy on all other samples, and log loss. Nothing is
chosen on them.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradfeat import compare
from gradfeat.files.writing import write_text

LABELS = 10  # of each class
DRAWS = 5
RATE = 4000
MODES = ("activation", "gradient", "full", "finetune")


class Reader(nn.Module):
    """A GRU over the rows of an image; f(x) is its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(8, 48, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, 48) of (n, 8, 8)."""
        return self.recurrent(x)[0][:, -1]


class Listener(nn.Module):
    """Convolutions over a waveform; f(x) is the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(1, 16, 32, 8), (16, 32, 8, 4), (32, 48, 4, 2)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, kernel, stride), nn.BatchNorm1d(b), nn.ReLU())
                for a, b, kernel, stride in widths
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, 48) of waveforms (n, samples)."""
        return self.layers(x[:, None]).mean(2)


def digits() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """Return a GRU trained on 0-4, and the images and labels of 5-9."""
    data = load_digits()
    X, y = (data.images / 16).astype(np.float32), data.target
    low = y < 5
    return pretrained(Reader(), X[low], y[low], epochs=30), X[~low], y[~low] - 5


def sound() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """Return a network trained on timbres, and waveforms with their way of fading."""
    rng = np.random.default_rng(0)
    X, timbre, _ = notes(rng, 4000)
    network = pretrained(Listener(), X, timbre, epochs=8)
    X, _, fading = notes(rng, 1500)
    return network, X, fading


def notes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return waveforms (n, samples), their timbre (0-3) and how they fade (0-2)."""
    time = np.arange(RATE // 2) / RATE
    overtones = np.array([[1, 0, 0, 0], [1, 0.7, 0, 0], [1, 0, 0.7, 0], [1, 0.5, 0.5, 0.5]])
    fades = np.stack([np.ones_like(time), np.exp(-6 * time), 0.5 + 0.5 * np.sin(2 * np.pi * 8 * time)])
    timbre, fading = rng.integers(0, 4, n), rng.integers(0, 3, n)
    hertz = rng.uniform(150, 400, (n, 1, 1)) * np.arange(1, 5)[:, None]
    waves = np.sin(2 * np.pi * (hertz * time + rng.random((n, 4, 1))))
    clean = (waves * overtones[timbre][:, :, None]).sum(1) * fades[fading] * rng.uniform(0.3, 1, (n, 1))
    return (clean + 0.2 * rng.normal(size=clean.shape)).astype(np.float32), timbre, fading


def pretrained(network: nn.Module, X: np.ndarray, y: np.ndarray, epochs: int) -> nn.Module:
    """Train a network with a linear head by Adam, and return it without the head."""
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    head = nn.Linear(48, int(y.max()) + 1)
    inputs, labels = torch.from_numpy(X), torch.from_numpy(y)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=2e-3)
    network.train()
    for _ in range(epochs):
        for part in torch.randperm(len(inputs)).split(64):
            loss = nn.functional.cross_entropy(head(network(inputs[part])), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        accuracy = (head(network(inputs)).argmax(1) == labels).float().mean()
    print(f"pre-training: {100 * accuracy:.1f} % of the training samples", flush=True)
    return network


def adapt(network: nn.Module, X: np.ndarray, y: np.ndarray, theta2: str) -> dict[str, list[tuple[float, float, float]]]:
    """Return (accuracy, log loss, seconds) of each draw, by model."""
    readings: dict[str, list[tuple[float, float, float]]] = {mode: [] for mode in (*MODES, "full with rounds")}
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        labelled = np.concatenate([rng.permutation(np.flatnonzero(y == label))[:LABELS] for label in np.unique(y)])
        rest = np.setdiff1d(np.arange(len(y)), labelled)
        for modes, rounds in ((MODES, 1), (("full",), "auto")):
            table = compare(
                network,
                X[labelled],
                y[labelled],
                X[rest],
                y[rest],
                modes=modes,
                theta2=theta2,
                rounds=rounds,
                random_state=draw,
            )
            for row in table.rows:
                name = "full with rounds" if rounds == "auto" else row.mode
                readings[name].append((row.metrics["accuracy"], row.metrics["log_loss"], row.seconds))
    return readings


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the numbers of each draw, as JSON")
    arguments = parser.parse_args()
    results = {}
    for name, task, theta2 in (("digits", digits, "recurrent"), ("sound", sound, "layers.1 layers.2")):
        network, X, y = task()
        results[name] = adapt(network, X, y, theta2.split())
        print(f"\n{name}: θ₂ = {theta2}, {LABELS} labels of each of {len(np.unique(y))} classes, {DRAWS} draws\n")
        print("| model | accuracy | log loss | time |\n|---|---|---|---|")
        for mode, draws in results[name].items():
            mean, error = np.mean(draws, 0), np.std(draws, 0, ddof=1) / np.sqrt(len(draws))
            print(
                f"| {mode} | {100 * mean[0]:.1f} ± {100 * error[0]:.1f} | {mean[1]:.3f} | {mean[2]:.1f} s |", flush=True
            )
    if arguments.out:
        about = {"date": f"{date.today():%Y-%m-%d}", "torch": torch.__version__, "results": results}
        write_text(arguments.out / "sequences.json", json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
