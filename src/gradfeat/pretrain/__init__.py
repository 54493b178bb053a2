"""Pre-training without labels: one task a file."""

from __future__ import annotations

from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.pretrain.loop import load_encoder, save_encoder
from gradfeat.pretrain.run import TASKS, input_scaling, pretrain_encoder

__all__ = ["TASKS", "ConvEncoder", "input_scaling", "load_encoder", "pretrain_encoder", "save_encoder"]
