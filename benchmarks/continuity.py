"""What one linearization costs as samples grow past the numbers at which its choice changes.

    python -m benchmarks.continuity DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--sizes N ...] [--out FILE]

Fits `full`, its penalties chosen, to so many labelled samples each time, and prints passes (over the samples, choice
included), processor seconds, and both times samples relative to the size before: a jump there is a jump of cost.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.time_to_accuracy import data_parser, markdown, prepared
from gradfeat.files.writing import write_text
from gradfeat.fit import Plan, solve

SIZES = (900, 980, 1020, 1100, 1400, 1480, 1520, 1600)


def main() -> None:
    """Fit to each number of samples, and print the table."""
    parser = data_parser(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for size in arguments.sizes:
        arguments.labelled = size
        problem, _ = prepared(arguments)
        begun = time.process_time()
        fit = solve(problem, Plan(seed=0))
        seconds = time.process_time() - begun
        passes = 0.0 if fit.choice is None else fit.choice.passes
        passes = passes if fit.solution is None else fit.solution.passes
        found.append({"samples": size, "passes": passes, "work": passes * size, "seconds": seconds})
        print(found[-1], flush=True)
    rows = []
    for before, now in zip([found[0], *found], found, strict=False):
        ratios = [f"{now[name] / before[name]:.2f}" for name in ("work", "seconds")]
        rows.append([str(now["samples"]), f"{now['passes']:.1f}", f"{now['seconds']:.1f}", *ratios])
    print(markdown(["samples", "passes", "processor s", "passes × samples, to the one before", "seconds, so"], rows))
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
