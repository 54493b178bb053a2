"""A fitted estimator for changed data: what is added, removed or labelled anew, read and checked; then fitted."""

from __future__ import annotations

import dataclasses
import numbers
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradfeat.data import Mirrored
from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.estimators.adopting import fitted_of
from gradfeat.estimators.fitted import Fitted, Targets
from gradfeat.estimators.labels import as_labels
from gradfeat.estimators.parameters import Parameters
from gradfeat.estimators.preparing import Prepared, TrainingData, inputs_of
from gradfeat.estimators.reading import as_targets, check_lengths, class_weights, labels_of, read_samples, read_weight
from gradfeat.estimators.recalling import Trained
from gradfeat.estimators.warn import warn_user
from gradfeat.fit import Problem
from gradfeat.fit.linear import linear_of
from gradfeat.fit.update import Update, check_update, fit_changed
from gradfeat.losses import target_mean
from gradfeat.progress import Progress
from gradfeat.samples import SampleStore

Reader = Callable[[Any, Any, Any], TrainingData]


@dataclass(frozen=True, eq=False)
class Other:
    """Another model of the same network, with its training data."""

    parameters: Parameters
    targets: Targets
    trained: Trained


@dataclass(frozen=True, eq=False)
class Changes:
    """What is to change in the training data, as a user gives it (see `GradientFeatureEstimator.update`).

    Attributes:
        add: Samples, their targets, and, where there are three, their weights; or None.
        remove: Indices of training samples, or None.
        relabel: Labels by index, or None.
        omega: "again" or "keep".
        gap: Of the solution.
        others: Models of the same network whose training samples are added.
    """

    add: Any = None
    remove: Any = None
    relabel: Any = None
    omega: str = "again"
    gap: float = 1e-4
    others: tuple[Other, ...] = ()


@dataclass(frozen=True, eq=False)
class _Kept:
    """The training samples that stay.

    Attributes:
        places: In the problem of before, (k,).
        labels: As the user wrote them.
        weight: (k,), without those of the classes, or None where all count the same.
        samples: Their indices among the changed data, (k,).
        count: How many of the data before stay, those of weight zero too.
    """

    places: np.ndarray
    labels: list[Any]
    weight: np.ndarray | None
    samples: np.ndarray
    count: int


@dataclass(frozen=True, eq=False)
class _Added:
    """Samples that are added: inputs, labels, weights; with `stores` the samples of other models in place of inputs."""

    X: Any
    labels: list[Any]
    weight: np.ndarray | None
    stores: tuple[SampleStore, ...] = ()


def updated(
    parameters: Parameters, fitted: Fitted, trained: Trained, changes: Changes, read: Reader
) -> tuple[Fitted, Trained]:
    """Return what is fitted to changed data, and the data.

    Args:
        parameters: Of the estimator.
        fitted: That of before.
        trained: Its data.
        changes: What changes.
        read: Reads targets, as of the estimator's `fit`.

    Raises:
        DataError: Samples or labels that cannot be meant, or too few that are left.
        ConfigurationError: A model that cannot be updated.
    """
    begun = time.perf_counter()
    check_update(trained.fit, changes.omega, changes.gap)
    linear = linear_of(trained.problem, trained.plan, trained.fit)
    added = _added_of(parameters, fitted, changes)
    kept = _stay(parameters, fitted, trained, changes, added)
    data = _read(fitted, kept, added, read)
    problem, samples = _problem(parameters, fitted, trained, data, kept, added)
    update = Update(changes.omega, changes.gap, _columns(fitted.targets, data.targets, trained.problem.outputs))
    problem, fit = fit_changed(problem, trained.fit, linear, update)
    for note in fit.notes:
        warn_user(note)
    problem = dataclasses.replace(problem, seconds={"update": time.perf_counter() - begun})
    prepared = Prepared(problem, fitted.network, data.targets, fitted.columns)
    new = fitted_of(parameters, prepared, fit, Progress(parameters.verbose))
    said = _said(trained, changes, added, fit.linear is not None and fit.linear.held_out is not None)
    record = dataclasses.replace(new.record, how={**new.record.how, "update": said})
    names = _class_names(fitted, data.targets)
    new = dataclasses.replace(new, settings=fitted.settings, record=record, class_names=names)
    count = kept.count + len(added.labels)
    problem.store.release()
    return new, Trained(problem, samples, count, trained.plan, fit)


# ---- what stays -----------------------------------------------------------------------------------------------------


def _stay(parameters: Parameters, fitted: Fitted, trained: Trained, changes: Changes, added: _Added) -> _Kept:
    removed = read_indices(changes.remove, trained.count)
    labels = _labels(fitted.targets, trained.problem)
    weight = _weights(parameters, fitted.targets, trained.problem)
    known = set(() if fitted.targets.classes is None else fitted.targets.classes.tolist()) | _hashable(added.labels)
    place = {int(sample): i for i, sample in enumerate(trained.samples)}
    gone = set(removed.tolist())
    for index, label in _relabelled(changes.relabel, trained.count):
        if index in gone:
            raise DataError(f"sample {index} is to be removed and to be labelled anew: say one of them")
        if index in place:
            labels[place[index]] = _label(label, fitted.targets, known)
    stays = np.ones(trained.count, dtype=bool)
    stays[removed] = False
    places = np.flatnonzero(stays[trained.samples])
    return _Kept(
        places,
        [labels[i] for i in places],
        None if weight is None else weight[places],
        (np.cumsum(stays) - 1)[trained.samples[places]],
        int(stays.sum()),
    )


def read_indices(indices: Any, n: int) -> np.ndarray:
    """Return indices of training samples, each once.

    Raises:
        DataError: They are no whole numbers, out of range, or one is there twice.
    """
    if indices is None:
        return np.empty(0, dtype=np.int64)
    array = np.atleast_1d(np.asarray(indices))
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"remove must hold indices of training samples, whole numbers from 0 to {n - 1}")
    wrong = array[(array < 0) | (array >= n)]
    if len(wrong):
        raise DataError(f"remove holds the index {wrong[0]}; the training samples are 0 to {n - 1}")
    values, counts = np.unique(array, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"remove holds the index {values[counts > 1][0]} twice")
    return array.astype(np.int64)


def _relabelled(relabel: Any, n: int) -> list[tuple[int, Any]]:
    if relabel is None:
        return []
    if not isinstance(relabel, Mapping):
        raise DataError("relabel must be a dict from the index of a training sample to its label")
    pairs = []
    for index, label in relabel.items():
        if not isinstance(index, numbers.Integral) or isinstance(index, bool) or not 0 <= int(index) < n:
            raise DataError(f"relabel holds the index {index!r}; the training samples are 0 to {n - 1}")
        pairs.append((int(index), label))
    return pairs


def _label(label: Any, targets: Targets, known: set[Any]) -> Any:
    """Return a label as Python has it: one of the known classes, where there are classes of one a sample."""
    if isinstance(label, np.ndarray | np.generic):
        label = label.tolist()
    if targets.loss.task != "multiclass":
        return label
    if not isinstance(label, str | numbers.Number) or label not in known:
        meant = did_you_mean(str(label), [str(name) for name in known])
        raise DataError(f"relabel: {label!r} is no class of the model or of the samples that are added.{meant}")
    return label


def _hashable(labels: list[Any]) -> set[Any]:
    return {label for label in labels if isinstance(label, str | numbers.Number)}


def _labels(targets: Targets, problem: Problem) -> list[Any]:
    """Return the targets of the samples as they were given."""
    y = problem.y[: problem.n].cpu()
    if targets.loss.task == "multiclass":
        return list(np.asarray(targets.classes)[y.numpy()].tolist())
    mean = target_mean(targets.loss)
    values = y.double().numpy() if mean is None else y.double().numpy() + mean.cpu().numpy()
    return list((values[:, 0] if targets.one_output else values).tolist())


def _weights(parameters: Parameters, targets: Targets, problem: Problem) -> np.ndarray | None:
    """Return the samples' own weights, without those of their classes."""
    if problem.weight is None:
        return None
    weight: np.ndarray = problem.weight[: problem.n].cpu().double().numpy()
    classes = getattr(parameters, "class_weight", None)
    if classes is None or targets.classes is None:
        return weight
    y = targets.classes[problem.y[: problem.n].cpu().numpy()]
    weight = weight / class_weights(classes, y, None)
    return np.asarray(weight / weight.max())


# ---- what is added --------------------------------------------------------------------------------------------------


def _added_of(parameters: Parameters, fitted: Fitted, changes: Changes) -> _Added:
    if not changes.others:
        return _added(parameters, fitted, changes.add)
    labels: list[Any] = []
    weights: list[np.ndarray | None] = []
    for other in changes.others:
        labels += _labels(other.targets, other.trained.problem)
        weights.append(_weights(other.parameters, other.targets, other.trained.problem))
    weight = None
    if any(one is not None for one in weights):
        counts = [other.trained.problem.n for other in changes.others]
        weight = np.concatenate([np.ones(n) if one is None else one for one, n in zip(weights, counts, strict=True)])
    return _Added(None, labels, weight, tuple(other.trained.problem.store for other in changes.others))


def _added(parameters: Parameters, fitted: Fitted, add: Any) -> _Added:
    if add is None:
        return _Added(None, [], None)
    if not isinstance(add, tuple) or len(add) not in (2, 3):
        raise DataError("add must be a pair (X, y), or (X, y, sample_weight)")
    X = read_samples(parameters, add[0], reset=False)
    y = labels_of(X, add[1], parameters)
    check_lengths(X, y)
    task = fitted.targets.loss.task
    width = 0 if task == "multiclass" or fitted.targets.one_output else len(fitted.weights.b)
    if width and y.ndim == 1 and task == "regression" and width == 1:
        y = y[:, None]
    if y.ndim == 2 and y.shape[1] == 1 and not width:
        y = y[:, 0]
    if (y.shape[1] if y.ndim == 2 else 0) != width:
        wanted = f"({width} columns)" if width else "(a vector)"
        raise DataError(f"the targets to add have the shape {y.shape}, and the model was fitted to others {wanted}")
    weight = read_weight(add[2], len(y)) if len(add) == 3 and add[2] is not None else None
    if weight is not None:
        weight = np.asarray(add[2], dtype=np.float64) * np.ones(len(y))
    return _Added(X, y.tolist(), weight)


def _read(fitted: Fitted, kept: _Kept, added: _Added, read: Reader) -> TrainingData:
    """Return the targets of the changed data, as `fit` reads them, with their weights."""
    y = as_labels([*kept.labels, *added.labels]) if kept.labels or added.labels else np.empty(0)
    if len(y) < 2:
        raise DataError(f"{len(y)} training sample(s) would be left: a model needs two at least")
    weight = None
    if kept.weight is not None or added.weight is not None:
        parts = ((kept.weight, len(kept.labels)), (added.weight, len(added.labels)))
        weight = np.concatenate([np.ones(n) if value is None else value for value, n in parts])
    # targets are read as for a fit; of the samples, which have been read, only their number counts
    data = read(np.empty((len(y), 1, 1)), y, weight)
    if data.targets.loss.task != fitted.targets.loss.task:
        raise DataError("the labels to add are of another kind than those that the model was fitted to")
    return data


def _problem(
    parameters: Parameters,
    fitted: Fitted,
    trained: Trained,
    data: TrainingData,
    kept: _Kept,
    added: _Added,
) -> tuple[Problem, np.ndarray]:
    """Return the problem of the changed data, with the probe of before, and the samples' indices among the data."""
    old, k = trained.problem, len(kept.places)
    present = np.arange(len(data)) if data.weight is None else np.flatnonzero(data.weight)
    stay, new = present[present < k], present[present >= k] - k
    own = torch.from_numpy(kept.places[stay])
    parts = [(old.store, own + view * old.n) for view in range(old.views)]
    if len(new):
        more = _store(parameters, fitted, old, added, new)
        pairs = [(more, torch.arange(len(new)) + view * len(new)) for view in range(old.views)]
        parts = [part for both in zip(parts, pairs, strict=True) for part in both]
    y = as_targets(data.y[present], old.linearization.dtype).to(old.y.device)
    weight = None if data.weight is None else torch.as_tensor(data.weight[present]).to(y.device)
    problem = dataclasses.replace(
        old,
        store=SampleStore.joined(parts),
        y=torch.cat([y] * old.views),
        weight=None if weight is None else torch.cat([weight] * old.views),
        loss=data.targets.loss,
        seconds={},
        omega_penalties={},
    )
    return problem, np.concatenate([kept.samples[stay], kept.count + new])


def _store(parameters: Parameters, fitted: Fitted, old: Problem, added: _Added, rows: np.ndarray) -> SampleStore:
    """Return the samples that are added, those of some rows, in all versions."""
    if added.stores:
        counts = [len(store) // old.views for store in added.stores]
        parts = [
            (store, torch.arange(count) + view * count)
            for view in range(old.views)
            for store, count in zip(added.stores, counts, strict=True)
        ]
        every = torch.cat([torch.from_numpy(rows) + view * sum(counts) for view in range(old.views)])
        return SampleStore.joined([(SampleStore.joined(parts), every)])
    inputs = inputs_of(added.X, fitted.network.backbone).subset(rows)
    _check_shape(inputs.example(1), fitted)
    return SampleStore(
        old.linearization,
        Mirrored(inputs) if old.views == 2 else inputs,
        cache="none" if old.store.level == "none" else "z0",
        memory=parameters.memory,
        batch_size=parameters.samples_at_a_time,
    )


def _check_shape(example: torch.Tensor, fitted: Fitted) -> None:
    given, expected = tuple(example.shape[1:]), tuple(fitted.network.example.shape[1:])
    if given != expected:
        raise DataError(f"X has samples of shape {given}; the model was fitted to samples of shape {expected}")


# ---- what is said ---------------------------------------------------------------------------------------------------


def _columns(before: Targets, now: Targets, outputs: int) -> torch.Tensor:
    """Return for each class the output that it had, or -1, (c,)."""
    if before.loss.task != "multiclass" or before.classes is None or now.classes is None:
        return torch.arange(outputs)
    place = {label: i for i, label in enumerate(before.classes.tolist())}
    return torch.tensor([place.get(label, -1) for label in now.classes.tolist()])


def _class_names(fitted: Fitted, now: Targets) -> list[str] | None:
    if fitted.class_names is None or now.classes is None or fitted.targets.classes is None:
        return None
    names = dict(zip(fitted.targets.classes.tolist(), fitted.class_names, strict=True))
    return [names.get(label, str(label)) for label in now.classes.tolist()]


def _said(trained: Trained, changes: Changes, added: _Added, early: bool) -> str:
    removed = 0 if changes.remove is None else len(read_indices(changes.remove, trained.count))
    counts = {"added": len(added.labels), "removed": removed, "relabelled": len(changes.relabel or ())}
    parts = [f"{n} {what}" for what, n in counts.items() if n] or ["nothing changed"]
    omega = "ω̄ solved again" if changes.omega == "again" else "ω̄ kept"
    penalties = "the iterations of before" if early else "penalties, metric and network of before"
    return f"{', '.join(parts)}; {omega}; {penalties}"


def check_changes(changes: Changes) -> None:
    """Refuse a call that asks for no change.

    Raises:
        ConfigurationError: It has neither `add` nor `remove` nor `relabel`.
    """
    if changes.add is None and changes.remove is None and changes.relabel is None:
        raise ConfigurationError("update needs something to add, to remove or to relabel")
