"""Cutting a sub-model out of a model or of its state, and the way back.

Values cross into the compiled core (edgeprune.ops) once per state, not once per layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from edgeprune import ops
from edgeprune.errors import EdgePruneError, shown
from edgeprune.nn.copying import not_copied
from edgeprune.pruning.attention import slim
from edgeprune.pruning.attributes import resize
from edgeprune.pruning.merging import Merger
from edgeprune.pruning.structure import Skip, copy_module
from edgeprune.pruning.submodel import SubmodelPlan, check_plan

__all__ = ["Merger", "REPAIRS", "expand_state", "extract", "extract_state", "load_local"]


def extract(model: nn.Module, plan: SubmodelPlan) -> nn.Module:
    """A physically smaller copy of ``model``: cut parameters and buffers, repaired sizes in the modules' attributes,
    a Skip in the place of every block left out.

    Training flags, hooks and everything else are copied; shared tensors stay shared; the model is not changed. Raises
    EdgePruneError when the plan was made for another model.
    """
    check_plan("extract", plan)
    if not isinstance(model, nn.Module):
        raise EdgePruneError(f"extract: the model is {shown(model)}; give a torch.nn.Module")
    names: dict[int, str] = {}
    tensors: list[Tensor] = []
    for name, t in _tensors(model):
        if id(t) not in names and plan.holds(name):
            names[id(t)] = name
            tensors.append(t)
    cut = _cut(list(names.values()), tensors, plan)
    memo: dict[int, Any] = {}
    for old, new in zip(tensors, cut, strict=True):
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for path in plan.dropped_modules:
        try:
            memo[id(model.get_submodule(path))] = Skip()
        except AttributeError:
            raise EdgePruneError(f"the plan was made for another model: it has no {path!r} to leave out") from None
    try:
        small = copy_module(model, memo)
    except Exception as error:  # what a user's module holds may refuse to be copied in any way
        raise not_copied("extract", model, error) from None
    with _at_rest(small):
        for module in small.modules():
            for kind, repair in REPAIRS.items():
                if isinstance(module, kind):
                    repair(module)
                    break
    resize(small, {n: axis for n, axis in plan.map.sizes.items() if plan.holds(n)}, plan.counts)
    return small


def extract_state(state: Mapping[str, Tensor], plan: SubmodelPlan) -> dict[str, Tensor]:
    """The sub-model's state dict, cut out of the full one (always new memory)."""
    check_plan("extract_state", plan)
    _check_state("extract_state", state)
    names = [n for n, t in state.items() if isinstance(t, Tensor) and plan.holds(n)]
    cut = dict(zip(names, _cut(names, [state[n] for n in names], plan), strict=True))
    return {n: cut.get(n, t) for n, t in state.items() if plan.holds(n)}


def expand_state(
    local: Mapping[str, Tensor], plan: SubmodelPlan, fill: float | Mapping[str, Tensor] = 0.0
) -> dict[str, Tensor]:
    """The full state with the sub-model's values at their global places, and ``fill`` (number or full state) elsewhere.

    Tensors of blocks left out come from a full state to fill from; a number does not bring them back.
    Allocates what the plan's map says, so use it with plans of your own.
    """
    check_plan("expand_state", plan)
    _check_state("expand_state", local)
    plan.check_local(local)
    result = {}
    for name, t in local.items():
        if not isinstance(t, Tensor):  # a module's extra state
            result[name] = t
            continue
        if isinstance(fill, Mapping):
            if name not in fill or tuple(fill[name].shape) != plan.map.shape(name):
                raise EdgePruneError(
                    f"expand_state: the state to fill from lacks {name!r} in shape {plan.map.shape(name)}"
                )
            full = fill[name].detach().to(t.dtype).clone()
        else:
            full = torch.full(plan.map.shape(name), fill, dtype=t.dtype, device=t.device)
        indices = plan.indices(name)
        full[tuple(_mesh(full, indices))] = t.detach()
        result[name] = full
    if isinstance(fill, Mapping):
        result.update({n: fill[n].detach().clone() for n in plan.map.tensors if n in fill and not plan.holds(n)})
    return result


def load_local(module: nn.Module, local_state: Mapping[str, Tensor]) -> nn.Module:
    """Copy a sub-model's state into an extracted module, in place and keeping its tensors; the module is returned.

    Raises EdgePruneError, with nothing copied, when names or shapes do not fit.
    """
    own = {n: t for n, t in module.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name, t in own.items():
        if name not in local_state:
            raise EdgePruneError(f"the state to load lacks {name!r}")
        if local_state[name].shape != t.shape:
            raise EdgePruneError(
                f"the state to load has {name!r} of shape {tuple(local_state[name].shape)}, not {tuple(t.shape)}"
            )
    if unknown := [n for n in local_state if n not in own and isinstance(local_state[n], Tensor)]:
        raise EdgePruneError(f"the state to load has {unknown[0]!r}, which the module lacks")
    with torch.no_grad():
        for name, t in own.items():
            t.copy_(local_state[name])
    return module


# --- the modules' own sizes ------------------------------------------------------------------------------------------

REPAIRS: dict[type[nn.Module], Callable[[Any], None]] = {}
"""How a module's attributes follow its cut tensors; enter your own: ``REPAIRS[MyLayer] = lambda m: ...``."""


def _conv(m: Any) -> None:
    depthwise = m.groups > 1 and m.groups == m.in_channels
    if m.transposed:
        if depthwise:
            m.groups = m.weight.shape[0]
        m.in_channels, m.out_channels = m.weight.shape[0], m.weight.shape[1] * m.groups
    else:
        if depthwise:
            m.groups = m.groups * m.weight.shape[0] // m.out_channels
        m.in_channels, m.out_channels = m.weight.shape[1] * m.groups, m.weight.shape[0]


def _linear(m: nn.Linear) -> None:
    m.out_features, m.in_features = m.weight.shape


def _norm(m: Any) -> None:
    values = next((t for t in (m.weight, m.running_mean) if t is not None), None)
    if values is not None:
        m.num_features = values.shape[0]


def _group_norm(m: nn.GroupNorm) -> None:
    if m.weight is not None:
        m.num_groups = m.weight.shape[0] if m.num_groups == m.num_channels else m.num_groups
        m.num_channels = m.weight.shape[0]


def _layer_norm(m: Any) -> None:
    if m.weight is not None:
        m.normalized_shape = tuple(m.weight.shape)


def _embedding(m: Any) -> None:
    m.embedding_dim = m.weight.shape[1]


def _prelu(m: nn.PReLU) -> None:
    m.num_parameters = m.weight.shape[0]


def _recurrent(m: Any) -> None:
    end = "_l0" if isinstance(m, nn.RNNBase) else ""
    m.input_size = getattr(m, "weight_ih" + end).shape[1]
    if not getattr(m, "proj_size", 0):
        m.hidden_size = getattr(m, "weight_hh" + end).shape[1]


REPAIRS.update(
    {
        nn.modules.conv._ConvNd: _conv,
        nn.Linear: _linear,
        nn.modules.batchnorm._NormBase: _norm,
        nn.GroupNorm: _group_norm,
        nn.LayerNorm: _layer_norm,
        nn.RMSNorm: _layer_norm,
        nn.MultiheadAttention: slim,
        nn.Embedding: _embedding,
        nn.EmbeddingBag: _embedding,
        nn.PReLU: _prelu,
        nn.RNNBase: _recurrent,
        nn.RNNCellBase: _recurrent,
    }
)


# --- helpers ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """While it lasts, a look at a parametrized weight does not train what computes it (spectral norm iterates)."""
    lists = [m for m in model.modules() if isinstance(m, ParametrizationList)]
    trained = [m for found in lists for m in found.modules() if m.training]
    for m in trained:
        m.training = False
    try:
        yield
    finally:
        for m in trained:
            m.training = True


def _check_state(op: str, state: object) -> None:
    if not isinstance(state, Mapping):
        raise EdgePruneError(f"{op}: the state is {shown(state)}; give a state_dict()")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _cut(names: list[str], tensors: list[Tensor], plan: SubmodelPlan) -> list[Tensor]:
    """The kept part of every tensor; all float tensors that lose something go through the core at once."""
    for name, t in zip(names, tensors, strict=True):
        if tuple(t.shape) != plan.map.shape(name):
            raise EdgePruneError(
                f"the plan was made for {name!r} of shape {plan.map.shape(name)}, not {tuple(t.shape)}"
            )
    indices = [plan.indices(name) for name in names]
    result: list[Tensor | None] = [None] * len(tensors)
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i, (t, index) in enumerate(zip(tensors, indices, strict=True)):
        if all(part is None for part in index):
            result[i] = t.detach().clone()
        else:
            by_dtype.setdefault(t.dtype, []).append(i)
    for at in by_dtype.values():
        cut = ops.gather_many([tensors[i].detach() for i in at], [indices[i] for i in at])
        for i, part in zip(at, cut, strict=True):
            result[i] = part
    return result  # type: ignore[return-value]


def _mesh(full: Tensor, indices: tuple[Tensor | None, ...]) -> Iterator[Tensor]:
    for d, index in enumerate(indices):
        kept = torch.arange(full.shape[d], device=full.device) if index is None else index
        yield kept.reshape([-1 if e == d else 1 for e in range(full.dim())]).to(full.device)
