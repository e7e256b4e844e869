"""Fixtures: a real jtop service on an emulated board, for each version of jetson-stats that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jtop_service
import pytest
from jtop_service import Service

from edgeprune.device.jtop import JtopSampler

WHY_NOT = jtop_service.why_not()
ENVIRONMENTS = jtop_service.environments()


def sampler_of(version: str, interval_s: float = 0.1, **options: float) -> JtopSampler:
    """A sampler whose child runs in the environment that has ``version`` of jetson-stats."""
    return JtopSampler(interval_s, python=str(ENVIRONMENTS[version] / "bin/python"), **options)


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
