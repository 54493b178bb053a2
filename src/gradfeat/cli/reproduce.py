"""`gradfeat reproduce`: a table of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradfeat.cli.outputs import check_folder, kept_in
from gradfeat.cli.show import note, print_json, table
from gradfeat.reproduce import reproduce


def run(name: str, out: Path | None, json: bool, **arguments: Any) -> None:
    """Compute a table, or what of it is not there yet, and show it.

    Args:
        name: Of the table.
        out: Folder; None is one for each table and scale.
        json: Whether to print JSON.
        arguments: Of `gradfeat.reproduce.reproduce`.
    """
    folder = out or Path("reproduced") / f"{name}-{arguments['scale']}"
    check_folder(folder)
    with kept_in(folder):
        outcome = reproduce(name, out=folder, say=lambda line: note(json, line), **arguments)
    files = [str(path) for path in outcome.files]
    if json:
        print_json({"table": name, "files": files, "cells": outcome.results})
        return
    table(*outcome.table.narrow(), outcome.table.title)
    for remark in outcome.table.remarks:
        note(False, remark)
    note(False, f"Written: {', '.join(files)}")
