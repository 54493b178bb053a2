"""The paper's tables, at the paper's size or smaller (Mu, Liang & Li, ICLR 2020, Sec. 4)."""

from __future__ import annotations

from gradfeat.reproduce.run import TABLES, Outcome, reproduce

__all__ = ["TABLES", "Outcome", "reproduce"]
