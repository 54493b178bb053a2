"""A bound on memory is kept, and what is kept of the samples changes no number."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier
from gradfeat.data import Inputs, Mirrored
from gradfeat.errors import ConfigurationError
from gradfeat.linearization import Linearization, linearize
from gradfeat.samples import memory
from gradfeat.samples.memory import Room, Sizes, available_memory, bytes_of, in_words, room_for
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.gradient_features import GradientFeatures

N = 40
X = np.random.default_rng(0).normal(size=(N, 2, 6, 5))
SIZES = Sizes(n=100, z0=10, residuals=90, features=4, theta2=1000)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(16, 4)),
    ).double()


@functools.cache
def linearization() -> Linearization:
    return linearize(network(), torch.from_numpy(X[:3]), ["2", "6"])


def sizes_of(lin: Linearization, n: int = N) -> Sizes:
    of_sample = lin.bytes_per_sample
    return Sizes(n, of_sample["z0"], of_sample["residuals"], 4 * 8, 0)


def bound(lin: Linearization, z0: float, residuals: float) -> int:
    """Return a bound that leaves room for shares of z₀ and residuals, beside the smallest batch."""
    sizes = sizes_of(lin)
    return sizes.least + int(N * (z0 * sizes.z0 + residuals * sizes.residuals)) + 8


def random_w2(lin: Linearization) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in lin.theta2.items()}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("auto", None),
        (" Auto ", None),
        (1000, 1000),
        (2e9, 2_000_000_000),
        (np.int64(5), 5),
        ("500MB", 500_000_000),
        ("2 GB", 2_000_000_000),
        ("1.5gib", 3 << 29),
        ("3k", 3000),
        ("12 b", 12),
        ("7", 7),
        (".5 TB", 500_000_000_000),
    ],
)
def test_a_bound_is_read(written: Any, expected: int | None) -> None:
    assert bytes_of(written) == expected


@pytest.mark.parametrize(
    "written", ["", "much", "2 XB", "-1GB", "0", 0, -5, True, None, float("nan"), float("inf"), "i"]
)
def test_what_is_no_bound(written: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^memory must be 'auto', a number of bytes above 0, or a text as '2GB'"
    ):
        bytes_of(written)
    with pytest.raises(ConfigurationError, match="memory must be"):
        GradientFeatureClassifier(network(), memory=written).fit(X, np.arange(N) % 2)


def test_sizes_in_words() -> None:
    assert [in_words(size) for size in (7, 2_500_000, 123_000_000)] == ["7 bytes", "2.5 MB", "0.12 GB"]


def test_z0_first_and_then_residuals() -> None:
    assert SIZES.least == 100 * 8 + 8 * SIZES.pass_of_one

    def room(more: int, cache: str = "auto", random: bool = False) -> Room:
        return room_for(cache, SIZES.least + more, SIZES, random=random)

    assert room(0) == Room(0, 0, 8)
    assert room(99) == Room(9, 0, 8)
    assert room(1000 + 89) == Room(100, 0, 8)
    assert room(1000 + 41 * 90) == Room(100, 41, 8)
    assert room(1000 + 41 * 90, "z0") == Room(100, 0, 8)
    assert room(1000 + 41 * 90, "none") == room(1000 + 41 * 90, random=True) == Room(0, 0, 8)
    large = room(1_000_000)
    assert (large.z0, large.residuals) == (100, 100)
    assert large.batch > 128


@pytest.mark.parametrize("more", [0, 100, 5_000, 9_000, 12_000, 100_000])
def test_all_of_a_bound_is_within_it(more: int) -> None:
    room = room_for("auto", SIZES.least + more, SIZES, random=False)
    used = SIZES.fixed + room.batch * SIZES.pass_of_one + room.z0 * SIZES.z0 + room.residuals * SIZES.residuals
    assert used <= SIZES.least + more


def test_a_bound_that_is_too_small_says_the_least_that_would_do() -> None:
    lin = linearization()
    least = sizes_of(lin).least
    with pytest.raises(
        ConfigurationError, match=rf"too small for these 40 samples.*at least memory={least}, or name a"
    ):
        SampleStore(lin, Inputs(X), memory=least - 1)
    assert SampleStore(lin, Inputs(X), memory=least).level == "none"


def test_what_cannot_be_kept() -> None:
    with pytest.raises(ConfigurationError, match="freeze"):
        room_for("z0", None, SIZES, random=True)
    with pytest.raises(ConfigurationError, match="cache must be"):
        room_for("everything", None, SIZES, random=False)


def test_auto_is_by_what_fine_tuning_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 10**9)
    monkeypatch.setattr(memory, "process_memory", lambda: 100_000)
    rival = 100_000 + 100 * 10 + 32 * 3 * 90
    assert memory.automatic(SIZES) == int(1.5 * rival) - 100_000 - 12 * 1000
    # where all that is left goes to the solver, what fine-tuning holds of the samples
    usual = SIZES.fixed + 100 * 10 + 32 * SIZES.pass_of_one
    assert memory.automatic(replace(SIZES, theta2=10**6)) == usual
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 3000)
    assert memory.automatic(SIZES) == 1500
    assert room_for("auto", None, SIZES, random=False) == Room(0, 0, 8)  # no bound was asked for: no error
    assert room_for("residuals", None, SIZES, random=False) == Room(0, 0, 8)


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # what the driver has, and what PyTorch holds without a use for it
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    gpu = torch.device("cuda")
    assert available_memory(gpu) == 1000
    assert memory.automatic(SIZES, gpu) == 500
    assert available_memory(torch.device("cpu")) > 1000


def test_memory_of_this_process() -> None:
    before = memory.process_memory()
    block = torch.ones(1 << 26)
    assert memory.process_memory() - before > 0.9 * block.nbytes


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("z0", "residuals"), [(0, 0), (0.5, 0), (1, 0), (1, 0.3), (1, 0.6), (1, 1)])
def test_what_is_kept_changes_no_number_and_keeps_the_bound(z0: float, residuals: float, mirrored: bool) -> None:
    lin, n = linearization(), N // 2 if mirrored else N
    inputs = Mirrored(Inputs(X[:n])) if mirrored else Inputs(X)
    whole = SampleStore(lin, inputs, cache="residuals")
    most = bound(lin, z0, residuals)
    store = SampleStore(lin, inputs, memory=most, batch_size=16)
    assert store.room.z0 == pytest.approx(z0 * N, abs=1)
    assert store.room.residuals == pytest.approx(residuals * N, abs=1)
    assert (whole.room.z0, whole.room.residuals) == (N, N)

    def same(part: SampleStore, reference: SampleStore, batch_size: int) -> None:
        omega = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
        found, expected = (
            GradientFeatures(each, omega, batch_size=size) for each, size in ((part, batch_size), (reference, 64))
        )
        picked = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        w2, u = random_w2(lin), torch.linspace(0, 1, 3 * len(part), dtype=torch.float64).view(-1, 3)
        close: dict[str, float] = {"rtol": 1e-11, "atol": 1e-11}
        for rows in (torch.arange(len(part)), picked):
            torch.testing.assert_close(found.forward(w2, rows), expected.forward(w2, rows), **close)
            torch.testing.assert_close(found.transpose(u, rows), expected.transpose(u, rows), **close)
        torch.testing.assert_close(part.features, reference.features, **close)
        torch.testing.assert_close(part.primal(picked), reference.primal(picked), **close)  # a batch of both kinds
        torch.testing.assert_close(part.z0(picked), reference.z0(picked), **close)
        size = sum(tensor.untyped_storage().nbytes() for tensor in part.tensors)
        assert size + sizes_of(lin).pass_of_one * part.room.batch <= most + 8

    same(store, whole, 7)
    some = torch.tensor([31, 2, 17, 30, 9, 8, 38, 22])
    same(store.rows(some), whole.rows(some), 3)
    moved = lin.at({name: value + 0.1 for name, value in lin.theta2.items()})
    fresh = SampleStore(moved, inputs, cache="residuals")
    same(store.at(moved), fresh, 8)
    same(store.rows(some).at(moved), fresh.rows(some), 3)
    same(store, whole, 7)


def test_batches_are_wholly_kept_or_wholly_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    lin = linearization()
    store = SampleStore(lin, Inputs(X), memory=bound(lin, 1, 0.5))
    kept = store.room.residuals
    assert 0 < kept < N
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    batches = [rows[positions] for positions in store.batches(rows, 6)]
    assert sorted(torch.cat(batches).tolist()) == list(range(N))
    assert all(len({row < kept for row in batch.tolist()}) == 1 for batch in batches)
    computed: list[int] = []
    primal = type(lin).primal
    monkeypatch.setattr(type(lin), "primal", lambda self, z0: (computed.append(len(z0)), primal(self, z0))[1])
    for batch in batches:
        store.primal(batch)
    assert sum(computed) == N - kept


def test_what_a_store_says_that_it_keeps() -> None:
    lin = linearization()
    store = SampleStore(lin, Inputs(X), memory=bound(lin, 1, 0.5))
    assert store.kept.startswith(f"residuals of {store.room.residuals} of 40 samples, z₀ of all (")
    assert store.kept.endswith(f" bytes), {store.room.batch} at a time") or "MB" in store.kept
    assert SampleStore(lin, Inputs(X), cache="none").kept.startswith("activations alone (")


@pytest.mark.parametrize("settings", [{"rounds": 3}, {"mode": "gradient"}, {"solver": "adam", "epochs": 2}])
def test_a_fit_in_little_memory_is_the_same(settings: dict[str, Any]) -> None:
    y = (X[:, 0].mean((1, 2)) > 0).astype(int)

    def fitted(given: float | str) -> GradientFeatureClassifier:
        return GradientFeatureClassifier(
            network(), theta2=["2", "6"], augment="mirror", memory=given, random_state=0, **settings
        ).fit(X, y)

    lin = linearization()
    little, much = fitted(sizes_of(lin, 2 * N).least + 4000), fitted("1GB")
    torch.testing.assert_close(little.w2_, much.w2_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(little.predict_proba(X), much.predict_proba(X), rtol=1e-6)
