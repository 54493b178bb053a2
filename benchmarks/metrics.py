"""What the metric of w₂'s penalty is worth: `full` under each of them, judged on training data that were left out.

    python -m benchmarks.metrics DATA -b BACKBONE --labelled N [--weights FILE] [--theta2 NAME ...] [--rounds]
        [--out FOLDER]

N training samples are fitted to, with penalties chosen on a part of them; up to 2,000 of the others say how good the
model is. The test part is not read: this is how the default was chosen. Writes a table and a JSON file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.time_to_accuracy import TITLES, clocks, data_parser, markdown, prepared, shown, write
from gradfeat.fit import Plan, solve
from gradfeat.fit.point import starting_model

METRICS = ("plain", "whitened")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit under every metric; return a row for each, and one for the probe."""
    problem, judge = prepared(arguments, test=False)
    rows = [{"model": "probe", "metrics": judge(starting_model(problem, "activation")), "seconds": 0.0}]
    for metric in METRICS:
        begun = clocks()
        rounds = "auto" if arguments.rounds else 1
        fit = solve(problem, Plan(solver="subspace", metric=metric, rounds=rounds, seed=arguments.draw))
        rows.append({"model": metric, "metrics": judge(fit.model), "seconds": float((clocks() - begun)[1])})
        print(f"{metric}: {rows[-1]}; {fit.choice}", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    names = list(rows[0]["metrics"])
    cells = [[row["model"], *shown(row["metrics"]), f"{row['seconds']:.1f} s"] for row in rows]
    return markdown(["model", *(TITLES[name] for name in names), "processor time"], cells)


def main() -> None:
    """Run from the command line."""
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", action="store_true", help="move θ̄₂")
    parser.add_argument("--out", type=Path, default=Path("results/metrics"))
    arguments = parser.parse_args()
    if arguments.labelled is None:
        parser.error("--labelled: say how many training samples to fit to; the others judge")
    rows = run(arguments)
    write("metrics", arguments, table(rows), {"rounds": arguments.rounds, "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
