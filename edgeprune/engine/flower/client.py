"""The ClientApp: Flower starts a process for each message, so it only hands the envelope to the resident worker.

It must stay light: neither torch nor the rest of the engine may be imported here.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from edgeprune.engine import frames
from edgeprune.engine.flower.content import bytes_of, content_of
from edgeprune.errors import EdgePruneError

SOCKET = "worker"  # the node's configuration: where its worker listens

app = ClientApp()


@app.query()
def forward(message: Message, context: Context) -> Message:
    """The worker's answer, or "refused" with a sentence."""
    token, client = "", ""
    try:
        data = bytes_of(message.content)
        asked = frames.Frame.from_bytes(data, frames.ASKS)
        token, client = asked.token, asked.client
        answer = frames.ask(str(context.node_config[SOCKET]), data)
    except EdgePruneError as error:
        answer = frames.Frame("refused", client, token, {"reason": str(error)}).to_bytes()
    return Message(content=content_of(answer), reply_to=message)
