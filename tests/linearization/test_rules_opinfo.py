"""Every tangent rule on PyTorch's own samples of its operation."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from rule_cases import CASES, REFERENCES
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from gradfeat.errors import BatchDependenceError
from gradfeat.linearization.rules import RULES
from gradfeat.testing import check_rule

MOST = 2  # samples of one operation; they are spread over all that torch has


@functools.cache
def _samples_by_name() -> dict[str, list[Any]]:
    pytest.importorskip("expecttest", reason="torch's operator samples need the package expecttest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    found: dict[str, list[Any]] = {}
    for entry in op_db:
        if entry.name.startswith("masked."):
            continue  # made of other operations
        for name in {entry.name.split(".")[-1], entry.aten_name, *[alias.name for alias in entry.aliases]}:
            found.setdefault(name, []).append(entry)
    return found


@functools.cache
def _calls(name: str) -> list[tuple[Any, list[Any], dict[str, Any]]]:
    """Return the ATen calls, with their arguments, that torch's samples of an operation make."""
    _seed()  # of all that torch's samples draw from
    calls: list[tuple[Any, list[Any], dict[str, Any]]] = []
    for entry in _samples_by_name().get(name, []):
        if torch.float64 not in entry.dtypes:
            continue
        drawn = itertools.islice(entry.sample_inputs("cpu", torch.float64, requires_grad=False), 40)
        samples = [sample for sample in drawn if _strided(sample)]
        for sample in samples[:: max(1, len(samples) // (2 * MOST))]:
            calls.extend(_trace(entry, sample))
    return calls


def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- torch draws from it
    random.seed(0)


def _trace(entry: Any, sample: Any) -> Iterator[tuple[Any, list[Any], dict[str, Any]]]:
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(filled, spec)
        return entry.op(first, *args, **kwargs)

    tensors = [leaves[place].detach() for place in places]
    gc.disable()  # a generator under no_grad that an earlier test left, collected here, would be traced with the rest
    try:
        graph = make_fx(call, pre_dispatch=True)(*tensors)
    finally:
        gc.enable()
    known: dict[fx.Node, Any] = {}
    inputs = iter(tensors)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = next(inputs)
        elif node.op == "get_attr":
            known[node] = getattr(graph, node.target)
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            if node.target in RULES:
                yield node.target, list(args), dict(kwargs)
            known[node] = node.target(*args, **kwargs)


def _strided(sample: Any) -> bool:
    leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return all(leaf.layout is torch.strided for leaf in leaves if isinstance(leaf, Tensor))


def _usable(args: list[Any], kwargs: dict[str, Any]) -> bool:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return (
        any(t.dtype is torch.float64 for t in tensors)
        and not any(t.is_complex() for t in tensors)
        and min(t.numel() for t in tensors) > 0
        and sum(t.numel() for t in tensors) < 5_000
    )


@pytest.mark.parametrize("operation", sorted(RULES, key=str), ids=str)
@pytest.mark.filterwarnings("ignore")
def test_rule_on_torch_samples(operation: Any) -> None:
    name = operation._schema.name.split("::")[-1]
    calls = [] if operation in REFERENCES else _calls(name)
    calls = [call for call in calls if call[0] is operation and _usable(call[1], call[2])]
    if not calls:
        assert operation in {case()[0] for case in CASES.values()}, "a rule that no test covers"
        pytest.skip("torch has no sample of it; it has a case in rule_cases.py")
    _seed()  # the same directions in whatever order the tests run
    for _, args, kwargs in calls[:: max(1, len(calls) // MOST)]:
        with contextlib.suppress(
            BatchDependenceError
        ):  # a sample with the statistics of the batch: refused, as it must be
            check_rule(operation, args, kwargs, fixed=(3, 4) if "batch_norm" in name else ())
