"""What to label next, against every choice tried by brute force in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, Squared
from gradfeat.solvers.coordinates import Coordinates
from gradfeat.solvers.design import design_rows, greedy_design
from gradfeat.solvers.leverage import Hessian, Rows, curvature_root
from gradfeat.solvers.subspace import Penalties

N, POOL, C, R, K = 12, 15, 3, 4, 6
PENALTIES = Penalties(0.03, 0.05)
LOSSES = {"squared": Squared(), "logistic": MultiLabelLogistic(), "cross_entropy": CrossEntropy()}


def drawn(n: int, seed: int, rest: float) -> tuple[Rows, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    f, along, logits = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((n, R), (n, C, K), (n, C))
    )
    own = torch.randn(n, C, C, generator=generator, dtype=torch.float64)
    return Rows(f, torch.zeros(n, dtype=torch.float64), Coordinates(along, rest * own @ own.mT)), logits


def labels(loss: Loss, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.long) if loss.task == "multiclass" else torch.zeros(n, C, dtype=torch.float64)


def setting(name: str, rest: float = 0.0) -> tuple[Hessian, Rows, Tensor, Tensor, Tensor]:
    loss = LOSSES[name]
    known, at = drawn(N, 0, 0.0)
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    hessian = Hessian(known, at, labels(loss, N), loss, share, PENALTIES)
    pool, logits = drawn(POOL, 1, rest)
    root = curvature_root(loss, logits, labels(loss, POOL))
    return hessian, pool, root, *design_rows(hessian.whitened(pool), root, hessian.rest(pool), 1 / N)


def dense(hessian: Hessian, pool: Rows) -> tuple[Tensor, Tensor]:
    """Return H and the features of each sample, (n, c, size)."""
    x = pool.times(torch.eye(C, dtype=torch.float64).expand(len(pool), -1, -1))
    lower = hessian._factor
    return lower @ lower.T, x


def cost(h: Tensor, x: Tensor, root: Tensor) -> float:
    return float(torch.einsum("ick,kl,idl,ice,ide->", x, torch.linalg.inv(h), x, root, root))


@pytest.mark.parametrize("rest", [0.0, 0.3], ids=["all is known", "own unknowns"])
@pytest.mark.parametrize("name", LOSSES)
def test_each_choice_is_the_best_of_all(name: str, rest: float) -> None:
    hessian, pool, root, rows, noise = setting(name, rest)
    found = greedy_design(rows, noise, 6)
    h, x = dense(hessian, pool)
    assert found.before == pytest.approx(cost(h, x, root), rel=1e-9)
    left = list(range(POOL))
    for sample, gain in zip(found.samples.tolist(), found.gains.tolist(), strict=True):
        before = cost(h, x, root)
        tried = {}
        for j in left:
            inner = torch.eye(C).double() * N + root[j].T @ hessian.rest(pool)[j] @ root[j]
            tried[j] = h + x[j].T @ root[j] @ torch.linalg.inv(inner) @ root[j].T @ x[j]
        worth = {j: before - cost(other, x, root) for j, other in tried.items()}
        assert worth[sample] == pytest.approx(max(worth.values()), rel=1e-7)
        assert gain == pytest.approx(worth[sample], rel=1e-7)
        h = tried[sample]
        left.remove(sample)


def test_two_that_are_the_same_are_not_chosen_one_after_the_other() -> None:
    _, _, _, rows, noise = setting("squared")
    once = greedy_design(rows, noise, 3).samples.tolist()
    twice = greedy_design(torch.cat([rows, rows]), torch.cat([noise, noise]) * 1e-3, 3).samples.tolist()
    assert len({sample % POOL for sample in twice}) == 3
    assert len(set(once)) == 3


def test_a_pool_of_one_kind_gives_each_sample_once() -> None:
    _, _, _, rows, noise = setting("cross_entropy")
    alike = greedy_design(rows[:1].expand(9, -1, -1), noise[:1].expand(9, -1, -1), 9)
    assert sorted(alike.samples.tolist()) == list(range(9))
    assert bool((alike.gains[1:] <= alike.gains[:-1] + 1e-12).all())
    assert bool((alike.gains > 0).all())


def test_single_precision_says_the_same() -> None:
    _, _, _, rows, noise = setting("cross_entropy")
    one, other = greedy_design(rows, noise, 5), greedy_design(rows.float(), noise, 5)
    assert one.samples.tolist() == other.samples.tolist()
    torch.testing.assert_close(one.gains, other.gains, rtol=1e-4, atol=0)
