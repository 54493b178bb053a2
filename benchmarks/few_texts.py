"""Few labels of texts: gradfeat's models, a fixed-penalty probe and SetFit on the same draws.

    python -m benchmarks.few_texts FOLDER DATA BACKBONE OUT [--ways WAY ...] [--shots K ...] [--draws N] [--setfit FILE]
    python -m benchmarks.few_texts --table OUT [--setfit FILE] [--judges]

FOLDER has `<DATA>_train.csv` and `<DATA>_test.csv`. Draws, and the training texts that designs are judged on, are those
of `text_draws`; `setfit_few` writes SetFit's FILE. Seconds are of the processor, from texts to a fitted model: its
network's programs, features, choices and fit. Readings that OUT has are kept. The table is printed as Markdown, of the
test file, or with `--judges` of the other training texts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.setfit_few import scores
from benchmarks.text_draws import TextData, Texts, draw, read
from gradfeat.files.writing import write_text

LAYERS = "transformer.encoder.layer."
THREE = [f"{LAYERS}{layer}" for layer in (3, 4, 5)]
WAYS: dict[str, dict[str, Any]] = {
    "probe without a prior": {"mode": "activation"},
    "probe": {"mode": "activation"},
    "LogisticRegression(C=1)": {},
    "default": {},
    "full": {"mode": "full"},
    "rounds": {"mode": "full", "rounds": "auto"},
    "finetune": {"mode": "finetune"},
    "pairs": {"mode": "finetune", "solver": "pairs"},
    "pairs, 3 layers": {"mode": "finetune", "solver": "pairs", "theta2": THREE},
    "pairs, 6 layers": {"mode": "finetune", "solver": "pairs", "theta2": f"{LAYERS}*"},
}


@contextmanager
def without_prior(wanted: bool) -> Iterator[None]:
    """Choose the probe's penalty by cross-validation alone."""
    from gradfeat.solvers import probe_path

    before = probe_path.FEW
    probe_path.FEW = 0 if wanted else before
    try:
        yield
    finally:
        probe_path.FEW = before


def fitted(backbone: str, way: str, texts: Texts) -> Any:
    """Return a way's model of a draw, which has `predict_proba`."""
    from gradfeat import GradientFeatureClassifier

    face = GradientFeatureClassifier(backbone, random_state=0, **WAYS[way])
    if way != "LogisticRegression(C=1)":
        with without_prior(way == "probe without a prior"):
            return face.fit(texts.texts, texts.labels)
    return _Fixed(face, texts)


class _Fixed:
    """scikit-learn's logistic regression with its own penalty, on f(x)."""

    def __init__(self, face: Any, texts: Texts) -> None:
        from sklearn.linear_model import LogisticRegression

        from gradfeat.backbones import resolve

        self._backbone = resolve(face.backbone)
        self._model = LogisticRegression(C=1, max_iter=1000).fit(self._features(texts.texts), texts.labels)

    def _features(self, texts: list[str]) -> np.ndarray:
        import torch

        from gradfeat.data import Inputs

        inputs = Inputs(texts, self._backbone.preprocessing)
        with torch.no_grad():
            parts = [range(start, min(start + 64, len(texts))) for start in range(0, len(texts), 64)]
            return torch.cat([self._backbone.network(inputs.batch(part)) for part in parts]).numpy()

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        return np.asarray(self._model.predict_proba(self._features(texts)))


def reading(data: TextData, backbone: str, way: str, k: int, seed: int) -> dict[str, Any]:
    """Fit a draw in one way, and judge it."""
    texts = draw(data.pool, k, seed)
    begun = time.process_time()
    model = fitted(backbone, way, texts)
    seconds = time.process_time() - begun
    judged = {
        name: scores(model.predict_proba(part.texts), part.labels)
        for name, part in (("judges", data.judges), ("test", data.test))
    }
    return {"seconds": seconds, **judged}


def table(readings: dict[str, Any], part: str) -> str:
    """Return means over draws ± standard errors, by way and labels of each class."""
    shots = sorted({k for by_shot in readings.values() for k in by_shot}, key=int)
    rows = [["way", *(f"{k} of each: accuracy %, log loss, processor s, draws" for k in shots)]]
    rows.append(["---"] * len(rows[0]))
    for way, by_shot in readings.items():
        rows.append([way, *(_cell(by_shot.get(k, {}), part) for k in shots)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(draws: dict[str, Any], part: str) -> str:
    if not draws:
        return ""
    values = np.array([[100 * one[part]["accuracy"], one[part]["log_loss"], one["seconds"]] for one in draws.values()])
    error = f" ± {values[:, 0].std(ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    accuracy, loss, seconds = values.mean(0)
    return f"{accuracy:.1f}{error}, {loss:.3f}, {seconds:.0f}, {len(values)}"


def with_setfit(readings: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """Return the readings with SetFit's."""
    return readings if file is None or not file.exists() else {**readings, "SetFit": json.loads(file.read_text())}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("given", nargs="*", help="FOLDER DATA BACKBONE OUT")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--setfit", type=Path)
    parser.add_argument("--judges", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--shots", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--draws", type=int, default=10)
    asked = parser.parse_args()
    part = "judges" if asked.judges else "test"
    if asked.table is not None:
        print(table(with_setfit(json.loads(asked.table.read_text()), asked.setfit), part))
        return
    folder, name, backbone, out = asked.given
    data, file = read(Path(folder), name), Path(out)
    readings = json.loads(file.read_text()) if file.exists() else {}
    for k in asked.shots:
        for seed in range(asked.draws):
            for way in asked.ways:
                kept = readings.setdefault(way, {}).setdefault(str(k), {})
                if str(seed) not in kept:
                    kept[str(seed)] = reading(data, backbone, way, k, seed)
                    write_text(file, json.dumps(readings, indent=1) + "\n")
                    seconds, judged = kept[str(seed)]["seconds"], kept[str(seed)]["judges"]
                    print(
                        f"{k} of each, draw {seed}, {way}: {seconds:.1f} s, other training texts {judged}", flush=True
                    )
    readings = {way: readings[way] for way in WAYS if way in readings}
    print(table(with_setfit(readings, asked.setfit), part))


if __name__ == "__main__":
    main()
