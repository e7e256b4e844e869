"""What benchmarks/papers/adp.py trains: one small network on Fashion-MNIST with gates, and the same without."""

from __future__ import annotations

from torch import Tensor, nn, zeros

from edgeprune.tasks import Task
from edgeprune.tasks.gated import gated_vgg
from edgeprune.tasks.models import conv_bn_relu

WIDTHS = (32, 64, 128)


def _task(name: str, make: object) -> Task:
    return Task(name, "fashion-mnist", make, _inputs, batch_size=32, lr=0.02)  # type: ignore[arg-type]


def _inputs() -> tuple[Tensor, ...]:
    return (zeros(2, 1, 28, 28),)


def gated() -> Task:
    a, b, c = WIDTHS
    return _task("fashion-gated", lambda: gated_vgg((a, "pool", b, "pool", c), 10, keep=0.7, inputs=1))


def dense() -> Task:
    a, b, c = WIDTHS
    return _task(
        "fashion-dense",
        lambda: nn.Sequential(
            *conv_bn_relu(1, a),
            nn.MaxPool2d(2),
            *conv_bn_relu(a, b),
            nn.MaxPool2d(2),
            *conv_bn_relu(b, c),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(c, 10),
        ),
    )
