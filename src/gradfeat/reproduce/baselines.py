"""Rows of other methods below a table, on the same samples and the same encoder.

A row is a name and a function (see `gradfeat.reproduce.setting.Baseline`) of the samples, the encoder and a seed, which
returns numbers, "accuracy" (0 to 1) among them. Whatever it chooses, it chooses on training data. A new row is one line
of `ROWS`; every table then has it, with a cell of its own for each seed.
"""

from __future__ import annotations

from gradfeat.reproduce.setting import Baseline

ROWS: dict[str, Baseline] = {}
