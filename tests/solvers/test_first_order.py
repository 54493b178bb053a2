from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import scipy.stats
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, Squared
from gradfeat.solvers.finetune import Recipe, Search, Trial, honest_search, judged, paired, select
from gradfeat.solvers.first_order import History, Resuming, State, train
from gradfeat.solvers.schedule import PAPER, PAPER_FINETUNE_SGD, PUBLISHED_CODE, Schedule, paper_schedule, voc_schedule

A = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
SCHEDULE = Schedule("adam", 0.1, 4, 12, 8, weight_decay=0.01, betas=(0.5, 0.999))


def quadratic(parameter: nn.Parameter, indices: Tensor) -> Tensor:
    return (A[indices] @ parameter - 1).square().mean()


def run(schedule: Schedule = SCHEDULE, seed: int = 0, step=quadratic, **more: object) -> tuple[nn.Parameter, History]:  # type: ignore[no-untyped-def]
    parameter = nn.Parameter(torch.zeros(3))
    generator = torch.Generator().manual_seed(seed)
    history = train([parameter], lambda i: step(parameter, i), 20, schedule, generator=generator, **more)
    return parameter, history


def test_equals_a_loop_written_by_hand() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter], lr=0.1, betas=(0.5, 0.999), weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    iteration = 0
    for _ in range(4):  # 3 minibatches of 8, 8 and 4 an epoch
        for indices in torch.randperm(20, generator=generator).split(8):
            optimizer.param_groups[0]["lr"] = 0.1 / 2 ** (iteration // 4)
            optimizer.zero_grad()
            quadratic(parameter, indices).backward()
            optimizer.step()
            iteration += 1
    trained, history = run()
    assert torch.equal(trained, parameter)
    assert len(history.loss) == 4
    assert history.passes == pytest.approx(4.0)
    assert history.stopped == "finished"


def test_same_seed_same_weights() -> None:
    assert torch.equal(run()[0], run()[0])
    assert not torch.equal(run()[0], run(seed=1)[0])


def test_clipping_bounds_a_step() -> None:
    clipped = Schedule("sgd", 1.0, 10, 1, 20, clip_norm=0.25)
    assert run(clipped)[0].detach().norm() == pytest.approx(0.25, rel=1e-4)


def test_interruption_leaves_the_last_finished_epoch() -> None:
    after: dict[int, Tensor] = {}
    calls = {"n": 0}
    seen: list[nn.Parameter] = []

    def step(parameter: nn.Parameter, indices: Tensor) -> Tensor:
        seen.append(parameter)
        calls["n"] += 1
        if calls["n"] == 8:  # in the middle of the third epoch
            raise KeyboardInterrupt
        return quadratic(parameter, indices)

    def on_epoch(epoch: int, history: History) -> None:
        after[epoch] = seen[-1].detach().clone()

    parameter, history = run(step=step, on_epoch=on_epoch)
    assert history.stopped == "interrupted"
    assert sorted(after) == [1, 2]
    assert len(history.loss) == history.passes == 2
    assert torch.equal(parameter, after[2])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_training_that_goes_on_ends_as_one_that_was_not_interrupted(optimizer: str) -> None:
    schedule = replace(SCHEDULE, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    whole, history = run(schedule)
    kept: list[State] = []
    short = replace(schedule, iterations=6)  # two epochs of three minibatches; after the last one the state is kept
    run(short, resuming=Resuming(keep=lambda state: kept.append(deepcopy(state))))
    (state,) = kept
    assert state.iteration == 6
    parameter = nn.Parameter(torch.full((3,), 7.0))  # which the state knows better
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        torch.randperm(20, generator=generator)
    resumed = train(
        [parameter], lambda i: quadratic(parameter, i), 20, schedule, generator=generator, resuming=Resuming(state)
    )
    assert torch.equal(parameter, whole)
    assert resumed.loss == history.loss
    assert resumed.passes == pytest.approx(history.passes)


def test_divergence_is_said_and_undone() -> None:
    diverging = Schedule("sgd", 1e20, 100, 30, 20)
    parameter = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConvergenceError, match="epoch"):
        train([parameter], lambda i: quadratic(parameter, i), 20, diverging, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(parameter).all()


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no samples"):
        train([], lambda i: A.sum(), 0, SCHEDULE, generator=torch.Generator())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optimizer": "rmsprop"}, "optimizer must be one of"),
        ({"momentum": 0.9}, "momentum is SGD's"),
        ({"learning_rate": 0.0, "weight_decay": -1.0}, "learning_rate must be above 0; weight_decay must not"),
        ({"batch_size": 0}, "batch_size"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_a_schedule_that_cannot_be_meant(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        replace(SCHEDULE, **changed)  # type: ignore[arg-type]


def test_schedules_of_the_paper() -> None:
    assert (PAPER.optimizer, PAPER.learning_rate, PAPER.halve_every, PAPER.iterations) == ("adam", 1e-3, 20_000, 80_000)
    assert (PAPER.batch_size, PAPER.betas, PAPER.weight_decay) == (64, (0.5, 0.999), 1e-6)
    assert (PAPER_FINETUNE_SGD.optimizer, PAPER_FINETUNE_SGD.momentum, PAPER_FINETUNE_SGD.weight_decay) == (
        "sgd",
        0.9,
        5e-5,
    )
    code = PUBLISHED_CODE
    assert (code.learning_rate, code.momentum, code.batch_size, code.iterations) == (0.1, 0.9, 128, 50_000)
    assert (code.halve_every, code.weight_decay, code.clip_norm) == (10_000, 5e-5, 10.0)
    voc = voc_schedule(5_011)  # 79 minibatches an epoch
    assert (voc.iterations, voc.halve_every, voc.learning_rate) == (50 * 79, 20 * 79, 1e-3)
    assert [PAPER.at(i) for i in (0, 19_999, 20_000, 79_999)] == [1e-3, 1e-3, 5e-4, 1.25e-4]


def test_schedule_for_a_data_set() -> None:
    assert paper_schedule("adam", 5_011) == voc_schedule(5_011)
    assert paper_schedule("adam", 10**6) == PAPER
    short = paper_schedule("adam", 640, epochs=10)
    assert (short.iterations, short.halve_every, short.n_epochs(640)) == (100, 40, 10)
    sgd = paper_schedule("sgd", 640)
    assert (sgd.optimizer, sgd.momentum, sgd.clip_norm) == ("sgd", 0.9, 10.0)
    assert paper_schedule("sgd", 640, clip_norm=1.0).clip_norm == 1.0
    with pytest.raises(ConfigurationError, match="Did you mean adam"):
        paper_schedule("adan", 640)


def test_warm_up_and_cosine() -> None:
    schedule = replace(SCHEDULE, optimizer="adamw", learning_rate=2.0, iterations=100, decay="cosine", warmup=0.05)
    assert [schedule.at(i) for i in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    later = [1 + math.cos(math.pi * i / 95) for i in range(95)]
    assert [schedule.at(5 + i) for i in range(95)] == pytest.approx(later)
    optimizer = schedule.make([torch.nn.Parameter(torch.zeros(1))])
    assert (type(optimizer), optimizer.defaults["weight_decay"]) == (torch.optim.AdamW, 0.01)
    with pytest.raises(ConfigurationError, match="decay must be one of halved, cosine"):
        replace(SCHEDULE, decay="linear")
    with pytest.raises(ConfigurationError, match="warmup"):
        replace(SCHEDULE, warmup=1.0)


def test_a_search_tries_rates_and_heads_then_lengths_and_decay() -> None:
    tried: list[Recipe] = []

    def run(recipe: Recipe) -> Trial:
        tried.append(recipe)
        rate = recipe.schedule.learning_rate
        if rate == 3e-3:
            raise ConvergenceError("diverged")
        return Trial(math.nan if rate == 3e-4 else 1 / (recipe.epochs or 1) + (recipe.head == "probe"), 2.0)

    chosen = select(honest_search(), run)
    rates = [recipe.schedule.learning_rate for recipe in tried]
    assert rates == [1e-3, 3e-3, 3e-4, 1e-3, 3e-3, 3e-4, 1e-3, 1e-3, 1e-3, 1e-3]
    assert [recipe.head for recipe in tried] == ["zero"] * 3 + ["probe"] * 3 + ["zero"] * 4
    assert [recipe.epochs for recipe in tried] == [25] * 6 + [12, 50, 25, 25]
    assert [recipe.schedule.weight_decay for recipe in tried] == [0.01] * 8 + [0.1, 0.01]
    assert [recipe.batch_norms for recipe in tried] == ["evaluation"] * 9 + ["training"]
    assert (chosen.best, chosen.temperature) == (tried[7], 2.0)
    assert [value for _, value in chosen.scores].count(-math.inf) == 4
    assert str(chosen) == "adamw 0.001, 50 epochs, head from zero, temperature 2.00, the best of 10"
    with pytest.raises(ConvergenceError, match="every one"):
        select(honest_search(), lambda recipe: Trial(math.inf * 0))
    with pytest.raises(ConfigurationError, match="at least one"):
        select(Search(()), run)


def test_rates_go_up_while_the_largest_is_the_best() -> None:
    def rates(best: float) -> list[float]:
        search = replace(honest_search(fixed=True), recipes=honest_search().recipes[:3])
        chosen = select(search, lambda recipe: Trial(abs(math.log(recipe.schedule.learning_rate / best))))
        return [recipe.schedule.learning_rate for recipe, _ in chosen.scores]

    first = [1e-3, 3e-3, 3e-4]
    assert rates(1e-3) == first
    assert rates(9e-3) == [*first, 9e-3, 3e-2]
    assert rates(1.0) == [*first, 9e-3, 3e-2]  # two more at most
    assert rates(1.2e-4) == first  # no smaller ones


@pytest.mark.parametrize("loss", [CrossEntropy(), MultiLabelLogistic()], ids=lambda loss: loss.name)
def test_a_trial_is_judged_by_its_best_temperature(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(400, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(400, generator=generator, dtype=torch.float64)
    probability = loss.predict_proba(logits / 2.5)  # so that 2.5 is about the best
    if isinstance(loss, CrossEntropy):
        y = torch.multinomial(probability, 1, generator=generator)[:, 0]
    else:
        y = torch.bernoulli(probability, generator=generator)
    found = judged(logits, y, loss, weight, tempered=True)
    exact = minimize_scalar(lambda t: float(loss.value(logits / t, y, weight)), bounds=(0.1, 10), method="bounded")
    assert exact.fun <= found.loss <= exact.fun * (1 + 1e-3)
    assert found.temperature == pytest.approx(exact.x, rel=0.06)
    assert found.loss < judged(logits, y, loss, weight, tempered=False).loss


def test_the_fewest_errors_win_and_among_equals_the_least_loss() -> None:
    trials = {3e-4: Trial(0.2, 1.0, 0.3), 1e-3: Trial(0.9, 1.0, 0.1), 3e-3: Trial(0.5, 1.0, 0.1)}
    search = replace(honest_search(fixed=True), recipes=honest_search().recipes[:3], wider=0)
    chosen = select(search, lambda recipe: trials[recipe.schedule.learning_rate])
    assert chosen.best.schedule.learning_rate == 3e-3
    logits, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 0, 1])
    assert judged(logits, y, CrossEntropy(), None, tempered=True).errors == pytest.approx(2 / 3)
    assert judged(logits, y, CrossEntropy(), torch.tensor([1.0, 0.0, 3.0]), tempered=False).errors == 0.75


def test_the_usual_recipe_is_kept_where_it_is_not_clearly_worse() -> None:
    y = torch.arange(200) % 2
    usual, best = y.clone(), y.clone()
    usual[:10], best[6:14] = 1 - usual[:10], 1 - best[6:14]  # ten errors and eight, four of them in the same samples
    recipes = honest_search().recipes

    def chosen(*classes: Tensor) -> Recipe:
        search = Search(recipes[: len(classes)])
        trials = iter(
            [judged(functional.one_hot(one).double(), y, CrossEntropy(), None, tempered=True) for one in classes]
        )
        return select(search, lambda recipe: next(trials)).best

    difference = (usual != y).double() - (best != y).double()
    assert 0 < difference.mean() < difference.std() / 200**0.5
    assert chosen(usual, best) == recipes[0]
    assert chosen(best, usual) == recipes[0]
    clearly, nearly = y.clone(), y.clone()
    clearly[:1], nearly[:2] = 1 - clearly[:1], 1 - nearly[:2]
    assert chosen(usual, clearly) == recipes[1]
    assert chosen(usual, nearly, clearly) == recipes[2]  # not the first that is as good: the best of all


def test_the_error_of_a_paired_difference_is_that_of_a_mean() -> None:
    difference = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, error = paired(difference, torch.full((50,), 1 / 50, dtype=torch.float64))
    assert mean == pytest.approx(difference.mean().item())
    assert error == pytest.approx(scipy.stats.sem(difference.numpy(), ddof=0))
    twice = torch.cat([difference, difference[:10]])  # a weight of two is as a sample that is there twice
    share = torch.ones(50, dtype=torch.float64)
    share[:10] = 2
    assert paired(difference, share / share.sum())[0] == pytest.approx(twice.mean().item())


def test_a_regression_has_no_temperature() -> None:
    logits, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]])
    assert judged(logits, y, Squared(), None, tempered=True) == Trial(0.5, 1.0)
