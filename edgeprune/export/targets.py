"""What the runtimes of each JetPack read: the opset and the IR version an exported file may carry.

A file that is newer than its reader is refused whole, so the profiles name the oldest reader that ships with each
release. The numbers come from the release notes of ONNX Runtime and TensorRT; the lowered IR version of a file was
tried with ONNX Runtime 1.15 to 1.31, TensorRT itself was not tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import EdgePruneError, nearest


@dataclass(frozen=True)
class Target:
    """One family of readers. ``opset`` and ``ir_version`` are exactly what the written file carries."""

    name: str
    opset: int
    ir_version: int
    modules: str
    reason: str


PRECISIONS = ("fp32", "fp16", "int8")
PORTABLE_OPSET = 17
PORTABLE_IR = 8

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "jetpack5",
            PORTABLE_OPSET,
            PORTABLE_IR,
            "Xavier, Orin",
            "TensorRT 8.5 stops at opset 17 and ONNX Runtime 1.15 to 1.17 refuse IR 10",
        ),
        Target(
            "jetpack6",
            PORTABLE_OPSET,
            PORTABLE_IR,
            "Orin",
            "JetPack 6.0 ships TensorRT 8.6 (opset 17) and ONNX Runtime 1.17 (IR 9); later 6.x read this file too",
        ),
        Target(
            "jetpack7",
            18,
            10,
            "Orin (7.2), Thor",
            "TensorRT 10 reads up to opset 20 and ONNX Runtime from 1.18 on reads IR 10; 18 is what torch now writes",
        ),
    )
}

DEFAULT_TARGET = "jetpack6"


def get(name: str) -> Target:
    """The profile called ``name``; EdgePruneError with the nearest known name otherwise."""
    if not isinstance(name, str) or name not in TARGETS:
        raise EdgePruneError(f"export: unknown target {name!r}{nearest(str(name), TARGETS)}")
    return TARGETS[name]
