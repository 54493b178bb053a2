"""From what a fit ends with to what an estimator keeps: weights in main memory, a record, the head for `merge`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradfeat.estimators.fitted import Fitted, Record, Settings, Weights, logit_bias, value_bias
from gradfeat.estimators.parameters import Parameters
from gradfeat.estimators.preparing import Prepared
from gradfeat.estimators.warn import warn_user
from gradfeat.fit import Fit, select_solver
from gradfeat.fit.merge import MergedHead, fit_head, most_samples
from gradfeat.fit.stages import HEAD
from gradfeat.progress import Progress


def fitted_of(parameters: Parameters, prepared: Prepared, fit: Fit, progress: Progress) -> Fitted:
    """Return all that an estimator keeps of a fit, and fit the head of its merged network.

    The model's weights become those that a model made from the returned ones has, to the last bit: w₂ is a difference
    to θ̄₂, or in other variables, so what was trained is rounded once.

    Args:
        parameters: Of the estimator; their mode is the model's.
        prepared: What was fitted to.
        fit: How it ended.
        progress: Shows how far it is.
    """
    weights = _weights(prepared, fit)
    fit.model.set_weights(w1=weights.w1, b=logit_bias(weights.b, prepared.targets.loss), w2=weights.w2)
    record = _record(parameters, prepared, fit)
    begun = time.perf_counter()
    head = _head(prepared, fit, parameters.draw_seed(), progress)
    seconds = {**record.seconds, "merged head": time.perf_counter() - begun}
    return Fitted(
        settings=_settings(parameters, prepared),
        network=prepared.network,
        targets=prepared.targets,
        columns=prepared.columns,
        weights=weights,
        record=dataclasses.replace(record, seconds=seconds),
        merged_head=head,
    )


def _settings(parameters: Parameters, prepared: Prepared) -> Settings:
    given = {field.name: getattr(parameters, field.name) for field in dataclasses.fields(Settings)}
    return Settings(**{**given, "augment": "mirror" if prepared.mirrored else None})


def _weights(prepared: Prepared, fit: Fit) -> Weights:
    model = fit.model
    moved = model.linearization is not prepared.problem.linearization
    return Weights(
        omega=_kept(model.omega),
        w1=_kept(model.w1),
        b=value_bias(_kept(model.b), prepared.targets.loss),
        w2=_all_kept(model.w2),
        theta2=_all_kept(model.linearization.theta2) if moved else None,
    )


def _kept(value: Tensor) -> Tensor:
    return value.detach().cpu().clone()


def _all_kept(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _kept(value) for name, value in values.items()}


def _record(parameters: Parameters, prepared: Prepared, fit: Fit) -> Record:
    problem = prepared.problem
    bias = value_bias(problem.probe.bias, prepared.targets.loss)
    return Record(
        probe=dataclasses.replace(problem.probe, bias=bias),
        choice=fit.choice,
        solution=fit.solution,
        rounds=fit.rounds,
        selection=fit.selection,
        history=fit.history,
        how=_how(parameters, prepared, fit),
        seconds={**problem.seconds, "train": fit.seconds},
        depths=list(prepared.depths),
        n_iter=len(fit.history.loss) if fit.history is not None else 1,
    )


def _how(parameters: Parameters, prepared: Prepared, fit: Fit) -> dict[str, str]:
    """Say in words how a model was fitted."""
    how: dict[str, Any] = {
        "effort": prepared.look,
        "solver": fit.solution,
        "penalties": fit.choice,
        "rounds": fit.rounds,
        "schedule": fit.selection,
    }
    if parameters.solver == "auto" and fit.model.mode in ("gradient", "full"):
        problem = prepared.problem
        name, why = select_solver(problem, prepared.decided(parameters.plan(problem.n, fit.model.mode)))
        how["solver='auto'"] = f"{name}: {why}"
    return {name: str(value) for name, value in how.items() if value is not None}


def _head(prepared: Prepared, fit: Fit, seed: int | None, progress: Progress) -> MergedHead | None:
    """Return the head of the merged network; None where it has none, or was interrupted: the model is complete."""
    problem, how = prepared.problem, fit.solution or fit.history
    most = most_samples(0.0 if how is None else how.passes, len(problem.store))
    try:
        with progress.step(HEAD):
            return fit_head(
                fit.model, problem.store, weight=problem.weight, views=problem.views, random_state=seed, most=most
            )
    except KeyboardInterrupt:
        warn_user("interrupted: there is no head for merge()")
        return None
