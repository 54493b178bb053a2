"""What both estimators share: parameters, preparing, training, and what a fitted one does."""

from __future__ import annotations

import dataclasses
import numbers
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from gradfeat.backbones import resolve
from gradfeat.contexts import alone, plain
from gradfeat.data import Inputs, Mirrored
from gradfeat.data.crops import views_of
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning
from gradfeat.estimators.reading import (
    NotFittedError,
    as_targets,
    check_lengths,
    check_parameters,
    folds_among,
    labels_of,
    read_samples,
    read_truth,
    shape_of,
)
from gradfeat.estimators.rebuilt import AS_FITTED, rebuilt_model, without_programs
from gradfeat.fit import Fit, Plan, Problem, prepare, select_solver, solve
from gradfeat.fit.checkpoint import Checkpoint, digest
from gradfeat.fit.depth import Depth, choose_depth
from gradfeat.fit.linearize import backbone_candidates, linearize_backbone
from gradfeat.fit.merge import MergedHead, MergedNetwork, fit_head, merge, report_on
from gradfeat.fit.penalties import given_penalties
from gradfeat.fit.predict import predict_logits
from gradfeat.fit.stages import HEAD, LINEARIZE, NETWORK, stages_of_fit
from gradfeat.linearization import Linearization
from gradfeat.losses import Loss, target_mean
from gradfeat.metrics.evaluation import mean_of_views
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.schedule import SOLVERS as OPTIMIZERS
from gradfeat.solvers.schedule import paper_schedule


class GradientFeatureEstimator(BaseEstimator):
    """What the classifier and the regressor share: parameters, reading X, and the fitted model."""

    def __init__(
        self,
        backbone: Any,
        *,
        theta2: str | Sequence[str] = "auto",
        mode: str = "full",
        solver: str = "auto",
        penalty: float | Sequence[float] | str = "auto",
        cv: Any = 5,
        rounds: int | str = 1,
        parametrization: str = "standard",
        metric: str = "auto",
        loss: str = "auto",
        augment: str | None = None,
        epochs: int | None = None,
        batch_size: int = 64,
        clip_norm: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        cache: str = "auto",
        weights: str | Path | None = None,
        preprocessing: Any = None,
        image_size: int | None = None,
        checkpoint: str | Path | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.backbone = backbone
        self.theta2 = theta2
        self.mode = mode
        self.solver = solver
        self.penalty = penalty
        self.cv = cv
        self.rounds = rounds
        self.parametrization = parametrization
        self.metric = metric
        self.loss = loss
        self.augment = augment
        self.epochs = epochs
        self.batch_size = batch_size
        self.clip_norm = clip_norm
        self.device = device
        self.precision = precision
        self.cache = cache
        self.weights = weights
        self.preprocessing = preprocessing
        self.image_size = image_size
        self.checkpoint = checkpoint
        self.random_state = random_state
        self.verbose = verbose

    # ---- what a fit does --------------------------------------------------------------------------------------------

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Leave the estimator as it was where a fit fails or is interrupted, never with parts of two fits."""
        before = dict(self.__dict__)
        try:
            with plain():
                yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(self, X: Any, y: np.ndarray, loss: Loss, weight: np.ndarray | None) -> None:
        check_parameters(self)
        progress = Progress(self.verbose)
        with progress.whole(self.mode, stages_of_fit(self._plan(len(y)), len(y))):
            problem = self._prepare(X, y, loss, weight, progress)
            self._adopt(problem, self._fit_mode(problem, progress), progress)

    def _prepare(
        self, X: Any, y: np.ndarray, loss: Loss, weight: np.ndarray | None, progress: Progress | None = None
    ) -> Problem:
        """Linearize the network, run the bottom on X, and fit the probe."""
        check_parameters(self)
        # what a callable or random weights were made from, so that `gradfeat.load` can make them again
        self._built_from: dict[str, Any] = {"X_shape": shape_of(X), "random_state": self._seed()}
        progress = progress or Progress(self.verbose)
        with progress.step(NETWORK):
            backbone = resolve(
                self.backbone,
                weights=self.weights,
                preprocessing=self.preprocessing,
                image_size=self.image_size,
                X_shape=self._built_from["X_shape"],
                random_state=self._built_from["random_state"],
            )
        inputs = X if isinstance(X, Inputs) else Inputs(X, backbone.preprocessing)
        if inputs.text_preprocessing is not None:  # other texts get the length of those that the model is fitted to
            backbone = dataclasses.replace(backbone, preprocessing=inputs.text_preprocessing)
        cv = self.cv
        if weight is not None:  # a sample of weight zero is not there
            present = np.flatnonzero(weight)
            cv = folds_among(cv, present, len(weight))
            inputs, y, weight = inputs.subset(present), y[present], weight[present]
        else:
            cv = folds_among(cv, np.arange(len(y)), len(y))
        example = inputs.example(3)
        self.backbone_ = backbone if isinstance(self.backbone, str | Path) else backbone.kept()
        self.example_ = example
        samples = inputs if self.augment is None else Mirrored(inputs)
        search = self.theta2 in ("search", ["search"])
        seed = self._seed()
        if seed is None and search:  # all depths hold out the same samples
            seed = int(np.random.default_rng().integers(2**31 - 1))
        checkpoint = None
        if self.checkpoint is not None:
            if inputs.random:
                raise ConfigurationError(
                    "a checkpoint is of samples that do not change, and this data set may change them"
                )
            if hasattr(cv, "split"):  # the folds themselves say whether a checkpoint is of them
                cv = list(cv.split(np.zeros(len(y)), y))
            checkpoint = Checkpoint(self.checkpoint, self._configuration(cv))

        def problem_of(theta2: str | Sequence[str], probe: Probe | None = None) -> Problem:
            with progress.step(LINEARIZE):
                linearization = linearize_backbone(backbone, example, theta2, self.device, self.precision)
            targets = as_targets(y, linearization.dtype).to(linearization.device)
            return prepare(
                linearization,
                samples,
                targets,
                loss,
                weight=None if weight is None else torch.as_tensor(weight, dtype=torch.float64).to(targets.device),
                penalty=self.penalty if isinstance(self.penalty, str) else given_penalties(self.penalty).lambda1,
                cv=cv,
                cache=self.cache if self.mode != "activation" or self.cache != "auto" else "none",
                batch_size=self.batch_size,
                views=1 if self.augment is None else 2,
                random_state=seed,
                progress=progress,
                checkpoint=checkpoint,
                probe=probe,
            )

        self.depths_: list[Depth] = []
        self.modules_: Any = "auto" if search else self.theta2
        if not search or self.mode == "activation":
            return problem_of(self.modules_)
        if inputs.random:
            raise ConfigurationError(
                "theta2='search' compares depths on the same samples, and this data set may change its samples: name θ₂"
            )
        problem, chosen, self.depths_ = choose_depth(
            backbone_candidates(backbone, example),
            problem_of,
            self._plan(len(y), "gradient" if self.mode == "gradient" else "full", seed),
            progress,
        )
        if chosen is not None:
            self.modules_ = list(chosen.modules)
        return problem

    def _configuration(self, cv: Any) -> dict[str, Any]:
        """Return what a fit depends on beside the data, by name; the mode is in the names of a checkpoint's parts."""
        data = ("backbone", "weights", "class_weight", "mode", "cv")  # seen in the network, the weights and below
        beside = ("checkpoint", "verbose", "cache")
        given = {name: value for name, value in self.get_params(deep=False).items() if name not in (*data, *beside)}
        pairs = isinstance(cv, (list, tuple))
        backbone = self.backbone_
        return {**given, "cv": digest(cv) if pairs else cv, "network": backbone.fingerprint, "f": backbone.features}

    def _plan(self, n: int, mode: str | None = None, seed: int | None = None) -> Plan:
        """Return how a mode is fitted to n samples, by default one's own."""
        mode = self.mode if mode is None else mode
        optimizer = self.solver if self.solver in OPTIMIZERS else "adam"
        return Plan(
            mode=mode,
            solver=self.solver,
            penalties=None if isinstance(self.penalty, str) else given_penalties(self.penalty),
            rounds=self.rounds if mode == "full" else 1,
            parametrization=self.parametrization,
            metric=self.metric,
            schedule=paper_schedule(
                optimizer, n, batch_size=self.batch_size, epochs=self.epochs, clip_norm=self.clip_norm
            ),
            seed=seed,
        )

    def _fit_mode(self, problem: Problem, progress: Progress) -> Fit:
        plan = self._plan(problem.n, seed=self._seed())
        linear = self.mode in ("gradient", "full")
        by_schedule = self.epochs is not None or self.clip_norm is not None
        if by_schedule and linear and select_solver(problem, plan)[0] not in OPTIMIZERS:
            warnings.warn(
                "epochs and clip_norm are of mode='finetune' and of solver='adam' or 'sgd'; this model is solved "
                "without them",
                GradfeatWarning,
                stacklevel=3,
            )
        lambda2 = plan.penalties.lambda2 if plan.penalties is not None and isinstance(self.penalty, Sequence) else 0
        if lambda2 > 0 and linear and self.solver in OPTIMIZERS:
            warnings.warn(
                f"solver={self.solver!r} has no penalty of w₂: the second one is not used",
                GradfeatWarning,
                stacklevel=3,
            )
        fit = solve(problem, plan, progress)
        for note in ([f"probe: {problem.probe.note}"] if problem.probe.note else []) + fit.notes:
            warnings.warn(note, GradfeatWarning, stacklevel=3)
        return fit

    def _adopt(self, problem: Problem, fit: Fit, progress: Progress) -> None:
        """Take a fitted model as this estimator's own, and fit the head of its merged network."""
        self._model: GradientFeatureModel | None = fit.model
        self._given = {name: getattr(self, name) for name in AS_FITTED}
        self.loss_ = problem.loss
        mean = target_mean(problem.loss)
        self.probe_ = dataclasses.replace(problem.probe, bias=_from(mean, problem.probe.bias))
        self.history_ = fit.history
        self.selection_ = fit.selection
        self.choice_ = fit.choice
        self.solution_ = fit.solution
        self.rounds_ = fit.rounds
        how: dict[str, Any] = {
            "solver": fit.solution,
            "penalties": fit.choice,
            "rounds": fit.rounds,
            "schedule": fit.selection,
        }
        if self.solver == "auto" and fit.model.mode in ("gradient", "full"):
            name, why = select_solver(problem, self._plan(problem.n, fit.model.mode))
            how["solver='auto'"] = f"{name}: {why}"
        self.how_ = {name: str(value) for name, value in how.items() if value is not None}
        self.seconds_ = {**problem.seconds, "train": fit.seconds}
        self.omega_ = fit.model.omega.detach().cpu().clone()
        self.w1_ = fit.model.w1.detach().cpu().clone()
        self.b_ = _from(mean, fit.model.b.detach().cpu().clone())
        if mean is not None:  # as a model that is made from b_ has it, to the last bit
            with torch.no_grad():
                fit.model.b.copy_(self.b_ - mean)
        self.w2_ = {name: value.detach().cpu().clone() for name, value in fit.model.w2.items()}
        moved = fit.model.linearization is not problem.linearization
        theta2 = fit.model.linearization.theta2
        self.theta2_ = {name: value.detach().cpu().clone() for name, value in theta2.items()} if moved else None
        self.n_iter_ = len(fit.history.loss) if fit.history is not None else 1
        self.merged_head_: MergedHead | None = None
        start = time.perf_counter()
        try:
            with progress.step(HEAD):
                self.merged_head_ = fit_head(
                    fit.model,
                    problem.store,
                    weight=problem.weight,
                    views=problem.views,
                    random_state=self._seed(),
                )
        except KeyboardInterrupt:  # the model itself is complete
            warnings.warn("interrupted: there is no head for merge()", GradfeatWarning, stacklevel=4)
        self.seconds_["merged head"] = time.perf_counter() - start

    # ---- what a fitted estimator does -------------------------------------------------------------------------------

    @property
    def linearization_(self) -> Linearization:
        """The network's programs; built again where the estimator comes from a pickle or a file."""
        return self._fitted_model().linearization

    def _fitted_model(self) -> GradientFeatureModel:
        self._check_fitted()
        model: GradientFeatureModel | None = getattr(self, "_model", None)
        if model is None:
            with alone(), plain():  # of threads that predict first at the same time, one builds the programs
                model = self._model = getattr(self, "_model", None) or rebuilt_model(self)
        return model

    def as_fitted(self) -> dict[str, Any]:
        """Return those parameters that the fitted model depends on, as they were in `fit` (see `AS_FITTED`)."""
        return {name: getattr(self, name) for name in AS_FITTED} | getattr(self, "_given", {})

    def _check_fitted(self) -> None:
        if not hasattr(self, "w1_"):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet: call fit first, or gradfeat.load a saved one."
            )

    @plain()
    def _logits(self, X: Any, crops: int = 1) -> Tensor:
        self._check_fitted()
        X = self._read_X(X, reset=False)
        inputs = X if isinstance(X, Inputs) else Inputs(X, self.backbone_.preprocessing)
        found, fitted = tuple(inputs.example(1).shape[1:]), tuple(self.example_.shape[1:])
        if found != fitted:
            raise DataError(f"X has samples of shape {found}; the model was fitted to samples of shape {fitted}")
        views = self._views(inputs, crops)
        logits = predict_logits(self._fitted_model(), views, self.batch_size, Progress(self.verbose)).cpu()
        return mean_of_views(logits, crops, self.loss_)

    def _views(self, inputs: Inputs, crops: int) -> Any:
        """Return what is predicted of test samples; the crops of a seed are the same in every call."""
        return views_of(inputs, crops, self._seed() if isinstance(self.random_state, numbers.Integral) else None)

    @plain()
    def save(self, path: str | Path) -> Path:
        """Write the fitted model as one safetensors file (see `gradfeat.estimators.adapter`).

        Args:
            path: Where; an existing file is replaced only when the new one is complete.

        Returns:
            The path.
        """
        from gradfeat.estimators.adapter import save

        self._check_fitted()
        return save(self, path)

    @plain()
    def merge(self, X: Any = None, y: Any = None) -> MergedNetwork:
        """Return an ordinary network with θ₂ + w₂ and a linear head: no extra cost at inference.

        For `activation` and `finetune` it predicts what the estimator does. For `gradient` and `full` it is a network
        near the linear model: θ̄₂ moves by w₂, or by a share of it where the network is far from its linearization
        there, and the head is fitted, at the end of `fit`, to the linear model's logits of the training samples (see
        `gradfeat.fit.merge`). Give held-out data, and look at its `report` before it is used.

        Args:
            X: Samples that the estimator was not fitted to.
            y: Their labels, for the metrics of both.

        Returns:
            The network; with X, its `report` says how far it is from the linear model.

        Raises:
            ConvergenceError: The network's outputs for X are not finite.
            ConfigurationError: The model has no head for it: it is of an older file, its fit was interrupted, or the
                moved network was not finite.
            BackboneError: The network in `backbone_` was changed after the fit.
        """
        model = self._fitted_model()
        if self.merged_head_ is None:
            raise ConfigurationError(
                "this model has no head for a merged network: it was saved by an older version, interrupted, or the "
                "moved network's features were not finite; fit it again, or use the linear model itself"
            )
        self.backbone_.check_unchanged()
        network = merge(self.backbone_, model, self.merged_head_, mean=target_mean(self.loss_))
        if X is not None:
            linear, samples = self._logits(X), self._read_X(X, reset=False)
            inputs = samples if isinstance(samples, Inputs) else Inputs(samples, self.backbone_.preprocessing)
            truth = None
            if y is not None:
                labels = np.asarray(labels_of(samples, y, self))
                truth = read_truth(labels, self.loss_.task, getattr(self, "classes_", None))
                check_lengths(samples, truth)
            step = self.merged_head_.step
            network.report = report_on(network, linear, inputs, self.loss_, truth, self.batch_size, step)
        return network

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs, which are built again when they are needed, of the network as it was fitted to.

        Raises:
            BackboneError: The network in `backbone_` was changed after the fit.
        """
        state = super().__getstate__()
        return without_programs(self, state) if hasattr(self, "w1_") else {**state, "_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state; where the given network is the one that was fitted to, with a copy of one's own again."""
        super().__setstate__(state)
        own = self.__dict__.get("backbone_")
        if own is not None and own.network is getattr(self, "backbone", None):
            self.backbone_ = own.kept()

    def _read_X(self, X: Any, *, reset: bool) -> Any:
        return read_samples(self, X, reset=reset)

    def _seed(self) -> int | None:
        state: Any = self.random_state
        if state is None or isinstance(state, numbers.Integral):
            return None if state is None else int(state)
        return int(state.randint(2**31 - 1))


def _from(mean: Tensor | None, bias: Tensor) -> Tensor:
    """Return the intercept of values, in double precision, from that of their distances to a mean."""
    return bias if mean is None else bias.detach().cpu().double() + mean
