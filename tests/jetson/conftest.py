"""Fixtures: a real jtop service on an emulated board, for each version of jetson-stats that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jtop_service
import pytest
from jtop_service import Service
from versions import ENVIRONMENTS, WHY_NOT


@pytest.fixture(params=sorted(ENVIRONMENTS) or ["none"])
def version(request: pytest.FixtureRequest) -> str:
    """Client and service of this major.minor."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    return str(request.param)


@pytest.fixture
def service(version: str, tmp_path: Path) -> Iterator[Service]:
    with jtop_service.running(ENVIRONMENTS[version], tmp_path) as found:
        yield found
