"""The network between one device and the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Bandwidths in Mbit/s (10^6 bits), one-way latency in milliseconds."""

    download_mbps: float = 100.0
    upload_mbps: float = 100.0
    latency_ms: float = 2.0

    def download_s(self, nbytes: int) -> float:
        """Seconds to bring ``nbytes`` to the device."""
        return self.latency_ms * 1e-3 + nbytes * 8e-6 / self.download_mbps

    def upload_s(self, nbytes: int) -> float:
        """Seconds to bring ``nbytes`` to the server."""
        return self.latency_ms * 1e-3 + nbytes * 8e-6 / self.upload_mbps
