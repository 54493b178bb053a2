"""Rows of other methods below a table, on the same samples and the same encoder.

A row is a name and a function (see `gradfeat.reproduce.setting.Baseline`) of the samples, the encoder and a seed, which
returns numbers, "accuracy" (0 to 1) among them. Whatever it chooses, it chooses on training data. A new row is one line
of `ROWS`; every table then has it, with a cell of its own for each seed.
"""

from __future__ import annotations

import numpy as np

from gradfeat.backbones import Backbone
from gradfeat.baselines import AllLayersProbe, NearestNeighbours, lqf
from gradfeat.reproduce.cells import Result
from gradfeat.reproduce.setting import Baseline, Samples

FEATURES_PER_LAYER = 128


def nearest_neighbours(samples: Samples, encoder: Backbone, seed: int) -> Result:
    """Return the accuracy of nearest neighbours on the activations."""
    vote = NearestNeighbours().fit(samples.f.cpu().numpy(), samples.y.cpu().numpy())
    predicted = vote.predict(samples.f_test.cpu().numpy())
    return {"accuracy": float(np.mean(predicted == samples.y_test)), "k": vote.k_}


def all_layers(samples: Samples, encoder: Backbone, seed: int) -> Result:
    """A probe on the activations of all layers, with a selection among them."""
    probe = AllLayersProbe(encoder.network, features_per_layer=FEATURES_PER_LAYER, random_state=seed)
    probe.fit(samples.inputs, samples.y.cpu().numpy())
    predicted = probe.predict(samples.test)
    return {"accuracy": float(np.mean(predicted == samples.y_test)), "fraction": float(probe.fraction_)}


def lqf_top(samples: Samples, encoder: Backbone, seed: int) -> Result:
    """LQF with the topmost convolution as θ₂, as in the tables' first column."""
    model = lqf(encoder.network, theta2="auto", random_state=seed).fit(samples.inputs, samples.y.cpu().numpy())
    return {"accuracy": float(np.mean(model.predict(samples.test) == samples.y_test))}


ROWS: dict[str, Baseline] = {"k-NN": nearest_neighbours, "all layers": all_layers, "LQF": lqf_top}
