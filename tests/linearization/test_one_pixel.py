from __future__ import annotations

import pytest
import torch

from gradfeat.linearization import linearize
from gradfeat.linearization.one_pixel import one_pixel
from gradfeat.pretrain.encoder import ConvEncoder


@pytest.mark.parametrize("images", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("filters", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution_however_images_and_filters_lie(
    images: torch.memory_format, filters: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    z, w, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4, 2, 5), (6, 4, 2, 5), (6,))
    )
    z, w = z.contiguous(memory_format=images), w.contiguous(memory_format=filters)
    torch.testing.assert_close(one_pixel(z, w, bias), torch.conv2d(z, w, bias))


def test_the_programs_use_it_and_the_factors_see_its_calls() -> None:
    torch.manual_seed(0)
    network = ConvEncoder(3, channels=(4, 6), strides=(2, 1), kernel_size=(4, 3), padded=False).double().eval()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    lin = linearize(network, x[:3], "blocks.1")
    for name in ("network", "primal", "tangent"):
        assert any(node.target is one_pixel for node in lin.programs[name].graph.nodes)
    f, residuals = lin.primal(lin.bottom(x))
    torch.testing.assert_close(f, network(x))
    u = torch.randn(5, 6, dtype=torch.float64)
    gradients, calls = lin.layer_calls(u, residuals)
    (call,) = calls
    torch.testing.assert_close(call.outputs().T @ call.inputs(), gradients[call.name].flatten(1))
    torch.testing.assert_close(lin.transpose(u, residuals)[call.name], gradients[call.name])


def test_a_convolution_with_padding_or_groups_stays_one() -> None:
    for settings in ({"padding": 1}, {"groups": 2}, {"dilation": 2, "kernel_size": 2}):
        arguments = {"kernel_size": 3} | settings
        network = torch.nn.Sequential(torch.nn.Conv2d(4, 6, **arguments), torch.nn.AdaptiveAvgPool2d(1))
        lin = linearize(torch.nn.Sequential(network, torch.nn.Flatten()), torch.randn(3, 4, 3, 3), "0.0")
        assert not any(node.target is one_pixel for program in lin.programs.values() for node in program.graph.nodes)
