"""The table of options: every row is used, every parameter of the estimators has one, and one row is a whole option."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.cli import app as commands
from gradfeat.cli.app import app_of
from gradfeat.cli.binding import field_types, request_of
from gradfeat.cli.given import Given
from gradfeat.cli.option import REQUIRED, Option
from gradfeat.cli.requests import Parameters
from gradfeat.cli.table import FITTING, TABLE
from gradfeat.errors import ConfigurationError

WITHOUT_OPTION = {
    "backbone": "--backbone is the first argument of both classes",
    "verbose": "--json turns it off",
    "cv": "the folds of the choice of penalties",
    "clip_norm": "the published code's clipping, for the schedules of the paper's tables",
}
"""The estimators' parameters that are no row of the table."""

COMMANDS = (
    "demo",
    "fit",
    "compare",
    "predict",
    "evaluate",
    "audit",
    "explain",
    "suggest",
    "forget",
    "inspect",
    "pretrain",
    "reproduce",
)
SIGNATURE = {
    name: parameter
    for estimator in (GradientFeatureClassifier, GradientFeatureRegressor)
    for name, parameter in inspect.signature(estimator).parameters.items()
}


def rows(command: str) -> list[Option]:
    return [option for option in TABLE if command in option.commands]


def test_each_parameter_of_the_estimators_has_an_option_or_a_reason_for_none() -> None:
    of_table = {option.parameter.partition(".")[0] for option in rows("fit") if option.parameter is not None}
    assert of_table | set(WITHOUT_OPTION) == set(SIGNATURE)
    assert not of_table & set(WITHOUT_OPTION)


def test_fit_and_compare_have_the_same_parameters() -> None:
    fit, compare = ({option.parameter: option for option in rows(name) if option.parameter} for name in FITTING)
    assert fit.pop("mode").default == SIGNATURE["mode"].default  # compare has several, in --modes
    assert fit == compare


@pytest.mark.parametrize(
    "option", [option for option in rows("fit") if option.parameter], ids=lambda option: str(option.name)
)
def test_a_default_is_the_estimators(option: Option) -> None:
    passed = Parameters([(option, option.default)]).converted()
    if option.name == "seed":  # a command gives the same model each time, an estimator as scikit-learn's do
        assert passed == {"random_state": 0}
    elif passed:
        assert passed == {option.parameter: SIGNATURE[option.parameter or ""].default}
    else:
        assert option.default is None


def test_entries_of_one_parameter_are_one_mapping() -> None:
    values = {"mean": "0.4", "std": "0.1,0.2,0.3", "resize": None, "crop_pct": 0.875, "epochs": None, "rounds": "3"}
    written = [(option, values[option.name]) for option in rows("fit") if option.name in values]
    assert Parameters(written).converted() == {
        "preprocessing": {"mean": 0.4, "std": (0.1, 0.2, 0.3), "crop_pct": 0.875},
        "rounds": 3,
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_goes_somewhere(command: str) -> None:
    def names(kind: Any) -> Iterator[str]:
        for name, of in field_types(kind).items():
            if of is Parameters:
                yield from (option.name for option in rows(command) if option.parameter is not None)
            elif is_dataclass(of) and of is not Given:
                yield from names(of)
            else:
                yield name

    assert {option.name for option in rows(command)} <= set(names(request_of(getattr(commands, command))))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_two_options_of_a_command_are_written_alike(command: str) -> None:
    flags = [flag for option in rows(command) for flag in option.flags or (option.flag,)]
    assert len(set(flags)) == len(flags)


# ---- one more row -------------------------------------------------------------------------------

Invoke = Callable[..., Any]


@pytest.fixture(scope="module")
def wider() -> Invoke:
    """Run the command line of a table with one more row, for a parameter that has no option."""
    row = Option("cv", FITTING, int, SIGNATURE["cv"].default, "Folds.", parameter="cv")
    app = app_of((*TABLE, row))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_one_row_gives_an_option_to_its_commands(wider: Invoke, command: str) -> None:
    shown = wider(command, "--help")
    assert shown.exit_code == 0
    assert ("--cv" in shown.stdout) == (command in FITTING)


@pytest.mark.parametrize("command", FITTING)
def test_one_row_hands_its_value_to_the_estimator(
    wider: Invoke, pictures: Path, encoder: Path, tmp_path: Path, command: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"^cv must be .*, not 1"):
        raise wider(command, pictures, "-b", encoder, "-o", tmp_path / "out", "--cv", 1).exception


def test_a_row_says_what_its_option_is_for(pictures: Path) -> None:
    def refused(**about: Any) -> str:
        row = Option("extra", FITTING, str, "", "An option.", parameter="extra", **about)
        words = ["fit", str(pictures), "-b", "gradfeat/none", "--mode", "activation", "--extra", "x"]
        return str(CliRunner().invoke(app_of((*TABLE, row)), words).exception)

    assert refused(only_for="texts") == "--extra would do nothing: it is for texts, and the data are images"
    assert (
        refused(idle=lambda plan: f"{plan} is too little")
        == "--extra would do nothing: --mode activation is too little"
    )
    assert "would do nothing" not in refused(only_for="images", idle=lambda plan: None)


def test_what_must_be_given_is_asked_for() -> None:
    row = Option("extra", ("fit",), int, REQUIRED, "An option.", flags=("--extra", "-x"))
    done = CliRunner().invoke(app_of((*TABLE, row)), ["fit", "data", "-b", "backbone"])
    assert (done.exit_code, "Missing option '--extra'" in done.stderr) == (2, True)
    assert row.flag == "--extra"
