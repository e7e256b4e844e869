"""Masked linear layers and convolutions against torch's dense ones and its CSR: kernels, training steps, memory.

    python benchmarks/masked.py [--part linear curve conv odd resnet loss feddst] [--threads 1 2] [--seconds 1.0]

    MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000 python benchmarks/masked.py --name masked-heap

Each part replaces its rows of these threads in the result file; all sides of a part are timed in turns in one process,
each turn short enough to share the machine's moods and long enough that caches are warm. "torch" is the dense layer as
it is; "masked dense" multiplies weights by the mask in every forward pass, as published codes do.
With glibc's defaults large outputs may be mapped anew at each call, and their pages filled with zeros by the system,
which for a convolution of 32 pictures takes as long as our product; the second line keeps freed memory.
Shares of the peak count two operations for each kept weight and position, against the measured multiply-add peak of a
core times the threads. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import harness
import torch
from masked_networks import Training, masked_dense
from torch import Tensor, nn

import edgeprune
from edgeprune import SparsityPattern
from edgeprune.bench.kernels import Shape, calls, in_turns
from edgeprune.ops import _masked_core
from edgeprune.ops._core import core
from edgeprune.tasks.models import feddst_cifar, resnet_like

Row = dict[str, Any]
ENVIRONMENT = ("OMP_WAIT_POLICY", "EDGEPRUNE_POOL", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
CONVS = (
    Shape("conv", 32, 64, 64, 32, 3),
    Shape("conv", 32, 128, 128, 16, 3),
    Shape("conv", 32, 256, 256, 8, 3),
    Shape("conv", 32, 512, 512, 4, 3),
    Shape("conv1x1", 32, 64, 64, 32, 1),
    Shape("conv1x1", 32, 256, 256, 8, 1),
    Shape("conv1x1", 32, 1024, 256, 14, 1),
    Shape("conv", 32, 64, 128, 32, 3, 2),
    Shape("grouped", 32, 128, 128, 16, 3, 1, 128),
)


ODD = (  # outputs that leave a quarter or more of their blocks of 16 empty: few and many inputs, one picture and more
    Shape("conv_odd", 32, 3, 6, 32, 5),
    Shape("conv_odd", 8, 3, 6, 32, 5),
    Shape("conv_odd", 32, 12, 12, 32, 3),
    Shape("conv_odd", 32, 24, 24, 32, 3),
    Shape("conv_odd", 1, 24, 24, 16, 3),
    Shape("conv_odd", 32, 64, 20, 16, 3),
    Shape("conv_odd", 32, 256, 24, 8, 3),
    Shape("conv_odd", 32, 8, 36, 16, 3),
)


def rounded(times: dict[str, float]) -> dict[str, float]:
    return {name: round(ms, 4) for name, ms in times.items()}


# ---- kernels --------------------------------------------------------------------------------------------------------


def products(shape: Shape, density: float, csr: bool) -> tuple[dict[str, Callable[[], object]], float]:
    """Forward and each gradient by itself, ours and torch's; and the operations of one, counted on kept weights."""
    generator = torch.Generator().manual_seed(0)
    taps = (shape.taps, shape.taps)
    mask = torch.rand(shape.outputs, shape.inputs // shape.groups, *taps, generator=generator) < density
    pattern = SparsityPattern.from_mask(mask)
    stride, pads = (shape.stride, shape.stride), (shape.taps // 2, shape.taps // 2)
    compiled = pattern.compiled(shape.groups, stride)
    x = torch.randn(shape.batch, shape.inputs, shape.size, shape.size, generator=generator)
    dense = torch.randn(mask.shape, generator=generator) * mask
    weight = pattern.compact(dense)
    y = _masked_core.forward(compiled, pads, x, weight, None)
    dy = torch.randn(y.shape, generator=generator)
    works: dict[str, Callable[[], object]] = {
        "forward": lambda: _masked_core.forward(compiled, pads, x, weight, None),
        "input gradient": lambda: _masked_core.input_gradient(compiled, pads, dy, weight, x.shape),
        "weight gradient": lambda: _masked_core.weight_gradient(compiled, pads, x, dy),
    }
    if shape.linear:
        flat, matrix, dflat = x[:, :, 0, 0], dense[:, :, 0, 0], dy[:, :, 0, 0]
        works |= {
            "torch forward": lambda: nn.functional.linear(flat, matrix),
            "torch input gradient": lambda: dflat @ matrix,
            "torch weight gradient": lambda: dflat.t() @ flat,
        }
        if csr:
            # The layout that suits CSR best, made outside of the timing: samples last.
            sparse, turned = matrix.to_sparse_csr(), matrix.t().contiguous().to_sparse_csr()
            columns, dcolumns = flat.t().contiguous(), dflat.t().contiguous()
            works |= {
                "CSR forward": lambda: sparse @ columns,
                "CSR input gradient": lambda: turned @ dcolumns,
                "CSR weight gradient": lambda: torch.sparse.sampled_addmm(sparse, dcolumns, flat, beta=0.0),
            }
            assert torch.allclose((sparse @ columns).t(), y[:, :, 0, 0], rtol=1e-3, atol=1e-3)
    else:

        def backward(which: list[bool]) -> Any:
            how = (list(stride), list(pads), [1, 1], False, [0, 0], shape.groups, which)
            return torch.ops.aten.convolution_backward(dy, x, dense, None, *how)

        works |= {
            "torch forward": lambda: nn.functional.conv2d(x, dense, None, stride, pads, 1, shape.groups),
            "torch input gradient": lambda: backward([True, False, False]),
            "torch weight gradient": lambda: backward([False, True, False]),
        }
    return works, 2.0 * pattern.kept * y.numel() / shape.outputs


def kernel_row(shape: Shape, density: float, threads: int, seconds: float, csr: bool = False, warm: bool = True) -> Row:
    works, operations = products(shape, density, csr)
    times = in_turns(works, seconds, warm=warm)
    peak = core.multiply_add_peak(0.05) * threads
    names = ("forward", "input gradient", "weight gradient")
    row: Row = {"layer": shape.name, "density": density, "threads": threads, "ms": rounded(times)}
    row["gflops"] = {name: round(operations / times[name] / 1e6, 1) for name in names}
    row["peak_gflops"] = round(peak / 1e9, 1)
    row["share_of_peak"] = {name: round(operations / times[name] * 1e3 / peak, 3) for name in names}
    for other in ("torch", "CSR") if csr else ("torch",):
        ratios = {name: round(times[f"{other} {name}"] / times[name], 2) for name in names}
        every = sum(times[f"{other} {name}"] for name in names) / sum(times[name] for name in names)
        row[f"times_faster_than_{other}"] = ratios | {"forward + backward": round(every, 2)}
    return row


def part_linear(threads: int, seconds: float) -> list[Row]:
    """Also with caches that nine other calls have used since: what a large network between two calls would leave."""
    shape = Shape("linear", 256, 1024, 1024)
    return [
        {"caches": "warm" if warm else "cold"} | kernel_row(shape, density, threads, 2 * seconds, csr=True, warm=warm)
        for density in (0.1, 0.2)
        for warm in (True, False)
    ]


def part_conv(threads: int, seconds: float) -> list[Row]:
    shapes = [*CONVS, *(replace(shape, batch=1) for shape in CONVS)]
    return [kernel_row(shape, density, threads, seconds / 2) for shape in shapes for density in (0.2, 0.1)]


def part_curve(threads: int, seconds: float) -> list[Row]:
    """Whole calls through the public operators: what a user gets, overhead included."""
    rows = []
    for shape in (
        *(Shape("linear", batch, 1024, 1024) for batch in (1, 8, 32, 256)),
        *(Shape("conv", batch, 64, 64, 32, 3) for batch in (1, 32)),
    ):
        before = len(rows)
        for density in (0.5, 0.3, 0.2, 0.1, 0.05, 0.01):
            sides = {
                f"{path} {work}": call
                for path in ("sparse", "torch")
                for work, call in calls(shape, density, path).items()
            }
            times = in_turns(sides, seconds / 2)
            gain = {work: round(times[f"torch {work}"] / times[f"sparse {work}"], 2) for work in ("forward", "step")}
            rows.append(
                {
                    "layer": shape.name,
                    "density": density,
                    "threads": threads,
                    "ms": rounded(times),
                    "times_faster_than_torch": gain,
                }
            )
        crossing = {work: crossing_of(rows[before:], work) for work in ("forward", "step")}
        rows.append({"layer": shape.name, "threads": threads, "sparse_wins_below_density": crossing})
    return rows


def part_odd(threads: int, seconds: float) -> list[Row]:
    """Sparse against dense at densities where dense mostly wins: why such convolutions are a kind of their own."""
    rows = []
    for shape in ODD:
        for density in (1.0, 0.5, 0.2):
            sides = {
                f"{path} {work}": call
                for path in ("sparse", "dense", "torch")
                for work, call in calls(shape, density, path).items()
            }
            times = in_turns(sides, seconds / 2)
            row: Row = {"layer": shape.name, "density": density, "threads": threads, "ms": rounded(times)}
            for other in ("dense", "torch"):
                row[f"times_faster_than_{other}"] = {
                    work: round(times[f"{other} {work}"] / times[f"sparse {work}"], 2) for work in ("forward", "step")
                }
            rows.append(row)
    return rows


def crossing_of(rows: list[Row], work: str) -> float | str:
    """Density at which the speed-up is 1, interpolated; or what is known when all of the measured ones win or lose."""
    points = sorted((row["density"], row["times_faster_than_torch"][work]) for row in rows)
    for (low, faster), (high, slower) in zip(points, points[1:], strict=False):
        if faster >= 1.0 > slower:
            return round(low + (high - low) * (faster - 1.0) / (faster - slower), 3)
    return "above 0.5" if points[-1][1] >= 1.0 else "below 0.01"


# ---- networks -------------------------------------------------------------------------------------------------------


def batch_of(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 32, 32, generator=generator), torch.randint(10, (n,), generator=generator)


def step_row(name: str, dense: nn.Module, density: float, threads: int, seconds: float, **how: Any) -> Row:
    x, labels = batch_of(32, torch.Generator().manual_seed(1))
    sparse = edgeprune.sparsify(dense, density=density, **how)
    sides = {
        "sparse": Training(sparse, x, labels),
        "torch dense": Training(dense, x, labels),
        "masked dense": Training(masked_dense(sparse), x, labels),
    }
    times = in_turns(dict(sides), seconds, least=5)
    bytes_ = {side: each.state_bytes(weights_of(each.model)) for side, each in sides.items() if side != "masked dense"}
    sgd = in_turns(sgd_steps(sides), seconds / 4)
    patterns = [layer.pattern for layer in sparse.modules() if hasattr(layer, "pattern")]
    index = sum(12 * pattern.kept + pattern.bits.numel() for pattern in patterns)
    share = bytes_["sparse"] / bytes_["torch dense"]
    return {
        "network": name,
        "density": density,
        "threads": threads,
        "batch": 32,
        "step_ms": rounded(times),
        "times_faster_than": {side: round(times[side] / times["sparse"], 2) for side in sides if side != "sparse"},
        "sgd_alone_ms": rounded(sgd),
        "bytes_of_weights_gradients_momentum": bytes_,
        "share_over_density": round(share / density, 4),
        "bytes_of_patterns_besides": index,
    }


def sgd_steps(sides: dict[str, Training]) -> dict[str, Callable[[], object]]:
    """torch's SGD by itself, as it is and as one fused loop, over the gradients that the last step left."""
    works: dict[str, Callable[[], object]] = {}
    for side in ("sparse", "torch dense"):
        works[side] = sides[side].optimizer.step
        fused = torch.optim.SGD(
            sides[side].model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4, nesterov=False, fused=True
        )
        works[f"{side}, fused"] = fused.step
    return works


def weights_of(model: nn.Module) -> set[str]:
    """Names of the parameters that are, or stand for, weights of two dimensions or more."""
    return {name for name, p in model.named_parameters() if p.ndim > 1 or name.endswith("weight_kept")}


def part_resnet(threads: int, seconds: float) -> list[Row]:
    torch.manual_seed(0)
    model = resnet_like((64, 128, 256, 512))
    return [
        step_row("ResNet-18 for 32x32, every layer masked", model, density, threads, 4 * seconds)
        for density in (0.2, 0.1)
    ]


def part_feddst(threads: int, seconds: float) -> list[Row]:
    """With torch's own pooling on every side."""
    torch.manual_seed(0)
    rows = []
    for how in ("uniform", "erk"):
        model = feddst_cifar(pool=nn.MaxPool2d)
        row = step_row("FedDST CIFAR-10 network", model, 0.2, threads, 2 * seconds, distribution=how)
        rows.append(row | {"distribution": how})
    return rows


def part_loss(threads: int, seconds: float, steps: int = 200) -> list[Row]:
    """The same 200 steps, sparse and masked dense. A second masked-dense run, which sees the pictures of each batch in
    reverse order and so adds up in another order, shows what rounding alone does to a curve."""
    rows = []
    for density in (0.2, 0.1):
        torch.manual_seed(0)
        sparse = edgeprune.sparsify(resnet_like((16, 32, 64)), density=density, path="sparse")
        x, labels = batch_of(256, torch.Generator().manual_seed(1))
        order = torch.randint(256, (steps, 16), generator=torch.Generator().manual_seed(2))
        sides = {
            "sparse": (sparse, order),
            "masked dense": (masked_dense(sparse), order),
            "masked dense, reversed": (masked_dense(sparse), order.flip(1)),
        }
        curves = {}
        for side, (model, batches) in sides.items():
            training = Training(model, x, labels, rate=0.005)
            curves[side] = torch.stack([training(chosen) for chosen in batches])
        base = curves["masked dense"]
        apart = {side: (curve - base).abs() for side, curve in curves.items() if side != "masked dense"}
        rows.append(
            {
                "network": "resnet_like(16, 32, 64), 256 random pictures, batch 16",
                "density": density,
                "threads": threads,
                "steps": steps,
                "first_loss_and_mean_of_last_ten": {
                    side: [round(float(c[0]), 6), round(float(c[-10:].mean()), 6)] for side, c in curves.items()
                },
                "largest_difference_from_masked_dense": {
                    side: {f"first {n}": float(f"{float(d[:n].max()):.3g}") for n in (1, 10, 50, steps)}
                    for side, d in apart.items()
                },
            }
        )
    return rows


PARTS = {
    "linear": part_linear,
    "curve": part_curve,
    "conv": part_conv,
    "odd": part_odd,
    "resnet": part_resnet,
    "loss": part_loss,
    "feddst": part_feddst,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.0, help="for one row, or a fraction or a few of these")
    parser.add_argument("--name", default="masked", help="of the result file")
    arguments = parser.parse_args()
    for part in arguments.part:
        about = harness.machine() | {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        rows = []
        for threads in arguments.threads[: 1 if part == "loss" else None]:
            torch.set_num_threads(threads)
            rows += [{"part": part} | row for row in PARTS[part](threads, arguments.seconds)]
        for row in rows:
            print(json.dumps(row))
        path = harness.RESULTS / f"{arguments.name}.json"
        others = json.loads(path.read_text())["results"] if path.exists() else []
        kept = [row for row in others if row["part"] != part or row["threads"] not in arguments.threads]
        stamp = {key: about[key] for key in ("commit", "load_before")}
        results = sorted(
            kept + [row | {"measured": stamp} for row in rows], key=lambda row: list(PARTS).index(row["part"])
        )
        written = harness.write_result(arguments.name, about, results)
        print(written.name, "written; load", about["load_before"], "before")


if __name__ == "__main__":
    main()
