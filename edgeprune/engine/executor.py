"""Who does the devices' training in this process: one after the other, or many at once. Both give the same numbers up
to the rounding of sums in another order, each the same bits every time at the same number of threads."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from edgeprune.algorithms.cohort import Cohort
from edgeprune.algorithms.training import LocalData
from edgeprune.engine.acceptance import GRADIENT
from edgeprune.engine.worker import Done, ModelShelf, Order, train_one
from edgeprune.errors import EdgePruneError
from edgeprune.nn import Exits
from edgeprune.nn.batched import batched, load_states
from edgeprune.nn.gated import gated_layers
from edgeprune.pruning import SubmodelPlan
from edgeprune.pruning.surgery import load_local

ROWS = 2  # of each client, on which a batched network is compared with the plain one
KEPT = 4  # batched networks: each as large as its clients' together
Loss = Callable[[Tensor, Tensor], Tensor]
Outcome = Done | EdgePruneError


class Executor(Protocol):
    """Does orders; each comes back once, beside what came of it, which is good until the next one is asked for, or
    beside the sentence that says why nothing did."""

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Outcome]]: ...


def executor(kind: str, device: str, shelf: ModelShelf, loss_of: Loss) -> Executor:
    """The executor ``kind`` on ``device``."""
    return Batched(shelf, loss_of, torch.device(device)) if kind == "batched" else Serial(shelf, loss_of)


def check_device(kind: str, device: str) -> None:
    """One sentence of EdgePruneError where this machine cannot train like that."""
    if device == "cuda" and kind != "batched":
        raise EdgePruneError("run.device is 'cuda', which only run.executor = 'batched' trains on; set both")
    if device == "cuda" and not torch.cuda.is_available():
        raise EdgePruneError("run.device is 'cuda', but torch sees no CUDA device here; use run.device = 'cpu'")


class Serial:
    """One after the other on this CPU, as a device would do it: the model of one client in memory at a time."""

    def __init__(self, shelf: ModelShelf, loss_of: Loss) -> None:
        self._shelf, self._loss_of = shelf, loss_of

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Outcome]]:
        for order in orders:
            try:
                done: Outcome = train_one(self._shelf, order, self._loss_of)
            except EdgePruneError as error:  # one device's data or weights: the others go on
                done = error
            yield order, done


class Batched:
    """At most ``width`` at once, those together that have equally much to do: the same plan, recipe, job and number of
    samples. Under a mask it computes densely, with zeros. What cannot be batched is trained one by one on the CPU."""

    def __init__(self, shelf: ModelShelf, loss_of: Loss, device: torch.device, width: int = 64) -> None:
        self._shelf, self._loss_of, self._device, self._width = shelf, loss_of, device, width
        self._serial = Serial(shelf, loss_of)
        self._models: OrderedDict[tuple[str, int], nn.Module] = OrderedDict()
        self._alike: set[str] = set()  # plans whose networks say the same when batched
        self._apart: set[str] = set()  # and those that do not
        self._random: bool | None = None

    def __call__(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Outcome]]:
        waiting = iter(orders)
        while some := list(islice(waiting, self._width)):
            groups: dict[object, list[Order]] = {}
            for order in some:
                key = (order.plan.id, order.recipe, order.job, frozenset(order.held), len(order.data))
                groups.setdefault(key, []).append(order)
            for group in groups.values():
                if self._one_by_one(group[0]):
                    yield from self._serial(group)
                    continue
                try:
                    done = self._together(group)
                except EdgePruneError:  # whose it was is found out one by one
                    yield from self._serial(group)
                else:
                    yield from zip(group, done, strict=True)

    def _one_by_one(self, order: Order) -> bool:
        """Several outputs, gates, thresholds, what draws at random and what was found to mix the clients go alone."""
        model = self._shelf.get(order.plan)
        if isinstance(model, Exits) or bool(gated_layers(model)) or order.job.threshold > 0:
            return True
        if self._random is None:
            self._random = _draws(model, order.data)
        return self._random or order.plan.id in self._apart

    def _together(self, group: Sequence[Order]) -> list[Done]:
        first = group[0]
        cohort = Cohort(
            self._judged(self._model(first.plan, len(group)), group),
            [order.received for order in group],
            {name: [order.held[name] for order in group] for name in first.held},
            [order.data for order in group],
            self._loss_of,
            first.recipe,
            self._device,
        )
        trained = cohort.train([order.seed for order in group], first.job)
        gradients: list[dict[str, Tensor]] = [{} for _ in group]
        if first.held and first.job.gradient:
            for name, each in cohort.dense_gradients().items():
                for i, gradient in enumerate(each.cpu()):
                    gradients[i][GRADIENT + name] = gradient
        masks = [{name: bits[i] for name, bits in cohort.masks.items()} for i in range(len(group))]
        return [Done(*one) for one in zip(cohort.states(), masks, gradients, trained, strict=True)]

    def _model(self, plan: SubmodelPlan, clients: int) -> nn.Module:
        """The network of ``plan`` for so many; the few last used are kept."""
        key = (plan.id, clients)
        if key not in self._models:
            self._models[key] = batched(self._shelf.get(plan), clients, self._device)
            while len(self._models) > KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(key)
        return self._models[key]

    def _judged(self, model: nn.Module, group: Sequence[Order]) -> nn.Module:
        """``model``, the batched network of ``group``. EdgePruneError where it says something else of the last client's
        samples than the plain one of them alone: code between layers may look at the whole batch, or at weights."""
        plan = group[0].plan
        if plan.id not in self._alike:
            if not self._agrees(model, group):
                self._apart.add(plan.id)
                raise EdgePruneError("batched training: forward works over the batch, or on weights themselves")
            if len(group) > 1:
                self._alike.add(plan.id)
        return model

    @torch.no_grad()
    def _agrees(self, model: nn.Module, group: Sequence[Order]) -> bool:
        load_states(model, [order.received for order in group])
        plain = load_local(copy.deepcopy(self._shelf.get(group[0].plan)), group[-1].received).to(self._device).eval()
        rows = [order.data.normalise(order.data.x[:ROWS].clone()).to(self._device) for order in group]
        try:
            together, alone = model.eval()(torch.cat(rows)), plain(rows[-1])
            if not isinstance(together, Tensor) or together.shape != (sum(map(len, rows)), *alone.shape[1:]):
                return False
            return torch.allclose(together[-len(alone) :], alone, rtol=1e-2, atol=1e-3 * float(alone.abs().max()))
        except Exception:  # a user's forward may raise anything; alone it may train
            return False
        finally:
            model.train()


def _draws(model: nn.Module, data: LocalData) -> bool:
    """Whether a step of training draws numbers, in ``model`` (dropout) or in what makes its inputs (an augmentation):
    each client's belong to its own seed. What makes inputs may draw from elsewhere, so it is asked twice."""
    rows = data.x[:1].repeat_interleave(2, 0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        made, again = data.normalise(rows.clone()), data.normalise(rows.clone())
        if not torch.equal(made, again):
            return True
        copy.deepcopy(model).train()(made)
        return not torch.equal(torch.get_rng_state(), before)
