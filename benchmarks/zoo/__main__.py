"""Measure the tangent of every family, a process for each network, and write the table.

    python -m benchmarks.zoo [PATTERN ...] [--out FOLDER] [--again] [--list]
    python -m benchmarks.zoo --table docs/coverage.md

A pattern is "timm/*" or "transformers/bert". Each network is measured in a process of its own, so that a crash of one
loses nothing; what is measured already is not measured again without --again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo import images, plain, transformers_models
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.measure import measure, warm_up
from benchmarks.zoo.table import write_table
from gradfeat.files.writing import make_folder, write_text

SECONDS = 900  # for one network


def all_entries() -> list[Entry]:
    """Return the zoo."""
    return [*images.entries(), *transformers_models.entries(), *plain.entries()]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--out", type=Path, default=Path("results/zoo"))
    parser.add_argument("--again", action="store_true", help="measure also what is measured already")
    parser.add_argument("--list", action="store_true", help="only name the networks")
    parser.add_argument("--table", type=Path, help="write the table of what is measured to this file")
    arguments = parser.parse_args()
    entries = all_entries()
    make_folder(arguments.out)
    if arguments.table:
        write_table(arguments.table, entries, arguments.out)
        return
    chosen = [e for e in entries if any(fnmatch.fnmatchcase(e.key, pattern) for pattern in arguments.patterns)]
    if not chosen:
        parser.error(f"no network matches {' '.join(arguments.patterns)}; --list names them")
    if arguments.list:
        print(*(f"{entry.key} {entry.model}" for entry in chosen), sep="\n")
        return
    torch.set_num_threads(1)  # threads do not survive a fork
    warm_up()
    for entry in chosen:
        file = arguments.out / (entry.key.replace("/", "--") + ".json")
        if file.exists() and not arguments.again:
            continue
        begun = time.perf_counter()
        result = {"key": entry.key, "model": entry.model, **_in_a_process(entry)}
        write_text(file, json.dumps(result, indent=1) + "\n")
        print(f"{entry.key:45} {time.perf_counter() - begun:6.1f} s  {_line(result)}", flush=True)


def _in_a_process(entry: Entry) -> dict[str, Any]:
    """Measure in a copy of this process, which has imported and warmed up everything already."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(entry, sender))
    worker.start()
    sender.close()
    try:
        if receiver.poll(SECONDS):
            return receiver.recv()
        return {"error": f"not finished after {SECONDS} s"}
    except EOFError:
        worker.join()
        return {"error": f"the process ended with {worker.exitcode}"}
    finally:
        worker.kill()
        worker.join()


def _work(entry: Entry, sender: Connection) -> None:
    try:
        result = measure(entry)
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        result = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", "trace": lines[-30:]}
    sender.send(result)


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"ERROR {result['error'][:150]}"
    return (
        "  ".join(
            f"{d['theta2'][-1]}: J {d['tangent']:.0e} adj {d['adjoint']:.0e}"
            f"{' without rule: ' + ','.join(d['fallbacks']) if d['fallbacks'] else ''}"
            for d in result["depths"]
        )
        + f"  f {result['f']:.0e}  linearize {result['linearize']:.1f} s / export {result['export']:.1f} s"
    )


if __name__ == "__main__":
    main()
