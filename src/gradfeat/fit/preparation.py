"""Step 2 of the method: what all four models share, the kept samples and the probe ω̄."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.errors import DataError
from gradfeat.fit.checkpoint import Checkpoint, Part, resumed
from gradfeat.fit.problem import Problem
from gradfeat.linearization import Linearization
from gradfeat.losses import Loss
from gradfeat.progress import Progress, Step
from gradfeat.samples import Batches, SampleStore
from gradfeat.solvers.probe import Folds, Probe, fit_probe, folds


@plain()
def prepare(
    linearization: Linearization,
    inputs: Batches,
    y: Tensor,
    loss: Loss,
    *,
    weight: Tensor | None = None,
    penalty: float | str = "auto",
    cv: Any = 5,
    cache: str = "auto",
    memory: float | str = "auto",
    batch_size: int = 64,
    views: int = 1,
    random_state: int | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    probe: Probe | None = None,
) -> Problem:
    """Run the bottom once for each sample, keep what fits, and fit the probe ω̄ (step 2).

    Args:
        linearization: The network's programs.
        inputs: The samples; with several views all first versions, then all second ones.
        y: Targets for `loss`, one for each sample.
        loss: The task's loss.
        weight: Sample weights, (n,).
        penalty: The probe's penalty, or "auto": chosen by cross-validation.
        cv: Folds, a scikit-learn splitter, or pairs of indices.
        cache: What to keep of each sample (see `SampleStore`).
        memory: A bound on what is kept and what a pass needs at a time (see `SampleStore`).
        batch_size: Samples at a time.
        views: Versions of each sample.
        random_state: Seed of the folds.
        progress: Shows how far it is.
        checkpoint: Where finished parts are kept.
        probe: The probe of these samples, where it is known from another θ₂ of the same network.

    Returns:
        The problem that `gradfeat.fit.solve` takes.

    Raises:
        ConfigurationError: The checkpoint is of other data; a penalty or folds that cannot be meant.
        DataError: Targets or weights of another number than the samples.
    """
    _check_lengths(inputs, y, weight, views)
    n, progress = len(y), progress or Progress(False)
    start = time.perf_counter()
    with progress.step("activations") as done:
        store = SampleStore(linearization, inputs, cache=cache, memory=memory, batch_size=batch_size, progress=done)
    progress.note(f"kept: {store.kept}")
    if checkpoint is not None:
        checkpoint = checkpoint.of(
            linearization.theta2, {"activations": store.features, "targets": y, "sample weights": weight}
        )
    after_store = time.perf_counter()
    rows = len(store)  # what the probe is fitted to
    if views > 1 and isinstance(penalty, str):
        pairs = folds(y.cpu(), loss, cv, random_state)[0]
        cv = _of_all_views(pairs, n, views) or cv
        if not pairs:  # too few samples for folds; versions of one sample would not be held out from each other
            rows = n
    y = torch.cat([y] * views)
    weight = None if weight is None else torch.cat([weight] * views)

    def compute(report: Step) -> Probe:
        f, some = store.features[:rows], None if weight is None else weight[:rows]
        return fit_probe(
            f, y[:rows], loss, sample_weight=some, penalty=penalty, cv=cv, random_state=random_state, report=report
        )

    def unpack(part: Part) -> Probe:
        return _unpack_probe(part, store.features)

    with progress.step("probe") as done:
        fitted = resumed(checkpoint, "probe", lambda: probe or compute(done), _pack_probe, unpack)
    seconds = {"activations": after_store - start, "probe": time.perf_counter() - after_store}
    return Problem(store, y, weight, loss, fitted, seconds, views, checkpoint)


def _check_lengths(inputs: Batches, y: Tensor, weight: Tensor | None, views: int) -> None:
    n = len(y)
    if n * views != len(inputs) or (weight is not None and len(weight) != n):
        weights = "" if weight is None else f" and {len(weight)} weights"
        raise DataError(f"{len(inputs)} inputs, {views} of each sample, do not fit {n} targets{weights}")


def _of_all_views(pairs: Folds, n: int, views: int) -> Folds:
    """Return folds that fit to all versions of a sample, and judge by the first ones."""
    return [(np.concatenate([train + view * n for view in range(views)]), validation) for train, validation in pairs]


def _pack_probe(probe: Probe) -> Part:
    values = {name: value for name, value in vars(probe).items() if not isinstance(value, Tensor)}
    return Part(values, {"omega": probe.omega, "bias": probe.bias})


def _unpack_probe(part: Part, f: Tensor) -> Probe:
    omega, bias = (part.tensors[name].to(f.device) for name in ("omega", "bias"))
    return Probe(omega, bias, **{**part.values, "path": [tuple(tried) for tried in part.values["path"]]})
