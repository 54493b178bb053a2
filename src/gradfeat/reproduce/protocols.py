"""How step 3 is done, by name: the paper's ways, its published code's, and this project's own (Sec. 4, Appendix)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.solvers.finetune import Recipe, Search, honest_search
from gradfeat.solvers.schedule import (
    PAPER,
    PAPER_FINETUNE_SGD,
    PUBLISHED_CODE,
    Schedule,
    paper_schedule,
    voc_schedule,
)


@dataclass(frozen=True)
class Protocol:
    """A way to train the four models.

    Attributes:
        name: For the command line and the tables.
        summary: One line for the reader of a table.
        schedule: Of n training samples; of `finetune` alone where `subspace` is true.
        finetuning: What `finetune` chooses from, by runs a quarter as long on held-out training data; empty: as an
            honest rival does (`gradfeat.solvers.finetune.honest_search`).
        subspace: Whether `gradient` and `full` are solved without a learning rate, with penalties chosen on held-out
            training data.
        parametrization: The variables that w₂ is trained in.
    """

    name: str
    summary: str
    schedule: Callable[[int], Schedule]
    finetuning: tuple[Schedule, ...]
    subspace: bool = False
    parametrization: str = "standard"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "own",
            "gradient and full by the subspace solver, penalties chosen on held-out training data; fine-tuning with "
            "AdamW, warm-up and cosine, its rate, length, weight decay and the head's start chosen by full-length runs",
            lambda n: paper_schedule("adam", n),
            (),
            subspace=True,
        ),
        Protocol(
            "paper",
            "80,000 iterations of Adam, batch 64, learning rate 1e-3 halved every 20,000, β = (0.5, 0.999), weight "
            "decay 1e-6; fine-tuning by the better of it and SGD with momentum 0.9 and weight decay 5e-5",
            lambda n: PAPER,
            (PAPER, PAPER_FINETUNE_SGD),
        ),
        Protocol(
            "paper-voc",
            "50 epochs of Adam, learning rate 1e-3 halved every 20 epochs, all else as in `paper`",
            voc_schedule,
            (PAPER, PAPER_FINETUNE_SGD),
        ),
        Protocol(
            "published-code",
            "50,000 iterations of SGD with momentum 0.9, batch 128, learning rate 0.1 halved every 10,000, weight "
            "decay 5e-5, gradients clipped to norm 10, in the NTK parametrization by output channels",
            lambda n: PUBLISHED_CODE,
            (PUBLISHED_CODE,),
            parametrization="ntk_fan_out",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """Return a protocol.

    Raises:
        ConfigurationError: There is none of this name.
    """
    if name not in PROTOCOLS:
        raise ConfigurationError(
            f"protocol must be one of {', '.join(PROTOCOLS)}, not {name!r}.{did_you_mean(name, PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def fit(
    problem: Problem,
    mode: str,
    protocol: Protocol,
    *,
    iterations: int | None = None,
    splits: int | None = None,
    random_state: int | None = None,
) -> Fit:
    """Train one of the four models.

    Args:
        problem: The data, the network and the probe.
        mode: "activation", "gradient", "full" or "finetune".
        protocol: How.
        iterations: Most minibatches of a schedule; a longer one is shortened, its learning rate halved at the same
            shares of it.
        splits: Held-out parts to choose penalties on.
        random_state: Seed of splits and orders.

    Raises:
        KeyboardInterrupt: Ctrl-C: what is half done counts for nothing here.
    """
    plan = Plan(mode=mode, parametrization=protocol.parametrization, seed=random_state)
    if protocol.subspace and mode in ("gradient", "full"):
        # the metric: the weight decay of the paper's objective
        plan = replace(plan, solver="subspace", metric="plain", splits=splits)
    else:
        schedule = protocol.schedule(problem.n)
        if iterations is not None and iterations < schedule.iterations:
            schedule = schedule.shortened(iterations)
        search = _search(protocol, schedule, problem.n, iterations)
        plan = replace(plan, solver=schedule.optimizer, schedule=schedule, finetuning=search)
    result = solve(problem, plan)
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _search(protocol: Protocol, schedule: Schedule, n: int, iterations: int | None) -> Search:
    """Return what fine-tuning chooses from, none of it longer than some iterations."""
    if protocol.finetuning:
        recipes = tuple(Recipe(schedule.with_optimizer(candidate)) for candidate in protocol.finetuning)
        return Search(recipes, trial_length=0.25)
    search = honest_search()
    most = search.recipes[0].schedule_of(n)
    if iterations is None or 2 * most.iterations <= iterations:  # a refinement has twice the epochs
        return search
    return honest_search(epochs=max(1, iterations // math.ceil(n / most.batch_size)), fixed=True)
