"""Table 1: which part of the gradient's network must be pre-trained? CIFAR-10, BiGAN encoder (Sec. 4.2).

Other encoders and data are asked the same, without published numbers beside theirs.
"""

from __future__ import annotations

from gradfeat.reproduce import published
from gradfeat.reproduce.ablation_table import Ablation
from gradfeat.reproduce.baselines import ROWS
from gradfeat.reproduce.report import ACCURACY

TABLE = Ablation(
    tuple(published.TABLE1),
    (1, 2, 3),
    (ACCURACY,),
    published.TABLE1,
    published.TABLE1_ACTIVATION,
    published.TABLE1_FINETUNE,
    ROWS,
    of=("bigan", "cifar10"),
)
