"""Linear models over the activations and gradients of a pre-trained network (Mu, Liang & Li, ICLR 2020)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradfeat._version import __version__
from gradfeat.optional import mend_imports

if TYPE_CHECKING:
    from gradfeat.comparison.side_by_side import compare
    from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor
    from gradfeat.estimators.adapter import load
    from gradfeat.estimators.combining import combine
    from gradfeat.linearization import Linearization, linearize
    from gradfeat.model import GradientFeatureModel
    from gradfeat.solvers.kernel import tangent_kernel

mend_imports()

_HOME = {
    "linearize": "gradfeat.linearization",
    "Linearization": "gradfeat.linearization",
    "GradientFeatureModel": "gradfeat.model",
    "GradientFeatureClassifier": "gradfeat.estimators",
    "GradientFeatureRegressor": "gradfeat.estimators",
    "load": "gradfeat.estimators.adapter",
    "combine": "gradfeat.estimators.combining",
    "compare": "gradfeat.comparison",
    "tangent_kernel": "gradfeat.solvers.kernel",
}

__all__ = [
    "GradientFeatureClassifier",
    "GradientFeatureModel",
    "GradientFeatureRegressor",
    "Linearization",
    "__version__",
    "combine",
    "compare",
    "linearize",
    "load",
    "tangent_kernel",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import gradfeat` and `gradfeat --help` do not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'gradfeat' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
