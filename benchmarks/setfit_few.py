"""SetFit (Tunstall et al. 2022) on few texts: its own library and defaults, for the draws of `few_texts`.

    python -m benchmarks.setfit_few FOLDER DATA MODEL OUT [--shots K ...] [--draws N]

FOLDER has `<DATA>_train.csv` and `<DATA>_test.csv`; MODEL is a folder of sentence-transformers; OUT a JSON file, which
keeps what it has. SetFit is a library that gradfeat does not need, and asks for older versions of its own: run this in
an environment of its own (setfit 1.2.0, sentence-transformers 5.1.2, transformers 4.57.6 were used).

The contrastive loss is the squared error of the cosine of pairs, 20 pairs of each kind a text, one epoch, batches of 16
pairs, a rate of 2e-5 with warm-up, all layers; then scikit-learn's LogisticRegression on the moved embeddings.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.text_draws import TextData, Texts, draw, read
from gradfeat.files.writing import write_text

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ITERATIONS = 20


def fitted(texts: Texts, model: str, seed: int) -> Any:
    """Return SetFit's model of a draw."""
    import datasets
    import setfit

    body = setfit.SetFitModel.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = setfit.TrainingArguments(
            output_dir=folder,
            num_iterations=ITERATIONS,
            num_epochs=1,
            batch_size=16,
            seed=seed,
            report_to="none",
            save_strategy="no",
            show_progress_bar=False,
        )
        rows = datasets.Dataset.from_dict({"text": texts.texts, "label": texts.labels.tolist()})
        setfit.Trainer(model=body, args=arguments, train_dataset=rows).train()
    return body


def scores(shares: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy and log loss of class probabilities (n, c)."""
    right = shares[np.arange(len(shares)), labels].clip(1e-12)
    return {"accuracy": float((shares.argmax(1) == labels).mean()), "log_loss": float(-np.log(right).mean())}


def judged(model: Any, texts: Texts) -> dict[str, float]:
    """Return how a model of SetFit does on some texts."""
    return scores(np.asarray(model.predict_proba(texts.texts, as_numpy=True)), texts.labels)


def reading(data: TextData, k: int, seed: int, model: str) -> dict[str, Any]:
    """Fit a draw, and judge it."""
    begun = time.process_time()
    body = fitted(draw(data.pool, k, seed), model, seed)
    seconds = time.process_time() - begun
    return {"seconds": seconds, "judges": judged(body, data.judges), "test": judged(body, data.test)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--draws", type=int, default=10)
    given = parser.parse_args()
    data = read(given.folder, given.data)
    readings = json.loads(given.out.read_text()) if given.out.exists() else {}
    for k in given.shots:
        for seed in range(given.draws):
            if str(seed) in readings.setdefault(str(k), {}):
                continue
            readings[str(k)][str(seed)] = reading(data, k, seed, given.model)
            write_text(given.out, json.dumps(readings, indent=1) + "\n")
            one = readings[str(k)][str(seed)]
            print(f"{k} of each, draw {seed}: {one['seconds']:.0f} s, on other training texts {one['judges']}")


if __name__ == "__main__":
    main()
