"""A linear probe on the activations of all layers, with a selection among them (Head2Toe; Evci et al., ICML 2022)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn

from gradfeat.backbones import resolve
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.fitting import check_device
from gradfeat.linearization.capture import FeatureExtractor, Features
from gradfeat.losses import CrossEntropy
from gradfeat.solvers.probe import Probe, fit_probe, folds
from gradfeat.validation import NotFittedError, check_lengths, read_classes

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all features that are tried."""

PER_LAYER = 512
"""Most features of one layer."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def pooled(value: Tensor, axis: int, most: int) -> Tensor:
    """Return a layer's output as at most `most` features of each sample, (n, m).

    Places are averaged on the finest square grid (cube, row) that leaves so few; where the channels alone are more,
    neighbouring channels are averaged too.

    Args:
        value: (n, ...), of 2 to 5 axes.
        axis: Where the channels are.
        most: m at most.

    Example:
        >>> pooled(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), 1, 2)  # one channel, four places
        tensor([[2., 6.]])
    """
    value = value.movedim(axis, 1)
    places = value.shape[2:]
    if places:
        side = max(1, int((most / value.shape[1]) ** (1 / len(places)) + 1e-9))
        value = _POOLS[len(places)](value, [min(side, size) for size in places])
    flat = value.flatten(1)
    return flat if flat.shape[1] <= most else F.adaptive_avg_pool1d(flat[:, None], most)[:, 0]


class LayerFeatures:
    """All layers of a network as features: its convolutions, its linear layers, its blocks, and f(x).

    A block is any module with modules of its own; where it only hands on what its last module returned it is not
    counted again. The channels of a block's output are the axis that is as long as its last layer has channels.

    Args:
        network: The network; used in evaluation mode, and not changed.
        features: What f(x) is, as of `gradfeat.linearize`.
        most: Features of one layer at most.

    Attributes:
        layers: Names of the layers, in the order of evaluation, after the first batch; f(x) comes last, unless the
            last layer's features are f(x).
        sizes: How many features each has.
    """

    def __init__(self, network: nn.Module, features: Features = None, *, most: int = PER_LAYER) -> None:
        if most < 1:
            raise ConfigurationError(f"features_per_layer must be a whole number from 1, not {most}")
        self.network = FeatureExtractor(network, features)
        self.most = most
        self.layers: list[str] = []
        self.sizes: list[int] = []
        self._repeated: bool | None = None  # whether f(x) is the last layer once more

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features of a batch, (n, D).

        Raises:
            DataError: The layers are others than those of the batch before.
        """
        found: dict[str, Tensor] = {}
        calls: Counter[str] = Counter()
        last: list[tuple[Tensor, int, int, int]] = []  # the last output, its version, axis of channels, and channels

        def note(name: str, module: nn.Module, output: Any) -> None:
            if not isinstance(output, Tensor) or not 2 <= output.ndim <= 5 or len(output) != len(x):
                return
            if last and output is last[0][0] and output._version == last[0][1]:
                return
            axis, channels = 1, 0
            if isinstance(module, _CONVOLUTIONS):
                channels = module.out_channels
            elif isinstance(module, nn.Linear):
                axis, channels = output.ndim - 1, module.out_features
            elif last:
                _, _, axis, channels = last[0]
                ends = (axis, 1, output.ndim - 1)
                axis = next((end for end in ends if end < output.ndim and output.shape[end] == channels), 1)
            last[:] = [(output, output._version, axis, channels)]
            calls[name] += 1
            found[name if calls[name] == 1 else f"{name} ({calls[name]})"] = pooled(
                output.detach(), axis, self.most
            )  # now: an activation may overwrite it

        handles = [
            module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
            for name, module in self.network.network.named_modules()
            if name and (isinstance(module, (*_CONVOLUTIONS, nn.Linear)) or any(True for _ in module.children()))
        ]
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.no_grad():
                f = self.network((x,), {})
        finally:
            for handle in handles:
                handle.remove()
            for module, training in modes:
                module.training = training
        f_pooled = pooled(f, 1, self.most)
        if self._repeated is None:
            top = next(reversed(found.values()), None)
            self._repeated = top is not None and top.shape == f_pooled.shape and torch.allclose(top, f_pooled)
        if not self._repeated:
            found["f(x)"] = f_pooled
        names, sizes = list(found), [value.shape[1] for value in found.values()]
        if self.layers and (names, sizes) != (self.layers, self.sizes):
            raise DataError("the network runs other layers, or layers of another size, than for the batch before")
        self.layers, self.sizes = names, sizes
        return torch.cat([value.to(f) for value in found.values()], dim=1)


class AllLayersProbe(ClassifierMixin, BaseEstimator):
    """A linear probe on the features of all layers that matter most.

    1. Every layer's output is pooled to a few features, centred, and scaled so that their mean variance over the
       training data is one in each layer.
    2. A probe on all of them scores each by the norm of its weights to all classes, ``‖W_i‖``, as a group lasso would.
    3. The features with the highest scores are kept, and the probe is fitted anew. Which share is kept is chosen by the
       loss on a held-out fifth of the training data, under scores that have not seen it.

    The paper scores by a regularized fit too; its learning rate and steps are replaced by the converged probe.

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
        classes_: Class labels, (c,).
        layers_: (name, features, features kept) of each layer, from the bottom up.
        fraction_: The share that is kept.
        path_: (share, held-out loss) of each share tried; empty where there are too few samples to hold some out.
        probe_: The probe on what is kept.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
        >>> y = np.abs(X[:, 0]) > 0.7  # the first layer has |x|; the output has nothing of it
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

    def fit(self, X: Any, y: Any) -> AllLayersProbe:
        """Choose features and fit the probe.

        Args:
            X: Samples, as for `GradientFeatureClassifier`.
            y: Class labels, (n,).

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
        )
        y = read_classes(y)
        check_lengths(X, y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"y has one class only ({self.classes_[0]}): a classifier needs at least two classes")
        self._layers = LayerFeatures(self.backbone_.network, self.backbone_.features, most=int(self.features_per_layer))
        f = self._features(X)
        groups = torch.repeat_interleave(torch.arange(len(self._layers.sizes)), torch.tensor(self._layers.sizes))
        self._mean, self._scale = f.mean(0), _layer_scales(f, groups)
        f = (f - self._mean) * self._scale
        targets = torch.from_numpy(indices.astype(np.int64))
        self.path_ = self._try_fractions(f, targets, fractions)
        self.fraction_ = min(self.path_, key=lambda tried: tried[1])[0] if self.path_ else fractions[-1]
        self._kept = best_features(self._fit_probe(f, targets), self.fraction_)
        self.probe_ = self._fit_probe(f[:, self._kept], targets)
        kept = torch.bincount(groups[self._kept], minlength=len(self._layers.sizes)).tolist()
        self.layers_ = list(zip(self._layers.layers, self._layers.sizes, kept, strict=True))
        return self

    def _try_fractions(self, f: Tensor, y: Tensor, fractions: Sequence[float]) -> list[tuple[float, float]]:
        """Return (share, held-out loss), the scores and the probe being those of the rest."""
        splits, _ = folds(y, CrossEntropy(), 5, self.random_state)
        if not splits or len(fractions) == 1:
            return []
        seen, held = splits[0]
        scored = self._fit_probe(f[seen], y[seen])
        path = []
        for fraction in fractions:
            kept = best_features(scored, fraction)
            probe = self._fit_probe(f[:, kept], y, cv=[(seen, held)])
            path.append((fraction, min(loss for _, loss, _ in probe.path)))
        return path

    def _fit_probe(self, f: Tensor, y: Tensor, cv: Any = 5) -> Probe:
        return fit_probe(f, y, CrossEntropy(), cv=cv, random_state=self.random_state, outputs=len(self.classes_))

    def _features(self, X: Any) -> Tensor:
        """Return the features of all layers of all samples, (n, D), on the CPU."""
        inputs = X if isinstance(X, Inputs) else Inputs(X, self.backbone_.preprocessing)
        network = self.backbone_.network
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        dtype = next((p.dtype for p in network.parameters() if p.dtype.is_floating_point), torch.float32)
        target = device if self.device == "auto" else torch.device(self.device)
        network.to(target)
        rows = []
        try:
            for start in range(0, len(inputs), self.batch_size):
                x = inputs.batch(range(start, min(start + self.batch_size, len(inputs)))).to(target)
                rows.append(self._layers(x.to(dtype) if x.is_floating_point() else x).cpu())
        finally:
            network.to(device)
        return torch.cat(rows)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits, (n, c); for two classes the difference of the two, (n,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, (n, c)."""
        return torch.from_numpy(self._logits(X)).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each sample, (n,)."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(1)]

    def _logits(self, X: Any) -> np.ndarray:
        if not hasattr(self, "probe_"):
            raise NotFittedError("This AllLayersProbe instance is not fitted yet: call fit first.")
        f = ((self._features(X) - self._mean) * self._scale)[:, self._kept]
        return (f @ self.probe_.omega + self.probe_.bias).double().numpy()


def best_features(probe: Probe, fraction: float) -> Tensor:
    """Return the features with the largest weights, ``‖W_i‖`` over all classes, ascending; at least one."""
    scores = probe.omega.norm(dim=1)
    count = max(1, math.floor(fraction * len(scores)))
    return scores.topk(count).indices.sort().values


def _layer_scales(f: Tensor, groups: Tensor) -> Tensor:
    """Return what makes the mean variance of each layer's features one, (D,); one for a layer that is constant."""
    variances = f.double().var(0, correction=0)
    totals = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, variances)
    mean = totals / torch.bincount(groups)
    # of a constant layer rounding is left, which must not be made a feature
    constant = mean <= 1e-12 * torch.zeros_like(totals).index_add_(0, groups, f.double().square().mean(0))
    return torch.where(constant, 1.0, mean.clamp_min(torch.finfo(torch.float64).tiny)).rsqrt()[groups].to(f)
