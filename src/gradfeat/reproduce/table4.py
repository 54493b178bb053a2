"""Table 4: the four models on images with several labels, with self-supervised and supervised networks; ten crops."""

from __future__ import annotations

from gradfeat.reproduce import published
from gradfeat.reproduce.baselines import LABEL_ROWS
from gradfeat.reproduce.models_table import FourModels
from gradfeat.reproduce.report import MAP

CROPS = 10

TABLE = FourModels(MAP, published.TABLE4, LABEL_ROWS)
