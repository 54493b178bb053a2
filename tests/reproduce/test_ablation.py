from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, jacrev

from gradfeat import linearize
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError
from gradfeat.fit import Plan, solve
from gradfeat.fit.point import starting_model
from gradfeat.fit.predict import batch_logits
from gradfeat.losses import CrossEntropy
from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.reproduce.ablation import ablation_problem, mixed_network, random_probe, top_layers
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.schedule import PAPER
from gradfeat.solvers.subspace import Penalties

N, CLASSES, DEPTH = 24, 3, 2


@pytest.fixture(scope="module")
def parts():
    """Images with classes, and two tiny networks in float64: A for activations, B for gradients."""
    rng = np.random.default_rng(0)
    x = Inputs(rng.normal(size=(N, 2, 6, 6)))
    y = torch.from_numpy(rng.integers(0, CLASSES, N))
    torch.manual_seed(0)
    a = ConvEncoder(2, channels=(3, 4, 5), strides=(1, 2, 1)).double().eval()
    for module in a.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    b = mixed_network(a, top_layers(a, DEPTH), theta1="random", theta2="pre-trained", images=x, seed=1)
    return x, y, a, b


def features(network, x):
    with torch.no_grad():
        return network(x.batch(range(len(x))))


def dense(network, x):
    """Jacobians (n, d, p) of the folded layers' weight and bias, written out by `torch.func.jacrev`."""
    network = copy.deepcopy(network)
    folded = {}
    for i in range(len(network.blocks) - DEPTH, len(network.blocks)):
        conv, norm, act = network.blocks[i]
        s = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        layer = torch.nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        layer = layer.double()
        layer.weight.data = conv.weight * s[:, None, None, None]
        layer.bias.data = norm.bias - norm.running_mean * s
        network.blocks[i] = torch.nn.Sequential(layer, torch.nn.Identity(), act)
        folded |= {f"blocks.{i}.0.{name}": p.detach() for name, p in layer.named_parameters()}
    names = list(folded)

    def f(values, one):
        return functional_call(network, values, (one[None],))[0]

    rows = [jacrev(f)(folded, one) for one in x.batch(range(len(x)))]
    return names, torch.stack([torch.cat([row[name].flatten(1) for name in names], dim=1) for row in rows]), folded


@pytest.mark.parametrize("cache", ["residuals", "z0", "none"])
@pytest.mark.parametrize("mode", ["gradient", "full"])
def test_logits_are_activations_of_one_network_and_gradients_of_the_other(parts, cache, mode):
    x, y, a, b = parts
    loss = CrossEntropy()
    f = features(a, x)
    probe = fit_probe(f, y, loss, penalty=0.1)
    omega = random_probe(probe, 3)
    lin = linearize(b, x.example(3), top_layers(b, DEPTH))
    problem = ablation_problem(SampleStore(lin, x, cache=cache, features=f), y, loss, probe, omega=omega)
    model = starting_model(problem, mode)
    names, jacobian, folded = dense(b, x)
    torch.manual_seed(1)
    w1, bias, w2 = torch.randn_like(model.w1), torch.randn_like(model.b), torch.randn(jacobian.shape[2]).double()
    pieces = w2.split([folded[name].numel() for name in names])
    model.set_weights(w1=w1, b=bias, w2={n: piece.view_as(folded[n]) for n, piece in zip(names, pieces, strict=True)})
    gradients = torch.einsum("ndp,p,dc->nc", jacobian, w2, omega.omega)
    expected = gradients + bias + (f @ w1 if mode == "full" else 0)
    with torch.no_grad():
        found = batch_logits(model, problem.store, torch.arange(N))
        part = batch_logits(model, problem.store.rows(torch.tensor([5, 2, 7])), torch.tensor([2, 0]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(part, expected[[7, 5]], rtol=1e-9, atol=1e-9)
    # and of samples that it was not fitted to
    other = Inputs(np.random.default_rng(1).normal(size=(4, 2, 6, 6)))
    store = SampleStore(lin, other, cache=cache, features=features(a, other))
    gradients = torch.einsum("ndp,p,dc->nc", dense(b, other)[1], w2, omega.omega)
    with torch.no_grad():
        found = batch_logits(model, store, torch.arange(4))
    expected = gradients + bias + (features(a, other) @ w1 if mode == "full" else 0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["gradient", "full"])
def test_the_fit_is_the_minimum_over_dense_features_of_both_networks(parts, mode):
    x, y, a, b = parts
    loss = CrossEntropy()
    f = features(a, x)
    probe = fit_probe(f, y, loss, penalty=0.1)
    omega = random_probe(probe, 3)
    lin = linearize(b, x.example(3), top_layers(b, DEPTH))
    problem = ablation_problem(SampleStore(lin, x, features=f), y, loss, probe, omega=omega)
    lambda1, lambda2 = 0.05, 0.02
    fit = solve(problem, Plan(mode=mode, penalties=Penalties(lambda1, lambda2), seed=0))
    names, jacobian, _ = dense(b, x)
    phi = torch.einsum("ndp,dc->ncp", jacobian, omega.omega).detach()
    w1, bias = torch.zeros_like(probe.omega, requires_grad=True), torch.zeros(CLASSES).double().requires_grad_()
    w2 = torch.zeros(phi.shape[2]).double().requires_grad_()
    trained = [bias, w2, *([w1] if mode == "full" else [])]

    def objective(w1, bias, w2):
        logits = phi @ w2 + bias + (f @ w1 if mode == "full" else 0)
        return loss.value(logits, y) + lambda1 / 2 * w1.square().sum() + lambda2 / 2 * w2.square().sum()

    optimizer = torch.optim.LBFGS(trained, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = objective(w1, bias, w2)
        value.backward()
        return value

    optimizer.step(closure)
    best = float(objective(w1, bias, w2).detach())
    own = torch.cat([fit.model.w2[name].flatten() for name in names])
    with torch.no_grad():
        found = float(objective(fit.model.w1 if mode == "full" else w1 * 0, fit.model.b, own))
    assert best - 1e-9 <= found <= best * 1.01  # the solver's own tolerance is a hundredth


def test_w1_starts_as_the_probe_and_omega_is_the_given_one(parts):
    x, y, a, b = parts
    f = features(a, x)
    probe = fit_probe(f, y, CrossEntropy(), penalty=0.1)
    omega = random_probe(probe, 3)
    lin = linearize(b, x.example(3), top_layers(b, DEPTH))
    problem = ablation_problem(SampleStore(lin, x, features=f), y, CrossEntropy(), probe, omega=omega)
    model = starting_model(problem, "full")
    assert torch.equal(model.w1.detach(), probe.omega)
    assert torch.equal(model.omega, omega.omega)
    trained = solve(problem, Plan(solver="adam", schedule=replace(PAPER, iterations=5, batch_size=8), seed=0)).model
    assert torch.equal(trained.omega, omega.omega)
    assert not torch.equal(trained.w1.detach(), probe.omega)
    chosen = solve(problem, Plan(mode="gradient", seed=0))
    assert torch.equal(chosen.model.omega, omega.omega)
    assert len({tried.omega_penalty for tried in chosen.choice.path}) == 1


def test_what_an_ablation_cannot_be_is_refused(parts):
    x, y, a, b = parts
    f = features(a, x)
    probe = fit_probe(f, y, CrossEntropy(), penalty=0.1)
    lin = linearize(b, x.example(3), top_layers(b, DEPTH))
    problem = ablation_problem(SampleStore(lin, x, features=f), y, CrossEntropy(), probe, omega=random_probe(probe, 0))
    with pytest.raises(ConfigurationError, match="no finetune"):
        starting_model(problem, "finetune")
    with pytest.raises(ConfigurationError, match="rounds=1"):
        solve(problem, Plan(rounds=2))
    with pytest.raises(ConfigurationError, match="comes from another network"):
        problem.store.at(lin)
    with pytest.raises(ConfigurationError, match="those of the 24 samples"):
        SampleStore(lin, x, features=f[:5])
    with pytest.raises(ConfigurationError, match="1 to 3"):
        top_layers(b, 4)
    with pytest.raises(ConfigurationError, match="not 'trained'"):
        mixed_network(a, top_layers(a, 1), theta1="trained", theta2="random", images=x, seed=0)


@pytest.mark.parametrize(
    ("theta1", "theta2", "anew"),
    [
        ("pre-trained", "random", {1, 2}),
        ("random", "pre-trained", {0}),
        ("random", "random", {0, 1, 2}),
        ("pre-trained", "pre-trained", set()),
    ],
)
def test_only_the_named_layers_are_random(parts, theta1, theta2, anew):
    x, _, a, _ = parts
    before = {name: value.clone() for name, value in a.state_dict().items()}
    mixed = mixed_network(a, top_layers(a, DEPTH), theta1=theta1, theta2=theta2, images=x, seed=0)
    for i, block in enumerate(mixed.blocks):
        for name, value in block.state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(value, before[f"blocks.{i}.{name}"]) == (i not in anew), (i, name)
    assert all(torch.equal(value, before[name]) for name, value in a.state_dict().items())
    assert not any(module.training for module in mixed.modules())
    again = mixed_network(a, top_layers(a, DEPTH), theta1=theta1, theta2=theta2, images=x, seed=0)
    other = mixed_network(a, top_layers(a, DEPTH), theta1=theta1, theta2=theta2, images=x, seed=1)
    same = [torch.equal(features(mixed, x), features(network, x)) for network in (again, other)]
    assert same == [True, not anew]


def test_statistics_of_random_layers_are_those_of_the_images(parts):
    x, _, a, _ = parts
    mixed = mixed_network(a, top_layers(a, DEPTH), theta1="random", theta2="random", images=x, seed=0)
    z = x.batch(range(N))
    with torch.no_grad():
        for conv, norm, act in mixed.blocks:
            z = conv(z)
            assert norm.momentum == 0.1
            torch.testing.assert_close(norm.running_mean, z.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(norm.running_var, z.transpose(0, 1).flatten(1).var(1), rtol=1e-9, atol=1e-12)
            z = act(F.batch_norm(z, None, None, norm.weight, norm.bias, training=True))  # as in training


def test_random_omega_has_the_norm_of_the_trained_one(parts):
    x, y, a, _ = parts
    probe = fit_probe(features(a, x), y, CrossEntropy(), penalty=0.1)
    one, same, other = (random_probe(probe, seed) for seed in (0, 0, 1))
    assert one.omega.norm() == pytest.approx(float(probe.omega.norm()))
    assert torch.equal(one.omega, same.omega)
    assert not torch.allclose(one.omega, other.omega)
    assert torch.equal(one.bias, probe.bias)
