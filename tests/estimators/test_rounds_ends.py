"""Rounds that end early: by Ctrl-C, astray on all samples, or since they diverge."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import gradfeat.fit.rounds
from gradfeat.errors import ConvergenceError
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.fit.steps import Trial
from gradfeat.progress import Progress

sys.path.insert(0, str(Path(__file__).parent))
from rounds_cases import Ending, at_the_point, data, loss_of, probe_loss, problem_of


def solved(progress: Progress, rates: Sequence[float] = (1e-3, 3e-3)) -> tuple[Problem, Fit]:
    problem = problem_of(*data())
    return problem, solve(problem, Plan(rounds=8, rates=tuple(rates), seed=0), progress)


@pytest.mark.parametrize(
    ("stage", "report", "trials"), [("trial 1", 5, [5]), ("trial 2", 1, [8, 1]), ("trial 2", 7, [8, 7])]
)
def test_interruption_of_the_search_keeps_the_best_so_far(stage: str, report: int, trials: list[int]) -> None:
    problem, fit = solved(Ending(stage, report))
    assert fit.interrupted
    assert fit.rounds is not None
    assert [len(trial.training) for trial in fit.rounds.trials] == trials
    assert fit.rounds.reason == f"interrupted in {stage}"
    [note] = [note for note in fit.notes if "interrupted" in note]
    assert f"interrupted in {stage}; the weights are those of the search, which left a part of the samples" in note
    assert at_the_point(fit)
    assert fit.rounds.more == []
    assert loss_of(problem, fit) < probe_loss(problem)
    if trials == [8, 1]:  # too early to be better
        assert fit.rounds.best == 0


def test_interruption_before_anything_is_better_than_the_probe_leaves_the_probe() -> None:
    problem, fit = solved(Ending("trial 1", 1), rates=(1e-9, 1e-3))
    assert fit.interrupted
    assert fit.rounds is None
    [note] = fit.notes
    assert note.endswith("no move of the network was better than the probe so far: the model is the probe")
    assert loss_of(problem, fit) == pytest.approx(probe_loss(problem))


@pytest.mark.parametrize("report", [1, 3])
def test_interruption_of_the_passes_over_all_samples_keeps_those_that_are_done(report: int) -> None:
    problem, fit = solved(Ending("fit", report))
    assert fit.interrupted
    assert fit.rounds is not None
    assert len(fit.rounds.more) == report
    assert any(f"interrupted after {report} passes over all samples" in note for note in fit.notes)
    assert not at_the_point(fit)
    assert loss_of(problem, fit) < probe_loss(problem)


def test_passes_over_all_samples_that_diverge_leave_what_the_search_found() -> None:
    problem, fit = solved(Ending("fit", 2, ConvergenceError("the gradient is not finite")))
    assert any("the rounds went astray on all samples: the gradient is not finite" in note for note in fit.notes)
    assert at_the_point(fit)
    assert not fit.interrupted
    assert loss_of(problem, fit) < probe_loss(problem)


def test_a_loss_that_rises_where_it_was_held_out_leaves_what_the_search_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradfeat.fit.rounds, "further", lambda trial: (3.0, 2))
    problem, fit = solved(Progress(False))
    assert any("astray on all samples: the loss rose where it was held out before" in note for note in fit.notes)
    assert at_the_point(fit)
    assert loss_of(problem, fit) < probe_loss(problem)


def test_a_rate_that_diverges_is_not_chosen() -> None:
    _, plain = solved(Progress(False), rates=[1e-3])
    for rates, best in (([1e-3, 1e300], 0), ([1e300, 1e-3], 1)):
        _, fit = solved(Progress(False), rates=rates)
        assert fit.rounds is not None
        assert fit.rounds.best == best
        assert [trial.loss == np.inf for trial in fit.rounds.trials] == [rate > 1 for rate in rates]
        assert torch.equal(fit.model.w1, plain.model.w1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, fit = solved(Progress(False), rates=[1e300])
    assert fit.rounds is None
    assert any("no move of the network was better" in note for note in fit.notes)


@pytest.mark.parametrize(("stage", "best"), [("trial 1", 1), ("trial 2", 0)])
def test_a_rate_that_diverges_late_is_not_chosen_for_what_it_was_before(stage: str, best: int) -> None:
    _, fit = solved(Ending(stage, 7, ConvergenceError("the loss became inf")))
    assert fit.rounds is not None
    assert fit.rounds.best == best
    assert fit.rounds.trials[1 - best] == Trial((1e-3, 3e-3)[1 - best], 8, np.inf)
    assert np.isfinite(fit.rounds.last_loss)
    assert json.loads(json.dumps(fit.rounds.trials[1 - best].to_dict(), allow_nan=False))["loss"] is None
