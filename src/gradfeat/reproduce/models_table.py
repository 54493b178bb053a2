"""The form of Tables 3 and 4: a row for each network and data set, the four models in the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradfeat.model import MODES
from gradfeat.reproduce.cells import Cell, Result
from gradfeat.reproduce.report import PUBLISHED, SOURCE, Metric, Number, Panel, Table
from gradfeat.reproduce.setting import Baseline, Gradients, Setting

TOP = Gradients(1)
Key = tuple[str, str]  # network, data


@dataclass(frozen=True)
class FourModels:
    """What a table of the four models shows.

    Attributes:
        metrics: The first is shown first.
        published: Activation, gradient, full and fine-tuning by network and data set, as far as published.
        baselines: Columns of other methods.
    """

    metrics: Sequence[Metric]
    published: Mapping[Key, Sequence[float | None]]
    baselines: Mapping[str, Baseline] = field(default_factory=dict)

    def cells(self, setting: Setting, seeds: Sequence[int]) -> list[Cell]:
        """Return the cells of one network and data set."""
        found: list[Cell] = []
        for seed in seeds:
            found += [setting.activation(seed)]
            found += [setting.baseline(seed, name, row) for name, row in self.baselines.items()]
            found += [setting.cell(seed, mode, TOP) for mode in MODES if mode != "activation"]
        return found


class ModelsTable:
    """The numbers of a run, over seeds.

    Args:
        models: Which table.
        settings: Of the run, by network and data set.
        seeds: Of the run.
        results: By the names of cells; those not there are shown as missing.
    """

    def __init__(
        self,
        models: FourModels,
        settings: Mapping[Key, Setting],
        seeds: Sequence[int],
        results: Mapping[str, Result],
    ) -> None:
        self.models, self.settings, self.seeds, self.results = models, settings, seeds, results

    def _of(self, setting: Setting, mode: str, metric: Metric) -> Number:
        made = [setting.activation(s) if mode == "activation" else setting.cell(s, mode, TOP) for s in self.seeds]
        return Number.of(self.results, [cell.name for cell in made], metric.key)

    def table(self, title: str, remarks: list[str]) -> Table:
        """Return a row for each network and data set, this run's numbers beside the published ones."""
        header = ["network", "data", *(part for mode in MODES for part in (mode, PUBLISHED)), *self.models.baselines]
        first, *others = self.models.metrics
        more = (others[0].title, self._rows(others[0])) if others else None
        return Table(title, header, self._rows(first), [first.title, SOURCE, *remarks], more)

    def _rows(self, metric: Metric) -> list[list[str]]:
        rows = []
        for (network, data), setting in self.settings.items():
            row = [network, data]
            for mode, value in zip(MODES, self._theirs((network, data)), strict=True):
                row += [str(self._of(setting, mode, metric)), "" if value is None else f"{value:.2f}"]
            for name, function in self.models.baselines.items():
                names = [setting.baseline(seed, name, function).name for seed in self.seeds]
                row.append(str(Number.of(self.results, names, metric.key)))
            rows.append(row)
        return rows

    def _theirs(self, key: Key) -> Sequence[float | None]:
        return self.models.published.get(key, [None] * len(MODES))

    def panels(self) -> list[Panel]:
        """Return a panel for each network and data set, a row for each model."""
        panels, metric = [], self.models.metrics[0]
        for (network, data), setting in self.settings.items():
            theirs = self._theirs((network, data))
            points: dict[str, list[Number]] = {}
            known: dict[str, list[float | None]] = {}
            for i, mode in enumerate(MODES):
                points[mode] = [self._of(setting, mode, metric) if j == i else Number(()) for j in range(len(MODES))]
                known[mode] = [theirs[i] if j == i else None for j in range(len(MODES))]
            panels.append(Panel(f"{network}, {data}", MODES, points, {}, known, unit=metric.unit))
        return panels
