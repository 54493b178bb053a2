"""The problem that a model was fitted to, for answers about its samples: kept since the fit, or from the data again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from gradfeat.data import Mirrored
from gradfeat.errors import DataError
from gradfeat.estimators.fitted import Fitted, logit_bias
from gradfeat.estimators.parameters import Parameters
from gradfeat.estimators.preparing import TrainingData, inputs_of
from gradfeat.estimators.reading import as_targets
from gradfeat.fit import Fit, Plan, Problem
from gradfeat.model import GradientFeatureModel
from gradfeat.samples import SampleStore
from gradfeat.solvers.probe import Probe

_STATIONARY, _HALF = 1e-3, 0.05
"""Largest entry of the probe's gradient on its own samples, relative to that of ω = 0, by rounding and other kernels;
and of a network in half precision."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What a model was fitted to, and how.

    Attributes:
        problem: The samples whose weight is above zero, at the pre-trained θ̄₂.
        samples: Their indices among all that were given, (n,).
        count: How many were data.
        plan: What was fitted.
        fit: How it ended.
    """

    problem: Problem
    samples: np.ndarray
    count: int
    plan: Plan
    fit: Fit

    @staticmethod
    def of(problem: Problem, weight: np.ndarray | None, count: int, plan: Plan, fit: Fit) -> Trained:
        """Return what a fit leaves; residuals are given back."""
        samples = np.arange(count) if weight is None else np.flatnonzero(weight)
        problem.store.release()
        return Trained(dataclasses.replace(problem, checkpoint=None), samples, count, plan, fit)


def recalled(parameters: Parameters, fitted: Fitted, model: GradientFeatureModel, data: TrainingData) -> Trained:
    """Return what a model was fitted to, from the data again.

    Raises:
        DataError: These are not the samples that it was fitted to.
    """
    classes = fitted.targets.classes
    if classes is not None and list(classes) != list(() if data.targets.classes is None else data.targets.classes):
        raise DataError("these are not the labels that the model was fitted to: its classes are others")
    count = len(data.y)
    present = np.arange(count) if data.weight is None else np.flatnonzero(data.weight)
    inputs = inputs_of(data.X, fitted.network.backbone)
    if data.weight is not None:
        inputs = inputs.subset(present)
    mirrored = fitted.settings.augment == "mirror"
    base = fitted.network.linearization(parameters.device, fitted.settings.precision)
    store = SampleStore(
        base,
        Mirrored(inputs) if mirrored else inputs,
        cache="z0" if parameters.cache == "auto" else parameters.cache,
        memory=parameters.memory,
        batch_size=parameters.samples_at_a_time,
    )
    views = 2 if mirrored else 1
    y = as_targets(data.y[present], base.dtype).to(base.device)
    weight = None if data.weight is None else torch.as_tensor(data.weight[present], dtype=torch.float64).to(y.device)
    problem = Problem(
        store,
        torch.cat([y] * views),
        None if weight is None else torch.cat([weight] * views),
        fitted.targets.loss,
        _probe(fitted, base.device),
        views=views,
    )
    _check_recalled(problem)
    record = fitted.record
    fit = Fit(model, choice=record.choice, solution=record.solution, rounds=record.rounds, history=record.history)
    plan = parameters.plan(problem.n, fitted.settings.mode)
    return Trained.of(problem, data.weight, count, plan, fit)


def _probe(fitted: Fitted, device: torch.device) -> Probe:
    """Return the probe as it was fitted: of a regression to distances to the targets' mean."""
    probe = fitted.record.probe
    bias = logit_bias(probe.bias, fitted.targets.loss).to(probe.omega.dtype)
    return dataclasses.replace(probe, omega=probe.omega.to(device), bias=bias.to(device))


def _check_recalled(problem: Problem) -> None:
    """Refuse samples on which the probe is no optimum.

    Raises:
        DataError: It is not.
    """
    f, probe, loss = problem.store.features.double(), problem.probe, problem.loss
    share = torch.ones(len(f), device=f.device) if problem.weight is None else problem.weight
    share = share.double() / share.double().sum()
    centred = f - share @ f

    def slope(logits: torch.Tensor) -> torch.Tensor:
        return centred.T @ (share[:, None] * loss.slope(logits, problem.y))

    omega = probe.omega.double()
    at_zero = slope(torch.zeros_like(f @ omega)).abs().max()
    at_probe = (slope(f @ omega + probe.bias.double()) + probe.penalty * omega).abs().max()
    half = problem.linearization.dtype in (torch.float16, torch.bfloat16)
    most = max(_HALF if half else _STATIONARY, 10 * probe.gradient_norm)
    if not float(at_probe) <= most * float(at_zero) + 1e-12:
        raise DataError(
            "these are not the samples and labels that the model was fitted to: its probe is no optimum on them. Give "
            "the training data, all of it, with the weights of then"
        )
