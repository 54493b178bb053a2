"""What to label next: accuracy after labels that `suggest` asked for, beside random ones and the smallest margins.

    python -m benchmarks.suggest DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--mode MODE] [--start N]
        [--more N] [--steps N] [--pool N] [--draws N] [--out FILE]

Each draw takes training samples: some with labels at random, a pool, and 500 others that judge. Every way starts with
the same labels, asks for more of the pool, and is fitted again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.time_to_accuracy import data_parser, estimator
from gradfeat.data import load_dataset
from gradfeat.files.writing import write_text

WAYS = ("suggest", "margin", "random")
JUDGES = 500


def chosen(way: str, model: Any, pool: list, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return which samples of a pool a way asks for, (k,)."""
    if way == "suggest":
        return model.suggest(pool, k).samples
    if way == "margin":
        p = np.sort(model.predict_proba(pool), 1)
        return np.argsort(p[:, -1] - p[:, -2], kind="stable")[:k]
    return rng.permutation(len(pool))[:k]


def main() -> None:
    """Run all draws."""
    parser = data_parser(__doc__ or "")
    parser.add_argument("--mode", default="full")
    parser.add_argument("--start", type=int, default=40)
    parser.add_argument("--more", type=int, default=40)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pool", type=int, default=400)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = load_dataset(arguments.data, split="train")
    curves: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for draw in range(arguments.draws):
        rng = np.random.default_rng(draw)
        order = rng.permutation(len(data.X))
        first, rest = order[: arguments.start], order[arguments.start :]
        whole_pool, judges = rest[: arguments.pool], rest[arguments.pool : arguments.pool + JUDGES]
        began: Any = None
        for way in WAYS:
            labelled, pool, accuracies = first, whole_pool, []
            for step in range(arguments.steps + 1):
                if step == 0 and began is not None:
                    model = began
                else:
                    depth = {} if arguments.mode == "activation" else {"theta2": arguments.theta2 or "top", "rounds": 1}
                    model = estimator(arguments, mode=arguments.mode, random_state=0, **depth)
                    model.fit([data.X[i] for i in labelled], np.asarray(data.y)[labelled])
                    began = model if step == 0 else began
                right = model.predict([data.X[i] for i in judges]) == np.asarray(data.y)[judges]
                accuracies.append(float(right.mean()))
                if step < arguments.steps:
                    picks = chosen(way, model, [data.X[i] for i in pool], arguments.more, rng)
                    labelled, pool = np.concatenate([labelled, pool[picks]]), np.delete(pool, picks)
            curves[way].append(accuracies)
            print(draw, way, accuracies, flush=True)
    result = {
        "mode": arguments.mode,
        "labels": [arguments.start + step * arguments.more for step in range(arguments.steps + 1)],
        "pool": arguments.pool,
        "accuracies": curves,
        "mean": {way: np.mean(found, 0).tolist() for way, found in curves.items()},
    }
    print(json.dumps(result["mean"]), flush=True)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
