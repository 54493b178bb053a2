from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.pretrain import ConvEncoder, input_scaling, pretrain_encoder
from gradfeat.pretrain.loop import Recipe, Task, seeded, train
from gradfeat.pretrain.vae import VariationalAutoencoder


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images / 16 * 255).astype(np.uint8)[..., None], data.target


def test_pretraining_improves_the_probe(digits):
    images, y = digits
    x = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)

    def accuracy(encoder):
        with torch.no_grad():
            f = encoder(x).numpy()
        probe = LogisticRegression(C=1e3, max_iter=1000).fit(f[:200], y[:200])
        return probe.score(f[600:], y[600:])

    with seeded(0):
        untrained = ConvEncoder(1).eval()
    history = []
    encoder = pretrain_encoder(
        images[:600], epochs=10, random_state=0, progress=lambda done, of, loss: history.append((done, of, loss))
    )
    assert not encoder.training
    assert [(done, of) for done, of, _ in history] == [(i + 1, 10) for i in range(10)]
    assert history[-1][2] < history[0][2]
    assert accuracy(encoder) > accuracy(untrained) + 0.05


def test_same_seed_same_weights_and_global_stream_untouched(digits):
    images = digits[0][:64]
    state = torch.get_rng_state()
    a, b, c = (pretrain_encoder(images, epochs=1, random_state=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["blocks.0.0.weight"], c["blocks.0.0.weight"])


def test_uint8_and_float_images_are_the_same(digits):
    images = digits[0][:32]
    a = pretrain_encoder(images, epochs=1, random_state=0)
    b = pretrain_encoder(images / np.float32(255), epochs=1, random_state=0)
    torch.testing.assert_close(a.blocks[0][0].weight, b.blocks[0][0].weight)


def test_input_scaling_is_what_preprocessing_does(digits):
    from gradfeat.data import Preprocessing

    class Records(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(1))
            self.inputs = []

        def forward(self, x):
            self.inputs.append(x.clone())
            return x.flatten(1) * self.a

    images, network = digits[0][:4], Records()
    pretrain_encoder(images, np.arange(4), task="supervised", network=network, epochs=1, batch_size=4)
    batch = network.inputs[-1]
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in input_scaling(images).items()}
    expected = torch.as_tensor(Preprocessing(**fields).from_uint8(images))
    order = torch.cdist(batch.flatten(1), expected.flatten(1)).argmin(1)  # of the batch, which is random
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(batch, expected[order])


@pytest.mark.parametrize("beta", [1.0, 4.0, 0.0])
def test_vae_loss_is_the_negative_evidence_lower_bound(beta):
    torch.manual_seed(0)
    vae = VariationalAutoencoder(ConvEncoder(1), (1, 5, 7), latent=3, beta=beta).double().eval()
    x = torch.rand(4, 1, 5, 7, dtype=torch.float64) * 2 - 1
    torch.manual_seed(1)
    loss = vae(x)
    mean, log_variance = vae.code(vae.encoder.forward_map(x).flatten(1)).chunk(2, dim=1)
    torch.manual_seed(1)
    z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    q = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
    p = torch.sigmoid(vae.decoder(z))
    pixels = (x + 1) / 2
    likelihood = (pixels * p.log() + (1 - pixels) * (1 - p).log()).sum()
    torch.testing.assert_close(loss, (beta * divergence - likelihood) / 4)


@pytest.mark.parametrize(
    ("images", "arguments", "error", "message"),
    [
        (np.zeros((4, 8, 8)), {}, DataError, "got shape"),
        (np.zeros((1, 8, 8, 1)), {}, DataError, "at least two"),
        (np.zeros((4, 8, 8, 1), dtype=np.int64), {}, DataError, "int64"),
        (np.full((4, 8, 8, 1), 16.0), {}, DataError, r"\[0, 1\]"),
        (np.full((4, 8, 8, 1), np.nan), {}, DataError, "NaN"),
        (np.zeros((4, 8, 8, 1)), {"task": "vea"}, ConfigurationError, "Did you mean vae"),
        (np.zeros((4, 8, 8, 1)), {"epochs": 0}, ConfigurationError, "epochs"),
        (np.zeros((4, 8, 8, 1)), {"batch_size": 1}, ConfigurationError, "batch norm"),
    ],
)
def test_bad_input(images, arguments, error, message):
    with pytest.raises(error, match=message):
        pretrain_encoder(images, **arguments)


def test_divergence_is_an_error():
    class Diverges(Task):
        def __init__(self):
            super().__init__(nn.Identity())
            self.a = nn.Parameter(torch.ones(1))

        def forward(self, x, y=None):
            return (self.a * torch.inf).sum()

    with pytest.raises(ConvergenceError, match="epoch 1"):
        train(Diverges(), torch.zeros(4, 1, 4, 4), recipe=Recipe(2, 2, 0.1))


def test_a_last_batch_of_one_image_is_left_out():
    sizes = []

    class Sizes(Task):
        def __init__(self):
            super().__init__(nn.Identity())
            self.a = nn.Parameter(torch.ones(1))

        def forward(self, x, y=None):
            sizes.append(len(x))
            return self.a.sum()

    train(Sizes(), torch.zeros(9, 1, 4, 4), recipe=Recipe(1, 4, 0.1))
    assert sizes == [4, 4]
