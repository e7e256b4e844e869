"""What torch.compile asks once and writes into a graph as a constant.

Imported while something is compiled and never before: the decorator brings in torch._dynamo, which takes a second.
"""

from __future__ import annotations

import torch

from edgeprune.ops.crossover import measured_threads, tf32

constant_threads = torch.compiler.assume_constant_result(measured_threads)
"""``measured_threads`` of the moment a graph is made."""

constant_tf32 = torch.compiler.assume_constant_result(tf32)
"""``tf32`` of the moment a graph is made."""
