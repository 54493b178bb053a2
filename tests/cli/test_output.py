"""What is shown and written: under any encoding, without controls from outside, and never lost."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradfeat.cli import main
from gradfeat.cli.show import note, print_data, table
from gradfeat.comparison.plots import dot_chart
from gradfeat.estimators.adapter import load
from gradfeat.files.terminal import json_safe, printable

CLASSES = ("red\x1b[31m", "new\nerror: none", "\u202eé \x9b日本", "$x_$ \r{")
OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def controls(text: str) -> list[str]:
    """What steers a terminal: controls, line ends of Unicode, turns of direction, halves of pairs."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") or c in OVERRIDES]


# ---- controls -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.text(
        st.characters() | st.sampled_from(list("\x1b\n\r\x9b\u2028" + OVERRIDES)) | st.characters(categories=["Cs"])
    )
)
def test_no_control_is_shown_and_no_other_character_is_changed(text: str) -> None:
    shown = printable(text)
    assert controls(shown) == []
    assert printable(shown) == shown
    value = {"key": [text, {text: 1}]}
    safe = json_safe(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(safe) == value
    assert set(controls(safe)) <= {"\n"}
    if not controls(text) and not set(text) & set("\ufeff\ufff9\ufffa\ufffb\u206a\u206b\u206c\u206d\u206e\u206f"):
        assert shown == text


@pytest.mark.parametrize(
    "text", ["日本語", "na\u0308ive", "👩\u200d👧", "کتاب\u200cها", "שלום\u200f!", "a b\u00a0c", ""]
)
def test_names_in_all_scripts_are_shown_as_they_are(text: str) -> None:
    assert printable(text) == text


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images whose classes and files have names that nobody would choose."""
    root = tmp_path_factory.mktemp("nasty") / "da\x1bta"
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for k, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i, file in enumerate([b"caf\xe9\xff%d.png", 'θ😀\r,"%d.png'.encode()] * (count // 2)):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(60 * k, 60 * k + 60, (8, 8), dtype=np.uint8)).save(stream, "PNG")
                Path(os.fsdecode(os.path.join(os.fsencode(folder), file % i))).write_bytes(stream.getvalue())
    return root


@pytest.fixture(scope="module")
def named(nasty: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m\x1b[1m.safetensors"
    with pytest.raises(SystemExit) as end:
        main(["fit", str(nasty), "-b", f"gradfeat/{encoder}", "-o", str(path), "--mode", "activation"])
    assert not end.value.code
    return path


def test_names_from_outside_do_not_steer_the_terminal(run: Any, nasty: Path, named: Path, encoder: Path) -> None:
    shown = [
        run("evaluate", named, nasty),
        run("inspect", named),
        run("evaluate", named, nasty, "--json"),
        run("evaluate", named, f"{nasty}\x1b[2J\nerror: forged"),
        run("fit", nasty, "-b", f"gradfeat/{encoder}\x1b]0;title\x07"),
        run("fit", nasty, "-b", encoder, "--no\x1b[31m"),
        run("\x1b[31m"),
    ]
    for found in shown:
        assert set(controls(found.out + found.err)) <= {"\n"}, found.out + found.err
        assert not any(line.startswith("error: forged") for line in found.err.splitlines())
    assert "red\\x1b[31m" in shown[1].out


def test_a_table_and_a_note_show_controls_as_python_does(capsys: pytest.CaptureFixture[str]) -> None:
    table(["a\x1b", "b\n"], [["\u202ec", "1\t"]], title="t\x1b")
    note(False, "one\x1b\ntwo\u2028")
    out = capsys.readouterr().out
    assert set(controls(out)) == {"\n"}
    for text in ("a\\x1b", "b\\n", "\\u202ec", "1\\t", "t\\x1b", "one\\x1b\ntwo\\u2028\n"):
        assert text in out


@pytest.mark.parametrize("terminal", [True, False])
def test_data_are_exact_for_programs_and_harmless_for_people(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    print_data("name\n\x1b[31m\u202e,1\n")
    assert stream.getvalue() == ("name\n\\x1b[31m\\u202e,1\n" if terminal else "name\n\x1b[31m\u202e,1\n")


@pytest.mark.parametrize(
    "title", ["$x^$ {", "50$ or 60$", r"\frac{", "$\\nothing$", "a\x1b[31m\0\ud800", "日本 \u202e", "%_^&#~"]
)
def test_no_title_stops_a_picture(tmp_path: Path, title: str) -> None:
    path = dot_chart(tmp_path / "a.png", [title, "$y"], [1.0, 2.0], "accuracy", title=title)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".jpg", ""])
def test_the_same_picture_is_the_same_file(tmp_path: Path, suffix: str) -> None:
    one, two = (dot_chart(tmp_path / f"{name}{suffix}", ["a"], [1.0], "x", title="t") for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert one.suffix == (suffix or ".png")
    assert {path.name for path in tmp_path.iterdir()} == {one.name, two.name}


# ---- encodings ------------------------------------------------------------------------------------


class Shell:
    """Runs command lines whose standard output is a file of some encoding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, encoding: str, *arguments: object) -> tuple[int, bytes]:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            patch.setenv("COLUMNS", "100")
            with pytest.raises(SystemExit) as end:
                main([str(argument) for argument in arguments])
            stream.flush()
            assert stream.errors == "strict"
        return int(end.value.code or 0), stream.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(monkeypatch)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "koi8-r", "shift_jis", "utf-8", "utf-16"])
def test_every_encoding_shows_help_and_results(shell: Shell, named: Path, nasty: Path, encoding: str) -> None:
    for arguments in (("fit", "--help"), ("inspect", named), ("evaluate", named, nasty)):
        code, out = shell(encoding, *arguments)
        assert code == 0
        shown = out.decode("utf-8" if encoding == "ascii" and "--help" in arguments else encoding)
        assert any(name in shown for name in ("theta2", "θ2", "θ₂")) or arguments[0] == "evaluate"
        assert set(controls(shown)) <= {"\n"}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_predictions_are_whole_whatever_the_encoding(
    shell: Shell, named: Path, nasty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    """JSON is exact everywhere, CSV wherever the encoding has its characters, and files are UTF-8."""
    names = [str(path) for path in sorted((nasty / "test").rglob("*.png"))]
    code, out = shell(encoding, "predict", named, nasty, "--split", "test", "--json")
    assert code == 0
    found = json.loads(out.decode(encoding))
    assert sorted(row["sample"] for row in found["predictions"]) == names
    assert list(found["predictions"][0]["probability"]) == sorted(CLASSES)
    capsys.readouterr()
    code, out = shell(encoding, "predict", named, nasty, "--split", "test")
    assert code == 0
    rows = list(csv.reader(io.StringIO(out.decode(encoding), newline="")))
    assert {len(row) for row in rows} == {2 + len(CLASSES)}
    assert len(rows) == 1 + len(names)
    assert (f"{encoding}, the output's encoding" in capsys.readouterr().err) == (encoding != "utf-8")

    path = tmp_path / "p.csv"
    path.write_text("old")
    code, _ = shell(encoding, "predict", named, nasty, "--split", "test", "-o", path)
    assert code == 0
    text = path.read_bytes().decode("utf-8")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["sample", "prediction", *sorted(CLASSES)]
    shown = [os.fsencode(name).decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace") for name in names]
    assert sorted(row[0].encode() for row in rows[1:]) == sorted(shown)


# ---- outputs that fail ------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, under: Path) -> None:
    """Let the disk be full under a folder."""
    fsync = os.fsync

    def full(file: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{file}")).is_relative_to(under):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr("os.fsync", full)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells files by their numbers")
@pytest.mark.parametrize("command", ["predict", "fit", "compare"])
def test_a_disk_that_fills_up_during_the_work_costs_neither_the_old_file_nor_the_result(
    run: Any, pictures: Path, encoder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    full, free = tmp_path / "full", tmp_path / "free"
    full.mkdir()
    free.mkdir()
    (full / "x").write_text("old")
    monkeypatch.setattr("tempfile.tempdir", str(free))
    failing(monkeypatch, full)
    short = ("-b", f"gradfeat/{encoder}")
    found = run(
        command,
        *{
            "predict": (model, pictures / "test", "-o", full / "x"),
            "fit": (pictures, *short, "--mode", "activation", "-o", full / "x"),
            "compare": (pictures, *short, "--modes", "activation", "--out", full / "out"),
        }[command],
    )
    assert found.code == 2
    assert "No space left on device" in found.err
    assert str(full) in found.err
    assert (full / "x").read_text() == "old"
    kept = {path.name for path in free.rglob("*") if path.is_file()}
    assert kept >= ({"comparison.json", "activation.safetensors"} if command == "compare" else {"x"})
    assert f"it is kept in {next(free.iterdir())}" in found.err


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let standard output be a pipe that nobody reads."""

    def leave() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))

    return leave


def test_a_reader_who_goes_ends_what_is_only_read(
    run: Any, nobody: Callable[[], None], model: Path, pictures: Path
) -> None:
    nobody()
    found = run("predict", model, pictures / "test")
    assert (found.code, found.err) == (1, "")


def test_a_reader_who_goes_does_not_end_a_fit(
    run: Any, nobody: Callable[[], None], pictures: Path, encoder: Path, tmp_path: Path
) -> None:
    nobody()
    path = tmp_path / "m.safetensors"
    found = run("fit", pictures, "-b", f"gradfeat/{encoder}", "--mode", "activation", "-o", path)
    assert found.err == ""
    assert path.is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("command", ["predict", "evaluate", "fit"])
def test_a_full_disk_under_the_output_is_said_and_ends_no_fit(
    run: Any, pictures: Path, encoder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    path = tmp_path / "m.safetensors"
    arguments: dict[str, tuple[object, ...]] = {
        "predict": (model, pictures / "test"),
        "evaluate": (model, pictures),
        "fit": (pictures, "-b", f"gradfeat/{encoder}", "--mode", "activation", "-o", path),
    }
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115 (closed by nobody, as a process's is)
    found = run(command, *arguments[command])
    assert (found.code, found.err) == (2, "error: standard output: No space left on device\n")
    assert path.is_file() == (command == "fit")


@pytest.mark.parametrize("where", ["/dev/null", "/dev/full"])
def test_a_device_takes_predictions_and_stays(run: Any, model: Path, pictures: Path, where: str) -> None:
    if not Path(where).exists():
        pytest.skip("no such device")
    before = os.lstat(where)
    found = run("predict", model, pictures / "test", "-o", where)
    assert (found.code, found.out) == ((0, "") if where == "/dev/null" else (2, ""))
    after = os.lstat(where)
    assert (before.st_mode, before.st_ino, before.st_rdev) == (after.st_mode, after.st_ino, after.st_rdev)


def test_what_is_read_is_not_written_over(run: Any, model: Path, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    before = model.read_bytes(), encoder.read_bytes()
    for arguments in (
        ("predict", model, pictures / "test", "-o", tmp_path / "link"),
        ("fit", pictures, "-b", f"gradfeat/{encoder}", "-o", encoder),
    ):
        found = run(*arguments)
        assert found.code == 2
        assert "is read here, and would be lost" in found.err
    assert (model.read_bytes(), encoder.read_bytes()) == before


def test_predicted_targets_are_written_with_all_their_digits(run: Any, encoder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8), 1e6 + rng.standard_normal(24)
    np.savez(tmp_path / "data.npz", X=X, y=y)
    saved = tmp_path / "m.safetensors"
    fit = ("fit", tmp_path / "data.npz", "-b", f"gradfeat/{encoder}", "-o", saved, "--mode", "activation", "--json")
    assert run(*fit).code == 0
    values = load(saved).predict(X)
    assert run("predict", saved, tmp_path / "data.npz", "-o", tmp_path / "p.csv").code == 0
    rows = list(csv.reader((tmp_path / "p.csv").read_text().splitlines()))[1:]
    np.testing.assert_array_equal(np.array([float(row[1]) for row in rows], values.dtype), values)


def test_a_link_to_nothing_is_a_place_for_a_model(run: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later/p.csv")
    assert run("predict", model, pictures / "test", "-o", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "later" / "p.csv").read_text().startswith("sample,")
