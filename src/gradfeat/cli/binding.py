"""A function that takes a request becomes a command: typer reads its options from the table, and it gets one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

import typer

from gradfeat.cli.given import Given
from gradfeat.cli.option import Option
from gradfeat.cli.requests import Parameters

T = TypeVar("T")


def field_types(kind: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass, by the field's name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def request_of(run: Callable[[Any], None]) -> Any:
    """Return the dataclass that a command takes, which its only parameter is annotated with."""
    (kind,) = (hint for name, hint in get_type_hints(run).items() if name != "return")
    return kind


@dataclasses.dataclass(frozen=True)
class Call:
    """A command line that was read.

    Attributes:
        options: Of the command.
        values: By their names.
        given: What was given among them.
    """

    options: Sequence[Option]
    values: Mapping[str, Any]
    given: Given

    def request(self, kind: type[T]) -> T:
        """Return the request of a kind: each field is the option of its name, or a request of its own kind.

        Raises:
            TypeError: A field is none of the command's options, and has no default.
        """
        types = field_types(kind)
        known = [name for name, of in types.items() if name in self.values or dataclasses.is_dataclass(of)]
        return kind(**{name: self._value(name, types[name]) for name in known})

    def _value(self, name: str, kind: Any) -> Any:
        if kind is Given:
            return self.given
        if kind is Parameters:
            options = [option for option in self.options if option.parameter is not None]
            return Parameters([(option, self.values[option.name]) for option in options])
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self.request(kind)
        return self.values[name]


def with_options(run: Callable[[Any], None], table: Sequence[Option]) -> Callable[..., None]:
    """Return what typer makes a command of.

    Args:
        run: Called as the command is, and annotated with the dataclass of its request.
        table: The options of all commands.
    """
    kind = request_of(run)
    options = [option for option in table if run.__name__ in option.commands]

    def command(context: typer.Context, **values: Any) -> None:
        run(Call(options, values, Given.of(context, options)).request(kind))

    here = Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    command.__name__, command.__doc__ = run.__name__, run.__doc__
    command.__signature__ = Signature([here, *(option.in_signature() for option in options)])  # type: ignore[attr-defined]
    return command
