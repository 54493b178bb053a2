"""Whether an estimator's parameters leave open how much is fitted, and what a look then costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradfeat.estimators.parameters import Parameters
from gradfeat.fit.look import FEWEST, STAGE
from gradfeat.progress import Stage

_COST = 5.0


def looks(parameters: Parameters, n: int, *, random: bool = False) -> bool:
    """Whether `effort` decides on θ₂ and on moves: nothing else does, and there are samples enough to look at.

    An argument that is about one linearization asks for one: a penalty, a solver, a metric, a parametrization.

    Args:
        parameters: Of the estimator.
        n: Number of samples.
        random: Whether they may change from pass to pass.
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
        and not random
        and parameters.rounds != 1
        and parameters.precision != "bfloat16"
        and all(isinstance(given[name], str) and given[name] == value for name, value in open_.items())
    )


def stages_of_look(parameters: Parameters, n: int) -> list[Stage]:
    """Return the stage of a look at n samples, where there is one."""
    return [Stage(STAGE, _COST)] if looks(parameters, n) else []


def drawn(y: np.ndarray, most: int, seed: int | None) -> np.ndarray:
    """Return places of so many samples at most, at random, ascending; of each class two where there is room for them.

    Without those two a rare class would be of no sample, and of an only class there is nothing to learn.

    Args:
        y: Class indices (n,), or other targets (n, c).
        most: Number of samples.
        seed: Of the draw.

    Example:
        >>> y = np.array([0] * 98 + [1, 1])
        >>> drawn(y, 10, 0)[-2:]
        array([98, 99])
    """
    order = np.random.RandomState(seed).permutation(len(y))
    if y.ndim == 1 and y.dtype.kind in "iu" and len(y) > most:
        classes = y[order]
        by_class = np.argsort(classes, kind="stable")
        ranked = classes[by_class]
        rank = np.empty(len(y), dtype=int)  # of a sample among those of its class, in the order drawn
        rank[by_class] = np.arange(len(y)) - np.searchsorted(ranked, ranked)
        first = order[rank < 2]
        if len(first) <= most:
            order = np.concatenate([first, order[rank >= 2]])
    return np.sort(order[:most])
