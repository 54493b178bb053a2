"""Progress of long steps: bars with the time left, or silence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Step = Callable[[int, int], None]


class Progress:
    """Shows how far long steps are, on a terminal only; `show=False` makes every call free.

    Example:
        >>> with Progress(show=False).step("activations") as done:
        ...     done(1, 2)
    """

    def __init__(self, show: bool) -> None:
        self.show = show and sys.stderr.isatty()
        self._bars: Any = None
        self._depth = 0

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Open a bar; the value is called with (done, in all)."""
        if not self.show:
            yield _silent
            return
        bars = self._open()
        task = bars.add_task(name, total=None)
        try:
            yield lambda done, total: bars.update(task, completed=done, total=total)
        finally:
            bars.update(task, visible=False)
            self._close()

    def _open(self) -> Any:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        self._depth += 1
        return self._bars

    def _close(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._bars.stop()
            self._bars = None


def _silent(done: int, total: int) -> None:
    """Show nothing."""
