"""A linear probe on the activations of all layers, with a selection among them (Head2Toe; Evci et al., ICML 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from gradfeat.backbones import resolve
from gradfeat.baselines.layer_features import PER_LAYER, LayerFeatures
from gradfeat.contexts import plain
from gradfeat.data import Inputs
from gradfeat.data.crops import Crops
from gradfeat.data.inputs import in_parts
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.reading import NotFittedError, check_lengths, indicator, is_indicator, read_classes
from gradfeat.fit.linearize import check_device
from gradfeat.fit.splits import ONE_SPLIT_FROM
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic
from gradfeat.solvers.probe import Probe, fit_probe, folds

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all features that are tried."""


class AllLayersProbe(ClassifierMixin, BaseEstimator):
    """A linear probe on the features of all layers that matter most.

    1. Every layer's output is pooled to a few features, centred, and scaled so that their mean variance over the
       training data is one in each layer.
    2. A probe on all of them scores each by the norm of its weights to all classes, ``‖W_i‖``.
    3. The features with the highest scores are kept, and the probe is fitted anew. Which share is kept is chosen by the
       loss on a held-out fifth of the training data, under scores that have not seen it.

    A probe's penalty is chosen by five folds, or by that fifth alone from a thousand samples on.

    The paper's first fit has the penalty of a group lasso, and both are trained by gradient steps; here both are
    converged probes with an L2 penalty.

    Args:
        backbone: As for `GradientFeatureClassifier`.
        features_per_layer: Most features of one layer.
        fractions: Shares of all features that are tried.
        weights: File of the backbone's weights, as there.
        preprocessing: As there.
        image_size: As there.
        batch_size: Samples at a time.
        device: "auto", "cpu", "cuda", ...
        random_state: Seed of the held-out part and of the folds.

    Attributes:
        classes_: Class labels, (c,); column numbers for several labels.
        layers_: (name, features, features kept) of each layer, from the bottom up.
        fraction_: The share that is kept.
        path_: (share, held-out loss) of each share tried; empty where there are too few samples to hold some out.
        probe_: The probe on what is kept.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
        >>> y = np.abs(X[:, 0]) > 0.7  # the first layer has |x|; the output has nothing of it
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Sequential(nn.Linear(2, 32), nn.ReLU()), nn.Linear(32, 1))
        >>> bool(AllLayersProbe(network, random_state=0).fit(X, y).score(X, y) > 0.9)
        True
    """

    def __init__(
        self,
        backbone: Any,
        *,
        features_per_layer: int = PER_LAYER,
        fractions: Sequence[float] = FRACTIONS,
        weights: Any = None,
        preprocessing: Any = None,
        image_size: int | None = None,
        batch_size: int = 64,
        device: str = "auto",
        random_state: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.features_per_layer = features_per_layer
        self.fractions = fractions
        self.weights = weights
        self.preprocessing = preprocessing
        self.image_size = image_size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    @plain()
    def fit(self, X: Any, y: Any) -> AllLayersProbe:
        """Choose features and fit the probe.

        Args:
            X: Samples, as for `GradientFeatureClassifier`.
            y: Class labels, (n,); or an indicator (n, c) of several labels, 0, 1, or NaN for one that does not count.

        Raises:
            DataError: Labels of one class only, or samples that cannot be read.
            ConfigurationError: An argument that cannot be meant.
        """
        fractions = sorted(self.fractions)
        if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
            raise ConfigurationError(f"fractions must be some numbers above 0 and up to 1, not {self.fractions}")
        check_device(self.device)
        self.backbone_ = resolve(
            self.backbone,
            weights=self.weights,
            preprocessing=self.preprocessing,
            image_size=self.image_size,
            X_shape=np.shape(X) if hasattr(X, "shape") else None,
            random_state=self.random_state,
        ).kept()
        self._loss, self.classes_, labels = _read_labels(y)
        check_lengths(X, labels)
        if len(self.classes_) < 2:
            raise DataError(f"y has one class only ({self.classes_[0]}): a classifier needs at least two classes")
        self._layers = LayerFeatures(self.backbone_.network, self.backbone_.features, most=int(self.features_per_layer))
        f = self._features(X)
        sizes = torch.tensor(self._layers.sizes, device=f.device)
        groups = torch.repeat_interleave(torch.arange(len(sizes), device=f.device), sizes)
        self._mean, self._scale = f.mean(0), _layer_scales(f, groups)
        f = (f - self._mean) * self._scale
        targets = torch.from_numpy(labels).to(f.device)
        splits, _ = folds(targets, self._loss, 5, self.random_state)
        many = len(targets) >= ONE_SPLIT_FROM
        cv = splits[:1] if many and splits else 5
        scored = self._fit_probe(f, targets, cv=cv)
        self.path_ = []
        if splits and len(fractions) > 1:
            train, _ = split = splits[0]
            of_train = self._fit_probe(f[train], targets[train], penalty=scored.penalty if many else "auto")
            features = {fraction: best_features(of_train, fraction) for fraction in fractions}
            self.path_ = self._validation_losses(f, targets, features, split, scored if many else None)
        self.fraction_ = min(self.path_, key=lambda tried: tried[1])[0] if self.path_ else fractions[-1]
        best = best_features(scored, self.fraction_)
        probe = scored if len(best) == f.shape[1] else self._fit_probe(f[:, best], targets, cv=cv)
        counts = torch.bincount(groups[best], minlength=len(self._layers.sizes)).tolist()
        # what predicts is on the CPU, wherever it was fitted
        self._mean, self._scale, self._kept = self._mean.cpu(), self._scale.cpu(), best.cpu()
        self.probe_ = replace(probe, omega=probe.omega.cpu(), bias=probe.bias.cpu())
        self.layers_ = list(zip(self._layers.layers, self._layers.sizes, counts, strict=True))
        return self

    def _validation_losses(
        self,
        f: Tensor,
        y: Tensor,
        features: Mapping[float, Tensor],
        split: tuple[np.ndarray, np.ndarray],
        whole: Probe | None,
    ) -> list[tuple[float, float]]:
        """Return (share, validation loss) of the features of each share.

        Args:
            f: All features, (n, D).
            y: Targets, (n,) or (n, c).
            features: Indices of the best ones on the training part, by their share.
            split: Indices of the training and the validation part.
            whole: The probe on all features, where its path on this split is known already.
        """
        path = []
        for fraction, indices in features.items():
            known = whole if len(indices) == f.shape[1] else None
            probe = known or self._fit_probe(f[:, indices], y, cv=[split])
            path.append((fraction, min(loss for _, loss, _ in probe.path)))
        return path

    def _fit_probe(self, f: Tensor, y: Tensor, *, penalty: float | str = "auto", cv: Any = 5) -> Probe:
        outputs = len(self.classes_)
        return fit_probe(f, y, self._loss, penalty=penalty, cv=cv, random_state=self.random_state, outputs=outputs)

    def _features(self, X: Any) -> Tensor:
        """Return the features of all layers of all samples, (n, D), where they are computed."""
        inputs = X if isinstance(X, (Inputs, Crops)) else Inputs(X, self.backbone_.preprocessing)
        network = self.backbone_.network
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        dtype = next((p.dtype for p in network.parameters() if p.dtype.is_floating_point), torch.float32)
        target = device if self.device == "auto" else torch.device(self.device)
        network.to(target)
        rows = []
        try:
            for part in in_parts(len(inputs), self.batch_size):
                x = inputs.batch(part).to(target)
                rows.append(self._layers(x.to(dtype) if x.is_floating_point() else x))
        finally:
            network.to(device)
        return torch.cat(rows)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits, (n, c); for two classes the difference of the two, (n,)."""
        logits = self._logits(X)
        two = logits.shape[1] == 2 and self._loss.task == "multiclass"
        return logits[:, 1] - logits[:, 0] if two else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class or label, (n, c)."""
        logits = torch.from_numpy(self._logits(X))
        return self._loss.predict_proba(logits).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each sample, (n,); of several labels the probable ones, (n, c)."""
        logits = self._logits(X)
        if self._loss.task == "multilabel":
            return (logits > 0).astype(int)
        return self.classes_[logits.argmax(1)]

    @plain()
    def _logits(self, X: Any) -> np.ndarray:
        if not hasattr(self, "probe_"):
            raise NotFittedError("This AllLayersProbe instance is not fitted yet: call fit first.")
        self.backbone_.check_unchanged()
        f = (self._features(X).cpu()[:, self._kept] - self._mean[self._kept]) * self._scale[self._kept]
        return (f.to(self.probe_.omega) @ self.probe_.omega + self.probe_.bias).double().numpy()


def _read_labels(y: Any) -> tuple[Loss, np.ndarray, np.ndarray]:
    """Return the loss of labels, their classes (c,), and what the loss takes: indices (n,), or an indicator (n, c)."""
    if is_indicator(np.asarray(y)):
        several = indicator(np.asarray(y))
        return MultiLabelLogistic(), np.arange(several.shape[-1]), several
    classes, indices = np.unique(read_classes(y), return_inverse=True)
    return CrossEntropy(), classes, indices.astype(np.int64)


def best_features(probe: Probe, fraction: float) -> Tensor:
    """Return the features with the largest weights, ``‖W_i‖`` over all classes, ascending; at least one."""
    scores = probe.omega.norm(dim=1)
    count = max(1, math.floor(fraction * len(scores)))
    return scores.topk(count).indices.sort().values


def _layer_scales(f: Tensor, groups: Tensor) -> Tensor:
    """Return what makes the mean variance of each layer's features one, (D,); one for a layer that is constant."""
    variances = f.double().var(0, correction=0)
    totals = variances.new_zeros(int(groups.max()) + 1).index_add_(0, groups, variances)
    mean = totals / torch.bincount(groups)
    # of a constant layer rounding is left, which must not be made a feature
    constant = mean <= 1e-12 * torch.zeros_like(totals).index_add_(0, groups, f.double().square().mean(0))
    return torch.where(constant, 1.0, mean.clamp_min(torch.finfo(torch.float64).tiny)).rsqrt()[groups].to(f)
