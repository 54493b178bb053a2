"""Contract tests that a new tangent rule, solver or backbone gets for free."""
