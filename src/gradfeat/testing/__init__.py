"""Contract tests that a new tangent rule, solver or backbone gets for free.

They raise `AssertionError` with the numbers, and need no test framework.
"""

from __future__ import annotations

from gradfeat.testing.linearization import check_linearization
from gradfeat.testing.oracle import jacobian_vector_product
from gradfeat.testing.rules import check_rule

__all__ = ["check_linearization", "check_rule", "jacobian_vector_product"]
