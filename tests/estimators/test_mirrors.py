"""augment="auto": mirror images where a look finds that held-out images ask for them; and Ctrl-C in a look."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

import gradfeat
from gradfeat import GradientFeatureClassifier, compare
from gradfeat.errors import GradfeatWarning
from gradfeat.fit import Problem
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.steps import Rounds

sys.path.insert(0, str(Path(__file__).parent))
from effort_cases import classifier, far, prepared

WIDTH = 24  # of images of two rows: the upper one tells the class


def symmetric(n: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class is the sign of the sum of a row: the same seen in a mirror."""
    return images(n, seed, np.ones(WIDTH))


def arrows(n: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class is the half in which a row has more: the other one in a mirror."""
    return images(n, seed, np.where(np.arange(WIDTH) < WIDTH // 2, 1, -1))


def images(n: int, seed: int, sign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(seed).normal(size=(n, 1, 2, WIDTH)).astype(np.float32)
    y = (X[:, 0, 0] @ sign > 0).astype(int)
    X[:, :, 0] *= 5  # so that small steps of its weights show
    return X, y


def backbone() -> nn.Module:
    """Return a network whose lowest layer does not see the upper row, unless it learns to."""
    torch.manual_seed(0)
    lowest = nn.Linear(2 * WIDTH, 8)
    with torch.no_grad():
        lowest.weight[:, :WIDTH] = 0
    return nn.Sequential(nn.Flatten(), lowest, nn.Tanh(), nn.Linear(8, 8), nn.Tanh()).eval()


def fitted(data: tuple[np.ndarray, np.ndarray], **settings: Any) -> GradientFeatureClassifier:
    return classifier(backbone(), **settings).fit(*data)


@pytest.fixture(scope="module")
def mirrored() -> GradientFeatureClassifier:
    return fitted(symmetric())


# ---- what is decided ------------------------------------------------------------------------------------------------


def test_classes_that_are_the_same_in_a_mirror_take_mirror_images(mirrored: GradientFeatureClassifier) -> None:
    assert mirrored.augment_ == "mirror"
    assert mirrored.how_["effort"].endswith("θ̄₂ moves, down to 1, with mirror images")
    assert mirrored.augment == "auto"
    X, y = symmetric(2000, seed=1)
    assert mirrored.score(X, y) > fitted(symmetric(), augment=None).score(X, y)


@pytest.mark.parametrize("seed", range(3))
def test_classes_that_are_each_others_mirror_images_refuse_them(seed: int) -> None:
    found = prepared(*arrows(seed=seed), backbone=backbone(), random_state=seed)
    assert found.look is not None
    assert found.look.modules == ("3", "1")
    assert not found.look.mirrors
    assert found.look.with_mirrors > 0.65  # log 2 is chance
    assert found.look.tried[-1].loss < 0.5
    assert found.problem.views == 1


def test_the_fit_is_that_with_mirror_images_by_name(mirrored: GradientFeatureClassifier) -> None:
    X, _ = symmetric(50, seed=1)
    named = fitted(symmetric(), theta2=mirrored.modules_, rounds="auto", augment="mirror")
    np.testing.assert_array_equal(mirrored.decision_function(X), named.decision_function(X))
    without = fitted(arrows(), theta2=mirrored.modules_, rounds="auto", augment=None)
    np.testing.assert_array_equal(fitted(arrows()).decision_function(X), without.decision_function(X))
    assert without.augment_ is None


def test_held_out_images_are_judged_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their mirror images nothing would tell arrows' mirror images from noise: both are half of what is judged."""
    seen = []

    def spy(problem: Problem, plan: Any, run: Any) -> Rounds:
        rounds = search_rounds(problem, plan, run)
        assert rounds.judged is not None
        [split] = run.splits
        seen.append((problem.n, problem.views, len(rounds.judged.each), split.validation.tolist()))
        return rounds

    monkeypatch.setattr("gradfeat.fit.look.search_rounds", spy)
    prepared(*symmetric(), backbone=backbone())
    assert [entry[:3] for entry in seen] == [(160, 1, 80), (160, 1, 80), (160, 2, 80)]
    assert seen[0][3] == seen[1][3] == seen[2][3]


@pytest.mark.parametrize(
    "settings", [{"augment": None}, {"augment": "mirror"}, {"effort": "low"}, {"theta2": "3"}, {"rounds": 1}], ids=str
)
def test_who_says_what_is_added_or_has_no_look_is_not_asked(settings: dict[str, Any]) -> None:
    found = prepared(*symmetric(), backbone=backbone(), **settings)
    assert found.look is None or np.isnan(found.look.with_mirrors)
    assert found.problem.views == (2 if settings.get("augment") == "mirror" else 1)


def test_of_what_is_no_image_there_is_no_mirror_image() -> None:
    found = prepared(*far())
    assert found.look is not None
    assert found.look.modules == ("1", "0")
    assert np.isnan(found.look.with_mirrors)
    assert "mirror" not in str(found.look)


# ---- beside it ------------------------------------------------------------------------------------------------------


def test_files_and_copies_know_it(mirrored: GradientFeatureClassifier, tmp_path: Path) -> None:
    X, _ = symmetric(50, seed=1)
    loaded = gradfeat.load(mirrored.save(tmp_path / "model.safetensors"), backbone())
    np.testing.assert_array_equal(loaded.predict_proba(X), mirrored.predict_proba(X))
    assert (loaded.augment_, loaded.augment, loaded.how_) == ("mirror", "mirror", mirrored.how_)
    assert clone(mirrored).augment == "auto"


def test_compare_gives_them_to_all_models(mirrored: GradientFeatureClassifier) -> None:
    table = compare(backbone(), *symmetric(), *symmetric(50, seed=1), modes=("activation", "full"), random_state=0)
    assert {mode: model.augment_ for mode, model in table.estimators.items()} == dict.fromkeys(
        ("activation", "full"), "mirror"
    )
    X, _ = symmetric(50, seed=1)
    np.testing.assert_array_equal(table.estimators["full"].decision_function(X), mirrored.decision_function(X))
    assert any("all models learn mirror images" in note for note in table.notes)


# ---- Ctrl-C in a look -----------------------------------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, call: int, *, late: bool = False) -> list[bool]:
    """Interrupt the look in one of its trials: before it, or, for a late one, after all that it would have done."""
    calls: list[bool] = []

    def search(problem: Problem, *rest: Any) -> Rounds:
        calls.append(True)
        if len(calls) == call and not late:
            raise KeyboardInterrupt
        rounds = search_rounds(problem, *rest)
        rounds.interrupted = len(calls) == call
        return rounds

    monkeypatch.setattr("gradfeat.fit.look.search_rounds", search)
    return calls


def test_before_a_move_is_better_than_the_probe_the_best_is_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 2)
    with pytest.warns(GradfeatWarning, match=r"interrupted in the look at depths; .* 160 samples .* is the probe"):
        found = fitted(symmetric())
    probe = fitted(symmetric(), mode="activation")
    X, _ = symmetric(50, seed=1)
    np.testing.assert_allclose(found.decision_function(X), probe.decision_function(X), rtol=1e-5, atol=1e-6)
    assert (found.rounds_, found.theta2_) == (None, None)


def test_before_anything_is_known_it_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        fitted(symmetric())


@pytest.mark.parametrize(("call", "late"), [(2, True), (3, False), (3, True)], ids=["depth", "mirrors", "mirrors' end"])
def test_the_best_so_far_is_kept(
    mirrored: GradientFeatureClassifier, monkeypatch: pytest.MonkeyPatch, call: int, late: bool
) -> None:
    interrupt(monkeypatch, call, late=late)
    with pytest.warns(GradfeatWarning, match="interrupted in the look at depths; of the 160 samples looked at"):
        found = fitted(symmetric())
    assert found.modules_ == ["3", "1"]
    assert found.rounds_.interrupted
    assert found.rounds_.more == []
    assert found.rounds_.last_loss == pytest.approx(mirrored.depths_[-1].loss)
    X, y = symmetric(2000, seed=1)
    assert fitted(symmetric(), mode="activation").score(X, y) < 0.6 < 0.8 < found.score(X, y)
    assert found.augment_ is None


@pytest.mark.parametrize("call", [2, 3])
def test_a_checkpoint_goes_on_where_the_look_was(
    mirrored: GradientFeatureClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: int
) -> None:
    interrupt(monkeypatch, call)
    with pytest.warns(GradfeatWarning, match="the same fit goes on from its checkpoint"):
        fitted(symmetric(), checkpoint=tmp_path)
    monkeypatch.undo()
    trained: list[str] = []
    train = gradfeat.fit.training.Training.run

    def run(own: Any, *rest: Any) -> Any:
        trained.append(own.part)
        return train(own, *rest)

    monkeypatch.setattr("gradfeat.fit.training.Training.run", run)
    again = fitted(symmetric(), checkpoint=tmp_path)
    X, _ = symmetric(50, seed=1)
    np.testing.assert_array_equal(again.decision_function(X), mirrored.decision_function(X))
    assert again.how_["effort"] == mirrored.how_["effort"]
    in_all = 3 + 2 + 1  # trials of the look, those of the fit, and all samples
    assert len(trained) == in_all - (call - 1)


def test_compare_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        compare(backbone(), *symmetric(), *symmetric(50, seed=1), modes=("activation", "full"), random_state=0)


# ---- by name --------------------------------------------------------------------------------------------------------


def test_mirror_images_are_learnt_and_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are versions of a sample; nothing but z₀ is kept of them."""
    seen = []

    def spy(problem: Problem, *rest: Any) -> Rounds:
        seen.append((problem.n, problem.views, len(problem.store), problem.store.level))
        return search_rounds(problem, *rest)

    monkeypatch.setattr("gradfeat.fit.look.search_rounds", spy)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten()).eval()
    X = np.random.default_rng(0).normal(size=(110, 1, 6, 6)).astype(np.float32)
    found = prepared(X, (X[:, 0, 0, 0] > 0).astype(int), backbone=backbone, augment="mirror")
    assert seen == [(110, 2, 220, "z0")] * len(found.depths)
