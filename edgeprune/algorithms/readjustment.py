"""On the device: moving a mask in the middle of local training, by magnitude and dense gradient (pruning/masks.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgeprune import ops
from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.training import AfterEpoch, LocalData, on_softmax
from edgeprune.nn import densify, set_masks
from edgeprune.nn.layers import MaskedConv2d, MaskedLinear
from edgeprune.ops.sparsity import SparsityPattern
from edgeprune.pruning import masks

Loss = Callable[[Tensor, Tensor], Tensor]


def readjust(model: nn.Module, data: LocalData, loss_of: Loss, recipe: Recipe, job: Job) -> AfterEpoch:
    """What :func:`train_local` is to call after each epoch: in epoch ``job.after`` the masks of ``model`` move.

    Weights kept before and after stay as they are, with their momentum; grown ones start at zero, without any. A
    weight just pruned may be grown again, at zero.
    """

    def move(epoch: int, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
        if epoch != job.after:
            return
        one = LocalData(data.x[batch], data.y[batch], data.normalise)
        gradients = dense_gradients(model, one if job.growth_data == "batch" else data, loss_of, recipe)
        left: dict[str, SparsityPattern] = {}
        after: dict[str, SparsityPattern] = {}
        for name, layer in masked_layers(model).items():
            stay, new = moved(layer.weight, layer.pattern.bits, gradients[f"{name}.weight"], job)
            left[name] = SparsityPattern.from_bits(stay, layer.pattern.shape)
            after[name] = SparsityPattern.from_bits(new, layer.pattern.shape)
        set_masks(model, left, optimizer)
        set_masks(model, after, optimizer)

    return move


def moved(weight: Tensor, mask: Tensor, gradient: Tensor, job: Job) -> tuple[Tensor, Tensor]:
    """(what of ``mask`` stays, the new mask) of a layer: the smallest |w| go, the largest gradients come"""
    kept, n = ops.mask_count(mask), weight.numel()
    stay = masks.pruned(weight, mask, kept - masks.exchange_count(kept, n, job.readjust))
    if not job.grow_any:
        return stay, masks.grown(gradient, stay, kept)
    new, picked = masks.grown_anywhere(gradient, stay, kept)
    return stay & masks.inverse(picked, n), new  # what was picked starts at zero, even if it was there


def dense_gradients(model: nn.Module, data: LocalData, loss_of: Loss, recipe: Recipe) -> dict[str, Tensor]:
    """dL/dw of every masked layer's dense weight, over all of ``data`` (its mean loss, in batches), by its name.

    The model is left as it is; a batch-norm normalises by each batch, as in training.
    """
    dense = densify(model)
    dense.train()
    weights = {f"{name}.weight": dense.get_parameter(f"{name}.weight") for name in masked_layers(model)}
    loss_of = on_softmax(loss_of) if recipe.softmax else loss_of
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in torch.arange(len(data)).split(recipe.batch_size):
        if len(batch) == 1 < min(recipe.batch_size, len(data)):
            continue
        loss = loss_of(dense(data.normalise(data.x[batch])), data.y[batch])
        parts = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)  # 0 where it is not used
        for name, part in zip(total, parts, strict=True):
            total[name] += part * (len(batch) / len(data))
    return total


def masked_layers(model: nn.Module) -> dict[str, MaskedLinear | MaskedConv2d]:
    """The layers under a mask, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (MaskedLinear, MaskedConv2d))}


def mask_bits(model: nn.Module) -> dict[str, Tensor]:
    """The masks as bitmaps, by the name of their weight."""
    return {f"{name}.weight": layer.pattern.bits for name, layer in masked_layers(model).items()}
