from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data and weights, which is no part of the repository."""
    folder = Path(os.environ.get("GRADFEAT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set GRADFEAT_DATA to the folder that holds it")
    return folder
