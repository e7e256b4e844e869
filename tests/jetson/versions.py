"""Which versions of jetson-stats are installed here, and a sampler for each."""

from __future__ import annotations

import jtop_service

from edgeprune.device.jtop import JtopSampler

WHY_NOT = jtop_service.why_not()
ENVIRONMENTS = jtop_service.environments()


def sampler_of(version: str, interval_s: float = 0.1, **options: float) -> JtopSampler:
    """A sampler whose child runs in the environment that has ``version`` of jetson-stats."""
    return JtopSampler(interval_s, python=str(ENVIRONMENTS[version] / "bin/python"), **options)
