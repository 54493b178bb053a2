from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold

from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.losses import CrossEntropy, MultiLabelLogistic, Squared
from gradfeat.solvers.probe import fit_probe, fit_probes
from gradfeat.solvers.probe_path import FEW


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
        tolerance=1e-8,
    )
    assert probe.converged
    logits = f @ probe.omega.numpy() + probe.bias.numpy()
    # two outputs with a penalty each are one output with half of it: scikit-learn's binary model is the one output
    strength = 0.05 if k > 2 else 0.05 / 2
    model = LogisticRegression(C=1 / (w.sum() * strength), solver="newton-cg", tol=1e-10, max_iter=1000).fit(
        f, y, sample_weight=w
    )
    expected = model.decision_function(f)
    if k == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, rtol=1e-5, atol=1e-6)
    else:
        centred = expected - expected.mean(1, keepdims=True)
        np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), centred, rtol=1e-5, atol=1e-6)


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
    f, y, _ = problem(FEW, 30, 4)
    given = torch.tensor(f), torch.tensor(y), CrossEntropy()
    probe, again = fit_probe(*given, random_state=3), fit_probe(*given, random_state=3)
    assert probe.path == again.path
    assert torch.equal(probe.omega, again.omega)
    # the heaviest of those that are as good as the best
    least = min(loss for _, loss, _ in probe.path)
    assert {penalty: loss for penalty, loss, _ in probe.path}[probe.penalty] <= least * (1 + 2e-3)
    penalties = [point[0] for point in probe.path]
    assert penalties == sorted(penalties, reverse=True)
    splitter = fit_probe(*given, cv=KFold(3, shuffle=True, random_state=0))
    assert len(splitter.path) > 3


@pytest.mark.parametrize("multilabel", [False, True])
def test_penalty_of_few_samples_has_the_greatest_posterior(multilabel: bool) -> None:
    for n in (12, 40, 150):
        f, labels, _ = problem(n, 30, 4)
        y, loss = (np.eye(4)[labels], MultiLabelLogistic()) if multilabel else (labels, CrossEntropy())
        probe = fit_probe(torch.tensor(f), torch.tensor(y), loss, random_state=0)
        # logits are normal a priori, with variance v / (penalty n); the spread's logarithm is normal about that of 4
        v = f.var(0).sum()
        posterior = {
            penalty: -n * held_out * (4 if multilabel else 1) - 2 * np.log10(np.sqrt(v / (penalty * n)) / 4) ** 2
            for penalty, held_out, _ in probe.path
        }
        greatest = max(posterior.values())
        nats = n * (4 if multilabel else 1)
        assert -posterior[probe.penalty] <= -greatest + 3e-3 * nats  # two penalties in turn may be negligibly worse
        assert probe.penalty == max(p for p, value in posterior.items() if value >= posterior[probe.penalty])


def test_penalty_of_labels_that_say_nothing_is_near_the_likely_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for unit in (1e-3, 1.0, 1e3):
        f = unit * torch.randn(4, 50, generator=generator)
        probe = fit_probe(f, torch.tensor([0, 1, 2, 3]), CrossEntropy())
        assert "not chosen" in probe.note
        v = float(f.double().var(0, correction=0).sum())
        assert probe.penalty == pytest.approx(v / (4 * 16))


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
        tolerance=1e-8,
    )
    weighted = fit_probe(
        torch.tensor(f),
        torch.tensor(y),
        CrossEntropy(),
        sample_weight=torch.tensor(count, dtype=torch.float64),
        penalty=0.1,
        tolerance=1e-8,
    )
    torch.testing.assert_close(twice.omega, weighted.omega, rtol=1e-5, atol=1e-6)


def test_label_that_never_occurs_stays_finite() -> None:
    f, y, _ = problem(50, 5, 3)
    Y = np.eye(4)[y]  # the last column is all zero
    Y[0, 0] = np.nan
    probe = fit_probe(torch.tensor(f), torch.tensor(Y), MultiLabelLogistic(), random_state=0)
    assert torch.isfinite(probe.omega).all()
    assert (torch.tensor(f) @ probe.omega + probe.bias)[:, 3].max() < -2


def test_multi_label_is_a_logistic_regression_for_each_label() -> None:
    f, y, weight = problem(90, 6, 3)
    Y = np.eye(3)[y]
    for w in (np.ones(90), weight):
        probe = fit_probe(
            torch.tensor(f),
            torch.tensor(Y),
            MultiLabelLogistic(),
            sample_weight=torch.tensor(w),
            penalty=0.02,
            tolerance=1e-8,
        )
        for k in range(3):  # the loss is the mean over labels, so each has three times the penalty
            model = LogisticRegression(C=1 / (3 * 0.02 * w.sum()), solver="newton-cg", tol=1e-10, max_iter=1000)
            model.fit(f, Y[:, k], sample_weight=w)
            np.testing.assert_allclose(probe.omega[:, k].numpy(), model.coef_[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(float(probe.bias[k]), model.intercept_[0], rtol=1e-5, atol=1e-6)


def test_path_of_cross_entropy_is_that_of_logistic_regression() -> None:
    f, y, weight = problem(90, 8, 3)
    folds = list(KFold(3).split(f))
    probe = fit_probe(torch.tensor(f), torch.tensor(y), CrossEntropy(), sample_weight=torch.tensor(weight), cv=folds)
    for penalty, loss, _ in probe.path[:6]:
        losses = []
        for seen, unseen in folds:
            model = LogisticRegression(C=1 / (penalty * weight[seen].sum()), solver="newton-cg", max_iter=1000)
            p = model.fit(f[seen], y[seen], sample_weight=weight[seen]).predict_proba(f[unseen])
            losses.append(np.average(-np.log(p[range(len(unseen)), y[unseen]]), weights=weight[unseen]))
        assert loss == pytest.approx(np.mean(losses), rel=3e-3)


@pytest.mark.parametrize("loss", [CrossEntropy(), Squared()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_the_unit_of_the_features_does_not_matter(loss: CrossEntropy | Squared, unit: float) -> None:
    f, y, _ = problem(60, 5, 3)
    targets = torch.tensor(y) if loss.task == "multiclass" else torch.tensor(np.eye(3)[y])
    one, other = (fit_probe(torch.tensor(f * u), targets, loss, random_state=0, tolerance=1e-8) for u in (1.0, unit))
    assert other.penalty == pytest.approx(one.penalty * unit**2)
    torch.testing.assert_close(other.omega * unit, one.omega, rtol=1e-5, atol=1e-7)


def test_light_penalties_converge_in_few_iterations() -> None:
    f, y, _ = problem(100, 150, 5, spread=1.5)  # separable, variances over six powers of ten
    probe = fit_probe(torch.tensor(f), torch.tensor(y), CrossEntropy(), penalty=1e-4)
    assert probe.converged
    assert probe.iterations < 300


def test_samples_of_weight_zero_are_absent() -> None:
    f, y, weight = problem(60, 4, 3)
    weight[20:] = 0
    f[30:] *= 1e6
    given = torch.tensor(f), torch.tensor(y), CrossEntropy()
    zeros = fit_probe(*given, sample_weight=torch.tensor(weight), random_state=0)
    absent = fit_probe(*(x[:20] for x in given[:2]), given[2], sample_weight=torch.tensor(weight[:20]), random_state=0)
    assert zeros.path == absent.path
    assert torch.equal(zeros.omega, absent.omega)
    # pairs of indices are of all samples
    parts = np.arange(0, 60, 2), np.arange(1, 60, 2)
    assert fit_probe(*given, sample_weight=torch.tensor(weight), cv=[parts, parts[::-1]]).path
    with pytest.raises(DataError, match="empty part"):
        fit_probe(*given, sample_weight=torch.tensor(weight), cv=[(np.arange(20), np.arange(20, 60))])


def test_a_class_absent_from_a_fold() -> None:
    f, y = problem(60, 4, 3)[0], np.arange(60) // 20
    probe = fit_probe(torch.tensor(f), torch.tensor(y), CrossEntropy(), cv=KFold(3))
    assert torch.isfinite(probe.omega).all()
    assert all(np.isfinite(loss) for _, loss, _ in probe.path)


def test_one_class_and_one_sample() -> None:
    probe = fit_probe(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64), CrossEntropy())
    assert not probe.omega.any()
    assert "not chosen" in probe.note


def test_fewer_folds_are_noted() -> None:
    f = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    assert fit_probe(f, torch.tensor([0] * 9 + [1] * 3), CrossEntropy(), random_state=0).note.startswith("3 folds")
    assert fit_probe(f[:4], f[:4, :1], Squared(), random_state=0).note.startswith("4 folds")


def test_an_unfinished_fit_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfeat.solvers.probe.ITERATIONS", 2)
    f, y, _ = problem(50, 5, 3)
    probe = fit_probe(torch.tensor(f), torch.tensor(y), CrossEntropy(), penalty=0.1)
    assert not probe.converged
    assert "not converged" in probe.note


def test_bad_arguments() -> None:
    f, y = torch.randn(10, 3), torch.arange(10) % 2
    with pytest.raises(ConfigurationError, match="negative"):
        fit_probe(f, y, CrossEntropy(), penalty=-1.0)
    with pytest.raises(ConfigurationError, match="auto"):
        fit_probe(f, y, CrossEntropy(), penalty="none")
    for penalty in (float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="finite"):
            fit_probe(f, y, CrossEntropy(), penalty=penalty)
    with pytest.raises(ConfigurationError, match="folds"):
        fit_probe(f, y, CrossEntropy(), cv=1)
    for weight in (torch.zeros(10), -torch.ones(10), torch.full((10,), float("nan")), torch.ones(9)):
        with pytest.raises(DataError, match="sample_weight"):
            fit_probe(f, y, CrossEntropy(), sample_weight=weight)
    for targets, loss in ((y[:9], CrossEntropy()), (f[:, 0], Squared()), (f[:, :1] / 0, Squared())):
        with pytest.raises(DataError, match="y must be"):
            fit_probe(f, targets, loss)
    for features in (f[:0], f[:, 0]):
        with pytest.raises(DataError, match="f must be"):
            fit_probe(features, y, CrossEntropy())
    f[3, 1] = float("inf")
    with pytest.raises(ConvergenceError, match="not finite"):
        fit_probe(f, y, CrossEntropy())


@pytest.mark.parametrize("loss", [CrossEntropy(), Squared()], ids=lambda loss: loss.name)
def test_several_penalties_are_fits_one_by_one(loss: CrossEntropy | Squared) -> None:
    torch.manual_seed(0)
    f, weight = torch.randn(30, 7), torch.rand(30).round(decimals=1)
    y = torch.arange(30) % 3 if isinstance(loss, CrossEntropy) else torch.randn(30, 2)
    penalties = [1e-3, 1.0, 1e3]
    found = fit_probes(f, y, loss, penalties, sample_weight=weight)
    for penalty, probe in zip(penalties, found, strict=True):
        alone = fit_probe(f, y, loss, sample_weight=weight, penalty=penalty)
        torch.testing.assert_close(probe.omega, alone.omega, rtol=0, atol=0)
        torch.testing.assert_close(probe.bias, alone.bias, rtol=0, atol=0)
        assert (probe.penalty, probe.path, probe.converged) == (penalty, [], True)
    with pytest.raises(ConfigurationError, match="penalty must be finite"):
        fit_probes(f, y, loss, [1.0, -1.0])
