"""Whether a choice lies at the edge of what was tried, where something better may lie beyond, and what to do about it.

An edge counts only where the held-out loss still falls towards it.
"""

from __future__ import annotations

import math
from typing import Any

from gradfeat.fit.selection import GRID, HEADS, HEAVIER, NEGLIGIBLE, Choice, Tried, lightest
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
    light, heavy = lightest(probe), "the heaviest that was tried"
    if not choice.gradients:
        if _near(choice.w1, light * HEAVIER[-1]) and _falls(choice, w1=light * HEAVIER[-2]):
            return f"the penalty of the probe alone, {choice.w1:.3g}, is {heavy}: --penalty {10 * choice.w1:.2g}"
        return ""
    found = []
    if _near(choice.w2, GRID[0]) and _falls(choice, w2=GRID[1]):
        found.append(
            f"λ₂, {choice.w2:.3g} units, is {heavy}: the gradient term hardly counts, and --mode activation is nearly "
            "the same"
        )
    given = choice.penalties(n)
    by_hand = f" (the chosen ones are --penalty {given.w1:.2g},{given.w2:.2g} --metric {choice.metric})"
    if _near(choice.w2, GRID[-1]) and _falls(choice, w2=GRID[-2]):
        found.append(
            f"λ₂, {choice.w2:.3g} units, is the lightest that was tried: give a lighter one with --penalty λ₁,λ₂"
            f"{by_hand}"
        )
    if choice.mode == "full":
        for edge, inner, word in ((HEADS[0], HEADS[1], "lightest"), (HEADS[-1], HEADS[-2], "heaviest")):
            if _near(choice.w1, light * edge) and _falls(choice, w1=light * inner):
                way = "lighter" if word == "lightest" else "heavier"
                found.append(
                    f"λ₁, {choice.w1:.3g}, is the {word} that was tried: give a {way} one with --penalty λ₁,λ₂{by_hand}"
                )
    return "; ".join(found)


def rate_edge(selection: Selection | None) -> str:
    """Say whether fine-tuning's learning rate is the largest or smallest that its optimizer was tried with."""
    if selection is None:
        return ""
    best = selection.best
    rates = [tried.learning_rate for tried, _ in selection.scores if tried.optimizer == best.optimizer]
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


def _falls(choice: Choice, *, w1: float | None = None, w2: float | None = None) -> bool:
    """Whether the least loss is clearly below that of the next place inwards, all else being the same."""
    to_w1, to_w2 = choice.w1 if w1 is None else w1, choice.w2 if w2 is None else w2

    def same(tried: Tried) -> bool:
        omega = to_w1 if not math.isfinite(choice.w2) else choice.omega
        return _near(tried.omega, omega) and _near(tried.w1, to_w1) and _equal(tried.w2, to_w2)

    inner = [tried.loss for tried in choice.path if same(tried)]
    return bool(inner) and choice.loss < min(inner) * (1 - NEGLIGIBLE)


def _equal(value: float, other: float) -> bool:
    return value == other or _near(value, other)
