"""torchvision, timm and transformers are imported before gradfeat, after it, or by it: each works."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradfeat.errors import MissingDependencyError
from gradfeat.optional import require

TRY = "try:\n    import {0}\nexcept Exception as error:\n    print('failed', error)\n"
HAS_OPERATORS = "import torch; print(hasattr(torch.ops.torchvision, 'nms'))"


def _run(code: str, *folders: Path) -> str:
    source = Path(__file__).resolve().parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, source)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import gradfeat, timm; timm.create_model('test_resnet')",
        TRY.format("timm") + "import gradfeat, timm; timm.create_model('test_resnet')",
        pytest.param(
            TRY.format("torchvision") + "import gradfeat, torchvision.transforms.v2, timm", marks=pytest.mark.slow
        ),
        pytest.param(
            "import gradfeat, torchvision, timm; from transformers import BertModel, ViTImageProcessor",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "try:\n    from transformers import BertModel\nexcept Exception:\n    pass\n"
            "import gradfeat; from transformers import BertModel, ViTImageProcessor",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["gradfeat first", "timm first", "torchvision first", "all after gradfeat", "transformers first"],
)
def test_in_any_order(code: str) -> None:
    for package in ("timm", "torchvision", "transformers"):
        if package in code and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    _run(code)


def _torchvision(folder: Path, *, whole: bool) -> Path:
    """Write a package that is imported as torchvision is: its compiled part first, then what describes operators."""
    (folder / "torchvision").mkdir(parents=True)
    described = "" if whole else "\n@torch.library.register_fake('torchvision::nms')\ndef nms(*args): ...\n"
    for name, text in {
        "__init__": "from . import extension\nfrom torchvision import _meta_registrations\n",
        "extension": f"def _has_ops():\n    return {whole}\n",
        "_meta_registrations": f"import torch\nimport torchvision.extension\ntorchvision.extension._has_ops{described}",
    }.items():
        (folder / "torchvision" / f"{name}.py").write_text(text)
    return folder


def test_nothing_is_declared_where_torchvision_is_whole(tmp_path: Path) -> None:
    whole, broken = _torchvision(tmp_path / "a", whole=True), _torchvision(tmp_path / "b", whole=False)
    assert _run(f"import gradfeat, torchvision; {HAS_OPERATORS}", whole) == "False\n"
    first = _run(TRY.format("torchvision") + f"import gradfeat, torchvision; {HAS_OPERATORS}", broken)
    assert first.startswith("failed")
    assert first.endswith("True\n")
    reload = "import importlib, gc, gradfeat.optional; importlib.reload(gradfeat.optional); gc.collect()"
    found = "print(bool(torch._C._jit_get_schemas_for_operator('torchvision::nms')))"
    assert _run(f"import gradfeat, torchvision; {reload}; import torch; {found}", broken) == "True\n"


def test_gradfeat_itself_imports_nothing_large() -> None:
    assert _run("import gradfeat, sys; print({'torch', 'torchvision', 'timm'} & set(sys.modules))") == "set()\n"


def test_packages_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gradfeat_x.py").write_text("raise RuntimeError('built for another torch')")
    (tmp_path / "gradfeat_y.py").write_text("import gradfeat_z")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"gradfeat_z.* not installed.*gradfeat\[vision\]"):
        require("gradfeat_z", extra="vision")
    with pytest.raises(MissingDependencyError, match=r"installed, but .*built for another torch.*gradfeat_x$"):
        require("gradfeat_x", extra="vision")
    with pytest.raises(MissingDependencyError, match="itself needs gradfeat_z"):
        require("gradfeat_y", extra="vision")
