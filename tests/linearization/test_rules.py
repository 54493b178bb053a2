"""Tangent rules, and the fallback, against torch's own derivative: one operation at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_cases import CASES, REFERENCES, WITHOUT_RULE, Call

from gradfeat.errors import BatchDependenceError
from gradfeat.linearization.rules import RULES
from gradfeat.testing import check_rule

aten = torch.ops.aten
ONLY_BY_RULE = {  # torch's own derivatives are none, or disagree with each other
    *("embedding_bag", "embedding_bag-weights", "embedding_bag-plain", "embedding_bag_forward_only"),
    "embedding-padding",
    "copy",
}


def _call(case: Call) -> tuple[Any, list[Any], dict[str, Any]]:
    operation, args, *named = case
    return operation, args, named[0] if named else {}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rule(case: Any) -> None:
    operation, args, kwargs = _call(case())
    assert operation in RULES
    fixed = (3, 4) if "batch_norm" in str(operation) else ()  # running statistics
    check_rule(operation, args, kwargs, reference=REFERENCES.get(operation), fixed=fixed)


@pytest.mark.parametrize("case", [pytest.param(case, id=id) for id, case in CASES.items() if id not in ONLY_BY_RULE])
def test_fallback(case: Any) -> None:
    operation, args, kwargs = _call(case())
    check_rule(operation, args, kwargs, fallback=True, fixed=(3, 4) if "batch_norm" in str(operation) else ())


@pytest.mark.parametrize("case", WITHOUT_RULE.values(), ids=WITHOUT_RULE)
def test_operation_without_rule(case: Any) -> None:
    operation, args, kwargs = _call(case())
    assert operation not in RULES
    check_rule(operation, args, kwargs)


def test_chance_is_refused() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(BatchDependenceError, match="dropout draws random numbers"):
        check_rule(aten.dropout.default, [x, 0.5, True])
    with pytest.raises(BatchDependenceError, match="attention draws random numbers"):
        check_rule(aten.scaled_dot_product_attention.default, [x, x.clone(), x.clone(), None, 0.1])


def test_a_wrong_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, dtype=torch.float64)
    monkeypatch.setitem(RULES, aten.exp.default, lambda trace, node, z: z.tangent)
    with pytest.raises(AssertionError, match=r"aten.exp.default with argument \[0\] of 1 moving"):
        check_rule(aten.exp.default, [x])
    monkeypatch.setitem(RULES, aten.exp.default, lambda trace, node, z: None)
    with pytest.raises(AssertionError, match="no tangent, where there is one"):
        check_rule(aten.exp.default, [x])
