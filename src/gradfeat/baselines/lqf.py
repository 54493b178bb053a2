"""LQF, linear quadratic fine-tuning (Achille, Golatkar, Ravichandran, Polito & Soatto, CVPR 2021).

Three changes make a linearized network behave as fine-tuning does: leaky ReLU instead of ReLU, squared loss to rescaled
one-hot targets instead of cross-entropy, and a solver preconditioned by Kronecker factors. The second is
`gradfeat.losses.OneHotSquared`, the third is the subspace solver; so the method is a `GradientFeatureClassifier` of a
network with other activations.

What differs from the paper: the network is not pre-trained again with its new activations; w₁ starts at a probe under
the same loss, rather than at a trained head, and is penalized by its size, rather than by its distance from the start;
the solution is that of the convex problem, whatever the number of epochs, with penalties chosen on held-out data.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from gradfeat.backbones import resolve
from gradfeat.contexts import plain
from gradfeat.errors import ConfigurationError
from gradfeat.estimators import GradientFeatureClassifier
from gradfeat.estimators.preparing import Prepared, TrainingData
from gradfeat.estimators.warn import warn_user
from gradfeat.linearization.copies import copied
from gradfeat.losses import OneHotSquared
from gradfeat.progress import Progress

SLOPE = 0.01
"""Slope of the leaky ReLU below zero: PyTorch's own, which changes what a pre-trained network computes least."""


def leaky(network: nn.Module, slope: float = SLOPE) -> nn.Module:
    """Return a copy of a network in which every module `nn.ReLU` is an `nn.LeakyReLU`; weights and names stay.

    A ReLU that a network's forward calls as a function is no module and stays as it is, and so do other activations
    (ReLU6, GELU).

    Args:
        network: Any module; not changed.
        slope: Below zero.

    Raises:
        ConfigurationError: A slope that is not finite.

    Example:
        >>> leaky(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))[1]
        LeakyReLU(negative_slope=0.01)
    """
    if not math.isfinite(slope):
        raise ConfigurationError(f"slope must be finite, not {slope}")
    changed = copied(network)
    if isinstance(changed, nn.ReLU):
        return nn.LeakyReLU(slope, changed.inplace).train(changed.training)
    for parent in changed.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.LeakyReLU(slope, child.inplace).train(child.training))
    return changed


@plain()
def lqf(
    backbone: Any,
    *,
    slope: float = SLOPE,
    theta2: Any = "*",
    solver: str = "subspace",
    weights: Any = None,
    preprocessing: Any = None,
    image_size: int | None = None,
    **parameters: Any,
) -> GradientFeatureClassifier:
    """Return an estimator that fits a backbone by LQF: `fit`, `predict` and `score` as of any classifier.

    Args:
        backbone: As for `GradientFeatureClassifier`.
        slope: Of the leaky ReLU below zero.
        theta2: As there; by default all parameters, as in the paper.
        solver: "subspace", or "dual" for few samples: the same problem.
        weights: File of the backbone's weights, as there.
        preprocessing: As there.
        image_size: As there.
        **parameters: Further parameters of `GradientFeatureClassifier`, but `loss` and `mode`.

    Raises:
        ConfigurationError: A loss or mode is given, or another argument cannot be meant.

    A saved one is loaded with its network: ``gradfeat.load(path, backbone=leaky(network))``.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(30, 2))
        >>> network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> classifier = lqf(network, random_state=0).fit(X, X[:, 0] * X[:, 1] > 0)
        >>> classifier.backbone_.network[1], classifier.loss_.name
        (LeakyReLU(negative_slope=0.01), 'one_hot_squared')
    """
    fixed = {"loss", "mode"} & parameters.keys()
    if fixed:
        raise ConfigurationError(
            f"LQF is mode='full' with loss={OneHotSquared.name!r}: leave out {', '.join(sorted(fixed))}"
        )
    network: Any
    if not isinstance(backbone, nn.Module) and callable(backbone):
        build: Any = backbone
        network = lambda shape: leaky(build(shape), slope)  # noqa: E731
        settings = {"weights": weights, "preprocessing": preprocessing, "image_size": image_size}
    else:
        found = resolve(
            backbone,
            weights=weights,
            preprocessing=preprocessing,
            image_size=image_size,
            random_state=parameters.get("random_state"),
        )
        network, settings = leaky(found.network, slope), {"preprocessing": found.preprocessing}
    return _LQF(network, theta2=theta2, solver=solver, mode="full", loss=OneHotSquared.name, **settings, **parameters)


class _LQF(GradientFeatureClassifier):
    """A `GradientFeatureClassifier` that says where a ReLU was out of reach."""

    def prepare(self, data: TrainingData, progress: Progress | None = None) -> Prepared:
        """Prepare as ever, and say where a ReLU was out of reach."""
        prepared = super().prepare(data, progress)
        left = prepared.problem.linearization.report().rules.get("relu", 0)
        if left:
            warn_user(
                f"LQF: {left} ReLUs above the bottom of θ₂ are called as functions and stay as they are; replace them "
                "by modules (nn.ReLU), or by leaky ReLUs"
            )
        return prepared
