"""Rows of other methods below a table, on the same samples and the same encoder.

A row is a name and a function (see `gradfeat.reproduce.setting.Baseline`) of the samples, the encoder, a seed and a
folder for finished parts, which returns numbers (0 to 1): "accuracy", or "map_11point" and "map_area". Whatever it
chooses, it chooses on training data. A new row is one line of `LABEL_ROWS` (all tables) or `ROWS` (one class for each
sample: Tables 1 and 3); every table then has it, with a cell of its own for each seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradfeat.backbones import Backbone
from gradfeat.baselines import AllLayersProbe, NearestNeighbours, lqf
from gradfeat.metrics.evaluation import precisions_of
from gradfeat.metrics.scores import accuracy
from gradfeat.reproduce.cells import Result
from gradfeat.reproduce.setting import Baseline, Samples

FEATURES_PER_LAYER = 128


def nearest_neighbours(samples: Samples, encoder: Backbone, seed: int, parts: Path | None) -> Result:
    """Return how right nearest neighbours on the activations are."""
    vote = NearestNeighbours().fit(samples.f.cpu().numpy(), samples.y.cpu().numpy())
    return {**_judge(vote.predict_proba(samples.f_test.cpu().numpy()), samples.y_test), "k": vote.k_}


def all_layers(samples: Samples, encoder: Backbone, seed: int, parts: Path | None) -> Result:
    """A probe on the activations of all layers, with a selection among them."""
    device = str(samples.f.device)
    probe = AllLayersProbe(encoder.network, features_per_layer=FEATURES_PER_LAYER, device=device, random_state=seed)
    probe.fit(samples.inputs, samples.y.cpu().numpy())
    return {**_judge(probe.predict_proba(samples.test), samples.y_test), "fraction": float(probe.fraction_)}


def lqf_top(samples: Samples, encoder: Backbone, seed: int, parts: Path | None) -> Result:
    """LQF with the topmost convolution as θ₂, as in the tables' first column."""
    device = str(samples.f.device)
    model = lqf(encoder.network, theta2="auto", random_state=seed, device=device, checkpoint=parts)
    model.fit(samples.inputs, samples.y.cpu().numpy())
    return _judge(model.predict_proba(samples.test), samples.y_test)


def _judge(probability: np.ndarray, truth: np.ndarray) -> Result:
    """Return the accuracy, or the mean average precision of several labels, of the mean over a sample's views."""
    probability = probability.reshape(len(truth), -1, probability.shape[1]).mean(1)
    if truth.ndim == 1:
        return {"accuracy": accuracy(truth, probability.argmax(1))}
    return precisions_of(probability, truth)


LABEL_ROWS: dict[str, Baseline] = {"k-NN": nearest_neighbours, "all layers": all_layers}
ROWS: dict[str, Baseline] = {**LABEL_ROWS, "LQF": lqf_top}  # whose squared loss is of one class for each sample

TOPMOST = ("LQF",)
"""Rows of a model whose θ₂ is that of the first column; the others have none, and are the same in all columns."""
