"""Whether a choice lies at the edge of what was tried, where something better may lie beyond, and what to do about it.

An edge counts only where the held-out loss still falls towards it.
"""

from __future__ import annotations

import math
from typing import Any

from gradfeat.fit.penalties import GRID, NEGLIGIBLE, Choice, Tried, lightest
from gradfeat.solvers.finetune import Selection
from gradfeat.solvers.probe import GRID as PROBE_GRID
from gradfeat.solvers.probe import Probe


def edge_note(estimator: Any, n: int) -> str:
    """Say of an estimator fitted to n samples which choices lie at the edge of their grid; nothing where none does."""
    parts = [
        probe_edge(estimator.probe_),
        # rounds choose their own penalties, and take none that are given
        "" if estimator.rounds_ is not None else choice_edge(estimator.choice_, estimator.probe_, n),
        rate_edge(estimator.selection_),
    ]
    return "; ".join(part for part in parts if part)


def probe_edge(probe: Probe) -> str:
    """Say whether the probe's penalty is the heaviest or the lightest that was tried."""
    if len(probe.path) < 2 or probe.penalty not in (probe.path[0][0], probe.path[-1][0]):
        return ""
    if probe.penalty == probe.path[0][0]:
        return (
            f"the probe's penalty, {probe.penalty:.3g}, is the heaviest that was tried: no lighter one has less "
            "held-out loss, so the activations tell little of the labels (are labels, weights and preprocessing right?)"
        )
    if len(probe.path) < len(PROBE_GRID):  # lighter ones were not tried since the loss had risen
        return ""
    return (
        f"the probe's penalty, {probe.penalty:.3g}, is the lightest that was tried: --penalty {probe.penalty / 10:.2g} "
        "tries a lighter one"
    )


def choice_edge(choice: Choice | None, probe: Probe, n: int) -> str:
    """Say whether λ₁ or λ₂, chosen for n samples, is at an edge of its grid."""
    if choice is None:
        return ""
    light, heavy, units = lightest(probe), "the heaviest that was tried", choice.lambda2_units
    if not choice.gradients:
        at_edge = _near(choice.lambda1, light * GRID.omega[-1])
        if at_edge and _falls(choice, lambda1=light * GRID.omega[-2]):
            penalty = f"{choice.lambda1:.3g}"
            return f"the penalty of the probe alone, {penalty}, is {heavy}: --penalty {10 * choice.lambda1:.2g}"
        return ""
    notes = []
    if _near(units, GRID.lambda2_units[0]) and _falls(choice, lambda2_units=GRID.lambda2_units[1]):
        notes.append(
            f"λ₂, {units:.3g} units, is {heavy}: the gradient term hardly counts, and --mode activation is nearly the "
            "same"
        )
    given = choice.penalties(n)
    by_hand = f" (the chosen ones are --penalty {given.lambda1:.2g},{given.lambda2:.2g} --metric {choice.metric})"
    if _near(units, GRID.lambda2_units[-1]) and _falls(choice, lambda2_units=GRID.lambda2_units[-2]):
        notes.append(
            f"λ₂, {units:.3g} units, is the lightest that was tried: give a lighter one with --penalty λ₁,λ₂{by_hand}"
        )
    if choice.mode == "full":
        lambda1, first = f"{choice.lambda1:.3g}", GRID.lambda1
        for edge, inner, word, way in (
            (first[0], first[1], "lightest", "lighter"),
            (first[-1], first[-2], "heaviest", "heavier"),
        ):
            if _near(choice.lambda1, light * edge) and _falls(choice, lambda1=light * inner):
                notes.append(
                    f"λ₁, {lambda1}, is the {word} that was tried: give a {way} one with --penalty λ₁,λ₂{by_hand}"
                )
    return "; ".join(notes)


def rate_edge(selection: Selection | None) -> str:
    """Say whether fine-tuning's learning rate is the largest or smallest that its optimizer was tried with."""
    if selection is None:
        return ""
    best = selection.best.schedule
    schedules = [tried.schedule for tried, _ in selection.scores]
    rates = [tried.learning_rate for tried in schedules if tried.optimizer == best.optimizer]
    if len(set(rates)) < 2 or best.learning_rate not in (min(rates), max(rates)):
        return ""
    if best.learning_rate == max(rates):
        return (
            f"fine-tuning's learning rate, {best}, is the largest that was tried with it: more epochs (--epochs) may "
            "do what a larger one would"
        )
    return (
        f"fine-tuning's learning rate, {best}, is the smallest that was tried with it: fewer epochs (--epochs), or "
        "--mode full, which has no learning rate, may do better"
    )


def _near(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-6)


def _falls(choice: Choice, *, lambda1: float | None = None, lambda2_units: float | None = None) -> bool:
    """Whether the least loss is clearly below that of the next place inwards, all else being the same."""
    to_lambda1 = choice.lambda1 if lambda1 is None else lambda1
    to_units = choice.lambda2_units if lambda2_units is None else lambda2_units

    omega = to_lambda1 if not choice.gradients else choice.omega_penalty

    def same(tried: Tried) -> bool:
        penalties = _near(tried.omega_penalty, omega) and _near(tried.lambda1, to_lambda1)
        return penalties and _equal(tried.lambda2_units, to_units)

    inner = [tried.loss for tried in choice.path if same(tried)]
    return bool(inner) and choice.loss < min(inner) * (1 - NEGLIGIBLE)


def _equal(value: float, other: float) -> bool:
    return value == other or _near(value, other)
