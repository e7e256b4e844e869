"""The ServerApp: the same loop as everywhere, over Flower's Grid."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from edgeprune.engine.carrier import Delivery
from edgeprune.engine.flower.content import bytes_of, content_of
from edgeprune.engine.orders import follow_orders
from edgeprune.errors import EdgePruneError

NODES_S = 1.0  # how long a list of nodes is believed
POLL_S = 0.1

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the run that the server's orders describe."""
    folder = Path(str(context.run_config["folder"]))
    follow_orders(folder, lambda orders: GridCarrier(grid, orders.nodes))


class GridCarrier:
    """``nodes``: the node that Flower made for the key of each device. A message's sender is that node or it is
    nobody."""

    def __init__(self, grid: Grid, nodes: Mapping[str, int]) -> None:
        self._grid = grid
        self._nodes = dict(nodes)
        self._open: dict[str, tuple[str, str]] = {}  # message -> (device, token)
        self._seen: tuple[float, list[str]] = (-NODES_S, [])

    def devices(self) -> Sequence[str]:
        """Those that are online."""
        at, seen = self._seen
        if time.monotonic() - at > NODES_S:
            online = set(self._grid.get_node_ids())
            seen = [device for device, node in self._nodes.items() if node in online]
            self._seen = (time.monotonic(), seen)
        return seen

    def send(self, device: str, token: str, data: bytes, seconds: float) -> None:
        """One message, which lives for ``seconds``."""
        message = Message(content_of(data), self._nodes[device], "query", ttl=seconds)
        (id_,) = self._grid.push_messages([message])
        if id_:
            self._open[id_] = (device, token)

    def receive(self, seconds: float) -> Sequence[Delivery]:
        """Ask the SuperLink until something is there."""
        end = time.monotonic() + seconds
        while True:
            found = [self._delivered(reply) for reply in self._grid.pull_messages(list(self._open))]
            if found or time.monotonic() >= end:
                return found
            time.sleep(POLL_S)

    def forget(self, tokens: Sequence[str]) -> None:
        """Late answers still come, and are counted; a message that has outlived its time ends as an error."""

    def _delivered(self, reply: Message) -> Delivery:
        device, token = self._open.pop(reply.metadata.reply_to_message_id)
        if reply.has_error():
            return Delivery(device, None, token, f"Flower reports: {str(reply.error.reason)[:200]}")
        if reply.metadata.src_node_id != self._nodes[device]:
            return Delivery(device, b"", token)
        try:
            return Delivery(device, bytes_of(reply.content), token)
        except EdgePruneError:
            return Delivery(device, b"", token)
