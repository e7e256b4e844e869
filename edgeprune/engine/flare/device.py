"""The executor: FLARE's job process on a device hands the envelope to the resident worker.

It must stay light: neither torch nor the rest of the engine may be imported here.
"""

from __future__ import annotations

import os

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from edgeprune.engine import frames
from edgeprune.errors import EdgePruneError

ENVELOPE = "envelope"  # the one key of a task's data
SOCKET = "EDGEPRUNE_WORKER"  # the environment's variable that says where the worker listens


class Forward(Executor):
    """One task is one envelope."""

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """The worker's answer, or "refused" with a sentence."""
        token, client = "", ""
        try:
            data = shareable.get(ENVELOPE)
            if not isinstance(data, bytes):
                return make_reply(ReturnCode.BAD_TASK_DATA)
            asked = frames.Frame.from_bytes(data, frames.ASKS)
            token, client = asked.token, asked.client
            answer = frames.ask(os.environ[SOCKET], data)
        except EdgePruneError as error:
            answer = frames.Frame("refused", client, token, {"reason": str(error)}).to_bytes()
        reply = make_reply(ReturnCode.OK)
        reply[ENVELOPE] = answer
        return reply
