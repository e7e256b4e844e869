"""Random numbers that are the same for a model and for its cut copy, so that their outputs can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_DRAWN = frozenset(
    ("bernoulli", "normal", "uniform", "exponential", "cauchy", "log_normal", "geometric", "poisson", "binomial",
     "rand", "randn", "randint", "random", "randperm", "multinomial", "rand_like", "randn_like", "randint_like")
)  # fmt: skip


class Steady(TorchDispatchMode):
    """While it lasts dropout keeps everything, and all numbers that are drawn are one number (1 for a coin, a half, or
    0 for a whole number). Random operations that it does not know run as ever."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name == "rrelu_with_noise":
            slopes = (*args[2:4], *(1 / 8, 1 / 3)[len(args) - 2 :])  # those left out are the operator's defaults
            return functional.leaky_relu(args[0], sum(slopes) / 2)
        out = func(*args, **kwargs)
        if name.removesuffix("_") in _DRAWN:
            number = 1.0 if "bernoulli" in name else 0.5
            pytree.tree_map_only(Tensor, lambda t: t.fill_(number if t.is_floating_point() else int(number)), out)
        return out
