"""`compare`: the four models of the method side by side, on one network and one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.comparison.approximation import Approximation, approximation
from gradfeat.comparison.edges import edge_note
from gradfeat.comparison.table import PERCENT, TITLES, Comparison, Row
from gradfeat.comparison.verdict import Verdict, verdict_of
from gradfeat.contexts import plain
from gradfeat.data import Inputs
from gradfeat.data.crops import check_crops
from gradfeat.errors import ConfigurationError, ConvergenceError, did_you_mean
from gradfeat.estimators import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.estimators.looking import stages_of_look
from gradfeat.estimators.parameters import check_parameters
from gradfeat.estimators.preparing import Prepared, TrainingData, inputs_of
from gradfeat.estimators.reading import check_lengths, labels_of, read_samples, read_truth
from gradfeat.fit import Fit, solve
from gradfeat.fit.predict import finite, store_logits, store_of
from gradfeat.fit.stages import ACTIVATIONS, shared_stages, stages_of_plan
from gradfeat.metrics.evaluation import agreement, mean_of_views, metrics_of, per_sample_of
from gradfeat.model import MODES, OTHER_NAMES, GradientFeatureModel
from gradfeat.progress import Progress, Stage
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.schedule import SOLVERS as OPTIMIZERS

__all__ = ["PERCENT", "TITLES", "Comparison", "Row", "check_modes", "compare"]

Estimator = GradientFeatureClassifier | GradientFeatureRegressor


@plain()
def compare(
    backbone: Any,
    X: Any,
    y: Any,
    X_test: Any,
    y_test: Any,
    *,
    modes: Sequence[str] = MODES,
    task: str = "classification",
    sample_weight: Any = None,
    crops: int = 1,
    **parameters: Any,
) -> Comparison:
    """Fit the four models of the method on the same features and judge them on the same test data.

    The network is linearized once, its bottom runs once for each sample, and the probe is fitted once. Test data choose
    nothing. An interruption (Ctrl-C) ends the table with the models that are done.

    Args:
        backbone: As for `GradientFeatureClassifier`.
        X: Training samples.
        y: Their labels.
        X_test: Test samples.
        y_test: Their labels.
        modes: Which models.
        task: "classification" (labels, or an indicator matrix) or "regression".
        sample_weight: A weight for each training sample.
        crops: Random crops of each test image, over which predictions are averaged (`gradfeat.data.Crops`); 1 is the
            centre crop (the paper's Table 2, where Table 4 has 10). Each costs as much as a test image.
        **parameters: Further parameters of the estimators (theta2, epochs, solver, ...).

    Returns:
        The table, with the fitted estimators.

    Raises:
        ConfigurationError: A mode or parameter is unknown, or crops of test data that are no images.
        DataError: Test labels that do not fit the training labels.
    """
    cls = _check(modes, task, parameters)
    check_crops(crops)
    if crops > 1:
        parameters = _with_room(parameters)
    estimators = {mode: cls(backbone, **_of_mode(mode, parameters)) for mode in modes}
    # `full` needs all that any mode needs to be kept of each sample
    shared = {"mode": "activation" if set(modes) == {"activation"} else "full"}
    if "full" not in modes:
        shared["effort"] = "low"  # whose θ₂ and moves a look would choose
    base = cls(backbone, **{**parameters, **shared})
    check_parameters(base)
    progress = Progress(base.verbose)
    data = base.read(X, y, sample_weight)
    test = _read_test(base, data, X_test, y_test, crops)
    with progress.whole("compare", _stages(base, modes, data, test)):
        prepared = base.prepare(data, progress)
        if prepared.stopped is not None:  # what was found so far is of some samples, and there is nothing beside it
            raise KeyboardInterrupt
        models = _Models(base, prepared, test, progress)
        models.fit(estimators)
        return models.comparison()


# ---- test data ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Test:
    """Test data as they were read and checked.

    Attributes:
        X: n samples, in any form that `Inputs` takes.
        truth: Their labels, as `metrics_of` takes them.
        crops: Random crops of each, over which predictions are averaged.
    """

    X: Any
    truth: np.ndarray
    crops: int


def _read_test(base: Estimator, data: TrainingData, X: Any, y: Any, crops: int) -> _Test:
    """Read test data, and refuse labels that cannot be judged before any work."""
    loss = data.targets.loss
    truth = read_truth(np.asarray(labels_of(X, y, base)), loss.task, data.targets.classes)
    X = read_samples(base, X, reset=False)
    check_lengths(X, truth)
    nothing = np.zeros((len(truth), loss.n_outputs(torch.as_tensor(data.y))))
    metrics_of(loss, nothing, truth)
    return _Test(X, truth, crops)


def _stages(base: Estimator, modes: Sequence[str], data: TrainingData, test: _Test) -> list[Stage]:
    n = len(data)
    stages = [
        *stages_of_look(base, n),
        *shared_stages(),
        Stage("test activations", ACTIVATIONS * len(test.truth) * test.crops / max(n, 1)),
    ]
    for mode in modes:
        stages += [*stages_of_plan(base.plan(n, mode), n), Stage("test")]
    return stages


# ---- the models -----------------------------------------------------------------------------------------------------


@dataclass
class _Models:
    """The models of a comparison, one after another: what is known of those that are done.

    Attributes:
        base: An estimator that has prepared what all share.
        prepared: That.
        test: Test data.
        progress: Shows how far it is.
        rows: A row for each model.
        notes: What the user should know.
        edges: By mode, which choices lie at the edge of their grid; no note twice.
        estimators: The fitted estimator of each mode.
        outputs: Logits of the test samples, (n, c), of each mode.
        per_sample: What each test sample adds to a metric, by its name, of each mode.
        interrupted: Whether Ctrl-C ended it.
    """

    base: Estimator
    prepared: Prepared
    test: _Test
    progress: Progress
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    edges: dict[str, str] = field(default_factory=dict)
    estimators: dict[str, Estimator] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    per_sample: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    interrupted: bool = False

    def __post_init__(self) -> None:
        backbone, crops = self.prepared.network.backbone, self.test.crops
        inputs = inputs_of(self.test.X, backbone)
        self._store = self._test_store(inputs)
        self.notes += [*backbone.notes, *(f"θ₂ {depth}" for depth in self.prepared.depths)]
        if self.prepared.look is not None and self.prepared.look.mirrors:
            self.notes.append("all models learn mirror images too, which a look found to lower the held-out loss")
        if inputs.preprocessing is not None:
            self.notes.append(f"images: {inputs.preprocessing.describe()}")
        if crops > 1:
            self.notes.append(f"predictions are the mean over {crops} random crops of each test image")

    def fit(self, estimators: Mapping[str, Estimator]) -> None:
        """Fit the model of each estimator's mode, until one is interrupted."""
        for k, (mode, estimator) in enumerate(estimators.items(), 1):
            self.progress.part(f"{mode} (model {k}/{len(estimators)})")
            try:
                fit = self._solve(mode)
                logits, train_loss = self._judge(fit)
            except KeyboardInterrupt:
                self.notes.append(f"interrupted in {mode}: the models before it are complete")
                self.interrupted = True
            except ConvergenceError as error:
                self.notes.append(f"{mode} has no row: {error}")
            else:
                self._add(estimator, fit, logits, train_loss)
            if self.interrupted:
                break

    def comparison(self) -> Comparison:
        """Return the table, and how well `full` approximates the real network."""
        problem = self.prepared.problem
        measured = self._approximation()
        self.progress.part("compare")
        return Comparison(
            rows=self.rows,
            theta2=list(problem.linearization.theta2),
            shared_seconds=problem.seconds,
            n_train=problem.n,
            n_test=len(self.test.truth),
            notes=[*(f"{mode}: {edge}" for mode, edge in self.edges.items()), *self.notes],
            estimators=dict(self.estimators),
            approximation=measured,
            interrupted=self.interrupted,
            verdict=self._verdict(),
        )

    def _test_store(self, inputs: Inputs) -> SampleStore:
        base = self.base
        with self.progress.step("test activations") as done:
            cache = "none" if base.mode == "activation" else base.cache
            views = base.views(inputs, self.test.crops)
            if cache == "auto" and not views.random:
                cache = "z0"  # of a few passes: residuals would not be worth their memory
            size, linearization = base.samples_at_a_time, self.prepared.problem.linearization
            return SampleStore(linearization, views, cache=cache, memory=base.memory, batch_size=size, progress=done)

    def _solve(self, mode: str) -> Fit:
        problem = self.prepared.problem
        plan = self.prepared.decided(self.base.plan(problem.n, mode, self.base.draw_seed()))
        fit = solve(problem, plan, self.progress)
        if fit.interrupted and fit.epochs == 0:
            raise KeyboardInterrupt
        return fit

    def _judge(self, fit: Fit) -> tuple[Tensor, float]:
        """Return the logits of the test samples, (n, c), and the mean loss on the training data."""
        problem, size = self.prepared.problem, self.base.samples_at_a_time
        with self.progress.step("test"):
            logits = mean_of_views(_logits(fit.model, self._store, size), self.test.crops, problem.loss)
            train_loss = problem.loss.value(_logits(fit.model, problem.store, size), problem.y, problem.weight)
        return logits, float(train_loss)

    def _add(self, estimator: Estimator, fit: Fit, logits: Tensor, train_loss: float) -> None:
        """Add a model that is done."""
        problem, mode = self.prepared.problem, fit.model.mode
        values = logits.double().cpu().numpy()
        metrics = metrics_of(problem.loss, values, self.test.truth)
        self.per_sample[mode] = per_sample_of(problem.loss, values, self.test.truth)
        parameters = sum(parameter.numel() for parameter in fit.model.trained())
        self.rows.append(Row(mode, metrics, train_loss, fit.seconds, parameters, _note(self.prepared, fit)))
        estimator.adopt(self.prepared, fit, self.progress)
        self.estimators[mode], self.outputs[mode] = estimator, logits
        self.notes.extend(fit.notes)
        edge = edge_note(estimator, problem.n)
        if edge and edge not in self.edges.values():
            self.edges[mode] = edge
        self.interrupted = fit.interrupted

    def _approximation(self) -> Approximation | None:
        """Return how well `full` approximates the real network; None without it, or where that was interrupted."""
        if "full" not in self.estimators:
            return None
        full = self.estimators["full"]
        model, loss = full.model_, self.prepared.problem.loss
        try:
            self.progress.part("full")
            with self.progress.step("approximation"):
                store = store_of(model, self._store)
                head = full.merged_head_
                measured = approximation(model, store, loss, head=head, batch_size=self.base.samples_at_a_time)
        except KeyboardInterrupt:
            self.notes.append("interrupted while the approximation was measured: the models are complete")
            self.interrupted = True
            return None
        if "finetune" not in self.outputs:
            return measured
        agreed = agreement(self.outputs["full"], self.outputs["finetune"], loss)
        return replace(measured, finetune_agreement=agreed)

    def _verdict(self) -> Verdict | None:
        if not self.rows:
            return None
        main = next(iter(self.rows[0].metrics))
        scores = {row.mode: row.metrics[main] for row in self.rows}
        return verdict_of(scores, TITLES[main].replace(" %", ""), self.per_sample)


# ---- arguments and words --------------------------------------------------------------------------------------------


def check_modes(modes: Sequence[str]) -> None:
    """Refuse modes that there are not.

    Raises:
        ConfigurationError: An unknown mode, or one twice.
    """
    if isinstance(modes, str) or not modes or len(set(modes)) < len(modes):
        raise ConfigurationError(f"modes must be some of {', '.join(MODES)}, each once, not {modes!r}")
    for mode in modes:
        if mode not in MODES:
            raise ConfigurationError(
                f"mode must be one of {', '.join(MODES)}, not {mode!r}.{did_you_mean(str(mode), MODES, OTHER_NAMES)}"
            )


def _check(modes: Sequence[str], task: str, arguments: dict[str, Any]) -> type[Estimator]:
    """Refuse arguments that cannot be meant; return the estimators' class."""
    check_modes(modes)
    if task not in ("classification", "regression"):
        raise ConfigurationError(f"task must be 'classification' or 'regression', not {task!r}")
    cls: type[Estimator] = GradientFeatureClassifier if task == "classification" else GradientFeatureRegressor
    known = [name for name in cls._get_param_names() if name not in ("backbone", "mode")]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ConfigurationError(
            f"unknown parameter {unknown[0]!r}; known are {', '.join(known)}.{did_you_mean(unknown[0], known)}"
        )
    return cls


def _with_room(arguments: dict[str, Any]) -> dict[str, Any]:
    """Let an image size leave the border that random crops need: the backbone's own, where nothing else is said."""
    given = arguments.get("preprocessing")
    if arguments.get("image_size") is None or not isinstance(given, Mapping | None):
        return arguments
    return {**arguments, "preprocessing": {"crop_pct": None, **(given or {})}}


def _of_mode(mode: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a mode's estimator; rounds are of `full` alone."""
    return {**arguments, "mode": mode} | ({"rounds": None} if mode == "gradient" else {})


def _note(prepared: Prepared, fit: Fit) -> str:
    """Say what was chosen for a model, and whether its training was cut short."""
    parts = []
    if fit.model.mode == "activation":
        parts.append(f"penalty {prepared.problem.probe.penalty:.3g}")
    if fit.selection is not None:
        parts.append(f"{fit.selection} on held-out training data, {fit.selection.seconds:.1f} s of the time")
    if fit.solution is not None and not (fit.solution.solver in OPTIMIZERS and fit.interrupted):  # said below
        parts.append(str(fit.solution))
    if fit.choice is not None:
        parts.append(str(fit.choice))
    if fit.rounds is not None:
        parts.append(str(fit.rounds))
    if fit.interrupted:
        parts.append(f"stopped after {fit.epochs} epochs")
    return "; ".join(parts)


def _logits(model: GradientFeatureModel, store: SampleStore, batch_size: int) -> Tensor:
    return finite(store_logits(model, store, batch_size), "its outputs are not finite")
