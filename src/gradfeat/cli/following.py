"""What `fit` and `compare` say at the end: the verdict, and the next command to run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import numpy as np

from gradfeat.cli.given import Given, command, wrapped
from gradfeat.cli.idle import used
from gradfeat.cli.requests import Source
from gradfeat.cli.show import note
from gradfeat.cli.table import options_of
from gradfeat.comparison.side_by_side import Comparison
from gradfeat.comparison.verdict import verdict_of_choice
from gradfeat.data import Dataset
from gradfeat.data.dataset import WHOLE
from gradfeat.data.load import official
from gradfeat.fit.penalties import Choice

READING = tuple(field.name for field in fields(Source))
"""Options that say how data are read, of all commands that read some."""

BACKBONE = ("weights", "device")
"""Options that say where a backbone comes from, of all commands."""

_ANEW = ("backbone", "out", "json", "checkpoint")
"""Options that the next command has with another value, or not at all."""


def _carried(given: Given, following: str, names: Collection[str] | None = None) -> list[str]:
    """Return the names of options that were given and serve the next command too.

    Args:
        given: The options.
        following: The next command.
        names: Those that may be among them; None is all.
    """
    known = {option.name for option in options_of(following)}.difference(_ANEW)
    return [name for name in given.values if name in known and (names is None or name in names)]


def has_test_part(data: Path, dataset: Dataset) -> bool:
    """Whether data that were read have a test part beside the one that was."""
    if dataset.split in (WHOLE, "test"):
        return False
    data = data.expanduser()
    if data.is_file():
        if data.suffix.lower() != ".npz":
            return False
        with np.load(data) as arrays:
            return "X_test" in arrays.files
    names = [path.stem if path.is_file() else path.name for path in data.iterdir()]
    return official(data) is not None or any(name == "test" or name.endswith("_test") for name in names)


def after_fit(
    given: Given, data: Path, backbone: str, model: Path, mode: str, choice: Choice | None, test: bool
) -> str:
    """Return the command to run after a fit.

    Args:
        given: Options of `fit`.
        data: What was fitted to.
        backbone: The backbone.
        model: The file that was written.
        mode: Of the model.
        choice: Of its penalties, where there was one.
        test: Whether the data have a test part.
    """
    reading = (*READING, *BACKBONE)
    if not test:
        return command("predict", model, data, *given.written(_carried(given, "predict", reading)))
    probe = mode == "activation" or (choice is not None and not choice.gradients)
    sure = choice is not None and choice.gain_error is not None and verdict_of_choice(choice).ship == mode
    if sure or probe or given.values.get("solver") == "pairs":  # which nothing is compared with
        options = given.written(_carried(given, "evaluate", reading))
        return command("evaluate", model, data, *options, "--picture", model.with_suffix(".png"))
    modes = ["activation", mode]
    options = used(given, modes, _carried(given, "compare"))
    return command(
        "compare", data, "-b", backbone, "--modes", ",".join(modes), *options, "--out", model.with_suffix("")
    )


def after_compare(
    given: Given,
    data: Path,
    backbone: str,
    test_data: Path | None,
    test_split: str,
    result: Comparison,
    out: Path | None,
) -> str:
    """Return the command to run after a comparison: to look at the model to ship, or to fit it to keep."""
    ship = result.verdict.ship if result.verdict is not None else result.rows[0].mode
    if out is not None:
        options = given.written(_carried(given, "evaluate", (*READING, *BACKBONE, "crops")))
        split = ["--split", test_split] if test_split != "test" else []
        picture = ["--picture", str(out / "confusion.png")]
        return command("evaluate", out / f"{ship}.safetensors", test_data or data, *split, *options, *picture)
    options = used(given, [ship], _carried(given, "fit"))
    return command("fit", data, "-b", backbone, "--mode", ship, *options, "-o", f"{ship}.safetensors")


def say_verdict(text: str, following: str) -> None:
    """Show a verdict and the next command, so that it can be copied into a shell."""
    if text:
        note(False, "")
        note(False, text)
    note(False, "")
    note(False, "Next:")
    sys.stdout.write(f"{wrapped(following, shutil.get_terminal_size().columns)}\n")
