"""The page of how near leave-one-out is to refits, from the files of `benchmarks.leave_one_out`.

python -m benchmarks.answers_page [--results FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.time_to_accuracy import markdown
from gradfeat.files.writing import write_text

DATA = {
    "clothing": ("photos of ten kinds of clothing, MobileNetV2, `conv_head`", "leave_one_out_clothing.json"),
    "trec": ("six types of question, all-MiniLM-L6-v2, the last layer", "leave_one_out_trec.json"),
    "voc": ("five labels of VOC photos, MobileNetV2, `conv_head`", "leave_one_out_voc.json"),
}
AXES = "leave_one_out_axes.json"

HEAD = """# Leave-one-out beside refits

This page is made by `python -m benchmarks.answers_page` from the files of `python -m benchmarks.leave_one_out` in
`benchmarks/results/answers`; one thread of an AMD EPYC with AVX-512, beside other work, 2026-12-01.
Penalties are given: the probe's of w₁, 0.3 units of λ₂, in the plain metric.
The truth is a refit of both stages without the sample, to a gap of 1e-7.
Changes are of a left-out sample's logits (of a softmax, less their mean), and of its loss; the error is the norm of the
difference relative to that of the changes.
"""


def table(results: Path) -> str:
    """Return how near the formula is to refits, on each data set whose file is there."""
    rows = []
    for title, name in DATA.values():
        if not (results / name).exists():
            continue
        found: dict[str, Any] = json.loads((results / name).read_text(encoding="utf-8"))
        for way in ("both stages", "omega kept"):
            of = found[way]
            cells = [f"{of[what][one]:.4f}" for what in ("logits", "loss") for one in ("correlation", "error")]
            rows.append([title, str(found["n"]), str(found.get("refits", "")), way.replace("omega", "ω̄"), *cells])
    return markdown(
        ["data", "samples", "refits", "formula", "logits: correlation", "error", "loss: correlation", "error"], rows
    )


def axes(results: Path) -> str:
    """Return what fewer axes of gradient features change."""
    found = json.loads((results / AXES).read_text(encoding="utf-8"))
    rows = [
        [most, f"{of['correlation']:.5f}", f"{of['error']:.3f}", f"{of['seconds']:.1f}"]
        for most, of in found["axes"].items()
    ]
    return (
        f"{found['n']} clothing photos, `conv_head` and `blocks.6`, beside the formula with the most axes; "
        f"the fit took {found['fit']:.1f} s.\n\n{markdown(['axes', 'correlation', 'error', 'processor s'], rows)}"
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/answers"))
    parser.add_argument("--out", type=Path, default=Path("docs/leave-one-out-figures.md"))
    given = parser.parse_args()
    write_text(given.out, f"{HEAD}\n{table(given.results)}\n\n## Axes\n\n{axes(given.results)}\n")


if __name__ == "__main__":
    main()
