"""What a capture says nothing of, it says nothing of in its own thread; and all is afterwards as it was."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradfeat import linearize
from gradfeat.errors import LinearizationError
from gradfeat.linearization.quiet import quiet
from gradfeat.linearization.rules.fallback import plain_kernels

SECONDS = 120  # after which a thread that waits is taken to wait for ever
LOGGERS = ("torch", "torch.fx.experimental.symbolic_shapes", "my.application")


class Calling(nn.Module):
    """A linear layer; a function is called whenever it runs."""

    def __init__(self, called: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        self.called(x)
        return self.layer(x)


class Records(logging.Handler):
    """Keeps the messages that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def records() -> Iterator[Records]:
    """A handler of all loggers that the tests use."""
    handler = Records()
    loggers = [logging.getLogger(name) for name in ("torch", LOGGERS[1], "my")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


def speak(who: str) -> None:
    """Log, warn, and write to standard error."""
    for name in LOGGERS:
        logging.getLogger(name).error("%s of %s", who, name)
    warnings.warn(f"{who} warns", stacklevel=1)
    print(f"{who} prints", file=sys.stderr)


def capture(called: Callable[[Tensor], None]) -> None:
    linearize(Calling(called).eval(), torch.randn(3, 3), "*", check=False)


def state() -> list[Any]:
    """Return what a process has one of for all threads, and captures might change."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    handlers = {id(handler): handler for logger in [logging.root, *loggers] for handler in logger.handlers}
    return [
        sys.stderr,
        warnings.showwarning,
        list(warnings.filters),
        logging.root.manager.disable,
        [(logger.level, logger.disabled, list(logger.filters)) for logger in loggers],
        {name: list(handler.filters) for name, handler in handlers.items()},
        [nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__],
        [torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled()],
        [torch.get_default_dtype(), torch.is_grad_enabled(), torch.compiler.is_exporting()],
    ]


@pytest.mark.filterwarnings("always")
def test_a_thread_loses_nothing_that_it_says_while_another_captures(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    captures, spoken = threading.Event(), threading.Event()

    def called(x: Tensor) -> None:
        captures.set()
        assert spoken.wait(SECONDS)
        speak("capture")

    with warnings.catch_warnings(record=True) as warned, ThreadPoolExecutor(1) as pool:
        capturing = pool.submit(capture, called)
        assert captures.wait(SECONDS)
        speak("application")
        spoken.set()
        capturing.result(SECONDS)
    expected = [f"application of {name}" for name in LOGGERS]
    assert {message for message in records.messages if message.startswith("application")} == {*expected}
    assert "capture of my.application" in records.messages  # which is no remark of torch's
    assert not {"capture of torch", f"capture of {LOGGERS[1]}"} & {*records.messages}
    assert [str(warning.message) for warning in warned] == ["application warns"]
    printed = capsys.readouterr().err
    assert "application prints" in printed
    assert "capture prints" not in printed


def works(x: Tensor) -> None:
    pass


def fails(x: Tensor) -> None:
    raise ValueError("of the network")


def specializes(x: Tensor) -> None:
    if x.sum() > 0:
        return


def is_stopped(x: Tensor) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("called", "error"),
    [(works, None), (fails, ValueError), (specializes, LinearizationError), (is_stopped, KeyboardInterrupt)],
    ids=["success", "failure", "refusal", "interrupt"],
)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.filterwarnings("ignore:the network is in training mode")
def test_all_is_afterwards_as_it_was(
    called: Callable[[Tensor], None], error: type[BaseException] | None, training: bool
) -> None:
    capture(works)  # torch does some things once
    network = Calling(called).train(training)
    before = state()
    if error is None:
        linearize(network, torch.randn(3, 3), "*")
    else:
        with pytest.raises(error):
            linearize(network, torch.randn(3, 3), "*")
    assert state() == before
    assert [module.training for module in network.modules()] == [training] * 2


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_thread_speaks_again_after_an_error(
    error: type[BaseException], records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    def quietly() -> None:
        with quiet():
            speak("before")
            raise error

    with pytest.raises(error):
        quietly()
    with pytest.warns(UserWarning, match="after warns"):
        speak("after")
    assert {"after of torch", f"after of {LOGGERS[1]}"} <= {*records.messages}
    assert capsys.readouterr().err.count("prints") == 1


def test_kernels_that_two_threads_have_turned_off_are_on_again() -> None:
    first, second, done = threading.Event(), threading.Event(), threading.Event()
    before = state()

    def begins() -> None:
        with plain_kernels():
            first.set()
            second.wait(0.2)
        done.set()

    def follows() -> None:
        assert first.wait(SECONDS)
        with plain_kernels():
            second.set()
            assert done.wait(SECONDS)
            assert not torch.backends.mkldnn.enabled

    with ThreadPoolExecutor(2) as pool:
        for running in [pool.submit(begins), pool.submit(follows)]:
            running.result(SECONDS)
    assert state() == before


def test_critical_records_are_shown(records: Records) -> None:
    with quiet():
        logging.getLogger("torch").critical("the end")
    assert records.messages == ["the end"]
