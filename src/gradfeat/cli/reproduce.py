"""`gradfeat reproduce`: a table of the paper."""

from __future__ import annotations

from pathlib import Path

from gradfeat.cli.outputs import check_folder, kept_in
from gradfeat.cli.requests import Reproduce
from gradfeat.cli.show import note, print_json, table
from gradfeat.reproduce import reproduce


def run(request: Reproduce) -> None:
    """Compute a table, or what of it is not there yet, and show it."""
    folder = request.out or Path("reproduced") / f"{request.name}-{request.scale}"
    check_folder(folder)
    with kept_in(folder):
        outcome = reproduce(
            request.name,
            out=folder,
            scale=request.scale,
            data=request.data,
            encoder=request.encoder,
            protocol=request.protocol,
            labels=request.labels,
            seeds=request.seeds,
            only=request.only,
            finished=request.finished,
            device=request.device,
            say=lambda line: note(request.json, line),
        )
    files = [str(path) for path in outcome.files]
    if request.json:
        print_json({"table": request.name, "files": files, "cells": outcome.results})
        return
    table(*outcome.table.narrow(), outcome.table.title)
    for remark in outcome.table.remarks:
        note(False, remark)
    note(False, f"Written: {', '.join(files)}")
