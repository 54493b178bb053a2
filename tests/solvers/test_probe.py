from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold

from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.losses import CrossEntropy, MultiLabelLogistic, Squared
from gradfeat.solvers.probe import fit_probe


def problem(n: int, d: int, k: int, *, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * d)
    f = rng.normal(size=(n, d)) @ np.diag(np.logspace(-spread, spread, d)) + rng.normal(size=d)
    y = (f @ rng.normal(size=(d, k)) + 3 * rng.normal(size=(n, k))).argmax(1)
    return f, y, rng.random(n)


@pytest.mark.parametrize(("n", "d", "k"), [(120, 6, 3), (30, 60, 3), (80, 1, 2), (50, 8, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression(n: int, d: int, k: int, weighted: bool) -> None:
    f, y, weight = problem(n, d, k)
    w = weight if weighted else np.ones(n)
    probe = fit_probe(
        torch.tensor(f),
        torch.tensor(y),
        CrossEntropy(),
        sample_weight=torch.tensor(w) if weighted else None,
        penalty=0.05,
        tolerance=1e-7,
    )
    assert probe.converged
    logits = f @ probe.omega.numpy() + probe.bias.numpy()
    # two outputs with a penalty each are one output with half of it: scikit-learn's binary model is the one output
    strength = 0.05 if k > 2 else 0.05 / 2
    model = LogisticRegression(C=1 / (w.sum() * strength), tol=1e-12, max_iter=100_000).fit(f, y, sample_weight=w)
    expected = model.decision_function(f)
    if k == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, rtol=1e-3, atol=1e-4)
    else:
        centred = expected - expected.mean(1, keepdims=True)
        np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), centred, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (20, 50)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ridge(n: int, d: int, weighted: bool) -> None:
    f, y, weight = problem(n, d, 3, spread=2.0)
    Y = np.eye(3)[y] + f[:, :1]
    w = weight if weighted else np.ones(n)
    probe = fit_probe(
        torch.tensor(f),
        torch.tensor(Y),
        Squared(),
        sample_weight=torch.tensor(w) if weighted else None,
        penalty=0.1,
    )
    model = Ridge(alpha=0.1 * w.sum(), solver="svd").fit(f, Y, sample_weight=w)
    np.testing.assert_allclose(probe.omega.numpy(), model.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(probe.bias.numpy(), model.intercept_, rtol=1e-8, atol=1e-10)


def test_least_squares_without_penalty() -> None:
    f, _, _ = problem(40, 5, 2)
    y = f @ np.arange(5.0)[:, None] + 2
    probe = fit_probe(torch.tensor(f), torch.tensor(y), Squared(), penalty=0)
    np.testing.assert_allclose(probe.omega.numpy()[:, 0], np.arange(5.0), atol=1e-8)


def test_penalty_is_the_best_of_its_path() -> None:
    f, y, _ = problem(150, 30, 4)
    given = torch.tensor(f), torch.tensor(y), CrossEntropy()
    probe, again = fit_probe(*given, random_state=3), fit_probe(*given, random_state=3)
    assert probe.path == again.path
    assert torch.equal(probe.omega, again.omega)
    assert probe.penalty == min(probe.path, key=lambda point: point[1])[0]
    penalties = [point[0] for point in probe.path]
    assert penalties == sorted(penalties, reverse=True)
    splitter = fit_probe(*given, cv=KFold(3, shuffle=True, random_state=0))
    assert len(splitter.path) > 3


def test_path_of_squared_loss_is_that_of_ridge() -> None:
    f, y, _ = problem(60, 10, 3)
    Y = np.eye(3)[y]
    folds = list(KFold(4).split(f))
    probe = fit_probe(torch.tensor(f), torch.tensor(Y), Squared(), cv=folds)
    for penalty, loss, _ in probe.path:
        losses = []
        for seen, unseen in folds:
            model = Ridge(alpha=penalty * len(seen), solver="svd").fit(f[seen], Y[seen])
            losses.append(0.5 * ((model.predict(f[unseen]) - Y[unseen]) ** 2).sum(1).mean())
        assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_constant_features_get_no_weight() -> None:
    f, _, _ = problem(60, 4, 3)
    f[:, 2] = 7.0
    for n in (60, 3):
        probe = fit_probe(torch.tensor(f[:n]), torch.tensor(np.arange(n) % 3), CrossEntropy())
        assert probe.omega[2].abs().max() < 1e-8
    flat = fit_probe(torch.ones(10, 4), torch.arange(10) % 2, CrossEntropy())
    assert not flat.omega.any()
    torch.testing.assert_close(flat.bias.softmax(0), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    "labels",
    [[0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 2], [0, 1] * 10 + [2]],
    ids=["n=2", "one each", "a rare class", "few", "a class of one"],
)
def test_few_samples(labels: list[int]) -> None:
    y = torch.tensor(labels)
    f = torch.randn(len(y), 6, generator=torch.Generator().manual_seed(0))
    probe = fit_probe(f, y, CrossEntropy(), random_state=0)
    assert torch.isfinite(probe.omega).all()
    assert torch.isfinite(probe.bias).all()
    assert probe.penalty > 0


def test_duplicates_are_weights() -> None:
    f, y, _ = problem(40, 6, 3)
    count = np.arange(40) % 3
    twice = fit_probe(
        torch.tensor(f.repeat(count, axis=0)),
        torch.tensor(y.repeat(count)),
        CrossEntropy(),
        penalty=0.1,
        tolerance=1e-9,
    )
    weighted = fit_probe(
        torch.tensor(f),
        torch.tensor(y),
        CrossEntropy(),
        sample_weight=torch.tensor(count, dtype=torch.float64),
        penalty=0.1,
        tolerance=1e-9,
    )
    torch.testing.assert_close(twice.omega, weighted.omega, rtol=1e-5, atol=1e-6)


def test_label_that_never_occurs_stays_finite() -> None:
    f, y, _ = problem(50, 5, 3)
    Y = np.eye(4)[y]  # the last column is all zero
    Y[0, 0] = np.nan
    probe = fit_probe(torch.tensor(f), torch.tensor(Y), MultiLabelLogistic(), random_state=0)
    assert torch.isfinite(probe.omega).all()
    assert (torch.tensor(f) @ probe.omega + probe.bias)[:, 3].max() < -2


def test_bad_arguments() -> None:
    f, y = torch.randn(10, 3), torch.arange(10) % 2
    with pytest.raises(ConfigurationError, match="negative"):
        fit_probe(f, y, CrossEntropy(), penalty=-1.0)
    with pytest.raises(ConfigurationError, match="auto"):
        fit_probe(f, y, CrossEntropy(), penalty="none")
    f[3, 1] = float("inf")
    with pytest.raises(ConvergenceError, match="not finite"):
        fit_probe(f, y, CrossEntropy())
