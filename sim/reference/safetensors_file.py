"""Reading safetensors, one file or a sharded index, with every header field checked before it is believed.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the numbers
(https://github.com/huggingface/safetensors, "Format"). Tensors are memory-mapped: nothing is allocated from a header.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
HEADER_LIMIT_BYTES = 100_000_000  # the limit of the safetensors library
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: file, number format as written, shape, first byte."""

    path: Path
    name: str
    format: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> Array:
        """The numbers, [shape]; BF16 comes as float32, the rest in its own type, memory-mapped."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, DTYPES[self.format])
        try:
            raw = np.memmap(self.path, DTYPES[self.format], "r", self.offset, self.shape)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: tensor {self.name} cannot be read ({error})") from None
        if self.format != "BF16":
            return raw
        return (raw.astype(np.uint32) << 16).view(np.float32)


def read_index(folder: Path) -> Mapping[str, Tensor]:
    """All tensors of a Hugging Face folder: ``model.safetensors``, or the shards of its index file.

    Raises ValueError naming the file and the tensor when something is missing, misplaced or cut off.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return read_header(folder / "model.safetensors")
    placed = _json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
        raise ValueError(f"{index}: weight_map: missing or not a mapping of tensor to file")
    shards = {}
    for shard in sorted(set(placed.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index}: weight_map: {shard!r} is not allowed, shards lie beside the index")
        shards[shard] = read_header(folder / shard)
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise ValueError(f"{index}: weight_map: tensor {name} is not in {shard}")
    return {name: shards[shard][name] for name, shard in placed.items()}


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, checked against the file's size; the numbers are not read."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, HEADER_LIMIT_BYTES):
            raise ValueError(
                f"{path}: header: {length} bytes announced, the file has {size}: cut off or no safetensors"
            )
        header = _json_object(file.read(length), path)
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _json_object(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: header: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: header: {type(value).__name__} is not allowed, an object is expected")
    return value


def _tensor(path: Path, name: str, entry: Any, data: int, size: int) -> Tensor:
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        kind = entry.get("dtype") if isinstance(entry, dict) else entry
        raise ValueError(f"{where}: dtype: {kind!r} is not supported, allowed: {', '.join(DTYPES)}")
    shape, span = entry.get("shape"), entry.get("data_offsets")
    if not _naturals(shape):
        raise ValueError(f"{where}: shape: {shape!r} is not allowed, a list of whole numbers >= 0 is expected")
    if not _naturals(span) or len(span) != 2:
        raise ValueError(f"{where}: data_offsets: {span!r} is not allowed, [begin, end] is expected")
    need = math.prod(shape) * np.dtype(DTYPES[entry["dtype"]]).itemsize
    if span[1] - span[0] != need:
        raise ValueError(f"{where}: data_offsets: {span[1] - span[0]} bytes do not hold shape {shape} ({need} bytes)")
    if data + span[1] > size:
        raise ValueError(f"{where}: ends at byte {data + span[1]}, the file has {size}: truncated")
    return Tensor(path, name, entry["dtype"], tuple(shape), data + span[0])


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
