"""The tangent kernel of a linearized network: inner products of gradient features, without all features in memory.

A sample has c rows of gradient features, ``φ_k(x) = J(x)ᵀ ω_k``, of as many entries as θ₂ has (the weights w₂ are
shared by all outputs). The kernel is ``K[(x, k), (x', l)] = ω_kᵀ J(x) J(x')ᵀ ω_l``: the neural tangent kernel of the
head ω and the layers θ₂ (Jacot et al., 2018), at the pre-trained point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.linearization import Linearization
from gradfeat.linearization.lengths import Split
from gradfeat.samples.store import SampleStore, available_memory
from gradfeat.solvers.gradient_features import GradientFeatures

_BUDGET = 2 << 30  # bytes of gradient features in memory at a time, at most
_COLUMNS = 1 << 14  # entries of θ₂ that are brought to float64 at a time
_STRIPES = 4  # of a symmetric product only the blocks above the diagonal are computed


@plain()
def tangent_kernel(
    linearization: Linearization,
    omega: Tensor,
    x: Any,
    y: Any = None,
    *,
    parametrization: str = "standard",
    batch_size: int = 64,
) -> Tensor:
    """Return the tangent kernel between samples, ``Φ(x) Φ(y)ᵀ`` with ``Φ(x) w₂ = ωᵀ J(x) w₂``.

    Args:
        linearization: The network's programs.
        omega: ω, (d, c); columns of the identity give the kernel of single features.
        x: n samples, as for `gradfeat.GradientFeatureClassifier.fit` with `preprocessing=None`.
        y: m samples; None takes x, and computes half.
        parametrization: The variables that the gradients are taken in.
        batch_size: Samples at a time in the network's lower part.

    Returns:
        (n · c, m · c) in float64, on the CPU; row ``i · c + k`` is output k of sample i. Without y it is symmetric and
        positive semi-definite, whatever the network's precision: gradients are multiplied in float64.

    Raises:
        ConfigurationError: ω does not fit the features.
        ConvergenceError: The gradients are not finite.

    Example:
        >>> from gradfeat import linearize
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> lin = linearize(torch.nn.Linear(2, 1), x, "*")
        >>> tangent_kernel(lin, torch.ones(1, 1), x)  # xᵀx' of the weight, and 1 of the bias
        tensor([[ 6.,  7.],
                [ 7., 10.]], dtype=torch.float64)
    """
    features = [
        GradientFeatures(
            SampleStore(linearization, part if isinstance(part, Inputs) else Inputs(part), batch_size=batch_size),
            omega.to(linearization.device, linearization.dtype),
            parametrization=parametrization,
        )
        for part in ([x] if y is None else [x, y])
    ]
    d = features[0].store.features.shape[1]
    if omega.ndim != 2 or len(omega) != d:
        raise ConfigurationError(f"omega must be of shape ({d}, c), a row for each feature, not {tuple(omega.shape)}")
    return gram(*features)


@plain()
def gram(features: GradientFeatures, other: GradientFeatures | None = None, *, budget: int | None = None) -> Tensor:
    """Return ``Φ Φ'ᵀ`` between the samples of two maps, or of one: (n · c, m · c), float64, on the CPU.

    Args:
        features: The map Φ.
        other: The map Φ' of the same network; None takes Φ.
        budget: Bytes of features to hold at a time; by default what memory allows. Features that do not fit are
            computed again for each block.

    Raises:
        ConvergenceError: An entry is not finite.
    """
    right = features if other is None else other
    row = 4 * sum(value.numel() for value in features.linearization.theta2.values())
    budget = min(_BUDGET, available_memory(features.linearization.device) // 4) if budget is None else budget
    c, c_right = features.omega.shape[1], right.omega.shape[1]
    n, m = len(features.store), len(right.store)
    block = max(1, budget // (row * c))
    if other is not None or block < n:
        block = max(1, block // 2)  # two at a time
    kernel = torch.empty(n * c, m * c_right, dtype=torch.float64)
    for a in torch.split(torch.arange(n), block):
        left = _rows(features, a)
        rows = slice(int(a[0]) * c, (int(a[-1]) + 1) * c)
        for b in torch.split(torch.arange(0 if other is not None else int(a[0]), m), block):
            columns = slice(int(b[0]) * c_right, (int(b[-1]) + 1) * c_right)
            if other is None and columns == rows:
                kernel[rows, columns] = _square(left)
                continue
            kernel[rows, columns] = _product(left, _rows(right, b))
            if other is None:
                kernel[columns, rows] = kernel[rows, columns].T
    if not bool(torch.isfinite(kernel).all()):
        raise ConvergenceError("the tangent kernel is not finite: J(x) is too large for its precision")
    return kernel


def _rows(features: GradientFeatures, indices: Tensor) -> Tensor:
    """Return the gradient features of some samples, (m · c, |θ₂|)."""
    zeros = features.zeros()
    sizes = [value.numel() for value in zeros.values()]
    c = features.omega.shape[1]
    first = next(iter(zeros.values()))
    rows = first.new_empty(len(indices) * c, sum(sizes))
    lin = features.linearization
    for positions, residuals in features.batches(indices):
        for i, position in enumerate(positions.tolist()):
            of_one = residuals.sample(i) if isinstance(residuals, Split) else tuple(v[i : i + 1] for v in residuals)
            for k in range(c):
                gradient = features.to_variables(lin.transpose(features.omega[:, k][None], of_one))
                # written where they belong at once: a row in between would cost more time than the gradient
                parts = torch.split(rows[c * position + k], sizes)
                for part, (name, value) in zip(parts, zeros.items(), strict=True):
                    part.view(value.shape).copy_(gradient[name])
    features.passes += 0.5 * len(indices) * c / len(features.store)
    return rows


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left rightᵀ`` in float64: in single precision its rounding would be a penalty of its own."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    for a, b in zip(torch.split(left, _COLUMNS, 1), torch.split(right, _COLUMNS, 1), strict=True):
        total += (a.double() @ b.double().T).cpu()
    return total


def _square(rows: Tensor) -> Tensor:
    """Return ``rows rowsᵀ``, exactly symmetric."""
    square = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    start = 0
    for part in torch.split(rows, max(1, -(-len(rows) // _STRIPES))):
        square[start : start + len(part), start:] = _product(part, rows[start:])
        start += len(part)
    return square.triu() + square.triu(1).T
