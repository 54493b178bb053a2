"""A table from beginning to end: data, encoders, cells, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch

from gradfeat._version import __version__
from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.files.writing import write_text
from gradfeat.fit.linearize import check_device
from gradfeat.reproduce import table1, table2, table3, table4
from gradfeat.reproduce.ablation_table import Ablation, AblationTable
from gradfeat.reproduce.cells import Cell, Result, Say, computed, finished_cells, run_cells
from gradfeat.reproduce.models_table import FourModels, ModelsTable
from gradfeat.reproduce.plan import SCENES, Request, find, settings
from gradfeat.reproduce.protocols import protocol_named
from gradfeat.reproduce.report import Table, draw
from gradfeat.reproduce.scales import scale_named
from gradfeat.reproduce.setting import Setting

TABLES: dict[str, Ablation | FourModels] = {
    "table1": table1.TABLE,
    "table2": table2.TABLE,
    "table3": table3.TABLE,
    "table4": table4.TABLE,
}
_LEAST = 100  # labels: one of each class of CIFAR-100


@dataclass(frozen=True)
class Outcome:
    """What a run wrote.

    Attributes:
        table: For people.
        results: Of all cells, by name.
        files: Table as JSON and Markdown, and the picture.
    """

    table: Table
    results: dict[str, Result]
    files: list[Path]


def reproduce(
    name: str,
    *,
    out: Path,
    scale: str = "smoke",
    data: Path | None = None,
    encoder: Path | None = None,
    protocol: str | None = None,
    labels: int | None = None,
    seeds: int = 1,
    only: Sequence[str] | None = None,
    finished: bool = False,
    device: str = "auto",
    say: Say = print,
) -> Outcome:
    """Compute a table of the paper, or what of it is not there yet.

    Args:
        name: "table1" to "table4".
        out: Folder of the run: its cells, encoders and tables. The same call goes on where it stopped.
        scale: "smoke", "reduced" or "full" (see `gradfeat.reproduce.scales`).
        data: Folder with the data sets; not for "smoke".
        encoder: File of a network. For table1 and table3, of `gradfeat pretrain` instead of pre-training in place; for
            table3 it stands for the encoder of its task, and the other one is left out; for table1 it is a VAE's, or
            of any task with the layers of the BiGAN's. For table2 and table4, weights
            of the network trained on ImageNet instead of downloading them; or of `gradfeat pretrain`: in table2 in the
            place of that network, in table4 as a row beside it.
        protocol: Of `gradfeat.reproduce.protocols`; None is the scale's own.
        labels: Labelled training images; None is the scale's own number.
        seeds: How many: of labelled draws, random layers and orders. The encoder is the same for all.
        only: Names of the networks of table3 or table4 whose rows are wanted; None is all. Processes side by side can
            share a folder so; a last call for all of them writes the whole table. For table1, which is of one, it may
            be "vae" instead of "bigan".
        finished: Write the table of the cells that are there, and compute no more.
        device: By name.
        say: Takes lines of progress.

    Raises:
        ConfigurationError: A name that is not known, an encoder of another architecture, or a folder with cells of
            another configuration; or an encoder that no row would be computed with.
        BackboneError: The encoder's file is missing or damaged.
        DataError: The data are missing or others.
    """
    if name not in TABLES:
        raise ConfigurationError(f"unknown table {name!r}; known are {', '.join(TABLES)}.{did_you_mean(name, TABLES)}")
    size = scale_named(scale)
    usual = "paper-voc" if size.protocol == "paper" and name in SCENES else size.protocol
    how = protocol_named(protocol or usual)
    if seeds < 1:
        raise ConfigurationError(f"seeds must be 1 or more, not {seeds}")
    labelled = size.labelled.get(name) if labels is None else labels
    if labelled is not None and labelled < _LEAST:
        raise ConfigurationError(f"labels must be {_LEAST} or more, not {labelled}")
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    request = Request(name, out, size, how, data, encoder, labelled, device, say, only or None, finished)
    request.check_names()
    request.check_file()
    found, missing = find(request)
    for line in missing:
        say(line)
    shown: dict[tuple[str, str], Setting] = {}
    results: dict[str, Result] = {}
    remarks = [*_about(request, seeds), *missing]
    folder = out / "cells"
    cells: list[Cell] = []
    expected = 0
    try:
        for planned in settings(request, found):
            setting = shown[planned.network, planned.data] = planned.setting
            remarks += planned.remarks
            cells = TABLES[name].cells(setting, range(seeds))
            if finished:
                results |= finished_cells(cells, folder, setting.configuration)
                expected += len(cells)
            else:
                results |= run_cells(cells, folder, setting.configuration, say=say)
        if not shown:
            raise ConfigurationError("no network of the table is left: see the lines above, and --only and --encoder")
    except (Exception, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if shown:
            with suppress(Exception):  # cells of another configuration, or data that are gone: that may be the error
                results |= finished_cells(cells, folder, setting.configuration)
        if results:
            why = "interrupted" if stopped else f"stopped by {type(error).__name__}: {' '.join(str(error).split())}"
            remarks.append(f"not complete, not all cells are there; {why}")
            _write_in_trouble(partial(_write, name, out, shown, range(seeds), results, remarks), say)
        if stopped:
            say(f"interrupted: the same command goes on from what is in {folder}")
        raise
    if len(results) < expected:
        remarks.append(f"{expected - len(results)} of {expected} cells are not there")
    return _write(name, out, shown, range(seeds), results, remarks)


def _write_in_trouble(write: Callable[[], Outcome], say: Say) -> None:
    """Write what is there while an error is on its way: it is that error which the caller must see."""
    try:
        say(f"the table of what is there: {write().files[1]}")
    except Exception as error:
        say(f"the table of what is there cannot be written: {error}")


def _about(request: Request, seeds: int) -> list[str]:
    size, protocol = request.size, request.how
    shortened = "" if size.iterations is None else f"; schedules of at most {size.iterations:,} minibatches"
    number = "all" if request.labelled is None else f"{request.labelled:,}"
    spread = " (mean ± standard deviation)" if seeds > 1 else ""
    lines = [
        f"protocol {protocol.name}: {protocol.summary}{shortened}",
        f"labelled training images: {number}; seeds: {seeds}{spread}",
    ]
    if isinstance(TABLES[request.name], Ablation):
        lines.append(
            "random layers: PyTorch's initial weights, batch-norm statistics of the labelled training images; "
            "random ω: normal entries, of the Frobenius norm of the trained one"
        )
    if request.only is not None and request.name != "table1":
        lines.append(f"only {', '.join(request.only)}: the table has other networks too")
    if request.name == "table4":
        lines.append(f"predictions are averaged over {table4.CROPS} random crops of each test image")
    if size.digits:
        lines.append("scikit-learn's digits and a tiny encoder: this shows that all runs, not what the paper measured")
    return lines


def _write(
    name: str,
    out: Path,
    shown: dict[tuple[str, str], Setting],
    seeds: Sequence[int],
    results: dict[str, Result],
    remarks: list[str],
) -> Outcome:
    setting = next(iter(shown.values()))
    origins = computed(results, out / "cells")
    noted = [(name, note) for name, result in results.items() for note in result.get("notes", [])]
    if noted:
        cells = len({name for name, _ in noted})
        first, note = noted[0]
        remarks.append(f"{cells} of {len(results)} cells have notes ({name}.json has all), as {first}: {note}")
    places = sorted({(origin["date"], origin["machine"]) for origin in origins.values() if "machine" in origin})
    if places:
        remarks.append(f"computed on {'; '.join(f'{machine}, {day}' for day, machine in places)}")
    title = f"{name[:-1].capitalize()} {name[-1]}, scale {setting.scale.name}, protocol {setting.protocol.name}"
    form = TABLES[name]
    made: AblationTable | ModelsTable
    if isinstance(form, Ablation):
        made = AblationTable(form, setting, seeds, results, of=next(iter(shown)))
    else:
        made = ModelsTable(form, shown, seeds, results)
    table = made.table(title, remarks)
    content = {
        "table": name,
        "date": date.today().isoformat(),
        "gradfeat": __version__,
        "configurations": {" ".join(key): setting.configuration for key, setting in shown.items()},
        "cells": results,
        "computed": origins,
    }
    files = [out / f"{name}.json", out / f"{name}.md", out / f"{name}.png"]
    write_text(files[0], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(files[1], table.markdown())
    draw(files[2], made.panels(), table.title, shared=isinstance(form, Ablation))
    return Outcome(table, results, files)
