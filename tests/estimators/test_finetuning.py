"""Fine-tuning against forty lines of ordinary torch, and what its search chooses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, linearize, load
from gradfeat.data import Inputs
from gradfeat.fit import Plan, Problem, prepare, solve
from gradfeat.fit.splits import hold_out
from gradfeat.losses import CrossEntropy
from gradfeat.metrics import log_loss
from gradfeat.solvers.finetune import Recipe, Search, honest_search
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.schedule import Schedule


def data(n: int = 120, seed: int = 0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Points whose class is the sign of a product, which no linear model of them tells; some labels are flipped."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    return X, np.where(rng.random(n) < noise, 1 - y, y)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()).double()


def problem(X: np.ndarray, y: np.ndarray) -> Problem:
    lin = linearize(network(), torch.from_numpy(X[:3]), ["2"])
    return prepare(lin, Inputs(X), torch.from_numpy(y), CrossEntropy(), penalty=0.1)


def by_hand(
    own: nn.Module,
    classifier: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    samples: tuple[np.ndarray, np.ndarray],
    rate: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """Train for five epochs of minibatches of 16."""
    generator, (x, labels) = plan.generator(), map(torch.from_numpy, samples)
    for _ in range(5):
        for batch in torch.randperm(len(x), generator=generator).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(own(x[batch])), labels[batch]).backward()
            optimizer.step()
            if rate is not None:
                rate.step()


@pytest.mark.parametrize("head", ["probe", "zero"])
def test_a_recipe_is_ordinary_training(head: str) -> None:
    X, y = data(50)
    template = Schedule("adamw", 0.02, 1, 1, 16, weight_decay=0.05, decay="cosine", warmup=0.1)
    recipe = Recipe(template, head, epochs=5)
    prepared, plan = problem(X, y), Plan(mode="finetune", finetuning=Search((recipe,)), seed=3)
    model = solve(prepared, plan).model

    own, classifier = network(), nn.Linear(8, 2).double()
    with torch.no_grad():
        for parameter, value in ((classifier.weight, prepared.probe.omega.T), (classifier.bias, prepared.probe.bias)):
            parameter.copy_(value if head == "probe" else torch.zeros_like(value))
    trained = [*own[2].parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.05)
    steps = 5 * 4  # minibatches of 16 of 50 samples
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: (i + 1) / 2 if i < 2 else 0.5 * (1 + math.cos(math.pi * (i - 2) / (steps - 2)))
    )
    by_hand(own, classifier, optimizer, plan, (X, y), rate)
    torch.testing.assert_close(model.w1.detach(), classifier.weight.detach().T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.b.detach(), classifier.bias.detach(), rtol=1e-9, atol=1e-9)
    expected = own.get_parameter("2.weight") - network().get_parameter("2.weight")
    torch.testing.assert_close(model.w2["2.weight"].detach(), expected.detach(), rtol=1e-9, atol=1e-9)


def test_the_search_beats_the_probe_and_says_what_it_chose() -> None:
    X, y = data(400)
    X_test, y_test = data(400, 1)
    tuned, probe = (
        GradientFeatureClassifier(network(), mode=mode, theta2="*", random_state=0, precision="float64").fit(X, y)
        for mode in ("finetune", "activation")
    )
    assert tuned.score(X_test, y_test) > probe.score(X_test, y_test) + 0.1
    found = tuned.selection_
    assert found is not None
    assert 9 <= len(found.scores) <= 11
    assert found.best in dict(found.scores)
    assert str(found.best) in tuned.how_["schedule"]
    assert found.seconds > 0


def test_outputs_are_divided_by_the_temperature_of_the_held_out_part() -> None:
    X, y = data(150, noise=0.25)
    X_test, y_test = data(600, 1, noise=0.25)
    search = Search(tuple(Recipe(recipe.schedule, recipe.head, 60) for recipe in honest_search().recipes[1::3]))
    prepared = problem(X, y)
    warm, plain = (
        solve(prepared, Plan(mode="finetune", seed=0, finetuning=Search(search.recipes, tempered=tempered)))
        for tempered in (True, False)
    )
    assert warm.selection is not None
    assert warm.selection.temperature > 1  # it has learnt noise by heart
    x = torch.from_numpy(X_test)
    with torch.no_grad():
        losses = [log_loss(y_test, fit.model(x).softmax(1).numpy()) for fit in (warm, plain)]
    assert losses[0] < losses[1]


def test_a_regression_and_few_samples() -> None:
    X, _ = data(60)
    tuned = GradientFeatureRegressor(network(), mode="finetune", epochs=30, precision="float64", random_state=0)
    tuned.fit(X, np.sin(X[:, 0]) + 5)
    assert tuned.score(X, np.sin(X[:, 0]) + 5) > 0.5
    assert tuned.selection_.temperature == 1
    assert {recipe.epochs for recipe, _ in tuned.selection_.scores} == {30}  # as given
    few = GradientFeatureClassifier(network(), mode="finetune", epochs=2, penalty=0.1, precision="float64")
    with pytest.warns(UserWarning, match="too few samples"):
        few.fit(X[:4], [0, 1, 0, 1])
    assert few.selection_ is None


def test_saved_and_loaded(tmp_path) -> None:
    X, y = data(60)
    backbone = network()
    tuned = GradientFeatureClassifier(backbone, mode="finetune", epochs=3, precision="float64", random_state=0).fit(
        X, y
    )
    again = load(tuned.save(tmp_path / "m.safetensors"), backbone=copy.deepcopy(backbone))
    assert again.selection_ == tuned.selection_
    np.testing.assert_array_equal(again.predict_proba(X), tuned.predict_proba(X))


def test_batch_norms_in_training_mode_are_ordinary_training(tmp_path) -> None:
    X, y = data(50)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()).double()
    lin = linearize(backbone.eval(), torch.from_numpy(X[:3]), ["0", "3"])
    template = Schedule("adamw", 0.02, 10_000, 1, 16, weight_decay=0.05)
    recipe = Recipe(template, "zero", epochs=5, batch_norms="training")
    prepared = prepare(lin, Inputs(X), torch.from_numpy(y), CrossEntropy(), penalty=0.1)
    plan = Plan(mode="finetune", finetuning=Search((recipe,)), seed=3)
    model = solve(prepared, plan).model

    own, classifier = copy.deepcopy(backbone).train(), nn.Linear(8, 2).double()
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.zero_()
    trained = [p for name, p in own.named_parameters() if name != "0.bias"]  # a batch norm takes that off again
    optimizer = torch.optim.AdamW([*trained, *classifier.parameters()], lr=0.02, weight_decay=0.05)
    by_hand(own, classifier, optimizer, plan, (X, y))
    x = torch.from_numpy(X)
    with torch.no_grad():
        torch.testing.assert_close(model(x), classifier(own.eval()(x)), rtol=1e-9, atol=1e-9)


def test_batch_norms_in_training_mode_are_tried_where_there_are_some() -> None:
    X, y = data(80)
    torch.manual_seed(0)
    with_norms = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()).double()
    for backbone, expected in ((with_norms, 1), (network(), 0)):
        tuned = GradientFeatureClassifier(
            backbone.eval(), mode="finetune", theta2="*", random_state=0, precision="float64"
        )
        scores = tuned.fit(X, y).selection_.scores
        assert [recipe.batch_norms for recipe, _ in scores].count("training") == expected


def test_the_probe_that_a_trial_starts_with_has_not_seen_what_judges_it() -> None:
    X, y = data(100)
    prepared = problem(X, y)
    idle = Recipe(Schedule("adamw", 1e-12, 10_000, 1, 32), "probe", epochs=1)
    plan = Plan(mode="finetune", finetuning=Search((idle, replace(idle, epochs=2))), seed=0)
    split = hold_out(prepared, 0)
    f, labels = prepared.store.features, torch.from_numpy(y)
    probe = fit_probe(f[split.train], labels[split.train], CrossEntropy(), penalty=0.1)
    logits = f[split.validation] @ probe.omega + probe.bias
    expected = nn.functional.cross_entropy(logits, labels[split.validation])
    selection = solve(prepared, plan).selection
    assert selection is not None
    assert [-score for _, score in selection.scores] == pytest.approx([expected.item()] * 2, rel=1e-6)
