"""Other ways to use a pre-trained network without moving it, to compare with: one method a file."""

from __future__ import annotations

from gradfeat.baselines.all_layers import AllLayersProbe
from gradfeat.baselines.knn import NearestNeighbours
from gradfeat.baselines.lqf import leaky, lqf

__all__ = ["AllLayersProbe", "NearestNeighbours", "leaky", "lqf"]
