"""A fitted model after a pickle or a copy: which network it is of, and its programs built again."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from gradfeat.errors import BackboneError
from gradfeat.estimators.fitted import Fitted
from gradfeat.files.digests import digest_tensors
from gradfeat.linearization import Linearization
from gradfeat.linearization.copies import with_ordinary_tensors
from gradfeat.model import GradientFeatureModel

Constants = tuple[str, frozenset[str]]
"""What programs were built from: torch's version, and the values' digests."""


def rebuilt_model(fitted: Fitted, device: str, constants: Constants | None = None) -> GradientFeatureModel:
    """Return the model of what was fitted, with its programs built again.

    Args:
        fitted: All that was fitted.
        device: Where the programs are to run, by name.
        constants: What its programs were built from before; None where that is not known.

    Raises:
        BackboneError: The network is no longer the one that it was fitted to.
    """
    fitted.network.backbone.check_unchanged()
    linearization = fitted.network.linearization(device, fitted.settings.precision)
    if constants is not None and constants != _constants(linearization):
        raise BackboneError(
            "the network computes with other weights than those that this model was fitted to: one of its methods "
            "or hooks belongs to another network, which has changed. Build the network anew, and fit again"
        )
    return fitted.model(linearization)


def without_programs(fitted: Fitted, given: Any, model: GradientFeatureModel | None) -> dict[str, Any]:
    """Return what is other in the state of a fitted estimator without its programs.

    Args:
        fitted: All that was fitted.
        given: The estimator's backbone, as it was given.
        model: With the programs; None where they are not built.

    Raises:
        BackboneError: The network was changed after the fit.
    """
    backbone = fitted.network.backbone
    backbone.check_unchanged()
    changed: dict[str, Any] = {"_model": None}
    if model is not None:
        changed["_constants"] = _constants(model.linearization)
    if isinstance(given, nn.Module):  # the same network once in the pickle
        changed["backbone"] = backbone.network if backbone.is_of(given) else with_ordinary_tensors(given)
    return changed


def with_own_network(fitted: Fitted, given: Any) -> Fitted:
    """Return what was fitted with a copy of the network, where it has the one that was given to the estimator."""
    backbone = fitted.network.backbone
    if backbone.network is not given:
        return fitted
    return dataclasses.replace(fitted, network=dataclasses.replace(fitted.network, backbone=backbone.kept()))


def _constants(linearization: Linearization) -> Constants:
    return torch.__version__, frozenset(digest_tensors({"": value}) for value in linearization.state.values())
