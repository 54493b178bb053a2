from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradfeat.reproduce import baselines


@pytest.fixture(scope="module")
def no_baselines() -> Iterator[None]:
    """Leave out the rows of other methods, which have a test of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(baselines.ROWS):
            patch.delitem(baselines.ROWS, name)
        yield
