"""Progress of long work: on a terminal one bar that knows the whole, elsewhere lines, or silence.

A piece of work (`Progress.whole`) has stages of roughly known cost; what they take as they go says how long the rest
will take. Without a terminal a line says which stage has begun, and another one follows every half minute.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

Step = Callable[[int, int | None], None]
"""Told how much of a stage is done, and how much there is in all (None: that is not known)."""

BRIEF = 1.0
"""Seconds that a stage lasts before it has a line of its own; shorter ones share one."""

EVERY = 30.0
"""Seconds from one line to the next in a stage."""

_GONE = (OSError, ValueError)
"""What a stream says whose reader or terminal has gone, whose disk is full, or that is closed: the work goes on."""

_TICK = 0.25  # seconds between two looks at the clock
_INSTANT = 0.05  # seconds of a stage that is not worth a word
_LISTED = 4  # brief stages that a line names
_ENOUGH = 0.04  # share of a stage from which on its own pace says how long it takes


@dataclass
class Stage:
    """A part of the work.

    Attributes:
        name: As `Progress.step` is called with it.
        cost: Rough, in any unit that all stages of a piece of work share; 0 says nothing about the others.
    """

    name: str
    cost: float = 0.0


@dataclass
class Forecast:
    """What of a piece of work is done, and how long the rest may take. Knows no clock: it is told the time.

    Attributes:
        ahead: Stages that are yet to come, in order.
        now: The present one, or None.
        begun: When that began.
        done: How much of it is done.
        total: Of how much; None where that is not known.
        finished: Stages that are done, with their seconds.
    """

    ahead: list[Stage] = field(default_factory=list)
    now: Stage | None = None
    begun: float = 0.0
    done: int = 0
    total: int | None = None
    finished: list[tuple[Stage, float]] = field(default_factory=list)
    _share: float = 0.0

    def begin(self, name: str, time: float) -> None:
        """Begin a stage; those before it in the plan were not needed, and one that is not there has no cost."""
        place = next((i for i, stage in enumerate(self.ahead) if stage.name == name), None)
        self.now = Stage(name) if place is None else self.ahead[place]
        if place is not None:
            del self.ahead[: place + 1]
        self.begun, self.done, self.total = time, 0, None

    def end(self, time: float) -> None:
        """End the present stage."""
        if self.now is not None:
            self.finished.append((self.now, time - self.begun))
            self.now = None

    def left(self, time: float) -> float | None:
        """Return the seconds that are left of the whole; None where nothing says so yet."""
        here = self._left_here(time)
        if here is None:
            return None
        spent = time - self.begun + here
        known = [*self.finished, *([(self.now, spent)] if self.now is not None else [])]
        rest = [self._expected(stage, known) for stage in self.ahead if stage.cost]
        return None if any(value is None for value in rest) else here + sum(value or 0.0 for value in rest)

    def share(self, time: float, start: float) -> float:
        """Return the share of the whole that is done, which never falls; `start` is when the whole began."""
        left = self.left(time)
        if left is not None and time > start:
            self._share = max(self._share, min((time - start) / (time - start + left), 0.99))
        return self._share

    def _left_here(self, time: float) -> float | None:
        """Return the seconds that are left of the present stage: by its own pace, or by that of those before it."""
        if self.now is None:
            return 0.0
        spent = time - self.begun
        if self.total and self.done >= max(1, _ENOUGH * self.total):
            return spent * max(self.total - self.done, 0) / self.done
        expected = self._expected(self.now, self.finished) if self.now.cost else None
        return None if expected is None or spent > 2 * expected else max(expected - spent, 0.0)

    def _expected(self, stage: Stage, known: Sequence[tuple[Stage, float]]) -> float | None:
        """Return the seconds that a stage takes: as its like did, or at the pace of all that have a cost."""
        like = [(other, spent) for other, spent in known if other.name == stage.name and other.cost]
        paid = like or [(other, spent) for other, spent in known if other.cost]
        cost = sum(other.cost for other, _ in paid)
        return stage.cost * sum(spent for _, spent in paid) / cost if cost else None


class _Display(Protocol):
    def tick(self, time: float) -> None: ...

    def part(self, time: float) -> None: ...

    def note(self, time: float, text: str) -> None: ...

    def close(self, time: float, finished: bool) -> None: ...


class Progress:
    """Shows how far a piece of work is; `show=False` makes every call free.

    Args:
        show: Whether to show anything.
        stream: Where to; None is standard error, with a bar where that is a terminal.
        clock: Seconds, from any beginning.
        watch: Whether a thread looks at the clock, so that a stage that reports nothing has lines too.

    Example:
        >>> with Progress(show=False).step("activations") as done:
        ...     done(1, 2)
    """

    def __init__(
        self,
        show: bool,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
    ) -> None:
        self.show = show and (stream is not None or sys.stderr is not None)
        self._stream, self._clock, self._watch = stream, clock, watch
        self._work: _Work | None = None
        self._lock = threading.RLock()

    @contextmanager
    def whole(self, title: str, stages: Sequence[Stage] = (), *, summary: bool = True) -> Iterator[None]:
        """Show all steps within as stages of one piece of work; within another one it is part of that.

        Args:
            title: What is done, such as the model's name.
            stages: Those that are expected, in order.
            summary: Whether a line at the end says how long it took, where there are lines.
        """
        if not self.show or self._work is not None:
            yield
            return
        work = self._work = _Work(title, Forecast(list(stages)), self._clock(), self._stream, summary)
        over = threading.Event()
        watcher = threading.Thread(target=self._look, args=(over,), name="gradfeat progress", daemon=True)
        finished = False
        try:
            if self._watch:
                watcher.start()
            yield
            finished = True
        finally:
            over.set()
            if self._watch:
                watcher.join(timeout=1)
            with self._lock:
                self._work = None
                work.display.close(self._clock(), finished)

    def part(self, title: str) -> None:
        """Give the present piece of work another title: that of the model whose turn it is."""
        if self._work is not None:
            with self._lock:
                self._work.display.part(self._clock())
                self._work.title = title

    def note(self, text: str) -> None:
        """Say something once, where the work has taken long enough for words."""
        if self._work is not None:
            with self._lock:
                self._work.display.note(self._clock(), text)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Begin a stage; the value is called with (done, in all)."""
        if not self.show:
            yield _silent
            return
        if self._work is None:
            with self.whole("", summary=False), self.step(name) as alone:
                yield alone
            return
        forecast = self._work.forecast
        if forecast.now is not None:  # a stage within a stage is no news
            yield _silent
            return
        with self._lock:
            forecast.begin(name, self._clock())

        def report(done: int, total: int | None) -> None:
            with self._lock:
                forecast.done, forecast.total = done, total
            self.tick()

        try:
            yield report
        finally:
            self.tick()
            with self._lock:
                forecast.end(self._clock())

    def tick(self) -> None:
        """Look at the clock, and show what is due."""
        with self._lock:
            if self._work is not None:
                self._work.display.tick(self._clock())

    def _look(self, over: threading.Event) -> None:
        while not over.wait(_TICK):
            self.tick()


class _Work:
    """A piece of work: its title, how far it is, and what shows it."""

    def __init__(self, title: str, forecast: Forecast, start: float, stream: TextIO | None, summary: bool) -> None:
        self.title, self.forecast, self.start, self.summary = title, forecast, start, summary
        console = _terminal() if stream is None else None
        self.display: _Display = _Lines(self, stream) if console is None else _Bar(self, console)

    def stage(self) -> str:
        """Return the present stage, and how much of it is done."""
        forecast = self.forecast
        if forecast.now is None:
            return ""
        if not forecast.done and not forecast.total:
            return forecast.now.name
        total = " done" if forecast.total is None else f" of {forecast.total:,}"
        return f"{forecast.now.name}, {forecast.done:,}{total}"


class _Lines:
    """A line where a stage has begun, and every half minute."""

    def __init__(self, work: _Work, stream: TextIO | None) -> None:
        # as it is now: it may be silenced for a while, as where a network is captured
        self.work, self.stream = work, sys.stderr if stream is None else stream
        self.last = work.start
        self.announced = -1  # place of the stage that has its line
        self.told = 0  # finished stages that need no more words

    def tick(self, time: float) -> None:
        forecast = self.work.forecast
        if forecast.now is None or time - forecast.begun < BRIEF:
            return
        place = len(forecast.finished)
        if self.announced == place and time - self.last < EVERY:
            return
        if self.announced != place:
            self._brief(time)
            self.announced, self.told = place, place + 1
        left = forecast.left(time)
        more = f", {_about(left)} left" if left is not None and left > BRIEF else ""
        self._line(time, f"{self.work.stage()}{more}")

    def part(self, time: float) -> None:
        self._brief(time)

    def note(self, time: float, text: str) -> None:
        if time - self.work.start >= BRIEF:
            self._line(time, text)

    def close(self, time: float, finished: bool) -> None:
        if self.work.summary and finished:
            self._brief(time)
            self._line(time, f"done in {_took(time - self.work.start)}")

    def _brief(self, time: float) -> None:
        """Name the stages that were too short for a line each."""
        finished = self.work.forecast.finished
        brief = [(stage, spent) for stage, spent in finished[self.told :] if spent >= _INSTANT]
        self.told = max(self.told, len(finished))
        if not brief or not self.work.summary:
            return
        if len(brief) <= _LISTED:
            self._line(time, ", ".join(f"{stage.name} {_took(spent)}" for stage, spent in brief))
            return
        spent = sum(spent for _, spent in brief)
        self._line(time, f"{brief[0][0].name} to {brief[-1][0].name}, {len(brief)} stages {_took(spent)}")

    def _line(self, time: float, text: str) -> None:
        title = f"{self.work.title}: " if self.work.title else ""
        self.last = time
        with suppress(*_GONE):
            self.stream.write(f"[{_clock_face(time - self.work.start)}] {title}{text}\n")
            self.stream.flush()


class _Bar:
    """One bar for the whole, which disappears at the end."""

    def __init__(self, work: _Work, console: Any) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        self.work = work
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True, min_width=15)),
        )
        self.bars = Bars(*columns, console=console, transient=True, expand=True)
        self.task = self.bars.add_task(work.title, total=1.0, left="")
        with suppress(*_GONE):
            self.bars.start()

    def tick(self, time: float) -> None:
        work = self.work
        left = work.forecast.left(time)
        title = ": ".join(part for part in (work.title, work.stage()) if part)
        share = work.forecast.share(time, work.start)
        left_text = f"{_about(left)} left" if left else ""
        with suppress(*_GONE):
            self.bars.update(self.task, description=title, completed=share, left=left_text)

    def part(self, time: float) -> None:
        pass

    def note(self, time: float, text: str) -> None:
        if time - self.work.start >= BRIEF:
            with suppress(*_GONE):
                self.bars.console.print(text, markup=False, highlight=False)

    def close(self, time: float, finished: bool) -> None:
        with suppress(*_GONE):
            self.bars.stop()


def _terminal() -> Any:
    """Return a console of standard error where that is a terminal on which lines can be redrawn; else None."""
    if getattr(sys.stderr, "closed", False) or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(file=sys.stderr)  # as it is now, as of lines
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _about(seconds: float) -> str:
    """Return a rough time in words.

    Example:
        >>> _about(4), _about(43), _about(312), _about(7_500)
        ('under 10 s', 'about 40 s', 'about 5 min', 'about 2 h 5 min')
    """
    if seconds < 10:
        return "under 10 s"
    if seconds < 55:
        return f"about {10 * round(seconds / 10)} s"
    minutes = max(1, round(seconds / 60))
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes} min" if hours else f"about {minutes} min"


def _took(seconds: float) -> str:
    """Return a time that has passed.

    Example:
        >>> _took(0.43), _took(12.2), _took(83)
        ('0.4 s', '12 s', '1 min 23 s')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _silent(done: int, total: int | None) -> None:
    """Show nothing."""
