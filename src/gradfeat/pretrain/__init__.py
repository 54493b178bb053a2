"""Pre-training, mostly without labels: one task a file, on one loop."""

from __future__ import annotations

from gradfeat.pretrain.encoder import ConvEncoder
from gradfeat.pretrain.encoder_file import load_encoder, save_encoder
from gradfeat.pretrain.run import NETWORKS, TASKS, input_scaling, pretrain_encoder

__all__ = ["NETWORKS", "TASKS", "ConvEncoder", "input_scaling", "load_encoder", "pretrain_encoder", "save_encoder"]
