"""``MaskedLinear`` and ``MaskedConv2d``: nn.Linear and nn.Conv2d whose parameter is the kept weights alone.

The parameter ``weight_kept`` is one-dimensional, so gradients and every optimiser's state cost density times the
dense memory, and any optimiser that works weight by weight trains exactly what masked-dense training would.

``state_dict()`` is the dense layer's: ``weight`` with zeros at dropped places, and ``bias``. Loading such a
dictionary takes the values at kept places and keeps the mask; what it holds at dropped places is not read, whatever it
is. A kept weight may be zero, so the mask cannot be read off the dictionary: save ``layer.mask`` beside it.

What is written into that dictionary's ``weight`` changes nothing here: average models by their parameters (as torch's
``AveragedModel`` does), or load the average. Rules that go by a parameter's dimensions, such as "no weight decay where
there is one", must name ``weight_kept``.

These are no subclasses of nn.Linear and nn.Conv2d: code that writes into ``layer.weight`` of those would write into a
copy here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeprune.errors import EdgePruneError, shown
from edgeprune.ops import _masked_core, crossover
from edgeprune.ops import masked as ops
from edgeprune.ops._masked_core import Padding
from edgeprune.ops.sparsity import CompiledPattern, SparsityPattern


class _Masked(nn.Module):
    """What both layers share. ``pattern`` says which weights are kept; ``path`` forces "sparse" or "dense"."""

    weight_kept: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, pattern: SparsityPattern | Tensor, bias: bool, path: str, device: Any, dtype: Any) -> None:
        super().__init__()
        self._take_pattern(_pattern_of(pattern))
        crossover.check_path(type(self).__name__, path)
        self.path = path
        self.weight_kept = nn.Parameter(torch.empty(self.pattern.kept, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.pattern.shape[0], device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def _compile(self, pattern: SparsityPattern) -> CompiledPattern:
        raise NotImplementedError

    def _take_pattern(self, pattern: SparsityPattern) -> None:
        self._compiled = self._compile(pattern)
        self.pattern = pattern

    def reset_parameters(self) -> None:
        """Weights and bias as the dense layer draws them: uniform within 1 / sqrt(inputs of one output, all taps)."""
        if not self.weight_kept.is_meta:
            fan_in = self.pattern.numel() // self.pattern.shape[0]
            nn.init.uniform_(self.weight_kept, -(fan_in**-0.5), fan_in**-0.5)
            if self.bias is not None:
                nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    @property
    def weight(self) -> Tensor:
        """The dense weight with zeros at dropped places: made anew, for reading; writing into it changes nothing."""
        return self.pattern.dense(self.weight_kept)

    @property
    def mask(self) -> Tensor:
        """bool, of the dense weight's shape."""
        return self.pattern.mask()

    @property
    def density(self) -> float:
        """Kept over all weights."""
        return self.pattern.density

    def own_parameter(self, op: str) -> nn.Parameter:
        """``weight_kept``; EdgePruneError where it is computed from another parameter, which no mask can follow."""
        if "weight_kept" not in self._parameters:
            raise EdgePruneError(f"{op}: weight_kept is computed by a parametrisation; remove that first")
        return self.weight_kept

    @torch.no_grad()
    def set_mask(
        self,
        mask: SparsityPattern | Tensor,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    ) -> None:
        """Keeps other weights from now on. Weights kept before and after stay as they are, new ones start at zero.

        The state that ``optimizer`` (or several) holds for the kept weights, such as momentum, follows in the same
        way; an optimiser that is not given fails at its next step (torch's fused ones do not check and may crash: give
        them). The gradient is dropped. The parameter stays the same object. Call it between steps, not between forward
        and backward. Where the number of kept weights changes, wrap DistributedDataParallel anew.
        """
        new = _pattern_of(mask)
        if new.shape != self.pattern.shape:
            raise EdgePruneError(f"set_mask: a mask of shape {new.shape} for a weight of shape {self.pattern.shape}")
        old, parameter = self.pattern, self.own_parameter("set_mask")
        optimizers = optimizers_of("set_mask", optimizer)
        if any(isinstance(each, torch.optim.LBFGS) and each.state for each in optimizers):
            raise EdgePruneError(
                "set_mask: LBFGS holds its state in rows over all parameters, which cannot follow a mask; make a new "
                "one after the change"
            )
        for each in optimizers:
            state = each.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim == 1:
                    state[name] = new.compact(old.dense(value))
        kept = new.compact(old.dense(parameter.detach()))
        self._take_pattern(new)
        parameter.grad = None
        if kept.shape != parameter.shape and not parameter.is_meta:
            # Autograd's node for the parameter knows its shape, and lives as long as a loss of an earlier step: another
            # type, for a moment, makes torch part with it.
            parameter.data = kept.new_empty(0, dtype=torch.float64 if kept.dtype != torch.float64 else torch.float32)
        parameter.data = kept

    # ---- the dense face ---------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if "weight_kept" not in self._parameters:  # computed by a parametrisation, whose own tensors are the state
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        weight = self.weight if keep_vars else self.pattern.dense(self.weight_kept.detach())
        destination[prefix + "weight"] = weight
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "weight_kept"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        dense, compact = prefix + "weight", prefix + "weight_kept"
        weight = state_dict.pop(dense, None) if "weight_kept" in self._parameters else None
        if weight is not None and not isinstance(weight, Tensor):
            error_msgs.append(f"{dense} is a {type(weight).__name__}, not a tensor")
            state_dict[compact] = self.weight_kept.detach()
        elif weight is not None and tuple(weight.shape) != self.pattern.shape:
            error_msgs.append(f"size mismatch for {dense}: {tuple(weight.shape)}, the mask has {self.pattern.shape}")
            state_dict[compact] = self.weight_kept.detach()
        elif weight is not None:
            state_dict[compact] = self.pattern.compact(weight.detach())
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing,
            unexpected_keys,
            error_msgs,
        )
        missing_keys += [dense if name == compact else name for name in missing]

    @property
    def compiled(self) -> CompiledPattern:
        """The pattern as the kernels walk it; another object after every change of the mask."""
        return self._compiled

    def sparse_call(self, shape: Sequence[int]) -> tuple[Padding, tuple[int, ...]] | None:
        """Where float32 of ``shape`` on the CPU goes straight to the sparse kernels (ops/_masked_core.py) in training:
        their padding, and the shape of y. None: elsewhere, or something is to be done around them."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compiled = self._compile(self.pattern)


def optimizers_of(
    op: str, given: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None
) -> list[torch.optim.Optimizer]:
    """Those given: one, several or none."""
    every = [given] if not isinstance(given, Iterable) and given is not None else list(given or ())
    for each in every:
        if not isinstance(each, torch.optim.Optimizer):
            raise EdgePruneError(f"{op}: optimizer is {shown(each)}; give one of torch.optim, or several of them")
    return every


def _as_a_leaf(layer: nn.Module, x: fx.Proxy) -> Any:
    """A call of ``layer`` in a graph that torch.fx is recording: one node, as for torch's own layers."""
    tracer: Any = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (x,), {})


def _pattern_of(mask: SparsityPattern | Tensor) -> SparsityPattern:
    return mask if isinstance(mask, SparsityPattern) else SparsityPattern.from_mask(mask)


class MaskedLinear(_Masked):
    """nn.Linear with the weights that ``mask`` (outputs, inputs) keeps: a SparsityPattern, or a tensor, nonzero = kept.

    ``path`` "sparse" or "dense" overrides the choice by call shape (:mod:`edgeprune.ops.crossover`). Raises
    EdgePruneError when the mask is of another shape than (out_features, in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mask: SparsityPattern | Tensor,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        path: str = "auto",
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        super().__init__(mask, bias, path, device, dtype)

    def _compile(self, pattern: SparsityPattern) -> CompiledPattern:
        if pattern.shape != (self.out_features, self.in_features):
            raise EdgePruneError(
                f"MaskedLinear: the mask has shape {pattern.shape}, not ({self.out_features}, {self.in_features})"
            )
        return pattern.compiled()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        if isinstance(x, fx.Proxy):
            return _as_a_leaf(self, x)
        if not x.ndim or x.shape[-1] != self.in_features:
            raise EdgePruneError(f"MaskedLinear: x has shape {tuple(x.shape)}; it takes (..., {self.in_features})")
        return ops.linear("MaskedLinear", x, self.weight_kept, self.pattern, self._compiled, self.bias, self.path)

    def sparse_call(self, shape: Sequence[int]) -> tuple[Padding, tuple[int, ...]] | None:
        """As _Masked says."""
        if not shape or shape[-1] != self.in_features:
            return None
        if not self.weight_kept.is_cpu or not ops.quick(self.weight_kept, self.weight_kept, self.bias):
            return None
        rows = math.prod(shape[:-1])
        if not rows or not ops.sparse_in_training("linear", rows, self.pattern, self.path):
            return None
        return None, (*shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"density={self.density:.4g}"
        )


class MaskedConv2d(_Masked):
    """nn.Conv2d with the weights that ``mask`` (outputs, inputs / groups, h, w) keeps; arguments as torch's.

    A ``padding_mode`` other than "zeros" pads the picture before the product. ``path`` as in :class:`MaskedLinear`.
    Raises EdgePruneError when the mask is of another shape than the arguments ask for.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask: SparsityPattern | Tensor,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        path: str = "auto",
    ) -> None:
        op = "MaskedConv2d"
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, ops.checked_groups(op, groups)
        self.kernel_size = ops.pair(op, "kernel_size", kernel_size)
        self.stride, self.dilation = ops.pair(op, "stride", stride), ops.pair(op, "dilation", dilation)
        self.padding = padding if isinstance(padding, str) else ops.pair(op, "padding", padding)
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise EdgePruneError(
                f"{op}: padding_mode is {padding_mode!r}; give 'zeros', 'reflect', 'replicate' or 'circular'"
            )
        self.padding_mode = padding_mode
        super().__init__(mask, bias, path, device, dtype)

    def _compile(self, pattern: SparsityPattern) -> CompiledPattern:
        wanted = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if pattern.shape != wanted or self.in_channels % self.groups:
            raise EdgePruneError(
                f"MaskedConv2d: the mask has shape {pattern.shape}, not {wanted} "
                f"({self.in_channels} inputs in {self.groups} groups)"
            )
        compiled = pattern.compiled(self.groups, self.stride, self.dilation)
        self._pads, self._extra = ops.pads_of("MaskedConv2d", self.padding, compiled.filter)
        return compiled

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W), or without N, to (N, out_channels, H', W')."""
        if isinstance(x, fx.Proxy):
            return _as_a_leaf(self, x)
        pads, extra = self._pads, self._extra
        if self.padding_mode != "zeros":
            (top, left), (more_h, more_w) = pads, extra
            x = functional.pad(x, (left, left + more_w, top, top + more_h), mode=self.padding_mode)
            pads = extra = (0, 0)
        return ops.conv2d(
            "MaskedConv2d", x, self.weight_kept, self.pattern, self._compiled, self.bias, pads, extra, self.path
        )

    def sparse_call(self, shape: Sequence[int]) -> tuple[Padding, tuple[int, ...]] | None:
        """As _Masked says."""
        if len(shape) != 4 or shape[1] != self.in_channels or self._extra != (0, 0) or self.padding_mode != "zeros":
            return None
        if not self.weight_kept.is_cpu or not ops.quick(self.weight_kept, self.weight_kept, self.bias):
            return None
        height, width = _masked_core.output_size(self._compiled.filter, self._pads, shape[2:])
        positions = shape[0] * height * width
        if min(shape[0], *shape[2:], height, width) < 1:
            return None
        if not ops.sparse_in_training(self._compiled.kind, positions, self.pattern, self.path):
            return None
        return self._pads, (shape[0], self.out_channels, height, width)

    def extra_repr(self) -> str:
        said = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        said += f", padding={self.padding}" if self.padding not in ((0, 0), "valid") else ""
        said += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        said += f", groups={self.groups}" if self.groups > 1 else ""
        said += f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else ""
        return said + f", bias={self.bias is not None}, density={self.density:.4g}"
