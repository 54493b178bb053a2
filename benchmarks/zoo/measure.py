"""How exact a linearization is, on one network: float64, against torch's own derivative of the whole network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.zoo.entry import Entry, Subject
from gradfeat.linearization import Linearization, linearize
from gradfeat.linearization.build import theta2_candidates
from gradfeat.linearization.capture import FeatureExtractor, as_inputs
from gradfeat.linearization.rules.fallback import plain_kernels
from gradfeat.optional import require
from gradfeat.testing.oracle import jacobian_vector_product

SAMPLES = 4  # of the compared batch; the exported one has three


def measure(entry: Entry) -> dict[str, Any]:
    """Linearize a network at two depths of θ₂, and compare.

    Returns:
        "export": processor seconds of torch.export alone; "linearize": those of `linearize` with its checks, both in
        float32; "depths": for each depth what `_compare` found.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    subject = entry.build()
    network = subject.network.eval()
    _spread(network)
    begun = time.process_time()
    _export(subject)
    export = time.process_time() - begun
    begun = time.process_time()
    folded = bool(_linearize(subject, "auto").foldings)
    seconds = time.process_time() - begun
    network.double()
    example = pytree.tree_map(_double, subject.example)
    subject = Subject(network, example, subject.features)
    with _NoSinglePrecision():
        blocks = theta2_candidates(network, example, features=subject.features)
        f = [_feature_error(subject, blocks[0].modules)] if folded else []
        depths = [_compare(subject, block.modules, fold_batchnorm=not folded) for block in blocks[:2]]
    return {
        "parameters": sum(value.numel() for value in network.parameters()),
        "export": export,
        "linearize": seconds,
        "f": max([*f, *(depth["f"] for depth in depths)]),
        "depths": depths,
    }


def warm_up() -> None:
    """Do what torch and its libraries do once for all networks."""
    warnings.simplefilter("ignore")
    for library, extra in (("timm", "vision"), ("torchvision", "vision"), ("transformers", "text")):
        require(library, extra=extra)
    tiny = Subject(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.randn(3, 2))
    _export(tiny)
    _linearize(tiny, "auto")


def _compare(subject: Subject, theta2: Sequence[str], *, fold_batchnorm: bool) -> dict[str, Any]:
    """Return the errors of f, J w₂ and ⟨u, J w₂⟩ = ⟨Jᵀu, w₂⟩ on another batch, each relative, and how it was built.

    Without folding the names of θ₂ are the network's own, so that the network is the oracle.
    """
    lin = _linearize(subject, theta2, fold_batchnorm=fold_batchnorm, check=False)
    batch = pytree.tree_map(_another, subject.example)
    report = lin.report()
    return {
        "theta2": list(theta2),
        "parameters": sum(value.numel() for value in lin.theta2.values()),
        "rules": sum(report.rules.values()),
        "fallbacks": sorted({operation for _, operation in report.fallbacks}),
        "fallback_nodes": len(report.fallbacks),
        "f": _f_error(subject, lin, batch),
        **_tangent_errors(subject, lin, batch),
    }


def _feature_error(subject: Subject, theta2: Sequence[str]) -> float:
    """Return the error of f with batch norms folded."""
    lin = _linearize(subject, theta2, check=False)
    return _f_error(subject, lin, pytree.tree_map(_another, subject.example))


def _f_error(subject: Subject, lin: Linearization, batch: Any) -> float:
    with torch.no_grad():
        return _relative(lin.primal(lin.bottom(batch))[0], _function(subject, batch)())


def _linearize(subject: Subject, theta2: str | Sequence[str], **options: bool) -> Linearization:
    return linearize(subject.network, subject.example, theta2, features=subject.features, **options)


class _NoSinglePrecision(TorchFunctionMode):
    """Leave out the casts to float32 that some networks make (of norms, rotary angles, attention weights)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation with float64 in the place of float32."""
        kwargs = dict(kwargs or {})
        if func is Tensor.float:
            func = Tensor.double
        if func in (Tensor.to, Tensor.type, torch.nn.functional.softmax, torch.softmax, Tensor.softmax):
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _tangent_errors(subject: Subject, lin: Linearization, batch: Any) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    names, point = list(lin.theta2), list(lin.theta2.values())
    w2 = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        * max(float(value.std(correction=0)), 0.1)
        for name, value in lin.theta2.items()
    }
    with torch.no_grad():
        residuals = lin.primal(lin.bottom(batch))[1]
        moved = lin.tangent(w2, residuals)
    function = _function(subject, batch)

    def of_theta2(*values: Tensor) -> Tensor:
        return function(**{f"network.{name}": value for name, value in zip(names, values, strict=True)})

    (oracle,) = jacobian_vector_product(of_theta2, point, list(w2.values()))
    u = torch.randn(moved.shape, generator=generator, dtype=moved.dtype)
    pulled = lin.transpose(u, residuals)
    left = float((u * moved).sum())
    right = sum(float((pulled[name] * w2[name]).sum()) for name in names)
    size = float(u.norm() * moved.norm())
    return {"tangent": _relative(moved, oracle), "adjoint": abs(left - right) / size if size else abs(left - right)}


def _function(subject: Subject, batch: Any) -> Any:
    """Return the network's features as a function of its parameters, given by name."""
    extractor = FeatureExtractor(subject.network, subject.features).eval()
    args, kwargs = as_inputs(batch)

    def of_parameters(**values: Tensor) -> Tensor:
        with plain_kernels():
            return torch.func.functional_call(extractor, values, (args, kwargs))

    return of_parameters


def _relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def _export(subject: Subject) -> None:
    args, kwargs = as_inputs(subject.example)
    batch = torch.export.Dim("batch")
    shapes = pytree.tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, (args, kwargs))
    extractor = FeatureExtractor(subject.network, subject.features).eval()
    with torch.no_grad():
        torch.export.export(extractor, (args, kwargs), dynamic_shapes=shapes)


def _spread(network: nn.Module) -> None:
    """Move what is initialized to one number (norms, layer scales, biases), so that every branch carries something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in network.parameters():
            if value.dtype.is_floating_point and value.numel() > 1 and float(value.std()) < 1e-3:
                value += 0.2 * torch.randn(value.shape, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean += 0.1 * torch.randn(module.running_mean.shape, generator=generator)
                module.running_var *= 0.8 + 0.4 * torch.rand(module.running_var.shape, generator=generator)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point else leaf


def _another(leaf: Any) -> Any:
    """Return a batch of another size: the samples in another order, numbers with noise."""
    if not isinstance(leaf, Tensor):
        return leaf
    rows = leaf[torch.arange(SAMPLES - 1, -1, -1) % len(leaf)]
    if not rows.dtype.is_floating_point:
        return rows
    return rows + 0.3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(3), dtype=rows.dtype)
