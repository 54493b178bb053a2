"""Influence of training samples on predictions of others, beside refits: random halves, and the strongest ten removed.

    python -m benchmarks.influence DATA -b BACKBONE [--weights FILE] [--theta2 NAME ...] [--labelled N] [--queries M]
        [--refits N] [--units U] [--out FILE]

The model is a converged fit with given penalties: of ω̄ and w₁ the probe's, of w₂ some units. Queries are training
samples that were not drawn. Predicted is the log-probability of their class by the model. Each refit of both stages, as
in `benchmarks.leave_one_out`, is without a random half of the samples; the linear datamodeling score is Spearman's
correlation over refits, the mean over queries, of what happens to a query and the sum of what was predicted for the
samples that are gone (Park et al., 2023). The model is convex, so of ours this is a check more than a result. Beside
it: products of the samples' gradients, and TRAK by hand after the paper, both with the exact gradients of the fitted
model in w₁, b and w₂, which a count sketch projects; of TRAK the best size of several.

Then the ten samples that speak most for a query are removed, and the change is beside the sum of ten influences.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.leave_one_out import Refits, compared, timed
from benchmarks.time_to_accuracy import data_parser, estimator, read
from gradfeat.data import Inputs
from gradfeat.files.writing import write_text
from gradfeat.fit import Fit, Plan, Problem, solve
from gradfeat.fit.answers import Answers
from gradfeat.fit.result import Linear
from gradfeat.fit.spans import subspace_of
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.subspace import Penalties

SKETCH = 8192
SIZES = (32, 64, 128, 256, 512, 1024)
TOP = 10


class Halves(Refits):
    """Refits without many samples; the queries are rows of weight zero at the end of the store."""

    gap = 1e-5

    def logits_without(self, gone: np.ndarray) -> Tensor:
        """Return the logits of all rows by the fit without some of them."""
        whole = self.problem
        weight = whole.weight.clone()
        weight[torch.as_tensor(gone)] = 0
        heavier = float(whole.weight.sum() / weight.sum())
        self.problem = replace(whole, weight=weight)
        before = self.linear
        self.linear = replace(
            before,
            penalties=before.penalties.times(heavier),
            omega=replace(before.omega, penalty=before.omega.penalty * heavier),
        )
        try:
            return self.logits(None)
        finally:
            self.problem, self.linear = whole, before


def with_queries(problem: Problem, samples: list, queries: list, preprocessing: object) -> Problem:
    """Return a problem with further rows of weight zero."""
    store = SampleStore(problem.linearization, Inputs([*samples, *queries], preprocessing))
    weight = torch.cat([torch.ones(problem.n), torch.zeros(len(queries))]).double()
    y = torch.cat([problem.y, problem.y.new_zeros(len(queries))])
    return replace(problem, store=store, y=y, weight=weight)


def sketches(problem: Problem, linear: Linear, slopes: Tensor) -> Tensor:
    """Return projected gradients of each row, (n, SKETCH), by all weights, where the logits' own are (n, c)."""
    linearization, store, result = linear.model.linearization, problem.store, torch.zeros(len(problem.store), SKETCH)
    omega = linear.features.omega
    generator = torch.Generator().manual_seed(0)
    places = signs = None
    for i in range(len(store)):
        f, residuals = store.primal(torch.tensor([i]))
        of_w2 = linearization.transpose((slopes[i : i + 1].to(omega) @ omega.T), residuals)
        head = (f[0][:, None] * slopes[i].to(f)[None]).flatten()
        whole = torch.cat([head, slopes[i].to(f), *(value.flatten() for value in of_w2.values())]).detach()
        if places is None:
            places = torch.randint(0, SKETCH, whole.shape, generator=generator)
            signs = torch.randint(0, 2, whole.shape, generator=generator) * 2.0 - 1
        result[i].index_add_(0, places, whole * signs)
    return result.double()


def trak(train: Tensor, queries: Tensor, p: Tensor, size: int) -> Tensor:
    """Return what leaving out each sample does to the margin of each query, (m, n), by Eq. 13 of Park et al. (2023).

    Args:
        train: Gradients of the margin of each sample's class, (n, SKETCH).
        queries: The same of queries and their predicted class.
        p: Probability of each sample's class, (n,).
        size: Columns that they are projected to.
    """
    generator = torch.Generator().manual_seed(1)
    turn = torch.randn(SKETCH, size, generator=generator, dtype=torch.float64) / size**0.5
    phi, of_queries = train @ turn, queries @ turn
    moments = phi.T @ phi
    moments.diagonal().add_(1e-6 * moments.diagonal().mean())
    return -(of_queries @ torch.linalg.solve(moments, phi.T)) * (1 - p)


def margin_slopes(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the slope of ``log p / (1 - p)`` of a class of each row, (n, c)."""
    p = logits.softmax(1)
    own = p.gather(1, classes[:, None])
    return (torch.nn.functional.one_hot(classes, logits.shape[1]) - p) / (1 - own).clamp_min(1e-12)


def score(actual: np.ndarray, predicted: np.ndarray) -> float:
    """Return the linear datamodeling score of (refits, queries)."""
    return float(np.mean([spearmanr(a, b).statistic for a, b in zip(actual.T, predicted.T, strict=True)]))


def log_p(logits: Tensor, chosen: Tensor) -> np.ndarray:
    """Return the log-probability of a class of each row, (m,)."""
    return logits.double().log_softmax(1).gather(1, chosen[:, None])[:, 0].numpy()


def main() -> None:
    """Fit, refit, and compare."""
    parser = data_parser(__doc__ or "")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--refits", type=int, default=40)
    parser.add_argument("--removed", type=int, default=10, help="queries whose strongest ten are removed")
    parser.add_argument("--units", type=float, default=0.3, help="λ₂, in units")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = read(arguments, test=False)
    face = estimator(arguments, theta2=arguments.theta2 or "top", random_state=0)
    made = face.prepare(face.read(data.samples, data.labels))
    queries = list(data.rest)[: arguments.queries]
    n, preprocessing = made.problem.n, made.network.backbone.preprocessing
    problem = with_queries(made.problem, list(data.samples), queries, preprocessing)
    plan, start = Plan(seed=0, solver="subspace"), problem.probe
    given = subspace_of(problem, replace(plan, metric="plain"), start.omega, start.bias, n, plan.generator())
    plan = replace(plan, penalties=Penalties(start.penalty, arguments.units * given.unit))
    fit, of_fit = timed(lambda: solve(problem, plan))
    assert isinstance(fit, Fit)
    assert fit.linear is not None
    print(f"fit: {of_fit:.0f} s, {fit.solution}", flush=True)
    linear, refits = fit.linear, Halves(problem, fit.linear)
    converged = refits.logits(None)
    chosen = converged[n:].argmax(1).cpu()
    before = log_p(converged[n:].cpu(), chosen)
    ways, seconds = influences(problem, linear, n, chosen)
    print(seconds, flush=True)

    rng, actual, masks = np.random.default_rng(0), [], []
    for _ in range(arguments.refits):
        gone = rng.permutation(n)[: n // 2]
        actual.append(log_p(refits.logits_without(gone)[n:].cpu(), chosen) - before)
        masks.append(np.isin(np.arange(n), gone).astype(float))
    changes, mask = np.array(actual), np.array(masks)
    scores = {name: score(changes, mask @ found.numpy().T) for name, found in ways.items()}
    print(scores, flush=True)

    ours, pairs = ways["influence"].numpy(), []
    for q in range(min(arguments.removed, len(queries))):
        gone = np.argsort(ours[q])[:TOP]
        after = log_p(refits.logits_without(gone)[n:].cpu(), chosen)
        pairs.append((float(after[q] - before[q]), float(ours[q, gone].sum())))
    moved = torch.tensor(pairs).double()
    result = {
        "n": n,
        "outputs": problem.outputs,
        "queries": len(queries),
        "refits": arguments.refits,
        "fit_seconds": of_fit,
        "seconds": seconds,
        "scores": scores,
        "top_ten": {"actual": moved[:, 0].tolist(), "predicted": moved[:, 1].tolist(), **compared(*moved.T)},
    }
    print(json.dumps(result["top_ten"]), flush=True)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def influences(problem: Problem, linear: Linear, n: int, chosen: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the predicted changes of each query by each sample, (m, n), by each way, and processor times."""
    everything, ways, seconds = len(problem.store), {}, {}
    of_queries = problem.store.rows(torch.arange(n, everything))
    for name, kept in (("influence", linear), ("influence, omega kept", replace(linear, omega=None))):

        def of_answers(kept: Linear = kept) -> Tensor:
            answers = Answers(problem, kept)
            direction = -problem.loss.slope(answers.logits[n:], chosen)
            return answers.influence(of_queries, answers.rows(of_queries), direction)[:, :n]

        ways[name], seconds[name] = timed(of_answers)
    logits = Answers(problem, linear).logits
    classes = torch.cat([problem.y[:n].cpu(), chosen])
    slopes = problem.loss.slope(logits, classes)
    found = sketches(problem, linear, slopes)
    ways["gradient products"] = -found[n:] @ found[:n].T
    margins, seconds["gradients"] = timed(lambda: sketches(problem, linear, margin_slopes(logits, classes)))
    p = logits[:n].softmax(1).gather(1, classes[:n, None])[:, 0]
    for size in SIZES:
        if size <= n:
            ways[f"TRAK, {size}"] = trak(margins[:n], margins[n:], p, size)
    return ways, seconds


if __name__ == "__main__":
    main()
