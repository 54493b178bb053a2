"""The network side: capture, folding, tangent rules and the three programs. Knows nothing of data or labels."""

from __future__ import annotations

from gradfeat.linearize.build import linearize
from gradfeat.linearize.linearization import Linearization, Report
from gradfeat.linearize.parametrization import PARAMETRIZATIONS, parametrization_scales
from gradfeat.linearize.theta2 import Candidate

__all__ = ["PARAMETRIZATIONS", "Candidate", "Linearization", "Report", "linearize", "parametrization_scales"]
