"""The exported graph of a full model, run so that norms leave the removed channels out of their statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from edgeprune.pruning.axes import axis_indices
from edgeprune.pruning.capture import Walk, tensors
from edgeprune.pruning.coupling import Call
from edgeprune.pruning.submodel import SubmodelPlan


class MaskedRun(Interpreter):
    """What a sub-model must compute, by the full model's graph: zeros for what is cut, and norms over the rest."""

    def __init__(self, walk: Walk, plan: SubmodelPlan) -> None:
        super().__init__(walk.program.graph_module)
        self.walk = walk
        self.kept: dict[Node, list[Tensor | None]] = {}
        channels = {name: plan._kept[name] for name in plan.map.groups}
        for node, axes in walk.axes.items():
            found = [axis_indices(axis, channels) for axis in axes]
            self.kept[node] = [None if i is None else torch.from_numpy(i) for i in found]

    def outputs(self, model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
        """The leaves of what the model with these tensors gives for these inputs."""
        own = {name: t.detach().clone() for name, t in tensors(model)}
        self.dtype = next((t.dtype for t in own.values() if t.is_floating_point()), torch.get_default_dtype())
        given = iter(pytree.tree_leaves(inputs))
        args = []
        for spec in self.walk.program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                value = next(given)
                args.append(value.clone() if isinstance(value, Tensor) else value)
            elif spec.target in own:
                args.append(own[spec.target])
            else:
                args.append(self.walk.program.constants[spec.target])
        with torch.no_grad():
            results = self.run(*args)
        specs = self.walk.program.graph_signature.output_specs
        return [r for r, spec in zip(results, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]

    def run_node(self, n: Node) -> Any:
        if "_assert_tensor_metadata" in str(n.target):
            return None  # it may be run in another precision than it was exported in
        if all(i is None for i in self.kept.get(n, ())):
            result = super().run_node(n)
            made = n.op == "call_function" and not n.all_input_nodes and isinstance(result, Tensor)
            return result.to(self.dtype) if made and result.is_floating_point() else result
        args = dict(Call(n, "").args)
        values = {k: self.env[v] if isinstance(v, Node) else v for k, v in args.items()}
        target: Any = n.target
        if "weight_norm" in str(target):
            out = target(**values)  # zeros add nothing to a norm; what is nothing but zeros gives 0 / 0
            weight = out[0] if isinstance(out, tuple) else out
            weight[(values["v"] == 0) & weight.isnan()] = 0.0
            return out
        x = values["input"]
        kept = [None if i is None else i.to(x.device) for i in self.kept[n]]
        first = 1 if "group" in str(n.target) else x.dim() - len(values["normalized_shape"])
        small, index = x, [torch.arange(size, device=x.device) for size in x.shape]
        for d, i in enumerate(kept):
            if i is not None:
                small, index[d] = small.index_select(d, i), i
        for name in ("weight", "bias"):
            for d, i in enumerate(kept[first:]):
                if values.get(name) is not None and i is not None:
                    values[name] = values[name].index_select(d, i)
        if "normalized_shape" in values:
            values["normalized_shape"] = list(small.shape[first:])
        values["input"] = small
        out = target(**values)
        full = torch.zeros_like(x)
        full[tuple(torch.meshgrid(*index, indexing="ij"))] = out[0] if isinstance(out, tuple) else out
        return (full, *out[1:]) if isinstance(out, tuple) else full
