"""Peak memory and processor time of a whole fit beside fine-tuning of the same layers, each in a process of its own.

    python -m benchmarks.memory DATA -b BACKBONE --theta2 blocks.6 --augment mirror --ways finetune full rounds \
        [--out FOLDER]

Fine-tuning has one recipe, of two epochs: its length does not change what it holds. Peak memory is that of the process
(`ru_maxrss`), with the libraries and the network. Writes a table and a JSON file where a folder is given.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from benchmarks.time_to_accuracy import changes_of, data_parser, markdown, write
from gradfeat import GradientFeatureClassifier
from gradfeat.data import load_dataset
from gradfeat.fit import solve
from gradfeat.solvers.finetune import Recipe, Search
from gradfeat.solvers.schedule import Schedule

WAYS = {"finetune": ("finetune", 1), "full": ("full", 1), "rounds": ("full", "auto")}
RECIPE = Recipe(Schedule("adamw", 1e-3, 1, 1, 32, weight_decay=0.01, decay="cosine"), epochs=2)


def fitted(arguments: Namespace) -> dict[str, float | str]:
    """Fit in one way, and return what it took: processor seconds, and peak memory in MiB."""
    data = load_dataset(arguments.data, split="train")
    samples, labels = data.X, np.asarray(data.y)
    if arguments.labelled is not None:
        samples, _, labels, _ = train_test_split(
            samples, labels, train_size=arguments.labelled, stratify=labels, random_state=arguments.draw
        )
    mode, rounds = WAYS[arguments.way]
    face = GradientFeatureClassifier(
        arguments.backbone,
        weights=arguments.weights,
        theta2=arguments.theta2 or "auto",
        mode=mode,
        rounds=rounds,
        image_size=arguments.image_size,
        preprocessing=changes_of(arguments),
        augment=arguments.augment,
        device=arguments.device,
        cache=arguments.cache,
        memory=arguments.memory,
        random_state=0,
    )
    begun = time.process_time()
    problem = face.prepare(face.read(samples, labels)).problem
    prepared, before = time.process_time(), peak()
    plan = face.plan(problem.n, seed=0)
    if mode == "finetune":
        plan = replace(plan, finetuning=Search((RECIPE,)))
    fit = solve(problem, plan)
    return {
        "way": arguments.way,
        "activations and probe, s": prepared - begun,
        "fit, s": time.process_time() - prepared,
        "peak before the fit, MiB": before,
        "peak, MiB": peak(),
        "kept": problem.store.kept,
        "passes": 0.0 if fit.history is None else fit.history.passes,
    }


def peak() -> float:
    """Return the largest memory that this process had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run from the command line."""
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", help="in this process")
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(fitted(arguments)))
        return
    found = []
    for way in arguments.ways:
        command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--way", way]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    titles = list(found[0])
    rows = [[v if isinstance(v, str) else f"{v:.1f}" for v in one.values()] for one in found]
    print(markdown(titles, rows))
    if arguments.out is not None:
        write("memory", arguments, markdown(titles, rows), {"readings": {one["way"]: one for one in found}})


if __name__ == "__main__":
    main()
