"""Arrows between the parts of gradfeat point down only, and no way of imports leads back to where it began."""

from __future__ import annotations

from pathlib import Path

import pytest
from package_source import gradfeat_modules, import_graph, in_circles, part_of, read_modules

# From the top, as in ARCHITECTURE.md's map. A part may import those of lower floors; those of one floor know nothing
# of each other.
FLOORS = (
    ("gradfeat", "__main__"),
    ("cli",),
    ("reproduce",),
    ("baselines", "comparison"),
    ("estimators", "testing"),
    ("fit",),
    ("solvers",),
    ("backbones", "samples", "metrics", "model", "inspection"),
    ("pretrain", "linearization", "losses"),
    ("data",),
    ("files", "optional"),
    ("errors", "contexts", "progress", "_version"),
)
TOP_LEVEL = 10


def test_no_circle_of_modules() -> None:
    found = {name.removeprefix("gradfeat.") for name in in_circles(import_graph(gradfeat_modules()))}
    assert sorted(found) == [], "these modules import each other, directly or through others"


def test_every_part_has_one_floor() -> None:
    parts = [part for floor in FLOORS for part in floor]
    assert len(parts) == len(set(parts))
    assert {part_of(name) for name in gradfeat_modules()} == set(parts), "FLOORS names every part, and no other"


def test_arrows_point_down() -> None:
    level = {part: i for i, floor in enumerate(FLOORS) for part in floor}
    upward = {
        (name, imported)
        for name, imports in import_graph(gradfeat_modules()).items()
        for imported in imports
        if part_of(name) != part_of(imported) and level[part_of(name)] >= level[part_of(imported)]
    }
    assert sorted(upward) == [], "(importing, imported): the imported part is on the same floor or above"


def test_few_modules_beside_the_packages() -> None:
    modules = gradfeat_modules()
    packages = {name.rpartition(".")[0] for name in modules}
    beside = sorted(name for name in modules if name.count(".") == 1 and name not in packages)
    assert len(beside) <= TOP_LEVEL, f"at most {TOP_LEVEL} modules stand beside the packages, not {beside}"


@pytest.mark.parametrize(
    "text",
    [
        "import gradfeat.b",
        "from gradfeat.b import value",
        "from gradfeat import b",
        "def use():\n    from gradfeat.b import value",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gradfeat.b import value",
    ],
    ids=["import", "from", "from package", "inside a function", "for types alone"],
)
def test_every_kind_of_import_closes_a_circle(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "gradfeat"
    folder.mkdir()
    for name, content in {
        "__init__": "",
        "a": text,
        "b": "import gradfeat.c",
        "c": "import gradfeat.a",
        "d": text,
    }.items():
        (folder / f"{name}.py").write_text(content)
    graph = import_graph(read_modules(tmp_path))
    assert in_circles(graph) == {"gradfeat.a", "gradfeat.b", "gradfeat.c"}  # d leads to a circle and is in none
