"""Networks batched over clients against each client's own, in double where rounding would hide a fault."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeprune import ops
from edgeprune.errors import EdgePruneError
from edgeprune.nn.batched import batched, load_states, split_states, unpacked_masks
from edgeprune.tasks.models import feddst_cifar, resnet_like

CPU = torch.device("cpu")


def conv(**more):
    return lambda: nn.Sequential(nn.Conv2d(2, 4, 3, **more), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


MODELS = {
    "strided": (conv(stride=2, padding=1), (2, 7, 6)),
    "uneven": (conv(stride=(2, 1), padding=(0, 2), bias=False), (2, 8, 7)),
    "in-place": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3), nn.ReLU(inplace=True)
        ),
        (1, 7, 7),
    ),
    "groups": (conv(groups=2, dilation=2, padding="same"), (2, 7, 6)),
    "norm1d": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)), (5,)),
    "feddst": (lambda: feddst_cifar(channels=1, pixels=16, widths=(2, 3, 8, 6)), (1, 16, 16)),
    "resnet": (lambda: resnet_like((4, 8), blocks=1), (3, 8, 8)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clients", [1, 3])
def test_outputs_gradients_and_statistics_are_each_clients_own(name, clients):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    x = torch.randn(clients, 4, *shape, dtype=torch.float64)
    own = []
    for i in range(clients):
        model = make().double()
        model(x[i])  # lazy layers find their size; running statistics differ from client to client
        own.append(model)
    together = batched(own[0], clients, CPU)
    load_states(together, [model.state_dict() for model in own])
    out = together(x.flatten(0, 1)).unflatten(0, (clients, 4))
    due = torch.stack([model(part) for model, part in zip(own, x, strict=True)])
    torch.testing.assert_close(out, due)
    out.square().sum().backward()
    for part in due:
        part.square().sum().backward(retain_graph=True)
    for key, parameter in together.named_parameters():
        torch.testing.assert_close(parameter.grad, torch.stack([model.get_parameter(key).grad for model in own]))
    for mine, model in zip(split_states(together), own, strict=True):
        assert mine.keys() == model.state_dict().keys()
        torch.testing.assert_close(mine, dict(model.state_dict()))


def test_what_all_clients_were_sent_is_theirs_alone_afterwards():
    model = nn.Linear(3, 2)
    together = batched(model, 2, CPU)
    load_states(together, [model.state_dict(), copy.deepcopy(model.state_dict())])
    with torch.no_grad():
        together.weight[0] += 1
    one, other = split_states(together)
    assert torch.equal(other["weight"], model.weight) and not torch.equal(one["weight"], model.weight)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Embedding(4, 2)), "0 is a Embedding"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "1 is a Dropout"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), "0 is a Conv2d"),
        (nn.Sequential(nn.BatchNorm1d(2, momentum=None)), "0 is a BatchNorm1d"),
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), "share weights"),
    ],
    ids=["embedding", "dropout", "circular", "cumulative", "shared"],
)
def test_what_cannot_be_batched_is_one_sentence(model, said):
    with pytest.raises(EdgePruneError, match=said):
        batched(model, 2, CPU)


def test_masks_of_all_clients_unpacked():
    masks = [ops.mask_from_indices(torch.tensor(places), 10) for places in ([0, 9], [3, 4, 8])]
    found = unpacked_masks(masks, (2, 5), CPU)
    assert found.dtype == torch.bool
    assert [each.flatten().nonzero().flatten().tolist() for each in found] == [[0, 9], [3, 4, 8]]
    assert unpacked_masks([masks[0], masks[0].clone()], (2, 5), CPU).shape == (1, 2, 5)
