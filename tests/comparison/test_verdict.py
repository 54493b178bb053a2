from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from torch import nn

from gradfeat import GradientFeatureClassifier, compare
from gradfeat.comparison.edges import choice_edge, edge_note, probe_edge, rate_edge
from gradfeat.comparison.verdict import paired, verdict_of, verdict_of_choice, verdict_of_fit
from gradfeat.fit.penalties import GRID, Choice, Tried
from gradfeat.fit.steps import Rounds, Trial
from gradfeat.solvers.finetune import Selection, honest_search
from gradfeat.solvers.probe import GRID as PROBE_GRID
from gradfeat.solvers.probe import Probe


def right(share: float, n: int) -> np.ndarray:
    """The first samples are right."""
    return (np.arange(n) < round(share * n)).astype(float)


def judged(n: int = 1000, **accuracies: float) -> Any:
    """A verdict on models of which the better ones are right wherever the worse ones are."""
    samples = {mode: {"accuracy": right(a, n), "log_loss": 1 - right(a, n) / 2} for mode, a in accuracies.items()}
    return verdict_of(accuracies, "accuracy", samples)


# ---- pairs --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=3, max_size=30))
def test_losses_are_compared_by_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, others = np.array(pairs).T
    found = paired("full", "activation", "log_loss", ours, others)
    gain = others - ours
    assert found.value == pytest.approx(gain.mean())
    assert found.error == pytest.approx(gain.std(ddof=1) / math.sqrt(len(gain)))
    if gain.std() > 1e-9:
        assert found.chance == pytest.approx(ttest_rel(others, ours).pvalue)
    back = paired("activation", "full", "log_loss", others, ours)
    assert (back.value, back.error, back.chance) == pytest.approx((-found.value, found.error, found.chance))


def test_accuracies_are_compared_by_mcnemars_test() -> None:
    ours = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0.0])
    others = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0.0])
    found = paired("full", "activation", "accuracy", ours, others)
    # of 7 samples on which they differ 6 are for one: as likely as 6, 7, 0 or 1 heads of 7
    assert found.chance == pytest.approx(2 * (7 + 1) / 2**7)
    assert str(found).startswith("55.6 ± ")
    same = paired("full", "activation", "accuracy", ours, ours)
    assert (same.value, same.chance) == (0, 1)


def test_samples_that_do_not_count_are_left_out_of_a_pair() -> None:
    found = paired("a", "b", "log_loss", np.array([1.0, np.nan, 3.0]), np.array([2.0, 5.0, 5.0]))
    assert (found.n, found.value) == (2, 1.5)
    alone = paired("a", "b", "squared_error", np.array([1.0]), np.array([2.0]))
    assert (alone.value, alone.chance) == (1, 1)


# ---- the verdict --------------------------------------------------------------------------------


def test_a_gain_beyond_chance_is_shipped() -> None:
    found = judged(activation=0.80, gradient=0.70, full=0.85)
    assert (found.best, found.ship) == ("full", "full")
    assert (
        "full is 5.0 ± 0.7 points above activation (the probe) on 1,000 test samples: likely a real gain" in found.text
    )
    assert "looks better than it is" not in found.text
    assert "cannot be told" not in found.text


def test_a_gain_that_chance_explains_is_not() -> None:
    found = judged(n=60, activation=0.55, full=0.55 + 1 / 60)
    assert (found.best, found.ship) == ("full", "activation")
    assert "no difference that these 60 test samples can show" in found.text
    assert "Ship activation (the probe): it is simpler and faster" in found.text


def test_among_equals_the_simplest_is_best() -> None:
    found = judged(finetune=0.8, full=0.8, activation=0.8)
    assert (found.best, found.ship) == ("activation", "activation")
    assert "No model has a better accuracy than activation (the probe) on these" in found.text
    alone = judged(full=0.7, activation=0.8)
    assert "Activation (the probe) has the best accuracy on these" in alone.text


def test_the_best_of_many_is_called_flattered() -> None:
    # 6 samples for it and none against it: a chance of 1/32, which three models have three times
    found = judged(n=100, activation=0.80, gradient=0.80, full=0.86, finetune=0.79)
    assert found.ship == "full"
    assert "as the best of 3 that were tried on the same samples it looks better than it is" in found.text
    alone = judged(n=100, activation=0.80, full=0.86)
    assert alone.ship == "full"
    assert "looks better" not in alone.text


def test_a_rival_that_cannot_be_told_from_the_best_is_named() -> None:
    found = judged(activation=0.70, full=0.849, finetune=0.85)
    assert found.ship == "finetune"
    assert "full cannot be told from it on these samples" in found.text


def test_better_probabilities_alone_are_said() -> None:
    rng = np.random.default_rng(0)
    same, loss = right(0.5, 200), rng.random(200)
    samples = {
        "activation": {"accuracy": same, "log_loss": loss},
        "gradient": {"accuracy": same, "log_loss": loss - 0.2 + 0.1 * rng.random(200)},
    }
    found = verdict_of({"activation": 0.5, "gradient": 0.5}, "accuracy", samples)
    assert found.ship == "activation"
    assert "If you use its probabilities, take gradient: its log loss lower by 0.1" in found.text


def test_without_the_probe_the_simplest_of_the_others_is_what_they_are_compared_with() -> None:
    found = judged(finetune=0.9, gradient=0.8)
    assert {d.than for d in found.differences} == {"gradient"}
    assert found.ship == "finetune"


def test_regression_and_several_labels_have_their_own_pairs() -> None:
    rng = np.random.default_rng(0)
    errors = rng.random(100)
    samples = {"activation": {"squared_error": errors}, "full": {"squared_error": 0.5 * errors}}
    found = verdict_of({"activation": 0.5, "full": 0.75}, "R²", samples)
    assert found.ship == "full"
    assert "full has the best R², 0.75 (0.5 of activation (the probe)), and a squared error lower by 0.2" in found.text
    assert "mean of the targets" not in found.text
    found = verdict_of({"activation": -0.5, "full": -0.1}, "R²", samples)
    assert found.text.endswith("But no model is better than the mean of the targets (R² below 0).")
    # the mean average precision is higher, and the samples' loss is not
    samples = {"activation": {"log_loss": errors}, "full": {"log_loss": errors + 0.1}}
    found = verdict_of({"activation": 0.5, "full": 0.51}, "mAP", samples)
    assert (found.best, found.ship) == ("full", "activation")
    assert "a log loss higher by 0.1" in found.text
    assert "the two disagree" in found.text
    assert "no difference" not in found.text


def test_one_model_has_no_rival() -> None:
    found = judged(full=0.9)
    assert (found.best, found.ship, found.text) == (None, "full", "")


X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] + 0.3 * X[:, 1] ** 2 > 0).astype(int)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))


def test_compare_ends_with_a_verdict_of_its_own_predictions() -> None:
    found = compare(
        _network(), X[:40], Y[:40], X[40:], Y[40:], modes=["activation", "full"], penalty=0.01, random_state=0
    )
    assert found.verdict is not None
    correct = {mode: estimator.predict(X[40:]) == Y[40:] for mode, estimator in found.estimators.items()}
    (difference,) = [d for d in found.verdict.differences if d.metric == "accuracy"]
    assert difference.n == 20
    assert difference.value == pytest.approx(correct["full"].mean() - correct["activation"].mean())
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["verdict"]["ship"] == found.verdict.ship


# ---- of a choice --------------------------------------------------------------------------------


MIDDLE = GRID.lambda2_units[5]


def choice(**changes: Any) -> Choice:
    """A choice whose grid is worked out: the least loss is where it says."""
    path = [Tried(penalty, penalty, math.inf, 1.0) for penalty in GRID.omega]
    path += [Tried(1.0, lambda1, units, 0.9) for lambda1 in GRID.lambda1 for units in GRID.lambda2_units]
    return replace(Choice(1.0, 1.0, MIDDLE, path, 0.0), **changes)


def test_the_gain_of_a_choice_is_judged_with_its_error() -> None:
    sure = verdict_of_choice(choice(gain=0.1, gain_error=0.02, n_validation=200))
    assert sure.ship == "full"
    assert "lower by 0.1 ± 0.02 on the same 200 samples: likely a real gain" in sure.text
    unsure = verdict_of_choice(choice(gain=0.1, gain_error=0.08, n_validation=200))
    assert unsure.ship == "activation"
    assert "no difference that these samples can show" in unsure.text
    unknown = verdict_of_choice(choice())
    assert "0.9 with the gradient term and 1 without" in unknown.text
    none = verdict_of_choice(
        choice(lambda1=250.0, lambda2_units=math.inf)
    )  # the probe's own penalty may be another one
    assert none.ship == "activation"
    assert "the model is the probe. --mode activation --penalty 250 gives the same" in none.text
    gradient = choice(mode="gradient", path=[Tried(1.0, 1.0, 1.0, 0.5)])
    assert verdict_of_choice(gradient).text == ""


def test_the_verdict_of_rounds_is_that_of_the_best_trial_and_there_is_none_where_nothing_moved() -> None:
    point: Any = None  # which is not looked at
    rounds = Rounds(2.0, point, [Trial(1e-3, 8, 0.5), Trial(3e-3, 8, 0.4)], best=0)
    moved = verdict_of_fit(None, rounds)
    assert moved is not None
    assert moved.ship == "full"
    assert "the loss went from 2, the probe's, to 0.5 on one held-out part" in moved.text
    stayed = Rounds(2.0, point, [Trial(1e-3, 8, 2.5)])
    assert verdict_of_fit(None, stayed) is None
    once = choice(gain=0.1, gain_error=0.08, n_validation=200)
    assert verdict_of_fit(once, stayed) == verdict_of_fit(once) == verdict_of_choice(once)


def test_a_choice_knows_the_gain_of_the_gradient_term_sample_by_sample(tmp_path: Any) -> None:
    weight = np.ones(60)
    for folder in (None, tmp_path, tmp_path):  # and one that goes on from what is kept
        fitted = GradientFeatureClassifier(_network(), random_state=0, metric="plain", checkpoint=folder)
        found = fitted.fit(X, Y, sample_weight=weight).choice_
        assert found is not None
        assert (found.n_validation, found.gain is None) == (60, False)
        alone = min(tried.loss for tried in found.path if not tried.gradients)
        best = min(tried.loss for tried in found.path if tried.gradients)
        # the path has means of the parts' means, which are of 12 samples each
        assert found.gain == pytest.approx(alone - best, abs=1e-6)
        assert found.gain_error is not None
        assert found.gain_error > 0


# ---- edges --------------------------------------------------------------------------------------


def probe(place: int, tried: int) -> Probe:
    path = [(value, 1.0, 0.1) for value in PROBE_GRID[:tried]]
    return Probe(torch.zeros(1, 1), torch.zeros(1), PROBE_GRID[place], path, True, 0.0, 1)


def test_a_probe_penalty_at_the_edge_is_said() -> None:
    last = len(PROBE_GRID) - 1
    assert "heaviest" in probe_edge(probe(0, last + 1))
    assert "lightest" in probe_edge(probe(last, last + 1))
    assert probe_edge(probe(3, last + 1)) == ""
    assert probe_edge(probe(5, 6)) == ""  # the path ended since the loss rose
    assert probe_edge(replace(probe(0, 1), path=[])) == ""  # it was given


def test_penalties_at_the_edge_are_said_where_the_loss_still_falls() -> None:
    best = replace(probe(3, 13), penalty=1.0)

    def at(lambda1: float, units: float, loss: float = 0.8) -> str:
        tried = [
            point
            for point in choice().path
            if (point.lambda1, point.lambda2_units) != (lambda1, units) or not point.gradients
        ]
        path = [*tried, Tried(1.0, lambda1, units, loss)]
        return choice_edge(choice(lambda1=lambda1, lambda2_units=units, path=path), best, 100)

    heavy, light = GRID.lambda2_units[0], GRID.lambda2_units[-1]
    assert at(1.0, MIDDLE) == ""
    assert "λ₂, 100 units, is the heaviest" in at(1.0, heavy)
    assert "λ₂, 0.001 units, is the lightest" in at(1.0, light)
    assert "λ₁, 0.3, is the lightest" in at(GRID.lambda1[0], MIDDLE)
    assert "λ₁, 100, is the heaviest" in at(GRID.lambda1[-1], MIDDLE)
    both = at(GRID.lambda1[0], light)
    assert "λ₁" in both
    assert "λ₂" in both
    assert at(GRID.lambda1[0], MIDDLE, loss=0.8999) == ""  # level
    assert choice_edge(None, best, 100) == ""


def test_a_learning_rate_at_the_edge_is_said() -> None:
    recipes = honest_search().recipes
    scores = [(recipe, 0.0) for recipe in recipes]
    said = [rate_edge(Selection(recipe, scores)) for recipe in recipes]
    words = ["smallest" if "smallest" in text else "largest" if "largest" in text else "" for text in said]
    assert words == ["", "largest", "smallest"] * 2
    assert rate_edge(Selection(recipes[0], scores[:1])) == ""
    assert rate_edge(None) == ""


def test_one_note_of_all_edges() -> None:
    recipes = honest_search().recipes
    estimator = SimpleNamespace(
        rounds_=None,
        probe_=probe(0, 13),
        choice_=None,
        selection_=Selection(recipes[2], [(recipe, 0.0) for recipe in recipes]),
    )
    note = edge_note(estimator, 10)
    assert "the probe's penalty" in note
    assert "; fine-tuning's learning rate" in note
