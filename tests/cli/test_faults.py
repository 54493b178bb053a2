"""Ctrl-C, and outputs that cannot be written."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from gradfeat import load
from gradfeat.files.writing import write_whole
from gradfeat.progress import Progress, Step


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a user press Ctrl-C at some stage of the work, as its progress has it."""
    part, step, titles = Progress.part, Progress.step, [""]

    def press(stage: str, *, of: str = "", after: int = 0) -> None:
        """When the stage begins, of the model that is called so; or when so much of it is done."""

        def titled(self: Progress, title: str) -> None:
            titles.append(title)
            part(self, title)

        @contextmanager
        def stepped(self: Progress, name: str) -> Iterator[Step]:
            meant = name == stage and titles[-1].startswith(of)

            def report(done: int, total: int | None) -> None:
                told(done, total)
                if meant and done >= after:
                    raise KeyboardInterrupt

            with step(self, name) as told:
                if meant and not after:
                    raise KeyboardInterrupt
                yield report

        monkeypatch.setattr(Progress, "part", titled)
        monkeypatch.setattr(Progress, "step", stepped)

    return press


def test_compare_after_an_interruption_keeps_what_is_done(
    run: Any, fast: tuple[str, ...], pictures: Path, encoder: Path, tmp_path: Path, ctrl_c: Callable[..., None]
) -> None:
    ctrl_c("fit", of="gradient")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "finetune.safetensors").touch()
    (tmp_path / "out" / "penalty_full.png").touch()
    found = run("compare", pictures, "-b", encoder, "--out", tmp_path / "out", *fast)
    assert found.code == 130, found.err
    assert "activation" in found.out
    assert "interrupted in gradient" in found.out
    assert found.err.endswith("interrupted\n")
    assert "of an earlier run there is still finetune.safetensors" in found.out
    assert not (tmp_path / "out" / "penalty_full.png").exists()
    assert (tmp_path / "out" / "activation.safetensors").is_file()


def test_compare_without_a_finished_model_is_an_error(
    run: Any, fast: tuple[str, ...], pictures: Path, encoder: Path, tmp_path: Path, ctrl_c: Callable[..., None]
) -> None:
    ctrl_c("test", of="activation")
    found = run("compare", pictures, "-b", encoder, "--out", tmp_path / "none", *fast)
    assert found.code == 2
    assert "no model was finished" in found.err


def test_ctrl_c_is_said_and_nothing_is_saved(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path, ctrl_c: Callable[..., None]
) -> None:
    ctrl_c("penalties")
    path, parts = tmp_path / "model.safetensors", tmp_path / "parts"
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path)
    assert (found.code, found.err) == (130, "nothing was saved\ninterrupted\n")
    assert not path.exists()
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, "--checkpoint", parts)
    assert f"the same command goes on from {parts}" in found.err


@pytest.mark.filterwarnings("default::gradfeat.errors.GradfeatWarning")
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["table", "json"])
def test_a_fit_that_was_cut_short_is_saved_and_ends_as_interrupted(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path, ctrl_c: Callable[..., None], more: tuple[str, ...]
) -> None:
    ctrl_c("fit", after=1)
    path = tmp_path / "model.safetensors"
    options = ("--solver", "adam", "--epochs", "3", "--batch-size", "8")
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", path, *options, *more)
    assert found.code == 130
    assert "interrupted after 1 epochs" in found.err
    assert load(path).mode == "full"


@pytest.mark.parametrize("command", ["fit", "compare", "pretrain", "reproduce", "demo", "predict"])
def test_outputs_that_cannot_be_written_are_refused_before_any_work(
    run: Any, pictures: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    arguments = {
        "fit": [pictures, "-b", "gradfeat/none", "-o", taken / "model.safetensors"],
        "compare": [pictures, "-b", "gradfeat/none", "--out", taken],
        "pretrain": ["rotation", tmp_path / "nowhere", "--out", taken],
        "reproduce": ["table1", "--out", taken],
        "demo": ["--out", taken],
        "predict": [model, pictures, "-o", taken / "predictions.csv"],
    }[command]
    found = run(command, *arguments)
    assert found.code == 2
    assert "taken" in found.err
    assert not found.out


def test_folders_of_outputs_are_made(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "some" / "folder" / "predictions.csv"
    assert run("predict", model, pictures / "test", "-o", path).code == 0
    assert path.read_text().startswith("sample,prediction,")


def test_a_folder_is_no_file_for_a_model(run: Any, pictures: Path, tmp_path: Path) -> None:
    found = run("fit", pictures, "-b", "gradfeat/none", "-o", tmp_path)
    assert found.code == 2
    assert "is a folder" in found.err


@pytest.mark.parametrize("command", ["reproduce", "pretrain", "fit"])
def test_a_full_disk_is_said_in_one_line_with_the_file_and_the_way_out(
    run: Any, pictures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out = tmp_path / "out"
    model = tmp_path / "model.safetensors"
    arguments, room, written = {
        "reproduce": (["table1", "--out", out], 3, "encoders/*/checkpoint.safetensors"),
        "pretrain": (["rotation", pictures, "--out", out, "--epochs", 1], 1, "checkpoint.safetensors"),
        "fit": ([pictures, "-b", f"gradfeat/{encoder}", "-o", model, "--checkpoint", out], 2, "*/probe.safetensors"),
    }[command]
    files: list[int] = []

    def full(file: int) -> None:
        files.append(file)
        if len(files) > room:
            raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr("os.fsync", full)
    found = run(command, *arguments)
    assert found.code == 2
    line = found.err.splitlines()[-1]
    assert fnmatch(
        line, f"error: {out}/{written}: File too large; what was finished is kept in {out}: the same command*"
    )
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.json"
    write_whole(path, b"old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_whole(path, b"new")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert isinstance(error.value.__cause__, OSError)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
