"""Each sample left out, by formula and by refits of both stages with the same penalties.

    python -m benchmarks.leave_one_out DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--labelled N]
        [--refits N] [--axes N ...] [--units UNITS] [--out FILE]

The probe and the convex problem are solved again without each of some training samples, drawn at random, to a gap of
1e-7, in the same metric, with penalties that weigh as much beside each other sample as before. Compared are the changes
of a left-out sample's logits (of a softmax, less their mean) and of its label's log-probability: correlation, and the
error's norm relative to that of the changes. Beside them: the formula with ω̄ kept, and the processor time of both
beside that of the fit. With `--axes` also the formula with so many axes of gradient features, the first number compared
with the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.time_to_accuracy import data_parser, prepared
from gradfeat.files.writing import write_text
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.fit.answers import Answers
from gradfeat.fit.result import Linear
from gradfeat.fit.spans import subspace_of
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.subspace import Activations, Objective, Penalties, Subspace


def timed(what: Callable[[], object]) -> tuple[object, float]:
    """Return what a call returns, and its processor time in seconds."""
    begun = time.process_time()
    result = what()
    return result, time.process_time() - begun


class Refits:
    """Refits of both stages.

    Args:
        problem: All samples.
        linear: The fit of all.
    """

    gap = 1e-7

    def __init__(self, problem: Problem, linear: Linear) -> None:
        self.problem, self.linear = problem, linear
        self.w2 = linear.features.variables(linear.model.w2)

    def logits(self, without: int | None) -> Tensor:
        """Return the logits of all samples by the fit without one of them; None: with all."""
        problem, linear = self.problem, self.linear
        n, store = problem.n, problem.store
        weight = torch.ones(n) if problem.weight is None else problem.weight.clone().float()
        total = float(weight.sum())
        if without is not None:
            weight[without] = 0
        heavier = total / float(weight.sum())
        weight = weight.repeat(problem.views) if len(weight) != len(store) else weight
        probe = linear.omega or problem.probe
        omega = fit_probe(
            store.features, problem.y, problem.loss, sample_weight=weight, penalty=probe.penalty * heavier
        )
        everything = torch.arange(len(store))
        subspace = Subspace(
            linear.features.of(omega.omega),
            Activations(store.features, everything, weight),
            Objective(problem.y, problem.loss, everything, weight),
            start=store.features @ omega.omega + omega.bias,
            generator=torch.Generator().manual_seed(0),
        )
        subspace.factors = linear.factors
        subspace.add_w1(linear.model.w1.detach())
        subspace.add_w2(self.w2)
        penalties = Penalties(linear.penalties.lambda1 * heavier, linear.penalties.lambda2 * heavier)
        point, solution = subspace.solve(penalties, gap=self.gap, iterations=60)
        print(f"without {without}: {solution}", flush=True)
        return subspace.logits(point, everything)


def compared(actual: Tensor, found: Tensor) -> dict[str, float]:
    """Return the correlation of two changes, and the relative norm of their difference."""
    both = np.corrcoef(actual.flatten().numpy(), found.flatten().numpy())
    return {"correlation": float(both[0, 1]), "error": float((found - actual).norm() / actual.norm())}


def by_axes(problem: Problem, linear: Linear, axes: Sequence[int]) -> dict[str, Any]:
    """Return the changes of logits with so many axes, compared with those of the first number, and the seconds."""
    found: dict[str, Any] = {}
    first: Tensor | None = None
    for most in axes:
        begun = time.process_time()
        answers = Answers(problem, linear, most)
        moved = answers.leave_one_out() - answers.logits[: problem.n]
        first = moved if first is None else first
        found[str(most)] = {**compared(first, moved), "seconds": time.process_time() - begun}
        print(most, "axes", found[str(most)], flush=True)
    return found


def main() -> None:
    """Fit, leave out by formula and by refits, and compare."""
    parser = data_parser(__doc__ or "")
    parser.add_argument("--refits", type=int, default=200)
    parser.add_argument("--axes", type=int, nargs="*", default=[])
    parser.add_argument("--units", type=float, help="λ₂, in units; left out: penalties are chosen")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    problem, _ = prepared(arguments)
    plan = Plan(seed=0)
    if arguments.units is not None:
        start = problem.probe
        given = subspace_of(
            problem, replace(plan, metric="plain"), start.omega, start.bias, problem.n, plan.generator()
        )
        plan = replace(plan, penalties=Penalties(start.penalty, arguments.units * given.unit))
    fit, of_fit = timed(lambda: solve(problem, plan))
    assert isinstance(fit, Fit)
    if fit.linear is None:
        raise SystemExit("no gradient term was chosen")
    print(f"fit: {of_fit:.0f} s, {fit.choice or plan.penalties}, {fit.solution}", flush=True)
    linear = fit.linear
    made, of_making = timed(lambda: Answers(problem, linear))
    assert isinstance(made, Answers)
    found, of_formula = timed(made.leave_one_out)
    assert isinstance(found, Tensor)
    kept = Answers(problem, replace(linear, omega=None)).leave_one_out()
    print(f"leave-one-out: {of_making:.1f} + {of_formula:.1f} s", flush=True)
    result: dict[str, Any] = {"n": problem.n, "outputs": problem.outputs, "fit": of_fit}
    result |= {"answers": of_making + of_formula, "axes": by_axes(problem, linear, arguments.axes)}
    refits = Refits(problem, linear)
    converged = refits.logits(None)
    result["refits"] = min(arguments.refits, problem.n)
    some = torch.randperm(problem.n, generator=torch.Generator().manual_seed(1))[: arguments.refits]
    actual = torch.stack([refits.logits(int(i))[i] - converged[i] for i in some])
    y = problem.y[some]
    for name, logits in (("both stages", found), ("omega kept", kept)):
        moved = logits[some] - made.logits[some]
        shift = problem.loss.name == "cross_entropy"
        a, b = ((m - m.mean(1, keepdim=True)) if shift else m for m in (actual, moved))
        losses = [
            problem.loss.per_sample(base[some] + change, y) - problem.loss.per_sample(base[some], y)
            for base, change in ((converged, actual), (made.logits, moved))
        ]
        result[name] = {"logits": compared(a, b), "loss": compared(*losses)}
        print(name, result[name], flush=True)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
