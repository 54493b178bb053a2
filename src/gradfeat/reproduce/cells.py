"""Experiments as lists of cells: each is computed once, kept as a file of its own, and never computed again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from gradfeat._version import __version__
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.files.writing import make_folder, write_text

PARTS = "parts"
"""Folder of a run for what is finished of the cells that are being computed."""

Result = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One number of a table, or a few that are computed together.

    Args:
        name: What it is; also the name of its file, so letters, digits, ".", "-" and "_".
        compute: Returns its numbers, JSON-able.
        parts: Folder in which `compute` keeps what is finished of it, if it does; removed with the cell's end.
    """

    name: str
    compute: Callable[[], Result]
    parts: Path | None = None


def run_cells(
    cells: Sequence[Cell], folder: str | Path, configuration: Mapping[str, Any], *, say: Say = print
) -> dict[str, Result]:
    """Compute those cells that have no file yet.

    A cell's file is written whole or not at all, so a kill loses what is not kept of the cell that was being computed,
    and no other. A file that cannot be read is computed again. Processes may share a folder: a cell that another one is
    computing is left to it, and waited for at the end.

    Args:
        cells: In the order of their computation.
        folder: Where the files are, ``<name>.json``; made if it is not there.
        configuration: What the numbers depend on beside the name, JSON-able, in one level.
        say: Takes one line for each finished cell, with the time left by the mean of this run's cells.

    Returns:
        The results of all cells by name, from the files and from now.

    Raises:
        ConfigurationError: A file is of another configuration; the message has both. Or two cells have one name.
        OSError: A file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for value in (0.5, 0.9):
        ...         cell = Cell("a", lambda: {"accuracy": value})
        ...         found = run_cells([cell], folder, {"scale": "smoke"}, say=lambda line: None)
        >>> found
        {'a': {'accuracy': 0.5}}
    """
    folder = Path(folder)
    expected = _as_in_files(configuration)
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"two cells are called {next(name for name in names if names.count(name) > 1)!r}")
    results = _read_cells(cells, folder, expected, say)
    todo = [cell for cell in cells if cell.name not in results]
    if results and todo:
        say(f"{len(results)} of {len(cells)} cells are there already")
    make_folder(folder)
    begun, done, wait = time.perf_counter(), 0, None
    while todo:
        left_to_others = []
        for cell in todo:
            with claimed(_file(folder, cell), wait=wait) as ours:
                if not ours:
                    left_to_others.append(cell)
                    continue
                start, result = time.perf_counter(), read_cell(_file(folder, cell), expected, say)
                if result is None:
                    result = _compute_and_write(cell, _file(folder, cell), expected, say)
            done, wait = done + 1, None
            results[cell.name] = json.loads(json.dumps(result))
            left = (time.perf_counter() - begun) / done * (len(cells) - len(results))
            took = time.perf_counter() - start
            say(f"{len(results)}/{len(cells)} {cell.name}: {_numbers(result)} ({took:.1f} s; {duration(left)} left)")
        wait = say if len(left_to_others) == len(todo) else None  # nothing else to do
        todo = left_to_others
    return {name: results[name] for name in names}


def _file(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def _as_in_files(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as JSON gives it back: tuples become lists."""
    content: dict[str, Any] = json.loads(json.dumps(dict(configuration)))
    return content


def _compute_and_write(cell: Cell, path: Path, configuration: Mapping[str, Any], say: Say) -> Result:
    """Compute a cell and write its file; what was kept of its parts goes."""
    start = time.perf_counter()
    resumed = cell.parts is not None and any(cell.parts.rglob("*.safetensors"))
    result = _computed(cell, say)
    content = {
        "name": cell.name,
        "configuration": configuration,
        "result": result,
        "seconds": time.perf_counter() - start,
        "machine": machine(),
        "gradfeat": __version__,
        "date": date.today().isoformat(),
        **({"resumed": True} if resumed else {}),  # the seconds are then of the last run alone
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
    if cell.parts is not None:
        shutil.rmtree(cell.parts, ignore_errors=True)
    return result


def _computed(cell: Cell, say: Say) -> Result:
    """Compute a cell; from its beginning where what is finished of it does not fit."""
    try:
        return cell.compute()
    except (ConfigurationError, DataError) as error:
        if cell.parts is None or not cell.parts.exists():
            raise
        # of another version, damaged, or of a machine that rounds otherwise
        say(f"{cell.name} is computed from its beginning: {error}")
        shutil.rmtree(cell.parts)
        return cell.compute()


@contextmanager
def claimed(path: Path, *, wait: Say | None = None) -> Iterator[bool]:
    """Claim the making of a file against other processes of this machine; a claim ends with its process.

    Args:
        path: What is to be made; beside it there is a lock while it is.
        wait: Told when a claim of another process is waited for; None waits for none.

    Returns:
        A context whose value is whether the claim is ours: if so, look once more whether the file is there now.
    """
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if wait is None:
            yield False
            return
        wait(f"waiting for another process, which makes {path.name}")
        lock.acquire()
    try:
        yield True
    finally:
        with suppress(OSError):  # where an open file cannot go, the lock's stays
            Path(lock.lock_file).unlink()
        lock.release()


def finished_cells(cells: Sequence[Cell], folder: Path, configuration: Mapping[str, Any]) -> dict[str, Result]:
    """Return the results of those cells that have a file, by name; arguments as of `run_cells`."""
    return _read_cells(cells, folder, _as_in_files(configuration), lambda line: None)


def _read_cells(cells: Sequence[Cell], folder: Path, configuration: Mapping[str, Any], say: Say) -> dict[str, Result]:
    """Return the results of those cells that have a file, by name."""
    results = {cell.name: read_cell(_file(folder, cell), configuration, say) for cell in cells}
    return {name: result for name, result in results.items() if result is not None}


def computed(names: Iterable[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Return how long these cells took and of what they are, as far as their files say.

    "seconds" are of the last run alone where "resumed" is true; "machine", "date" and "gradfeat", the version.
    """
    found = {}
    for name in names:
        with suppress(OSError, ValueError):
            content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            known = ("seconds", "resumed", "machine", "date", "gradfeat")
            found[name] = {key: content[key] for key in known if key in content}
    return found


def machine() -> str:
    """Return what numbers are computed on here, in one line."""
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{platform.system()} {platform.machine()}, {cores}{card}, torch {torch.__version__}"


def read_cell(path: Path, configuration: Mapping[str, Any], say: Say) -> Result | None:
    """Return the result in a cell's file; None where there is none, or where it cannot be read.

    Raises:
        ConfigurationError: It is of another configuration.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, result = content["configuration"], content["result"]
        if not isinstance(found, dict) or not isinstance(result, dict):
            raise ValueError("no cell")
    except (ValueError, KeyError, TypeError):
        say(f"{path} cannot be read, and is computed again")
        return None
    if found != configuration:
        differing = [name for name in {**found, **configuration} if found.get(name) != configuration.get(name)]
        there = ", ".join(f"{name} {found.get(name)}" for name in differing)
        now = ", ".join(f"{name} {configuration.get(name)}" for name in differing)
        raise ConfigurationError(
            f"{path.parent} has cells of another configuration: {there} there; {now} now. Give another folder with "
            "--out, or remove these cells"
        )
    return result


def duration(seconds: float) -> str:
    """Return a length of time for people.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def _numbers(result: Result) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in result.items() if isinstance(value, float)) or "done"
