"""From data and parameters to a problem: the network, the samples that count, a checkpoint, θ₂.

An estimator's `prepare` is the door; `compare` and researchers fit any of the four models to what it returns.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.backbones import Backbone, resolve
from gradfeat.data import Inputs, Mirrored
from gradfeat.data.inputs import in_parts
from gradfeat.errors import ConfigurationError
from gradfeat.estimators.fitted import BuiltFrom, Columns, Network, Targets
from gradfeat.estimators.looking import drawn, looks
from gradfeat.estimators.parameters import Parameters, check_parameters
from gradfeat.estimators.reading import as_targets, folds_among, shape_of
from gradfeat.estimators.warn import warn_user
from gradfeat.fit import Plan, Problem
from gradfeat.fit import prepare as prepare_problem
from gradfeat.fit.checkpoint import Checkpoint, digest, resumed
from gradfeat.fit.depth import Depth, choose_depth
from gradfeat.fit.linearize import backbone_candidates, linearize_backbone
from gradfeat.fit.look import MOST, STAGE, Look, LookInterrupted, look
from gradfeat.fit.penalties import given_penalties
from gradfeat.fit.stages import LINEARIZE, NETWORK
from gradfeat.fit.steps import Rounds
from gradfeat.losses import Loss
from gradfeat.progress import Progress
from gradfeat.samples import Batches
from gradfeat.solvers.probe import Probe


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data as they were read and checked.

    Attributes:
        X: n samples, in any form that `gradfeat.data.Inputs` takes.
        y: Targets as the loss takes them: class indices (n,), or (n, c).
        targets: What they mean.
        weight: A weight for each sample, (n,), or None.
        columns: Of a table.
    """

    X: Any
    y: np.ndarray
    targets: Targets
    weight: np.ndarray | None = None
    columns: Columns = dataclasses.field(default_factory=Columns)

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A problem, ready for any of the four models, and what an estimator is to know of it.

    Attributes:
        problem: Samples, targets, loss and probe.
        network: The network, and θ₂.
        targets: What y was.
        columns: Of the table that X was.
        depths: Depths of θ₂ that a search or a look tried.
        look: What a look at some samples decided; None where there was none.
        stopped: How θ̄₂ moved in a look that was interrupted; the problem is then that of the samples looked at.
    """

    problem: Problem
    network: Network
    targets: Targets
    columns: Columns
    depths: Sequence[Depth] = ()
    look: Look | None = None
    stopped: Rounds | None = None

    @property
    def mirrored(self) -> bool:
        """Whether mirror images are learnt."""
        return self.problem.views == 2

    def decided(self, plan: Plan) -> Plan:
        """Return a plan with what a look decided: whether θ̄₂ of mode `full` moves; rounds that were asked for stay."""
        moves = self.look is not None and self.look.modules is not None and plan.mode == "full"
        return dataclasses.replace(plan, rounds="auto") if moves and plan.rounds == 1 else plan


def prepare(parameters: Parameters, data: TrainingData, progress: Progress | None = None) -> Prepared:
    """Linearize the network, run its bottom on the samples that count, and fit the probe (steps 1 and 2).

    Args:
        parameters: Of the estimator.
        data: What it is fitted to.
        progress: Shows how far it is.

    Raises:
        ConfigurationError: Parameters that cannot be meant, or do not go with the data.
    """
    check_parameters(parameters)
    progress = progress or Progress(parameters.verbose)
    backbone, built_from = _resolved(parameters, data, progress)
    inputs = inputs_of(data.X, backbone)
    if inputs.text_preprocessing is not None:  # other texts get the length of those that the model is fitted to
        backbone = dataclasses.replace(backbone, preprocessing=inputs.text_preprocessing)
    samples = _counted(inputs, data, parameters.cv)
    example = samples.inputs.example(3)
    snapshot = backbone if isinstance(parameters.backbone, str | Path) else backbone.kept()
    mirrored = parameters.augment == "mirror"
    seed = parameters.draw_seed()
    if seed is None and (_searches(parameters) or looks(parameters, len(samples.y))):  # all depths have one split
        seed = int(np.random.default_rng().integers(2**31 - 1))
    checkpoint, cv = _checkpoint(parameters, samples, snapshot)
    making = _Making(
        parameters=parameters,
        backbone=backbone,
        example=example,
        samples=dataclasses.replace(samples, cv=cv),
        views=_views(samples.inputs, mirrored),
        loss=data.targets.loss,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    made = _made(making)
    network = Network(snapshot, made.modules, example, built_from, parameters.weights)
    return Prepared(made.problem, network, data.targets, data.columns, made.depths, made.look, made.stopped)


def _views(inputs: Inputs, mirrored: bool) -> Batches:
    return Mirrored(inputs) if mirrored else inputs


def inputs_of(X: Any, backbone: Backbone) -> Inputs:
    """Return samples as a network takes them."""
    return X if isinstance(X, Inputs) else Inputs(X, backbone.preprocessing)


def _resolved(parameters: Parameters, data: TrainingData, progress: Progress) -> tuple[Backbone, BuiltFrom]:
    """Return the network, and what a callable or random weights were made from, so that it can be made again."""
    built_from = BuiltFrom(shape_of(data.X), parameters.draw_seed())
    with progress.step(NETWORK):
        backbone = resolve(
            parameters.backbone,
            weights=parameters.weights,
            preprocessing=parameters.preprocessing,
            image_size=parameters.image_size,
            X_shape=built_from.X_shape,
            random_state=built_from.random_state,
        )
    return backbone, built_from


@dataclass(frozen=True, eq=False)
class _Samples:
    """The samples that count, with their targets, weights and folds."""

    inputs: Inputs
    y: np.ndarray
    weight: np.ndarray | None
    cv: Any


def _counted(inputs: Inputs, data: TrainingData, cv: Any) -> _Samples:
    """Leave out samples of weight zero, which are not there."""
    y, weight = data.y, data.weight
    if weight is None:
        return _Samples(inputs, y, None, folds_among(cv, np.arange(len(y)), len(y)))
    present = np.flatnonzero(weight)
    cv = folds_among(cv, present, len(weight))
    return _Samples(inputs.subset(present), y[present], weight[present], cv)


def _checkpoint(parameters: Parameters, samples: _Samples, backbone: Backbone) -> tuple[Checkpoint | None, Any]:
    """Return the checkpoint, or None, and the folds that it is of."""
    cv = samples.cv
    if parameters.checkpoint is None:
        return None, cv
    if samples.inputs.random:
        raise ConfigurationError("a checkpoint is of samples that do not change, and this data set may change them")
    if hasattr(cv, "split"):  # the folds themselves say whether a checkpoint is of them
        cv = list(cv.split(np.zeros(len(samples.y)), samples.y))
    return Checkpoint(parameters.checkpoint, _configuration(parameters, cv, backbone)), cv


def _configuration(parameters: Parameters, cv: Any, backbone: Backbone) -> dict[str, object]:
    """Return what a fit depends on beside the data, by name; the mode is in the names of a checkpoint's parts."""
    data = ("backbone", "weights", "class_weight", "mode", "cv")  # seen in the network, the weights and below
    beside = ("checkpoint", "verbose", "cache", "memory")
    given = {name: value for name, value in parameters.get_params(deep=False).items() if name not in (*data, *beside)}
    pairs = isinstance(cv, (list, tuple))
    return {**given, "cv": digest(cv) if pairs else cv, "network": backbone.fingerprint, "f": backbone.features}


@dataclass(frozen=True, eq=False)
class _Making:
    """What the problem of any θ₂ is made from."""

    parameters: Parameters
    backbone: Backbone
    example: Tensor
    samples: _Samples
    views: Batches  # the samples, with their mirror images where these are asked for
    loss: Loss
    seed: int | None
    checkpoint: Checkpoint | None
    progress: Progress
    moves: bool = False  # θ̄₂ does

    @property
    def mirrored(self) -> bool:
        """Whether mirror images are among the views."""
        return len(self.views) > len(self.samples.y)

    @property
    def asks_for_mirrors(self) -> bool:
        """Whether a look is to judge mirror images: of images, where nothing is said of them."""
        image = self.example.ndim == 4 and self.example.shape[-1] > 1 and self.example.is_floating_point()
        return self.parameters.augment == "auto" and image

    def with_mirrors(self) -> _Making:
        """Return what the problem with mirror images is made from."""
        return dataclasses.replace(self, views=_views(self.samples.inputs, True))

    def some(self, most: int) -> _Making:
        """Return what the problem of so many samples at most is made from, drawn at random; silent."""
        rows = drawn(self.samples.y, most, self.seed)
        inputs, weight = self.samples.inputs.subset(rows), self.samples.weight
        samples = _Samples(inputs, self.samples.y[rows], None if weight is None else weight[rows], cv=5)
        return dataclasses.replace(
            self,
            samples=samples,
            views=_views(inputs, self.mirrored),
            checkpoint=None if self.checkpoint is None else self.checkpoint.of({}, _seen(samples)),
            progress=Progress(False),
            moves=True,
        )

    @property
    def _cache(self) -> str:
        """What is kept of a sample at most: what trains the network needs no residuals, the probe not even z₀."""
        parameters = self.parameters
        if parameters.cache != "auto" or self.views.random:
            return parameters.cache
        if self.moves or (parameters.mode == "full" and parameters.rounds not in (None, 1)):
            return "z0"
        return {"activation": "none", "finetune": "z0"}.get(parameters.mode, "auto")

    def problem(self, theta2: str | Sequence[str], probe: Probe | None = None) -> Problem:
        """Return the problem of one θ₂, with a probe that is known or, for None, its own."""
        parameters, samples = self.parameters, self.samples
        with self.progress.step(LINEARIZE):
            linearization = linearize_backbone(
                self.backbone, self.example, theta2, parameters.device, parameters.precision
            )
        y = as_targets(samples.y, linearization.dtype).to(linearization.device)
        weight = None
        if samples.weight is not None:
            weight = torch.as_tensor(samples.weight, dtype=torch.float64).to(y.device)
        penalty = parameters.penalty
        return prepare_problem(
            linearization,
            self.views,
            y,
            self.loss,
            weight=weight,
            penalty=penalty if isinstance(penalty, str) else given_penalties(penalty).lambda1,
            cv=samples.cv,
            cache=self._cache,
            memory=parameters.memory,
            batch_size=parameters.samples_at_a_time,
            views=2 if self.mirrored else 1,
            random_state=self.seed,
            progress=self.progress,
            checkpoint=self.checkpoint,
            probe=probe,
        )


def _searches(parameters: Parameters) -> bool:
    return parameters.theta2 in ("search", ["search"])


@dataclass(frozen=True, eq=False)
class _Made:
    """A problem, θ₂ as it was found or asked for, and how it was found."""

    problem: Problem
    modules: str | Sequence[str]
    depths: Sequence[Depth] = ()
    look: Look | None = None
    stopped: Rounds | None = None


def _made(making: _Making) -> _Made:
    """Return the problem of the θ₂ that is asked for, or of the best depth."""
    parameters = making.parameters
    if looks(parameters, len(making.samples.y), random=making.samples.inputs.random):
        return _looked(making)
    modules = "auto" if _searches(parameters) else parameters.theta2
    if not _searches(parameters) or parameters.mode == "activation":
        return _Made(making.problem(modules), modules)
    if making.samples.inputs.random:
        raise ConfigurationError(
            "theta2='search' compares depths on the same samples, and this data set may change its samples: name θ₂"
        )
    problem, chosen, depths = choose_depth(
        backbone_candidates(making.backbone, making.example),
        making.problem,
        parameters.plan(len(making.samples.y), "gradient" if parameters.mode == "gradient" else "full", making.seed),
        making.progress,
    )
    return _Made(problem, modules if chosen is None else list(chosen.modules), depths)


def _looked(making: _Making) -> _Made:
    """Return the problem of the θ₂ to which a look at some samples leads."""
    parameters, begun = making.parameters, time.perf_counter()
    some = making.some(MOST)

    mirrored = None
    if some.asks_for_mirrors:
        own = None if some.checkpoint is None else some.checkpoint.within("mirrored", {})
        mirrored = dataclasses.replace(some.with_mirrors(), checkpoint=own).problem

    def found() -> Look:
        return look(
            backbone_candidates(making.backbone, making.example),
            some.problem,
            parameters.plan(len(some.samples.y), seed=making.seed),
            making.progress,
            all_depths=parameters.effort == "high",
            mirrored=mirrored,
        )

    try:
        result = resumed(some.checkpoint, "look", found, Look.pack, Look.unpack)
    except LookInterrupted as ended:
        return _Made(ended.problem, list(ended.modules), ended.look.tried, ended.look, ended.rounds)
    for note in result.notes:
        warn_user(f"effort={parameters.effort!r}: {note}")
    modules: str | Sequence[str] = "auto" if result.modules is None else list(result.modules)
    seconds = {STAGE: time.perf_counter() - begun}
    making = dataclasses.replace(making.with_mirrors() if result.mirrors else making, moves=result.modules is not None)
    problem = making.problem(modules)
    return _Made(dataclasses.replace(problem, seconds={**seconds, **problem.seconds}), modules, result.tried, result)


def _seen(samples: _Samples) -> dict[str, Any]:
    """Return what a look depends on, beside the parameters, by name: of the samples a digest of each part."""
    parts = in_parts(len(samples.y), 64)
    return {
        "samples": np.array([digest(samples.inputs.batch(part)) for part in parts], dtype="S64").view(np.uint8),
        "targets": samples.y,
        "sample weights": samples.weight,
    }
