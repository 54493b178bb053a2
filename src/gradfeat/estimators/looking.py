"""Whether an estimator's parameters leave open how much is fitted, and what a look then costs."""

from __future__ import annotations

from typing import Any

from gradfeat.estimators.parameters import Parameters
from gradfeat.fit.look import FEWEST, STAGE
from gradfeat.progress import Stage

_COST = 4.0


def looks(parameters: Parameters, n: int) -> bool:
    """Whether `effort` decides on θ₂ and on moves: nothing else does, and there are samples enough to look at.

    An argument that is about one linearization asks for one: a penalty, a solver, a metric, a parametrization.

    Args:
        parameters: Of the estimator.
        n: Number of samples.
    """
    open_ = {
        "theta2": "auto",
        "mode": "full",
        "penalty": "auto",
        "solver": "auto",
        "metric": "auto",
        "parametrization": "standard",
    }
    given: dict[str, Any] = {name: getattr(parameters, name) for name in open_}
    return (
        parameters.effort != "low"
        and n >= FEWEST
        and parameters.rounds != 1
        and parameters.precision != "bfloat16"
        and all(isinstance(given[name], str) and given[name] == value for name, value in open_.items())
    )


def stages_of_look(parameters: Parameters, n: int) -> list[Stage]:
    """Return the stage of a look at n samples, where there is one."""
    return [Stage(STAGE, _COST)] if looks(parameters, n) else []
