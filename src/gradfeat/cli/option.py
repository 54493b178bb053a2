"""An option of the command line: one row of the table, which says all that there is to say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any

import typer

from gradfeat.cli.rules import Rule

REQUIRED = Parameter.empty
"""The default of what must be given."""

Convert = Callable[[str, Any], Any]
"""Takes how an option is written, for its message, and the option's value; returns the estimator's parameter."""


@dataclass(frozen=True)
class Option:
    """An option or argument of one or several commands.

    Args:
        name: Of the value, in the command's request.
        commands: Names of the commands that have it.
        type: Of the value, as typer reads it.
        default: Its value where it is not given, or `REQUIRED`.
        help: What `--help` says of it.
        flags: How it is written; none is made of the name.
        argument: Whether it is written without a flag.
        metavar: What `--help` calls an argument; None is its name.
        least: The least number that it may be; None is any.
        parameter: The estimator's parameter that it is; ``name.entry`` is an entry of one that is a mapping. None is no
            parameter. An option that is not given and has no default leaves the parameter to the estimator's.
        convert: What the parameter is made by; None takes the value as it is.
        only_for: The kind of data that it is for alone, a constant of `gradfeat.cli.rules`; None is any.
        idle: Says why it would do nothing for what shall be fitted; None is never.
    """

    name: str
    commands: Sequence[str]
    type: Any
    default: Any
    help: str
    flags: tuple[str, ...] = ()
    argument: bool = False
    metavar: str | None = None
    least: int | None = None
    parameter: str | None = None
    convert: Convert | None = None
    only_for: str | None = None
    idle: Rule | None = None

    @property
    def flag(self) -> str:
        """How it is written, in full.

        Example:
            >>> Option("image_size", ["fit"], int, 32, "Side of an image.").flag
            '--image-size'
        """
        return max(self.flags, key=len) if self.flags else f"--{self.name.replace('_', '-')}"

    def converted(self, value: Any) -> Any:
        """Return a value as the estimator takes it.

        Raises:
            ConfigurationError: It does not say what it has to.
        """
        return value if self.convert is None else self.convert(self.flag, value)

    def in_signature(self) -> Parameter:
        """Return the parameter of a function that typer makes this option of."""
        about = (
            typer.Argument(help=self.help, metavar=self.metavar)
            if self.argument
            else typer.Option(*self.flags, help=self.help, min=self.least)
        )
        kind = Parameter.KEYWORD_ONLY
        return Parameter(self.name, kind, default=self.default, annotation=Annotated[self.type, about])
