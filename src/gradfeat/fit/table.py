"""The table of solvers, which one "auto" takes, and the one way in: `solve`."""

from __future__ import annotations

from typing import ClassVar

from gradfeat.contexts import plain
from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.fit.contract import Solver
from gradfeat.fit.dual import DualSolver
from gradfeat.fit.finetune import FineTuning
from gradfeat.fit.pairs import PairsSolver
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import starting_model
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.schedule import ScheduleSolver
from gradfeat.fit.subspace import SubspaceSolver
from gradfeat.losses import Quadratic
from gradfeat.progress import Progress

FEW = 500
"""Samples × outputs up to which the closed form is the choice of `solver="auto"`; its time grows with the square (the
kernel) and the cube (its decomposition)."""

MANY_OUTPUTS = 2000
"""Most samples × outputs² there: the kernel's time is to the subspace solver's as (n · c)² to n."""


class ProbeSolver(Solver):
    """Mode `activation`: the probe, which has converged in step 2 already."""

    name = "probe"
    modes: ClassVar[tuple[str, ...]] = ("activation",)

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Refuse nothing."""
        return None

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Return the probe."""
        return Fit(starting_model(problem, plan.mode, plan.parametrization))


SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        SubspaceSolver(),
        DualSolver(),
        PairsSolver(),
        ScheduleSolver("adam"),
        ScheduleSolver("sgd"),
        ProbeSolver(),
        FineTuning(),
    )
}
"""All solvers by name; a new one is a line here."""


def select_solver(problem: Problem, plan: Plan) -> tuple[str, str]:
    """Return the name of the solver of a problem, and why it is that one.

    The whole decision, in this order:

    1. Mode "activation" is the probe's, and mode "finetune" fine-tuning's, by "pairs" where the plan names it.
    2. A solver that the plan names is taken.
    3. Samples that may change from pass to pass: "adam", since all other solvers go over the same samples again.
    4. A squared loss with at most `FEW` samples × outputs and at most `MANY_OUTPUTS` samples × outputs², with one
       linearization and no whitened metric: "dual", in closed form.
    5. All else: "subspace".

    Raises:
        ConfigurationError: Samples that change, and something asked for that only the subspace solver has.
    """
    if plan.mode == "finetune" and plan.solver == "pairs":
        return plan.solver, "it is named"
    if plan.mode in ("activation", "finetune"):
        return ("probe" if plan.mode == "activation" else "finetune"), f"mode {plan.mode!r} has no other"
    if plan.solver != "auto":
        return plan.solver, "it is named"
    rounds = plan.rounds != 1 and plan.mode == "full"
    if problem.store.inputs.random:
        wishes = {"metric='whitened' is": plan.metric == "whitened", "rounds are": rounds}
        wish = next((name for name, wanted in wishes.items() if wanted), None)
        if wish is not None:
            raise ConfigurationError(
                f"{wish} of the subspace solver, which needs samples that do not change, and this data set may "
                "change them"
            )
        return "adam", "the data set may change its samples"
    n, c = len(problem.store), problem.outputs
    few = n * c <= FEW and n * c**2 <= MANY_OUTPUTS
    if isinstance(problem.loss, Quadratic) and few and not rounds and plan.metric != "whitened":
        return "dual", "a squared loss, and few samples × outputs"
    return "subspace", "the samples do not change" + (", and θ̄₂ moves" if plan.rounds != 1 else "")


@plain()
def solve(problem: Problem, plan: Plan | None = None, progress: Progress | None = None) -> Fit:
    """Fit one of the four models to a prepared problem (step 3).

    Args:
        problem: From `gradfeat.fit.prepare`.
        plan: What is fitted and how; None: mode "full" with chosen penalties.
        progress: Shows how far it is.

    Returns:
        The model, and how it was come by.

    Raises:
        ConfigurationError: An unknown solver, or one that does not take the problem; the message says the way out.
        ConvergenceError: The features or the solution are not finite.

    Example:
        >>> import torch
        >>> from gradfeat.data import Inputs
        >>> from gradfeat.fit import Plan, prepare, solve
        >>> from gradfeat.linearization import linearize
        >>> from gradfeat.losses import Squared
        >>> from gradfeat.solvers.subspace import Penalties
        >>> x = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> network = torch.nn.Linear(1, 1, bias=False)
        >>> problem = prepare(linearize(network, x, "*"), Inputs(x), x, Squared(), penalty=1.0)
        >>> fit = solve(problem, Plan(mode="activation"))
        >>> bool((fit.model.w1 == problem.probe.omega).all())
        True
    """
    plan = plan or Plan()
    name, _ = select_solver(problem, plan)
    if name not in SOLVERS:
        raise ConfigurationError(
            f"solver must be one of auto, {', '.join(SOLVERS)}, not {name!r}.{did_you_mean(name, list(SOLVERS))}"
        )
    solver = SOLVERS[name]
    if plan.mode not in solver.modes:
        raise ConfigurationError(f"solver={name!r} is of mode {' and '.join(solver.modes)}, not {plan.mode!r}")
    reason = solver.refusal(problem, plan)
    if reason is not None:
        raise ConfigurationError(reason)
    return solver.fit(problem, plan, progress or Progress(False))
