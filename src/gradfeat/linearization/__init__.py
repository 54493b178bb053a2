"""The network side: capture, folding, tangent rules and the three programs. Knows nothing of data or labels."""

from __future__ import annotations

from gradfeat.linearization.build import linearize
from gradfeat.linearization.linearization import Linearization, Report
from gradfeat.linearization.parametrization import PARAMETRIZATIONS, parametrization_scales
from gradfeat.linearization.theta2 import Candidate

__all__ = ["PARAMETRIZATIONS", "Candidate", "Linearization", "Report", "linearize", "parametrization_scales"]
