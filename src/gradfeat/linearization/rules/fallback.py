"""An operation without a rule: its Jacobian-vector product by torch, for that node alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from gradfeat.contexts import alone
from gradfeat.linearization.trace import Dual, Trace


def fallback(trace: Trace, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """Keep the operation's inputs, and call `node_jvp` with them and the tangents."""
    leaves, spec = pytree.tree_flatten((list(args), kwargs))
    primals = [trace.keep(leaf.primal) if isinstance(leaf, Dual) else leaf for leaf in leaves]
    moving = {i: leaf.tangent for i, leaf in enumerate(leaves) if isinstance(leaf, Dual) and leaf.tangent is not None}
    fake = node.meta["val"]
    kept_args, kept_kwargs = pytree.tree_unflatten(primals, spec)
    result = trace.emit(node_jvp, node.target, kept_args, kept_kwargs, list(moving), list(moving.values()))
    if isinstance(fake, Tensor):
        return result[0]
    return tuple(
        result[i] if isinstance(output, Tensor) and output.dtype.is_floating_point else None
        for i, output in enumerate(fake)
    )


def node_jvp(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], moving: list[int], tangents: list[Tensor]
) -> tuple[Tensor, ...]:
    """Return the tangents of the outputs of ``function(*args, **kwargs)``.

    Args:
        function: The operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        moving: Which of the flattened arguments move.
        tangents: Their tangents.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))

    def of_moving(*values: Tensor) -> Any:
        filled = list(leaves)
        for i, value in zip(moving, values, strict=True):
            filled[i] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return function(*args, **kwargs)

    outputs: tuple[Tensor, ...] = _NodeJVP.apply(of_moving, [leaves[i] for i in moving], *tangents)  # type: ignore[no-untyped-call]
    return outputs


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Use operations that torch can differentiate forward, and not their fused twins (attention, recurrent layers).

    Torch has one choice for all threads, so no other one of the library computes meanwhile.
    """
    mha, mkldnn, cudnn = torch.backends.mha, torch.backends.mkldnn, torch.backends.cudnn
    with alone():
        fast = mha.get_fastpath_enabled()
        try:
            mha.set_fastpath_enabled(False)
            with (
                sdpa_kernel(SDPBackend.MATH),
                mkldnn.flags(enabled=False, allow_tf32=mkldnn.allow_tf32),
                cudnn.flags(enabled=False, allow_tf32=cudnn.allow_tf32),
            ):
                yield
        finally:
            mha.set_fastpath_enabled(fast)


class _NodeJVP(torch.autograd.Function):
    """J·ẋ forward by `torch.func.jvp`, Jᵀ·u backward by `torch.func.vjp`: only first derivatives are ever asked for."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], primals: list[Tensor], *tangents: Tensor) -> tuple[Tensor, ...]:
        ctx.function, ctx.primals = function, primals
        real = _real_outputs(function)
        directions = tuple(t.to(p.dtype) for t, p in zip(tangents, primals, strict=True))
        with plain_kernels():
            try:
                return tuple(torch.func.jvp(real, tuple(primals), directions)[1])
            except (NotImplementedError, RuntimeError):
                return jvp_by_two_vjps(real, primals, directions)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        pull = torch.func.vjp(_real_outputs(ctx.function), *ctx.primals)[1]
        return (None, None, *pull(tuple(cotangents)))


def _real_outputs(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    def real(*values: Tensor) -> tuple[Tensor, ...]:
        output = function(*values)
        outputs = (output,) if isinstance(output, Tensor) else tuple(output)
        # an index has no tangent; zeros of its shape stand in, so that outputs keep their places
        return tuple(o if o.dtype.is_floating_point else torch.zeros_like(o, dtype=values[0].dtype) for o in outputs)

    return real


def jvp_by_two_vjps(
    function: Callable[..., Any], primals: list[Tensor], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """J·ẋ as the derivative of u ↦ Jᵀu along ẋ, for operations without a forward-mode formula."""
    with torch.enable_grad():
        variables = [p.detach().requires_grad_() for p in primals]
        outputs = function(*variables)
        dummies = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        live = [(o, d) for o, d in zip(outputs, dummies, strict=True) if o.requires_grad]
        pulled = torch.autograd.grad(
            [o for o, _ in live], variables, [d for _, d in live], create_graph=True, allow_unused=True
        )
        pairs = [(g, t) for g, t in zip(pulled, tangents, strict=True) if g is not None]
        moved = torch.autograd.grad([g for g, _ in pairs], dummies, [t for _, t in pairs], allow_unused=True)
    return tuple(torch.zeros_like(o) if m is None else m.detach() for m, o in zip(moved, outputs, strict=True))
