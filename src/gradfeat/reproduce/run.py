"""A table from beginning to end: data, encoders, cells, and what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gradfeat._version import __version__
from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.files.writing import write_text
from gradfeat.fit.linearize import check_device
from gradfeat.reproduce import table1, table2, table3, table4
from gradfeat.reproduce.ablation_table import Ablation, AblationTable
from gradfeat.reproduce.cells import Result, Say, computed, finished_cells, run_cells
from gradfeat.reproduce.models_table import FourModels, ModelsTable
from gradfeat.reproduce.plan import SCENES, Planned, Request, find, settings
from gradfeat.reproduce.protocols import Protocol, protocol_named
from gradfeat.reproduce.report import Table, draw
from gradfeat.reproduce.scales import Scale, scale_named
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
    if seeds < 1:
        raise ConfigurationError(f"seeds must be 1 or more, not {seeds}")
    request = Request(
        name,
        out,
        size,
        _protocol(name, size, protocol),
        data,
        encoder,
        _labelled(name, size, labels),
        _device(device),
        say,
        only or None,
        finished,
    )
    request.check_names()
    request.check_file()
    found, missing = find(request)
    for line in missing:
        say(line)
    run = _Run(request, range(seeds), [*_about(request, seeds), *missing])
    try:
        for planned in settings(request, found):
            run.compute(planned)
        if not run.shown:
            raise ConfigurationError("no network of the table is left: see the lines above, and --only and --encoder")
    except (Exception, KeyboardInterrupt) as error:
        run.write_in_trouble(error)
        raise
    run.count_missing()
    return run.write()


def _protocol(name: str, scale: Scale, protocol: str | None) -> Protocol:
    usual = "paper-voc" if scale.protocol == "paper" and name in SCENES else scale.protocol
    return protocol_named(protocol or usual)


def _labelled(name: str, scale: Scale, labels: int | None) -> int | None:
    labelled = scale.labelled.get(name) if labels is None else labels
    if labelled is not None and labelled < _LEAST:
        raise ConfigurationError(f"labels must be {_LEAST} or more, not {labelled}")
    return labelled


def _device(device: str) -> str:
    check_device(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


@dataclass
class _Run:
    """The results of a table so far, which are written whenever the run ends.

    Attributes:
        request: What is computed.
        seeds: Of labelled draws, random layers and orders.
        remarks: What a reader of the numbers should know.
        shown: The settings of the rows, by (network, data).
        results: Of all cells, by name.
        expected: How many cells a table of finished cells would have.
    """

    request: Request
    seeds: Sequence[int]
    remarks: list[str]
    shown: dict[tuple[str, str], Setting] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    expected: int = 0

    @property
    def folder(self) -> Path:
        """Of the cells."""
        return self.request.out / "cells"

    def compute(self, planned: Planned) -> None:
        """Add the rows of a setting; where it is stopped, those of its cells that are finished."""
        setting = self.shown[planned.network, planned.data] = planned.setting
        self.remarks += planned.remarks
        cells = TABLES[self.request.name].cells(setting, self.seeds)
        if self.request.finished:
            self.results |= finished_cells(cells, self.folder, setting.configuration)
            self.expected += len(cells)
            return
        try:
            self.results |= run_cells(cells, self.folder, setting.configuration, say=self.request.say)
        except (Exception, KeyboardInterrupt):
            with suppress(Exception):  # cells of another configuration, or data that are gone: that may be the error
                self.results |= finished_cells(cells, self.folder, setting.configuration)
            raise

    def count_missing(self) -> None:
        """Remark how many cells a table of finished cells lacks."""
        if len(self.results) < self.expected:
            self.remarks.append(f"{self.expected - len(self.results)} of {self.expected} cells are not there")

    def write_in_trouble(self, error: BaseException) -> None:
        """Write the table so far while an error is on its way: it is that error which the caller must see."""
        say = self.request.say
        stopped = isinstance(error, KeyboardInterrupt)
        if self.results:
            why = "interrupted" if stopped else f"stopped by {type(error).__name__}: {' '.join(str(error).split())}"
            self.remarks.append(f"not complete, not all cells are there; {why}")
            try:
                say(f"the table of what is there: {self.write().files[1]}")
            except Exception as trouble:
                say(f"the table of what is there cannot be written: {trouble}")
        if stopped:
            say(f"interrupted: the same command goes on from what is in {self.folder}")

    def write(self) -> Outcome:
        """Write the table as JSON and Markdown, and its picture."""
        name, out = self.request.name, self.request.out
        setting = next(iter(self.shown.values()))
        origins = computed(self.results, self.folder)
        self._remark_on_cells(origins)
        title = f"{name[:-1].capitalize()} {name[-1]}, scale {setting.scale.name}, protocol {setting.protocol.name}"
        form = TABLES[name]
        made: AblationTable | ModelsTable
        if isinstance(form, Ablation):
            made = AblationTable(form, setting, self.seeds, self.results, of=next(iter(self.shown)))
        else:
            made = ModelsTable(form, self.shown, self.seeds, self.results)
        table = made.table(title, self.remarks)
        content = {
            "table": name,
            "date": date.today().isoformat(),
            "gradfeat": __version__,
            "configurations": {" ".join(key): setting.configuration for key, setting in self.shown.items()},
            "cells": self.results,
            "computed": origins,
        }
        files = [out / f"{name}.json", out / f"{name}.md", out / f"{name}.png"]
        write_text(files[0], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_text(files[1], table.markdown())
        draw(files[2], made.panels(), table.title, shared=isinstance(form, Ablation))
        return Outcome(table, self.results, files)

    def _remark_on_cells(self, origins: Mapping[str, Mapping[str, Any]]) -> None:
        """Remark which cells have notes, and when and on what machines they were computed."""
        noted = [(name, note) for name, result in self.results.items() for note in result.get("notes", [])]
        if noted:
            cells = len({name for name, _ in noted})
            name, note = noted[0]
            self.remarks.append(
                f"{cells} of {len(self.results)} cells have notes ({self.request.name}.json has all), as {name}: {note}"
            )
        machines = sorted({(origin["date"], origin["machine"]) for origin in origins.values() if "machine" in origin})
        if machines:
            self.remarks.append(f"computed on {'; '.join(f'{machine}, {day}' for day, machine in machines)}")


def _about(request: Request, seeds: int) -> list[str]:
    scale, protocol = request.scale, request.protocol
    shortened = "" if scale.iterations is None else f"; schedules of at most {scale.iterations:,} minibatches"
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
    if scale.digits:
        lines.append("scikit-learn's digits and a tiny encoder: this shows that all runs, not what the paper measured")
    return lines
