"""A trained model as a file for inference: ONNX per JetPack, re-opened, checked and compared with torch."""

from __future__ import annotations

from edgeprune.export.onnx import Exported, export_onnx
from edgeprune.export.parity import Parity, check_parity
from edgeprune.export.targets import DEFAULT_TARGET, TARGETS, Target

__all__ = ["DEFAULT_TARGET", "TARGETS", "Exported", "Parity", "Target", "check_parity", "export_onnx"]
