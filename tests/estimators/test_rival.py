"""effort="high": fine-tuning beside rounds, on the same split."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gradfeat import load
from gradfeat.errors import GradfeatWarning
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.fit.checkpoint import Checkpoint
from gradfeat.fit.rival import try_beside
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.splits import Split
from gradfeat.fit.stages import stages_of_fit
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.finetune import Recipe, Search
from gradfeat.solvers.schedule import Schedule

sys.path.insert(0, str(Path(__file__).parent))
from rounds_cases import Ending, at_the_point, classifier, data, loss_of, network, probe_loss, problem_of, run_of

GOOD, IDLE = (
    Recipe(Schedule("adamw", rate, 1, 1, 16, weight_decay=0.01, decay="cosine"), "probe", 4) for rate in (1e-2, 1e-9)
)


def beside(
    rates: tuple[float, ...], *recipes: Recipe, progress: Progress | None = None, problem: Problem | None = None
) -> tuple[Problem, Fit]:
    """Return the fit in rounds at some rates with fine-tuning by some recipes beside them."""
    problem = problem or problem_of(*data())
    plan = Plan(rounds=4, rates=rates, rival=True, finetuning=Search(recipes), seed=0)
    return problem, solve(problem, plan, progress or Progress(False))


def logits_of(model: GradientFeatureModel) -> Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(data(50, seed=1)[0]).double())


@pytest.mark.parametrize("recipes", [(GOOD,), (GOOD, IDLE)], ids=["one recipe", "two"])
def test_fine_tuning_is_taken_where_it_is_clearly_better(recipes: tuple[Recipe, ...]) -> None:
    problem, fit = beside((1e-9,), *recipes)
    rounds = fit.rounds
    assert rounds is not None
    assert rounds.chosen is rounds.trials[1]
    assert rounds.chosen.recipe.startswith("adamw 0.01, 4 epochs, head from the probe")
    assert rounds.chosen.recipe.endswith("the best of 2") == (len(recipes) == 2)
    assert f"fine-tuning ({rounds.chosen.recipe}): held-out loss {rounds.last_loss:.3f}" in str(rounds)
    # it is mode "finetune" by the same recipe on all samples, after the temperature
    alone = solve(problem, Plan(mode="finetune", finetuning=Search((GOOD,)), seed=0)).model
    expected = logits_of(alone) / rounds.chosen.temperature
    torch.testing.assert_close(logits_of(fit.model), expected, rtol=1e-8, atol=1e-8)
    assert rounds.more == solve(problem, Plan(mode="finetune", finetuning=Search((GOOD,)), seed=0)).history.loss


def test_rounds_are_kept_where_fine_tuning_is_no_better() -> None:
    _, fit = beside((1e-2,), IDLE)
    _, alone = beside((1e-2,), GOOD)
    problem = problem_of(*data())
    plain = solve(problem, Plan(rounds=4, rates=(1e-2,), seed=0))
    assert fit.rounds is not None
    assert [trial.recipe != "" for trial in fit.rounds.trials] == [False, True]
    assert fit.rounds.best == 0
    assert torch.equal(fit.model.w1, plain.model.w1)
    assert alone.rounds is not None  # whichever is better: neither is taken for less than the error
    one, two = alone.rounds.trials
    assert alone.rounds.best == 0 or two.loss < one.loss


def test_where_neither_moves_there_is_one_linearization() -> None:
    _, fit = beside((1e-9,), IDLE)
    assert fit.rounds is None
    assert any("no move of the network was better" in note for note in fit.notes)


def test_fine_tuning_has_not_seen_what_judges_it() -> None:
    """Labels of a half are held out, and turned round: what the other half teaches does not change, its loss does."""
    X, y = data()
    split = Split(torch.arange(200), torch.arange(200, 400))
    other = y.copy()
    other[split.validation] = 1 - other[split.validation]
    rounds = []
    for labels in (y, other):
        plan = Plan(rounds=4, rates=(1e-9,), rival=True, finetuning=Search((IDLE, GOOD)), seed=0)
        problem, run = problem_of(X, labels), run_of(split)
        found = search_rounds(problem, plan, run)
        assert found.judged is not None
        try_beside(problem, plan, found, run, found.judged)
        rounds.append(found)
    one, two = (found.trials[1] for found in rounds)
    assert one.training == two.training
    assert one.recipe == two.recipe
    assert one.loss < rounds[0].start
    assert two.loss > rounds[1].trials[0].loss


def test_high_effort_alone_has_a_rival() -> None:
    plans = {effort: classifier(effort=effort).plan(400) for effort in ("low", "auto", "high")}
    assert {effort: plan.rival for effort, plan in plans.items()} == {"low": False, "auto": False, "high": True}
    names = [stage.name for stage in stages_of_fit(plans["high"], 400)]
    assert names.count("fit") == 2
    assert names.count("trial 4") == 2
    X, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        high = classifier(rounds=2, epochs=1, effort="high").fit(X, y)
    assert [trial.recipe != "" for trial in high.rounds_.trials] == [False] * 4 + [True]
    assert "fine-tuning (adamw" in high.how_["rounds"]
    assert high.rounds_.passes > 4 * 2 * 0.8 + 6 * 0.64


def test_a_saved_model_knows_of_it(tmp_path: Path) -> None:
    X, y = data()
    high = classifier(rounds=2, epochs=1, effort="high").fit(X, y)
    loaded = load(high.save(tmp_path / "model.safetensors"), backbone=network())
    assert loaded.rounds_ == high.rounds_
    np.testing.assert_allclose(loaded.predict_proba(X), high.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize(("stage", "report"), [("trial 1", 6), ("trial 2", 3), ("fit", 2)])
def test_interruption_of_the_rival_keeps_the_best_of_the_rounds(stage: str, report: int) -> None:
    """The first trial of both has four passes, and so has the training by the best recipe."""
    problem, fit = beside((1e-2,), IDLE, replace(IDLE, head="zero"), progress=Ending(stage, report))
    assert fit.interrupted
    assert fit.rounds is not None
    assert fit.rounds.best == 0
    assert at_the_point(fit)
    [note] = [note for note in fit.notes if "interrupted" in note]
    assert (
        note == "full: interrupted in fine-tuning; the weights are those of the search, which left a part of the "
        "samples out"
    )
    assert loss_of(problem, fit) < probe_loss(problem)


def test_interruption_of_the_rival_on_all_samples_keeps_its_trial() -> None:
    problem, fit = beside((1e-9,), GOOD, progress=Ending("fit", 6))
    assert fit.interrupted
    assert fit.rounds is not None
    assert fit.rounds.best == 1
    assert at_the_point(fit)
    assert any("interrupted in fine-tuning on all samples" in note for note in fit.notes)
    assert loss_of(problem, fit) < probe_loss(problem)


@pytest.mark.parametrize(("stage", "report"), [("trial 2", 3), ("fit", 2), ("fit", 6)])
def test_a_checkpoint_goes_on_with_the_rival(tmp_path: Path, stage: str, report: int) -> None:
    """With the same result as without an interruption; mode "finetune" in the same folder has its own training."""
    rates, recipes = (1e-9,), (GOOD, IDLE)
    _, whole = beside(rates, *recipes)

    def kept() -> Problem:
        problem = problem_of(*data())
        checkpoint = Checkpoint(tmp_path, {"seed": 0}).of(problem.linearization.theta2, {"y": problem.y})
        return replace(problem, checkpoint=checkpoint)

    _, fit = beside(rates, *recipes, progress=Ending(stage, report), problem=kept())
    assert fit.interrupted
    assert any("the same fit goes on from its checkpoint" in note for note in fit.notes)
    _, again = beside(rates, *recipes, problem=kept())
    assert torch.equal(again.model.w1, whole.model.w1)
    assert not again.interrupted
    by_itself = Plan(mode="finetune", finetuning=Search((IDLE,)), seed=0)
    assert torch.equal(solve(kept(), by_itself).model.w1, solve(problem_of(*data()), by_itself).model.w1)
