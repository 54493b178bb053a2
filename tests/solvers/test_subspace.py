"""The subspace solver against closed forms and scikit-learn, on features written out as a matrix in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from gradfeat.data import Inputs
from gradfeat.errors import ConvergenceError
from gradfeat.linearization import linearize
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, Squared
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.dual import Dual
from gradfeat.solvers.gradient_features import GradientFeatures, inner
from gradfeat.solvers.kronecker import KroneckerFactors, estimate_factors
from gradfeat.solvers.subspace import Activations, Objective, Penalties, Subspace

N, C, D = 40, 3, 5
PENALTIES = Penalties(0.05, 0.02)


def problem(
    *, kind: str = "convolution", seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[SampleStore, Tensor]:
    torch.manual_seed(seed)
    network: nn.Module
    if kind == "convolution":
        network = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
            nn.GroupNorm(2, 4),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, D),
        )
        X = torch.randn(N, 2, 6, 6)
    else:
        network = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, D))
        X = torch.randn(N, 4)
    lin = linearize(network.to(dtype), X[:3].to(dtype), "*")
    omega = torch.randn(D, C, dtype=torch.float64).to(dtype)
    return SampleStore(lin, Inputs(X.to(dtype).numpy(), None)), omega


def dense(store: SampleStore, omega: Tensor, parametrization: str = "standard") -> Tensor:
    """Return Φ as a matrix, (n · c, |θ₂|), one column for each unit vector."""
    features = GradientFeatures(store, omega, parametrization=parametrization)
    names = {name: value.shape for name, value in features.zeros().items()}
    size = sum(shape.numel() for shape in names.values())

    def unflatten(vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([shape.numel() for shape in names.values()])
        return {name: part.view(shape) for (name, shape), part in zip(names.items(), parts, strict=True)}

    columns = [features.forward(unflatten(row), torch.arange(N)).flatten() for row in torch.eye(size).double()]
    return torch.stack(columns, 1)


def labels(loss: Loss) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(loss, CrossEntropy):
        return torch.arange(N) % C
    if isinstance(loss, MultiLabelLogistic):
        y = torch.randint(0, 2, (N, C), generator=generator).double()
        y[::7, 1] = float("nan")
        return y
    return torch.randn(N, C, dtype=torch.float64, generator=generator)


def make(
    store: SampleStore,
    omega: Tensor,
    loss: Loss,
    *,
    mode: str = "full",
    weight: Tensor | None = None,
    parametrization: str = "standard",
    train: Tensor | None = None,
    metric: str = "plain",
) -> Subspace:
    train = torch.arange(N) if train is None else train
    return Subspace(
        GradientFeatures(store, omega, parametrization=parametrization, batch_size=16),
        Activations(store.features, train, weight) if mode == "full" else None,
        Objective(labels(loss), loss, train, weight),
        start=store.features @ omega,
        generator=torch.Generator().manual_seed(0),
        metric=metric,
    )


def reference(phi: Tensor, f: Tensor | None, loss: Loss, share: Tensor, y: Tensor) -> float:
    """Minimise the same objective over every entry of w₁, b and w₂ by Newton's method with autograd's Hessian."""
    n = len(share)
    parts = [phi.view(n, C, -1)]
    ridge = [torch.full((phi.shape[1],), PENALTIES.lambda2)]
    if f is not None:
        parts.append(torch.einsum("nd,ck->ncdk", f, torch.eye(C).double()).flatten(2))
        ridge.append(torch.full((f.shape[1] * C,), PENALTIES.lambda1))
    parts.append(torch.eye(C).double().expand(n, C, C))
    ridge.append(torch.zeros(C))
    design, penalty = torch.cat(parts, 2), torch.cat(ridge).double()

    def objective(x: Tensor) -> Tensor:
        return (share * loss.per_sample(design @ x, y)).sum() + 0.5 * (penalty * x * x).sum()

    x = torch.zeros(design.shape[2], dtype=torch.float64)
    for _ in range(30):
        gradient = torch.func.grad(objective)(x)
        step = torch.linalg.lstsq(torch.func.hessian(objective)(x), gradient[:, None], driver="gelsd").solution[:, 0]
        x = x - step
    assert float(torch.func.grad(objective)(x).abs().max()) < 1e-9
    return float(objective(x))


@pytest.mark.parametrize("kind", ["convolution", "linear"])
@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("loss", [CrossEntropy(), MultiLabelLogistic(), Squared()], ids=lambda loss: loss.name)
def test_reaches_the_optimum(loss: Loss, mode: str, kind: str) -> None:
    store, omega = problem(kind=kind)
    point, solution = make(store, omega, loss, mode=mode).solve(PENALTIES, tolerance=1e-7, iterations=200)
    assert solution.converged
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    optimum = reference(dense(store, omega), store.features if mode == "full" else None, loss, share, labels(loss))
    assert optimum <= point.objective * (1 + 1e-9)
    assert point.objective == pytest.approx(optimum, rel=1e-6)
    for tolerance in (3e-2, 1e-3, 1e-5):
        point, solution = make(store, omega, loss, mode=mode).solve(PENALTIES, tolerance=tolerance, iterations=200)
        assert point.objective <= optimum * (1 + solution.gap) * (1 + 1e-9)
    assert solution.gap < 1e-3
    assert f"at most {100 * solution.gap:.2g} % above" in solution.reason


def test_weights_part_of_the_samples_and_another_parametrization() -> None:
    store, omega = problem()
    loss, train = CrossEntropy(), torch.arange(0, N, 2)
    weight = torch.rand(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    subspace = make(store, omega, loss, weight=weight, parametrization="ntk_fan_in", train=train)
    point, _ = subspace.solve(PENALTIES, tolerance=1e-7, iterations=200)
    phi = dense(store, omega, "ntk_fan_in").view(N, C, -1)[train].reshape(len(train) * C, -1)
    share = weight[train] / weight[train].sum()
    optimum = reference(phi, store.features[train], loss, share, labels(loss)[train])
    assert point.objective == pytest.approx(optimum, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_unit_of_the_penalty_is_the_mean_squared_length_of_the_features(weighted: bool) -> None:
    store, omega = problem(kind="linear")
    y, loss = labels(Squared()), Squared()
    phi = dense(store, omega)
    lengths = phi.square().view(N, -1).sum(1)
    weight = lengths**3 if weighted else torch.ones(N, dtype=torch.float64)
    features, rows = GradientFeatures(store, omega, batch_size=16), torch.arange(N)
    logits, generator = store.features @ omega, torch.Generator().manual_seed(0)
    found = [
        estimate_factors(features, loss, logits, y, rows, generator, N * weight / weight.sum()).trace
        for _ in range(200)  # each with random signs, whose mean is the length
    ]
    length = float(weight @ lengths / weight.sum())
    assert np.mean(found) == pytest.approx(length, rel=0.1)
    assert abs(length / float(lengths.mean()) - 1) > 0.3 or not weighted
    assert Dual(phi @ phi.T, None, y, weight).unit == pytest.approx(length / N, rel=1e-9)


def test_squared_loss_is_kernel_ridge_regression() -> None:
    store, omega = problem(kind="linear")
    phi, y = dense(store, omega), labels(Squared()).flatten()
    subspace = make(store, omega, Squared(), mode="gradient")
    point, _ = subspace.solve(PENALTIES, tolerance=1e-10, iterations=300)
    intercepts = torch.eye(C).double().repeat(N, 1)  # unpenalized: projected out
    project = torch.eye(N * C).double() - intercepts @ torch.linalg.pinv(intercepts)
    kernel = project @ phi @ phi.T @ project
    residual = project @ y
    fitted = kernel @ torch.linalg.solve(kernel + N * PENALTIES.lambda2 * torch.eye(N * C).double(), residual)
    found = subspace.logits(point, torch.arange(N)).flatten()
    torch.testing.assert_close(project @ found, fitted, rtol=0, atol=1e-4)


def test_without_gradients_it_is_logistic_regression() -> None:
    store, omega = problem()
    subspace = make(store, omega, CrossEntropy())
    for column in range(D):
        for output in range(C):
            direction = torch.zeros(D, C, dtype=torch.float64)
            direction[column, output] = 1
            subspace.add_w1(direction)
    point = subspace.minimum(PENALTIES)
    w1, b, w2 = subspace.weights(point)
    f, y = store.features.numpy(), labels(CrossEntropy()).numpy()
    model = LogisticRegression(C=1 / (N * PENALTIES.lambda1), tol=1e-10, max_iter=1000).fit(f, y)
    assert w1 is not None
    logits = f @ w1.numpy() + b.numpy()
    np.testing.assert_allclose(
        logits - logits.mean(1, keepdims=True),
        (d := model.decision_function(f)) - d.mean(1, keepdims=True),
        atol=1e-4,
    )
    assert all(not value.any() for value in w2.values())


def test_weights_give_the_logits_of_the_solution() -> None:
    store, omega = problem()
    subspace = make(store, omega, CrossEntropy(), parametrization="ntk_fan_out")
    point, _ = subspace.solve(PENALTIES, iterations=4)
    w1, b, w2 = subspace.weights(point)
    everything = torch.arange(N)
    moved = store.linearization.tangent(w2, store.primal(everything)[1])
    assert w1 is not None
    torch.testing.assert_close(store.features @ w1 + b + moved @ omega, subspace.logits(point, everything))


def test_every_iteration_lowers_the_objective_and_one_span_serves_all_penalties() -> None:
    store, omega = problem()
    subspace = make(store, omega, CrossEntropy())
    _, solution = subspace.solve(PENALTIES, tolerance=0, iterations=8)
    assert len(solution.objective) == 8
    assert not solution.converged
    assert all(b <= a * (1 + 1e-9) for a, b in zip(solution.objective, solution.objective[1:], strict=False))
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    heavier = Penalties(PENALTIES.lambda1, 10 * PENALTIES.lambda2)
    own, _ = make(store, omega, CrossEntropy()).solve(heavier, tolerance=1e-8, iterations=100)
    assert subspace.minimum(heavier).objective == pytest.approx(own.objective, rel=0.05)
    assert float(share.sum()) == pytest.approx(1)


def test_map_and_transpose_are_adjoint() -> None:
    store, omega = problem()
    features = GradientFeatures(store, omega, parametrization="ntk_fan_in", batch_size=7)
    generator = torch.Generator().manual_seed(0)
    w2 = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in features.zeros().items()
    }
    u, indices = torch.randn(N, C, generator=generator, dtype=torch.float64), torch.randperm(N, generator=generator)
    left = float((features.forward(w2, indices) * u).sum())
    assert left == pytest.approx(inner(w2, features.transpose(u, indices)), rel=1e-12)
    assert features.passes == pytest.approx(1)


def test_a_decomposition_that_fails_in_single_precision_is_done_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    store, omega = problem(kind="linear", dtype=torch.float32)
    features, logits = GradientFeatures(store, omega), store.features @ omega
    eigh, failing = torch.linalg.eigh, {torch.float32}
    gradient = {name: torch.randn_like(value) for name, value in features.zeros().items()}

    def factors() -> KroneckerFactors:
        generator = torch.Generator().manual_seed(0)
        return estimate_factors(features, Squared(), logits, labels(Squared()), torch.arange(N), generator)

    expected = factors().precondition(gradient, 0.1)

    def decomposed(matrix: Tensor) -> Any:
        if matrix.dtype in failing:
            raise torch.linalg.LinAlgError("failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", decomposed)
    found = factors().precondition(gradient, 0.1)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    failing.add(torch.float64)
    with pytest.raises(ConvergenceError, match="cannot be decomposed"):
        factors()


def test_factors_invert_what_they_stand_for() -> None:
    store, omega = problem(kind="linear")
    subspace = make(store, omega, Squared(), mode="gradient")
    phi = dense(store, omega)
    assert subspace.factors.trace == pytest.approx(float((phi * phi).sum()) / N, rel=0.15)
    gradient = {name: torch.randn_like(value) for name, value in subspace.features.zeros().items()}
    stiff = subspace.factors.precondition(gradient, 1e6)
    for name, value in gradient.items():
        torch.testing.assert_close(stiff[name] * 1e6, value, rtol=1e-3, atol=1e-3)


def dense_metric(store: SampleStore, omega: Tensor, loss: Loss, parametrization: str) -> tuple[Tensor, Tensor]:
    """Return H and S = κ (H / h̄ + 5) as matrices, from ``(H + 1)⁻¹`` of every unit vector."""
    features = GradientFeatures(store, omega, parametrization=parametrization, batch_size=16)
    factors = estimate_factors(
        features, loss, store.features @ omega, labels(loss), torch.arange(N), torch.Generator().manual_seed(0)
    )
    zeros = features.zeros()

    def inverse(name: str) -> Tensor:
        units = torch.eye(zeros[name].numel()).double()
        return torch.stack([factors.precondition({name: u.view_as(zeros[name])}, 1.0)[name].flatten() for u in units])

    H = torch.block_diag(*(torch.linalg.inv(inverse(name)) - torch.eye(zeros[name].numel()) for name in zeros))
    plain = H / H.diagonal().mean() + 5 * torch.eye(len(H)).double()
    return H, plain * torch.trace(torch.linalg.solve(plain, H)) / torch.trace(H)


@pytest.mark.parametrize("parametrization", ["standard", "ntk_fan_in"])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_whitened_metric_is_a_ridge_with_the_explicit_metric(kind: str, parametrization: str) -> None:
    store, omega = problem(kind=kind)
    loss = Squared()
    subspace = make(store, omega, loss, metric="whitened", parametrization=parametrization)
    point, solution = subspace.solve(PENALTIES, tolerance=1e-9, iterations=200)
    assert solution.converged
    H, S = dense_metric(store, omega, loss, parametrization)
    assert float(torch.trace(torch.linalg.solve(S, H))) == pytest.approx(float(torch.trace(H)), rel=1e-9)
    assert make(store, omega, loss, parametrization=parametrization).unit == pytest.approx(subspace.unit, rel=1e-9)
    # ridge over all of (w₂, w₁, b), its penalty a matrix
    phi, f = dense(store, omega, parametrization), store.features
    eye = torch.eye(C).double()
    design = torch.cat([phi, torch.einsum("nd,kl->nkdl", f, eye).reshape(N * C, D * C), eye.repeat(N, 1)], 1)
    penalty = torch.block_diag(PENALTIES.lambda2 * S, PENALTIES.lambda1 * torch.eye(D * C).double(), 0 * eye)
    solved = torch.linalg.solve(design.T @ design / N + penalty, design.T @ labels(loss).flatten() / N)
    optimum = 0.5 * float((design @ solved - labels(loss).flatten()).square().sum() / N + solved @ penalty @ solved)
    assert point.objective == pytest.approx(optimum, rel=1e-7)
    w1, _, w2 = subspace.weights(point)
    assert w1 is not None
    torch.testing.assert_close(w1.flatten(), solved[len(S) : -C], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(subspace.logits(point, torch.arange(N)).flatten(), design @ solved, rtol=1e-3, atol=1e-3)
    if parametrization == "standard":  # w₂ is given in these units
        found = torch.cat([value.flatten() for value in w2.values()])
        torch.testing.assert_close(found, solved[: len(S)], rtol=1e-2, atol=1e-3)
    plain, _ = make(store, omega, loss, parametrization=parametrization).solve(PENALTIES, tolerance=1e-9)
    assert plain.objective != pytest.approx(point.objective, rel=1e-3)


def test_whitened_metric_of_a_loss_that_bends_and_of_no_gradients() -> None:
    store, omega = problem()
    loss = CrossEntropy()
    point, solution = make(store, omega, loss, metric="whitened").solve(PENALTIES, tolerance=1e-7, iterations=200)
    assert solution.converged
    _, S = dense_metric(store, omega, loss, "standard")
    values, vectors = torch.linalg.eigh(S)
    phi = dense(store, omega) @ (vectors * values.rsqrt() @ vectors.T)
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    assert point.objective == pytest.approx(reference(phi, store.features, loss, share, labels(loss)), rel=1e-6)
    empty, _ = make(store, omega * 0, loss, metric="whitened").solve(PENALTIES, iterations=2)
    assert np.isfinite(empty.objective)


def test_interruption_keeps_finished_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    store, omega = problem()
    subspace = make(store, omega, CrossEntropy())
    grow, calls = Subspace.grow, {"n": 0}

    def interrupted(self: Subspace, *arguments: object) -> float:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return grow(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Subspace, "grow", interrupted)
    point, solution = subspace.solve(PENALTIES, tolerance=0)
    assert len(solution.objective) == 3
    assert solution.reason == "interrupted after 3 iterations"
    assert point.objective == pytest.approx(solution.objective[-1], rel=1e-9)


def test_interruption_within_a_pass_leaves_no_direction_without_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    store, omega = problem()
    subspace = make(store, omega, CrossEntropy())
    forward, calls = GradientFeatures.forward, {"n": 0}

    def interrupted(self: GradientFeatures, *arguments: Any) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] == 3:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(GradientFeatures, "forward", interrupted)
    point, solution = subspace.solve(PENALTIES, tolerance=0)
    assert solution.interrupted
    assert len(solution.objective) == 2
    assert point.objective <= solution.objective[-1] * (1 + 1e-9)  # w₁ may have its third direction already
    again, _ = subspace.solve(PENALTIES)
    assert again.objective < point.objective


def test_a_full_memory_joins_directions_and_still_converges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfeat.solvers.subspace.available_memory", lambda device: 0)
    store, omega = problem(kind="linear")
    point, solution = make(store, omega, CrossEntropy()).solve(PENALTIES, tolerance=1e-7, iterations=300)
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    optimum = reference(dense(store, omega), store.features, CrossEntropy(), share, labels(CrossEntropy()))
    assert solution.converged
    assert point.objective == pytest.approx(optimum, rel=1e-5)


@pytest.mark.parametrize("loss", [CrossEntropy(), Squared()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_the_size_of_omega_makes_no_difference(size: float, loss: Loss) -> None:
    """Features s times as large under a penalty s² times as heavy are the same problem, with w₂ / s as its solution."""
    store, omega = problem()
    point, solution = make(store, omega, loss).solve(PENALTIES, tolerance=1e-6, iterations=200)
    scaled = make(store, size * omega, loss)
    other, found = scaled.solve(
        Penalties(PENALTIES.lambda1, size**2 * PENALTIES.lambda2), tolerance=1e-6, iterations=200
    )
    assert solution.converged
    assert found.converged
    assert other.objective == pytest.approx(point.objective, rel=1e-5)
