"""Table 3: the four models on small images, with encoders pre-trained without labels; θ₂ is the topmost convolution."""

from __future__ import annotations

from gradfeat.reproduce import published
from gradfeat.reproduce.baselines import ROWS
from gradfeat.reproduce.models_table import FourModels
from gradfeat.reproduce.report import ACCURACY

TABLE = FourModels((ACCURACY,), published.TABLE3, ROWS)
