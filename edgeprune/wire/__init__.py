"""What travels: tensors and a small header as bytes, made and read without trusting the sender.

Every message of every algorithm and engine goes through :func:`encode` and :func:`decode`;
the traffic an experiment reports is ``len`` of these bytes. See ``format.md`` beside this file.
"""

from edgeprune.wire.message import Message, decode, encode

__all__ = ["Message", "decode", "encode"]
