"""How deep θ₂ should go: accuracy, log loss and calibration error of the four models at three depths.

    python -m benchmarks.depths DATA -b BACKBONE [--weights FILE] [--epochs N] [--out FOLDER]

Depths: the topmost layer with a weight, the last block, the last two blocks (residual or transformer). Penalties, and
fine-tuning's optimizer and rate, are chosen on held-out training data; the test part is read once for each model.
Writes a table and a JSON file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.low_shot import fit
from benchmarks.time_to_accuracy import TITLES, changes_of, data_parser, markdown, prepared, shown, write
from gradfeat.backbones import resolve
from gradfeat.data import Inputs, load_dataset
from gradfeat.fit.linearize import backbone_candidates, linearize_backbone

WAYS = ("probe", "gradient", "full", "finetune")


def choices(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Return the modules of θ₂ at each depth, by its title."""
    data = load_dataset(arguments.data, split="train")
    backbone = resolve(
        arguments.backbone,
        weights=arguments.weights,
        image_size=arguments.image_size,
        preprocessing=changes_of(arguments),
    )
    example = Inputs(data.X, backbone.preprocessing).example(3)
    candidates = [list(candidate.modules) for candidate in backbone_candidates(backbone, example)]
    top = linearize_backbone(backbone, example, candidates[0]).theta2
    weights = [name.rpartition(".")[0] for name, value in top.items() if value.ndim >= 2]
    if len(weights) > 1:  # the topmost candidate is a block
        candidates.insert(0, [weights[-1]])
    return dict(zip(("topmost layer", "last block", "last two blocks"), candidates, strict=False))


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit every model at every depth; return a row for each."""
    rows = []
    for title, modules in choices(arguments).items():
        problem, judge = prepared(argparse.Namespace(**{**vars(arguments), "theta2": modules}))
        size = sum(value.numel() for value in problem.linearization.theta2.values())
        for way in arguments.ways:
            fitted = fit(problem, way, arguments.epochs)
            metrics = judge(fitted.model)
            about = {"depth": title, "theta2": modules, "parameters": size, "model": way, "seconds": fitted.seconds}
            rows.append({**about, "metrics": metrics})
            print(f"{title} ({', '.join(modules)}), {way}: {metrics}", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    names = list(rows[0]["metrics"])
    cells = []
    for row in rows:
        about = [f"{row['depth']}: {', '.join(row['theta2'])}", f"{row['parameters']:,}", row["model"]]
        cells.append([*about, *shown(row["metrics"]), f"{row['seconds']:.1f} s"])
    return markdown(["θ₂", "parameters", "model", *(TITLES[name] for name in names), "time"], cells)


def main() -> None:
    """Run from the command line."""
    parser = data_parser(__doc__.splitlines()[0], theta2=False)
    parser.add_argument("--epochs", type=int, default=20, help="of fine-tuning")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path("results/depths"))
    arguments = parser.parse_args()
    rows = run(arguments)
    write("depths", arguments, table(rows), {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
