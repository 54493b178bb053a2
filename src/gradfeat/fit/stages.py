"""What a fit consists of, and what its stages cost roughly, so that its progress knows the whole.

Costs are in passes over the samples, and need not be right: what stages take is learnt as they go. Making the network
and linearizing it do not depend on the number of samples, so they say nothing about the rest.
"""

from __future__ import annotations

from typing import Any

from gradfeat.fit.selection import ONE_SPLIT_FROM, PARTS
from gradfeat.fit.training import TRIAL_LENGTH
from gradfeat.progress import Stage
from gradfeat.solvers.finetune import FINETUNE_GRID, trial_of
from gradfeat.solvers.schedule import SOLVERS, paper_schedule

NETWORK, LINEARIZE, HEAD = "network", "linearize", "head of the merged network"

ACTIVATIONS, _PROBE, _SPLIT, _FIT, _HEAD, _ROUND, _EPOCH = 2.0, 0.2, 2.5, 0.5, 0.3, 1.0, 0.1


def stages_of_fit(estimator: Any, n: int) -> list[Stage]:
    """Return the stages of an estimator's fit to n samples."""
    return [*shared_stages(), *stages_of_mode(estimator, estimator.mode, n)]


def shared_stages() -> list[Stage]:
    """Return the stages that all modes share."""
    return [Stage(NETWORK), Stage(LINEARIZE), Stage("activations", ACTIVATIONS), Stage("probe", _PROBE)]


def stages_of_mode(estimator: Any, mode: str, n: int) -> list[Stage]:
    """Return the stages of one mode, after those that all share; none where a parameter cannot be meant."""
    if mode == "activation":
        return [Stage(HEAD)]
    if mode == "finetune" or estimator.solver in SOLVERS:
        epochs = _epochs(estimator, n)
        trials = [Stage(trial_of(candidate), _EPOCH * TRIAL_LENGTH * epochs) for candidate in FINETUNE_GRID]
        return [*(trials if mode == "finetune" else []), Stage("fit", _EPOCH * epochs), Stage(HEAD, _HEAD)]
    metrics = 1 if estimator.metric != "auto" or n >= ONE_SPLIT_FROM else 2
    splits = metrics * (1 if n >= ONE_SPLIT_FROM else PARTS)
    choice = [Stage("penalties", _SPLIT * splits / metrics)] * metrics if isinstance(estimator.penalty, str) else []
    if estimator.rounds == 1 or mode != "full":
        return [*choice, Stage("fit", _FIT), Stage(HEAD, _HEAD)]
    moves = [Stage("rounds", 6 * _ROUND), Stage("rounds on all samples", 3 * _ROUND)]
    return [*choice, *moves, Stage(HEAD, _HEAD)]


def _epochs(estimator: Any, n: int) -> int:
    try:
        return paper_schedule("adam", n, batch_size=estimator.batch_size, epochs=estimator.epochs).n_epochs(n)
    except (TypeError, ValueError, ArithmeticError):  # of parameters that are refused later, with a better word
        return 1
