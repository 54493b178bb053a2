"""The contract of a linearization: what must hold for every network, θ₂ and batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradfeat.linearization import Linearization, linearize
from gradfeat.linearization.capture import FeatureExtractor, Features, as_inputs
from gradfeat.linearization.rules.fallback import plain_kernels
from gradfeat.testing.oracle import expect_adjoint, expect_close, jacobian_vector_product


def check_linearization(
    network: nn.Module,
    x: Any,
    theta2: str | Sequence[str],
    *,
    features: Features = None,
    fold_batchnorm: bool = True,
    batch_sizes: Sequence[int] = (1, 5),
    tolerance: float = 1e-10,
) -> Linearization:
    """Linearize a copy of `network` in float64, and check all that a linearization promises.

    For batches of several sizes: f is the network's output; J w₂ is torch's derivative of it (of
    the network itself where no batch norm is folded into θ₂, else of the folded one); Jᵀu is autograd's gradient of
    ⟨u, f⟩; ⟨u, J w₂⟩ = ⟨Jᵀu, w₂⟩; J w₂ is linear in w₂; its own backward pass is Jᵀ; z₀ and residuals can be indexed by
    sample; the network with θ₂ free gives f at θ̄₂.

    Args:
        network: The network.
        x: A batch, as the network takes it.
        theta2: As for `gradfeat.linearize`.
        features: As for `gradfeat.linearize`.
        fold_batchnorm: As for `gradfeat.linearize`.
        batch_sizes: Sizes of the batches; their samples are those of `x`, repeated, with noise.
        tolerance: Largest error, relative to the largest entry.

    Returns:
        The linearization, in float64.

    Raises:
        AssertionError: A promise is broken; the message says which, and by how much.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> lin = check_linearization(network, torch.randn(3, 3), ["0", "2"])
        >>> sum(value.numel() for value in lin.theta2.values())
        26
    """
    network = copy.deepcopy(network).double().eval()
    x = pytree.tree_map(_double, x)
    lin = linearize(network, x, theta2, features=features, fold_batchnorm=fold_batchnorm)
    folded = any(name in lin.theta2 for f in lin.foldings for name in (f.weight, f.bias))
    for n in batch_sizes:
        batch = pytree.tree_map(lambda leaf, n=n: _batch(leaf, n), x)
        _check_batch(network, lin, batch, features, folded, tolerance)
    return lin


@dataclass(frozen=True)
class _Batch:
    """What the programs make of one batch, and what it is compared with.

    Attributes:
        lin: The linearization.
        z0: What `bottom` made of the batch.
        f: f(x), (n, d).
        residuals: What the tangent needs of the batch.
        w2: A direction of θ₂.
        moved: J w₂, (n, d).
        u: A cotangent for each sample, (n, d).
        pulled: Jᵀu.
        tolerance: Largest error, relative to the largest entry.
    """

    lin: Linearization
    z0: Any
    f: Tensor
    residuals: tuple[Tensor, ...]
    w2: dict[str, Tensor]
    moved: Tensor
    u: Tensor
    pulled: dict[str, Tensor]
    tolerance: float

    @classmethod
    def of(cls, lin: Linearization, x: Any, tolerance: float) -> _Batch:
        z0 = lin.bottom(x)
        f, residuals = lin.primal(z0)
        w2, u = _random(lin.theta2, 1), _cotangent(f, 2)
        return cls(lin, z0, f, residuals, w2, lin.tangent(w2, residuals), u, lin.transpose(u, residuals), tolerance)

    def of_programs(self, *theta2: Tensor) -> Tensor:
        """Return the features by the programs with θ₂ free."""
        return self.lin.network(dict(zip(self.lin.theta2, theta2, strict=True)), self.z0)


def _check_batch(
    network: nn.Module, lin: Linearization, x: Any, features: Features, folded: bool, tolerance: float
) -> None:
    batch = _Batch.of(lin, x, tolerance)
    extractor = FeatureExtractor(network, features).eval()
    args, kwargs = as_inputs(x)

    def of_network(*theta2: Tensor) -> Tensor:
        state = {f"network.{name}": value for name, value in zip(lin.theta2, theta2, strict=True)}
        return torch.func.functional_call(extractor, state, (args, kwargs))

    with torch.no_grad(), plain_kernels():
        expected = extractor(args, kwargs)
    _check_features(batch, expected)
    _check_derivative(batch, batch.of_programs if folded else of_network)
    _check_transposed(batch)
    _check_linearity(batch)
    _check_indexing(batch)


def _check_features(batch: _Batch, expected: Tensor) -> None:
    n = len(batch.f)
    expect_close(batch.f, expected, batch.tolerance, f"f of {n} samples")
    with torch.no_grad(), plain_kernels():
        free = batch.of_programs(*batch.lin.theta2.values())
    expect_close(free, expected, batch.tolerance, f"the network with θ₂ free, {n} samples")


def _check_derivative(batch: _Batch, function: Callable[..., Tensor]) -> None:
    """Compare J w₂ and Jᵀu with torch's derivatives of a function of θ₂'s tensors."""
    n, point = len(batch.f), list(batch.lin.theta2.values())
    oracle = jacobian_vector_product(function, point, list(batch.w2.values()))[0]
    expect_close(batch.moved, oracle, batch.tolerance, f"J w2 of {n} samples")
    variables = [value.detach().clone().requires_grad_() for value in point]
    with torch.enable_grad(), plain_kernels():
        gradients = torch.autograd.grad(function(*variables), variables, batch.u, allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
    for name, variable, gradient in zip(batch.lin.theta2, variables, gradients, strict=True):
        gradient = torch.zeros_like(variable) if gradient is None else gradient
        expect_close(batch.pulled[name], gradient, batch.tolerance, f"J'u of {n} samples, {name}", scale=largest)


def _check_transposed(batch: _Batch) -> None:
    """Check that Jᵀ is the adjoint of J, by autograd and by the program that is traced from the second batch on."""
    n, w2, pulled = len(batch.f), list(batch.w2.values()), batch.pulled
    if list(pulled) != list(batch.lin.theta2):
        raise AssertionError(f"J'u has the names {list(pulled)}, not {list(batch.lin.theta2)}")
    expect_adjoint([batch.u], [batch.moved], list(pulled.values()), w2, f"{n} samples")
    traced = batch.lin.transpose(batch.u, batch.residuals)
    for name, value in pulled.items():
        expect_close(traced[name], value, 1e-12, f"J'u by the traced program, {name}")
    other = _cotangent(batch.f, 4)
    pulled_other = batch.lin.transpose(other, batch.residuals)
    expect_adjoint([other], [batch.moved], list(pulled_other.values()), w2, f"{n} others")


def _check_linearity(batch: _Batch) -> None:
    """Check that J w₂ is linear in w₂, and that its own backward pass is Jᵀ."""
    lin, w2, v2 = batch.lin, batch.w2, _random(batch.lin.theta2, 3)
    combined = lin.tangent({name: 2.0 * w2[name] - 0.5 * v2[name] for name in w2}, batch.residuals)
    expected = 2.0 * batch.moved - 0.5 * lin.tangent(v2, batch.residuals)
    expect_close(combined, expected, batch.tolerance, "J (2 w2 - v2 / 2)")
    variables = {name: value.clone().requires_grad_() for name, value in w2.items()}
    (lin.tangent(variables, batch.residuals) * batch.u).sum().backward()
    for name, value in variables.items():
        expect_close(value.grad, batch.pulled[name], 1e-12, f"backward through J w2, {name}")  # type: ignore[arg-type]


def _check_indexing(batch: _Batch) -> None:
    """Check that every other sample, from the last on, can be taken out of z₀ and residuals by indexing."""
    lin, w2, z0, tolerance = batch.lin, batch.w2, batch.z0, batch.tolerance
    rows = torch.arange(len(batch.f) - 1, -1, -2)
    picked = lin.tangent(w2, tuple(residual[rows] for residual in batch.residuals))
    expect_close(picked, batch.moved[rows], tolerance, f"J w2 of samples {rows.tolist()} by indexing residuals")
    below = z0[rows] if isinstance(z0, Tensor) else tuple(value[rows] for value in z0)
    again, residuals = lin.primal(below)
    expect_close(again, batch.f[rows], tolerance, f"f of samples {rows.tolist()} by indexing z0")
    expect_close(lin.tangent(w2, residuals), picked, tolerance, f"J w2 of samples {rows.tolist()} by indexing z0")


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point else leaf


def _batch(leaf: Any, n: int) -> Any:
    """Return n samples that look like those given: repeated, with noise where they are numbers."""
    if not isinstance(leaf, Tensor):
        return leaf
    rows = leaf[torch.arange(n) % leaf.shape[0]]
    if not leaf.dtype.is_floating_point:
        return rows
    return rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(n), dtype=rows.dtype)


def _random(like: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in like.items()}


def _cotangent(f: Tensor, seed: int) -> Tensor:
    return torch.randn(f.shape, generator=torch.Generator().manual_seed(seed), dtype=f.dtype)
