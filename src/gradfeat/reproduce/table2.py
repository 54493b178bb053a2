"""Table 2: the same question for a network trained on ImageNet, on VOC07 with one centre crop (Sec. 4.2)."""

from __future__ import annotations

from gradfeat.reproduce import published
from gradfeat.reproduce.ablation_table import Ablation
from gradfeat.reproduce.baselines import LABEL_ROWS
from gradfeat.reproduce.report import MAP

TABLE = Ablation(
    tuple(published.TABLE2),
    (1, 2),
    MAP,
    published.TABLE2,
    published.TABLE2_ACTIVATION,
    published.TABLE2_FINETUNE,
    LABEL_ROWS,
)
