"""The form of Tables 1 and 2: a row for each gradient's network, a column for each θ₂, gradient / full in a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradfeat.reproduce.baselines import TOPMOST
from gradfeat.reproduce.cells import Cell, Result
from gradfeat.reproduce.report import PUBLISHED, SOURCE, Metric, Number, Panel, Table
from gradfeat.reproduce.setting import Baseline, Gradients, Setting

MODES = ("gradient", "full")
Block = tuple[str, str, str]  # θ₁, θ₂, ω


@dataclass(frozen=True)
class Ablation:
    """Rows and columns of a table, and what was published.

    Attributes:
        blocks: (θ₁, θ₂, ω) of the rows.
        depths: Of the columns.
        metrics: The first is shown first.
        published: Of each row, (gradient, full) of each column.
        of: What network and data were published; None where the table can be of no other.
        activation: Published.
        finetune: Published, of each column.
        baselines: Rows of other methods.
    """

    blocks: Sequence[Block]
    depths: Sequence[int]
    metrics: Sequence[Metric]
    published: Mapping[Block, Sequence[tuple[float, float]]]
    activation: float
    finetune: Sequence[float]
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    of: tuple[str, str] | None = None

    def cells(self, setting: Setting, seeds: Sequence[int]) -> list[Cell]:
        """Return all cells, those of one network one after another, since they share its kept samples."""
        found: list[Cell] = []
        # the method's own row first; then the ablations, each depth in turn so that the time left is soon known
        ordered = sorted(self.blocks, key=lambda block: [part != "pre-trained" for part in block])
        networks = list(dict.fromkeys(block[:2] for block in ordered))
        for seed in seeds:
            found += [setting.activation(seed)]
            found += [setting.baseline(seed, name, row) for name, row in self.baselines.items()]
            for network in networks:
                for depth in self.depths:
                    for block in ordered:
                        if block[:2] == network:
                            found += [setting.cell(seed, mode, Gradients(depth, *block)) for mode in MODES]
                    if network == ("pre-trained", "pre-trained"):
                        found.append(setting.cell(seed, "finetune", Gradients(depth)))
        return found


class AblationTable:
    """The numbers of a run, over seeds.

    Args:
        ablation: Which table.
        setting: Of the run.
        seeds: Of the run.
        results: By the names of cells; those not there are shown as missing.
        of: Network and data of the run.
    """

    def __init__(
        self,
        ablation: Ablation,
        setting: Setting,
        seeds: Sequence[int],
        results: Mapping[str, Result],
        of: tuple[str, str],
    ) -> None:
        self.ablation, self.setting, self.seeds, self.results = ablation, setting, seeds, results
        self._comparable = ablation.of in (None, of) or setting.scale.digits
        self.columns = dict(zip(ablation.depths, setting.columns, strict=True))

    def _of(self, mode: str, gradients: Gradients, metric: Metric) -> Number:
        names = [self.setting.cell(seed, mode, gradients).name for seed in self.seeds]
        return Number.of(self.results, names, metric.key)

    def _activation(self, metric: Metric) -> Number:
        return Number.of(self.results, [self.setting.activation(seed).name for seed in self.seeds], metric.key)

    def table(self, title: str, remarks: list[str]) -> Table:
        """Return the rows of the ablation, then activation, fine-tuning and other methods."""
        header = ["θ₁", "θ₂", "ω", *(part for name in self.columns.values() for part in (name, PUBLISHED))]
        shown = [i for i, name in enumerate(header) if self._comparable or name != PUBLISHED]
        first, *others = self.ablation.metrics
        rows, *more = ([[row[i] for i in shown] for row in self._rows(metric)] for metric in self.ablation.metrics)
        notes = [f"each cell: gradient / full, {first.title}", *([SOURCE] if self._comparable else []), *remarks]
        return Table(title, [header[i] for i in shown], rows, notes, (others[0].title, more[0]) if others else None)

    def _rows(self, metric: Metric) -> list[list[str]]:
        ablation = self.ablation
        rows = []
        for block in ablation.blocks:
            row = list(block)
            for i, depth in enumerate(ablation.depths):
                ours = (self._of(mode, Gradients(depth, *block), metric) for mode in MODES)
                row += [" / ".join(map(str, ours)), " / ".join(f"{v:.2f}" for v in ablation.published[block][i])]
            rows.append(row)
        probe = (str(self._activation(metric)), f"{ablation.activation:.2f}")
        rows.append(["activation", "", "", *(part for _ in ablation.depths for part in probe)])
        row = ["fine-tuning", "", ""]
        for depth, value in zip(ablation.depths, ablation.finetune, strict=True):
            row += [str(self._of("finetune", Gradients(depth), metric)), f"{value:.2f}"]
        rows.append(row)
        for name, function in ablation.baselines.items():
            names = [self.setting.baseline(seed, name, function).name for seed in self.seeds]
            number = str(Number.of(self.results, names, metric.key))
            of = [i == 0 or name not in TOPMOST for i, _ in enumerate(ablation.depths)]
            rows.append([name, "", "", *(part for shown in of for part in (number if shown else "", ""))])
        return rows

    def panels(self) -> list[Panel]:
        """Return a panel for each depth."""
        ablation, metric = self.ablation, self.ablation.metrics[0]
        return [
            Panel(
                name,
                [" · ".join(block) for block in ablation.blocks],
                {
                    mode: [self._of(mode, Gradients(depth, *block), metric) for block in ablation.blocks]
                    for mode in MODES
                },
                {"activation": self._activation(metric), "finetune": self._of("finetune", Gradients(depth), metric)},
                self._published(i) if self._comparable and not self.setting.scale.digits else {},
                "θ₁ · θ₂ · ω of the gradient's network",
                apart=0.28,
                unit=metric.unit,
            )
            for i, (depth, name) in enumerate(self.columns.items())
        ]

    def _published(self, column: int) -> dict[str, list[float | None]]:
        theirs = [self.ablation.published[block][column] for block in self.ablation.blocks]
        return {mode: [pair[j] for pair in theirs] for j, mode in enumerate(MODES)}
