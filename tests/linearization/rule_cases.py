"""Arguments for tangent rules: what torch's own samples leave out, and what networks call most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Call = tuple[Any, list[Any]] | tuple[Any, list[Any], dict[str, Any]]


def r(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def d(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape)


def mask(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.4


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Call:
    return aten.scaled_dot_product_attention.default, [q, k, v, *rest], named


def _bag(
    w: Tensor,
    index: Tensor,
    offsets: Tensor,
    _: bool = False,
    mode: int = 0,
    __: bool = False,
    weights: Any = None,
    *___: Any,
) -> Tensor:
    """`embedding_bag` as torch can differentiate it."""
    rows = w[index] if weights is None else w[index] * weights[:, None]
    parts = torch.tensor_split(rows, offsets[1:].tolist())
    return torch.stack([part.mean(0) if mode == 1 else part.sum(0) for part in parts])


REFERENCES: dict[Any, Callable[..., Any]] = {  # torch has no forward derivative of these
    aten.embedding_bag.padding_idx: _bag,
    aten.embedding_bag.default: _bag,
    aten._embedding_bag.default: _bag,
    aten._embedding_bag_forward_only.default: _bag,
    aten.copy.default: lambda x, source: source.to(x.dtype).expand_as(x) + 0 * x,
}


# fmt: off
CASES: dict[str, Callable[[], Call]] = {
    # Eq. 6
    "linear": lambda: (aten.linear.default, [r(4, 3), r(2, 3), r(2)]),
    "linear-no-bias": lambda: (aten.linear.default, [r(4, 3), r(2, 3)]),
    "linear-3d": lambda: (aten.linear.default, [r(4, 5, 3), r(2, 3), r(2)]),
    "linear-1d": lambda: (aten.linear.default, [r(3), r(2, 3), r(2)]),
    "linear-named": lambda: (aten.linear.default, [r(4, 3)], {"weight": r(2, 3), "bias": r(2)}),
    "conv1d": lambda: (aten.conv1d.default, [r(2, 3, 8), r(4, 3, 3), r(4), [2], [1], [1], 1]),
    "conv1d-same": lambda: (aten.conv1d.padding, [r(2, 3, 8), r(4, 3, 3), r(4), [1], "same", [2], 1]),
    "conv2d": lambda: (aten.conv2d.default, [r(2, 3, 6, 7), r(4, 3, 3, 2), r(4), [2, 1], [1, 0]]),
    "conv2d-no-bias": lambda: (aten.conv2d.default, [r(2, 3, 6, 7), r(4, 3, 3, 3), None, [1, 1], [1, 1]]),
    "conv2d-depthwise": lambda: (aten.conv2d.default, [r(2, 4, 6, 6), r(8, 1, 3, 3), r(8), [1, 1], [1, 1], [1, 1], 4]),
    "conv2d-grouped": lambda: (aten.conv2d.default, [r(2, 4, 6, 6), r(6, 2, 3, 3), r(6), [1, 1], [0, 0], [1, 1], 2]),
    "conv2d-dilated": lambda: (aten.conv2d.default, [r(2, 3, 9, 9), r(4, 3, 3, 3), r(4), [1, 1], [2, 2], [2, 2]]),
    "conv2d-unbatched": lambda: (aten.conv2d.default, [r(3, 6, 6), r(4, 3, 3, 3), r(4)]),
    "conv2d-same": lambda: (aten.conv2d.padding, [r(2, 3, 6, 6), r(4, 3, 3, 3), r(4), [1, 1], "same"]),
    "conv2d-valid": lambda: (aten.conv2d.padding, [r(2, 3, 6, 6), r(4, 3, 3, 3), None, [2, 2], "valid"]),
    "conv2d-named": lambda: (aten.conv2d.default, [r(2, 3, 6, 6), r(4, 3, 3, 3)], {"stride": [2, 2], "bias": r(4)}),
    "conv1d-one-pixel": lambda: (aten.conv1d.default, [r(2, 3, 4), r(5, 3, 4), r(5), [2]]),
    "conv2d-one-pixel": lambda: (aten.conv2d.default, [r(2, 3, 4, 5), r(6, 3, 4, 5), r(6)]),
    "conv2d-one-pixel-no-bias": lambda: (
        aten.conv2d.default, [r(2, 3, 4, 4), r(6, 3, 4, 4), None, [2, 2], [0, 0], [1, 1], 1]),
    "conv2d-one-pixel-grouped": lambda: (
        aten.conv2d.default, [r(2, 4, 3, 3), r(6, 2, 3, 3), r(6), [1, 1], [0, 0], [1, 1], 2]),
    "conv2d-one-pixel-padded": lambda: (aten.conv2d.default, [r(2, 3, 4, 4), r(6, 3, 4, 4), r(6), [1, 1], [1, 1]]),
    "conv3d-one-pixel": lambda: (aten.conv3d.default, [r(2, 2, 2, 3, 2), r(3, 2, 2, 3, 2), r(3)]),
    "conv3d": lambda: (aten.conv3d.default, [r(2, 2, 4, 5, 4), r(3, 2, 2, 2, 2), r(3), [1, 2, 1], [1, 0, 1]]),
    "conv3d-same": lambda: (aten.conv3d.padding, [r(2, 2, 4, 5, 4), r(3, 2, 3, 3, 3), r(3), [1, 1, 1], "same"]),
    "conv_transpose1d": lambda: (
        aten.conv_transpose1d.default, [r(2, 4, 5), r(4, 3, 3), r(6), [2], [1], [1], 2, [1]]),
    "conv_transpose2d": lambda: (
        aten.conv_transpose2d.input, [r(2, 4, 4, 4), r(4, 3, 3, 3), r(3), [2, 2], [1, 1], [1, 1]]),
    "conv_transpose2d-grouped": lambda: (
        aten.conv_transpose2d.input, [r(2, 4, 4, 4), r(4, 2, 3, 3), r(4), [2, 2], [1, 1], [0, 0], 2, [2, 2]]),
    "conv_transpose3d": lambda: (aten.conv_transpose3d.input, [r(1, 2, 3, 3, 3), r(2, 2, 2, 2, 2), r(2)]),
    "convolution": lambda: (
        aten.convolution.default, [r(2, 4, 6), r(6, 2, 3), r(6), [1], [1], [1], False, [0], 2]),
    "convolution-transposed": lambda: (
        aten.convolution.default, [r(2, 4, 6), r(4, 3, 3), r(3), [2], [1], [1], True, [1], 1]),
    "addmm": lambda: (aten.addmm.default, [r(5), r(4, 3), r(3, 5)]),
    "addmm-scaled": lambda: (aten.addmm.default, [r(4, 5), r(4, 3), r(3, 5)], {"beta": 0.3, "alpha": -2.0}),
    "baddbmm": lambda: (aten.baddbmm.default, [r(1, 4, 5), r(2, 4, 3), r(2, 3, 5)], {"alpha": 0.5}),
    "addbmm": lambda: (aten.addbmm.default, [r(4, 5), r(2, 4, 3), r(2, 3, 5)], {"beta": 2.0}),
    "addmv": lambda: (aten.addmv.default, [r(4), r(4, 3), r(3)]),
    "mm": lambda: (aten.mm.default, [r(4, 3), r(3, 5)]),
    "bmm": lambda: (aten.bmm.default, [r(2, 4, 3), r(2, 3, 5)]),
    "matmul-broadcast": lambda: (aten.matmul.default, [r(2, 1, 4, 3), r(5, 3, 2)]),
    "matmul-vector": lambda: (aten.matmul.default, [r(2, 4, 3), r(3)]),
    "einsum": lambda: (aten.einsum.default, ["nqc,nkc,ck->nqk", [r(2, 3, 4), r(2, 5, 4), r(4, 5)]]),
    "embedding": lambda: (aten.embedding.default, [r(7, 3), ints(7, 2, 4)]),
    "embedding-padding": lambda: (aten.embedding.default, [r(7, 3), ints(3, 2, 4), 1]),
    "embedding_bag": lambda: (
        aten.embedding_bag.padding_idx,
        [r(7, 3), ints(7, 6), torch.tensor([0, 2]), False, 1, False, None, False, None]),
    "embedding_bag-weights": lambda: (
        aten._embedding_bag.default, [r(7, 3), ints(7, 6), torch.tensor([0, 2]), False, 0, False, r(6)]),
    "embedding_bag-plain": lambda: (aten.embedding_bag.default, [r(7, 3), ints(7, 6), torch.tensor([0, 2])]),
    "embedding_bag_forward_only": lambda: (
        aten._embedding_bag_forward_only.default, [r(7, 3), ints(7, 6), torch.tensor([0, 2])]),
    # normalizations
    "batch_norm": lambda: (
        aten.batch_norm.default, [r(3, 4, 2, 2), r(4), r(4), r(4), positive(4), False, 0.1, 1e-5, True]),
    "batch_norm-2d-plain": lambda: (
        aten.batch_norm.default, [r(3, 4), None, None, r(4), positive(4), False, 0.1, 1e-3, False]),
    "batch_norm-3d": lambda: (
        aten.batch_norm.default, [r(3, 4, 5), r(4), None, r(4), positive(4), False, 0.1, 1e-3, False]),
    "native_batch_norm": lambda: (
        aten.native_batch_norm.default, [r(3, 4, 2), r(4), r(4), r(4), positive(4), False, 0.1, 1e-5]),
    "native_batch_norm_legit": lambda: (
        aten._native_batch_norm_legit_no_training.default, [r(3, 4, 2), r(4), r(4), r(4), positive(4), 0.1, 1e-5]),
    "layer_norm": lambda: (aten.layer_norm.default, [r(2, 5, 4), [4], r(4), r(4), 1e-6]),
    "layer_norm-two-axes": lambda: (aten.layer_norm.default, [r(2, 5, 4), [5, 4], r(5, 4), r(5, 4)]),
    "layer_norm-plain": lambda: (aten.layer_norm.default, [r(2, 5, 4), [4]]),
    "layer_norm-named": lambda: (aten.layer_norm.default, [r(2, 4), [4]], {"eps": 1e-2, "weight": r(4)}),
    "native_layer_norm": lambda: (aten.native_layer_norm.default, [r(2, 5, 4), [4], r(4), r(4), 1e-6]),
    "rms_norm": lambda: (aten.rms_norm.default, [r(2, 5, 4), [4], r(4), 1e-3]),
    "rms_norm-plain": lambda: (aten.rms_norm.default, [r(2, 5, 4), [4]]),
    "group_norm": lambda: (aten.group_norm.default, [r(2, 6, 3, 3), 3, r(6), r(6), 1e-3]),
    "group_norm-plain": lambda: (aten.group_norm.default, [r(2, 6, 5), 2]),
    "group_norm-one": lambda: (aten.group_norm.default, [r(2, 6), 2, r(6), r(6)]),
    "instance_norm": lambda: (
        aten.instance_norm.default, [r(2, 3, 4, 4), r(3), r(3), None, None, True, 0.1, 1e-5, False]),
    # activations
    "relu": lambda: (aten.relu.default, [r(4, 5)]),
    "relu-at-zero": lambda: (aten.relu.default, [d(-1.0, 0.0, 2.0)]),
    "relu6": lambda: (aten.relu6.default, [r(4, 5) * 6]),
    "hardtanh": lambda: (aten.hardtanh.default, [r(4, 5), -0.3, 0.7]),
    "hardtanh-default": lambda: (aten.hardtanh.default, [r(4, 5)]),
    "hardtanh-named": lambda: (aten.hardtanh.default, [r(4, 5)], {"max_val": 0.2}),
    "leaky_relu": lambda: (aten.leaky_relu.default, [r(4, 5), 0.2]),
    "leaky_relu-zero": lambda: (aten.leaky_relu.default, [r(4, 5), 0.0]),
    "leaky_relu-negative": lambda: (aten.leaky_relu.default, [r(4, 5), -0.5]),
    "threshold": lambda: (aten.threshold.default, [r(4, 5), 0.2, -1.0]),
    "prelu": lambda: (aten.prelu.default, [r(2, 3, 4), r(3)]),
    "prelu-one": lambda: (aten.prelu.default, [r(2, 3, 4), r(1)]),
    "prelu-1d": lambda: (aten.prelu.default, [r(4), r(1)]),
    "elu": lambda: (aten.elu.default, [r(4, 5), 0.7]),
    "selu": lambda: (aten.selu.default, [r(4, 5)]),
    "celu": lambda: (aten.celu.default, [r(4, 5), 0.5]),
    "gelu": lambda: (aten.gelu.default, [r(4, 5)]),
    "gelu-tanh": lambda: (aten.gelu.default, [r(4, 5)], {"approximate": "tanh"}),
    "silu": lambda: (aten.silu.default, [r(4, 5)]),
    "mish": lambda: (aten.mish.default, [r(4, 5)]),
    "hardswish": lambda: (aten.hardswish.default, [r(4, 5) * 4]),
    "hardsigmoid": lambda: (aten.hardsigmoid.default, [r(4, 5) * 4]),
    "hardshrink": lambda: (aten.hardshrink.default, [r(4, 5), 0.3]),
    "softshrink": lambda: (aten.softshrink.default, [r(4, 5)]),
    "softplus": lambda: (aten.softplus.default, [r(4, 5) * 4, 2.0, 3.0]),
    "sigmoid": lambda: (aten.sigmoid.default, [r(4, 5)]),
    "log_sigmoid": lambda: (aten.log_sigmoid.default, [r(4, 5)]),
    "tanh": lambda: (aten.tanh.default, [r(4, 5)]),
    "glu": lambda: (aten.glu.default, [r(4, 6), 1]),
    "softmax": lambda: (aten.softmax.int, [r(4, 5), -1]),
    "_softmax": lambda: (aten._softmax.default, [r(4, 5), 0, False]),
    "log_softmax": lambda: (aten.log_softmax.int, [r(4, 5), 1]),
    "_log_softmax": lambda: (aten._log_softmax.default, [r(4, 5), 1, False]),
    "softmax-of-halves": lambda: (aten.softmax.int, [r(4, 5).float(), -1, torch.float64]),
    # attention
    "attention": lambda: _attention(r(2, 3, 4, 5), r(2, 3, 6, 5), r(2, 3, 6, 7)),
    "attention-causal": lambda: _attention(r(2, 3, 4, 5), r(2, 3, 4, 5), r(2, 3, 4, 5), None, 0.0, True),
    "attention-bool-mask": lambda: _attention(
        r(2, 3, 4, 5), r(2, 3, 6, 5), r(2, 3, 6, 5), mask(4, 6) | torch.eye(4, 6).bool()),
    "attention-bias": lambda: _attention(r(2, 3, 4, 5), r(2, 3, 6, 5), r(2, 3, 6, 5), r(1, 3, 4, 6)),
    "attention-scale": lambda: _attention(r(2, 3, 4, 5), r(2, 3, 6, 5), r(2, 3, 6, 5), scale=0.3),
    "attention-grouped-queries": lambda: _attention(r(2, 6, 4, 5), r(2, 2, 3, 5), r(2, 2, 3, 5), enable_gqa=True),
    "attention-grouped-causal": lambda: _attention(
        r(2, 4, 3, 5), r(2, 1, 3, 5), r(2, 1, 3, 5), None, 0.0, True, enable_gqa=True),
    "attention-three-axes": lambda: _attention(r(2, 4, 5), r(2, 6, 5), r(2, 6, 5)),
    "attention-masked-row": lambda: _attention(
        r(1, 1, 2, 3), r(1, 1, 2, 3), r(1, 1, 2, 3), torch.tensor([[True, True], [False, False]])),
    # pooling
    "max_pool1d": lambda: (aten.max_pool1d.default, [r(2, 3, 9), [3], [2], [1]]),
    "max_pool2d": lambda: (aten.max_pool2d.default, [r(2, 3, 7, 8), [3, 2], [2, 2], [1, 0]]),
    "max_pool2d-ceil": lambda: (aten.max_pool2d.default, [r(2, 3, 7, 8), [2, 2], [2, 2], [0, 0], [1, 1], True]),
    "max_pool2d-ties": lambda: (aten.max_pool2d.default, [torch.zeros(1, 1, 4, 4, dtype=torch.float64), [2, 2]]),
    "max_pool2d-unbatched": lambda: (aten.max_pool2d.default, [r(3, 6, 6), [2, 2]]),
    "max_pool3d": lambda: (aten.max_pool3d.default, [r(1, 2, 4, 4, 4), [2, 2, 2]]),
    "max_pool2d_with_indices": lambda: (aten.max_pool2d_with_indices.default, [r(2, 3, 6, 6), [2, 2]]),
    "max_pool3d_with_indices": lambda: (aten.max_pool3d_with_indices.default, [r(1, 2, 4, 4, 4), [2, 2, 2]]),
    "adaptive_max_pool1d": lambda: (aten.adaptive_max_pool1d.default, [r(2, 3, 7), [3]]),
    "adaptive_max_pool2d": lambda: (aten.adaptive_max_pool2d.default, [r(2, 3, 7, 5), [3, 2]]),
    "adaptive_max_pool3d": lambda: (aten.adaptive_max_pool3d.default, [r(1, 2, 5, 4, 4), [2, 2, 3]]),
    "avg_pool1d": lambda: (aten.avg_pool1d.default, [r(2, 3, 8), [3], [2], [1]]),
    "avg_pool2d": lambda: (aten.avg_pool2d.default, [r(2, 3, 7, 8), [3, 3], [2, 2], [1, 1], True, False]),
    "avg_pool2d-divisor": lambda: (aten.avg_pool2d.default, [r(2, 3, 6, 6), [2, 2]], {"divisor_override": 3}),
    "avg_pool3d": lambda: (aten.avg_pool3d.default, [r(1, 2, 4, 4, 4), [2, 2, 2]]),
    "adaptive_avg_pool1d": lambda: (aten.adaptive_avg_pool1d.default, [r(2, 3, 7), [3]]),
    "adaptive_avg_pool2d": lambda: (aten.adaptive_avg_pool2d.default, [r(2, 3, 7, 5), [3, 2]]),
    "adaptive_avg_pool3d": lambda: (aten.adaptive_avg_pool3d.default, [r(1, 2, 5, 4, 4), [2, 2, 3]]),
    "_adaptive_avg_pool2d": lambda: (aten._adaptive_avg_pool2d.default, [r(2, 3, 7, 5), [3, 2]]),
    "_adaptive_avg_pool3d": lambda: (aten._adaptive_avg_pool3d.default, [r(1, 2, 5, 4, 4), [2, 2, 3]]),
    # arithmetic
    "add-broadcast": lambda: (aten.add.Tensor, [r(2, 3, 4), r(3, 1)], {"alpha": 2.5}),
    "add-scalar": lambda: (aten.add.Tensor, [r(2, 3), 1.5]),
    "add-dtypes": lambda: (aten.add.Tensor, [r(2, 3), ints(5, 2, 3)]),
    "sub-broadcast": lambda: (aten.sub.Tensor, [r(4), r(2, 3, 1)], {"alpha": -0.5}),
    "rsub": lambda: (aten.rsub.Scalar, [r(2, 3), 1.0]),
    "mul-broadcast": lambda: (aten.mul.Tensor, [r(2, 1, 4), r(3, 1)]),
    "mul-scalar": lambda: (aten.mul.Tensor, [r(2, 3), -2.0]),
    "mul-zero-dim": lambda: (aten.mul.Tensor, [r(2, 3), r()]),
    "div-broadcast": lambda: (aten.div.Tensor, [r(2, 1, 4), positive(3, 1)]),
    "div-small-numerator": lambda: (aten.div.Tensor, [r(1), positive(3, 2)]),
    "div-scalar": lambda: (aten.div.Tensor, [r(2, 3), 3.0]),
    "addcmul-small": lambda: (aten.addcmul.default, [r(3, 4), r(4), r(1)], {"value": 0.5}),
    "addcmul-small-sum": lambda: (aten.addcmul.default, [r(4), r(3, 4), r(3, 1)]),
    "lerp": lambda: (aten.lerp.Scalar, [r(2, 1), r(3), 0.3]),
    "pow": lambda: (aten.pow.Tensor_Scalar, [positive(3, 4), 2.5]),
    "pow-square": lambda: (aten.pow.Tensor_Scalar, [r(3, 4), 2]),
    "pow-zero": lambda: (aten.pow.Tensor_Scalar, [r(3, 4), 0]),
    "pow-one": lambda: (aten.pow.Tensor_Scalar, [r(3, 4), 1]),
    "pow-negative": lambda: (aten.pow.Tensor_Scalar, [positive(3, 4), -1]),
    "exp": lambda: (aten.exp.default, [r(3, 4)]),
    "log": lambda: (aten.log.default, [positive(3, 4)]),
    "sqrt": lambda: (aten.sqrt.default, [positive(3, 4)]),
    "rsqrt": lambda: (aten.rsqrt.default, [positive(3, 4)]),
    "reciprocal": lambda: (aten.reciprocal.default, [positive(3, 4)]),
    "clamp": lambda: (aten.clamp.default, [r(3, 4), -0.2, 0.5]),
    "clamp-low": lambda: (aten.clamp.default, [r(3, 4), 0.0]),
    "clamp-named": lambda: (aten.clamp.default, [r(3, 4)], {"max": 0.1}),
    "clamp-at-bound": lambda: (aten.clamp.default, [d(0.0, 1.0, 2.0), 0.0, 1.0]),
    "clamp_min": lambda: (aten.clamp_min.default, [r(3, 4), 0.2]),
    "clamp_max": lambda: (aten.clamp_max.default, [r(3, 4), 0.2]),
    "where-broadcast": lambda: (aten.where.self, [mask(3, 4), r(4), r(3, 1)]),
    "where-small": lambda: (aten.where.self, [mask(2, 3, 4), r(1), r()]),
    "masked_fill": lambda: (aten.masked_fill.Scalar, [r(3, 4), mask(3, 4), -1.0]),
    "masked_fill-broadcast": lambda: (aten.masked_fill.Scalar, [r(4), mask(3, 4), -1.0]),
    "maximum-broadcast": lambda: (aten.maximum.default, [r(2, 3, 1), r(4)]),
    "minimum-broadcast": lambda: (aten.minimum.default, [r(2, 3, 1), r(4)]),
    "maximum-ties": lambda: (aten.maximum.default, [d(1.0, 2.0), d(1.0, 2.0)]),
    "minimum-ties": lambda: (aten.minimum.default, [d(1.0, 2.0), d(1.0, 2.0)]),
    "logsumexp": lambda: (aten.logsumexp.default, [r(3, 4, 5), [1, -1], True]),
    "vector_norm": lambda: (aten.linalg_vector_norm.default, [r(3, 4), 2, [-1], True]),
    "vector_norm-all": lambda: (aten.linalg_vector_norm.default, [r(3, 4)]),
    "vector_norm-one": lambda: (aten.linalg_vector_norm.default, [r(3, 4), 1, [1]]),
    "vector_norm-zero": lambda: (aten.linalg_vector_norm.default, [torch.zeros(2, 3, dtype=torch.float64), 2, [1]]),
    "var": lambda: (aten.var.correction, [r(3, 4, 5), [1, 2]], {"correction": 0, "keepdim": True}),
    "std": lambda: (aten.std.correction, [r(3, 4, 5), [-1]]),
    "add.Scalar": lambda: (aten.add.Scalar, [r(2, 3), 1.5, 2.0]),
    "sub.Scalar": lambda: (aten.sub.Scalar, [r(2, 3), 1.5]),
    "mul.Scalar": lambda: (aten.mul.Scalar, [r(2, 3), 1.5]),
    "div.Scalar": lambda: (aten.div.Scalar, [r(2, 3), 1.5]),
    # shapes
    "concat": lambda: (aten.concat.default, [[r(2, 3), r(2, 1)], 1]),
    "concatenate": lambda: (aten.concatenate.default, [[r(2, 3), r(2, 1)], 1]),
    "conj": lambda: (aten.conj.default, [r(2, 3)]),
    "contiguous": lambda: (aten.contiguous.default, [r(2, 3).t()]),
    "movedim": lambda: (aten.movedim.int, [r(2, 3, 4), 0, -1]),
    "split.sizes": lambda: (aten.split.sizes, [r(5, 6), [2, 4], -1]),
    "swapaxes": lambda: (aten.swapaxes.default, [r(2, 3), 0, 1]),
    "swapdims": lambda: (aten.swapdims.default, [r(2, 3), 0, -1]),
    "view": lambda: (aten.view.default, [r(3, 4), [2, 6]]),
    "reshape": lambda: (aten.reshape.default, [r(3, 4).t(), [-1]]),
    "_unsafe_view": lambda: (aten._unsafe_view.default, [r(3, 4), [12]]),
    "_reshape_alias": lambda: (aten._reshape_alias.default, [r(3, 4), [4, 3], [3, 1]]),
    "numpy_T": lambda: (aten.numpy_T.default, [r(3, 4)]),
    "permute": lambda: (aten.permute.default, [r(2, 3, 4), [-1, 0, 1]]),
    "expand": lambda: (aten.expand.default, [r(3, 1), [2, -1, 4]]),
    "slice": lambda: (aten.slice.Tensor, [r(5, 6), -1, 1, 9223372036854775807, 2]),
    "select": lambda: (aten.select.int, [r(5, 6), -2, -1]),
    "split": lambda: (aten.split.Tensor, [r(5, 6), 4, -1]),
    "split_with_sizes": lambda: (aten.split_with_sizes.default, [r(5, 6), [1, 2, 3], 1]),
    "chunk": lambda: (aten.chunk.default, [r(5, 6), 4, -1]),
    "unsafe_chunk": lambda: (aten.unsafe_chunk.default, [r(5, 6), 3, 1]),
    "cat": lambda: (aten.cat.default, [[r(2, 3), r(2, 1), r(2, 2)], -1]),
    "cat-named": lambda: (aten.cat.default, [[r(2, 3), r(2, 1)]], {"dim": 1}),
    "stack": lambda: (aten.stack.default, [[r(2, 3), r(2, 3)], 1]),
    "index": lambda: (aten.index.Tensor, [r(4, 5, 6), [None, ints(5, 3), ints(6, 3)]]),
    "index-mask": lambda: (aten.index.Tensor, [r(4, 5), [mask(4)]]),
    "_unsafe_index": lambda: (aten._unsafe_index.Tensor, [r(4, 5), [None, ints(5, 2, 3)]]),
    "gather": lambda: (aten.gather.default, [r(4, 5), -1, ints(5, 4, 2)]),
    "index_select": lambda: (aten.index_select.default, [r(4, 5), -1, ints(5, 3)]),
    "slice_scatter": lambda: (aten.slice_scatter.default, [r(4, 5), r(4, 2), 1, 1, 3]),
    "select_scatter": lambda: (aten.select_scatter.default, [r(4, 5), r(4), -1, 2]),
    "diagonal_scatter": lambda: (aten.diagonal_scatter.default, [r(4, 4), r(4)]),
    "scatter": lambda: (aten.scatter.src, [r(4, 5), 1, torch.tensor([[0, 3]] * 4), r(4, 2)]),
    "scatter_add": lambda: (aten.scatter_add.default, [r(4, 5), 1, torch.tensor([[0, 0]] * 4), r(4, 2)]),
    "masked_scatter": lambda: (aten.masked_scatter.default, [r(4, 5), mask(4, 5), r(4, 5)]),
    "index_put": lambda: (aten.index_put.default, [r(4, 5), [None, torch.tensor([0, 2])], r(4, 2)]),
    "index_put-add": lambda: (aten.index_put.default, [r(4, 5), [torch.tensor([0, 0])], r(5), True]),
    "index_add": lambda: (aten.index_add.default, [r(3, 4), 0, ints(3, 2), r(2, 4)], {"alpha": 0.5}),
    "index_copy": lambda: (aten.index_copy.default, [r(3, 4), 0, torch.tensor([2, 0]), r(2, 4)]),
    "copy": lambda: (aten.copy.default, [r(3, 4), r(4).float()]),
    "pad": lambda: (aten.pad.default, [r(2, 3, 4), [1, -1, 0, 2], "constant", 2.0]),
    "pad-default": lambda: (aten.pad.default, [r(2, 3, 4), [1, 1]]),
    "pad-named": lambda: (aten.pad.default, [r(2, 3, 4), [1, 1]], {"mode": "reflect"}),
    "pad-reflect": lambda: (aten.pad.default, [r(1, 2, 4, 4), [1, 1, 2, 0], "reflect"]),
    "pad-replicate": lambda: (aten.pad.default, [r(1, 2, 4, 4), [1, 1, 2, 0], "replicate"]),
    "pad-circular": lambda: (aten.pad.default, [r(1, 2, 4, 4), [1, 1, 2, 0], "circular"]),
    "constant_pad_nd": lambda: (aten.constant_pad_nd.default, [r(2, 3), [1, 1], 3.0]),
    "_pad_circular": lambda: (aten._pad_circular.default, [r(1, 2, 4), [1, 2]]),
    "reflection_pad1d": lambda: (aten.reflection_pad1d.default, [r(1, 2, 4), [1, 2]]),
    "reflection_pad2d": lambda: (aten.reflection_pad2d.default, [r(1, 2, 4, 4), [1, 2, 0, 1]]),
    "reflection_pad3d": lambda: (aten.reflection_pad3d.default, [r(1, 1, 3, 3, 3), [1, 1, 1, 1, 1, 1]]),
    "replication_pad1d": lambda: (aten.replication_pad1d.default, [r(1, 2, 4), [1, 2]]),
    "replication_pad2d": lambda: (aten.replication_pad2d.default, [r(1, 2, 4, 4), [1, 2, 0, 1]]),
    "replication_pad3d": lambda: (aten.replication_pad3d.default, [r(1, 1, 3, 3, 3), [1, 1, 1, 1, 1, 1]]),
    "mean": lambda: (aten.mean.dim, [r(2, 3, 4), [-1, 1], True]),
    "sum": lambda: (aten.sum.dim_IntList, [r(2, 3, 4), [0, -1]]),
    "sum-all": lambda: (aten.sum.default, [r(2, 3)]),
    "sum-dtype": lambda: (aten.sum.dim_IntList, [r(2, 3).float(), [1]], {"dtype": torch.float64}),
    "im2col": lambda: (aten.im2col.default, [r(1, 2, 5, 5), [2, 2], [1, 1], [1, 0], [2, 1]]),
    "col2im": lambda: (aten.col2im.default, [r(1, 8, 16), [5, 5], [2, 2], [1, 1], [0, 0], [1, 1]]),
    "_to_copy": lambda: (aten._to_copy.default, [r(2, 3)], {"dtype": torch.float32}),
    "to": lambda: (aten.to.dtype, [r(2, 3).float(), torch.float64]),
    "to_layout": lambda: (aten.to.dtype_layout, [r(2, 3)], {"dtype": torch.float32}),
    "type_as": lambda: (aten.type_as.default, [r(2, 3), r(1).float()]),
    "expand_as": lambda: (aten.expand_as.default, [r(1, 3), r(2, 3)]),
    "view_as": lambda: (aten.view_as.default, [r(6), r(2, 3)]),
    "clone": lambda: (aten.clone.default, [r(2, 3)]),
    "alias": lambda: (aten.alias.default, [r(2, 3)]),
    "lift_fresh_copy": lambda: (aten.lift_fresh_copy.default, [r(2, 3)]),
    "dropout": lambda: (aten.dropout.default, [r(2, 3), 0.5, False]),
    "dropout-of-nothing": lambda: (aten.dropout.default, [r(2, 3), 0.0, True]),
    "alpha_dropout": lambda: (aten.alpha_dropout.default, [r(2, 3), 0.5, False]),
    "feature_dropout": lambda: (aten.feature_dropout.default, [r(2, 3), 0.5, False]),
    "native_dropout": lambda: (aten.native_dropout.default, [r(2, 3), 0.5, False]),
    "atleast_1d": lambda: (aten.atleast_1d.default, [r()]),
    "sort": lambda: (aten.sort.default, [r(3, 4), 1, True]),
    "sort-stable": lambda: (aten.sort.stable, [r(3, 4)], {"stable": True, "dim": 0}),
    "topk": lambda: (aten.topk.default, [r(3, 5), 2, 0, False]),
    "max-dim": lambda: (aten.max.dim, [r(3, 5), 1]),
    # enlarging
    "upsample_nearest1d": lambda: (aten.upsample_nearest1d.default, [r(1, 2, 4), [7]]),
    "upsample_nearest2d": lambda: (aten.upsample_nearest2d.default, [r(1, 2, 4, 3), [7, 6]]),
    "upsample_nearest3d": lambda: (aten.upsample_nearest3d.default, [r(1, 1, 2, 3, 2), [4, 4, 3]]),
    "upsample_linear1d": lambda: (aten.upsample_linear1d.default, [r(1, 2, 4), [7], False]),
    "upsample_bilinear2d": lambda: (aten.upsample_bilinear2d.default, [r(1, 2, 4, 3), [7, 6], True]),
    "upsample_trilinear3d": lambda: (aten.upsample_trilinear3d.default, [r(1, 1, 2, 3, 2), [4, 4, 3], False]),
    "upsample_bicubic2d": lambda: (aten.upsample_bicubic2d.default, [r(1, 2, 4, 3), [7, 6], False]),
    "upsample_bilinear2d_aa": lambda: (aten._upsample_bilinear2d_aa.default, [r(1, 2, 6, 6), [4, 3], False]),
    "upsample_bicubic2d_aa": lambda: (aten._upsample_bicubic2d_aa.default, [r(1, 2, 6, 6), [4, 3], False]),
    "upsample_nearest_exact2d": lambda: (aten._upsample_nearest_exact2d.default, [r(1, 2, 4, 3), [7, 6]]),
    "upsample_nearest1d.vec": lambda: (aten.upsample_nearest1d.vec, [r(1, 2, 4), None, [2.0]]),
    "upsample_nearest2d.vec": lambda: (aten.upsample_nearest2d.vec, [r(1, 2, 4, 3), None, [2.0, 1.5]]),
    "upsample_nearest3d.vec": lambda: (aten.upsample_nearest3d.vec, [r(1, 1, 2, 3, 2), [4, 4, 3], None]),
    "upsample_linear1d.vec": lambda: (aten.upsample_linear1d.vec, [r(1, 2, 4), None, True, [2.0]]),
    "upsample_bilinear2d.vec": lambda: (aten.upsample_bilinear2d.vec, [r(1, 2, 4, 3), [7, 6], False, None]),
    "upsample_trilinear3d.vec": lambda: (aten.upsample_trilinear3d.vec, [r(1, 1, 2, 3, 2), [4, 4, 3], False, None]),
    "upsample_bicubic2d.vec": lambda: (aten.upsample_bicubic2d.vec, [r(1, 2, 4, 3), None, False, [2.0, 2.0]]),
    "upsample_nearest_exact2d.vec": lambda: (aten._upsample_nearest_exact2d.vec, [r(1, 2, 4, 3), None, [2.0, 1.5]]),
    "upsample_bilinear2d_aa.vec": lambda: (aten._upsample_bilinear2d_aa.vec, [r(1, 2, 6, 6), [4, 3], False, None]),
    "pixel_shuffle": lambda: (aten.pixel_shuffle.default, [r(1, 8, 2, 3), 2]),
    "channel_shuffle": lambda: (aten.channel_shuffle.default, [r(1, 6, 2, 3), 3]),
}
# fmt: on

# operations without a rule: torch differentiates them, forward or by two backward passes
WITHOUT_RULE: dict[str, Callable[[], Call]] = {
    "cumprod": lambda: (aten.cumprod.default, [positive(3, 4), 1]),
    "atan2": lambda: (aten.atan2.default, [r(3, 4), r(4)]),
    "pow-tensors": lambda: (aten.pow.Tensor_Tensor, [positive(3, 4), r(4)]),
    "amax": lambda: (aten.amax.default, [r(3, 4), [1]]),
    "index_fill": lambda: (aten.index_fill.int_Scalar, [r(3, 4), 1, torch.tensor([1]), 2.0]),
    "grid_sampler": lambda: (aten.grid_sampler.default, [r(1, 2, 4, 4), r(1, 3, 3, 2).tanh(), 0, 0, False]),
    "var_mean": lambda: (aten.var_mean.correction, [r(3, 4), [1]]),
    "linalg_qr": lambda: (aten.linalg_qr.default, [r(4, 3)]),
    "where-scalar": lambda: (aten.where.ScalarOther, [mask(3, 4), r(4), 2.0]),
    "weight_norm": lambda: (aten._weight_norm_interface.default, [r(4, 3), positive(4, 1)]),
    "lstm": lambda: (
        aten.lstm.input,
        [r(2, 3, 4), [r(1, 2, 5), r(1, 2, 5)], [r(20, 4), r(20, 5), r(20), r(20)], True, 1, 0.0, False, False, True],
    ),
}
