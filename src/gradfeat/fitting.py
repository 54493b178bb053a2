"""The three steps of the method (Sec. 3.1), on data whose samples are kept: linearize, probe, train.

`prepare` makes what all four models share (the programs, the kept samples, the probe ω̄); `fit_mode` trains one of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.cache import Batches, SampleStore
from gradfeat.errors import ConvergenceError
from gradfeat.linearization import Linearization
from gradfeat.losses import Loss
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.finetune import FINETUNE_GRID, Selection, select
from gradfeat.solvers.first_order import History, train
from gradfeat.solvers.probe import Probe, fit_probe
from gradfeat.solvers.schedule import Schedule

TRIAL_LENGTH = 0.25
"""Length of the runs that choose fine-tuning's learning rate, as a share of the final one."""


@dataclass(frozen=True)
class Problem:
    """A data set, a network and a loss, ready for any of the four models.

    Attributes:
        store: The samples, as the programs need them.
        y: Targets: (n,) class indices, or (n, c).
        weight: A weight for each sample, (n,), or None.
        loss: The task's loss.
        probe: ω̄ and its intercept, from the activations (step 2).
        seconds: Time that making this took, by part.
    """

    store: SampleStore
    y: Tensor
    weight: Tensor | None
    loss: Loss
    probe: Probe
    seconds: dict[str, float]

    @property
    def linearization(self) -> Linearization:
        """The network's programs."""
        return self.store.linearization


@dataclass(frozen=True)
class Fit:
    """A fitted model of one mode.

    Attributes:
        model: The model with its trained weights.
        history: Loss and time by epoch; None where nothing was trained by epochs.
        selection: For fine-tuning, the learning rates tried and their scores on held-out training data.
        seconds: Time of training this model alone, with its selection.
        notes: What the user should know.
    """

    model: GradientFeatureModel
    history: History | None
    selection: Selection | None
    seconds: float
    notes: list[str] = field(default_factory=list)


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
    batch_size: int = 64,
    random_state: int | None = None,
    progress: Progress | None = None,
) -> Problem:
    """Run the bottom once for each sample, keep what fits, and fit the probe ω̄ (step 2).

    Args:
        linearization: The network's programs.
        inputs: The samples.
        y: Targets for `loss`.
        loss: The task's loss.
        weight: Sample weights, (n,).
        penalty: The probe's penalty, or "auto": chosen by cross-validation.
        cv: Folds, a scikit-learn splitter, or pairs of indices.
        cache: What to keep of each sample (see `SampleStore`).
        batch_size: Samples at a time.
        random_state: Seed of the folds.
        progress: Shows how far it is.
    """
    progress = progress or Progress(False)
    start = time.perf_counter()
    with progress.step("activations") as done:
        store = SampleStore(linearization, inputs, cache=cache, batch_size=batch_size, progress=done)
    after_store = time.perf_counter()
    with progress.step("probe"):
        probe = fit_probe(
            store.features, y, loss, sample_weight=weight, penalty=penalty, cv=cv, random_state=random_state
        )
    seconds = {"activations": after_store - start, "probe": time.perf_counter() - after_store}
    return Problem(store, y, weight, loss, probe, seconds)


def fit_mode(
    problem: Problem,
    mode: str,
    schedule: Schedule,
    *,
    parametrization: str = "standard",
    random_state: int | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train one of the four models (step 3).

    `activation` is the probe, which has converged already. `gradient` and `full` are trained by `schedule`.
    `finetune` is trained by ordinary back-propagation through the same layers for as many epochs, with an optimizer
    and learning rate chosen by runs a quarter as long, on a fifth of the training data that they have not seen.

    Args:
        problem: From `prepare`.
        mode: "activation", "gradient", "full" or "finetune".
        schedule: The optimizer and its schedule.
        parametrization: The variables that w₂ is trained in.
        random_state: Seed of the order of samples.
        progress: Shows how far it is.
    """
    progress = progress or Progress(False)
    start = time.perf_counter()
    if mode == "activation":
        return Fit(_new_model(problem, mode, parametrization), None, None, 0.0)
    everything = torch.arange(len(problem.store))
    selection = None
    notes: list[str] = []
    if mode == "finetune":
        seen, unseen = _hold_out(problem, random_state)
        if len(unseen):
            trial = schedule.shortened(max(1, round(TRIAL_LENGTH * schedule.iterations)))
            candidates = [trial.with_optimizer(candidate) for candidate in FINETUNE_GRID]

            def run(candidate: Schedule) -> float:
                model, history = _train(
                    problem, mode, candidate, seen, parametrization, random_state, progress, f"finetune {candidate}"
                )
                if history.stopped == "interrupted":  # half a search chooses nothing
                    raise KeyboardInterrupt
                return -_loss_at(problem, model, unseen)

            selection = select(candidates, run)
            schedule = schedule.with_optimizer(selection.best)
        else:
            schedule = schedule.with_optimizer(FINETUNE_GRID[0])
            notes.append("too few samples to choose fine-tuning's learning rate on held-out data")
    model, history = _train(problem, mode, schedule, everything, parametrization, random_state, progress, mode)
    if history.stopped == "interrupted":
        notes.append(
            f"{mode}: interrupted after {len(history.loss)} epochs; the weights are those of the last finished one"
        )
    return Fit(model, history, selection, time.perf_counter() - start, notes)


def _new_model(problem: Problem, mode: str, parametrization: str) -> GradientFeatureModel:
    probe = problem.probe
    dtype = torch.float64 if problem.linearization.dtype == torch.float64 else torch.float32
    omega = probe.omega.to(problem.linearization.device, dtype)
    model = GradientFeatureModel(
        problem.linearization, omega, mode=mode, parametrization=parametrization, bias=probe.bias
    )
    return model.to(omega.device)


def _train(
    problem: Problem,
    mode: str,
    schedule: Schedule,
    indices: Tensor,
    parametrization: str,
    random_state: int | None,
    progress: Progress,
    title: str,
) -> tuple[GradientFeatureModel, History]:
    model = _new_model(problem, mode, parametrization)
    store, y, weight = problem.store, problem.y, problem.weight
    generator = torch.Generator().manual_seed(np.random.RandomState(random_state).randint(2**31 - 1))

    def step_loss(picked: Tensor) -> Tensor:
        batch = indices[picked]
        logits = batch_logits(model, store, batch)
        return problem.loss.value(logits, y[batch], None if weight is None else weight[batch])

    with progress.step(title) as done:
        epochs = schedule.n_epochs(len(indices))

        def on_epoch(epoch: int, history: History) -> None:
            done(epoch, epochs)

        history = train(model.trained(), step_loss, len(indices), schedule, generator=generator, on_epoch=on_epoch)
    return model, history


def batch_logits(model: GradientFeatureModel, store: SampleStore, batch: Tensor) -> Tensor:
    """Return the logits of some kept samples, (n, c), by the shortest way that the mode allows."""
    if model.mode == "finetune":
        return model.finetuned(store.z0(batch))
    if model.mode == "activation":
        return model.logits(store.all_features(batch), ())
    return model.logits(*store.primal(batch))


def predict_logits(
    model: GradientFeatureModel, inputs: Batches, batch_size: int, progress: Progress | None = None
) -> Tensor:
    """Return the logits of new samples, (n, c)."""
    n = len(inputs)
    rows: list[Tensor] = []
    with (progress or Progress(False)).step("predict") as done, torch.no_grad():
        for start in range(0, n, batch_size):
            indices = range(start, min(start + batch_size, n))
            rows.append(model(inputs.batch(indices)))
            done(indices.stop, n)
    logits = torch.cat(rows)
    if not bool(torch.isfinite(logits).all()):
        raise ConvergenceError("the model's outputs are not finite")
    return logits


def _hold_out(problem: Problem, random_state: int | None, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Split the training data for choosing a learning rate, by class where there are classes."""
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    n = len(problem.store)
    y = problem.y.cpu().numpy()
    held = max(1, round(share * n))
    if n < 5:
        return torch.arange(n), torch.arange(0)
    stratify = y.ndim == 1 and y.dtype.kind in "iu" and np.bincount(y).min(initial=n, where=np.bincount(y) > 0) >= 2
    if stratify and held >= len(np.unique(y)) and n - held >= len(np.unique(y)):
        splitter: Any = StratifiedShuffleSplit(1, test_size=held, random_state=random_state)
    else:
        splitter = ShuffleSplit(1, test_size=held, random_state=random_state)
    seen, unseen = next(splitter.split(np.zeros(n), y))
    return torch.from_numpy(np.sort(seen)), torch.from_numpy(np.sort(unseen))


def _loss_at(problem: Problem, model: GradientFeatureModel, indices: Tensor, batch_size: int = 256) -> float:
    """Return the mean loss of some kept samples."""
    with torch.no_grad():
        logits = torch.cat([batch_logits(model, problem.store, part) for part in indices.split(batch_size)])
        weight = None if problem.weight is None else problem.weight[indices]
        return float(problem.loss.value(logits, problem.y[indices], weight))
