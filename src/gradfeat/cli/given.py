"""What the user wrote on the command line: the options that were given, and further commands made of them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from gradfeat.cli.option import Option


@dataclass(frozen=True)
class Given:
    """The options that were given with another value than they have anyway.

    Attributes:
        values: By the option's name.
        options: Their rows in the table, by the same names.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    @staticmethod
    def of(context: typer.Context, options: Sequence[Option]) -> Given:
        """Return what was given to the running command, whose options these are."""
        rows: dict[str, Option] = {}
        for option in options:
            source = context.get_parameter_source(option.name)
            written = not option.argument and source is not None and source.name == "COMMANDLINE"
            if written and context.params.get(option.name) != option.default:
                rows[option.name] = option
        return Given({name: context.params.get(name) for name in rows}, rows)

    def written(self, names: Collection[str]) -> list[str]:
        """Return the options among some names as they are written, those that were given alone."""
        words: list[str] = []
        for name, value in self.values.items():
            if name not in names:
                continue
            flag = self.options[name].flag
            for part in value if isinstance(value, (list, tuple)) else [value]:
                words += [flag] if part is True else [flag, str(part)]
        return words


def command(name: str, *parts: str | Path) -> str:
    """Return a command line that can be pasted into a shell.

    Example:
        >>> command("evaluate", "my model.safetensors", "data")
        "gradfeat evaluate 'my model.safetensors' data"
        >>> command("evaluate", "model.safetensors", Path("-photos"))  # no option
        'gradfeat evaluate model.safetensors ./-photos'
    """
    words = [f"./{part}" if isinstance(part, Path) and str(part).startswith("-") else str(part) for part in parts]
    return shlex.join(["gradfeat", name, *words])


def wrapped(line: str, width: int) -> str:
    r"""Return a command line in several lines, which a shell takes for one; a single word may be longer than a line.

    Example:
        >>> print(wrapped("gradfeat evaluate model.safetensors data --crops 10", 48))
        gradfeat evaluate model.safetensors data \
          --crops 10
    """
    words = [shlex.quote(word) for word in shlex.split(line)]
    groups, rest = [" ".join(words[:2])], words[2:]
    while rest:
        pair = rest[0].startswith("-") and len(rest) > 1 and not rest[1].startswith("-")
        groups.append(" ".join(rest[: 1 + pair]))
        rest = rest[1 + pair :]
    lines = [groups[0]]
    for group in groups[1:]:
        longer = f"{lines[-1]} {group}"
        if len(longer) <= width - 2:  # room for the backslash
            lines[-1] = longer
        else:
            lines.append(f"  {group}")
    return " \\\n".join(lines)
