"""A model with masked layers out of a dense one, and back: ``sparsify``, ``densify``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgePruneError, nearest, shown
from edgeprune.nn.copying import copied
from edgeprune.nn.densities import check_density, erdos_renyi_kernel, share, uniform
from edgeprune.nn.layers import MaskedConv2d, MaskedLinear, _Masked, optimizers_of
from edgeprune.ops import select_largest
from edgeprune.ops.sparsity import SparsityPattern

Masks = Mapping[str, "Tensor | SparsityPattern"]
Skip = Iterable[str] | Callable[[str, nn.Module], bool]

_DISTRIBUTIONS: dict[str, Callable[[Sequence[tuple[int, ...]], float], list[int]] | None] = {
    "uniform": uniform,
    "erk": erdos_renyi_kernel,
    "global": None,
}


def sparsify(
    model: nn.Module,
    density: float = 0.1,
    distribution: str = "uniform",
    *,
    masks: Masks | None = None,
    skip: Skip = (),
    in_place: bool = False,
    path: str = "auto",
) -> nn.Module:
    """The model with MaskedLinear and MaskedConv2d in place of nn.Linear and nn.Conv2d; a copy unless ``in_place``.

    The largest magnitudes are kept, ties to the earlier weight; kept weights and biases keep their values.

    - ``distribution`` "uniform": each layer keeps ``density`` of its weights, rounded; "erk": layer densities as in
      RigL (:func:`~edgeprune.nn.densities.erdos_renyi_kernel`), whose sum is exact; "global": the largest magnitudes
      over all layers together, exactly ``round(density * weights)``, so that a layer may even lose all its weights.
    - ``masks`` (layer's name -> bool tensor or pattern) says what is kept instead; layers not in it stay dense.
    - ``skip``: names of layers that stay dense (shell patterns such as "head*" too), or a function of name and layer.
      They do not count in ``density``. No layer is skipped by itself: RigL's uniform leaves the first one dense, for
      which give its name.
    - ``path``: "sparse" or "dense" forces how the layers compute; "auto" chooses by call (dense where that is faster,
      with the mask still in force).

    Every other layer stays as it is: nn.Conv1d, nn.ConvTranspose2d, embeddings, subclasses of nn.Linear and nn.Conv2d
    (such as the output of nn.MultiheadAttention), and layers whose weight is computed by a parametrisation.
    :func:`densities` names them. Hooks of replaced layers are not carried over; make optimisers afterwards.

    Raises EdgePruneError when nothing is left to mask, a name is that of no layer, or a weight is shared by layers or
    not finite.
    """
    op = "sparsify"
    _check_model(op, model)
    if not isinstance(distribution, str) or distribution not in _DISTRIBUTIONS:
        raise EdgePruneError(f"{op}: distribution is {shown(distribution)}{nearest(distribution, _DISTRIBUTIONS)}")
    check_density(op, density)
    if masks is not None and not isinstance(masks, Mapping):
        raise EdgePruneError(f"{op}: masks is {shown(masks)}; give a mask for each layer's name")
    skip = _checked_skip(op, model, skip)
    model = model if in_place else copied(op, model)
    layers = {name: layer for name, layer in model.named_modules() if _can_be_masked(layer)}
    layers = {name: layer for name, layer in layers.items() if not _skipped(name, layer, skip)}
    if masks is not None:
        for name in masks:
            if name not in layers:
                raise EdgePruneError(
                    f"{op}: masks names {shown(name)}, which is no layer to mask{nearest(name, layers)}"
                )
        layers = {name: layers[name] for name in masks}
    if not layers:
        raise EdgePruneError(f"{op}: no nn.Linear or nn.Conv2d is left to mask")
    _refuse_shared(op, model, layers)
    _refuse_not_finite(op, layers)
    if masks is not None:
        patterns = {
            name: m if isinstance(m, SparsityPattern) else SparsityPattern.from_mask(m) for name, m in masks.items()
        }
    else:
        patterns = _choose(layers, density, distribution)
    return _replaced(model, {layer: _masked(layer, patterns[name], path) for name, layer in layers.items()})


def densify(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """The model with nn.Linear and nn.Conv2d in place of masked layers, dropped weights zero; a copy unless
    ``in_place``."""
    _check_model("densify", model)
    model = model if in_place else copied("densify", model)
    return _replaced(model, {layer: _dense(layer) for layer in model.modules() if isinstance(layer, _Masked)})


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Mask of every masked layer by its name: bool, of the dense weight's shape; ``sparsify(masks=...)`` takes them."""
    _check_model("masks", model)
    return {name: layer.mask for name, layer in model.named_modules() if isinstance(layer, _Masked)}


def set_masks(
    model: nn.Module,
    masks: Masks,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
) -> None:
    """``layer.set_mask`` for every layer named; state of the optimisers given follows. Raises before any change."""
    _check_model("set_masks", model)
    if not isinstance(masks, Mapping):
        raise EdgePruneError(f"set_masks: masks is {shown(masks)}; give a mask for each layer's name")
    every = optimizers_of("set_masks", optimizer)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _Masked)}
    patterns = {}
    for name, mask in masks.items():
        if name not in layers:
            raise EdgePruneError(f"set_masks: {name!r} is no masked layer of this model{nearest(name, layers)}")
        patterns[name] = mask if isinstance(mask, SparsityPattern) else SparsityPattern.from_mask(mask)
        if patterns[name].shape != layers[name].pattern.shape:
            raise EdgePruneError(
                f"set_masks: the mask of {name!r} has shape {patterns[name].shape}; its weight has "
                f"{layers[name].pattern.shape}"
            )
        layers[name].own_parameter("set_masks")
    for name, pattern in patterns.items():
        layers[name].set_mask(pattern, every)


def densities(model: nn.Module) -> list[dict[str, Any]]:
    """A row for every layer that has weights of two dimensions or more, in the model's order.

    Keys: name, kind (the class), shape, kept, density, note (why a layer is dense; "" for a masked one).
    """
    rows: list[dict[str, Any]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, _Masked):
            shape, kept, note = layer.pattern.shape, layer.pattern.kept, ""
        else:
            weight = layer._parameters.get("weight")
            if weight is None or weight.ndim < 2:
                continue
            shape, kept = tuple(weight.shape), weight.numel()
            note = "dense" if _can_be_masked(layer) else f"dense: no masked form of {type(layer).__name__}"
        size = max(1, int(torch.Size(shape).numel()))
        row = {"name": name, "kind": type(layer).__name__, "shape": shape, "kept": kept}
        rows.append(row | {"density": kept / size, "note": note})
    return rows


# ---- which layers, which weights ------------------------------------------------------------------------------------


def _can_be_masked(layer: nn.Module) -> bool:
    # Subclasses read their weight in ways of their own; a parametrised or pruned layer has no parameter of that name.
    weight = layer._parameters.get("weight") if type(layer) in (nn.Linear, nn.Conv2d) else None
    return weight is not None and weight.numel() > 0


def _check_model(op: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise EdgePruneError(f"{op}: the model is {shown(model)}; give a torch.nn.Module")


def _checked_skip(op: str, model: nn.Module, skip: Skip) -> Skip:
    """A function, or a list of names each of which is that of a layer (of any kind) or matches one."""
    if callable(skip):
        return skip
    if not isinstance(skip, Iterable):
        raise EdgePruneError(f"{op}: skip is {shown(skip)}; give names of layers, or a function of name and layer")
    every = [skip] if isinstance(skip, str) else list(skip)
    layers = [name for name, layer in model.named_modules() if not list(layer.children())]
    for each in every:
        if not isinstance(each, str) or not any(name == each or fnmatchcase(name, each) for name in layers):
            close = nearest(each, (name for name, layer in model.named_modules() if _can_be_masked(layer)))
            raise EdgePruneError(f"{op}: skip names {shown(each)}, which is no layer{close}")
    return every


def _skipped(name: str, layer: nn.Module, skip: Skip) -> bool:
    if callable(skip):
        return bool(skip(name, layer))
    return any(name == each or fnmatchcase(name, each) for each in skip)


def _refuse_not_finite(op: str, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        weight = _weight(layer).detach()
        # a sum is one pass without temporaries; only one that overflows must be looked into
        if not weight.is_meta and not bool(torch.isfinite(weight.sum())) and not bool(torch.isfinite(weight).all()):
            raise EdgePruneError(f"{op}: the weight of {name!r} holds NaN or infinity; repair it, or name it in skip")


def _refuse_shared(op: str, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            other = None if parameter is None else owners.setdefault(id(parameter), name)
            if other not in (None, name) and (name in layers or other in layers):
                raise EdgePruneError(f"{op}: {other} and {name} share a weight; name the layer in skip")


def _choose(layers: Mapping[str, nn.Module], density: float, distribution: str) -> dict[str, SparsityPattern]:
    weights: list[Tensor] = [_magnitudes(name, _weight(layer).detach()) for name, layer in layers.items()]
    shapes = [tuple(weight.shape) for weight in weights]
    count = _DISTRIBUTIONS[distribution]
    if count is None:
        bits = select_largest(weights, share(density, sum(weight.numel() for weight in weights)))
    else:
        bits = [select_largest([weight], k)[0] for weight, k in zip(weights, count(shapes, density), strict=True)]
    return {name: SparsityPattern.from_bits(b, shape) for name, b, shape in zip(layers, bits, shapes, strict=True)}


def _magnitudes(name: str, weight: Tensor) -> Tensor:
    """What selection compares: the weight itself, of complex ones the magnitudes; float32 on the CPU."""
    if weight.is_meta:
        raise EdgePruneError(
            f"sparsify: the weight of {name!r} is on meta and has no magnitudes; give masks, or values"
        )
    return (weight.abs() if weight.is_complex() else weight).float().cpu().contiguous()


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


# ---- one layer into another -----------------------------------------------------------------------------------------


def _masked(layer: nn.Module, pattern: SparsityPattern, path: str) -> nn.Module:
    weight = _weight(layer)
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        new: _Masked = MaskedLinear(
            layer.in_features, layer.out_features, pattern, bias, "meta", weight.dtype, path=path
        )
    else:
        assert isinstance(layer, nn.Conv2d)
        new = MaskedConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            pattern,
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            bias,
            layer.padding_mode,
            "meta",
            weight.dtype,
            path=path,
        )
    new.weight_kept = nn.Parameter(pattern.compact(weight.detach()), requires_grad=weight.requires_grad)
    new.bias = layer.bias  # type: ignore[assignment]
    return new.train(layer.training)


def _dense(layer: _Masked) -> nn.Module:
    bias, dtype = layer.bias is not None, layer.weight_kept.dtype
    if isinstance(layer, MaskedLinear):
        new: nn.Module = nn.Linear(layer.in_features, layer.out_features, bias, "meta", dtype)
    else:
        assert isinstance(layer, MaskedConv2d)
        new = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias,
            layer.padding_mode,  # type: ignore[arg-type]
            "meta",
            dtype,
        )
    new.weight = nn.Parameter(layer.weight.detach(), requires_grad=layer.weight_kept.requires_grad)
    new.bias = layer.bias  # type: ignore[assignment]
    return new.train(layer.training)


def _replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """``model`` with layers exchanged wherever they stand; the model itself when it is one of them."""
    seen: set[int] = set()
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
        for name, value in list(vars(parent).items()):
            if name not in _REGISTERED:
                vars(parent)[name] = _exchanged(value, new, seen)
    return new.get(model, model)


_REGISTERED = frozenset(vars(nn.Module()))


def _exchanged(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """A module's plain attribute with layers exchanged: rows, sets and dicts of layers too, in place where they can."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if not isinstance(value, list | dict | set | tuple) or id(value) in seen:
        return value
    seen.add(id(value))
    if isinstance(value, set):
        for layer in [each for each in value if isinstance(each, nn.Module) and each in new]:
            value.remove(layer)
            value.add(new[layer])
        return value
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    changed = {at: twin for at, each in items if (twin := _exchanged(each, new, seen)) is not each}
    if not isinstance(value, tuple):
        for at, twin in changed.items():
            value[at] = twin
        return value
    parts = [changed.get(at, each) for at, each in items]
    if not changed:
        return value
    return type(value)._make(parts) if hasattr(value, "_make") else type(value)(parts)
