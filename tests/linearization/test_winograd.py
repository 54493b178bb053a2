"""Large 3 × 3 convolutions: the fast way computes what torch's convolution does, and so do its derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradfeat.linearization.winograd import convolution_sum, layer_tangent_3x3, serves

SIZES = [(3, 7, 7), (2, 4, 9), (1, 1, 1), (2, 8, 5), (1, 14, 3)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("both", [False, True], ids=["one-term", "two-terms"])
def test_sum_and_gradients_are_those_of_torch(size: tuple[int, int, int], both: bool) -> None:
    n, height, width = size
    z, passed = draw(n, 5, height, width), draw(n, 4, height, width, seed=1)
    w, kept, bias = draw(6, 5, 3, 3, seed=2), draw(6, 4, 3, 3, seed=3), draw(6, seed=4)
    leaves = [leaf.requires_grad_() for leaf in ([z, w, bias, passed, kept] if both else [z, w, bias])]
    pairs = [(z, w), (passed, kept)] if both else [(z, w)]
    expected = sum(torch.conv2d(a, b, padding=1) for a, b in pairs) + bias[:, None, None]
    found = convolution_sum(pairs, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = draw(n, 6, height, width, seed=5)
    for a, b in zip(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_it_has_all_derivatives() -> None:
    z, w = draw(2, 2, 5, 7).requires_grad_(), draw(1, 2, 3, 3, seed=1).requires_grad_()

    def sum_of(z: Tensor, w: Tensor) -> Tensor:
        return convolution_sum([(z, w)], None)

    assert torch.autograd.gradcheck(sum_of, (z, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(sum_of, (z, w), check_fwd_over_rev=True)


def test_functional_transforms_go_through() -> None:
    z, w, direction = draw(2, 3, 7, 7), draw(4, 3, 3, 3, seed=1), draw(5, 4, 3, 3, 3, seed=2)

    def fast(w: Tensor) -> Tensor:
        return convolution_sum([(z, w)], None)

    moved = torch.vmap(fast)(direction)
    torch.testing.assert_close(moved, torch.stack([torch.conv2d(z, w, padding=1) for w in direction]))
    value, tangent = torch.func.jvp(fast, (w,), (direction[0],))
    torch.testing.assert_close(tangent, torch.conv2d(z, direction[0], padding=1))
    torch.testing.assert_close(value, torch.conv2d(z, w, padding=1))


@pytest.mark.parametrize(
    ("samples", "channels", "size", "dtype", "expected"),
    [
        (64, 512, 7, torch.float32, True),
        (8, 512, 7, torch.float32, False),
        (64, 64, 7, torch.float32, False),
        (64, 512, 5, torch.float32, False),
        (64, 512, 7, torch.bfloat16, False),
    ],
)
def test_it_serves_many_channels_and_whole_tiles(
    samples: int, channels: int, size: int, dtype: torch.dtype, expected: bool
) -> None:
    z = torch.empty(samples, channels, size, size, dtype=dtype, device="cpu")
    assert serves(z, torch.empty(channels, channels, 3, 3, dtype=dtype)) is expected


@pytest.mark.parametrize("fast", [False, True])
def test_layer_tangent_is_eq_6_either_way(fast: bool) -> None:
    n, channels = (64, 384) if fast else (2, 8)
    z, passed = (draw(n, channels, 8, 8, seed=seed).float() for seed in (0, 1))
    w, kept = (draw(channels, channels, 3, 3, seed=seed).float() * channels**-0.5 for seed in (2, 3))
    bias = draw(channels).float()
    assert serves(z, w) is fast
    expected = torch.conv2d(z, w, bias, padding=1) + torch.conv2d(passed, kept, padding=1)
    torch.testing.assert_close(layer_tangent_3x3(z, w, bias, passed, kept), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        layer_tangent_3x3(None, None, bias, passed, kept),
        torch.conv2d(passed, kept, bias, padding=1),
        rtol=1e-3,
        atol=1e-3,
    )
