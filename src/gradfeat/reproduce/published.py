"""The published numbers (Mu, Liang & Li, ICLR 2020): accuracy, or mean average precision, in percent."""

from __future__ import annotations

Pair = tuple[float, float]

TABLE1: dict[tuple[str, str, str], tuple[Pair, Pair, Pair]] = {
    ("random", "random", "random"): ((23.09, 62.83), (26.30, 62.83), (27.52, 62.85)),
    ("random", "random", "pre-trained"): ((40.23, 63.11), (43.36, 63.42), (44.36, 63.38)),
    ("random", "pre-trained", "random"): ((32.50, 62.98), (33.20, 63.10), (35.13, 63.10)),
    ("random", "pre-trained", "pre-trained"): ((44.07, 63.99), (45.87, 64.21), (48.88, 64.51)),
    ("pre-trained", "random", "random"): ((53.39, 63.74), (56.24, 64.30), (57.20, 64.60)),
    ("pre-trained", "random", "pre-trained"): ((59.98, 65.46), (61.47, 65.38), (59.89, 64.73)),
    ("pre-trained", "pre-trained", "random"): ((70.28, 69.84), (71.08, 70.10), (71.60, 70.64)),
    ("pre-trained", "pre-trained", "pre-trained"): ((70.14, 70.51), (70.89, 70.78), (71.55, 71.37)),
}
"""(θ₁, θ₂, ω) -> (gradient, full) for θ₂ = conv5, conv4-5, conv3-5."""

TABLE1_ACTIVATION = 62.87
TABLE1_FINETUNE = (71.78, 73.18, 74.30)

TABLE2: dict[tuple[str, str, str], tuple[Pair, Pair]] = {
    ("pre-trained", "pre-trained", "pre-trained"): ((83.05, 83.50), (83.12, 83.40)),
    ("pre-trained", "pre-trained", "random"): ((80.74, 83.15), (80.30, 82.97)),
    ("random", "random", "random"): ((15.63, 82.84), (17.96, 82.85)),
}
"""(θ₁, θ₂, ω) -> (gradient, full) for θ₂ = the last residual block, the last two; ResNet-18, VOC07, centre crop."""

TABLE2_ACTIVATION = 82.65
TABLE2_FINETUNE = (82.97, 82.50)

TABLE3: dict[tuple[str, str], tuple[float, float, float, float]] = {
    ("bigan", "svhn"): (82.04, 89.91, 89.96, 91.15),
    ("bigan", "cifar10"): (62.87, 70.14, 70.51, 71.78),
    ("bigan", "cifar100"): (34.30, 38.99, 39.37, 41.05),
    ("vae", "svhn"): (81.95, 91.44, 90.90, 93.61),
    ("vae", "cifar10"): (52.05, 61.47, 61.16, 65.16),
    ("vae", "cifar100"): (29.20, 35.10, 34.83, 37.86),
}
"""(encoder, data) -> activation, gradient, full, fine-tuning; θ₂ is the topmost convolution."""

TABLE4: dict[tuple[str, str], tuple[float, float, float, float]] = {
    ("jigsaw", "voc07"): (57.83, 57.73, 61.70, 67.88),
    ("jigsaw", "coco2014"): (42.10, 41.02, 45.62, 52.66),
    ("ImageNet", "voc07"): (83.59, 84.63, 84.95, 84.14),
    ("ImageNet", "coco2014"): (62.98, 66.33, 66.45, 63.43),
}
"""(network, data) -> activation, gradient, full, fine-tuning; ten crops; θ₂ is the last residual block."""
