"""The four models side by side: the table, which is best, how near `full` is to the network, and pictures of them."""

from gradfeat.comparison.side_by_side import Comparison, Row, compare

__all__ = ["Comparison", "Row", "compare"]
