"""Programs for several lengths of text against those of the longest alone, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradfeat.data import Inputs
from gradfeat.linearization import linearize
from gradfeat.linearization.lengths import LengthGroups, linearize_lengths
from gradfeat.losses import CrossEntropy
from gradfeat.samples.memory import Sizes
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.kernel import gram
from gradfeat.solvers.kronecker import estimate_factors


class Texts(nn.Module):
    """A transformer layer over embedded tokens, averaged under the mask."""

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.masked = masked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids, mask = x.unbind(1)
        own = mask.bool() if self.masked else torch.ones_like(mask, dtype=torch.bool)
        z = self.layer(self.embed(ids), src_key_padding_mask=~own)
        weight = own.to(z)[:, :, None]
        return (z * weight).sum(1) / weight.sum(1)


def texts(n: int = 12, longest: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(n, 2, longest, dtype=torch.int64)
    for i in range(n):
        own = 1 + (5 * i) % longest
        x[i, 0, :own] = torch.randint(1, 20, (own,), generator=generator)
        x[i, 1, :own] = 1
    return x


@pytest.fixture
def pair():
    torch.manual_seed(0)
    network, x = Texts().double().eval(), texts()
    alone = linearize(network, x, "layer")
    grouped = linearize_lengths(network, x, "layer", (3, 5, 9))
    assert isinstance(grouped, LengthGroups)
    return alone, grouped, x


def random_w2(lin, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in lin.theta2.items()
    }


def test_every_program_gives_what_that_of_the_longest_gives(pair):
    alone, grouped, x = pair
    w2 = random_w2(alone)
    f, residuals = alone.primal(alone.bottom(x))
    z0 = grouped.bottom(x)
    f_too, split = grouped.primal(z0)
    u = torch.randn(f.shape, dtype=f.dtype)
    torch.testing.assert_close(f_too, f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grouped.tangent(w2, split), alone.tangent(w2, residuals), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grouped.network(w2, z0), alone.network(w2, alone.bottom(x)), rtol=1e-12, atol=1e-12)
    for _ in range(3):  # from the second time on by a traced program
        torch.testing.assert_close(grouped.transpose(u, split), alone.transpose(u, residuals), rtol=1e-11, atol=1e-11)
    moved = grouped.at({name: value + 0.1 for name, value in grouped.theta2.items()})
    there = alone.at({name: value + 0.1 for name, value in alone.theta2.items()})
    torch.testing.assert_close(moved(x), there(x), rtol=1e-12, atol=1e-12)


def test_texts_go_where_they_just_fit(pair):
    _, grouped, x = pair
    used = x[:, 1].sum(1)
    assert grouped.group_of(x).tolist() == [0 if n <= 3 else 1 if n <= 5 else 2 for n in used.tolist()]
    split = grouped.bottom(x[used <= 5])
    assert [len(rows) for rows in split.rows] == [int((used <= 3).sum()), int(((used > 3) & (used <= 5)).sum()), 0]
    assert split.parts[2] is None
    assert sorted(torch.cat(split.rows).tolist()) == list(range(int((used <= 5).sum())))


def test_gradients_flow_in_the_order_of_the_batch(pair):
    alone, grouped, x = pair
    u = torch.randn(len(x), 8, dtype=torch.float64)
    found = []
    for lin in (alone, grouped):
        w2 = {name: value.requires_grad_() for name, value in random_w2(lin).items()}
        _, residuals = lin.primal(lin.bottom(x))
        found.append(torch.autograd.grad((lin.tangent(w2, residuals) * u).sum(), list(w2.values())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("z0", "residuals"), [(0, 0), (0.6, 0), (1, 0), (1, 0.6), (1, 1)])
def test_kept_samples(pair, z0, residuals):
    alone, grouped, x = pair
    omega = torch.randn(8, 3, dtype=torch.float64)
    of_sample = grouped.bytes_of(grouped.group_of(x))
    sizes = Sizes(12, of_sample["z0"], of_sample["residuals"], 8 * 8, 0)
    memory = sizes.least + int(12 * (z0 * sizes.z0 + residuals * sizes.residuals)) + 8
    maps = [
        GradientFeatures(SampleStore(lin, Inputs(x), batch_size=5, **bound), omega, batch_size=4)
        for lin, bound in ((alone, {}), (grouped, {"memory": memory}))
    ]
    room = maps[1].store.room
    assert (room.z0, room.residuals) == (round(12 * z0 - 0.3), round(12 * residuals - 0.3))
    picked = torch.tensor([7, 0, 11, 3, 4, 8, 2])
    w2, u = random_w2(alone), torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(maps[1].store.features, maps[0].store.features, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maps[1].forward(w2, picked), maps[0].forward(w2, picked), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(maps[1].transpose(u, picked), maps[0].transpose(u, picked), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gram(maps[1]), gram(maps[0]), rtol=1e-11, atol=1e-11)
    part = [each.store.rows(picked).primal(torch.tensor([2, 1]))[0] for each in maps]
    torch.testing.assert_close(part[1], part[0], rtol=1e-12, atol=1e-12)
    # some of them at another point
    theta2 = {name: value + 0.1 for name, value in alone.theta2.items()}
    moved = [each.store.rows(picked).at(each.linearization.at(theta2), batch_size=3) for each in maps]
    found = [GradientFeatures(store, omega, batch_size=2).forward(w2, torch.tensor([6, 0, 3])) for store in moved]
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(moved[1].features, moved[0].features, rtol=1e-12, atol=1e-12)


def test_kronecker_factors_see_no_padding(pair):
    _, grouped, _ = pair
    x = torch.randint(1, 20, (12, 2, 9), generator=torch.Generator().manual_seed(2))
    x[:, :, 5:] = 0
    torch.manual_seed(0)
    alone = linearize(Texts().double().eval(), x[:, :, :5], "layer")
    omega, logits = torch.randn(8, 3, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    factors = []
    for lin, samples in ((alone, x[:, :, :5]), (grouped, x)):
        features = GradientFeatures(SampleStore(lin, Inputs(samples)), omega, batch_size=8)
        generator = torch.Generator().manual_seed(1)
        factors.append(
            estimate_factors(features, CrossEntropy(), logits, torch.arange(12) % 3, torch.arange(12), generator)
        )
    g = random_w2(alone)
    found = [each.precondition(g, 0.1) for each in factors]
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_weights_are_there_once(pair):
    _, grouped, _ = pair
    pointers = [
        {buffer.data_ptr() for name, buffer in member.programs["bottom"].named_buffers() if buffer.shape == (20, 8)}
        for member in grouped.members
    ]
    assert pointers[0] == pointers[1] == pointers[2]
    single = grouped.to(torch.float32)
    assert single.members[0].programs["bottom"].get_buffer("constant_0").dtype == torch.float32
    assert len({member.programs["bottom"].get_buffer("constant_0").data_ptr() for member in single.members}) == 1


def test_network_that_sees_its_padding_gets_the_longest_alone():
    torch.manual_seed(0)
    network = Texts(masked=False).double().eval()
    assert not isinstance(linearize_lengths(network, texts(), "layer", (3, 9)), LengthGroups)


def test_memory_is_that_of_each_samples_group(pair):
    _, grouped, x = pair
    group = grouped.group_of(x)
    sizes = [member.bytes_per_sample["residuals"] for member in grouped.members]
    assert sizes[0] < sizes[1] < sizes[2]
    assert grouped.bytes_of(group)["residuals"] == sum(sizes[i] for i in group.tolist()) // 12
