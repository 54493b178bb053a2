"""The page of the comparison with an honest rival, made from the JSON files of its runs.

    python -m benchmarks.honest_page [RESULTS ...] [--page FILE]

`benchmarks.honest` writes a JSON file for each data set; kept are those in `benchmarks/results/honest`. Nothing is
computed here but means, standard errors and ratios: of the time to that of one fine-tuning run of 25 epochs, and
of the gain over the probe to fine-tuning's. Those of `benchmarks.memory` in `benchmarks/results/memory` are added.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.honest import WAYS, table
from benchmarks.time_to_accuracy import markdown
from gradfeat.files.writing import write_text
from gradfeat.solvers.finetune import EPOCHS

RESULTS = Path(__file__).parent / "results" / "honest"
MEMORY = Path(__file__).parent / "results" / "memory"
PAGE = Path(__file__).parents[1] / "docs" / "honest.md"

INTRODUCTION = """# Against an honest fine-tuning

This page is made by `python -m benchmarks.honest_page` from the files in `benchmarks/results/honest`.
Each table names its command's settings, its machine and its date.

The rival, `finetune`, is what a good practitioner does: AdamW with warm-up and cosine, full-length trials of rates, of
the head's start, of lengths, weight decays and the mode of batch norms on held-out training data, and a temperature
([why](decisions/finetuning.md)).
All ways of a table share the layers θ₂, the kept z₀ and the probe, which are not in their times.
`default` is the estimator with nothing said: it finds θ₂ itself, and its time has all in it.
Everything is chosen on training data, and judged on the test part.
± is the standard error of a mean over seeds (of splits and the order of samples): it does not have the error of the
test samples in it, which all ways share.
Where a way has fewer seeds than another its mean is of those alone.
Times are of the processor, one thread, beside other processes of the machine, which raise them by up to a third: ratios
of a table are good to about that.
A pass is one over all samples, forward and backward; a trial of fine-tuning or rounds is of four fifths of them.
"""


DATA = {
    "clothing713": (
        "Photos of ten kinds of clothing",
        "1,800 photos of 128 × 128 pixels and their mirror images, judged on 713 others (how the folder is made: "
        "[benchmarks.md](benchmarks.md)).\n"
        "Where the recipe with the fewest errors is taken, whatever it is, the same search had 88.2 and 85.8 % (0.363, "
        "0.426) with the first two seeds: other recipes, of 12 epochs, and as strong a rival as any here.",
    ),
    "trec": ("Six types of question, TREC", "1,000 texts of the training file, judged on the 500 of the test file."),
    "c100": (
        "A hundred kinds of things, CIFAR-100, by a network of CIFAR-10's ten",
        "5,000 of the training images, drawn by class, of cyizhuo/CIFAR-100-dataset (GitHub), and their mirror images, "
        "judged on the 10,000 of the test part.",
    ),
    "mri": (
        "Brain scans, three kinds of tumour or none: far from ImageNet",
        "Of the `Training` folder of SartajBhuvaji/Brain-Tumor-Classification-DataSet (GitHub), at 128 × 128 pixels: "
        "1,000 drawn by class, judged on the other 1,870.",
    ),
}
"""Title of a data set, and what it is."""


def one_run_of(reading: dict[str, Any]) -> float:
    """Return the time of one fine-tuning run of 25 epochs, from that of the chosen recipe, of so many as it says."""
    found = re.search(r"(\d+) epochs", str(reading.get("chosen", "")))
    epochs = EPOCHS if found is None else int(found[1])
    return float(reading["seconds"] - reading["search"]) * EPOCHS / epochs


def summary(readings: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return what each way has of fine-tuning's gain over the probe, and its time beside one of its runs."""
    if not {"probe", "finetune"} <= readings.keys():
        return ""

    def mean(way: str, name: str) -> float:
        return float(np.mean([one[name] for one in readings[way].values()]))

    one_run = float(np.mean([one_run_of(one) for one in readings["finetune"].values()]))
    gain = mean("finetune", "main") - mean("probe", "main")
    rows = [
        [
            way,
            f"{100 * (mean(way, 'main') - mean('probe', 'main')) / gain:.0f} %",
            f"{mean(way, 'seconds') / one_run:.2f}",
            f"{mean(way, 'seconds') / mean('finetune', 'seconds'):.2f}",
        ]
        for way in WAYS
        if way in readings and way != "probe"
    ]
    titles = [
        "way",
        "of fine-tuning's gain over the probe",
        "time / one fine-tuning run of 25 epochs",
        "time / fine-tuning's search",
    ]
    return markdown(titles, rows)


def section(content: dict[str, Any]) -> str:
    """Return the part of one data set."""
    labelled = "" if content["labelled"] is None else f", {content['labelled']:,} labels"
    theta2 = ", ".join(content["theta2"] or ["top"])
    about = f"`{content['backbone']}`, θ₂ = {theta2}{labelled}; {content['machine']}, {content['date']}."
    title, what = DATA.get(content["data"], (content["data"], ""))
    readings = content["readings"]
    return f"## {title}\n\n{what}\n{about}\n\n{table(readings)}\n\n{summary(readings)}\n"


def memory_of(contents: list[dict[str, Any]]) -> str:
    """Return the part on peak memory, beside that of fine-tuning."""
    rows = []
    for content in contents:
        readings = content["readings"]
        for way, reading in readings.items():
            ratio = reading["peak, MiB"] / readings["finetune"]["peak, MiB"]
            labelled = f"{content['data']}, {content['labelled']:,} labels" if content["labelled"] else content["data"]
            rows.append([labelled, way, f"{reading['peak, MiB']:.0f}", f"{ratio:.2f}", f"{reading['fit, s']:.0f}"])
    titles = ["data", "way", "peak of the process, MiB", "/ that of finetune", "processor s of the fit"]
    made = f"{contents[0]['machine']}, {max(content['date'] for content in contents)}"
    words = (
        "Each way in a process of its own, with the libraries and the network; fine-tuning has one recipe of two epochs"
    )
    return f"## Peak memory\n\n{words} (`python -m benchmarks.memory`; {made}).\n\n{markdown(titles, rows)}\n"


def page(paths: list[Path], memory: Sequence[Path] = ()) -> str:
    """Return the page of some results, and of peak memory where there are any."""

    def contents(of: Sequence[Path]) -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(of)]

    parts = [section(content) for content in contents(paths)]
    return "\n".join([INTRODUCTION, *parts, *([memory_of(contents(memory))] if memory else [])])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    write_text(arguments.page, page(arguments.results or list(RESULTS.glob("*.json")), list(MEMORY.glob("*.json"))))


if __name__ == "__main__":
    main()
