"""An envelope as a Flower message's content, and back."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from edgeprune.errors import EdgePruneError

STYPE = "edgeprune.packed/1"
RECORD, ARRAY = "edgeprune", "envelope"


def content_of(data: bytes) -> RecordDict:
    """One array of bytes: Flower moves arrays in pieces, so that a slow link does not lose its session."""
    return RecordDict({RECORD: ArrayRecord({ARRAY: Array("uint8", (len(data),), STYPE, data)})})


def bytes_of(content: RecordDict) -> bytes:
    """The bytes; raises :class:`EdgePruneError` if the content is something else."""
    try:
        array = content[RECORD][ARRAY]
        if array.stype != STYPE or tuple(array.shape) != (len(array.data),):
            raise KeyError
        return bytes(array.data)
    except (KeyError, TypeError, AttributeError):
        raise EdgePruneError("flower: the message holds no envelope") from None
