"""How a look at some samples goes: which depths it tries, at which samples, and when it takes mirror images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier
from gradfeat.backbones import resolve
from gradfeat.data import Inputs
from gradfeat.errors import LinearizationError, Theta2Error
from gradfeat.estimators.looking import drawn
from gradfeat.fit import Plan, prepare
from gradfeat.fit.linearize import backbone_candidates, linearize_backbone
from gradfeat.fit.look import MOST, Look, look
from gradfeat.fit.plan import RATES
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import hold_out
from gradfeat.losses import CrossEntropy
from gradfeat.progress import Progress
from gradfeat.solvers.probe import Probe

sys.path.insert(0, str(Path(__file__).parent))
from effort_cases import Block, classifier, far, losses_of, near, network, prepared, samples


@pytest.fixture(scope="module")
def moved() -> GradientFeatureClassifier:
    return classifier().fit(*far())


# ---- how it looks ---------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_result(moved: GradientFeatureClassifier) -> None:
    X, y = far()
    assert losses_of(prepared(X, y)) == losses_of(moved)
    assert losses_of(prepared(X, y, random_state=1)) != losses_of(moved)


class Idle(Block):
    """A block that does nothing, and whose weights do nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.layer(x)


def test_without_a_seed_all_depths_hold_out_the_same_samples() -> None:
    """A block without gradients makes no difference to the loss, other held-out samples do."""
    X, y = near()
    torch.manual_seed(0)
    backbone = nn.Sequential(Block(), Idle(), Block()).eval()
    one, two = losses_of(prepared(X, y, backbone=backbone, random_state=None))[:2]
    assert two == pytest.approx(one, rel=1e-4)


def looked(
    losses: Sequence[float | Exception],
    monkeypatch: pytest.MonkeyPatch,
    *,
    probe: float = 1.0,
    linear: float = 2.0,
    all_depths: bool = False,
    y: Tensor | None = None,
    mirrored: float | None = None,
) -> Look:
    """Return what a look decides where 1, 2, 4 ... of six blocks have these losses, or cannot be built.

    And the best of them with mirror images, where that loss is given: there 0.02 is the error of a difference.
    """
    given = iter(losses)
    y = torch.arange(100) % 2 if y is None else y

    def build(modules: Sequence[str], known: Probe | None) -> Any:
        loss = next(given)
        if isinstance(loss, Exception):
            raise loss
        lin = SimpleNamespace(device=torch.device("cpu"), theta2={name: torch.zeros(3) for name in modules})
        return SimpleNamespace(probe=None, linearization=lin, n=len(y), y=y, loss=loss, checkpoint=None)

    def with_mirrors(modules: Sequence[str], known: Probe | None) -> Any:
        nonlocal given
        given = iter([mirrored])
        return build(modules, known)

    def search(problem: Any, plan: Plan, run: Any) -> Any:
        assert (plan.rounds, plan.rates) == ("auto", RATES[:1])
        trial = SimpleNamespace(loss=problem.loss)
        chosen = trial if problem.loss < probe else None
        judged = SimpleNamespace(loss=problem.loss, clearly_better=lambda other: problem.loss < other.loss - 0.02)
        return SimpleNamespace(start=probe, trials=[trial], chosen=chosen, passes=8, interrupted=False, judged=judged)

    def choose(*_: Any) -> Any:
        return SimpleNamespace(loss=linear, passes=4), None

    monkeypatch.setattr("gradfeat.fit.look.search_rounds", search)
    monkeypatch.setattr("gradfeat.fit.look.choose", choose)
    X = torch.from_numpy(samples(3))
    candidates = backbone_candidates(resolve(network(6)), X)
    mirrors = None if mirrored is None else with_mirrors
    return look(candidates, build, Plan(seed=0), Progress(False), all_depths=all_depths, mirrored=mirrors)


@pytest.mark.parametrize(
    ("losses", "tried", "taken"),
    [
        ([0.9, 0.8, 0.8, 0.1], 3, 2),  # no fall: none deeper is tried
        ([0.9, 0.8, 0.795, 0.7], 4, 6),  # a fall that is not worth the depth, but the next is
        ([0.9, 0.8, 0.795, 0.794], 4, 2),
        ([1.2, 1.1, 1.0, 0.9], 4, 6),  # a fall that begins above the probe
        ([1.2, 1.1, 1.05, 0.995], 4, None),  # not worth it beside the probe
        ([1.1, 1.2, 0.1, 0.1], 2, None),
        ([float("inf"), 0.1, 0.1, 0.1], 1, None),  # training diverges
        ([0.9, LinearizationError("no"), 0.5, 0.6], 3, 4),  # left out
        ([LinearizationError("no"), 0.9, 0.8, 0.9], 3, 4),
        ([0.9, 0.5, Theta2Error("no"), Theta2Error("no")], 2, 2),
        ([0.9, MemoryError(), 0.1, 0.1], 1, 1),
    ],
)
def test_what_a_look_decides(
    losses: list[float | Exception], tried: int, taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = looked(losses, monkeypatch)
    assert len(found.tried) == tried
    assert found.modules == (None if taken is None else ("5", "4", "3", "2", "1", "0")[:taken])
    assert [depth.parameters for depth in found.tried] == [3 * len(depth.modules) for depth in found.tried]
    assert len(found.notes) == sum(isinstance(loss, Exception) for loss in losses[: tried + 2])
    assert all(note in str(found) for note in found.notes)


@pytest.mark.parametrize(
    ("losses", "mirrored", "tried", "taken"),
    [
        ([0.9, 0.95], 0.5, True, True),
        ([0.9, 0.95], 0.89, True, False),  # lower by less than the error
        ([0.9, 0.95], 0.95, True, False),
        ([0.9, 0.6, 0.7], 0.7, True, False),  # better than one depth, not than the best
        ([0.9, 0.95], 1.1, True, False),  # worse than the probe
        ([1.1, 1.2], 0.5, False, False),  # nothing moves
    ],
)
def test_mirror_images_are_taken_where_they_are_clearly_better(
    losses: list[float | Exception], mirrored: float, tried: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = looked(losses, monkeypatch, mirrored=mirrored)
    assert found.mirrors is taken
    assert (found.with_mirrors == mirrored) is tried
    assert ("mirror images" in str(found)) is tried
    assert (f"with mirror images {mirrored:.3f}" in str(found)) is tried
    plain = looked(losses, monkeypatch)
    assert (found.modules, found.tried[0].loss) == (plain.modules, plain.tried[0].loss)
    assert found.passes == plain.passes + 8 * tried
    assert Look.unpack(found.pack()) == found or not tried  # what was not tried has a loss that is no number


def test_high_effort_looks_at_all_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked([1.1, 1.2, 0.8, 0.9], monkeypatch, all_depths=True)
    assert (len(found.tried), found.modules) == (4, ("5", "4", "3", "2"))


def test_there_is_nothing_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LinearizationError, match="first"):
        looked([LinearizationError("first"), *[LinearizationError("other")] * 3], monkeypatch)
    with pytest.raises(MemoryError):
        looked([MemoryError()], monkeypatch)
    with pytest.raises(Theta2Error, match="no layer with a weight"):
        look([], lambda modules, probe: pytest.fail("nothing can be built"), Plan(seed=0), Progress(False))


def test_classes_of_one_sample_cannot_be_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked([0.5], monkeypatch, y=torch.arange(100))
    assert (found.tried, found.modules, len(found.notes)) == ([], None, 1)


def test_a_deeper_one_is_looked_at_while_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfeat.fit.look.available_memory", lambda device: 2 * 8 * 4 * 60)  # for sixty parameters
    found = looked([0.9, 0.8, 0.7, 0.6], monkeypatch)
    assert (len(found.tried), found.modules) == (2, ("5", "4"))
    assert "no room in memory to look down to 2" in found.notes


def test_high_effort_finds_what_the_upper_blocks_do_not_tell() -> None:
    X, y = far()
    backbone = network(6)
    found = prepared(X, y, backbone=backbone, effort="high")
    assert [len(depth.modules) for depth in found.depths] == [1, 2, 4, 6]
    assert found.look is not None
    assert found.look.modules == ("5", "4", "3", "2", "1", "0")
    assert set(RATES) < set(classifier(effort="high").plan(200).rates)


def test_losses_are_of_the_samples_that_a_trial_does_not_learn(moved: GradientFeatureClassifier) -> None:
    """Each depth is one trial on half of the samples, judged by the other half."""
    X, y = far()
    for depth in moved.depths_:
        rows = drawn(y, MOST, 0)
        lin = linearize_backbone(resolve(network()), torch.from_numpy(X[:3]), list(depth.modules))
        problem = prepare(lin, Inputs(X[rows]), torch.from_numpy(y[rows]), CrossEntropy(), random_state=0)
        split = hold_out(problem, 0, 0.5)
        assert (len(split.train), len(split.validation)) == (100, 100)
        rounds = search_rounds(problem, Plan(rounds="auto", rates=RATES[:1], seed=0), Run([split], generator()))
        assert rounds.trials[0].loss == pytest.approx(depth.loss, rel=1e-5)


def generator() -> torch.Generator:
    return Plan(seed=0).generator()


def test_some_of_many_samples_are_looked_at_and_two_of_each_class_among_them() -> None:
    y = np.zeros(5000, dtype=int)
    y[[17, 1234, 4321]] = 1
    y[99] = 2
    for seed in range(3):
        rows = drawn(y, MOST, seed)
        assert len(np.unique(rows)) == MOST
        assert (np.diff(rows) > 0).all()
        assert np.bincount(y[rows])[1:].tolist() == [2, 1]
    np.testing.assert_array_equal(drawn(y[:50], MOST, 0), np.arange(50))
    assert len(drawn(np.zeros((5000, 2)), MOST, 0)) == MOST
    assert len(drawn(np.arange(5000), MOST, 0)) == MOST  # more classes than room


# ---- other samples --------------------------------------------------------------------------------------------------


def test_texts_of_several_lengths_are_looked_at(tiny_bert: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    texts = [" ".join(["a"] * rng.integers(1, 9) + [("bad", "good")[label]]) for label in y]
    found = prepared(texts, y, backbone=f"hf/{tiny_bert}", preprocessing={"length": 14, "lengths": [7, 14]})
    assert found.look is not None
    assert all(np.isfinite(losses_of(found)))
    assert found.depths[0].modules == ("transformer.encoder.layer.1",)
