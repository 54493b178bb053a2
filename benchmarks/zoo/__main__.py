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
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.zoo import images, plain, transformers_models
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.table import write_table

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
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    entries = all_entries()
    if arguments.one:
        from benchmarks.zoo.measure import measure

        (entry,) = (entry for entry in entries if entry.key == arguments.one)
        print("\n" + json.dumps(measure(entry)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.table:
        write_table(arguments.table, entries, arguments.out)
        return
    chosen = [e for e in entries if any(fnmatch.fnmatchcase(e.key, pattern) for pattern in arguments.patterns)]
    if not chosen:
        parser.error(f"no network matches {' '.join(arguments.patterns)}; --list names them")
    for entry in chosen:
        if arguments.list:
            print(entry.key, entry.model)
            continue
        file = arguments.out / (entry.key.replace("/", "--") + ".json")
        if file.exists() and not arguments.again:
            continue
        begun = time.perf_counter()
        result = {"key": entry.key, "model": entry.model, **_in_a_process(entry)}
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(file)
        print(f"{entry.key:45} {time.perf_counter() - begun:6.1f} s  {_line(result)}", flush=True)


def _in_a_process(entry: Entry) -> dict[str, object]:
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, "-m", "benchmarks.zoo", "--one", entry.key]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {SECONDS} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"error": lines[-1] if lines else f"ended with {done.returncode}", "trace": lines[-30:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _line(result: dict) -> str:  # type: ignore[type-arg]
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
