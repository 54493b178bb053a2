"""`model.audit()`: flipped labels are found, in every task; what comes out of it; what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, load
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.auditing import Audit

N = 240


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())


def three_classes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return samples around three centres, labels of which a fifth is flipped, and which are."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(3, 6))
    y = rng.integers(3, size=N)
    X = (centres[y] + rng.normal(size=(N, 6))).astype(np.float32)
    wrong = np.zeros(N, dtype=bool)
    wrong[rng.permutation(N)[: N // 5]] = True
    return X, np.where(wrong, (y + rng.integers(1, 3, size=N)) % 3, y), wrong


def fitted(y: np.ndarray | None = None, mode: str = "full", **fit: Any) -> GradientFeatureClassifier:
    X, flipped, _ = three_classes()
    model = GradientFeatureClassifier(network(), theta2="2", mode=mode, random_state=0)
    return model.fit(X, flipped if y is None else y, **fit)


@pytest.fixture(scope="module")
def model() -> GradientFeatureClassifier:
    return fitted()


@pytest.fixture(scope="module")
def audit(model: GradientFeatureClassifier) -> Audit:
    return model.audit([f"sample {i}" for i in range(N)])


@pytest.mark.parametrize("mode", ["activation", "gradient", "full"])
def test_flipped_classes_are_found(mode: str) -> None:
    _, y, wrong = three_classes()
    audit = fitted(mode=mode).audit()
    assert roc_auc_score(wrong, -audit.quality) > 0.97
    assert wrong[audit.suspects].mean() > 0.9
    assert audit.suspects[wrong].mean() > 0.8
    assert audit.pred_probs.shape == (N, 3)
    assert audit.pred_probs[np.arange(N), y] == pytest.approx(audit.quality)


def test_findings_say_what_the_arrays_say(audit: Audit) -> None:
    y = three_classes()[1]
    found = audit.findings()
    assert [one.index for one in found] == audit.order.tolist()
    assert sorted(audit.order) == list(range(N))
    assert [one.p_given for one in found] == sorted(one.p_given or 0 for one in found)
    for one in found:
        assert one.name == f"sample {one.index}"
        assert one.given == str(y[one.index])
        assert one.fitting == str(audit.pred_probs[one.index].argmax())
        assert one.suspect == audit.suspects[one.index]
    assert audit.findings(3) == found[:3]


def test_wrong_labels_of_several_are_found_with_the_label() -> None:
    X = three_classes()[0]
    rng = np.random.default_rng(1)
    y = (X[:, :3] > 0).astype(float)
    wrong = rng.random(y.shape) < 0.07
    given = np.where(wrong, 1 - y, y)
    given[rng.random(y.shape) < 0.05] = np.nan
    given[7] = np.nan
    wrong &= ~np.isnan(given)
    audit = GradientFeatureClassifier(network(), theta2="2", random_state=0).fit(X, given).audit()
    assert roc_auc_score(wrong.any(1), -audit.quality) > 0.95
    named = [one for one in audit.findings() if one.suspect and wrong[one.index].any()]
    assert np.mean([wrong[one.index, int(one.which)] for one in named]) > 0.9
    assert all({one.given, one.fitting} == {"present", "absent"} for one in named)
    (nothing_known,) = (one for one in audit.findings() if one.index == 7)
    assert (nothing_known.given, nothing_known.suspect, audit.reweighted()[7]) == ("unknown", False, 1)


@pytest.mark.parametrize("targets", [1, 2])
def test_wrong_values_are_found(targets: int) -> None:
    X = three_classes()[0]
    rng = np.random.default_rng(2)
    y = np.stack([100 + 2 * X[:, 0], X[:, 1] + np.tanh(X[:, 2])], 1)[:, :targets]
    wrong = np.zeros(N, dtype=bool)
    wrong[rng.permutation(N)[:12]] = True
    y[wrong, -1] += rng.choice([-20, 20], size=12)
    model = GradientFeatureRegressor(network(), theta2="2", random_state=0).fit(X, y[:, 0] if targets == 1 else y)
    audit = model.audit()
    assert roc_auc_score(wrong, -audit.quality) > 0.97
    assert audit.suspects[wrong].all()
    first = audit.findings(1)[0]
    assert first.given == pytest.approx(y[first.index, -1], rel=1e-5)
    assert first.fitting == pytest.approx(model.loo_.prediction[first.index, -1], rel=1e-5)
    assert first.which == ("" if targets == 1 else "1")
    assert audit.reweighted()[wrong].max() < audit.reweighted()[~wrong].mean()
    with pytest.raises(ConfigurationError, match="no probabilities"):
        _ = audit.pred_probs


def test_weights_bring_accuracy_back(model: GradientFeatureClassifier, audit: Audit) -> None:
    X, y, wrong = three_classes()
    for weights in (audit.without_suspects(), audit.reweighted()):
        assert weights.shape == (N,)
        assert ((weights >= 0) & (weights <= 1)).all()
        assert weights[wrong].mean() < 0.3 < 0.9 < weights[~wrong].mean()
        again = fitted(sample_weight=weights)
        sure = again.predict_proba(X[~wrong])[np.arange((~wrong).sum()), y[~wrong]].mean()
        assert sure > model.predict_proba(X[~wrong])[np.arange((~wrong).sum()), y[~wrong]].mean()


def test_absent_samples_are_not_judged() -> None:
    weight = np.ones(N)
    weight[::3] = 0
    audit = fitted(sample_weight=weight).audit()
    assert len(audit.quality) == len(audit.samples) == (weight > 0).sum()
    assert not audit.suspects[::3].any()
    assert not audit.without_suspects()[::3].any()
    assert not audit.reweighted()[::3].any()


def test_a_class_of_suspects_alone_is_kept(audit: Audit) -> None:
    """A fit to what is left has the same classes."""
    _, _, wrong = three_classes()
    y = np.where(np.arange(N) == np.flatnonzero(~wrong)[0], 9, three_classes()[1])
    found = fitted(y).audit()
    kept = found.without_suspects() > 0
    assert set(y[kept]) == set(y)


def test_files(audit: Audit, tmp_path: Path) -> None:
    odd = ['a,"b"\n', "c\r", "=1+1", "\u202e", "é"] + [str(i) for i in range(N - 5)]
    named = Audit(audit.left_out, odd, ["x,y", "<b>", "z"])
    with named.to_csv(tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [odd[i] for i in named.order]
    assert [float(row["p_given"]) for row in rows] == sorted(audit.quality)
    assert "distance" not in rows[0]
    about = json.loads(json.dumps(named.to_dict(4)))
    assert (about["judged"], about["suspects"], len(about["samples"])) == (N, int(audit.suspects.sum()), 4)
    assert about["samples"][0]["given"] in ("x,y", "<b>", "z")


def test_names_are_one_for_each_sample(model: GradientFeatureClassifier) -> None:
    for names in (["a"], "a" * N, iter(range(N))):
        with pytest.raises(DataError, match="names"):
            model.audit(names)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="from 1"):
        model.audit().findings(0)


def test_a_file_is_given_its_data_again(model: GradientFeatureClassifier, audit: Audit, tmp_path: Path) -> None:
    X, y, _ = three_classes()
    from_file = load(model.save(tmp_path / "m.safetensors"), backbone=network())
    with pytest.raises(ConfigurationError, match="recall"):
        from_file.audit()
    with pytest.raises(DataError, match="not the samples"):
        from_file.recall(X[::-1].copy(), y)
    with pytest.raises(DataError, match="not the samples"):
        from_file.recall(X[:200], y[:200])
    assert from_file.recall(X, y).audit().quality == pytest.approx(audit.quality, abs=0.01)


def test_a_fine_tuned_network_has_none() -> None:
    with pytest.raises(ConfigurationError, match="no linear model"):
        fitted(mode="finetune").audit()
