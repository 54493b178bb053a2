"""The commands of `gradfeat`.

Their options are in `gradfeat.cli.table`; what they do is imported only when they run: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gradfeat._version import __version__
from gradfeat.cli.binding import with_options
from gradfeat.cli.option import Option
from gradfeat.cli.requests import (
    Audit,
    Compare,
    Demo,
    Evaluate,
    Explain,
    Fit,
    Forget,
    Inspect,
    Predict,
    Pretrain,
    Reproduce,
    Suggest,
)
from gradfeat.cli.table import TABLE
from gradfeat.files.terminal import printable


class Commands(TyperGroup):
    """The commands; what is wrong with their arguments may be the name of a file, and is shown as such."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message") and hasattr(error, "message"):  # one about the arguments
                error.message = printable(error.message)
            raise


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gradfeat {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Linear models over the activations and gradients of a pre-trained network (Mu, Liang & Li, ICLR 2020)."""


def demo(request: Demo) -> None:
    """Show the method on scikit-learn's digits: pre-train without labels, fit the four models, save and load one."""
    from gradfeat.cli.demo import run

    run(request)


def fit(request: Fit) -> None:
    """Fit one model to labelled data and save it as one file."""
    from gradfeat.cli.commands import fit_command

    fit_command(request)


def compare(request: Compare) -> None:
    """Fit the four models of the method and show them side by side."""
    from gradfeat.cli.commands import compare_command

    compare_command(request)


def predict(request: Predict) -> None:
    """Predict classes and probabilities with a saved model."""
    from gradfeat.cli.saved import predict_command

    predict_command(request)


def evaluate(request: Evaluate) -> None:
    """Judge a saved model on labelled data."""
    from gradfeat.cli.saved import evaluate_command

    evaluate_command(request)


def explain(request: Explain) -> None:
    """Show which training samples speak for and against each prediction of a saved model."""
    from gradfeat.cli.explain import explain_command

    explain_command(request)


def suggest(request: Suggest) -> None:
    """Say which samples of a pool to label next, so that least is unknown of the rest."""
    from gradfeat.cli.explain import suggest_command

    suggest_command(request)


def audit(request: Audit) -> None:
    """Show the training samples of a saved model whose labels fit least: wrong labels first."""
    from gradfeat.cli.audit import audit_command

    audit_command(request)


def forget(request: Forget) -> None:
    """Write a saved model as it is without some of its training samples."""
    from gradfeat.cli.forget import forget_command

    forget_command(request)


def inspect(request: Inspect) -> None:
    """Show a network's candidates of θ₂, with their parameters, memory and the cost of a pass."""
    from gradfeat.cli.inspect import run

    run(request)


def pretrain(request: Pretrain) -> None:
    """Pre-train an encoder on images, mostly without labels; it is a backbone for the other commands."""
    from gradfeat.cli.pretrain import run

    run(request)


def reproduce(request: Reproduce) -> None:
    """Compute a table of the paper beside its published numbers; the same command goes on where it stopped."""
    from gradfeat.cli.reproduce import run

    run(request)


def app_of(table: Sequence[Option]) -> typer.Typer:
    """Return the command line whose options are those of a table."""
    made = typer.Typer(
        cls=Commands,
        name="gradfeat",
        help="Linear models over the activations and gradients of a pre-trained network (Mu, Liang & Li, ICLR 2020).",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(options)
    commands = (demo, fit, compare, predict, evaluate, audit, explain, suggest, forget, inspect, pretrain, reproduce)
    for run in commands:
        made.command()(with_options(run, table))
    return made


app = app_of(TABLE)
