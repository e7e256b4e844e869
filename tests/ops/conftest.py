from __future__ import annotations

import pytest

from edgeprune import _core

PRESENT = _core.present_variants()


@pytest.fixture(params=PRESENT)
def variant(request: pytest.FixtureRequest) -> str:
    """Each instruction set that was compiled and that this processor runs."""
    return request.param


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> int:
    return request.param
