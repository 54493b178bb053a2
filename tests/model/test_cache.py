"""Kept samples: parts of them, and the same ones at another point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat.data import Inputs, Mirrored
from gradfeat.errors import DataError
from gradfeat.linearization import linearize
from gradfeat.samples.store import LEVELS, SampleStore

X = np.random.default_rng(0).normal(size=(7, 2, 5, 4))


def store(level: str) -> SampleStore:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1)),
        nn.Flatten(),
    )
    lin = linearize(network.double(), torch.from_numpy(X[:3]), ["2"])
    return SampleStore(lin, Inputs(X), cache=level, batch_size=3)


def held(samples: SampleStore) -> int:
    """Return the bytes of all tensors that a store holds."""
    return sum(tensor.untyped_storage().nbytes() for tensor in samples.tensors)


@pytest.mark.parametrize("level", LEVELS)
def test_rows_are_a_store_of_their_own(level: str) -> None:
    whole = store(level)
    chosen = torch.tensor([5, 0, 3])
    part = whole.rows(chosen).rows(torch.tensor([2, 0]))
    picked = torch.tensor([3, 5])
    assert len(part) == 2
    torch.testing.assert_close(part.features, whole.features[picked], rtol=0, atol=0)
    everything = torch.arange(2)
    torch.testing.assert_close(part.z0(everything), whole.z0(picked), rtol=1e-12, atol=1e-12)
    w2 = {name: torch.randn_like(value) for name, value in whole.linearization.theta2.items()}
    own, other = (whole.linearization.tangent(w2, s.primal(i)[1]) for s, i in ((part, everything), (whole, picked)))
    torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_samples_at_another_point(level: str) -> None:
    before = store(level)
    lin = before.linearization
    theta2 = {name: value + 0.3 for name, value in lin.theta2.items()}
    after = before.at(lin.at(theta2))
    fresh = SampleStore(lin.at(theta2), Inputs(X))
    everything = torch.arange(len(X))
    torch.testing.assert_close(after.features, fresh.features, rtol=1e-12, atol=1e-12)
    w2 = {name: torch.randn_like(value) for name, value in theta2.items()}
    moved = [s.linearization.tangent(w2, s.primal(everything)[1]) for s in (after, fresh)]
    torch.testing.assert_close(*moved, rtol=1e-12, atol=1e-12)
    assert after.level == level
    # some of them there, and the other way round
    chosen, few = torch.tensor([5, 0, 3]), torch.tensor([2, 0])
    for some in (after.rows(chosen).rows(few), before.rows(chosen).at(lin.at(theta2)).rows(few)):
        found = some.linearization.tangent(w2, some.primal(torch.arange(2))[1])
        torch.testing.assert_close(found, moved[1][[3, 5]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(some.features, fresh.features[[3, 5]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(some.z0(torch.arange(2)), before.z0(torch.tensor([3, 5])), rtol=0, atol=1e-12)
    torch.testing.assert_close(before.linearization.theta2, lin.theta2, rtol=0, atol=0)
    assert not torch.equal(after.features, before.features)


def test_residuals_of_another_point_take_the_place_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    before = store("residuals")
    lin = before.linearization
    moved = lin.at({name: value + 0.3 for name, value in lin.theta2.items()})
    run: list[int] = []
    primal = type(moved).primal
    monkeypatch.setattr(type(moved), "primal", lambda self, z0: (run.append(len(z0)), primal(self, z0))[1])
    everything, size = torch.arange(len(X)), held(before)
    there = before.primal(everything)[1]
    after = before.at(moved, batch_size=4)
    assert run == [4, 3]
    after.primal(everything)
    assert run == [4, 3]
    assert held(after) == held(before) == size
    again = before.primal(everything)[1]  # computed once more, and kept
    assert run == [4, 3, 7]
    before.primal(everything)
    assert run == [4, 3, 7]
    torch.testing.assert_close(again, there, rtol=0, atol=1e-12)
    before.release()
    assert held(before) < size
    torch.testing.assert_close(before.primal(everything)[1], there, rtol=0, atol=1e-12)


def test_mirror_images() -> None:
    both = Mirrored(Inputs(X))
    assert len(both) == 2 * len(X)
    assert not both.random
    batch = both.batch([2, 9, 13])
    np.testing.assert_array_equal(batch, np.stack([X[2], X[2][..., ::-1], X[6][..., ::-1]]))
    with pytest.raises(DataError, match=r"mirror images need images .* shape \(3,\)"):
        Mirrored(Inputs(np.zeros((4, 3))))
