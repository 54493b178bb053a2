"""A table from beginning to end: data, encoders, cells, and what is written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradfeat._version import __version__
from gradfeat.backbones import Backbone
from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.fitting import check_device
from gradfeat.pretrain.encoder_file import read_architecture, write_whole
from gradfeat.reproduce import table1, table3
from gradfeat.reproduce.cells import Cell, Result, Say, finished_cells, run_cells
from gradfeat.reproduce.data import KNOWN, ImageData, digits, find_data, load_data
from gradfeat.reproduce.encoders import (
    BIGAN_PLAN,
    TINY_PLAN,
    VAE_PLAN,
    EncoderPlan,
    plan_of,
    pretrained_in_place,
    read_encoder,
)
from gradfeat.reproduce.protocols import Protocol, protocol_named
from gradfeat.reproduce.report import Table, draw
from gradfeat.reproduce.scales import Scale, scale_named
from gradfeat.reproduce.setting import Setting

TABLES = ("table1", "table3")
_LEAST = 100  # labels: one of each class of CIFAR-100
_DATA = {"table1": ("cifar10",), "table3": tuple(KNOWN)}
_PLANS = {"table1": (BIGAN_PLAN,), "table3": (BIGAN_PLAN, VAE_PLAN)}


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
    device: str = "auto",
    say: Say = print,
) -> Outcome:
    """Compute a table of the paper, or what of it is not there yet.

    Args:
        name: "table1" or "table3".
        out: Folder of the run: its cells, encoders and tables. The same call goes on where it stopped.
        scale: "smoke", "reduced" or "full" (see `gradfeat.reproduce.scales`).
        data: Folder with the data sets; not for "smoke".
        encoder: File of `gradfeat pretrain` instead of pre-training in place; for table3 it stands for the encoder of
            its task, and the other one is left out.
        protocol: Of `gradfeat.reproduce.protocols`; None is the scale's own.
        labels: Labelled training images; None is the scale's own number.
        seeds: How many: of labelled draws, random layers and orders. The encoder is the same for all.
        device: By name.
        say: Takes lines of progress.

    Raises:
        ConfigurationError: A name that is not known, an encoder of another architecture, or a folder with cells of
            another configuration.
        DataError: The data are missing or others.
    """
    if name not in TABLES:
        raise ConfigurationError(f"unknown table {name!r}; known are {', '.join(TABLES)}.{did_you_mean(name, TABLES)}")
    size = scale_named(scale)
    how = protocol_named(protocol or size.protocol)
    if seeds < 1:
        raise ConfigurationError(f"seeds must be 1 or more, not {seeds}")
    labelled = size.labelled.get(name) if labels is None else labels
    if labelled is not None and labelled < _LEAST:
        raise ConfigurationError(f"labels must be {_LEAST} or more, not {labelled}")
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found, missing = _find(name, size, data)
    for line in missing:
        say(line)
    run: dict[str, Any] = {"out": out, "size": size, "device": device, "say": say, "file": encoder}
    settings: dict[tuple[str, str], Setting] = {}
    results: dict[str, Result] = {}
    remarks = [*_about(name, size, how, labelled, seeds), *missing]
    folder = out / "cells"
    cells: list[Cell] = []
    try:
        for key, path in found.items():
            images = digits() if path is None else load_data(key, path, extra=size.name == "full")
            say(_describe(images, labelled))
            if images.note:
                remarks.append(f"{key}: {images.note}")
            for plan, backbone in _encoders(name, images, **run):
                prefix = "" if name == "table1" else f"{key}.{plan.name}."
                setting = Setting(images, backbone, size, how, labelled=labelled, device=device, prefix=prefix)
                settings[plan.name, key] = setting
                remarks.append(_encoder_line(key, plan, backbone, size, encoder))
                cells = (table1 if name == "table1" else table3).cells(setting, range(seeds))
                results |= run_cells(cells, folder, setting.configuration, say=say)
    except KeyboardInterrupt:
        if settings:
            results |= finished_cells(cells, folder, setting.configuration)
            _write(name, out, settings, range(seeds), results, [*remarks, "interrupted: not all cells are there"])
        say(f"interrupted: the same command goes on from what is in {folder}")
        raise
    return _write(name, out, settings, range(seeds), results, remarks)


def _find(name: str, size: Scale, folder: Path | None) -> tuple[dict[str, Path | None], list[str]]:
    """Return where the data sets of a table are, and a line for each that is not there."""
    if size.digits:
        return {"digits": None}, []
    if folder is None:
        advice = "".join(f"\n  {KNOWN[key].title}: {KNOWN[key].advice}" for key in _DATA[name])
        raise DataError(f"scale {size.name!r} needs real images: give their folder with --data.{advice}")
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    places = {key: find_data(key, folder) for key in _DATA[name]}
    found = {key: path for key, path in places.items() if path is not None}
    missing = [
        f"{KNOWN[key].title}: not found in the data folder: {KNOWN[key].advice}" for key in places if key not in found
    ]
    if not found:
        raise DataError("no data set of the table was found.\n  " + "\n  ".join(missing))
    return dict(found), missing


def _encoders(name: str, images: ImageData, *, out: Path, size: Scale, device: str, say: Say, file: Path | None) -> Any:
    """Yield the plans of a table with their encoders."""
    plans: Sequence[EncoderPlan] = (TINY_PLAN,) if size.digits else _PLANS[name]
    if file is not None:
        plan = plan_of(file, plans)
        yield plan, read_encoder(file, plan, images.train.shape[-1])
        return
    for plan in plans:
        folder = out / "encoders" / f"{images.name}.{plan.name}"
        some = images.unlabelled(size.unlabelled)
        epochs = size.epochs[plan.name]
        yield plan, pretrained_in_place(plan, some, folder, epochs=epochs, device=device, say=say)


def _encoder_line(key: str, plan: EncoderPlan, backbone: Backbone, size: Scale, file: Path | None) -> str:
    if file is not None:
        task = read_architecture(file)[1]["task"]
        fingerprint = backbone.fingerprint[:16]
        return f"{key}, encoder {plan.name}: {file.name}, pre-trained by {task}; fingerprint {fingerprint}"
    images = "all" if size.unlabelled is None else f"at most {size.unlabelled:,}"
    return f"{key}, encoder {plan.name}: {size.epochs[plan.name]} epochs of {plan.task} on {images} training images"


def _describe(images: ImageData, labelled: int | None) -> str:
    n = len(images.train) if labelled is None else min(labelled, len(images.train))
    return (
        f"{images.name}: {len(images.train):,} training images, {n:,} of them with labels; "
        f"{len(images.test):,} test images"
    )


def _about(name: str, size: Scale, protocol: Protocol, labelled: int | None, seeds: int) -> list[str]:
    shortened = "" if size.iterations is None else f"; schedules of at most {size.iterations:,} minibatches"
    number = "all" if labelled is None else f"{labelled:,}"
    spread = " (mean ± standard deviation)" if seeds > 1 else ""
    lines = [
        f"protocol {protocol.name}: {protocol.summary}{shortened}",
        f"labelled training images: {number}; seeds: {seeds}{spread}",
        "published: Mu, Liang & Li, ICLR 2020",
    ]
    if name == "table1":
        lines.append(
            "random layers: PyTorch's initial weights, batch-norm statistics of the labelled training images; "
            "random ω: normal entries, of the Frobenius norm of the trained one"
        )
    if size.digits:
        lines.append("scikit-learn's digits and a tiny encoder: this shows that all runs, not what the paper measured")
    return lines


def _write(
    name: str,
    out: Path,
    settings: dict[tuple[str, str], Setting],
    seeds: Sequence[int],
    results: dict[str, Result],
    remarks: list[str],
) -> Outcome:
    setting = next(iter(settings.values()))
    title = f"{name[:-1].capitalize()} {name[-1]}, scale {setting.scale.name}, protocol {setting.protocol.name}"
    shown: Any = table3.Table3(settings, seeds, results)
    if name == "table1":
        shown = table1.Table1(setting, seeds, results)
    table = shown.table(title, remarks)
    content = {
        "table": name,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"gradfeat": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "configurations": {" ".join(key): setting.configuration for key, setting in settings.items()},
        "cells": results,
    }
    files = [out / f"{name}.json", out / f"{name}.md", out / f"{name}.png"]
    write_whole(files[0], (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(files[1], table.markdown().encode())
    draw(files[2], shown.panels(), table.title, shared=name == "table1")
    return Outcome(table, results, files)


def machine() -> str:
    """Return what the numbers were computed on, in one line."""
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{card}"
