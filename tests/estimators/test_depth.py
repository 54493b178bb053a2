"""theta2="search": the depth of θ₂ by held-out training data."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import gradfeat
from gradfeat import GradientFeatureClassifier, compare
from gradfeat.backbones import resolve
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, GradfeatWarning, Theta2Error
from gradfeat.fit import Plan, Problem, preparation, prepare, solve
from gradfeat.fit.choose import choose
from gradfeat.fit.depth import SHORT, WORTH
from gradfeat.fit.linearize import linearize_backbone
from gradfeat.fit.penalties import Choice, best_omega_penalty
from gradfeat.fit.run import Run
from gradfeat.losses import CrossEntropy


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(6))).eval()


def _data(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Labels by a network that differs from the pre-trained one in its lower blocks."""
    X = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    target = _network()
    with torch.no_grad():
        for block in list(target)[1:3]:
            block.layer.weight += 0.8 * torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
        y = target(X)[:, :3].argmax(1)
    return X.numpy(), y.numpy()


PLAN = Plan(seed=0)


def _problem(theta2: str | list[str]) -> Problem:
    """Return the problem that the estimator makes of a θ₂ that is named."""
    X, y = _data()
    lin = linearize_backbone(resolve(_network()), torch.from_numpy(X[:3]), theta2)
    return prepare(lin, Inputs(X), torch.from_numpy(y), CrossEntropy(), random_state=0)


def _choice(problem: Problem) -> Choice:
    choice, _ = choose(problem, PLAN, Run.of(problem, PLAN), SHORT)
    assert choice is not None
    return choice


def _fit(**options: Any) -> GradientFeatureClassifier:
    X, y = _data()
    return GradientFeatureClassifier(_network(), **{"theta2": "search", "random_state": 0, **options}).fit(X, y)


def test_depths_double_from_the_top_and_one_that_is_worth_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    fit = preparation.fit_probe
    monkeypatch.setattr(
        preparation, "fit_probe", lambda f, *rest, **how: (fits.append(len(f)), fit(f, *rest, **how))[1]
    )
    found = _fit()
    assert fits == [len(_data()[1])]  # f(x), and so the probe, is the same at all depths
    depths = found.depths_
    fitted = next(depth for depth in depths if list(depth.modules) == found.modules_)
    assert fitted.parameters == sum(value.numel() for value in found.w2_.values())
    blocks = [f"{i}" for i in range(5, -1, -1)]
    assert [list(depth.modules) for depth in depths] == [blocks[:k] for k in (1, 2, 4, 6)][: len(depths)]
    assert len(depths) >= 2
    assert depths[1].loss < depths[0].loss  # the labels' network differs further down
    taken = depths[0]
    for depth in depths[1:]:  # a deeper one is better by a percent than the one that was taken before
        taken = depth if depth.loss < taken.loss * (1 - WORTH) else taken
    assert fitted is taken
    assert [depth.parameters for depth in depths] == [42 * len(depth.modules) for depth in depths]
    assert all(depth.loss < min(d.loss for d in depths[:i]) for i, depth in enumerate(depths[1:-1], 1))


def test_rounds_are_those_of_the_depth_by_name() -> None:
    X, _ = _data()
    found = _fit(rounds="auto")
    named = _fit(theta2=found.modules_, rounds="auto")
    assert found.rounds_ is not None
    assert found.rounds_.trials == named.rounds_.trials
    np.testing.assert_array_equal(found.decision_function(X), named.decision_function(X))


@pytest.mark.slow
def test_the_fit_is_that_of_the_depth_by_name_with_the_omega_that_the_search_found() -> None:
    found = _fit()
    problem, top = _problem(found.modules_), _problem("5")
    choice = _choice(top)
    omega = best_omega_penalty(choice, problem.probe)
    expected = solve(replace(problem, omega_penalties={"full": [omega]}), PLAN)
    torch.testing.assert_close(dict(found.w2_), {name: value.cpu() for name, value in expected.model.w2.items()})
    assert found.choice_ is not None
    assert {tried.omega_penalty for tried in found.choice_.path if tried.gradients} == {problem.probe.penalty * omega}


def test_held_out_loss_of_a_depth_is_what_the_choice_of_penalties_says() -> None:
    found = _fit()
    problem = _problem("5")
    choice = _choice(problem)
    assert found.depths_[0].loss == choice.loss
    # the others try the ω̄ that was best there, and only that
    omega = best_omega_penalty(choice, problem.probe)
    one = _choice(replace(_problem(["5", "4"]), omega_penalties={"full": [omega]}))
    assert found.depths_[1].loss == one.loss
    assert {tried.omega_penalty for tried in one.path if tried.gradients} == {problem.probe.penalty * omega}
    # all ω̄ under the first metric and the best under the second, beside one under both
    tried = {point.omega_penalty for point in choice.path if point.gradients}
    assert choice.metric == "whitened"
    assert one.passes == pytest.approx(choice.passes * 2 / (len(tried) + 1))


@pytest.mark.slow
def test_a_search_and_the_fit_after_it_keep_apart_in_a_checkpoint(tmp_path: Path) -> None:
    X, _ = _data()
    plain, kept, again = _fit(), _fit(checkpoint=tmp_path), _fit(checkpoint=tmp_path)
    for other in (kept, again):
        assert [depth.loss for depth in other.depths_] == [depth.loss for depth in plain.depths_]
        np.testing.assert_array_equal(other.decision_function(X), plain.decision_function(X))


@pytest.mark.parametrize(
    ("losses", "tried", "taken"),
    [
        ([1.0, 0.9, 0.8999, 0.5], 3, 2),  # no fall: none deeper is tried
        ([1.0, 0.9, 0.895, 0.8], 4, 4),  # a fall that is not worth the depth, but the next is
        ([1.0, 0.9, 0.895, 0.8949], 4, 2),
        ([1.0, 0.995, 0.985, 0.98], 4, 3),  # small falls add up
        ([1.0, 1.1, 0.5, 0.5], 2, 1),
    ],
)
def test_a_deeper_theta2_is_taken_where_it_is_worth_it(
    losses: list[float], tried: int, taken: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = iter(losses)
    monkeypatch.setattr("gradfeat.fit.depth.choose", lambda *args: (SimpleNamespace(loss=next(given)), None))
    monkeypatch.setattr("gradfeat.fit.depth.best_omega_penalty", lambda choice, probe: 1.0)
    X, _ = _data()
    found = _fit()
    assert [depth.loss for depth in found.depths_] == losses[:tried]
    assert found.modules_ == list(found.depths_[taken - 1].modules)
    assert {name.partition(".")[0] for name in found.w2_} == set(found.modules_)
    loaded = gradfeat.load(found.save(tmp_path / "model.safetensors"), _network())
    np.testing.assert_array_equal(loaded.predict_proba(X), found.predict_proba(X))


def test_nothing_to_search_is_said() -> None:
    X, y = _data()
    with pytest.raises(Theta2Error, match="theta2='search': no layer with a weight"):
        GradientFeatureClassifier(nn.LayerNorm(6), theta2="search").fit(X, y)


@pytest.mark.slow
def test_file_and_pickle_keep_the_chosen_layers(tmp_path: Path) -> None:
    X, _ = _data()
    found = _fit()
    loaded = gradfeat.load(found.save(tmp_path / "model.safetensors"), _network())
    assert loaded.theta2 == found.modules_
    for other in (loaded, pickle.loads(pickle.dumps(found))):
        np.testing.assert_array_equal(other.predict_proba(X), found.predict_proba(X))


def test_too_few_samples_take_the_topmost_block() -> None:
    X, y = _data()
    some = np.concatenate([np.flatnonzero(y == label)[:1] for label in np.unique(y)])
    with pytest.warns(GradfeatWarning, match="too few"):
        found = GradientFeatureClassifier(_network(), theta2="search", random_state=0).fit(X[some], y[some])
    assert (found.depths_, found.modules_, list(found.w2_)) == ([], "auto", ["5.layer.weight", "5.layer.bias"])


def test_the_probe_searches_nothing() -> None:
    assert _fit(mode="activation").depths_ == []


def test_compare_says_what_was_tried() -> None:
    X, y = _data()
    table = compare(
        _network(), X[:160], y[:160], X[160:], y[160:], modes=("activation", "full"), theta2="search", random_state=0
    )
    tried = [note for note in table.notes if note.startswith("θ₂ down to")]
    assert tried[0].startswith("θ₂ down to 5 (42 parameters): held-out loss")
    assert len(table.theta2) == 2 * len(table.estimators["full"].modules_)


class Changing(Dataset[Any]):
    def __init__(self) -> None:
        X, y = _data()
        self.pairs = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Any:
        return self.pairs[i]


class Idle(Block):
    """A block that does nothing, and whose weights do nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.layer(x)


def test_without_a_seed_all_depths_hold_out_the_same_samples() -> None:
    """A block without gradients makes no difference to the loss, other validation samples do."""
    X, y = _data()
    torch.manual_seed(0)
    network = nn.Sequential(Block(), Idle(), Block()).eval()
    for _ in range(4):  # other samples of these change the loss by some percent, random signs by less than half of one
        found = GradientFeatureClassifier(network, theta2="search", metric="plain").fit(X, y)
        one, two = (depth.loss for depth in found.depths_[:2])
        assert two == pytest.approx(one, rel=0.015)


def test_samples_that_change_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="may change its samples: name θ₂"):
        GradientFeatureClassifier(_network(), theta2="search").fit(Changing(), None)
    with pytest.raises(ConfigurationError, match="solver='subspace' needs samples that do not change"):
        GradientFeatureClassifier(_network(), theta2="5", solver="subspace").fit(Changing(), None)
    with pytest.raises(ConfigurationError, match="rounds are of the subspace solver"):
        GradientFeatureClassifier(_network(), theta2="5", rounds="auto").fit(Changing(), None)
