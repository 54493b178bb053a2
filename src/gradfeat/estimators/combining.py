"""Several fitted models of one network as one: fitted jointly, averaged, or side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.estimators.base import GradientFeatureEstimator
from gradfeat.estimators.fitted import Fitted, Weights
from gradfeat.estimators.updating import Changes
from gradfeat.estimators.warn import warn_user
from gradfeat.fit.linear import AVERAGE
from gradfeat.fit.predict import store_logits
from gradfeat.losses import target_mean
from gradfeat.solvers.subspace import GAP, Solution

HOW = ("joint", "average", "classes", "ensemble")


def combine(
    models: Sequence[Any], how: str = "joint", *, weights: Sequence[float] | None = None, gap: float = GAP
) -> Any:
    """Return one model of several that were fitted to different data, of one network and θ₂.

    Args:
        models: Fitted estimators.
        how: "joint": the optimum of all their data, with a certificate, by the penalties, metric and θ̄₂ of the first;
            all need their training data (`recall`), and classes may differ. "average": ω̄, w₁, b and w₂ are averaged, of
            the same classes; no data are needed, and it is no optimum. "classes": models of different classes side by
            side, each with its own w₂: nothing has told the classes of one from those of another. "ensemble": the
            average of their logits.
        weights: Of "average" and "ensemble": of each model; None: the numbers of their training samples, where all
            have them, else equal.
        gap: Of "joint": the objective is to be at most this share above its minimum.

    Returns:
        For "joint" and "average" a fitted estimator; its `how_["combined"]` says how far an average is from the
        ensemble on the training samples, where they are there. Else a `Together`, which predicts.

    Raises:
        ConfigurationError: Models of different networks, θ₂, θ̄₂ or parametrizations; or classes that do not fit `how`.
    """
    if how not in HOW:
        raise ConfigurationError(f"how must be one of {', '.join(HOW)}, not {how!r}.{did_you_mean(str(how), HOW)}")
    models = list(models)
    if len(models) < 2 or not all(isinstance(model, GradientFeatureEstimator) for model in models):
        raise ConfigurationError("combine takes two fitted estimators at least")
    if weights is not None and how in ("joint", "classes"):
        raise ConfigurationError(f"weights are of how='average' and how='ensemble', not of {how!r}")
    for other in models[1:]:
        _check_same_network(models[0].fitted_, other.fitted_)
    if how == "joint":
        return _joint(models, gap)
    if how == "classes":
        return Together(models, _apart(models), None)
    _check_same_targets(models)
    share = _shares(models, weights)
    return _average(models, share) if how == "average" else Together(models, models[0].fitted_.targets.classes, share)


class Together(ClassifierMixin, BaseEstimator):
    """Models that predict together: of different classes side by side, or an ensemble of the same.

    Args:
        models: Fitted estimators.
        classes: Of the columns of the logits, (c,); None for a regression.
        share: Weights of sum one, whose mean of logits it is; None: side by side.

    Attributes:
        classes_: Class labels, (c,).
    """

    def __init__(self, models: Sequence[Any], classes: np.ndarray | None, share: np.ndarray | None) -> None:
        self.models, self.classes, self.share = models, classes, share
        if classes is not None:
            self.classes_ = classes

    def __sklearn_is_fitted__(self) -> bool:
        """Say that it is fitted: its models are."""
        return True

    def logits(self, X: Any) -> Tensor:
        """Return logits, (n, c), in main memory and double precision; side by side each model's less their mean."""
        each = [model.logits(X).double() for model in self.models]
        if self.share is None:
            return torch.cat([part - part.mean(1, keepdim=True) for part in each], 1)
        total = torch.zeros_like(each[0])
        for model, part, share in zip(self.models, each, self.share, strict=True):
            mean = target_mean(model.loss_)
            total += float(share) * (part if mean is None else part + mean)
        return total

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, (n, c); side by side they are no calibrated ones."""
        if self.models[0].loss_.task == "regression":
            raise ConfigurationError("a regression has no probabilities: see predict")
        return np.asarray(self.models[0].loss_.predict_proba(self.logits(X)).numpy())

    def predict(self, X: Any) -> np.ndarray:
        """Return classes, (n,), an indicator matrix, (n, c), or values, (n, k) or (n,)."""
        logits, targets = self.logits(X), self.models[0].fitted_.targets
        if targets.loss.task == "regression":
            values = logits.numpy()
            return values[:, 0] if targets.one_output else values
        if targets.loss.task == "multilabel":
            return (logits > 0).numpy().astype(int)
        return np.asarray(self.classes_[logits.argmax(1).numpy()])


# ---- each way -------------------------------------------------------------------------------------------------------


def _joint(models: Sequence[Any], gap: float) -> Any:
    first = models[0]
    tasks = {model.loss_.name for model in models}
    if len(tasks) > 1:
        raise ConfigurationError(f"these models are of different losses: {', '.join(sorted(tasks))}")
    if first.loss_.task != "multiclass":
        _check_same_targets(models)
    if len({model.augment_ for model in models}) > 1:
        raise ConfigurationError("some of these models have learnt mirror images and others not: fit them alike")
    own = {None if model.solution_ is None else model.solution_.penalties for model in models}
    if len(own) > 1:
        warn_user("these models have different penalties: those of the first are taken")
    joint = first.changed(Changes(others=tuple(model.other() for model in models[1:]), gap=gap))
    n = sum(model.other().trained.problem.n for model in models)
    return _said(joint, f"fitted jointly to the {n:,} samples of {len(models)} models")


def _average(models: Sequence[Any], share: np.ndarray) -> Any:
    fitted: Fitted = models[0].fitted_
    parts = [model.fitted_.weights for model in models]
    mean = Weights(
        omega=_mean([part.omega for part in parts], share),
        w1=_mean([part.w1 for part in parts], share),
        b=_mean([part.b for part in parts], share),
        w2={name: _mean([part.w2[name] for part in parts], share) for name in parts[0].w2},
        theta2=parts[0].theta2,
    )
    solution = Solution(AVERAGE, False, f"an average of {len(models)} models, no optimum")
    record = dataclasses.replace(fitted.record, solution=solution, choice=None, history=None, how={}, depths=())
    new = models[0].adopted(dataclasses.replace(fitted, weights=mean, record=record, merged_head=None))
    said = f"weights of {len(models)} models averaged by {', '.join(f'{value:.3g}' for value in share)}"
    return _said(new, said + _difference(models, new, share))


def _difference(models: Sequence[Any], new: Any, share: np.ndarray) -> str:
    """Say how far an average is from the ensemble on the training samples that are there."""
    stores = [model._trained.problem.store for model in models if model._trained is not None]
    if not stores:
        return ""
    worst = 0.0
    for store in stores:
        logits = [_values(store_logits(model.model_, store), model) for model in models]
        together = sum(
            (float(one) * part for one, part in zip(share, logits, strict=True)), torch.zeros_like(logits[0])
        )
        worst = max(worst, float((_values(store_logits(new.model_, store), new) - together).abs().max()))
    return f"; its logits are at most {worst:.2g} from the average of theirs on the training samples"


def _values(logits: Tensor, model: Any) -> Tensor:
    mean = target_mean(model.loss_)
    return logits.double().cpu() if mean is None else logits.double().cpu() + mean


def _mean(values: Sequence[Tensor], share: np.ndarray) -> Tensor:
    total = sum((float(one) * value.double() for one, value in zip(share, values, strict=True)), torch.zeros(()))
    return total.to(values[0])


def _said(model: Any, what: str) -> Any:
    record = dataclasses.replace(model.fitted_.record, how={**model.how_, "combined": what})
    model.fitted_ = dataclasses.replace(model.fitted_, record=record)
    return model


# ---- what fits ------------------------------------------------------------------------------------------------------


def _shares(models: Sequence[Any], weights: Sequence[float] | None) -> np.ndarray:
    if weights is None:
        known = [model._trained for model in models]
        counts = [0 if one is None else one.problem.n for one in known]
        weights = counts if all(counts) else [1.0] * len(models)
    values = np.asarray(weights, dtype=float)
    if values.shape != (len(models),) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise DataError(f"weights must hold {len(models)} numbers from 0, not all of them 0")
    return np.asarray(values / values.sum())


def _apart(models: Sequence[Any]) -> np.ndarray:
    """Return the classes of models that have none in common."""
    if any(model.loss_.task != "multiclass" for model in models):
        raise ConfigurationError("how='classes' is for models of one class a sample")
    classes = np.concatenate([np.asarray(model.classes_, dtype=object) for model in models]).tolist()
    twice = [label for label in dict.fromkeys(classes) if classes.count(label) > 1]
    if twice:
        raise ConfigurationError(
            f"several of these models have the class {twice[0]!r}: take how='joint', or for the same classes 'average'"
        )
    return np.array(classes) if len({type(label) for label in classes}) == 1 else np.array(classes, dtype=object)


def _check_same_targets(models: Sequence[Any]) -> None:
    first = models[0]
    for other in models[1:]:
        a, b = first.fitted_.targets, other.fitted_.targets
        same = a.loss.name == b.loss.name and first.b_.shape == other.b_.shape
        if not same or (a.classes is not None and list(a.classes) != list(() if b.classes is None else b.classes)):
            raise ConfigurationError("these models have different classes or targets: take how='joint' or 'classes'")


def _check_same_network(a: Fitted, b: Fitted) -> None:
    """Refuse models that are not of one network, θ₂ and θ̄₂, in the same variables.

    Raises:
        ConfigurationError: They are not; it says in what they differ.
    """
    moved = [None if one.weights.theta2 is None else one.weights.theta2 for one in (a, b)]
    same_point = (moved[0] is None) == (moved[1] is None) and all(
        torch.equal(value, (moved[1] or {})[name]) for name, value in (moved[0] or {}).items()
    )
    differ = {
        "networks or weights": a.network.backbone.fingerprint != b.network.backbone.fingerprint,
        "θ₂": list(a.weights.w2) != list(b.weights.w2),
        "preprocessing": a.network.backbone.preprocessing != b.network.backbone.preprocessing,
        "modes": a.settings.mode != b.settings.mode,
        "parametrizations": a.settings.parametrization != b.settings.parametrization,
        "precisions": a.settings.precision != b.settings.precision,
    }
    found = [name for name, is_other in differ.items() if is_other]
    if not found and not same_point:
        found = ["points of the network, which rounds have moved"]
    if found or a.settings.mode == "finetune":
        what = ", ".join(found) or "networks: they are fine-tuned"
        raise ConfigurationError(f"these models cannot be combined: they are of different {what}")
