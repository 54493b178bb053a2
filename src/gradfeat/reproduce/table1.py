"""Table 1: which part of the gradient's network must be pre-trained? CIFAR-10, BiGAN encoder (Sec. 4.2)."""

from __future__ import annotations

from typing import Any

from gradfeat.reproduce import published
from gradfeat.reproduce.ablation_table import Ablation
from gradfeat.reproduce.baselines import ROWS
from gradfeat.reproduce.report import ACCURACY
from gradfeat.reproduce.setting import Setting

DEPTHS = (1, 2, 3)  # how many of the topmost convolutions are θ₂


def columns(top: int) -> list[str]:
    """Return the names of the columns, for an encoder of so many convolutions.

    Example:
        >>> columns(5)
        ['conv5', 'conv4-5', 'conv3-5']
    """
    return [f"conv{top}" if depth == 1 else f"conv{top - depth + 1}-{top}" for depth in DEPTHS]


def _columns_of(setting: Setting) -> list[str]:
    encoder: Any = setting.backbone.network
    return columns(len(encoder.blocks))


TABLE = Ablation(
    tuple(published.TABLE1),
    DEPTHS,
    (ACCURACY,),
    published.TABLE1,
    published.TABLE1_ACTIVATION,
    published.TABLE1_FINETUNE,
    _columns_of,
    ROWS,
)
