from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier
from gradfeat.baselines import leaky, lqf
from gradfeat.errors import ConfigurationError, GradfeatWarning

KAPPA = 15.0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)), nn.ReLU()).double()


def data(n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).normal(size=(n, 3))
    return X, (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)


def test_only_activations_change() -> None:
    original = network()
    changed = leaky(original, 0.3)
    x = torch.randn(5, 3, dtype=torch.float64)
    first, second = original[0], original[1][1]
    expected = nn.functional.leaky_relu(second(nn.functional.leaky_relu(first(x), 0.3)), 0.3)
    torch.testing.assert_close(changed(x), expected)
    assert list(changed.state_dict()) == list(original.state_dict())
    assert isinstance(original[2], nn.ReLU)
    assert isinstance(leaky(nn.ReLU(), 0.1), nn.LeakyReLU)
    torch.testing.assert_close(leaky(original, 0.0)(x), original(x))


def least_squares(model: GradientFeatureClassifier, X: np.ndarray, y: np.ndarray, pair: tuple[float, float]) -> Any:
    """The minimum of ½ mean ‖W₁ᵀf + b + ω̄ᵀJ w₂ - κ onehot‖² + λ₁/2 ‖W₁‖² + λ₂/2 ‖w₂‖², by explicit features."""
    changed, x = leaky(network(), 0.1), torch.from_numpy(X)
    theta = {name: value.detach() for name, value in changed.named_parameters()}

    def of(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(changed, values, (x,))

    jacobian = torch.cat([value.flatten(2) for value in torch.func.jacrev(of)(theta).values()], 2)  # (n, d, |θ₂|)
    omega = model.omega_.double()
    phi = torch.einsum("ndp,dc->ncp", jacobian, omega)
    n, c = len(X), omega.shape[1]
    f = of(theta).detach()
    one = torch.ones(n, 1, dtype=f.dtype)
    eye = torch.eye(c, dtype=f.dtype)
    design = torch.cat(  # unknowns: W₁ (d, c), b (c), w₂
        [torch.einsum("nd,kc->nkdc", torch.cat([f, one], 1), eye).reshape(n * c, -1), phi.reshape(n * c, -1)], 1
    )
    d = f.shape[1]
    ridge = torch.tensor([pair[0]] * (d * c) + [0.0] * c + [pair[1]] * phi.shape[2], dtype=f.dtype)
    target = (KAPPA * eye[torch.from_numpy(y)]).flatten()
    solution = torch.linalg.solve(design.T @ design / n + ridge.diag(), design.T @ target / n)
    logits = (design @ solution).view(n, c)
    objective = 0.5 * ((logits.flatten() - target).square().sum() / n + (ridge * solution.square()).sum())
    return logits.numpy(), float(objective)


@pytest.mark.parametrize("solver", ["dual", "subspace"])
def test_the_solution_is_that_of_least_squares_on_explicit_features(solver: str) -> None:
    X, y = data()
    pair = (0.05, 0.2)
    model = lqf(network(), slope=0.1, solver=solver, penalty=pair, precision="float64", random_state=0).fit(X, y)
    assert isinstance(model, GradientFeatureClassifier)
    assert set(model.w2_) == {"0.weight", "0.bias", "1.1.weight", "1.1.bias"}
    logits, objective = least_squares(model, X, y, pair)
    if solver == "dual":
        np.testing.assert_allclose(model.decision_function(X), logits, atol=1e-8)
    assert model.solution_.solver == solver
    # the subspace solver stops at a decrement of a hundredth
    assert model.solution_.objective[-1] == pytest.approx(objective, rel=1e-9 if solver == "dual" else 0.02)


def test_a_network_by_a_callable_and_penalties_by_held_out_data() -> None:
    X, y = data(90)
    torch.manual_seed(1)
    build = lambda shape: nn.Sequential(nn.Linear(shape[1], 32), nn.ReLU(), nn.Linear(32, 8))  # noqa: E731
    model = lqf(build, theta2="2", random_state=0).fit(X.astype(np.float32), y)
    assert isinstance(model.backbone_.network[1], nn.LeakyReLU)
    assert set(model.w2_) == {"2.weight", "2.bias"}
    assert model.choice_ is not None
    assert model.score(X.astype(np.float32), y) > 0.5


def test_a_relu_out_of_reach_is_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    X, y = data()
    with pytest.warns(GradfeatWarning, match="1 ReLUs above the bottom of θ₂ are called as functions"):
        lqf(Functional().double(), penalty=1.0, random_state=0).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "cross_entropy"}, "leave out loss"),
        ({"mode": "gradient", "loss": "squared"}, "leave out loss, mode"),
        ({"slope": float("nan")}, "slope must be finite"),
        ({"weights": "random"}, "belongs to a backbone given by name"),
    ],
)
def test_bad_configurations(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        lqf(network(), **settings)
