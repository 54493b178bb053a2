"""A fitted model after a pickle, a copy or a file: which network it is of, and its programs built again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradfeat.errors import BackboneError
from gradfeat.files.digests import digest_tensors
from gradfeat.fit.linearize import linearize_backbone
from gradfeat.fit.point import Point
from gradfeat.linearization import Linearization
from gradfeat.linearization.copies import with_ordinary_tensors
from gradfeat.losses import target_mean
from gradfeat.model import GradientFeatureModel

AS_FITTED = ("mode", "parametrization", "precision", "loss", "rounds", "augment")
"""Parameters that a fitted model keeps as they were, whatever is set for a next fit."""


def rebuilt_model(estimator: Any) -> GradientFeatureModel:
    """Return the model of a fitted estimator with its programs built again.

    Raises:
        BackboneError: The network is no longer the one that it was fitted to.
    """
    estimator.backbone_.check_unchanged()
    given = estimator.as_fitted()
    linearization = linearize_backbone(
        estimator.backbone_, estimator.example_, estimator.modules_, estimator.device, given["precision"]
    )
    if getattr(estimator, "_constants", None) not in (None, _constants(linearization)):
        raise BackboneError(
            "the network computes with other weights than those that this model was fitted to: one of its methods "
            "or hooks belongs to another network, which has changed. Build the network anew, and fit again"
        )
    mean = target_mean(estimator.loss_)
    b = estimator.b_ if mean is None else estimator.b_ - mean
    point = Point(estimator.theta2_ or linearization.theta2, estimator.omega_, estimator.w1_, b, estimator.w2_)
    return point.model(linearization, given["mode"], given["parametrization"])


def without_programs(estimator: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a fitted estimator without its programs, of the network as it was fitted to.

    Raises:
        BackboneError: The network in `backbone_` was changed after the fit.
    """
    own, given, model = estimator.backbone_, getattr(estimator, "backbone", None), getattr(estimator, "_model", None)
    own.check_unchanged()
    changed: dict[str, Any] = {"_model": None}
    if model is not None:
        changed["_constants"] = _constants(model.linearization)
    if isinstance(given, nn.Module):  # the same network once in the pickle
        changed["backbone"] = own.network if own.is_of(given) else with_ordinary_tensors(given)
    return {**state, **changed}


def _constants(linearization: Linearization) -> tuple[str, frozenset[str]]:
    """Return what says that programs were built from the same values: torch's version, and the values' digests."""
    return torch.__version__, frozenset(digest_tensors({"": value}) for value in linearization.state.values())
