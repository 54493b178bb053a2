"""Contract tests that a new tangent rule, solver or backbone gets for free.

They raise `AssertionError` with the numbers, and need no test framework. A new tangent rule takes three lines:

    @rule("exp2.default")  # from gradfeat.linearization.rules
    def exp2(trace, node, z):
        return z.tangent * trace.keep(trace.output(node) * math.log(2))

and its tests one: ``check_rule(torch.ops.aten.exp2.default, [torch.randn(3, dtype=torch.float64)])``.
"""

from __future__ import annotations

from gradfeat.testing.linearization import check_linearization
from gradfeat.testing.oracle import jacobian_vector_product
from gradfeat.testing.rules import check_rule
from gradfeat.testing.solver import check_solver

__all__ = ["check_linearization", "check_rule", "check_solver", "jacobian_vector_product"]
