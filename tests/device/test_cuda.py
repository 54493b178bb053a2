"""What differs on a GPU; skipped where there is none. Everything else is the same code as on a CPU."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from gradfeat import GradientFeatureClassifier, linearize
from gradfeat.baselines import AllLayersProbe
from gradfeat.losses import CrossEntropy, MultiLabelLogistic
from gradfeat.pretrain import ConvEncoder, pretrain_encoder
from gradfeat.pretrain.replay import LossAndGradients
from gradfeat.solvers.probe import fit_probe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def digits(n):
    X, y = load_digits(return_X_y=True)
    return (X[:n].reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8), y[:n]


def test_a_replayed_batch_has_the_loss_and_gradients_of_its_own_images():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 5)).to("cuda").double()
    weights = list(network.parameters())
    same = copy.deepcopy(network)
    work = LossAndGradients(lambda x, y: nn.functional.cross_entropy(network(x), y), weights, replay=True)
    for n in (16, 16, 16, 16, 16, 7, 16, 16):  # three as usual, recorded, replayed, another size, replayed
        x = torch.randn(n, 3, 8, 8, device="cuda", dtype=torch.float64)
        y = torch.randint(5, (n,), device="cuda")
        value = work(x, y).clone()
        got = [weight.grad.clone() for weight in weights]
        expected = nn.functional.cross_entropy(same(x), y)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(got, list(torch.autograd.grad(expected, same.parameters())))


def test_noise_of_a_replayed_batch_is_new_each_time():
    weight = nn.Parameter(torch.ones((), device="cuda"))
    work = LossAndGradients(lambda x, y: weight * torch.randn_like(x).mean(), [weight], replay=True)
    x = torch.zeros(100, device="cuda")
    assert len({float(work(x, None)) for _ in range(8)}) == 8


@pytest.mark.parametrize(("task", "options"), [("vae", {}), ("rotation", {}), ("bigan", {"latent": 4})])
def test_pretraining_lowers_the_loss_on_a_gpu_as_on_a_cpu(task, options, tmp_path):
    images, _ = digits(450)  # the last batch is smaller
    losses = {"cpu": [], "cuda": []}
    for device, found in losses.items():
        torch.manual_seed(0)
        network = ConvEncoder(1, channels=(8, 16, 16), strides=(2, 1, 1), kernel_size=(4, 2, 2), padded=False)
        encoder = pretrain_encoder(
            images,
            task=task,
            network=network,
            options=options,
            epochs=8,
            random_state=0,
            device=device,
            folder=tmp_path / device,
            progress=lambda epoch, of, loss, found=found: found.append(loss),
        )
        assert all(torch.isfinite(p).all() and p.is_contiguous() and not p.is_cuda for p in encoder.parameters())
        if task != "bigan":  # a game has no loss that falls
            assert found[-1] < found[0]
    assert losses["cuda"][-1] == pytest.approx(losses["cpu"][-1], rel=0.1)


@pytest.mark.parametrize(
    "settings", [{}, {"solver": "dual"}, {"solver": "adam", "epochs": 3}, {"rounds": 2, "penalty": "auto"}]
)
def test_a_fit_on_a_gpu_predicts_as_one_on_a_cpu(settings):
    X, y = digits(300)
    torch.manual_seed(0)
    network = ConvEncoder(1, channels=(8, 12), strides=(1, 2)).double().eval()
    probabilities = []
    for device in ("cpu", "cuda"):
        model = (
            GradientFeatureClassifier(network, theta2="blocks.1.0", device=device, precision="float64", random_state=0)
            .set_params(**{"penalty": 1e-2} | settings)
            .fit(X[:200], y[:200])
        )
        probabilities.append(model.predict_proba(X[200:]))
    np.testing.assert_allclose(probabilities[1], probabilities[0], atol=1e-4)


def test_penalties_chosen_on_a_gpu_are_those_chosen_on_a_cpu_and_the_model_merges():
    X, y = digits(300)
    torch.manual_seed(0)
    network = ConvEncoder(1, channels=(8, 12), strides=(1, 2)).double().eval()
    models = [
        GradientFeatureClassifier(network, theta2="blocks.1.0", device=device, precision="float64", random_state=0).fit(
            X[:200], y[:200]
        )
        for device in ("cpu", "cuda")
    ]
    assert models[1].choice_.lambda1 == pytest.approx(models[0].choice_.lambda1)
    assert models[1].choice_.lambda2_units == pytest.approx(models[0].choice_.lambda2_units)
    np.testing.assert_allclose(models[1].predict_proba(X[200:]), models[0].predict_proba(X[200:]), atol=1e-3)
    reports = [model.merge(X[200:], y[200:]).report for model in models]
    assert reports[1].merged == pytest.approx(reports[0].merged, rel=0.05)


@pytest.mark.parametrize("several", [False, True])
def test_a_probe_on_a_gpu_is_the_one_on_a_cpu(several):
    X, y = digits(300)
    f, y = torch.from_numpy(X).flatten(1).double(), torch.from_numpy(y)
    loss = MultiLabelLogistic() if several else CrossEntropy()
    y = nn.functional.one_hot(y).double() if several else y
    weight = torch.arange(300).double() % 7
    a, b = (
        fit_probe(f.to(device), y.to(device), loss, sample_weight=weight.to(device), random_state=0)
        for device in ("cpu", "cuda")
    )
    assert b.omega.is_cuda
    assert b.penalty == pytest.approx(a.penalty)
    torch.testing.assert_close(b.omega.cpu(), a.omega, rtol=1e-3, atol=1e-3 * float(a.omega.abs().max()))


def test_a_network_on_a_gpu_with_batch_norm_is_linearized():
    X, _ = digits(20)
    x = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
    network = ConvEncoder(1, channels=(8, 12), strides=(1, 2)).eval()
    tangents, generator = [], torch.Generator()
    for device in ("cpu", "cuda"):
        linearization = linearize(network.to(device), x[:3].to(device), "blocks.1.0")
        generator.manual_seed(0)
        w2 = {
            name: torch.randn(value.shape, generator=generator).to(device)
            for name, value in linearization.theta2.items()
        }
        _, residuals = linearization.primal(linearization.bottom(x.to(device)))
        tangents.append(linearization.tangent(w2, residuals).cpu())
    torch.testing.assert_close(*tangents, rtol=1e-2, atol=1e-2)  # convolutions on a GPU are in TF32


def test_a_probe_on_all_layers_on_a_gpu_predicts_as_on_a_cpu():
    X, y = digits(300)
    torch.manual_seed(0)
    network = ConvEncoder(1, channels=(8, 12), strides=(1, 2)).double().eval()
    a, b = (
        AllLayersProbe(network, device=device, random_state=0).fit(X[:200], y[:200]).predict_proba(X[200:])
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(b, a, atol=1e-3)
