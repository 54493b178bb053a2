"""The scikit-learn face: `GradientFeatureClassifier` and `GradientFeatureRegressor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin

from gradfeat.contexts import plain
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.base import GradientFeatureEstimator
from gradfeat.estimators.fitted import Targets
from gradfeat.estimators.preparing import TrainingData
from gradfeat.estimators.reading import (
    centred,
    check_lengths,
    class_weights,
    columns_of,
    indicator,
    is_indicator,
    labels_of,
    read_classes,
    read_samples,
    read_weight,
)
from gradfeat.estimators.uncertainty import check_extras
from gradfeat.estimators.warn import warn_user
from gradfeat.losses import CrossEntropy, MultiLabelLogistic, OneHotSquared, Squared
from gradfeat.metrics.scores import mean_average_precision


class GradientFeatureClassifier(ClassifierMixin, GradientFeatureEstimator):
    """Classify with a linear model over the activations and gradients of a pre-trained network.

    Args:
        backbone: An `nn.Module`, a name ("timm/resnet18", "torchvision/resnet18", "hf/<folder or id>",
            "sentence-transformers/<folder or id>"), or a callable that builds a module from the shape of X.
        theta2: Parameters to linearize: "auto" (as `effort` says); "top", the paper's heuristic (the topmost
            convolution, residual or transformer block); names of modules or parameters or globs, one or a list; or
            "search": one linearization of 1, 2, 4 ... blocks from the top, where that lowers the loss on held-out
            training data (`depths_` has what was tried, `modules_` θ₂).
        effort: How much is decided for you, of mode "full" where θ₂ is "auto" and nothing asks for one linearization
            (a penalty, a solver, a metric, rounds=1). "low": the topmost block, one linearization. "auto": a look at
            some samples says how many blocks are worth it and whether θ̄₂ moves (`gradfeat.fit.look`); with fewer than
            100 samples as "low". "high": all depths are looked at, more learning rates tried, and fine-tuning beside
            them (`gradfeat.fit.rival`). `how_` says what was tried, and what each bought.
        mode: "activation" (the linear probe), "gradient", "full" (Eq. 2) or "finetune".
        solver: "subspace" (without a learning rate or schedule); "dual" (in the samples' space, for few samples:
            a squared loss in closed form, others by Newton's method to the exact optimum); or "adam" or "sgd", with the
            paper's schedule. "auto" is "adam" for samples that may change (a torch Dataset that augments); else
            "dual" for a squared loss with few samples × outputs (`gradfeat.fit`), and "subspace" for all else.
            `solution_` says which it was. "pairs", with mode="finetune" and few labels, brings samples of a class near
            each other, as SetFit does, and fits a probe there (`gradfeat.fit.pairs`).
        penalty: L2 penalties λ₁ of w₁ and λ₂ of w₂, ``mean loss + λ₁/2 ‖w₁‖² + λ₂/2 ‖w₂‖²``: a pair, or one number for
            both; λ₁ is the probe's too. "auto" chooses the probe's by cross-validation, and then, for "subspace", those
            of w₁, w₂ and ω̄ on held-out training data (`gradfeat.fit.choose`), for "dual" with a squared loss by
            leave-one-out, and with another loss as for "subspace". Adam and SGD have no λ₂.
        cv: Folds of the probe's choice; or a scikit-learn splitter, or pairs of indices.
        rounds: 1: one linearization, at the pre-trained θ̄₂. "auto": θ̄₂ moves in many small steps, where that lowers
            the loss on held-out training data, and the network is linearized where they end (`gradfeat.fit.rounds`). A
            number: passes over the samples of each trial of that. None: as `effort` says where θ₂ is "auto", else 1.
            Of mode "full" only.
        parametrization: "standard", "ntk_fan_in" ("ntk" for short) or "ntk_fan_out".
        metric: "plain": λ₂ penalizes ‖w₂‖²; "whitened": w₂ᵀ S w₂, with the Kronecker factors of the loss's Hessian as S
            (docs/method.md), by the subspace solver. "auto": "whitened" where that solver chooses the penalties, the
            better of both with fewer than 1,000 samples; "plain" where they are given, and in closed form.
        loss: "auto", "cross_entropy", "one_hot_squared" (LQF's squared error to rescaled one-hot targets), or
            "logistic" (multi-label).
        augment: "mirror" adds the mirror image of each training image; None adds nothing. "auto" adds them where a look
            (see `effort`) finds that θ̄₂ moves, and that its loss on held-out images is clearly lower with them: letters
            and arrows are no longer themselves in a mirror. `augment_` says which it was.
        epochs: Passes over the data for Adam, SGD and fine-tuning; None is the paper's 50 epochs, or 80,000 iterations
            where that is less, and for fine-tuning chosen around 25.
        batch_size: Samples in a minibatch; None is 32 for fine-tuning and 64 for all else.
        clip_norm: Largest norm of a gradient, of the same; None is the schedule's own: 10 with solver="sgd", as in the
            published code, and no limit with "adam".
        device: "cpu", "cuda", ...; "auto" is the network's own GPU, else CUDA where there is one, else the CPU.
        precision: "float32", "bfloat16" (not for rounds) or "float64"; "auto" is float64 for a network in float64, else
            float32.
        cache: The most that is kept of a sample between passes: "residuals", "z0" or "none"; "auto" is as much as
            `memory` allows.
        memory: A bound on what is kept of the samples and what a pass needs at a time: a number of bytes, or "500MB",
            "2GB". What is not kept is computed again, which takes longer and changes no number but by rounding. "auto"
            lets the process hold one and a half times what fine-tuning would, at most half of the memory that is free;
            of a GPU, or with a `cache` by name, it is that half.
        weights: File of the backbone's weights (.safetensors, .pth ...), for a backbone given by name; "FILE::name" is
            one of several networks in it; "random" for none.
        preprocessing: Replaces the backbone's own, whole or (a dict) in some fields: those of
            `gradfeat.data.Preprocessing` for images, of `TextPreprocessing` (max_length ...) for texts.
        image_size: Side of the square that images are brought to, without a border cut off unless `preprocessing` has
            a crop_pct; None is the backbone's own.
        class_weight: A dict from class to weight, or "balanced"; multi-class only.
        checkpoint: Folder where finished parts of a fit are written: the probe, each step of
            the penalty path, each round, epochs. After an interruption the same fit goes on from there, with the same
            result; another one is refused. Of a closed form the probe alone is kept. Needs a seed, and samples that do
            not change.
        random_state: Seed.
        verbose: Say on standard error how far it is, with the time left: one bar on a terminal, elsewhere lines.

    Attributes:
        classes_: Class labels, (c,); column numbers for multi-label targets.
        omega_: The probe ω̄, (d, c).
        w1_: Weights of the activations, (d, c); of mode "gradient" they are ω̄, and not used.
        b_: Intercept, (c,).
        w2_: Weights of the gradients, by the names of θ₂.
        theta2_: Where rounds have moved θ̄₂, by the names of θ₂; None where it did not move.
        modules_: θ₂ as it was asked for, or found by a look or theta2="search"; the depths that were tried are
            `depths_`.
        augment_: "mirror" where mirror images were learnt; else None.
        backbone_: A copy of the network as it was when `fit` began, with its preprocessing; `linearization_` has its
            programs.
        merged_head_: Step and head of the merged network; None where it has none (see `merge`).
        rounds_: The moves and the held-out losses; None for one linearization.
        probe_: The probe with the path of its penalty.
        choice_: Penalties that were chosen, with the path; None where none were.
        solution_: How the solver of `gradient` and `full` ended: passes, time, whether it converged, and how far the
            objective is above its minimum at most; None where no gradient term was chosen.
        how_: Effort, solver, penalties and rounds in words, and why solver="auto" took it; a saved model keeps them.
        selection_: Recipes that fine-tuning tried, and the temperature of the best; None elsewhere.
        history_: Training loss by epoch, or objective by iteration.
        seconds_: Time of each part of the fit.
        fitted_: All of it as one frozen value, `gradfeat.estimators.fitted.Fitted`, of which these are the parts.

    Example:
        >>> from torch import nn
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(60, 2)); y = X[:, 0] > 0
        >>> network = lambda shape: nn.Sequential(nn.Linear(shape[1], 16), nn.Tanh(), nn.Linear(16, 8))
        >>> classifier = GradientFeatureClassifier(network, penalty=0.1, random_state=0).fit(X, y)
        >>> bool(classifier.score(X, y) > 0.9)
        True
    """

    def __init__(
        self,
        backbone: Any,
        *,
        theta2: str | Sequence[str] = "auto",
        effort: str = "auto",
        mode: str = "full",
        solver: str = "auto",
        penalty: float | Sequence[float] | str = "auto",
        cv: Any = 5,
        rounds: int | str | None = None,
        parametrization: str = "standard",
        metric: str = "auto",
        loss: str = "auto",
        augment: str | None = "auto",
        epochs: int | None = None,
        batch_size: int | None = None,
        clip_norm: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        cache: str = "auto",
        memory: float | str = "auto",
        weights: str | Path | None = None,
        preprocessing: Any = None,
        image_size: int | None = None,
        class_weight: Any = None,
        checkpoint: str | Path | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            theta2=theta2,
            effort=effort,
            mode=mode,
            solver=solver,
            penalty=penalty,
            cv=cv,
            rounds=rounds,
            parametrization=parametrization,
            metric=metric,
            loss=loss,
            augment=augment,
            epochs=epochs,
            batch_size=batch_size,
            clip_norm=clip_norm,
            device=device,
            precision=precision,
            cache=cache,
            memory=memory,
            weights=weights,
            preprocessing=preprocessing,
            image_size=image_size,
            checkpoint=checkpoint,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> GradientFeatureClassifier:
        """Fit to labelled samples.

        Args:
            X: n samples: a float array or tensor in the network's own layout, uint8 images (n, h, w, c), a list of
                image paths or of texts, or a torch Dataset.
            y: Labels, (n,), or an indicator matrix (n, c) for multi-label targets (NaN where a label is to be
                ignored). May be left out for a Dataset of pairs.
            sample_weight: A weight for each sample, (n,).

        Raises:
            DataError: Labels that are missing, or of one class only; samples that are not finite.
            ConfigurationError: An argument that cannot be meant.
        """
        self._fit(X, y, sample_weight)
        return self

    def read(self, X: Any, y: Any = None, sample_weight: Any = None) -> TrainingData:
        """Check training data, given as to `fit`; return indices or an indicator, and the loss that they call for.

        Raises:
            DataError: Labels that are missing, or of one class only.
            ConfigurationError: A loss or class weights that do not fit the labels.
        """
        X = read_samples(self, X, reset=True)
        y = labels_of(X, y, self)
        check_lengths(X, y)
        weight = read_weight(sample_weight, len(y))
        if is_indicator(y):
            y, targets = self._read_indicator(y)
        else:
            y = read_classes(y)
            if self.class_weight is not None:
                weight = class_weights(self.class_weight, y, weight)
            y, targets = self._read_classes(y, weight)
        if self.loss not in ("auto", targets.loss.name):
            raise ConfigurationError(
                f"loss={self.loss!r} does not fit these labels, which call for {targets.loss.name!r} (or 'auto')"
            )
        return TrainingData(X, y, targets, weight, columns_of(self, X))

    def _read_indicator(self, y: np.ndarray) -> tuple[np.ndarray, Targets]:
        y = indicator(y)
        if self.class_weight is not None:
            raise ConfigurationError(
                "class_weight is for multi-class labels; for an indicator matrix give sample_weight"
            )
        return y, Targets(MultiLabelLogistic(), np.arange(y.shape[1]))

    def _read_classes(self, y: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, Targets]:
        classes = np.unique(y if weight is None else y[weight > 0])
        if len(classes) < 2:
            among = "" if weight is None else " among the samples with a weight above zero"
            raise DataError(f"y has one class only ({classes[0]}){among}: a classifier needs at least two classes")
        # absent samples may be of an absent class: any index will do for them
        indices = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
        return indices, Targets(OneHotSquared() if self.loss == OneHotSquared.name else CrossEntropy(), classes)

    @property
    def classes_(self) -> np.ndarray:
        """Class labels, (c,); column numbers for multi-label targets."""
        classes = self.fitted_.targets.classes
        if classes is None:
            raise AttributeError("the model has no classes")
        return classes

    @property
    def multilabel_(self) -> bool:
        """Whether the targets were an indicator matrix."""
        return self.loss_.task == "multilabel"

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits, (n, c); for two classes the difference of the two, (n,)."""
        logits = self.logits(X).double().numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 and not self.multilabel_ else logits

    @plain()
    def predict_proba(
        self, X: Any, crops: int = 1, *, uncertainty: bool = False, calibrated: bool = False
    ) -> np.ndarray:
        """Return the probability of each class, (n, c); for multi-label targets each label's own.

        Args:
            X: As for `fit`.
            crops: Random crops of each image, whose probabilities are averaged; 1 is the centre crop. For image paths
                or uint8 images (`gradfeat.data.Crops`).
            uncertainty: Integrate over what the training data leave open of the logits (`predict_variance`).
            calibrated: Divide the logits by `temperature_`. Both need the training data (`recall`).

        Raises:
            ConfigurationError: Both at once, either with crops, or a model that has no answers (`answers_`).
        """
        check_extras(crops, uncertainty=uncertainty, calibrated=calibrated)
        if uncertainty:
            return self._integrated(X)
        logits = self.logits(X, crops) / (self.temperature_ if calibrated else 1)
        return self.loss_.predict_proba(logits.double()).numpy()

    def predict(self, X: Any, crops: int = 1) -> np.ndarray:
        """Return the most probable class of each sample, (n,); for multi-label targets an indicator matrix, (n, c).

        Args:
            X: As in `predict_proba`.
            crops: As in `predict_proba`.
        """
        logits = self.logits(X, crops)
        if self.multilabel_:
            return (logits > 0).numpy().astype(int)
        return np.asarray(self.classes_[logits.argmax(1).numpy()])

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy; for multi-label targets the mean average precision (area)."""
        self._checked()
        y = labels_of(X, y, self)
        check_lengths(X, y)
        if self.multilabel_:
            if sample_weight is not None:
                raise ConfigurationError("the mean average precision of multi-label targets takes no sample_weight")
            values = indicator(y)
            return float(
                mean_average_precision(self.logits(X).double().numpy(), np.nan_to_num(values), ignore=np.isnan(values))
            )
        return float(super().score(X, y, sample_weight))

    def __sklearn_tags__(self) -> Any:
        """Say that labels may be an indicator matrix."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class GradientFeatureRegressor(RegressorMixin, GradientFeatureEstimator):
    """Regress with a linear model over the activations and gradients of a pre-trained network (squared loss).

    Arguments and attributes are those of `GradientFeatureClassifier`, without classes; y is (n,) or (n, k).
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> GradientFeatureRegressor:
        """Fit to samples with targets.

        Args:
            X: As for `GradientFeatureClassifier.fit`.
            y: Targets, (n,) or (n, k).
            sample_weight: A weight for each sample, (n,).
        """
        self._fit(X, y, sample_weight)
        return self

    def read(self, X: Any, y: Any = None, sample_weight: Any = None) -> TrainingData:
        """Check training data, given as to `fit`; return distances of the targets to their mean.

        Raises:
            DataError: Targets that are no finite numbers.
            ConfigurationError: A loss that is not of regression.
        """
        X = read_samples(self, X, reset=True)
        targets = labels_of(X, y, self)
        if targets.dtype.kind in "mM":
            warn_user(f"y holds dates, read as numbers of {targets.dtype}")
        if targets.dtype.kind not in "fiub":
            try:
                targets = targets.astype(float)
            except (TypeError, ValueError) as error:
                raise DataError(f"y must be numbers for regression, not {targets.dtype}") from error
        targets = targets.astype(float)
        if not np.isfinite(targets).all():
            raise DataError("y contains NaN or infinite values")
        one_output = targets.ndim == 1
        if one_output:
            targets = targets[:, None]
        if self.loss not in ("auto", "squared"):
            raise ConfigurationError(f"loss={self.loss!r} does not fit regression: it is 'squared' (or 'auto')")
        check_lengths(X, targets)
        weight = read_weight(sample_weight, len(targets))
        mean, distances = centred(targets, weight)
        loss = Squared(mean=torch.from_numpy(mean))
        return TrainingData(X, distances, Targets(loss, one_output=one_output), weight, columns_of(self, X))

    def predict(self, X: Any, crops: int = 1) -> np.ndarray:
        """Return predictions, (n,) or (n, k) as y was.

        Args:
            X: Samples, in any form that `fit` takes.
            crops: Random crops of each image, whose predictions are averaged; 1 is the centre crop.
        """
        logits = self.logits(X, crops).double()
        values = self.loss_.predict_proba(logits).numpy()
        return values[:, 0] if self.fitted_.targets.one_output else values

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return R², the mean over targets; y may be left out for a Dataset of pairs."""
        self._checked()
        y = labels_of(X, y, self)
        check_lengths(X, y)
        return float(super().score(X, y, sample_weight))

    def __sklearn_tags__(self) -> Any:
        """Say that several targets are allowed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
