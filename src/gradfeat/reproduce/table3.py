"""Table 3: the four models on small images, with encoders pre-trained without labels; θ₂ is the topmost convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradfeat.model import MODES
from gradfeat.reproduce import published
from gradfeat.reproduce.baselines import ROWS
from gradfeat.reproduce.cells import Cell, Result
from gradfeat.reproduce.report import PUBLISHED, Number, Panel, Table
from gradfeat.reproduce.setting import Gradients, Setting

TOP = Gradients(1)


def cells(setting: Setting, seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of one data set and encoder."""
    found: list[Cell] = []
    for seed in seeds:
        found += [setting.activation(seed), *(setting.baseline(seed, name, row) for name, row in ROWS.items())]
        found += [setting.cell(seed, mode, TOP) for mode in MODES if mode != "activation"]
    return found


class Table3:
    """The numbers of a run, over seeds.

    Args:
        settings: Of the run, by encoder and data set.
        seeds: Of the run.
        results: By the names of cells; those not there are shown as missing.
    """

    def __init__(
        self, settings: Mapping[tuple[str, str], Setting], seeds: Sequence[int], results: Mapping[str, Result]
    ) -> None:
        self.settings, self.seeds, self.results = settings, seeds, results

    def _of(self, setting: Setting, mode: str) -> Number:
        made = [setting.activation(s) if mode == "activation" else setting.cell(s, mode, TOP) for s in self.seeds]
        return Number.of(self.results, [cell.name for cell in made])

    def _baseline(self, setting: Setting, name: str) -> Number:
        return Number.of(self.results, [setting.baseline(seed, name, ROWS[name]).name for seed in self.seeds])

    def table(self, title: str, remarks: list[str]) -> Table:
        """Return a row for each encoder and data set, this run's numbers beside the published ones."""
        header = ["encoder", "data", *(part for mode in MODES for part in (mode, PUBLISHED)), *ROWS]
        rows = []
        for (encoder, data), setting in self.settings.items():
            theirs = published.TABLE3.get((encoder, data))
            row = [encoder, data]
            for i, mode in enumerate(MODES):
                row += [str(self._of(setting, mode)), "" if theirs is None else f"{theirs[i]:.2f}"]
            rows.append([*row, *(str(self._baseline(setting, name)) for name in ROWS)])
        return Table(title, header, rows, ["accuracy in %", *remarks])

    def panels(self) -> list[Panel]:
        """Return a panel for each encoder and data set, a row for each model."""
        panels = []
        for (encoder, data), setting in self.settings.items():
            theirs = published.TABLE3.get((encoder, data))
            points: dict[str, list[Number]] = {}
            known: dict[str, list[float | None]] = {}
            for i, mode in enumerate(MODES):
                points[mode] = [self._of(setting, mode) if j == i else Number(()) for j in range(len(MODES))]
                known[mode] = [theirs[i] if theirs is not None and j == i else None for j in range(len(MODES))]
            panels.append(Panel(f"{encoder}, {data}", MODES, points, {}, known))
        return panels
