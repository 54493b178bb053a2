from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.pretrain import ConvEncoder, pretrain_encoder
from gradfeat.pretrain.bigan import BiGAN, gradient_penalty
from gradfeat.pretrain.encoder import BIGAN, output_shape
from gradfeat.pretrain.images import to_arrays, write_sheet
from gradfeat.pretrain.jigsaw import Jigsaw, permutation_set
from gradfeat.pretrain.rotation import Rotation, rotations
from gradfeat.pretrain.supervised import Supervised


def test_rotations_are_those_of_numpy():
    x = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4)
    turned, quarters = rotations(x)
    assert quarters.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for image, k, original in zip(turned, quarters, itertools.cycle(x), strict=False):
        np.testing.assert_array_equal(image.numpy(), np.rot90(original.numpy(), k=int(k), axes=(1, 2)))


def test_rotation_loss_of_a_classifier_that_knows_nothing_and_of_one_that_knows():
    class Corner(nn.Module):
        """Which corner is bright: (n, 4), in the order of the rotations of an image with a bright top right corner."""

        def forward(self, x):
            return torch.stack([x[:, 0, 0, -1], x[:, 0, 0, 0], x[:, 0, -1, 0], x[:, 0, -1, -1]], dim=1)

    x = torch.zeros(3, 1, 4, 4)
    x[:, 0, 0, -1] = 1
    task = Rotation(Corner(), (1, 4, 4))
    with torch.no_grad():
        task.classifier.bias.zero_()
        task.classifier.weight.zero_()
        assert float(task(x)) == pytest.approx(math.log(4))
        task.classifier.weight.copy_(torch.eye(4))
        assert float(task(x)) == pytest.approx(math.log(math.e + 3) - 1)
    with pytest.raises(ConfigurationError, match="square"):
        Rotation(ConvEncoder(1), (1, 4, 6))


def test_supervised_loss_is_cross_entropy():
    torch.manual_seed(0)
    encoder = ConvEncoder(1, channels=(3,), strides=(1,))
    task = Supervised(encoder, (1, 5, 6), classes=4).double().eval()
    x, y = torch.rand(7, 1, 5, 6, dtype=torch.float64), torch.arange(7) % 4
    p = torch.softmax(encoder(x) @ task.classifier.weight.T + task.classifier.bias, dim=1)
    torch.testing.assert_close(task(x, y), -p[torch.arange(7), y].log().mean())


def test_permutations_are_the_farthest_at_every_step():
    chosen = permutation_set(7, 4).tolist()
    everything = list(itertools.permutations(range(4)))

    def nearest(p, others):
        return min(sum(a != b for a, b in zip(p, q, strict=True)) for q in others)

    for k in range(1, 7):
        assert nearest(chosen[k], chosen[:k]) == max(nearest(p, chosen[:k]) for p in everything)
    # Cyclic shifts show that four permutations of four can differ everywhere; a fifth cannot.
    assert nearest(chosen[3], chosen[:3]) == 4
    assert nearest(chosen[4], chosen[:4]) < 4


def test_permutation_sets_of_the_papers_size():
    chosen = permutation_set(100)
    assert chosen.shape == (100, 9)
    assert len({tuple(row) for row in chosen}) == 100
    assert (np.sort(chosen, axis=1) == np.arange(9)).all()
    # Nine permutations of nine that differ everywhere exist: a Latin square.
    distance = (chosen[:9, None] != chosen[None, :9]).sum(2)
    assert (distance + 9 * np.eye(9) == 9).all()
    assert len(permutation_set(6, 3)) == 6
    for count in (1, 7):
        with pytest.raises(ConfigurationError, match="between 2 and 6"):
            permutation_set(count, 3)


def test_tiles_lie_in_their_cells_row_by_row():
    task = Jigsaw(ConvEncoder(1, channels=(2,), strides=(1,)), (1, 30, 60), permutations=3)
    assert (task.cell, task.tile) == ((10, 20), (9, 17))
    x = (torch.arange(30).view(-1, 1) // 10 * 3 + torch.arange(60) // 20).float().view(1, 1, 30, 60)
    tiles = task.tiles(x)
    assert tiles.shape == (1, 9, 1, 9, 17)
    assert all(bool((tiles[0, i] == i).all()) for i in range(9))
    with pytest.raises(ConfigurationError, match="too small"):
        Jigsaw(ConvEncoder(1), (1, 12, 12))


def test_every_tile_of_every_image_has_a_place_of_its_own():
    task = Jigsaw(ConvEncoder(3, channels=(2,), strides=(1,)), (3, 45, 75), permutations=3)
    assert (task.cell, task.tile) == ((15, 25), (13, 21))
    torch.manual_seed(0)
    n = 400
    x = torch.stack(torch.meshgrid(torch.arange(45.0), torch.arange(75.0), indexing="ij"))
    x = torch.cat([x, torch.zeros(1, 45, 75)]).repeat(n, 1, 1, 1)
    x[:, 2] = torch.arange(n).view(-1, 1, 1)
    tiles = task.tiles(x)
    assert tiles.shape == (n, 9, 3, 13, 21)
    assert bool((tiles[:, :, 2] == torch.arange(n).view(-1, 1, 1, 1)).all())
    for axis, (side, slack) in enumerate([(15, 3), (25, 5)]):
        start = tiles[:, :, axis, 0, 0]
        length = tiles.shape[3 + axis]
        along = tiles[:, :, axis, :, 0] if axis == 0 else tiles[:, :, axis, 0]
        assert torch.equal(along, start.unsqueeze(2) + torch.arange(length))  # a whole piece of the image
        cell = torch.arange(9) // 3 if axis == 0 else torch.arange(9) % 3
        jitter = start - side * cell
        for drawn in (jitter[:, 0], jitter[0], jitter[:, 8]):  # over images, and over the tiles of one
            assert len(drawn.unique()) > 1
        counts = torch.stack([(jitter == value).sum(0) for value in range(slack)])  # (slack, 9)
        assert bool((counts.sum(0) == n).all())
        assert bool((counts > 0.6 * n / slack).all())
    together = torch.corrcoef((tiles[:, :, 0, 0, 0]).T)[~torch.eye(9, dtype=torch.bool)]
    assert float(together.abs().max()) < 0.25  # four deviations and more, if they are independent


def test_a_tile_does_not_show_its_brightness_and_contrast(monkeypatch):
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean(dim=(2, 3))

    task = Jigsaw(Looks(), (3, 30, 30), permutations=5)
    seen.clear()
    x = torch.rand(6, 3, 30, 30) * torch.linspace(0.2, 1, 30)
    x[0] = 0.3  # flat
    torch.manual_seed(0)
    task(x)
    tiles = seen[0]  # (54, 3, 9, 9)
    torch.testing.assert_close(tiles.mean(dim=(2, 3)), torch.zeros(54, 3), atol=1e-5, rtol=0)
    deviation = tiles.std(dim=(2, 3), correction=0)
    torch.testing.assert_close(deviation[9:], torch.ones(45, 3), atol=1e-2, rtol=0)
    assert float(tiles[:9].abs().max()) < 1e-4


def test_jigsaw_shows_tiles_in_the_order_of_its_target(monkeypatch):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(dim=(1, 2, 3)).unsqueeze(1)

    task = Jigsaw(Mean(), (1, 30, 30), permutations=5)
    monkeypatch.setattr("gradfeat.pretrain.jigsaw.normalized", lambda tiles: tiles)  # the means are the tiles' names
    seen = []
    monkeypatch.setattr(
        task.classifier, "forward", lambda f: seen.append(f) or F.one_hot(torch.zeros(len(f)).long(), 5).float()
    )
    targets = []
    monkeypatch.setattr(F, "cross_entropy", lambda logits, y: targets.append(y) or logits.sum())
    x = (torch.arange(30).view(-1, 1) // 10 * 3 + torch.arange(30) // 10).float().expand(6, 1, 30, 30)
    task(x)
    torch.testing.assert_close(seen[0], task.orders[targets[0]].float())


def test_bigan_encoder_is_that_of_the_paper():
    encoder = ConvEncoder(3, **BIGAN).eval()
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32, 64, 128, 256, 512]
    assert [m.kernel_size[0] for m in convolutions] == [5, 4, 4, 4, 4]
    assert [m.stride[0] for m in convolutions] == [1, 2, 1, 2, 1]
    assert {m.negative_slope for m in encoder.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}
    assert len([m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]) == 5
    sides, x = [], torch.zeros(2, 3, 32, 32)
    for block in encoder.blocks:
        x = block(x)
        sides.append(tuple(x.shape[1:]))
    assert sides == [(32, 28, 28), (64, 13, 13), (128, 10, 10), (256, 4, 4), (512, 1, 1)]
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 512)


@pytest.fixture
def bigan():
    torch.manual_seed(0)

    def build(objective="jensen-shannon"):
        encoder = ConvEncoder(2, channels=(3, 4), strides=(2, 1), kernel_size=(4, 3), padded=False)
        return BiGAN(encoder, (2, 8, 8), latent=5, objective=objective).double()

    return build


def test_bigan_losses_are_those_of_the_game(bigan):
    """Jensen-Shannon: the discriminator's loss is minus the value of the game; at D = 1/2 it is 2 log 2."""
    task, x = bigan().eval(), torch.rand(6, 2, 8, 8, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        torch.manual_seed(1)
        loss = task.discriminator_loss(x)
        torch.manual_seed(1)
        players = task.players_loss(x)
        torch.manual_seed(1)
        z = torch.randn(6, 5, dtype=torch.float64)
        real = torch.sigmoid(task.discriminator(x, task.encode(x)))
        fake = torch.sigmoid(task.discriminator(task.generator(z), z))
        torch.testing.assert_close(loss, -(real.log() + (1 - fake).log()).mean())
        torch.testing.assert_close(players, -(fake.log() + (1 - real).log()).mean())
        task.discriminator.pair[-1].weight.zero_()
        task.discriminator.pair[-1].bias.zero_()
        assert float(task.discriminator_loss(x)) == pytest.approx(2 * math.log(2))


def test_the_discriminator_sees_the_code_from_the_start():
    """He's weights keep the scale of a signal; with the narrow ones of the other parts it is about 1e-4 here."""
    torch.manual_seed(0)
    task = BiGAN(ConvEncoder(3, **BIGAN), (3, 32, 32)).eval()
    with torch.no_grad():
        by_code = task.discriminator(torch.zeros(64, 3, 32, 32), torch.randn(64, 64)).std()
        by_image = task.discriminator(torch.randn(64, 3, 32, 32), torch.zeros(64, 64)).std()
    assert 0.1 < float(by_code) < 10
    assert 0.1 < float(by_image / by_code) < 10


def test_each_player_moves_its_own_parameters_only(bigan):
    task = bigan("wasserstein").train()
    discriminator, players = task.turns()
    assert (discriminator.every, players.every) == (1, 5)
    own = [set(map(id, turn.parameters)) for turn in (discriminator, players)]
    assert not own[0] & own[1]
    assert own[0] | own[1] == set(map(id, task.parameters()))
    discriminator.loss(torch.rand(4, 2, 8, 8, dtype=torch.float64), None).backward()
    assert all(p.grad is None for p in players.parameters)


def test_gradient_penalty_of_a_linear_critic_is_exact():
    class Linear(nn.Module):
        def forward(self, x, z):
            return 2 * x.flatten(1).sum(1) + 3 * z.sum(1)

    pair = torch.randn(5, 1, 2, 2), torch.randn(5, 3)
    made = torch.randn(5, 1, 2, 2), torch.randn(5, 3)
    # ‖(2, 2, 2, 2, 3, 3, 3)‖ = √43 everywhere
    assert float(gradient_penalty(Linear(), pair, made)) == pytest.approx((math.sqrt(43) - 1) ** 2, rel=1e-5)


def test_the_generator_makes_images_of_the_papers_size():
    task = BiGAN(ConvEncoder(3, **BIGAN), (3, 32, 32)).eval()
    with torch.no_grad():
        rows = task.pictures(torch.zeros(2, 3, 32, 32))
    assert [tuple(row.shape) for row in rows] == [(2, 3, 32, 32)] * 3
    assert all(row.abs().max() <= 1 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "bigan"}, "cannot take images"),
        ({"task": "bigan", "network": "small"}, "needs the network 'bigan'"),
        ({"task": "bigan", "options": {"objective": "wassersteen"}}, "Did you mean wasserstein"),
        ({"task": "vae", "network": nn.Flatten()}, "of gradfeat's own"),
        ({"task": "vae", "options": {"beta": -1.0}}, "beta"),
        ({"task": "vae", "options": {"beto": 1.0}}, "Did you mean beta"),
        ({"task": "rotation", "options": {"beta": 1.0}}, "Its options: none"),
        ({"task": "supervised", "options": {"classes": 3}}, "no option 'classes'"),
        ({"network": "smal"}, "Did you mean small"),
        ({"task": "rotation", "network": nn.Linear(3, 2)}, "cannot take images"),
    ],
)
def test_bad_configurations(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        pretrain_encoder(np.zeros((4, 8, 8, 1), np.uint8), **arguments)


def test_bigan_of_a_larger_image_says_the_size():
    with pytest.raises(ConfigurationError, match="32 × 32, and these have 40 × 40"):
        pretrain_encoder(np.zeros((4, 40, 40, 1), np.uint8), task="bigan")


def test_labels():
    images = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(DataError, match="got none"):
        pretrain_encoder(images, task="supervised")
    with pytest.raises(DataError, match="shape \\(3,\\)"):
        pretrain_encoder(images, np.arange(3), task="supervised")
    with pytest.raises(DataError, match="at least two classes"):
        pretrain_encoder(images, np.full(4, "a"), task="supervised")
    with pytest.raises(ConfigurationError, match="takes no labels"):
        pretrain_encoder(images, np.arange(4), task="vae")


def test_files_become_arrays_of_one_size(tmp_path):
    for i, (size, colour) in enumerate([((9, 6), (10, 20, 30)), ((6, 12), (200, 100, 0))]):
        Image.new("RGB", size, colour).save(tmp_path / f"{i}.png")
    arrays = to_arrays(sorted(tmp_path.iterdir()), (6, 6))
    assert (arrays.shape, arrays.dtype) == ((2, 6, 6, 3), np.uint8)
    assert (arrays[0] == (10, 20, 30)).all()
    assert (arrays[1] == (200, 100, 0)).all()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 1), np.uint8)
    assert to_arrays(pixels, None) is pixels
    np.testing.assert_array_equal(to_arrays(pixels, (6, 6)), pixels[:, :, 1:7])  # the centre, every value kept
    for X in (np.zeros((2, 3)), ["a text"], []):
        with pytest.raises(DataError, match="takes"):
            to_arrays(X, None)


def test_a_sheet_shows_pictures_in_rows(tmp_path):
    rows = [torch.full((2, 1, 3, 4), -1.0), torch.full((2, 1, 3, 4), 0.2)]
    pixels = np.asarray(Image.open(write_sheet(tmp_path / "s.png", rows)))
    assert pixels.shape == (2 * (3 + 2), 2 * (4 + 2))
    assert (pixels[:3, :4] == 0).all()
    assert (pixels[5:8, 6:10] == 153).all()  # 1.2 · 127.5
    assert (pixels[3:5] == 255).all()


def test_output_shape_leaves_batch_norm_alone():
    encoder = ConvEncoder(1)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert output_shape(encoder, (1, 8, 6)) == (32,)
    assert output_shape(encoder, (1, 8, 6), spatial=True) == (32, 2, 2)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
