"""A command line that runs in this process, and small data, an encoder and a model for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gradfeat.cli import main
from gradfeat.pretrain import save_encoder
from gradfeat.pretrain.encoder import ConvEncoder

CLASSES = ("dark", "light")
PROGRESS = re.compile(r"\[\d+:\d\d\] ")
FAST = ("--solver", "adam", "--epochs", "1", "--batch-size", "8")


class Output:
    """What a command printed, and its exit code; how far it was, which hangs on the clock, apart."""

    def __init__(self, code: int, out: str, err: str) -> None:
        lines = err.splitlines(keepends=True)
        self.code, self.out = code, out
        self.progress = [line for line in lines if PROGRESS.match(line)]
        self.err = "".join(line for line in lines if not PROGRESS.match(line))

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line in this process, as the installed program does."""
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: object) -> Output:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Output(code, captured.out, captured.err)

    return command


def draw(folder: Path, count: int, seed: int) -> None:
    """Class folders with small pictures, dark ones and light ones."""
    rng = np.random.default_rng(seed)
    for name, low in zip(CLASSES, (0, 128), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(low, low + 128, size=(8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parts train and test."""
    root = tmp_path_factory.mktemp("data") / "shades"
    draw(root / "train", 10, 0)
    draw(root / "test", 6, 1)
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    scaling = {"size": [8, 8], "crop_pct": 1.0, "mean": [0.5], "std": [0.5], "channels": 1}
    return save_encoder(
        ConvEncoder(1, channels=(4, 6), strides=(2, 2)).eval(),
        tmp_path_factory.mktemp("encoder") / "encoder.safetensors",
        task="vae",
        preprocessing=scaling,
    )


@pytest.fixture(scope="module")
def model(pictures: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    with pytest.raises(SystemExit) as end:
        main(["fit", str(pictures), "-b", f"gradfeat/{encoder}", "-o", str(path), *FAST, "--json"])
    assert not end.value.code
    return path


@pytest.fixture
def fast() -> tuple[str, ...]:
    """Options of a short fit."""
    return FAST
