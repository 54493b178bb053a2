"""What a linearization is compared with before it is used: the network itself, and its derivative by other ways.

The programs must compute the network's features. The tangent must be their derivative: torch's own in forward mode,
where it has one; else the derivative of u ↦ Jᵀu, which takes reverse mode twice; else the adjoint identity
⟨u, J w⟩ = ⟨Jᵀu, w⟩ against reverse mode; else differences of the network. What differs in single entries alone is
looked at again in double precision: rounding that has crossed a jump is gone there, and a wrong entry is not.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradfeat.contexts import callers_device
from gradfeat.errors import BatchDependenceError, LinearizationError
from gradfeat.linearization.capture import FeatureExtractor, Features, as_inputs, evaluation_mode
from gradfeat.linearization.layout import TOLERANCE, agree, equal
from gradfeat.linearization.linearization import Linearization, Residuals
from gradfeat.linearization.rules.fallback import jvp_by_two_vjps, plain_kernels

_DRAWN = 65_521  # a prime, so that rows of a matrix differ; drawing a hundred million numbers takes a second
_SIGNS = 8  # of the adjoint identity: a wrong entry is in every one of them
_STEP = 1e-5  # of differences in double precision, in units of the random direction
_FAILS = (NotImplementedError, RuntimeError, TypeError)  # what torch has no derivative, or no kernel, for

Weights = dict[str, Tensor]


def check_programs(
    network: nn.Module, features: Features, lin: Linearization, example: Any, z0: Tensor | Residuals
) -> list[str]:
    """Compare the programs with the network, and the tangent with its derivative, on two samples and their z₀.

    Returns:
        What was compared, and how.

    Raises:
        BatchDependenceError: The network draws random numbers.
        LinearizationError: The programs compute something else.
    """
    return [_check_features(network, features, lin, example, z0), _check_tangent(lin, z0)]


def in_double(value: Any) -> Any:
    """Return a copy of a module, or of a batch, with its floating-point numbers in double precision."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    return pytree.tree_map(lambda leaf: leaf.double() if _is_real(leaf) else leaf, value)


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype.is_floating_point


def _check_features(
    network: nn.Module, features: Features, lin: Linearization, example: Any, z0: Tensor | Residuals
) -> str:
    f = lin.primal(z0)[0]
    with torch.no_grad():
        expected = _features_of(network, features, example)
        if equal(expected, f):
            return "f(x) against the network"
        if not agree(expected, f):
            if not agree(expected, _features_of(network, features, example)):
                raise BatchDependenceError(
                    "the network gives different features for the same batch: it draws random numbers in evaluation "
                    "mode"
                )
            raise _wrong_features(expected, f)
        try:
            exact = _features_of(in_double(network), features, in_double(example))
            found = in_double(lin)(in_double(example))
        except _FAILS:
            return "f(x) against the network, up to single entries: it does not run in double precision"
        if not equal(exact, found):
            raise _wrong_features(exact, found)
    return "f(x) against the network, in double precision: in its own, rounding crosses a jump"


def _features_of(network: nn.Module, features: Features, example: Any) -> Tensor:
    extractor = FeatureExtractor(network, features)
    extractor.training = network.training
    with evaluation_mode(extractor), callers_device():
        f: Tensor = extractor(*as_inputs(example))
        return f


def _wrong_features(expected: Tensor, f: Tensor) -> LinearizationError:
    return LinearizationError(
        "the captured graph does not compute the network's features: they differ by "
        f"{(expected - f).abs().max().item():.3g}. The network takes a path that depends on the data"
    )


def _check_tangent(lin: Linearization, z0: Tensor | Residuals) -> str:
    """Compare the tangent with the first derivative that can be had."""
    w2 = {name: _noise_like(value) for name, value in lin.theta2.items()}
    moved = _tangent(lin, z0, w2)
    for derivative, how in (
        (_forward, "torch.func.jvp"),
        (_forward_plain, "torch.func.jvp"),
        (_twice_reversed, "reverse mode, taken twice"),
    ):
        try:
            oracle = derivative(lin, z0, w2)
        except _FAILS:
            continue
        if equal(oracle, moved):
            if lin.report().fallbacks:  # else all of it was written by rules, and torch's forward mode is another way
                _check_backward(lin, z0, w2)
            return f"the tangent against {how}"
        if not agree(oracle, moved):
            raise _wrong_tangent(oracle, moved, how)
        try:  # a few entries: a kink that rounding has crossed, or a wrong one
            exact = in_double(lin)
            directions = {name: value.double() for name, value in w2.items()}
            oracle, moved = derivative(exact, z0, directions), _tangent(exact, z0, directions)
        except _FAILS:
            return f"the tangent against {how}, up to single entries: the network does not run in double precision"
        if not equal(oracle, moved):
            raise _wrong_tangent(oracle, moved, how)
        return f"the tangent against {how}, in double precision: in its own, rounding crosses a jump"
    return _check_by_parts(lin, z0, w2)


def _check_backward(lin: Linearization, z0: Tensor | Residuals, w2: Weights) -> None:
    """Compare with reverse mode as well, where there is one: of operations without a rule torch may say zero forward.

    Of those with one it is not asked: its own backward pass of some networks ends the process.
    """
    for exact in (False, True):  # what rounding does is gone in double precision
        try:
            point = in_double(lin) if exact else lin
            directions = {name: value.double() for name, value in w2.items()} if exact else w2
            _check_adjoint(point, z0, directions, "torch's reverse mode, by the adjoint identity", signs=1)
        except LinearizationError:
            if exact and not _is_derivative(point, z0, directions):
                raise
        except _FAILS:
            return
        else:
            return


def _is_derivative(lin: Linearization, z0: Tensor | Residuals, w2: Weights) -> bool:
    """Whether differences side with the tangent: backwards torch leaves the padding of an embedding out."""
    try:
        _check_differences(lin, z0, w2, "differences of f")
    except LinearizationError:
        return False
    return True


def _check_by_parts(lin: Linearization, z0: Tensor | Residuals, w2: Weights) -> str:
    """Compare with reverse mode by the adjoint identity, or with differences, in double precision where that runs."""
    checks = ((_check_adjoint, "reverse mode, by the adjoint identity"), (_check_differences, "differences of f"))
    for check, how in checks:
        for exact in (True, False):
            try:
                point = in_double(lin) if exact else lin
                check(point, z0, {name: value.double() if exact else value for name, value in w2.items()}, how)
            except _FAILS as error:
                if isinstance(error, LinearizationError):
                    raise
                continue
            return f"the tangent against {how}{', in double precision' if exact else ''}"
    return "the tangent not at all: torch has no derivative of this network"


def _check_adjoint(lin: Linearization, z0: Tensor | Residuals, w2: Weights, how: str, signs: int = _SIGNS) -> None:
    moved = _tangent(lin, z0, w2)
    variables = {name: value.detach().clone().requires_grad_() for name, value in lin.theta2.items()}
    generator = torch.Generator().manual_seed(1)
    with torch.enable_grad():
        f = lin.network(variables, z0)
        for i in range(signs):
            u = (torch.randint(0, 2, tuple(f.shape), generator=generator) * 2 - 1).to(f)
            pulled = torch.autograd.grad(f, list(variables.values()), u, retain_graph=i < signs - 1, allow_unused=True)
            right = sum(
                float((g.double() * w2[name]).sum()) for name, g in zip(w2, pulled, strict=True) if g is not None
            )
            left = float((u.double() * moved).sum())
            if not (math.isfinite(left) and math.isfinite(right)):  # a root at zero, which one way masks
                return
            # signs: a wrong entry counts in full, and the rest adds up as chance does
            if not abs(left - right) <= TOLERANCE * float(moved.double().norm()) + 1e-30:
                raise LinearizationError(
                    f"the tangent disagrees with {how}: ⟨u, J w⟩ is {left:.6g}, and ⟨Jᵀu, w⟩ is {right:.6g}. {_REPORT}"
                )


def _check_differences(lin: Linearization, z0: Tensor | Residuals, w2: Weights, how: str) -> None:
    if lin.dtype != torch.float64:
        raise NotImplementedError  # rounding is worth more than the difference
    there, back = (
        lin.network({name: value + sign * _STEP * w2[name] for name, value in lin.theta2.items()}, z0)
        for sign in (1, -1)
    )
    oracle, moved = (there - back) / (2 * _STEP), _tangent(lin, z0, w2)
    if not equal(oracle, moved):
        raise _wrong_tangent(oracle, moved, how)


def _tangent(lin: Linearization, z0: Tensor | Residuals, w2: Weights) -> Tensor:
    with torch.no_grad():
        return lin.tangent(w2, lin.primal(z0)[1])


def _forward(lin: Linearization, z0: Any, w2: Weights) -> Tensor:
    moved: Tensor = torch.func.jvp(lambda point: lin.network(point, z0), (lin.theta2,), (w2,))[1]
    return moved


def _forward_plain(lin: Linearization, z0: Any, w2: Weights) -> Tensor:
    with plain_kernels():  # whose fused twins have no derivative in forward mode
        return _forward(lin, z0, w2)


def _twice_reversed(lin: Linearization, z0: Any, w2: Weights) -> Tensor:
    names = list(w2)

    def outputs(*values: Tensor) -> tuple[Tensor]:
        return (lin.network(dict(zip(names, values, strict=True)), z0),)

    with plain_kernels():
        return jvp_by_two_vjps(outputs, [lin.theta2[name] for name in names], tuple(w2.values()))[0]


_REPORT = "Please report this network; check=False skips this test"


def _wrong_tangent(oracle: Tensor, moved: Tensor, how: str) -> LinearizationError:
    error = (oracle - moved).abs().max().item()
    return LinearizationError(
        f"the tangent disagrees with {how} by {error:.3g} (largest {oracle.abs().max().item():.3g}). {_REPORT}"
    )


def _noise_like(value: Tensor) -> Tensor:
    """Return random numbers, as spread as a parameter's own; a long parameter gets some of them again and again."""
    drawn = torch.randn(min(value.numel(), _DRAWN), generator=torch.Generator().manual_seed(0)).to(value)
    repeated = drawn.repeat(-(-value.numel() // _DRAWN))[: value.numel()]
    return repeated.view(value.shape) * (value.std(correction=0).item() or 1.0)
