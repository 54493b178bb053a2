"""Nothing is written but through `gradfeat.files.writing`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gradfeat

PACKAGE = Path(gradfeat.__file__).parent
ROOMS = [PACKAGE, *(folder for folder in [PACKAGE.parents[1] / "benchmarks"] if folder.is_dir())]
WRITES = {"write_bytes", "save_file", "savez", "savez_compressed", "savetxt", "to_csv", "touch", "mkdir", "makedirs"}
ALLOWED = {
    "writing.py": {"open", "makedirs"},
    "terminal.py": {"open"},  # of the device that swallows all
    "plots.py": {"savefig"},  # into memory
}


def writings(source: str) -> set[str]:
    """Names of the calls in a source that write files by themselves."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        method = isinstance(call.func, ast.Attribute)
        mode = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        opens = name == "open" and any(
            isinstance(m, str) and set(m) <= set("rwaxbt+") and set(m) & set("wax+") for m in mode
        )
        if name in WRITES | {"savefig"} or opens or (method and name == "write_text"):
            found.add(name)
    return found


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_there_is_one_door(room: Path) -> None:
    found = {path.relative_to(room): writings(path.read_text(encoding="utf-8")) for path in sorted(room.rglob("*.py"))}
    assert {str(path): names for path, names in found.items() if names - ALLOWED.get(path.name, set())} == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("path.write_text('x')", "write_text"),
        ("Path(a).write_bytes(b)", "write_bytes"),
        ("open(path, 'w')", "open"),
        ("path.open(mode='ab')", "open"),
        ("figure.savefig(path)", "savefig"),
        ("np.savez(path, x)", "savez"),
        ("folder.mkdir()", "mkdir"),
    ],
)
def test_another_door_is_seen(source: str, name: str) -> None:
    assert writings(source) == {name}


@pytest.mark.parametrize("source", ["write_text(path, 'x')", "open(path, 'rb')", "open(path)", "Image.open(path)"])
def test_the_door_itself_and_reading_are_none(source: str) -> None:
    assert writings(source) == set()
