from __future__ import annotations

import io
import itertools
import re
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradfeat import GradientFeatureClassifier, compare
from gradfeat import progress as module
from gradfeat.progress import EVERY, Forecast, Progress, Stage


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A progress without a thread, whose clock is put forward second by second."""

    def __init__(self) -> None:
        self.clock, self.stream = Clock(), io.StringIO()
        self.progress = Progress(True, stream=self.stream, clock=self.clock, watch=False)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.now += 1.0
            self.progress.tick()
        self.clock.now += seconds % 1

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def watched() -> Watched:
    return Watched()


# ---- lines --------------------------------------------------------------------------------------


def test_a_line_where_a_stage_begins_and_one_every_half_minute(watched: Watched) -> None:
    with watched.progress.whole("full", [Stage("fit", 1)]), watched.progress.step("fit") as done:
        watched.wait(95)  # a stage that reports nothing
        done(1, None)
    assert watched.lines == [
        "[0:01] full: fit",
        "[0:31] full: fit",
        "[1:01] full: fit",
        "[1:31] full: fit",
        "[1:35] full: done in 1 min 35 s",
    ]


def test_what_is_done_and_the_time_left_are_said(watched: Watched) -> None:
    with watched.progress.whole("full", [Stage("a", 1), Stage("b", 3)]):
        with watched.progress.step("a") as done:
            watched.wait(20)
            watched.clock.now += 11
            done(620, 1_000)
            watched.wait(19)
        with watched.progress.step("b"):
            watched.wait(2)
    assert watched.lines == [
        "[0:01] full: a",
        "[0:31] full: a, 620 of 1,000, about 3 min left",  # 31 s: 19 s more, and three times 50 s for the next stage
        "[0:51] full: b, about 2 min left",  # 149 s
        "[0:52] full: done in 52 s",
    ]


def test_brief_stages_share_a_line(watched: Watched) -> None:
    with watched.progress.whole("full"):
        for name, seconds in (("a", 0.5), ("b", 0.25)):
            with watched.progress.step(name):
                watched.wait(seconds)
        with watched.progress.step("c"):
            watched.wait(3)
        with watched.progress.step("d"):
            watched.wait(0.5)
    assert watched.lines == [
        "[0:01] full: a 0.5 s, b 0.2 s",
        "[0:01] full: c",
        "[0:04] full: d 0.5 s",
        "[0:04] full: done in 4.2 s",
    ]


def test_a_short_step_of_its_own_has_no_line(watched: Watched) -> None:
    with watched.progress.step("predict") as done:
        watched.wait(0.5)
        done(3, 3)
    assert watched.lines == []
    with watched.progress.step("predict") as done:
        watched.wait(2)
        done(1, 3)
        watched.wait(30)
    assert watched.lines == ["[0:01] predict", "[0:31] predict, 1 of 3, about 1 min left"]


def test_the_model_whose_turn_it_is_has_its_name(watched: Watched) -> None:
    with watched.progress.whole("compare"):
        for k, mode in enumerate(("gradient", "full"), 1):
            watched.progress.part(f"{mode} (model {k}/2)")
            with watched.progress.step("fit"):
                watched.wait(2)
    assert [line.split("] ")[1] for line in watched.lines[:2]] == ["gradient (model 1/2): fit", "full (model 2/2): fit"]


def test_a_failure_is_not_called_done(watched: Watched) -> None:
    def fails() -> None:
        with watched.progress.whole("full"), watched.progress.step("fit"):
            watched.wait(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert watched.lines == ["[0:01] full: fit"]
    with watched.progress.step("predict"):  # and the same object goes on
        watched.wait(1)
    assert watched.lines[-1] == "[0:01] predict"


def test_a_stage_within_a_stage_is_part_of_it(watched: Watched) -> None:
    with watched.progress.whole("full"), watched.progress.step("outer"):
        with watched.progress.step("inner") as done:
            done(1, 2)
        watched.wait(2)
    assert watched.lines[0] == "[0:01] full: outer"


def test_nothing_is_shown_where_nothing_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(False)
    before = threading.active_count()
    with progress.whole("full", [Stage("fit", 1)]), progress.step("fit") as done:
        assert threading.active_count() == before
        done(1, 2)
    progress.tick()
    assert capsys.readouterr() == ("", "")


def test_a_thread_looks_at_the_clock_of_a_stage_that_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BRIEF", 0.0)
    stream = io.StringIO()
    progress = Progress(True, stream=stream)
    with progress.whole("full"), progress.step("fit"):
        until = time.monotonic() + 10
        while not stream.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        assert stream.getvalue() == "[0:00] full: fit\n"
    assert not any(thread.name == "gradfeat progress" for thread in threading.enumerate())


def test_lines_go_to_the_stream_of_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    first = io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    clock = Clock()
    progress = Progress(True, clock=clock, watch=False)
    with progress.whole("full"), progress.step("linearize"):
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # as while torch exports a network
        clock.now += 2
        progress.tick()
    assert first.getvalue().startswith("[0:02] full: linearize")


# ---- the whole ----------------------------------------------------------------------------------


def test_time_left_follows_the_pace_of_what_is_done() -> None:
    forecast = Forecast([Stage("network"), Stage("a", 2), Stage("b", 1), Stage("c", 4), Stage("b", 1)])
    forecast.begin("network", 0.0)
    assert forecast.left(5.0) is None  # which says nothing about the rest
    forecast.end(10.0)
    forecast.begin("a", 10.0)
    assert forecast.left(11.0) is None
    forecast.done, forecast.total = 1, 4
    assert forecast.left(12.0) == pytest.approx(6 + 4 * 6)  # 8 s for a cost of 2, and a cost of 6 ahead
    forecast.end(18.0)
    forecast.begin("b", 18.0)
    assert forecast.left(19.0) == pytest.approx(3 + 16 + 4)
    forecast.end(28.0)  # slower than it should be: so will the other one be; and the mean of all says how long c takes
    forecast.begin("c", 28.0)
    assert forecast.left(28.0) == pytest.approx(4 * 18 / 3 + 10)


def test_stages_that_are_not_needed_are_passed_over() -> None:
    forecast = Forecast([Stage("a", 1), Stage("b", 100), Stage("c", 1)])
    forecast.begin("a", 0.0)
    forecast.end(5.0)
    forecast.begin("c", 5.0)
    assert forecast.left(6.0) == pytest.approx(4)
    forecast.begin("unknown", 10.0)  # a stage that nobody expected has no forecast of its own
    assert forecast.left(11.0) is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.01, 100), st.integers(0, 5)), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 10)), max_size=8),
)
def test_the_share_never_falls_and_time_left_is_never_negative(work: list[Any], plan: list[Any]) -> None:
    forecast = Forecast([Stage(name, cost) for name, cost in plan])
    now, shares = 0.0, [0.0]
    for name, seconds, reports in work:
        forecast.begin(name, now)
        for k in range(reports):
            now += seconds / reports
            forecast.done, forecast.total = k + 1, reports
            shares.append(forecast.share(now, 0.0))
            left = forecast.left(now)
            assert left is None or left >= 0
        forecast.end(now)
    assert all(0 <= a <= b < 1 for a, b in itertools.pairwise(shares))


# ---- of a fit -----------------------------------------------------------------------------------


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))


X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "full", "metric": "plain"},
        {"mode": "full", "rounds": 60},
        {"mode": "finetune", "epochs": 2},
        {"mode": "gradient", "solver": "adam", "epochs": 2},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_stage_of_a_fit_is_expected(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, bool]] = []
    begin = Forecast.begin

    def spy(forecast: Forecast, name: str, now: float) -> None:
        begun.append((name, any(stage.name == name for stage in forecast.ahead)))
        begin(forecast, name, now)

    monkeypatch.setattr(Forecast, "begin", spy)
    many = np.random.default_rng(1).normal(size=(80, 4)).astype(np.float32)  # of a product rounds learn most
    labels = (many[:, 0] * many[:, 1] > 0).astype(int)
    model = GradientFeatureClassifier(_network(), theta2="*", **settings, random_state=3, verbose=True)
    model.fit(many, labels)
    assert (model.rounds_ is not None) == ("rounds" in settings)
    assert len(begun) >= 5
    assert [name for name, expected in begun if not expected] == []


def test_verbose_in_python_is_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BRIEF", 0.0)
    GradientFeatureClassifier(_network(), mode="activation", random_state=0, verbose=True).fit(X, Y)
    out, err = capsys.readouterr()
    assert out == ""
    assert all(re.match(r"\[\d+:\d\d\] activation: \w", line) for line in err.splitlines())
    assert {"linearize", "activations", "probe", "done"} <= {re.split(r"[ ,]", line)[2] for line in err.splitlines()}
    GradientFeatureClassifier(_network(), mode="activation", random_state=0).fit(X, Y)
    assert capsys.readouterr() == ("", "")


def test_compare_names_each_of_its_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BRIEF", 0.0)
    compare(_network(), X, Y, X, Y, modes=["activation", "full"], penalty=0.1, random_state=0, verbose=True)
    err = capsys.readouterr().err
    assert "] compare: linearize" in err
    assert "] activation (model 1/2): test" in err
    assert "] full (model 2/2): fit" in err
    assert err.splitlines()[-1].split("] ")[1].startswith("compare: done in ")


def test_a_line_comes_every_half_minute() -> None:
    assert EVERY == 30.0


# ---- on a terminal ------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """What a program writes to a terminal."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """Return all that was ever shown in a row, without colours and movements."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())
        return [row.strip() for row in re.split(r"[\r\n]", plain) if row.strip()]

    def wait_for(self, start: str) -> str:
        """Return the row that begins so, as soon as the bar, which is drawn ten times a second, is drawn so."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            found = [row for row in self.rows() if row.startswith(start)]
            if found:
                return found[-1]
            time.sleep(0.02)
        return pytest.fail(f"no row begins with {start!r}: {self.rows()}")


def test_on_a_terminal_there_is_one_bar_for_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    clock = Clock()
    progress = Progress(True, clock=clock, watch=False)
    with progress.whole("compare", [Stage("activations", 1), Stage("penalties", 3)]):
        with progress.step("activations") as done:
            clock.now += 10
            done(1, 2)
            screen.wait_for("compare: activations, 1 of 2")
            clock.now += 10
        progress.part("gradient (model 2/4)")
        with progress.step("penalties") as done:
            clock.now += 20
            done(1, 3)
            row = screen.wait_for("gradient (model 2/4): penalties, 1 of 3")
            assert " 50%" in row  # 40 s of 80
            assert row.endswith("about 40 s left")
            assert "\x1b[1A" not in screen.getvalue()  # the cursor never goes up: one row is all that is drawn
    assert not any("done in" in row for row in screen.rows())


@pytest.mark.parametrize("kind", [Terminal, io.StringIO], ids=["a dumb terminal", "no terminal"])
def test_lines_where_a_terminal_cannot_redraw(kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    clock = Clock()
    progress = Progress(True, clock=clock, watch=False)
    with progress.whole("full", summary=False), progress.step("fit"):
        clock.now += 2
        progress.tick()
    assert stream.getvalue() == "[0:02] full: fit\n"


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed file")]
)
def test_a_stream_that_cannot_be_written_stops_no_work(error: Exception) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    clock, done = Clock(), []
    progress = Progress(True, stream=Gone(), clock=clock, watch=False)
    with progress.whole("full"), progress.step("penalties") as step:
        clock.now = EVERY
        step(1, 2)
        done.append("penalties")
    assert done == ["penalties"]


def test_a_closed_standard_error_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    with Progress(True).whole("full"), Progress(True).step("fit") as step:
        step(1, 1)


def test_a_note_is_a_line_where_the_work_is_long_enough_for_words() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(True, stream=stream, clock=clock, watch=False)
    progress.note("nothing is at work")
    with progress.whole("full", summary=False):
        progress.note("too soon")
        clock.now = EVERY
        progress.note("kept: z₀ of all")
    assert stream.getvalue() == f"[0:{EVERY:02.0f}] full: kept: z₀ of all\n"
    Progress(False).note("silent")
