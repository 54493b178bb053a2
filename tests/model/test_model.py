"""Eq. 2 against dense Jacobians, the store against recomputation, and merging against the real network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradfeat import GradientFeatureModel, linearize
from gradfeat.backbones import resolve
from gradfeat.errors import ConfigurationError
from gradfeat.fit import Plan, prepare, solve
from gradfeat.fit.merge import (
    CLOSE,
    FEWEST_SAMPLES,
    MOST_SAMPLES,
    STEPS,
    fit_head,
    merge,
    most_samples,
    original_values,
)
from gradfeat.losses import CrossEntropy
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.schedule import paper_schedule


def small_network(*, zero_gamma: bool = False, affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6, affine=affine),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 5, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_()
        if zero_gamma:
            network[4].weight[2] = 0.0
    return network.eval()


X = torch.randn(7, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
THETA2 = ["3", "4", "6"]


class Samples:
    """Counts how often each sample is read."""

    def __init__(self, x: Tensor, random: bool = False) -> None:
        self.x, self.random, self.reads = x, random, torch.zeros(len(x), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: object) -> Tensor:
        picked = list(indices)  # type: ignore[call-overload]
        self.reads[picked] += 1
        return self.x[picked]


def random_weights(model: GradientFeatureModel) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.trained():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def dense_jacobian(network: nn.Module, names: list[str]) -> dict[str, Tensor]:
    parameters = {name: value.detach() for name, value in network.named_parameters() if name in names}
    return torch.func.jacrev(lambda theta2: torch.func.functional_call(network, theta2, (X,)))(parameters)


@pytest.mark.parametrize("mode", ["activation", "gradient", "full", "finetune"])
def test_logits_are_those_of_the_dense_model(mode: str) -> None:
    network = small_network()
    lin = linearize(network, X, THETA2, fold_batchnorm=False)
    omega = torch.randn(5, 3, dtype=torch.float64)
    model = GradientFeatureModel(lin, omega, mode=mode)
    random_weights(model)
    w1, b, w2 = model.w1.detach(), model.b.detach(), {name: value.detach() for name, value in model.w2.items()}
    f = network(X)
    if mode == "finetune":
        moved = {name: value + w2[name] for name, value in lin.theta2.items()}
        expected = torch.func.functional_call(network, moved, (X,)) @ w1 + b
    else:
        jacobian = dense_jacobian(network, list(w2))  # (n, d, *shape)
        jw = sum((jacobian[name].flatten(2) @ w2[name].flatten() for name in w2), torch.zeros(7, 5).double())
        expected = b + (f @ w1 if mode != "gradient" else 0) + (jw @ omega if mode != "activation" else 0)
    torch.testing.assert_close(model(X), expected, rtol=1e-10, atol=1e-10)


def test_step_zero_is_the_probe() -> None:
    lin = linearize(small_network(), X, THETA2)
    omega, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    probe = lin(X) @ omega + bias
    for mode in ("activation", "full", "finetune"):
        torch.testing.assert_close(GradientFeatureModel(lin, omega, mode=mode, bias=bias)(X), probe)
    assert not GradientFeatureModel(lin, omega, mode="gradient", bias=bias)(X).any()


def test_training_moves_nothing_but_its_own_weights() -> None:
    lin = linearize(small_network(), X, THETA2)
    omega = torch.randn(5, 3, dtype=torch.float64)
    kept = {name: value.clone() for name, value in lin.named_buffers()}
    model = GradientFeatureModel(lin, omega, mode="full")
    assert model.w1.data_ptr() != model.omega.data_ptr() != omega.data_ptr()
    optimizer = torch.optim.Adam(model.trained(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        CrossEntropy().value(model(X), torch.arange(7) % 3).backward()
        optimizer.step()
    assert torch.equal(model.omega, omega)
    assert not torch.equal(model.w1, omega)
    assert all(torch.equal(value, kept[name]) for name, value in lin.named_buffers())


@pytest.mark.parametrize(("kind", "fan"), [("ntk_fan_in", 4 * 9), ("ntk_fan_out", 6)])
def test_ntk_gradients_are_scaled(kind: str, fan: int) -> None:
    lin = linearize(small_network(), X, ["3"])
    omega = torch.randn(5, 3, dtype=torch.float64)
    gradients = {}
    for parametrization in ("standard", kind):
        model = GradientFeatureModel(lin, omega, mode="full", parametrization=parametrization)
        model(X).square().sum().backward()
        gradients[parametrization] = [parameter.grad for parameter in model.trained()[2:]]
    for (name, _), plain, primed in zip(lin.theta2.items(), gradients["standard"], gradients[kind], strict=True):
        scale = fan**-0.5 if name.endswith("weight") else 0.1**0.5
        torch.testing.assert_close(primed, scale * plain)


def test_weights_round_trip_in_units_of_theta2() -> None:
    lin = linearize(small_network(), X, THETA2)
    model = GradientFeatureModel(lin, torch.randn(5, 3, dtype=torch.float64), parametrization="ntk_fan_in")
    random_weights(model)
    other = GradientFeatureModel(lin, model.omega, parametrization="standard")
    other.set_weights(w1=model.w1, b=model.b, w2=model.w2)
    torch.testing.assert_close(other(X), model(X))


def test_wrong_arguments_of_the_model() -> None:
    lin = linearize(small_network(), X, "auto")
    with pytest.raises(ConfigurationError, match="Did you mean full"):
        GradientFeatureModel(lin, torch.zeros(5, 3), mode="ful")
    with pytest.raises(ConfigurationError, match="parametrization"):
        GradientFeatureModel(lin, torch.zeros(5, 3), parametrization="ntkk")
    with pytest.raises(ConfigurationError, match=r"\(d, c\)"):
        GradientFeatureModel(lin, torch.zeros(5))


@pytest.mark.parametrize("level", ["residuals", "z0", "none"])
def test_every_level_of_the_store_says_the_same(level: str) -> None:
    lin = linearize(small_network(), X, THETA2)
    samples = Samples(X)
    store = SampleStore(lin, samples, cache=level, batch_size=3)
    picked = torch.tensor([5, 0, 3])
    f, residuals = store.primal(picked)
    expected, expected_residuals = lin.primal(lin.bottom(X[picked]))
    torch.testing.assert_close(f, expected)
    for a, b in zip(residuals, expected_residuals, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(store.features, lin(X))
    store.primal(picked)
    assert samples.reads.tolist() == ([1] * 7 if level != "none" else [3, 1, 1, 3, 1, 3, 1])


def test_levels_train_the_same_model() -> None:
    lin = linearize(small_network(), X, THETA2)
    y = torch.arange(7) % 2
    weights = []
    for level in ("residuals", "z0", "none"):
        problem = prepare(lin, Samples(X), y, CrossEntropy(), penalty=0.1, cache=level)
        schedule = paper_schedule("adam", 7, epochs=5, batch_size=3)
        fit = solve(problem, Plan(solver="adam", schedule=schedule, seed=0))
        weights.append(fit.model.w2["6.weight"])
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


@pytest.mark.parametrize("variant", [{}, {"zero_gamma": True}, {"affine": False}])
def test_merged_network_is_the_finetuned_one(variant: dict[str, bool]) -> None:
    network = small_network(**variant)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    backbone = resolve(network)
    lin = linearize(network, X, ["3", "6"])
    model = GradientFeatureModel(lin, torch.randn(5, 3, dtype=torch.float64), mode="finetune")
    random_weights(model)
    merged = merge(backbone, model, fit_head(model, SampleStore(lin, Samples(X)))).double()
    torch.testing.assert_close(merged(X), model(X), rtol=1e-6, atol=1e-6)  # the head is a float32 layer
    assert merged.backbone.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def linear_in_theta2() -> tuple[GradientFeatureModel, SampleStore]:
    """Return a model of a network that is linear in θ₂, so that f(x; θ̄₂ + w₂) = f(x) + J(x) w₂."""
    torch.manual_seed(1)
    lin = linearize(nn.Sequential(nn.Tanh(), nn.Linear(4, 6)).double(), torch.randn(3, 4).double(), ["1"])
    store = SampleStore(lin, Samples(torch.randn(60, 4, dtype=torch.float64)))
    omega = torch.randn(6, 2, dtype=torch.float64)
    model = GradientFeatureModel(lin, omega, mode="full")
    random_weights(model)
    return model, store


@pytest.mark.parametrize("mode", ["gradient", "full"])
def test_head_of_a_linear_network_is_the_least_squares_solution(mode: str) -> None:
    full, store = linear_in_theta2()
    model = GradientFeatureModel(full.linearization, full.omega, mode=mode)
    model.set_weights(w1=full.w1, b=full.b, w2=full.w2)  # w₁ is far from ω̄
    head = fit_head(model, store, random_state=0)
    assert head is not None
    assert head.step == 1
    everything = torch.arange(60)
    logits = model.logits(*store.primal(everything)).detach()
    f = (store.features + store.linearization.tangent(model.w2, store.primal(everything)[1])).detach()
    ones = torch.ones(60, 1, dtype=torch.float64)
    best = torch.linalg.lstsq(torch.cat([f, ones], 1), logits).solution
    # four inputs span all that six features and two outputs can be of them: nothing is left but the lightest ridge
    torch.testing.assert_close(f @ head.weight + head.bias, torch.cat([f, ones], 1) @ best, rtol=0, atol=0.05)
    assert head.error is not None
    assert head.error < 1e-3
    torch.testing.assert_close(head.network(model)(store.z0(everything)), f @ head.weight + head.bias)


def test_a_model_that_is_a_network_keeps_its_head() -> None:
    full, store = linear_in_theta2()
    for mode in ("activation", "finetune"):
        model = GradientFeatureModel(full.linearization, full.omega, mode=mode)
        random_weights(model)
        head = fit_head(model, store)
        assert head is not None
        assert torch.equal(head.weight, model.w1)
        assert (head.step, head.error) == (1.0, 0.0)
    model = GradientFeatureModel(full.linearization, full.omega, mode="gradient", bias=torch.zeros(2))
    head = fit_head(model, store)  # w₂ is zero: the intercept alone
    assert head is not None
    assert not head.weight.any()


def test_step_is_shorter_where_the_network_is_far_from_its_linearization() -> None:
    network = small_network()
    lin = linearize(network, X, THETA2)
    samples = torch.randn(200, *X.shape[1:], dtype=X.dtype, generator=torch.Generator().manual_seed(0))
    store = SampleStore(lin, Samples(samples))
    omega = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = GradientFeatureModel(lin, omega, mode="full")
    direction = {name: torch.randn_like(value) for name, value in lin.theta2.items()}
    steps, errors = [], []
    for size in (1e-3, 10.0):
        model.set_weights(w1=omega, b=torch.zeros(3), w2={name: size * value for name, value in direction.items()})
        head = fit_head(model, store, random_state=0)
        assert head is not None
        assert head.error is not None
        steps.append(head.step)
        errors.append(head.error)
    assert steps[0] == 1
    assert errors[0] < CLOSE
    assert steps[1] < 1
    assert steps[1] in STEPS


def test_merged_features_that_are_not_finite_have_no_head() -> None:
    model, store = linear_in_theta2()
    model.set_weights(w1=model.w1, b=model.b, w2={name: value * torch.inf for name, value in model.w2.items()})
    assert fit_head(model, store) is None


def test_mirror_images_of_a_sample_are_on_no_other_side_of_a_split() -> None:
    model, store = linear_in_theta2()
    twice = store.rows(torch.arange(60).repeat(2))
    found, expected = fit_head(model, twice, views=2, random_state=0), fit_head(model, store, random_state=0)
    assert found is not None
    assert expected is not None
    assert found.error == expected.error
    assert torch.equal(found.weight, expected.weight)


def test_samples_without_weight_are_left_out_of_the_head() -> None:
    model, store = linear_in_theta2()
    weight = torch.ones(60)
    weight[40:] = 0
    found = fit_head(model, store, weight=weight, random_state=0)
    expected = fit_head(model, store.rows(torch.arange(40)), random_state=0)
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.weight, expected.weight)
    assert found.error == pytest.approx(expected.error)


def test_weights_say_where_the_head_is_close() -> None:
    network = small_network()
    lin = linearize(network, X, THETA2)
    samples = torch.randn(60, *X.shape[1:], dtype=X.dtype, generator=torch.Generator().manual_seed(0))
    store = SampleStore(lin, Samples(samples))
    model = GradientFeatureModel(lin, torch.randn(5, 3, dtype=torch.float64), mode="full")
    random_weights(model)
    own = torch.arange(60) < 10
    wrong = []
    for weight in (torch.ones(60), torch.where(own, 100.0, 0.01)):
        head = fit_head(model, store, weight=weight, random_state=0)
        assert head is not None
        rest = head.network(model)(store.z0(torch.arange(60))) - model.logits(*store.primal(torch.arange(60)))
        wrong.append(float(rest[own].detach().square().mean()))
    assert wrong[1] < wrong[0]


def test_values_are_unfolded_on_the_device_where_they_are() -> None:
    lin = linearize(small_network(), X, ["3", "6"])
    values = original_values(lin, {name: value.to("meta") for name, value in lin.theta2.items()})
    assert {value.device.type for value in values.values()} == {"meta"}
    assert "3.weight" in values


def test_many_samples_are_too_many_for_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = linear_in_theta2()
    seen = []
    monkeypatch.setattr(
        store.linearization, "network", lambda theta2, z0: seen.append(len(z0)) or torch.randn(len(z0), 6).double()
    )
    fit_head(model, store, random_state=0, most=20)
    assert seen
    assert set(seen) == {20}


def test_a_head_costs_at_most_a_twentieth_of_its_fit() -> None:
    assert most_samples(10.0, 4000) == 2000
    assert most_samples(10.0, 200) == FEWEST_SAMPLES  # which costs little
    assert most_samples(1e6, 4000) == MOST_SAMPLES


def test_logits_of_the_linear_model_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = linear_in_theta2()
    tried, computed = [], []
    logits = model.logits
    monkeypatch.setattr(
        store.linearization, "network", lambda theta2, z0: tried.append(len(z0)) or torch.randn(len(z0), 6).double()
    )
    monkeypatch.setattr(model, "logits", lambda *known: computed.append(len(known[0])) or logits(*known))
    fit_head(model, store, random_state=0)
    assert len(tried) == len(STEPS)  # noise is near to nothing
    assert len(computed) == 1


def test_few_samples_are_enough_where_the_network_moves_little() -> None:
    """Fewer samples than features: what they do not tell is known from w₁."""
    torch.manual_seed(0)
    lin = linearize(nn.Sequential(nn.Linear(40, 40), nn.Tanh()).double(), torch.randn(3, 40).double(), ["0"])
    store = SampleStore(lin, Samples(torch.randn(20, 40, dtype=torch.float64)))
    omega = torch.randn(40, 3, dtype=torch.float64)
    model = GradientFeatureModel(lin, omega, mode="full")
    w2 = {name: 1e-3 * torch.randn_like(value) for name, value in lin.theta2.items()}
    model.set_weights(w1=torch.randn_like(omega), b=torch.zeros(3), w2=w2)
    head = fit_head(model, store)
    assert head is not None
    z0 = lin.bottom(torch.randn(200, 40, dtype=torch.float64))
    expected = model.logits(*lin.primal(z0))
    assert head.error is not None
    assert head.error < 1e-3
    assert float((head.network(model)(z0) - expected).square().sum() / expected.square().sum()) < 1e-3
