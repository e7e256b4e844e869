"""What a user gives edgeprune.prune by mistake: one sentence each."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.utils import prune as torch_prune

import edgeprune
from edgeprune import EdgePruneError
from edgeprune.cli.prune import command
from edgeprune.pruning import ChannelGraph


def not_a_number(state, group):
    return None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": None}, "model is None"),
        ({"keep": "a"}, "keep must be"),
        ({"keep": None}, "keep must be"),
        ({"keep": 10**400}, "keep must be"),
        ({"budget": 3}, "budget is 3"),
        ({"budget": {"macs": 0.5}, "latency": 3}, "latency is 3"),
        ({"budget": {"ms": 1}, "latency": lambda counts: "a"}, "latency gave 'a'; give milliseconds"),
        ({"round_to": 1.5}, "round_to must be a whole number"),
        ({"min_channels": "a"}, "min_channels must be a whole number"),
        ({"min_keep": "a"}, "min_keep must be"),
        ({"order": 3}, "order is 3"),
        ({"graph": 3}, "graph is 3"),
        ({"model": nn.Linear(4, 4)}, "for another model"),
        ({"importance": not_a_number}, "6 finite numbers, not None"),
        ({"importance": None}, "unknown importance None"),
        ({"importance": "taylor", "batches": [(torch.ones(2, 4), torch.tensor([0, 99]))]}, "loss of batch 0.*99"),
        ({"importance": "taylor", "batches": [torch.ones(2, 4)]}, "loss of batch 0"),
        ({"importance": "taylor", "batches": 3}, "batches is 3"),
        ({"scope": "lay"}, "'layer', 'global' or 'cost'"),
        ({"scope": [], "budget": {"macs": 0.5}}, "'layer', 'global' or 'cost'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_prune_is_given_wrongly_is_one_sentence(arguments, says):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.ones(2, 4)
    given = {"model": model, "example_inputs": x, "graph": ChannelGraph.trace(model, x, verify=False), **arguments}
    with pytest.raises(EdgePruneError, match=says) as caught:
        edgeprune.prune(**given)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[2, 1] = float("nan")
    with pytest.raises(EdgePruneError, match="'0.weight' is not finite"):
        edgeprune.prune(model, torch.ones(2, 4))


def test_a_model_without_values_is_loaded_first():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(EdgePruneError, match="'0.weight' is on the meta device"):
        edgeprune.prune(model, torch.ones(2, 4, device="meta"))


def test_layers_without_a_shape_are_run_first():
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(EdgePruneError, match=r"'0.weight' has no shape yet; run the model once"):
        edgeprune.prune(model, torch.ones(2, 4))
    model(torch.ones(2, 4))
    assert edgeprune.prune(model, torch.ones(2, 4)).model[0].weight.shape == (3, 4)


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        self.last = [torch.relu(self.a(x))]
        return self.b(self.last[0])


def weight_normed():
    with pytest.warns(FutureWarning):
        first = nn.utils.weight_norm(nn.Linear(4, 6))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3))


def pruned_away():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    torch_prune.l1_unstructured(model[2], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("made", "name"), [(weight_normed, "0.weight"), (pruned_away, "2.weight"), (Remembers, "last")]
)
def test_a_tensor_that_cannot_be_copied_is_named(made, name):
    model = made()
    graph = ChannelGraph.trace(model, torch.ones(2, 4), verify=False) if name == "last" else None
    model(torch.ones(2, 4))
    said = f"cannot be copied, since '{name}' was computed"
    with pytest.raises(EdgePruneError, match=f"prune: .*{said}"):
        edgeprune.prune(model, torch.ones(2, 4))
    with pytest.raises(EdgePruneError, match=f"sparsify: .*{said}"):
        edgeprune.sparsify(model)
    if graph is not None:
        with pytest.raises(EdgePruneError, match=f"extract: .*{said}"):
            edgeprune.prune(model, torch.ones(2, 4), graph=graph)


def floored(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return edgeprune.prune(model, torch.ones(2, 4), **arguments).plan


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("floor", "says"),
    [
        ({"min_channels": 9999}, "keep is 0.5, but with min_channels=9999 at least 100 % of the 24"),
        ({"round_to": 1000}, "keep is 0.5, but with round_to=1000 at least 100 %"),
        ({"min_keep": 0.9}, "keep is 0.5, but with min_keep=0.9 at least 95.8 %"),
    ],
)
def test_a_floor_that_leaves_nothing_to_cut_is_refused(scope, floor, says):
    with pytest.raises(EdgePruneError, match=says) as caught:
        floored(scope=scope, **floor)
    assert "lower that, or raise keep" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"round_to": 8},
        {"round_to": 8, "keep": 0.3},
        {"min_channels": 5, "keep": 0.4},
        {"min_channels": 8, "keep": 0.1},
        {"min_keep": 0.5},
        {"keep": 0.01},
        {"keep": 1, "min_channels": 9999},
    ],
)
def test_a_floor_that_leaves_something_to_cut_is_no_mistake(scope, arguments):
    floored(scope=scope, **arguments)


@pytest.mark.parametrize("budgets", [("macs=.4", "macs=.5"), ("macs=.5", "bytes=.5", "macs=.4")])
def test_a_unit_has_one_limit_on_the_command_line(budgets, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "limited_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def f():\n return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.ones(2, 4)\n"
    )
    options = [part for limit in budgets for part in ("--budget", limit)]
    done = CliRunner().invoke(command, ["limited_net:f", *options, "-o", str(tmp_path / "small")])
    assert isinstance(done.exception, EdgePruneError) and "macs has a limit already" in str(done.exception)
    assert not (tmp_path / "small").exists()


def test_a_network_that_cannot_be_cut_says_what_stands_in_the_way_and_not_its_output():
    class Sorted(nn.Module):
        def forward(self, x):
            return torch.msort(x.T).T

    layers = [nn.Linear(3, 8), Sorted(), nn.Linear(8, 2)]
    with pytest.raises(EdgePruneError, match="no channels that can be cut .*msort"):
        edgeprune.prune(nn.Sequential(*layers), torch.ones(2, 3))


def test_a_price_without_the_scope_that_asks_for_it_is_refused() -> None:
    with pytest.raises(EdgePruneError, match="give scope='cost' with it"):
        edgeprune.prune(nn.Linear(2, 2), torch.zeros(2, 2), price="macs")
