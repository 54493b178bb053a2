"""The table of what was measured, as a page of the documentation."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo.entry import Entry
from gradfeat.files.writing import write_text
from gradfeat.optional import require

EXACT = 1e-8  # relative error

_HEAD = """# Coverage

Every family of timm (each module of timm that registers a classifier), every classification family of torchvision, the
architectures of transformers that people ask for, and plain torch layers: a small model of each, random weights, in
float64. Linearized at three samples, compared at four others, with θ₂ the topmost block, which `theta2="auto"` takes,
and with one block more. The larger error of the two is shown.

- *tangent*: J w₂ against torch's own derivative of the whole network (`torch.func.jvp` with plain kernels, or two
  passes of reverse mode where jvp has no formula): the largest difference, relative to the largest entry. Nothing is
  folded for it, so that the network itself is the oracle.
- *adjoint*: |⟨u, J w₂⟩ − ⟨Jᵀu, w₂⟩|, relative to ‖u‖ ‖J w₂‖.
- *rules*: operations of the tangent that have a rule of this library; behind the plus sign those that torch
  differentiates, node by node, and which.
- *time*: processor seconds of `linearize` with its checks, in float32, over those of `torch.export` alone.

Casts to float32 that a network makes inside are left out: else float32 is all that could be seen.
"""


def write_table(path: Path, entries: Sequence[Entry], results: Path) -> None:
    """Write the page: what is exact, what is not and why, and what is not measured.

    Args:
        path: The page.
        entries: The zoo.
        results: The folder of results, a JSON file for each network.
    """
    measured: dict[str, dict[str, Any]] = {}
    for file in sorted(results.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        measured[result["key"]] = result
    versions = f"torch {torch.__version__.partition('+')[0]}"
    for library, extra in (("torchvision", "vision"), ("timm", "vision"), ("transformers", "text")):
        versions += f", {library} {require(library, extra=extra).__version__.partition('+')[0]}"
    lines = [_HEAD, f"`make zoo`, {date.today():%Y-%m-%d}, {_processor()}, one thread; {versions}.", ""]
    lines += ["| library | networks | exact to 1e-8 at every depth |", "|---|---|---|"]
    libraries = list(dict.fromkeys(entry.library for entry in entries))
    for library in libraries:
        of_library = [entry for entry in entries if entry.library == library]
        exact = sum(_exact(measured.get(entry.key, {})) for entry in of_library)
        lines.append(f"| {library} | {len(of_library)} | {exact} |")
    ratios = {key: result["linearize"] / result["export"] for key, result in measured.items() if "export" in result}
    if ratios:
        slow = sorted((ratio, key) for key, ratio in ratios.items() if ratio > 2)
        named = ", ".join(f"{key} ({ratio:.1f})" for ratio, key in reversed(slow))
        lines += [
            "",
            f"`linearize` takes {statistics.median(ratios.values()):.2f} of `torch.export`'s time in the median, and",
            f"more than twice that time in {len(slow)} networks{': ' if slow else ''}{named}.",
            "The checks need a few forward passes, and the weights are copied; both take long beside the export where",
            "images are large or there are a hundred million weights. `check=False` leaves the checks out.",
        ]
    for library in libraries:
        lines += ["", f"## {library}", ""]
        lines += ["| family | model | θ₂: topmost / one more | tangent | adjoint | rules | time |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [_row(entry, measured.get(entry.key)) for entry in entries if entry.library == library]
    write_text(path, "\n".join(lines) + "\n")
    print(f"Wrote {path}: {len(measured)} of {len(entries)} networks measured.")


def _exact(result: dict[str, Any]) -> bool:
    depths = result.get("depths", [])
    return bool(depths) and max(result["f"], *(max(d["tangent"], d["adjoint"]) for d in depths)) <= EXACT


def _row(entry: Entry, result: dict[str, Any] | None) -> str:
    name = f"| {entry.family} | {entry.model.partition('?')[0]} "
    if result is None:
        return f"{name}| not measured | | | | |"
    if "error" in result:
        return f"{name}| {result['error'].replace('|', '/')[:200]} | | | | |"
    depths = result["depths"]
    layers = " / ".join(dict.fromkeys(depth["theta2"][-1] for depth in depths))
    rules = str(depths[-1]["rules"])
    if depths[-1]["fallback_nodes"]:
        operations = ", ".join(name.removeprefix("aten.").partition(".")[0] for name in depths[-1]["fallbacks"])
        rules += f" + {depths[-1]['fallback_nodes']} ({operations})"
    errors = [max(depth[key] for depth in depths) for key in ("tangent", "adjoint")]
    time = f"{result['linearize']:.1f} / {result['export']:.1f} s"
    return f"{name}| {layers} | {errors[0]:.0e} | {errors[1]:.0e} | {rules} | {time} |"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
