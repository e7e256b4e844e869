"""The workflow: the same loop as everywhere, over FLARE's tasks."""

from __future__ import annotations

import math
import os
import queue
from collections.abc import Sequence
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, SendOrder, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from edgeprune.engine.carrier import Delivery, drained
from edgeprune.engine.flare.device import ENVELOPE
from edgeprune.engine.orders import follow_orders
from edgeprune.errors import EdgePruneError

FOLDER = "EDGEPRUNE_FEDERATION"  # the environment's variable that says where the orders lie
TASK = "edgeprune"
DEVICE, TOKEN = "edgeprune_device", "edgeprune_token"


class Lead(Controller):
    """Lead the run that the server's orders describe."""

    def __init__(self) -> None:
        super().__init__(task_check_period=0.05)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to prepare."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to put away."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """An answer to a task that is over: FLARE itself drops it."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """The whole run."""
        follow_orders(Path(os.environ[FOLDER]), lambda orders: TaskCarrier(self, fl_ctx, abort_signal))


class TaskCarrier:
    """A task for each envelope. Who answers is who FLARE knows by its certificate."""

    def __init__(self, controller: Controller, fl_ctx: FLContext, abort_signal: Signal) -> None:
        self._controller = controller
        self._fl_ctx = fl_ctx
        self._abort = abort_signal
        self._delivered: queue.SimpleQueue[Delivery] = queue.SimpleQueue()

    def devices(self) -> Sequence[str]:
        """Those that take part in FLARE's job."""
        return [client.name for client in self._fl_ctx.get_engine().get_clients()]

    def send(self, device: str, token: str, data: bytes, seconds: float) -> None:
        """One task, for this device alone, which lives for ``seconds``."""
        task = Task(
            TASK,
            Shareable({ENVELOPE: data}),
            props={DEVICE: device, TOKEN: token},
            timeout=math.ceil(seconds),
            result_received_cb=self._answered,
            task_done_cb=self._done,
        )
        self._controller.send(task, self._fl_ctx, targets=[device], send_order=SendOrder.ANY)

    def receive(self, seconds: float) -> Sequence[Delivery]:
        """Everything that has come."""
        if self._abort.triggered:
            raise EdgePruneError("serve: FLARE ended the job; --resume goes on with it")
        return drained(self._delivered, seconds)

    def forget(self, tokens: Sequence[str]) -> None:
        """A task that has outlived its time ends by itself; FLARE drops its answer."""

    def _answered(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        task, result = client_task.task, client_task.result
        token = str(task.props[TOKEN])
        task.props[TOKEN] = ""
        data = result.get(ENVELOPE) if isinstance(result, Shareable) else None
        if result is None or result.get_return_code() != ReturnCode.OK or not isinstance(data, bytes):
            code = "nothing" if result is None else result.get_return_code()
            self._delivered.put(Delivery(client_task.client.name, None, token, f"FLARE reports: {code}"))
        else:
            self._delivered.put(Delivery(client_task.client.name, data, token))

    def _done(self, task: Task, fl_ctx: FLContext) -> None:
        token = str(task.props[TOKEN])
        if token and task.completion_status != TaskCompletionStatus.OK:
            reason = f"FLARE reports: the task ended as {task.completion_status}"
            self._delivered.put(Delivery(str(task.props[DEVICE]), None, token, reason))
