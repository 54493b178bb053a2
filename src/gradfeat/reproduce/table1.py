"""Table 1: which part of the gradient's network must be pre-trained? CIFAR-10, BiGAN encoder (Sec. 4.2)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gradfeat.reproduce import published
from gradfeat.reproduce.ablation import STATES
from gradfeat.reproduce.baselines import ROWS
from gradfeat.reproduce.cells import Cell, Result
from gradfeat.reproduce.report import PUBLISHED, Number, Panel, Table
from gradfeat.reproduce.setting import Gradients, Setting

DEPTHS = published.TABLE1_DEPTHS
MODES = ("gradient", "full")
BLOCKS = tuple(itertools.product(STATES, STATES, STATES))  # θ₁, θ₂, ω


def cells(setting: Setting, seeds: Sequence[int]) -> list[Cell]:
    """Return all cells, those of one network one after another, since they share its kept samples."""
    found: list[Cell] = []
    for seed in seeds:
        found += [setting.activation(seed), *(setting.baseline(seed, name, row) for name, row in ROWS.items())]
        # the method's own row first; then the ablations, each depth in turn so that the time left is soon known
        for theta1, theta2 in reversed(list(itertools.product(STATES, STATES))):
            for depth in DEPTHS:
                for omega in reversed(STATES):
                    gradients = Gradients(depth, theta1, theta2, omega)
                    found += [setting.cell(seed, mode, gradients) for mode in MODES]
                if (theta1, theta2) == ("pre-trained", "pre-trained"):
                    found.append(setting.cell(seed, "finetune", Gradients(depth)))
    return found


def columns(top: int) -> dict[int, str]:
    """Return the names of the columns by depth, for an encoder of so many convolutions.

    Example:
        >>> columns(5)
        {1: 'conv5', 2: 'conv4-5', 3: 'conv3-5'}
    """
    return {depth: f"conv{top}" if depth == 1 else f"conv{top - depth + 1}-{top}" for depth in DEPTHS}


class Table1:
    """The numbers of a run, over seeds.

    Args:
        setting: Of the run.
        seeds: Of the run.
        results: By the names of cells; those not there are shown as missing.
    """

    def __init__(self, setting: Setting, seeds: Sequence[int], results: Mapping[str, Result]) -> None:
        self.setting, self.seeds, self.results = setting, seeds, results
        encoder: Any = setting.backbone.network
        self.columns = columns(len(encoder.blocks))

    def _of(self, mode: str, gradients: Gradients) -> Number:
        return Number.of(self.results, [self.setting.cell(seed, mode, gradients).name for seed in self.seeds])

    def activation(self) -> Number:
        """Return the accuracy of the probe."""
        return Number.of(self.results, [self.setting.activation(seed).name for seed in self.seeds])

    def table(self, title: str, remarks: list[str]) -> Table:
        """Return the rows of Table 1, then activation, fine-tuning and the baselines."""
        header = ["θ₁", "θ₂", "ω", *(part for name in self.columns.values() for part in (name, PUBLISHED))]
        rows = []
        for block in BLOCKS:
            row = list(block)
            for i, depth in enumerate(DEPTHS):
                ours = (self._of(mode, Gradients(depth, *block)) for mode in MODES)
                row += [" / ".join(map(str, ours)), " / ".join(f"{v:.2f}" for v in published.TABLE1[block][i])]
            rows.append(row)
        theirs = f"{published.TABLE1_ACTIVATION:.2f}"
        rows.append(["activation", "", "", *(part for _ in DEPTHS for part in (str(self.activation()), theirs))])
        row = ["fine-tuning", "", ""]
        for depth, value in zip(DEPTHS, published.TABLE1_FINETUNE, strict=True):
            row += [str(self._of("finetune", Gradients(depth))), f"{value:.2f}"]
        rows.append(row)
        for name, function in ROWS.items():
            names = [self.setting.baseline(seed, name, function).name for seed in self.seeds]
            rows.append([name, "", "", *(p for _ in DEPTHS for p in (str(Number.of(self.results, names)), ""))])
        return Table(title, header, rows, ["each cell: gradient / full, accuracy in %", *remarks])

    def panels(self) -> list[Panel]:
        """Return a panel for each depth."""
        rows = [" · ".join(block) for block in BLOCKS]
        return [
            Panel(
                name,
                rows,
                {mode: [self._of(mode, Gradients(depth, *block)) for block in BLOCKS] for mode in MODES},
                {"activation": self.activation(), "finetune": self._of("finetune", Gradients(depth))},
                {} if self.setting.scale.digits else _published(i),
                "θ₁ · θ₂ · ω of the gradient's network",
                apart=0.28,
            )
            for i, (depth, name) in enumerate(self.columns.items())
        ]


def _published(column: int) -> dict[str, list[float]]:
    return {mode: [published.TABLE1[block][column][j] for block in BLOCKS] for j, mode in enumerate(MODES)}
