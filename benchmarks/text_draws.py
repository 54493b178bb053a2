"""Draws of few texts with labels, the same for every way that is compared (`few_texts`, `setfit_few`); numpy alone.

The training file is cut once: 1,000 texts judge designs, and draws come from the others. The test file is for the last
table alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

JUDGES = 1000
"""Texts of the training file that no draw has, and that designs are judged on."""


@dataclass(frozen=True)
class Texts:
    """Texts with labels from 0.

    Attributes:
        texts: The texts.
        labels: One for each, (n,).
    """

    texts: list[str]
    labels: np.ndarray

    def rows(self, indices: np.ndarray) -> Texts:
        """Return some of them."""
        return Texts([self.texts[index] for index in indices], self.labels[indices])


@dataclass(frozen=True)
class TextData:
    """The parts of a data set.

    Attributes:
        pool: What draws are made of.
        judges: Other training texts.
        test: The test file.
    """

    pool: Texts
    judges: Texts
    test: Texts


def read(folder: Path, name: str) -> TextData:
    """Return the parts of `<folder>/<name>_train.csv` and `_test.csv`, with columns text and label."""
    train, test = (_file(folder / f"{name}_{part}.csv") for part in ("train", "test"))
    classes = sorted({label for _, label in train})
    whole, judged = (
        Texts([text for text, _ in part], np.array([classes.index(label) for _, label in part]))
        for part in (train, test)
    )
    order = np.random.default_rng(2026).permutation(len(whole.texts))
    return TextData(whole.rows(np.sort(order[JUDGES:])), whole.rows(np.sort(order[:JUDGES])), judged)


def _file(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [(row["text"], row["label"]) for row in csv.DictReader(lines)]


def draw(pool: Texts, k: int, seed: int) -> Texts:
    """Return k texts of each class, fewer where a class has fewer."""
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(pool.labels == label))[:k] for label in range(int(pool.labels.max()) + 1)]
    return pool.rows(np.sort(np.concatenate(parts)))
