"""The parameters of the estimators: what each may be, and what they say together."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.fit import Plan
from gradfeat.fit.linearize import PRECISIONS, check_device
from gradfeat.fit.penalties import given_penalties
from gradfeat.fit.plan import RATES
from gradfeat.linearization import PARAMETRIZATIONS
from gradfeat.model import MODES, OTHER_NAMES
from gradfeat.samples.memory import LEVELS, bytes_of
from gradfeat.solvers.finetune import BATCH, EPOCHS, honest_search
from gradfeat.solvers.schedule import SOLVERS as OPTIMIZERS
from gradfeat.solvers.schedule import paper_schedule

EFFORTS = ("low", "auto", "high")
WIDE_RATES = (3e-4, *RATES, 1e-2)
"""Learning rates of rounds that effort="high" tries."""

_PRECISIONS = {
    **dict.fromkeys(("fp32", "f32", "single", "float", "32"), "float32"),
    **dict.fromkeys(("bf16", "fp16", "half", "float16", "16"), "bfloat16"),
    **dict.fromkeys(("fp64", "f64", "double", "64"), "float64"),
}  # what others call them


class Parameters(BaseEstimator):
    """Parameters of an estimator, as `GradientFeatureClassifier` says them: set when it is made, checked in `fit`."""

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
        checkpoint: str | Path | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.backbone = backbone
        self.theta2 = theta2
        self.effort = effort
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
        self.memory = memory
        self.weights = weights
        self.preprocessing = preprocessing
        self.image_size = image_size
        self.checkpoint = checkpoint
        self.random_state = random_state
        self.verbose = verbose

    def plan(self, n: int, mode: str | None = None, seed: int | None = None) -> Plan:
        """Return how a model is fitted to n samples.

        Args:
            n: Number of samples.
            mode: Of the model, by default the estimator's.
            seed: Of what is drawn, by default none (see `draw_seed`).
        """
        mode = self.mode if mode is None else mode
        optimizer = self.solver if self.solver in OPTIMIZERS else "adam"
        return Plan(
            mode=mode,
            solver=self.solver,
            penalties=None if isinstance(self.penalty, str) else given_penalties(self.penalty),
            rounds=1 if self.rounds is None or mode != "full" else self.rounds,
            rates=WIDE_RATES if self.effort == "high" else RATES,
            rival=self.effort == "high",
            parametrization=self.parametrization,
            metric=self.metric,
            schedule=paper_schedule(
                optimizer, n, batch_size=self.samples_at_a_time, epochs=self.epochs, clip_norm=self.clip_norm
            ),
            finetuning=honest_search(
                epochs=self.epochs or EPOCHS,
                batch_size=self.batch_size or BATCH,
                fixed=self.epochs is not None,
                clip_norm=self.clip_norm,
            ),
            seed=seed,
        )

    @property
    def samples_at_a_time(self) -> int:
        """Samples in a minibatch of Adam and SGD, and in prediction."""
        return 64 if self.batch_size is None else int(self.batch_size)

    def draw_seed(self) -> int | None:
        """Return the seed; of a numpy RandomState its next number, so that the order of calls counts."""
        state: Any = self.random_state
        if state is None or isinstance(state, numbers.Integral):
            return None if state is None else int(state)
        return int(state.randint(2**31 - 1))


def check_parameters(parameters: Parameters) -> None:
    """Report all parameters that cannot be meant, together and before any work.

    Raises:
        ConfigurationError: One line for each of them.
    """
    checks = _Checks(parameters)
    for part in (_check_names, _check_choices, _check_augment, _check_rounds, _check_training, _check_machine):
        part(parameters, checks)
    if checks.wrong:
        raise ConfigurationError("\n".join(checks.wrong))


class _Checks:
    """What is wrong with some parameters, a line for each."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.wrong: list[str] = []

    def expect(self, name: str, good: bool, expected: str) -> None:
        """Say of a parameter what it must be, where it is not."""
        if not good:
            self.wrong.append(f"{name} must be {expected}, not {getattr(self._parameters, name)!r}")

    def one_of(self, name: str, known: Sequence[str], other_names: Mapping[str, str] | None = None) -> None:
        """Expect one of some names."""
        value = getattr(self._parameters, name)
        if not isinstance(value, str) or value not in known:
            meant = did_you_mean(str(value), known, other_names)
            self.wrong.append(f"{name} must be one of {', '.join(known)}, not {value!r}.{meant}")


_SOLVERS = {"closed form": "dual", "newton": "dual", "setfit": "pairs", "contrastive": "pairs"}
"""What others call the solvers."""


def _check_names(parameters: Parameters, checks: _Checks) -> None:
    """Check those that are one of some names."""
    checks.one_of("effort", EFFORTS, {"medium": "auto", "default": "auto", "max": "high", "min": "low"})
    checks.one_of("mode", MODES, OTHER_NAMES)
    checks.one_of("solver", ("auto", "subspace", "dual", "pairs", *OPTIMIZERS), _SOLVERS)
    if parameters.solver == "pairs" and parameters.mode != "finetune":
        checks.wrong.append("solver='pairs' moves θ₂, as mode='finetune' does: it is of that mode")
    checks.one_of("parametrization", ("ntk", *PARAMETRIZATIONS))
    checks.one_of("metric", ("auto", "plain", "whitened"))
    checks.one_of("precision", ("auto", *PRECISIONS), _PRECISIONS)
    checks.one_of("cache", ("auto", *LEVELS))


def _check_choices(parameters: Parameters, checks: _Checks) -> None:
    """Check those that are given, or chosen on the data: θ₂, penalties, folds, the number of rounds."""
    theta2: Any = parameters.theta2
    penalty: Any = parameters.penalty
    cv = parameters.cv
    names = isinstance(theta2, str) or (
        isinstance(theta2, Sequence) and bool(theta2) and all(isinstance(name, str) for name in theta2)
    )
    checks.expect("theta2", names, "'auto', 'top', 'search', a name, a glob, or a list of them")
    pair = isinstance(penalty, Sequence) and not isinstance(penalty, str) and len(penalty) == 2
    given = list(penalty) if pair else [penalty]
    numbers_given = all(is_number(value) and value >= 0 for value in given)
    checks.expect(
        "penalty", _is_auto(penalty) or numbers_given, "'auto', a number from 0, or a pair of them for w₁ and w₂"
    )
    folds = _is_whole(cv, 2) if isinstance(cv, numbers.Number) else hasattr(cv, "split") or hasattr(cv, "__iter__")
    checks.expect("cv", folds and not isinstance(cv, str), "a number of folds from 2, a splitter, or pairs of indices")
    rounds = parameters.rounds
    checks.expect(
        "rounds", rounds is None or _is_auto(rounds) or _is_whole(rounds, 1), "None, 'auto' or a whole number from 1"
    )


def _check_augment(parameters: Parameters, checks: _Checks) -> None:
    augment: Any = parameters.augment
    if augment is not None and not (isinstance(augment, str) and augment in ("auto", "mirror")):
        flips = dict.fromkeys(("flip", "flips", "horizontal flip", "hflip"), "mirror")
        meant = did_you_mean(str(augment), ["auto", "mirror"], {**flips, "none": "None"})
        checks.wrong.append(f"augment must be 'auto', 'mirror' or None, not {augment!r}.{meant}".removesuffix("."))


def _check_rounds(parameters: Parameters, checks: _Checks) -> None:
    """Check what rounds and the whitened metric need of the others."""
    if parameters.rounds not in (None, 1):
        if parameters.mode == "gradient" or parameters.solver in ("dual", *OPTIMIZERS):
            checks.wrong.append("rounds other than 1 are of mode='full' with solver='subspace' (or 'auto')")
        elif not _is_auto(parameters.penalty):
            checks.wrong.append(
                "rounds choose penalties on held-out data: penalty must be 'auto' with rounds other than 1"
            )
        if parameters.precision == "bfloat16":
            checks.wrong.append("rounds move θ̄₂ by less than bfloat16 can tell apart: take another precision")
    if parameters.metric == "whitened" and parameters.solver in ("dual", *OPTIMIZERS):
        checks.wrong.append("metric='whitened' is of solver='subspace' (or 'auto')")


def _check_training(parameters: Parameters, checks: _Checks) -> None:
    """Check a checkpoint, a schedule and the seed."""
    seed: Any = parameters.random_state
    if parameters.checkpoint is not None:
        checks.expect("checkpoint", isinstance(parameters.checkpoint, (str, Path)), "None or a folder")
        if not _is_whole(seed, 0):
            checks.wrong.append(
                "a checkpoint needs random_state=<a whole number>: without a seed a fit cannot be gone on with"
            )
    batch_size = parameters.batch_size
    checks.expect("batch_size", batch_size is None or _is_whole(batch_size, 1), "None or a whole number from 1")
    epochs, clip_norm = parameters.epochs, parameters.clip_norm
    checks.expect(
        "epochs", epochs is None or _is_whole(epochs, 1), "None (the paper's schedule) or a whole number from 1"
    )
    clips = clip_norm is None or (is_number(clip_norm) and clip_norm > 0)
    checks.expect("clip_norm", clips, "None or a number above 0")
    known_seed = seed is None or isinstance(seed, np.random.RandomState) or _is_whole(seed, 0)
    checks.expect("random_state", known_seed, "None, a whole number from 0, or a numpy RandomState")


def _check_machine(parameters: Parameters, checks: _Checks) -> None:
    """Check a device and a bound on memory."""
    for check, value in ((check_device, parameters.device), (bytes_of, parameters.memory)):
        try:
            check(value)
        except ConfigurationError as error:
            checks.wrong.append(str(error))


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, and no boolean."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least
