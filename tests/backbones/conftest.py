"""What tests of files of weights share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def state():
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
