"""Wrong labels found, and what leaving them out brings back: some training labels are flipped, at random or to similar.

    python -m benchmarks.wrong_labels DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--labelled N] [--rate R]
        [--seeds N] [--rounds] [--out FILE]

A share of the labels of some training samples is flipped: `uniform` to any other class, `similar` to another class by
what a cross-validated probe of the true labels takes the class for. Scored is how well the flipped ones are ranked
(AUROC) by

- `audit`: our linear model's leave-one-out probabilities of the labels (`Audit.quality`);
- `audit, probe`: the same of the probe alone;
- `probe, 5 folds` and `finetune, 5 folds`: out-of-fold probabilities, scored by cleanlab's self-confidence and
  normalized margin. The probe's penalty is chosen once; fine-tuning is the usual recipe of `honest_search`, without a
  search. Both share z₀ with ours, so that no way pays for the network's bottom more than once.

Processor times have the fit in them, and that one pass of the bottom. Then the accuracy on further training samples,
which nothing else sees, after fits to the flipped labels, without the suspects (of `full`, of the probe), reweighted,
and to the true labels. cleanlab is used where it is installed; else its two scores stand here in a line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from benchmarks import time_to_accuracy
from benchmarks.time_to_accuracy import Judge, data_parser, prepared
from gradfeat.estimators.auditing import Audit, audit_of
from gradfeat.estimators.left_out import LeftOut
from gradfeat.files.writing import write_text
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.fit.answers import Answers
from gradfeat.fit.linear import linear_of
from gradfeat.fit.predict import store_logits
from gradfeat.solvers.finetune import Search, honest_search
from gradfeat.solvers.probe import fit_probe

FOLDS = 5


def labelled(problem: Problem, y: np.ndarray, weight: np.ndarray | None = None) -> Problem:
    """Return the problem with other labels, and weights, and the probe of these."""
    targets = torch.from_numpy(y)
    weights = None if weight is None else torch.from_numpy(weight).float()
    if weights is not None:
        kept = torch.from_numpy(np.flatnonzero(weight))
        problem, targets, weights = problem.subset(kept), targets[kept], weights[kept]
    probe = fit_probe(
        problem.store.features,
        targets,
        problem.loss,
        sample_weight=weights,
        random_state=0,
        outputs=problem.outputs,
    )
    return replace(problem, y=targets, weight=weights, probe=probe)


def audited(problem: Problem, plan: Plan) -> tuple[Audit, Fit]:
    """Fit, and audit as `model.audit()` does."""
    fit = solve(problem, plan)
    problem = problem.at(fit.model.linearization)
    n = problem.n
    left_out = LeftOut(
        np.arange(n),
        Answers(problem, linear_of(problem, plan, fit)).leave_one_out(),
        problem.y,
        problem.loss,
        torch.full((n,), 1 / n, dtype=torch.float64),
        np.arange(problem.outputs),
        "leave-one-out",
    )
    return audit_of(left_out, n, None, None), fit


def out_of_fold(problem: Problem, fit: Callable[[Problem], Fit], seed: int) -> np.ndarray:
    """Return the probabilities of each sample by the model of the other folds, (n, c)."""
    y = problem.y.numpy()
    proba = np.zeros((problem.n, problem.outputs))
    for train, left in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(y, y):
        rows = torch.from_numpy(train)
        part = problem.subset(rows)
        probe = fit_probe(
            part.store.features, part.y, part.loss, penalty=problem.probe.penalty, outputs=problem.outputs
        )
        model = fit(replace(part, probe=probe)).model
        logits = store_logits(model, problem.subset(torch.from_numpy(left)).store).double()
        proba[left] = problem.loss.predict_proba(logits).numpy()
    return proba


def scores_of(proba: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return cleanlab's two scores of each label."""
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        own = np.take_along_axis(proba, y[:, None], 1)[:, 0]
        others = proba.copy()
        np.put_along_axis(others, y[:, None], -1, 1)
        return {"self-confidence": own, "normalized margin": (own - others.max(1) + 1) / 2}
    return {
        "self-confidence": get_label_quality_scores(y, proba, method="self_confidence"),
        "normalized margin": get_label_quality_scores(y, proba, method="normalized_margin"),
    }


def flipped(problem: Problem, kind: str, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is flipped, and which are."""
    y, c = problem.y.numpy(), problem.outputs
    share = np.ones((c, c))
    if kind == "similar":
        proba = out_of_fold(problem, lambda part: solve(part, Plan(mode="activation", seed=0)), 0)
        share = np.stack([proba[y == k].mean(0) for k in range(c)])
    share[np.arange(c), np.arange(c)] = 0
    share /= share.sum(1, keepdims=True)
    wrong = np.zeros(len(y), dtype=bool)
    wrong[rng.permutation(len(y))[: round(rate * len(y))]] = True
    other = np.array([rng.choice(c, p=share[k]) for k in y])
    return np.where(wrong, other, y), wrong


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and its processor time in seconds."""
    begun = time.process_time()
    result = what()
    return result, time.process_time() - begun


def usual() -> Plan:
    """Return fine-tuning by the usual recipe, without a search."""
    return Plan(mode="finetune", finetuning=Search(honest_search().recipes[:1]), seed=0)


def of_suspects(suspects: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Return how many labels are suspect, and how right that is."""
    return {
        "suspects": int(suspects.sum()),
        "precision": float(wrong[suspects].mean()) if suspects.any() else 0.0,
        "recall": float(suspects[wrong].mean()),
    }


def reading(problem: Problem, judge: Judge, kind: str, arguments: Any, seed: int, bottom: float) -> dict[str, Any]:
    """Flip, find, and fit again; return scores, times and accuracies."""
    y, wrong = flipped(problem, kind, arguments.rate, np.random.default_rng(seed))
    noisy, of_probe = timed(lambda: labelled(problem, y))
    found: dict[str, Any] = {}

    def ranked(name: str, quality: np.ndarray, seconds: float) -> None:
        found[name] = {"auroc": float(roc_auc_score(wrong, -quality)), "seconds": bottom + of_probe + seconds}
        print(kind, seed, name, found[name], flush=True)

    plan = Plan(solver="subspace", seed=seed, splits=arguments.splits)
    (audit, fit), seconds = timed(lambda: audited(noisy, plan))
    ranked("audit", audit.quality, seconds)
    found["audit"] |= of_suspects(audit.suspects, wrong)
    (of_probe_alone, _), seconds = timed(lambda: audited(noisy, Plan(mode="activation", seed=seed)))
    ranked("audit, probe", of_probe_alone.quality, seconds)
    found["audit, probe"] |= of_suspects(of_probe_alone.suspects, wrong)
    if arguments.rounds:
        (moved, _), seconds = timed(lambda: audited(noisy, replace(plan, rounds="auto")))
        ranked("audit, rounds", moved.quality, seconds)
    for name, each in (("probe", Plan(mode="activation", seed=seed)), ("finetune", usual())):
        proba, seconds = timed(lambda each=each: out_of_fold(noisy, lambda part: solve(part, each), seed))  # type: ignore[misc]
        for score, quality in scores_of(proba, y).items():
            ranked(f"{name}, {FOLDS} folds, {score}", quality, seconds)
    problems = {
        "without suspects": labelled(problem, y, audit.without_suspects()),
        "reweighted": labelled(problem, y, audit.reweighted()),
        "without the probe's suspects": labelled(problem, y, of_probe_alone.without_suspects()),
        "true labels": labelled(problem, problem.y.numpy()),
    }
    models = {"flipped labels": fit} | {name: solve(each, plan) for name, each in problems.items()}
    accuracy = {name: judge(model.model) for name, model in models.items()}
    found["accuracy"] = accuracy
    print(kind, seed, json.dumps(accuracy), flush=True)
    return found


def main() -> None:
    """Flip labels of each kind with each seed."""
    parser = data_parser(__doc__ or "")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--judged", type=int, default=2000, help="further samples that judge the fits")
    parser.add_argument(
        "--splits", type=int, help="validation parts that choose the penalties; by default as many as asked for"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", action="store_true", help="audit also after rounds, in which the network moves")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    time_to_accuracy.MOST_JUDGED = arguments.judged
    (problem, judge), bottom = timed(lambda: prepared(arguments, test=False))
    bottom *= problem.n / (problem.n + len(judge.store))  # what judges is none of a fit
    result: dict[str, Any] = {
        "n": problem.n,
        "judged": len(judge.store),
        "rate": arguments.rate,
        "splits": arguments.splits,
        "readings": {},
    }
    for kind in ("uniform", "similar"):
        for seed in range(arguments.seeds):
            result["readings"][f"{kind}, {seed}"] = reading(problem, judge, kind, arguments, seed, bottom)
            if arguments.out is not None:
                write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
