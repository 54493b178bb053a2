"""What a fit consists of, and what its stages cost roughly, so that its progress knows the whole.

Costs are in passes over the samples, and need not be right: what stages take is learnt as they go. Making the network
and linearizing it do not depend on the number of samples, so they say nothing about the rest.
"""

from __future__ import annotations

from dataclasses import replace

from gradfeat.fit.choose import metrics_of
from gradfeat.fit.plan import Plan
from gradfeat.fit.rounds import MORE, passes_of
from gradfeat.fit.splits import count_of
from gradfeat.progress import Stage
from gradfeat.solvers.finetune import honest_search, trial_of
from gradfeat.solvers.pairs import STEPS
from gradfeat.solvers.schedule import SOLVERS as OPTIMIZERS

NETWORK, LINEARIZE, HEAD = "network", "linearize", "head of the merged network"

ACTIVATIONS, _PROBE, _SPLIT, _FIT, _HEAD, _EPOCH = 2.0, 0.2, 2.5, 0.5, 0.3, 0.1


def stages_of_fit(plan: Plan, n: int) -> list[Stage]:
    """Return the stages of a fit to n samples."""
    return [*shared_stages(), *stages_of_plan(plan, n)]


def shared_stages() -> list[Stage]:
    """Return the stages that all modes share."""
    return [Stage(NETWORK), Stage(LINEARIZE), Stage("activations", ACTIVATIONS), Stage("probe", _PROBE)]


def stages_of_plan(plan: Plan, n: int) -> list[Stage]:
    """Return the stages of a plan, after those that all share."""
    if plan.mode == "activation":
        return [Stage(HEAD)]
    if plan.solver == "pairs":
        return [Stage("fit", _EPOCH * STEPS), Stage(HEAD, _HEAD)]
    if plan.mode == "finetune":
        search = plan.finetuning or honest_search()
        length = _EPOCH * search.recipes[0].schedule_of(n).n_epochs(n)
        trials = [Stage(trial_of(number), search.trial_length * length) for number in range(1, search.most + 1)]
        return [*trials, Stage("fit", length), Stage(HEAD, _HEAD)]
    if plan.solver in OPTIMIZERS:
        return [Stage("fit", _EPOCH * plan.schedule_of("adam", n).n_epochs(n)), Stage(HEAD, _HEAD)]
    choice = [Stage("penalties", _SPLIT * count_of(n)) for _ in metrics_of(plan, n)] if plan.penalties is None else []
    if plan.rounds == 1 or plan.mode != "full":
        return [*choice, Stage("fit", _FIT), Stage(HEAD, _HEAD)]
    passes = _EPOCH * passes_of(plan.rounds, n)
    trials = [Stage(trial_of(k + 1), 0.8 * passes) for k in range(len(plan.rates))]
    if plan.rival:
        trials += stages_of_plan(replace(plan, mode="finetune", solver="auto"), n)[:-1]
    return [*trials, Stage("fit", MORE * passes), Stage(HEAD, _HEAD)]
