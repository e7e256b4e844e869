"""Arrays of an .npz archive, with nothing unpickled and no length taken on trust.

``numpy.load`` reserves the memory that a header asks for before it looks at what follows; here the header has to agree
with the size of its member first.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from edgeprune.data.files import CheckedZip, bad

LENGTH = {1: ("<H", npy.read_array_header_1_0), 2: ("<I", npy.read_array_header_2_0)}
LONGEST_HEADER = 4096


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays (numbers only, C order). Anything missing or not as promised raises :class:`EdgePruneError`."""
    with CheckedZip(path) as archive:
        return {name: _array(archive, f"{name}.npy") for name in names}


def _array(archive: CheckedZip, member: str) -> np.ndarray:
    file, size = archive.member(member)
    with file:
        magic = bytes(file.read(8, "magic number"))
        major = magic[6]
        if magic[:6] != npy.MAGIC_PREFIX or major not in LENGTH:
            raise bad(file.where, "is not an array of numpy's format 1 or 2")
        kind, parse = LENGTH[major]
        length = file.read(struct.calcsize(kind), "header length")
        (header_size,) = struct.unpack(kind, length)
        if header_size > LONGEST_HEADER:
            raise bad(file.where, f"has a header of {header_size} bytes")
        header = file.read(header_size, "header")
        shape, fortran, dtype = _parse(bytes(length + header), parse, file.where)
        if dtype.hasobject or dtype.kind not in "uif" or fortran:
            raise bad(file.where, f"holds {dtype}, not plain numbers row by row")
        promised = math.prod(shape) * dtype.itemsize
        left = size - len(magic) - len(length) - header_size
        if promised != left:
            raise bad(file.where, f"has {left} bytes for an array {shape} of {dtype}, which takes {promised}")
        values = file.read(promised, "values")
        file.end()
    return np.frombuffer(values, dtype=dtype).reshape(shape)


def _parse(data: bytes, parse: Any, where: Path | str) -> tuple[tuple[int, ...], bool, np.dtype]:
    import io

    try:
        shape, fortran, dtype = parse(io.BytesIO(data), max_header_size=LONGEST_HEADER)
    except Exception as error:  # numpy evaluates the header as a literal: any kind of error can come out
        raise bad(where, f"has a header that cannot be read ({type(error).__name__})") from None
    if any(n < 0 for n in shape):
        raise bad(where, f"has a negative size in its shape {shape}")
    return shape, fortran, dtype
