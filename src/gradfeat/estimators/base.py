"""What both estimators share: the four parts of a fit, and what a fitted one does."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from gradfeat.contexts import alone, plain
from gradfeat.data import Crops, Inputs
from gradfeat.data.crops import views_of
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.adapter_writer import save
from gradfeat.estimators.adopting import fitted_of
from gradfeat.estimators.fitted import Fitted
from gradfeat.estimators.looking import stages_of_look
from gradfeat.estimators.parameters import Parameters, check_parameters
from gradfeat.estimators.preparing import Prepared, TrainingData, inputs_of, prepare
from gradfeat.estimators.reading import NotFittedError, check_lengths, labels_of, read_samples, read_truth
from gradfeat.estimators.rebuilt import rebuilt_model, with_own_network, without_programs
from gradfeat.estimators.recalling import Trained, recalled
from gradfeat.estimators.uncertainty import Uncertain
from gradfeat.estimators.updating import Changes, Other, check_changes, updated
from gradfeat.estimators.warn import warn_user
from gradfeat.fit import Fit, Plan, select_solver, solve
from gradfeat.fit.merge import MergedNetwork, merge, report_on
from gradfeat.fit.predict import predict_logits
from gradfeat.fit.rounds import fit_so_far
from gradfeat.fit.run import Run
from gradfeat.fit.stages import stages_of_fit
from gradfeat.fit.steps import Rounds
from gradfeat.linearization import Linearization
from gradfeat.losses import target_mean
from gradfeat.metrics.evaluation import mean_of_views
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.schedule import SOLVERS as OPTIMIZERS


class GradientFeatureEstimator(Uncertain, Parameters):
    """What the classifier and the regressor share.

    A fit is `read`, `prepare`, `solve` and `adopt`. Whoever fits several models to the same data calls them one by one:
    what `prepare` returns serves all modes.
    """

    # ---- what a fit does --------------------------------------------------------------------------------------------

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Fit; where that fails or is interrupted, the estimator stays as it was, never with parts of two fits."""
        with self._whole():
            data = self.read(X, y, sample_weight)
            check_parameters(self)
            progress = Progress(self.verbose)
            n = len(data)
            with progress.whole(self.mode, [*stages_of_look(self, n), *stages_of_fit(self.plan(n), n)]):
                prepared = self.prepare(data, progress)
                fit = self.solve(prepared, progress)
                self.adopt(prepared, fit, progress)
            if prepared.stopped is None and not prepared.problem.store.inputs.random:
                plan = prepared.decided(self.plan(n))
                self._trained = Trained.of(prepared.problem, data.weight, n, plan, fit)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        before = dict(self.__dict__)
        try:
            with plain():
                yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    @abstractmethod
    def read(self, X: Any, y: Any = None, sample_weight: Any = None) -> TrainingData:
        """Check training data, given as to `fit`, and read what they call for: targets, loss, classes.

        Raises:
            DataError: Data that cannot be meant.
            ConfigurationError: A parameter that does not fit the labels.
        """

    def prepare(self, data: TrainingData, progress: Progress | None = None) -> Prepared:
        """Linearize the network, run its bottom on the samples, and fit the probe: what all four models share.

        Args:
            data: From `read`.
            progress: Shows how far it is.

        Raises:
            ConfigurationError: Parameters that cannot be meant, or do not go with the data.
        """
        return prepare(self, data, progress)

    def solve(self, prepared: Prepared, progress: Progress | None = None) -> Fit:
        """Fit the model of the estimator's mode; what the user should know is said as warnings.

        Args:
            prepared: From `prepare`.
            progress: Shows how far it is.
        """
        problem = prepared.problem
        plan = prepared.decided(self.plan(problem.n, seed=self.draw_seed()))
        if prepared.stopped is not None:
            return self._said(prepared, _fit_of_look(prepared, prepared.stopped, plan))
        linear = self.mode in ("gradient", "full")
        by_schedule = self.epochs is not None or self.clip_norm is not None
        if by_schedule and linear and select_solver(problem, plan)[0] not in OPTIMIZERS:
            warn_user(
                "epochs and clip_norm are of mode='finetune' and of solver='adam' or 'sgd'; this model is solved "
                "without them"
            )
        lambda2 = plan.penalties.lambda2 if plan.penalties is not None and isinstance(self.penalty, Sequence) else 0
        if lambda2 > 0 and linear and self.solver in OPTIMIZERS:
            warn_user(f"solver={self.solver!r} has no penalty of w₂: the second one is not used")
        return self._said(prepared, solve(problem, plan, progress))

    def _said(self, prepared: Prepared, fit: Fit) -> Fit:
        probe = prepared.problem.probe
        for note in ([f"probe: {probe.note}"] if probe.note else []) + fit.notes:
            warn_user(note)
        return fit

    def adopt(self, prepared: Prepared, fit: Fit, progress: Progress | None = None) -> None:
        """Become the estimator that was fitted: keep a model as one's own, and fit the head of its merged network.

        Args:
            prepared: From `prepare`, of this estimator or of another one with the same data and backbone.
            fit: A model of this estimator's mode, fitted to it.
            progress: Shows how far it is.
        """
        self.restore(fitted_of(self, prepared, fit, progress or Progress(self.verbose)), fit.model)

    def restore(self, fitted: Fitted, model: GradientFeatureModel | None = None) -> None:
        """Become the estimator that was fitted, whose parameters this one has.

        Args:
            fitted: All that was fitted.
            model: Its model; None: built when it is needed.
        """
        self._model = model
        self._trained = self._answers = None
        self.fitted_ = fitted
        for name, value in (("n_features_in_", fitted.columns.count), ("feature_names_in_", fitted.columns.names)):
            if value is None:
                self.__dict__.pop(name, None)
            else:
                setattr(self, name, value)

    # ---- what a fitted estimator does -------------------------------------------------------------------------------

    def recall(self, X: Any, y: Any = None, sample_weight: Any = None) -> GradientFeatureEstimator:
        """Give a model from a file or a pickle the data that it was fitted to, so that it has answers about them.

        Args:
            X: The samples, as they were given to `fit`.
            y: Their targets.
            sample_weight: Their weights, where they had some.

        Returns:
            The estimator.

        Raises:
            DataError: The model was fitted to other data: its probe is no optimum on these, or its classes are others.
        """
        fitted, model = self._checked(), self.model_
        with self._whole():
            trained = recalled(self, fitted, model, self.read(X, y, sample_weight))
            self._trained, self._answers = trained, None
        return self

    def update(
        self, add: Any = None, remove: Any = None, relabel: Any = None, *, omega: str = "again", gap: float = 1e-4
    ) -> Self:
        """Return the model of changed training data, with the same penalties, metric of w₂ and θ̄₂; this one stays.

        It is the optimum that `fit` with these penalties would come to, found from the weights of before; `solution_`
        has the proof, `gap`. A model whose fit ended early, as its penalties were chosen, repeats the last part of it.

        Args:
            add: Samples to add, (X, y) or (X, y, sample_weight); they come after the others. Their labels may be new.
                Weights count as those of before do, which were divided by the heaviest one.
            remove: Indices of training samples to remove; those that stay move up.
            relabel: A new label for some training samples, by index; one that is known, or that an added sample has.
            omega: "again": ω̄ is solved again, as in a fit; "keep": it stays, and has seen the samples that go.
            gap: The objective is to be at most this share above its minimum.

        Returns:
            A fitted estimator.

        Raises:
            DataError: Indices out of range or twice, labels or samples that cannot be meant, or one class left.
            ConfigurationError: The model is without its training data (`recall`), fine-tuned, by Adam or SGD, or its
                network has moved in rounds.
        """
        changes = Changes(add, remove, relabel, omega, gap)
        check_changes(changes)
        return self.changed(changes)

    def changed(self, changes: Changes) -> Self:
        """Return the model of changed training data; arguments as of `update`, as one value."""
        trained = self._with_data()
        new = self._shallow()
        with plain():
            fitted, data = updated(self, self._checked(), trained, changes, self.read)
        new.restore(fitted, data.fit.model)
        new._trained = data
        return new

    def other(self) -> Other:
        """Return the model as one whose training samples another is to have too.

        Raises:
            ConfigurationError: It is without its training data (`recall`).
        """
        return Other(self, self.fitted_.targets, self._with_data())

    def adopted(self, fitted: Fitted) -> Self:
        """Return an estimator of these parameters with other weights."""
        new = self._shallow()
        new.restore(fitted)
        return new

    def _shallow(self) -> Self:
        """Return an estimator with the same parameters and programs."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    @property
    def linearization_(self) -> Linearization:
        """The network's programs; built again where the estimator comes from a pickle or a file."""
        return self.model_.linearization

    @property
    def model_(self) -> GradientFeatureModel:
        """The fitted model with its programs; built again where the estimator comes from a pickle or a file."""
        fitted = self._checked()
        model: GradientFeatureModel | None = getattr(self, "_model", None)
        if model is None:
            with alone(), plain():  # of threads that predict first at the same time, one builds the programs
                model = getattr(self, "_model", None)
                if model is None:
                    model = rebuilt_model(fitted, self.device, getattr(self, "_constants", None))
                self._model = model
        return model

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there is a fitted model."""
        return hasattr(self, "fitted_")

    def _checked(self) -> Fitted:
        if not hasattr(self, "fitted_"):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet: call fit first, or gradfeat.load a saved one."
            )
        return self.fitted_

    @plain()
    def logits(self, X: Any, crops: int = 1) -> Tensor:
        """Return the model's outputs, (n, c), in main memory; of a regression their distances to the targets' mean.

        Args:
            X: As for `fit`.
            crops: Random crops of each image, over which what is predicted is averaged; 1 is the centre crop.
        """
        fitted = self._checked()
        inputs = inputs_of(read_samples(self, X, reset=False), fitted.network.backbone)
        given, expected = tuple(inputs.example(1).shape[1:]), tuple(fitted.network.example.shape[1:])
        if given != expected:
            raise DataError(f"X has samples of shape {given}; the model was fitted to samples of shape {expected}")
        views = self.views(inputs, crops)
        logits = predict_logits(self.model_, views, self.samples_at_a_time, Progress(self.verbose)).cpu()
        return mean_of_views(logits, crops, fitted.targets.loss)

    def views(self, inputs: Inputs, crops: int) -> Inputs | Crops:
        """Return what is predicted of test samples; the crops of a seed are the same in every call.

        Args:
            inputs: The samples.
            crops: Random crops of each; 1 is the centre crop.
        """
        return views_of(inputs, crops, self.draw_seed() if isinstance(self.random_state, numbers.Integral) else None)

    @plain()
    def save(self, path: str | Path) -> Path:
        """Write the fitted model as one safetensors file (see `gradfeat.estimators.adapter`).

        Args:
            path: Where; an existing file is replaced only when the new one is complete.

        Returns:
            The path.
        """
        return save(self._checked(), path, batch_size=self.samples_at_a_time)

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
        model, fitted = self.model_, self.fitted_
        head, backbone, loss = fitted.merged_head, fitted.network.backbone, fitted.targets.loss
        if head is None:
            raise ConfigurationError(
                "this model has no head for a merged network: it was saved by an older version, interrupted, or the "
                "moved network's features were not finite; fit it again, or use the linear model itself"
            )
        backbone.check_unchanged()
        network = merge(backbone, model, head, mean=target_mean(loss))
        if X is not None:
            linear, samples = self.logits(X), read_samples(self, X, reset=False)
            truth = None
            if y is not None:
                truth = read_truth(np.asarray(labels_of(samples, y, self)), loss.task, fitted.targets.classes)
                check_lengths(samples, truth)
            inputs = inputs_of(samples, backbone)
            network.report = report_on(network, linear, inputs, loss, truth, self.samples_at_a_time, head.step)
        return network

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the programs, which are built again when they are needed, of the network as it was fitted to.

        Raises:
            BackboneError: The network in `backbone_` was changed after the fit.
        """
        state = super().__getstate__()
        if not hasattr(self, "fitted_"):
            return {**state, "_model": None}
        state = {name: value for name, value in state.items() if name not in ("_trained", "_answers")}
        return {**state, **without_programs(self.fitted_, getattr(self, "backbone", None), self._model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state; where the given network is the one that was fitted to, with a copy of one's own again."""
        super().__setstate__(state)
        if hasattr(self, "fitted_"):
            self.fitted_ = with_own_network(self.fitted_, getattr(self, "backbone", None))


def _fit_of_look(prepared: Prepared, rounds: Rounds, plan: Plan) -> Fit:
    """Return the best of a look that was interrupted."""
    problem = prepared.problem
    run = Run([], plan.generator())
    return fit_so_far(problem, plan, rounds, run, f"of the {problem.n} samples looked at, ")
