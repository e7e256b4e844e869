"""The resident worker of one device: bytes in, training on its own data, bytes out."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from edgeprune import wire
from edgeprune.algorithms import mpfl
from edgeprune.algorithms.adp import specialised, zero_small
from edgeprune.algorithms.calibration import local_statistics
from edgeprune.algorithms.mask_learning import learn_mask
from edgeprune.algorithms.protocol import Job, Recipe
from edgeprune.algorithms.readjustment import dense_gradients, mask_bits, readjust
from edgeprune.algorithms.training import AfterEpoch, LocalData, Trained, train_local
from edgeprune.engine.acceptance import GRADIENT
from edgeprune.engine.answers import Answered, answer_with
from edgeprune.errors import EdgePruneError, shown
from edgeprune.nn import set_masks, sparsify, with_transfer
from edgeprune.ops.sparsity import SparsityPattern
from edgeprune.pruning import ChannelGraph, SubmodelPlan
from edgeprune.pruning.surgery import expand_state, extract, extract_state, load_local

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """The answer's bytes, and what was done for them (for the clock). ``masks``: what the bytes take for known;
    ``kind``: "update" or "statistics"; ``owed``: what error feedback owed before it."""

    blob: bytes
    plan: SubmodelPlan
    steps: int
    forwards: int
    rebuilt: bool
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    kind: str = "update"
    owed: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """What one device is to train: from the weights ``received``, under the masks ``held`` (bitmaps by the weight's
    name), with its own ``data``. ``message``: the assignment that said so; ``rebuilt``: it brought a plan."""

    message: wire.Message
    plan: SubmodelPlan
    recipe: Recipe
    job: Job
    seed: int
    received: Mapping[str, Tensor]
    held: Mapping[str, Tensor]
    data: LocalData
    rebuilt: bool


@dataclass(frozen=True)
class Done:
    """What came of an order: dense weights, masks as they are now, and the dense gradients if they were asked for."""

    state: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    trained: Trained


class ModelShelf:
    """Sub-models by plan id, built once each; the ``size`` last used are kept. ``dense_bytes`` is the whole model's."""

    def __init__(self, template: nn.Module, size: int = 32) -> None:
        self._template = template
        self._size = size
        self._built: OrderedDict[str, nn.Module] = OrderedDict()
        self._masked: nn.Module | None = None
        self._patterns: OrderedDict[str, dict[str, SparsityPattern]] = OrderedDict()
        self.initial = {name: tensor.clone() for name, tensor in template.state_dict().items()}
        self.repeats = wire.Repeats()
        self._received: tuple[wire.Message, dict[str, Tensor]] | None = None
        self.dense_bytes = sum(t.numel() * t.element_size() for t in template.state_dict().values())

    def clear(self) -> None:
        """Forget every module; they are built again when they are asked for."""
        self._built.clear()
        self._masked = None

    def received(self, message: wire.Message) -> dict[str, Tensor]:
        """The dense weights in ``message``, made once for all devices that are sent the same."""
        last = self._received
        if last is None or last[0].packed is not message.packed or last[0].tensors is not message.tensors:
            dense = {name: packed.tensor() for name, packed in message.packed.items()}
            last = self._received = message, {**message.tensors, **dense}
        return last[1]

    def get(self, plan: SubmodelPlan) -> nn.Module:
        """The module of ``plan``; its weights are whatever was last loaded into it."""
        if plan.id not in self._built:
            self._built[plan.id] = extract(self._template, plan)
            while len(self._built) > self._size:
                self._built.popitem(last=False)
        self._built.move_to_end(plan.id)
        return self._built[plan.id]

    def get_masked(self, masks: Mapping[str, Tensor], path: str) -> nn.Module:
        """The whole model with layers under ``masks`` (bitmaps by the weight's name); one module serves all masks."""
        key = wire.mask_id(masks)
        if key not in self._patterns:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.initial.items()}
            self._patterns[key] = {
                name.removesuffix(".weight"): SparsityPattern.from_bits(mask, shapes[name])
                for name, mask in masks.items()
            }
            while len(self._patterns) > self._size:
                self._patterns.popitem(last=False)
        self._patterns.move_to_end(key)
        patterns = self._patterns[key]
        if self._masked is None:
            self._masked = sparsify(self._template, masks=patterns, path=path)
        layers = dict(self._masked.named_modules())
        moved = {name: p for name, p in patterns.items() if layers[name].pattern is not p}
        set_masks(self._masked, moved)
        return self._masked


class Worker:
    """Owns one device's data and its present plan. The shelf may be shared by workers in one process.

    ``plans``: by id all that it was sent, for a server that goes on from an earlier round takes them for known."""

    def __init__(
        self,
        client: str,
        data: LocalData,
        graph: ChannelGraph,
        shelf: ModelShelf,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        plan: SubmodelPlan | None = None,
        residual: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._client = client
        self._data = data
        self._graph = graph
        self._shelf = shelf
        self._loss_of = loss_of
        self._plan = plan
        self.plans = {} if plan is None else {plan.id: plan}
        self._residual: dict[str, Tensor] = dict(residual or {})
        self._calibrating: dict[str, Tensor] = {}

    @property
    def residual(self) -> Mapping[str, Tensor]:
        """What error feedback still owes the server, by tensor; it must survive a restart of the device."""
        return self._residual

    @property
    def plan(self) -> SubmodelPlan | None:
        """What it holds of the model; None before its first assignment."""
        return self._plan

    def take_back(self, answer: Answer) -> None:
        """The last ``answer``, an update, will not be sent: what was owed before it is owed still."""
        self._residual = dict(answer.owed)

    def handle(self, blob: bytes) -> Answer:
        """Do what ``blob`` asks for. Raises :class:`EdgePruneError` if it is nothing for this device."""
        try:
            opened = self.open(blob)
            if isinstance(opened, Answer):
                return opened
            return self.close(opened, train_one(self._shelf, opened, self._loss_of))
        except EdgePruneError:
            raise
        except Exception:  # of the user's model or data; who knows what it left of the modules
            self._shelf.clear()
            raise

    def open(self, blob: bytes) -> Order | Answer:
        """What ``blob`` asks to be trained, for :meth:`close` to answer; what needs no training is answered at once."""
        message = wire.decode(
            blob,
            kind=("assignment", "calibrate"),
            dense_limit=self._shelf.dense_bytes,
            keep_packed=True,
            repeats=self._shelf.repeats,
        )
        if message.client != self._client:
            raise EdgePruneError(f"{self._client}: was sent an assignment for {message.client!r}; refused")
        return self._order(message) if message.kind == "assignment" else self._calibrate(message)

    def close(self, order: Order, done: Done) -> Answer:
        """The answer to what was trained."""
        message, job = order.message, order.job
        if job.propose:
            proposed = mpfl.proposal(done.state, self._graph, order.plan, job.propose)
            blob = self._pack(message, Answered({}, {}, "", {}), done.trained, proposed.kept_bytes())
            return Answer(blob, order.plan, done.trained.steps, 0, order.rebuilt, owed=self._residual)
        forwards = 0
        if order.held and (job.gradient or job.readjust):
            forwards = 3 * len(self._data.y.split(order.recipe.batch_size))  # a backward pass is two forward ones
        answered = answer_with(done.state, order.received, done.masks, order.held, done.gradients, job, self._residual)
        kept = b""
        if job.gates:
            forwards += len(self._data.y.split(order.recipe.batch_size))
            kept = self._used(order, done).kept_bytes()
        blob = self._pack(message, answered, done.trained, kept)
        owed, self._residual = self._residual, answered.residual
        return Answer(blob, order.plan, done.trained.steps, forwards, order.rebuilt, order.held, owed=owed)

    def _calibrate(self, message: wire.Message) -> Answer:
        """Pass the device's own data through the whole model: its batch-norm statistics, no weight changed.

        The first pass brings the model, further ones only the pooled statistics of the pass before.
        """
        full, batch_size = SubmodelPlan.full(self._graph), _whole(message, "batch_size", 1)
        model = self._shelf.get(full)
        first = bool(message.header.get("first"))
        if first:
            self._calibrating = dict(message.tensors)
        elif not self._calibrating or not message.tensors.keys() <= self._calibrating.keys():
            raise EdgePruneError(f"{self._client}: statistics came without the model they belong to; refused")
        self._calibrating.update(message.tensors)
        load_local(model, self._calibrating)
        x = self._data.x.split(batch_size)
        batches = (self._data.normalise(part) for part in x if not len(part) == 1 < len(x[0]))
        with torch.random.fork_rng(devices=[]):  # for dropout and its like, as in training
            torch.manual_seed(_whole(message, "seed", 0))
            statistics = local_statistics(model, batches, own=first)
        answer = wire.Message("statistics", message.round, self._client, full.id, statistics, samples=len(self._data))
        blob = wire.encode(answer)
        return Answer(blob, full, steps=0, forwards=len(x), rebuilt=False, kind="statistics")

    def _order(self, message: wire.Message) -> Order | Answer:
        recipe, job = _filled(Recipe, message.header.get("recipe")), _filled(Job, message.header.get("job", {}))
        seed = _whole(message, "seed", 0)
        for name, number in vars(recipe).items():
            if number < (1 if name == "batch_size" else 0):
                raise EdgePruneError(f"assignment: its recipe's {name} is {shown(number)}; refused")
        rebuilt = self._adopt_plan(message)
        assert self._plan is not None
        if job.learn:
            return self._learn(message, recipe, job, seed, rebuilt)
        if job.propose:  # from the initial weights, which every node has from the run's seed
            received: Mapping[str, Tensor] = extract_state(self._shelf.initial, self._plan)
        else:
            received = self._shelf.received(message)
        held = {name: packed.mask for name, packed in message.packed.items() if packed.mask is not None}
        return Order(message, self._plan, recipe, job, seed, received, held, self._data, rebuilt)

    def _learn(self, message: wire.Message, recipe: Recipe, job: Job, seed: int, rebuilt: bool) -> Answer:
        """Learn a mask over what was sent, and say what should stay."""
        assert self._plan is not None
        model = load_local(self._shelf.get(self._plan), message.tensors)
        learnt = learn_mask(model, self._graph, self._plan, self._data, self._loss_of, recipe, job, seed)
        blob = self._pack(message, Answered({}, {}, "", {}), learnt.trained, learnt.plan.kept_bytes())
        return Answer(blob, self._plan, learnt.trained.steps, 0, rebuilt, owed=self._residual)

    def _used(self, order: Order, done: Done) -> SubmodelPlan:
        """The channels that the own data use most in what was trained."""
        model = load_local(self._shelf.get(order.plan), done.state)
        batches = (self._data.normalise(x) for x in self._data.x.split(order.recipe.batch_size))
        with torch.random.fork_rng(devices=[]):  # for inputs that are drawn, as in training
            torch.manual_seed(order.seed)
            return specialised(model, self._graph, batches, order.job.gates)

    def _adopt_plan(self, message: wire.Message) -> bool:
        """Whether the message brought a plan. (One that came again is built again: the device may have lost it.)"""
        if self._plan is not None and self._plan.id == message.plan and not message.kept:
            return False
        if not message.kept and message.plan not in self.plans:
            raise EdgePruneError(f"{self._client}: plan {message.plan} is not known here and was not sent; refused")
        plan = SubmodelPlan.from_kept_bytes(self._graph, message.kept) if message.kept else self.plans[message.plan]
        if plan.id != message.plan:
            raise EdgePruneError(f"{self._client}: kept channels do not match plan {message.plan}; refused")
        if self._plan is not None and self._residual:
            self._residual = carried_over(self._residual, self._plan, plan)
        self._plan = self.plans[plan.id] = plan
        return True

    def _pack(self, message: wire.Message, answered: Answered, trained: Trained, kept: bytes = b"") -> bytes:
        # A loss that is not finite cannot stand in JSON; the values will tell the server what happened.
        loss = trained.loss if abs(trained.loss) < float("inf") else None
        header = {"loss": loss, "steps": trained.steps}
        return wire.encode(
            wire.Message(
                "update",
                message.round,
                self._client,
                message.plan,
                answered.whole,
                header,
                samples=len(self._data),
                mask=answered.mask,
                kept=kept,
                packed=answered.packed,
            )
        )


def carried_over(owed: Mapping[str, Tensor], old: SubmodelPlan, new: SubmodelPlan) -> dict[str, Tensor]:
    """What error feedback owes under ``old``, at the places that its weights have under ``new``: 0 for weights that are
    new; of weights that are gone nothing is owed any more."""
    held = {name: t for name, t in owed.items() if old.holds(name) and tuple(t.shape) == old.shape(name)}
    return extract_state(expand_state(held, old), new)


def train_one(shelf: ModelShelf, order: Order, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Done:
    """Do one order alone, on this CPU; under a mask on the masked kernels."""
    readjusting: AfterEpoch | None = None
    if order.held:
        model = shelf.get_masked(order.held, order.job.path)
        model.load_state_dict(order.received)
        if order.job.readjust:
            readjusting = readjust(model, order.data, loss_of, order.recipe, order.job)
    else:
        model = load_local(shelf.get(order.plan), order.received)
    job = order.job
    if job.threshold:
        readjusting = zero_small(model, job.threshold)
    training = with_transfer(loss_of, job.transfer, job.temperature, job.reduction) if job.transfer else loss_of
    trained = train_local(model, order.data, training, order.recipe, order.seed, readjusting)
    gradients: dict[str, Tensor] = {}
    if order.held and order.job.gradient:
        with torch.random.fork_rng(devices=[]):  # for dropout and its like, as in training
            torch.manual_seed(order.seed)
            dense = dense_gradients(model, order.data, loss_of, order.recipe)
        gradients = {GRADIENT + name: gradient for name, gradient in dense.items()}
    return Done(model.state_dict(), mask_bits(model) if order.held else {}, gradients, trained)


def _filled(cls: type[T], value: Any) -> T:
    """``cls`` from the JSON of a header: every key known and of its type; what a job leaves out has its default."""
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    what = cls.__name__.lower()
    try:
        made = cls(**{name: value[name] for name in known}) if cls is Recipe else cls(**value)
    except (KeyError, TypeError):
        raise EdgePruneError(f"assignment: its {what} is missing or incomplete; refused") from None
    for name, hint in _HINTS[cls].items():
        if not _is(getattr(made, name), hint):
            raise EdgePruneError(f"assignment: its {what}'s {name} is {shown(getattr(made, name))}; refused")
    return made


_HINTS: dict[type, dict[str, Any]] = {cls: get_type_hints(cls) for cls in (Recipe, Job)}


def _is(value: Any, hint: Any) -> bool:
    """Whether ``value`` of a JSON is what a field declared as ``hint`` takes: a whole number is also a float."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is hint


def _whole(message: wire.Message, key: str, least: int) -> int:
    """The whole number ``key`` of a header, from ``least`` to what 63 bits hold."""
    value = message.header.get(key)
    if type(value) is not int or not least <= value < 2**63:
        raise EdgePruneError(f"{message.kind}: its {key} is {shown(value)}; refused")
    return value
