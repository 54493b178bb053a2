"""What the documents say is so: code runs, commands have these options, links and paths lead somewhere."""

from __future__ import annotations

import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

import gradfeat
from gradfeat.cli import main
from gradfeat.cli.app import app
from gradfeat.pretrain import ConvEncoder, save_encoder

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(gradfeat.__file__).parent
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").glob("*.md")])
NETWORK = "timm/resnet18 --weights resnet18.safetensors"  # in README; here a small encoder stands for it
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text(document), flags=re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[list[str]]:
    """The `gradfeat ...` lines of indented blocks, split as a shell does, without comments; broken lines are joined."""
    joined = text(document).replace("\\\n", " ")
    lines = re.findall(r"^ {4}(gradfeat .*)$", joined, flags=re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def anchors(document: Path) -> set[str]:
    """The names by which GitHub knows the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> Iterator[str]:
    for target in LINK.findall(text(document)):
        if re.match(r"[a-z]+:", target):  # elsewhere in the world
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield target


def encoder(path: Path, channels: int, size: int) -> Path:
    torch.manual_seed(0)
    scaling = {"size": [size, size], "crop_pct": 1.0, "channels": channels}
    scaling |= {"mean": [0.5] * channels, "std": [0.5] * channels}
    network = ConvEncoder(channels, channels=(8, 4), strides=(2, 2)).eval()
    path.parent.mkdir(exist_ok=True)
    return save_encoder(network, path, task="vae", preprocessing=scaling)


def draw(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name, low in (("cat", 0), ("dog", 128)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


# ---- README -------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len(text(README).splitlines()) <= 100


def test_readme_names_the_commands_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"^ {4}make ([a-z-]+)", text(README), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_python_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder(Path("demo/encoder.safetensors"), channels=1, size=8)
    blocks = python_blocks(README)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert Path("model.safetensors").is_file()
    probabilities = names["probabilities"]
    assert isinstance(probabilities, np.ndarray)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    score = float(capsys.readouterr().out.split()[0])
    assert score == pytest.approx((probabilities.argmax(axis=1) == names["y_test"]).mean())
    assert score > 0.2  # of ten classes


def test_commands_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = str(encoder(Path("encoder/encoder.safetensors"), channels=3, size=8))
    draw(Path("photos/train"), 5)
    draw(Path("photos/test"), 2)
    draw(Path("new-photos"), 2)
    ran = []
    for arguments in commands(README):
        if arguments[0] in ("demo", "pretrain", "reproduce"):
            continue
        line = shlex.join(arguments).replace(NETWORK, shlex.quote(small))
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line))
        assert not end.value.code, f"{line}: {capsys.readouterr().err}"
        ran.append(arguments[0])
    assert {"compare", "fit", "evaluate", "predict"} <= set(ran)
    assert {path.name for path in Path("results").iterdir()} >= {"comparison.json", "comparison.png"}
    rows = capsys.readouterr().out.split("sample,prediction")[-1].splitlines()[1:]  # of `predict`
    assert [row.split(",")[1] for row in rows] == ["cat", "cat", "dog", "dog"]


# ---- other pages that run ----------------------------------------------------------------------


def test_the_engine_and_the_plan_of_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = python_blocks(ROOT / "docs" / "guide.md")
    (engine,) = [block for block in blocks if "gradfeat.linearize(" in block]
    (plan,) = [block for block in blocks if "prepare(lin" in block]
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(engine, "guide.md", "exec"), names)
    pulled = sum((names["gradients"][name] * value).sum() for name, value in names["w2"].items())
    torch.testing.assert_close(names["tangent"].sum(), pulled)  # ⟨1, J w₂⟩ = ⟨Jᵀ1, w₂⟩
    assert "2.weight" in capsys.readouterr().out
    exec(compile(plan, "guide.md", "exec"), names)
    fit, problem = names["fit"], names["problem"]
    assert "subspace" in capsys.readouterr().out
    assert fit.solution.converged
    probe = names["f"] @ problem.probe.omega + problem.probe.bias
    assert problem.loss.value(names["logits"], problem.y) < problem.loss.value(probe, problem.y)
    assert len(names["few"].solution.objective) > 0


@pytest.mark.slow
def test_python_of_the_baselines() -> None:
    names: dict[str, Any] = {}
    for block in python_blocks(ROOT / "docs" / "baselines.md"):
        exec(compile(block, "baselines.md", "exec"), names)
    assert names["vote"].score(names["f_test"], names["y_test"]) > 0.5
    for model in ("probe", "model"):
        assert names[model].score(names["X_test"], names["y_test"]) > 0.5


# ---- all documents ------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document)) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Few labels\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n[a](other.md) [b](other.md#few-labels) [c](#a-page) [d](https://example.org)\n"
        "[e](other.md#many) ![f](lost.png) [g](#b-page)\n",
        encoding="utf-8",
    )
    assert list(broken_links(page)) == ["other.md#many", "lost.png", "#b-page"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_these_options(document: Path) -> None:
    known = get_command(app).commands
    for name, *arguments in commands(document):
        assert name in known
        options = {option for parameter in known[name].params for option in parameter.opts}
        given = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
        assert given <= options, f"gradfeat {shlex.join([name, *arguments])}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_is_python(document: Path) -> None:
    for block in python_blocks(document):
        compile(block, str(document), "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_dotted_names_exist(document: Path) -> None:
    for name in re.findall(r"`(gradfeat(?:\.[a-zA-Z_]\w*)+)[`(]", text(document)):
        pkgutil.resolve_name(name)


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(LINK.findall(text(folder / "README.md")))
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}


# ---- ARCHITECTURE -------------------------------------------------------------------------------


def test_where_is() -> None:
    """Each module of the table exists, and the name beside it stands in that module."""
    table = text(ROOT / "ARCHITECTURE.md").split("## Where is ...")[1].split("\n## ")[0]
    places = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(places) > 10
    for place in places:
        module = None
        for name in re.findall(r"`([^`]+)`", place):
            if name.endswith(".py"):
                module = PACKAGE / name
                assert module.is_file(), name
            else:
                assert module is not None, place
                for part in name.split("."):
                    assert re.search(rf"^ *(def|class) {part}\b", text(module), flags=re.MULTILINE), (
                        f"{name} in {module}"
                    )


def test_the_map_names_every_folder_and_module() -> None:
    """And names no folder that does not exist."""
    drawn = text(ROOT / "ARCHITECTURE.md").split("## The map")[1].split("\n## ")[0]
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert set(re.findall(r"^ {4}([a-z]+)/", drawn, flags=re.MULTILINE)) == folders
    modules = {path.name for path in PACKAGE.glob("[a-z]*.py")}
    assert modules == set(re.findall(r"\b([a-z]+\.py)\b", drawn))
