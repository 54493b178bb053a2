"""Fits, loads and predictions in several threads, and after a fork, are those of one thread."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from torch import nn

from gradfeat import GradientFeatureClassifier, linearize, load
from gradfeat.contexts import alone, computing
from gradfeat.data import TextPreprocessing

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 2, 6, 6)).astype(np.float32)
y = (X.mean((1, 2, 3)) > 0).astype(int)
NEW = RANDOM.normal(size=(6, 2, 6, 6)).astype(np.float32)
SECONDS = 120  # after which a thread that waits is taken to wait for ever


def make_network() -> nn.Module:
    torch.manual_seed(0)
    relu = nn.ReLU()  # used twice, which torch's tracer treats in a way of its own
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 3), relu).eval()


def estimator_of(network: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network, theta2="3", penalty=(0.01, 0.01), random_state=0)


def at_once(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what tasks return that are begun at the same moment, each in a thread of its own."""
    barrier = threading.Barrier(len(tasks), timeout=SECONDS)

    def begin(task: Callable[[], Any]) -> Any:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(begin, task) for task in tasks]
        return [future.result(SECONDS) for future in futures]


def process_state() -> list[Any]:
    """Return what torch changes for the whole process while it captures."""
    flags = torch.backends.mkldnn.enabled, logging.root.manager.disable, warnings.showwarning, sys.stderr
    return [nn.Module.__call__, nn.Module.__getattr__, *flags, list(warnings.filters), torch.compiler.is_exporting()]


def test_fits_loads_and_first_predictions_in_eight_threads(tmp_path: Path) -> None:
    network = make_network()
    fitted = estimator_of(network).fit(X, y)
    usual, before, path = fitted.predict_proba(NEW), process_state(), fitted.save(tmp_path / "model")
    frozen = pickle.dumps(fitted)
    shared = pickle.loads(frozen)
    others = [make_network() for _ in range(2)]
    tasks: list[Callable[[], Any]] = [
        *[lambda other=other: estimator_of(other).fit(X, y).predict_proba(NEW) for other in others],
        lambda: estimator_of(network).fit(X, y).predict_proba(NEW),
        lambda: load(path, network).predict_proba(NEW),  # type: ignore[union-attr]
        lambda: pickle.loads(frozen).predict_proba(NEW),
        *[lambda: shared.predict_proba(NEW)] * 3,
    ]
    for found in at_once(tasks):
        assert np.array_equal(found, usual)
    assert process_state() == before
    assert not network.training
    assert np.array_equal(estimator_of(network).fit(X, y).predict_proba(NEW), usual)


@pytest.mark.filterwarnings("ignore:.* are cut after")
def test_long_and_short_texts_in_several_threads(tiny_bert: Path) -> None:
    preprocessing = TextPreprocessing(tokenizer=str(tiny_bert), max_length=8, length=8)
    long, short = ["good film " * 6] * 40, ["bad plot"] * 40
    usual = [preprocessing.tokenize(texts)[0] for texts in (long, short)]

    def tokenize(texts: list[str]) -> list[np.ndarray]:
        return [preprocessing.tokenize(texts)[0] for _ in range(50)]

    found = at_once([lambda: tokenize(long), lambda: tokenize(short)] * 3)
    assert all(np.array_equal(tokens, usual[i % 2]) for i, run in enumerate(found) for tokens in run)


def test_one_linearization_serves_threads() -> None:
    x = torch.from_numpy(X)
    usual = linearize(make_network(), x, "3")
    _, residuals = usual.primal(usual.bottom(x))
    expected = [usual.transpose(torch.ones(n, 4), tuple(r[:n] for r in residuals))["3.weight"] for n in (8, 16)]
    shared = linearize(make_network(), x, "3")

    def pull() -> list[torch.Tensor]:
        found = []
        for _ in range(3):  # traced from the second batch of a size on
            f, kept = shared.primal(shared.bottom(x))
            assert f.shape == (24, 4)
            found += [shared.transpose(torch.ones(n, 4), tuple(r[:n] for r in kept))["3.weight"] for n in (8, 16)]
        return found

    for found in at_once([pull] * 4):
        assert all(torch.allclose(got, expected[i % 2], atol=1e-5) for i, got in enumerate(found))


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_cross_validation_by_joblib(backend: str) -> None:
    estimator = estimator_of(make_network())
    usual = cross_val_score(estimator, X, y, cv=3)
    with joblib.parallel_backend(backend, n_jobs=2):
        assert np.array_equal(cross_val_score(estimator, X, y, cv=3, n_jobs=2), usual)


def test_a_capture_waits_for_batches_and_batches_for_a_capture() -> None:
    events: list[str] = []
    computes, captures = threading.Event(), threading.Event()

    def batch() -> None:
        with computing(), computing():
            computes.set()
            time.sleep(0.05)
            events.append("batch")
        captures.wait(SECONDS)
        with computing():
            events.append("next batch")

    def capture() -> None:
        computes.wait(SECONDS)
        with alone(), computing(), alone():
            captures.set()
            time.sleep(0.05)
            events.append("capture")

    at_once([batch, capture])
    assert events == ["batch", "capture", "next batch"]


def test_threads_that_compute_and_then_trace_do_not_wait_for_each_other() -> None:
    inside: list[int] = []

    def trace(barrier: threading.Barrier) -> int:
        with computing():
            barrier.wait(SECONDS)
            with alone():
                inside.append(1)
                time.sleep(0.01)
                assert sum(inside) == 1
                inside.pop()
            with computing():
                return 1

    barrier = threading.Barrier(4)
    assert at_once([lambda: trace(barrier)] * 4) == [1] * 4


def test_the_gate_opens_after_an_error() -> None:
    for gate in (alone, computing):
        with pytest.raises(ZeroDivisionError), gate():
            raise ZeroDivisionError

    def enter() -> bool:
        with alone(), computing():
            return True

    assert at_once([enter] * 2) == [True, True]


FORK = """
import os, sys, threading
import numpy as np, torch
from torch import nn
from gradfeat import GradientFeatureClassifier
from gradfeat.contexts import alone

torch.set_num_threads(1)
X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
fit = lambda: GradientFeatureClassifier(
    nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), penalty=(0.1, 0.1), random_state=0, device="cpu"
).fit(X, X[:, 0] > 0)
first = fit()
held, done = threading.Event(), threading.Event()

def hold():
    with alone():
        held.set()
        done.wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    first.predict(X)
    fit()
    os._exit(7)
done.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with alone():
    first.predict(X)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_was_forked_while_another_thread_captured() -> None:
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert run.stdout == "7\n"
