"""The task's own loss: softmax cross-entropy, independent logistic losses, or squared error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from gradfeat.errors import ConfigurationError, did_you_mean


class Loss(ABC):
    """A loss of logits and targets, convex in the logits.

    A subclass says the loss of each sample (`per_sample`), how it rises (`slope`) and bends (`curvature_parts`), and
    what the logits mean (`predict_proba`). Logits are (n, k); those methods also take several logits of the same
    samples at once, (n, k, m), and return as many results, (n, m) or (n, k, m).
    """

    name: ClassVar[str]
    task: ClassVar[str]

    @abstractmethod
    def per_sample(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each sample, (n,)."""

    @abstractmethod
    def slope(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the derivative of each sample's loss in its logits, (n, k)."""

    @abstractmethod
    def curvature(self, logits: Tensor) -> Tensor:
        """Return the second derivative of each sample's loss in each of its logits, (n, k), with all labels known."""

    @abstractmethod
    def curvature_parts(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return d and r of each sample's Hessian in its logits, ``Λᵢ = diag(d) - r rᵀ``, (n, k); r may be None, 0."""

    def derivatives(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return `per_sample` and `slope`."""
        return self.per_sample(logits, y), self.slope(logits, y)

    def curvature_product(self, logits: Tensor, y: Tensor, directions: Tensor) -> Tensor:
        """Return Λᵢ v for each sample's Hessian Λᵢ in its logits: `directions` is (n, k, m), or (n, k)."""
        diagonal, root = self.curvature_parts(logits, y)
        product = _like(diagonal, directions) * directions
        if root is None:
            return product
        root = _like(root, directions)
        return product - root * (root * directions).sum(1, keepdim=True)

    def curvature_sum(self, logits: Tensor, y: Tensor, share: Tensor) -> Tensor:
        """Return ``Σᵢ shareᵢ Λᵢ``, (k, k); `share` is (n,)."""
        diagonal, root = self.curvature_parts(logits, y)
        total = (share @ diagonal).diag()
        return total if root is None else total - (share[:, None] * root).T @ root

    @abstractmethod
    def curvature_root(self, logits: Tensor, y: Tensor, signs: Tensor) -> Tensor:
        """Return Rᵢ ε with ``Rᵢ Rᵢᵀ = Λᵢ``, (n, k); `signs` holds ε."""

    @abstractmethod
    def predict_proba(self, logits: Tensor) -> Tensor:
        """Return what the logits (n, k) predict: probabilities, or values."""

    @abstractmethod
    def n_outputs(self, y: Tensor) -> int:
        """Return k, the number of logits that targets y call for."""

    def value(self, logits: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean loss, ``Σ wᵢ lᵢ / Σ wᵢ``, or the means of several logits, (m,).

        Args:
            logits: (n, k), or (n, k, m).
            y: Targets, (n,) or (n, k).
            weight: A weight for each sample, (n,); all one if None.
        """
        losses = self.per_sample(logits, y)
        if weight is None:
            return losses.mean(0)
        weight = weight.to(losses.dtype)
        return weight @ losses / weight.sum().clamp_min(torch.finfo(losses.dtype).tiny)


@final
class CrossEntropy(Loss):
    """Softmax cross-entropy, ``-log softmax(logits)[y]``; y holds class indices, (n,).

    Example:
        >>> CrossEntropy().value(torch.zeros(3, 4), torch.tensor([0, 1, 2])).exp().round(decimals=4)
        tensor(4.)
    """

    name = "cross_entropy"
    task = "multiclass"

    def per_sample(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return ``-log p(yᵢ)``."""
        return F.cross_entropy(logits, y if logits.ndim == 2 else y[:, None].expand_as(logits[:, 0]), reduction="none")

    def slope(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return ``p - onehot(yᵢ)``."""
        index = _index(y, logits)
        return logits.softmax(1).scatter_add(1, index, logits.new_full(index.shape, -1.0))

    def derivatives(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return `per_sample` and `slope`, from one logarithm of the softmax; not to be differentiated further."""
        log_p, index = logits.log_softmax(1), _index(y, logits)
        losses = -log_p.gather(1, index).squeeze(1)
        return losses, log_p.exp_().scatter_add_(1, index, logits.new_full(index.shape, -1.0))

    def curvature(self, logits: Tensor) -> Tensor:
        """Return ``p (1 - p)``."""
        p = logits.softmax(1)
        return p * (1 - p)

    def curvature_parts(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return p and p."""
        p = logits.softmax(1)
        return p, p

    def curvature_root(self, logits: Tensor, y: Tensor, signs: Tensor) -> Tensor:
        """Return ``√p ∘ ε - p (√pᵀ ε)``."""
        p = logits.softmax(1)
        moved = p.sqrt() * signs
        return moved - p * moved.sum(1, keepdim=True)

    def predict_proba(self, logits: Tensor) -> Tensor:
        """Return class probabilities."""
        return logits.softmax(1)

    def n_outputs(self, y: Tensor) -> int:
        """One logit for each class."""
        return int(y.max()) + 1


@final
class MultiLabelLogistic(Loss):
    """Independent logistic losses, the mean over a sample's labels; y is (n, k), 0, 1, or NaN for a label to ignore.

    Ignored labels add nothing; the mean is over k all the same, so that every label that counts weighs the same.

    Example:
        >>> y = torch.tensor([[1.0, float("nan")]])
        >>> (2 * MultiLabelLogistic().value(torch.zeros(1, 2), y)).exp().round(decimals=4)
        tensor(2.)
    """

    name = "logistic"
    task = "multilabel"

    def per_sample(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean over labels of ``log(1 + exp(∓ logit))``."""
        y = _like(y, logits)
        known = ~torch.isnan(y)
        wanted = torch.where(known, y, 0.0).to(logits.dtype).expand_as(logits)
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (losses * known).mean(1)

    def slope(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return ``(p - y) / k``, zero for labels that are ignored."""
        y = _like(y, logits)
        return torch.where(torch.isnan(y), 0.0, logits.sigmoid() - y.to(logits.dtype)) / logits.shape[1]

    def curvature(self, logits: Tensor) -> Tensor:
        """Return ``p (1 - p) / k``."""
        p = logits.sigmoid()
        return p * (1 - p) / logits.shape[1]

    def curvature_parts(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``p (1 - p) / k``, zero for labels that are ignored."""
        return self.curvature(logits) * ~torch.isnan(_like(y, logits)), None

    def curvature_root(self, logits: Tensor, y: Tensor, signs: Tensor) -> Tensor:
        """Return ``√(p (1 - p) / k) ∘ ε``, zero for labels that are ignored."""
        return (self.curvature(logits) * ~torch.isnan(y)).sqrt() * signs

    def predict_proba(self, logits: Tensor) -> Tensor:
        """Return the probability of each label."""
        return logits.sigmoid()

    def n_outputs(self, y: Tensor) -> int:
        """One logit for each label."""
        return y.shape[1]


class Quadratic(Loss):
    """Half the squared distance of the logits to a target: its Hessian in the logits is the identity."""

    @abstractmethod
    def targets(self, y: Tensor, outputs: int) -> Tensor:
        """Return where the logits are pulled to, (n, outputs)."""

    def per_sample(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return half the squared distance to the target."""
        return 0.5 * self.slope(logits, y).square().sum(1)

    def slope(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the distance to the target."""
        return logits - _like(self.targets(y, logits.shape[1]).to(logits.dtype), logits)

    def curvature(self, logits: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(logits)

    def curvature_parts(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return one."""
        return self.curvature(logits), None

    def curvature_root(self, logits: Tensor, y: Tensor, signs: Tensor) -> Tensor:
        """Return ε."""
        return signs


@final
class Squared(Quadratic):
    """Squared error, ``½ Σ_k (logit_k - y_k)²``; y is (n, k).

    Values may be far from zero beside their spread, which single precision would round away. So a regression's targets
    are taken as distances from their mean, and its logits are such distances; `predict_proba` adds the mean.

    Args:
        mean: The mean that was subtracted from the targets, (k,), in double precision; None where none was.

    Example:
        >>> Squared().value(torch.zeros(2, 1), torch.tensor([[2.0], [0.0]]))
        tensor(1.)
        >>> Squared(mean=torch.tensor([1e8], dtype=torch.float64)).predict_proba(torch.tensor([[0.5]])).item()
        100000000.5
    """

    name = "squared"
    task = "regression"

    def __init__(self, mean: Tensor | None = None) -> None:
        self.mean = mean

    def targets(self, y: Tensor, outputs: int) -> Tensor:
        """Return y."""
        return y

    def predict_proba(self, logits: Tensor) -> Tensor:
        """Return the values themselves: with a mean in double precision."""
        return logits if self.mean is None else logits.double() + self.mean.to(logits.device)

    def n_outputs(self, y: Tensor) -> int:
        """One output for each target."""
        return y.shape[1]


@final
class OneHotSquared(Quadratic):
    """Squared error to rescaled one-hot targets, ``½ Σ_k (logit_k - κ [k = y])²``, with κ = 15; y holds class indices.

    The loss of LQF (Achille, Golatkar, Ravichandran, Polito & Soatto, CVPR 2021): quadratic, and the size of κ makes
    the logits tell classes apart as those of a cross-entropy do.

    Example:
        >>> OneHotSquared().value(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(112.5000)
    """

    name = "one_hot_squared"
    task = "multiclass"
    scale: ClassVar[float] = 15.0

    def targets(self, y: Tensor, outputs: int) -> Tensor:
        """Return κ for a sample's own class, zero for the others."""
        return self.scale * F.one_hot(y, outputs)

    def predict_proba(self, logits: Tensor) -> Tensor:
        """Return class probabilities, by a softmax."""
        return logits.softmax(1)

    def n_outputs(self, y: Tensor) -> int:
        """One logit for each class."""
        return int(y.max()) + 1


def _like(value: Tensor, others: Tensor) -> Tensor:
    """Return (n, k) values so that they stand beside others, (n, k) or (n, k, m)."""
    return value if others.ndim == value.ndim else value[:, :, None]


def _index(y: Tensor, logits: Tensor) -> Tensor:
    """Return class indices, (n,), as an index into logits, (n, 1) or (n, 1, m)."""
    return y[:, None] if logits.ndim == 2 else y[:, None, None].expand_as(logits[:, :1])


LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (CrossEntropy, MultiLabelLogistic, Squared, OneHotSquared)}
_OF_TASK: dict[str, type[Loss]] = {loss.task: loss for loss in (CrossEntropy, MultiLabelLogistic, Squared)}


def target_mean(loss: Loss) -> Tensor | None:
    """Return what was subtracted from a regression's targets, (k,), in double precision; None where nothing was."""
    return loss.mean if isinstance(loss, Squared) else None


def loss_for(name: str, task: str) -> Loss:
    """Return the loss called `name`; "auto" is the one of `task`.

    Raises:
        ConfigurationError: The loss is unknown, or is not one of the task.
    """
    if task not in _OF_TASK:
        raise ConfigurationError(f"task must be one of {', '.join(_OF_TASK)}, not {task!r}")
    chosen = _OF_TASK[task] if name == "auto" else LOSSES.get(name)
    if chosen is None:
        raise ConfigurationError(
            f"loss must be 'auto' or one of {', '.join(LOSSES)}, not {name!r}.{did_you_mean(name, LOSSES)}"
        )
    if chosen.task != task:
        raise ConfigurationError(f"loss={name!r} is for {chosen.task} targets; these are {task}")
    return chosen()
