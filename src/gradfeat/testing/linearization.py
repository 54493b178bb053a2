"""The contract of a linearization: what must hold for every network, θ₂ and batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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


def _check_batch(
    network: nn.Module, lin: Linearization, x: Any, features: Features, folded: bool, tolerance: float
) -> None:
    extractor = FeatureExtractor(network, features).eval()
    args, kwargs = as_inputs(x)
    z0 = lin.bottom(x)
    f, residuals = lin.primal(z0)
    n = f.shape[0]
    names = list(lin.theta2)
    point = list(lin.theta2.values())

    def of_network(*values: Tensor) -> Tensor:
        state = {f"network.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(extractor, state, (args, kwargs))

    def of_programs(*values: Tensor) -> Tensor:
        return lin.network(dict(zip(names, values, strict=True)), z0)

    with torch.no_grad(), plain_kernels():
        expected = extractor(args, kwargs)
        expect_close(f, expected, tolerance, f"f of {n} samples")
        expect_close(of_programs(*point), expected, tolerance, f"the network with θ₂ free, {n} samples")
    function = of_programs if folded else of_network

    w = _random(lin.theta2, 1)
    moved = lin.tangent(w, residuals)
    oracle = jacobian_vector_product(function, point, list(w.values()))[0]
    expect_close(moved, oracle, tolerance, f"J w2 of {n} samples")

    u = torch.randn(f.shape, generator=torch.Generator().manual_seed(2), dtype=f.dtype)
    pulled = lin.transpose(u, residuals)
    if list(pulled) != names:
        raise AssertionError(f"J'u has the names {list(pulled)}, not {names}")
    expect_adjoint([u], [moved], list(pulled.values()), list(w.values()), f"{n} samples")
    traced = lin.transpose(u, residuals)  # the second batch of a size is pulled back by a program of its own
    for name in names:
        expect_close(traced[name], pulled[name], 1e-12, f"J'u by the traced program, {name}")
    other = torch.randn(f.shape, generator=torch.Generator().manual_seed(4), dtype=f.dtype)
    expect_adjoint([other], [moved], list(lin.transpose(other, residuals).values()), list(w.values()), f"{n} others")
    variables = [value.detach().clone().requires_grad_() for value in point]
    with torch.enable_grad(), plain_kernels():
        gradients = torch.autograd.grad(function(*variables), variables, u, allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
    for name, variable, gradient in zip(names, variables, gradients, strict=True):
        gradient = torch.zeros_like(variable) if gradient is None else gradient
        expect_close(pulled[name], gradient, tolerance, f"J'u of {n} samples, {name}", scale=largest)

    v = _random(lin.theta2, 3)
    combined = lin.tangent({name: 2.0 * w[name] - 0.5 * v[name] for name in names}, residuals)
    expect_close(combined, 2.0 * moved - 0.5 * lin.tangent(v, residuals), tolerance, "J (2 w2 - v2 / 2)")
    leaf = {name: value.clone().requires_grad_() for name, value in w.items()}
    (lin.tangent(leaf, residuals) * u).sum().backward()
    for name, value in leaf.items():
        expect_close(value.grad, pulled[name], 1e-12, f"backward through J w2, {name}")  # type: ignore[arg-type]

    chosen = torch.arange(n - 1, -1, -2)
    picked = lin.tangent(w, tuple(residual[chosen] for residual in residuals))
    expect_close(picked, moved[chosen], tolerance, f"J w2 of samples {chosen.tolist()} by indexing residuals")
    below = z0[chosen] if isinstance(z0, Tensor) else tuple(value[chosen] for value in z0)
    again, rerun = lin.primal(below)
    expect_close(again, f[chosen], tolerance, f"f of samples {chosen.tolist()} by indexing z0")
    expect_close(lin.tangent(w, rerun), picked, tolerance, f"J w2 of samples {chosen.tolist()} by indexing z0")


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
