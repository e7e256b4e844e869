"""The resident worker of one device: bytes in, training on its own data, bytes out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from edgeprune import wire
from edgeprune.algorithms.calibration import local_statistics
from edgeprune.algorithms.protocol import Recipe
from edgeprune.algorithms.training import LocalData, Trained, train_local
from edgeprune.errors import EdgePruneError
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning.surgery import extract, load_local


@dataclass(frozen=True)
class Answer:
    """The update's bytes, and what was done for them (for the clock)."""

    blob: bytes
    plan: SubmodelPlan
    steps: int
    forwards: int
    rebuilt: bool


class ModelShelf:
    """Sub-models by plan id, built once each; the ``size`` last used are kept. ``dense_bytes`` is the whole model's."""

    def __init__(self, template: nn.Module, size: int = 32) -> None:
        self._template = template
        self._size = size
        self._built: OrderedDict[str, nn.Module] = OrderedDict()
        self.dense_bytes = sum(t.numel() * t.element_size() for t in template.state_dict().values())

    def get(self, plan: SubmodelPlan) -> nn.Module:
        """The module of ``plan``; its weights are whatever was last loaded into it."""
        if plan.id not in self._built:
            self._built[plan.id] = extract(self._template, plan)
            while len(self._built) > self._size:
                self._built.popitem(last=False)
        self._built.move_to_end(plan.id)
        return self._built[plan.id]


class Worker:
    """Owns one device's data and its present plan. The shelf may be shared by workers in one process."""

    def __init__(
        self,
        client: str,
        data: LocalData,
        graph: ChannelGraph,
        shelf: ModelShelf,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        plan: SubmodelPlan | None = None,
    ) -> None:
        self._client = client
        self._data = data
        self._graph = graph
        self._shelf = shelf
        self._loss_of = loss_of
        self._plan = plan
        self._calibrating: dict[str, Tensor] = {}

    def handle(self, blob: bytes) -> Answer:
        """Do what ``blob`` asks for. Raises :class:`EdgePruneError` if it is nothing for this device."""
        message = wire.decode(blob, kind=("assignment", "calibrate"), dense_limit=self._shelf.dense_bytes)
        if message.client != self._client:
            raise EdgePruneError(f"{self._client}: was sent an assignment for {message.client!r}; refused")
        return self._train(message) if message.kind == "assignment" else self._calibrate(message)

    def _calibrate(self, message: wire.Message) -> Answer:
        """Pass the device's own data through the whole model: its batch-norm statistics, no weight changed.

        The first pass brings the model, further ones only the pooled statistics of the pass before.
        """
        full = SubmodelPlan.full(self._graph)
        model = self._shelf.get(full)
        first = bool(message.header.get("first"))
        if first:
            self._calibrating = dict(message.tensors)
        elif not self._calibrating or not message.tensors.keys() <= self._calibrating.keys():
            raise EdgePruneError(f"{self._client}: statistics came without the model they belong to; refused")
        self._calibrating.update(message.tensors)
        load_local(model, self._calibrating)
        x = self._data.x.split(int(message.header["batch_size"]))
        batches = (self._data.normalise(part) for part in x if len(part) > 1 or len(x) == 1)
        statistics = local_statistics(model, batches, own=first)
        answer = wire.Message("statistics", message.round, self._client, full.id, statistics, samples=len(self._data))
        blob = wire.encode(answer)
        return Answer(blob, full, steps=0, forwards=len(x), rebuilt=False)

    def _train(self, message: wire.Message) -> Answer:
        rebuilt = self._adopt_plan(message)
        assert self._plan is not None
        recipe = _recipe(message.header.get("recipe"))
        model = self._shelf.get(self._plan)
        load_local(model, dict(message.tensors))
        trained = train_local(model, self._data, self._loss_of, recipe, int(message.header["seed"]))
        return Answer(self._pack(message, model, trained), self._plan, trained.steps, 0, rebuilt)

    def _adopt_plan(self, message: wire.Message) -> bool:
        """Whether the message brought a plan that the device did not hold."""
        if self._plan is not None and self._plan.id == message.plan:
            return False
        if not message.kept:
            raise EdgePruneError(f"{self._client}: plan {message.plan} is not known here and was not sent; refused")
        plan = SubmodelPlan.from_kept_bytes(self._graph, message.kept)
        if plan.id != message.plan:
            raise EdgePruneError(f"{self._client}: kept channels do not match plan {message.plan}; refused")
        self._plan = plan
        return True

    def _pack(self, message: wire.Message, model: nn.Module, trained: Trained) -> bytes:
        # A loss that is not finite cannot stand in JSON; the values will tell the server what happened.
        loss = trained.loss if abs(trained.loss) < float("inf") else None
        header = {"loss": loss, "steps": trained.steps}
        state = model.state_dict()
        return wire.encode(
            wire.Message("update", message.round, self._client, message.plan, state, header, samples=len(self._data))
        )


def _recipe(value: Any) -> Recipe:
    try:
        return Recipe(**{f.name: value[f.name] for f in fields(Recipe)})
    except (KeyError, TypeError):
        raise EdgePruneError("assignment: its recipe is missing or incomplete; refused") from None
