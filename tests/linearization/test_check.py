"""What `linearize` checks by itself: wrong rules and programs are found, rounding is not, and the report says how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradfeat.errors import BatchDependenceError, LinearizationError
from gradfeat.linearization import linearize
from gradfeat.linearization.layout import Layout, agree, doubtful, equal
from gradfeat.linearization.rules import RULES
from gradfeat.linearization.trace import Dual, Trace

D = 64  # one wrong entry is less than the few in a hundred that rounding at a jump may take
aten = torch.ops.aten


class Function(nn.Module):
    """A linear layer, and a function of its output."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, D)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def x() -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


# ---- operations of three kinds: torch derives them forward, backward twice, backward once, or not at all -------------


def _cube(z: Tensor) -> Tensor:
    return z**3


def _operations() -> dict[str, Any]:
    library = torch.library
    found = {}
    for name in ("once", "twice", "never"):
        operation = library.custom_op(f"gradfeat_check::{name}", _cube, mutates_args=(), schema="(Tensor z) -> Tensor")
        operation.register_fake(torch.empty_like)
        found[name] = operation

    def setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    def twice(ctx: Any, u: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * u

    def once(ctx: Any, u: Tensor) -> Tensor:
        return Opaque.apply(twice(ctx, u))

    found["twice"].register_autograd(twice, setup_context=setup)
    found["once"].register_autograd(once, setup_context=setup)
    return found


class Opaque(torch.autograd.Function):
    """The value itself, of which torch is told no derivative."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> Any:
        raise RuntimeError("no derivative")


OPERATIONS = _operations()


def tangent_of_cube(tangent: Tensor, z: Tensor, off: float = 0.0) -> Tensor:
    """Return the derivative of a cube; one entry is off by a multiple of the sum of the others' tangents."""
    entry = torch.zeros(D, dtype=z.dtype, device=z.device)
    entry[5] = off
    return 3 * z**2 * tangent + entry * tangent.sum(1, keepdim=True)


@pytest.fixture
def rule_of_cube(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, float], None]:
    """Register a rule for an operation, one entry of which may be off."""

    def register(operation: Any, off: float) -> None:
        def rule(trace: Trace, node: Any, z: Dual, *_: Any) -> Any:
            return trace.emit(tangent_of_cube, z.tangent, trace.keep(z.primal), off)

        monkeypatch.setitem(RULES, operation, rule)

    return register


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Any, str]] = {
    "forward": (_cube, aten.pow.Tensor_Scalar, "torch.func.jvp"),
    "twice": (_cube, aten.pow.Tensor_Scalar, "reverse mode, taken twice"),
    "once": (lambda z: torch.ops.gradfeat_check.once(z), "once", "reverse mode, by the adjoint identity"),
    "never": (lambda z: torch.ops.gradfeat_check.never(z), "never", "differences of f"),
}


def no_forward_mode(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("no forward derivative")


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_entry_of_a_rule_is_found(
    case: str, rule_of_cube: Callable[[Any, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    function, operation, how = CASES[case]
    operation = getattr(torch.ops.gradfeat_check, operation).default if isinstance(operation, str) else operation
    network = Function(function).eval()
    if case != "forward":
        monkeypatch.setattr(torch.func, "jvp", no_forward_mode)
    rule_of_cube(operation, 0.0)
    checks = linearize(network, x(), "layer").report().checks
    assert checks[0] == "f(x) against the network"
    assert checks[1].startswith(f"the tangent against {how}")
    for off in (1.0, -0.3):
        rule_of_cube(operation, off)
        with pytest.raises(LinearizationError, match="the tangent disagrees with " + how.partition(",")[0]):
            linearize(network, x(), "layer")
    unchecked = linearize(network, x(), "layer", check=False)
    assert unchecked.report().checks == []
    assert "checked: nothing" in str(unchecked.report())


def test_a_forward_derivative_that_is_none_is_found() -> None:
    """Of an operation with a derivative backward alone torch says zero forward, without a word."""
    with pytest.raises(LinearizationError, match="reverse mode"):
        linearize(Function(lambda z: torch.ops.gradfeat_check.twice(z)).eval(), x(), "layer")


def test_the_report_says_what_was_checked() -> None:
    lin = linearize(Function(torch.tanh).eval(), x(), "layer")
    assert "checked: f(x) against the network; the tangent against torch.func.jvp" in str(lin.report())
    assert lin.at(lin.theta2).report().checks == lin.report().checks


# ---- one entry of many ----------------------------------------------------------------------------------------------


def _one(y: Tensor, changed: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([y[:, :9], changed(y[:, 9:10]), y[:, 10:]], 1)


@pytest.mark.parametrize(
    "changed",
    [
        lambda entry: entry - entry.mean(0),
        lambda entry: entry / entry.norm(),
        lambda entry: entry.flip(0),
        lambda entry: entry + torch.randn_like(entry),
    ],
    ids=["mean", "norm", "flip", "noise"],
)
def test_one_feature_that_depends_on_the_batch_or_on_chance_is_found(changed: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((BatchDependenceError, LinearizationError)):
        linearize(Function(lambda y: _one(y, changed)).eval(), x(), "layer")


def _quantized(y: Tensor) -> Tensor:
    return y + ((1e4 * y).round() / 1e3 - y).detach()


JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": _quantized,
    "top-k": lambda y: torch.zeros_like(y).scatter(1, y.topk(4, 1)[1], y.topk(4, 1)[0]),
    "argmax": lambda y: y * torch.nn.functional.one_hot(y.argmax(1), D),
    "relu": torch.relu,
    "sort": lambda y: y.sort(1)[0],
    "floor": lambda y: y + (100 * y).floor(),
}


@pytest.mark.parametrize("function", JUMPS.values(), ids=JUMPS)
def test_jumps_and_kinks_are_no_faults(function: Callable[[Tensor], Tensor]) -> None:
    assert len(linearize(Function(function).eval(), x(), "layer").report().checks) == 2


def test_rounding_at_a_jump_is_settled_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tangent of single precision that is beyond a kink in one entry; in double precision it is not."""

    def rule(trace: Trace, node: Any, z: Dual, *_: Any) -> Any:
        return trace.emit(beyond_a_kink, z.tangent, trace.keep(z.primal))

    monkeypatch.setitem(RULES, aten.pow.Tensor_Scalar, rule)
    how = "the tangent against torch.func.jvp, in double precision: in its own, rounding crosses a jump"
    assert linearize(Function(_cube).eval(), x(), "layer").report().checks[1] == how


def beyond_a_kink(tangent: Tensor, z: Tensor) -> Tensor:
    return tangent_of_cube(tangent, z, 0.0 if z.dtype == torch.float64 else 1.0)


def test_all_entries_count_but_few_where_nothing_else_can_be_told() -> None:
    a = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    one = a.clone()
    one[3, 7] += 1
    assert agree(a, one)
    assert not equal(a, one)
    assert equal(a, a * (1 + 1e-5))
    assert not agree(a, a + 0.1)
    assert not equal(a, torch.where(a > 2, torch.inf, a))
    assert equal(torch.full((2, 2), torch.inf), torch.full((2, 2), torch.inf))
    assert equal(torch.zeros(0), torch.zeros(0))
    three = a[:3]
    assert not doubtful(Layout(0), three, three[[1, 0]])
    assert doubtful(Layout(0), three, torch.stack([three[1], one[3]]))


def test_what_rules_have_written_is_not_compared_with_torchs_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of some networks ends the process."""

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    lin = linearize(Function(torch.relu).eval(), x(), "layer")
    assert lin.report().checks == ["f(x) against the network", "the tangent against torch.func.jvp"]
