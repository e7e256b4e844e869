"""The network between one device and the server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.errors import EdgePruneError


@dataclass(frozen=True)
class Link:
    """Bandwidths in Mbit/s (10^6 bits), one-way latency in milliseconds."""

    download_mbps: float = 100.0
    upload_mbps: float = 100.0
    latency_ms: float = 2.0

    def __post_init__(self) -> None:
        for key in ("download_mbps", "upload_mbps"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise EdgePruneError(f"link: {key} is {getattr(self, key)}; it must be greater than 0")
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise EdgePruneError(f"link: latency_ms is {self.latency_ms}; it must be 0 or more")

    def download_s(self, nbytes: int) -> float:
        """Seconds to bring ``nbytes`` to the device."""
        return self.latency_ms * 1e-3 + nbytes * 8e-6 / self.download_mbps

    def upload_s(self, nbytes: int) -> float:
        """Seconds to bring ``nbytes`` to the server."""
        return self.latency_ms * 1e-3 + nbytes * 8e-6 / self.upload_mbps
