"""Reading GGUF: metadata and tensors of one file, F32, F16, Q8_0, Q4_0 and Q4_1, no length believed unchecked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian). A block of the
quantised types holds 32 numbers of a row: a half-precision scale d (Q4_1: and a minimum m), then the integers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 32
SCALARS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "|b1"])) | {10: "<u8", 11: "<i8", 12: "<f8"}
STRING, LIST = 8, 9


def _q8_0(raw: Array) -> Array:
    """[blocks, 34] bytes -> [blocks, 32]: d * q."""
    return _half(raw, 0) * raw[:, 2:].view(np.int8)


def _q4_0(raw: Array) -> Array:
    """[blocks, 18] bytes -> [blocks, 32]: d * (q - 8)."""
    return _half(raw, 0) * (_nibbles(raw[:, 2:]) - np.float32(8))


def _q4_1(raw: Array) -> Array:
    """[blocks, 20] bytes -> [blocks, 32]: d * q + m."""
    return _half(raw, 0) * _nibbles(raw[:, 4:]) + _half(raw, 2)


def _half(raw: Array, at: int) -> Array:
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """[blocks, 16] bytes -> [blocks, 32] numbers: low halves first, then high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Coding:
    """A number format: its name, numbers and bytes a block, and how blocks [n, bytes] become numbers [n, numbers]."""

    name: str
    numbers: int
    size: int
    decode: Callable[[Array], Array]


CODINGS = {
    0: Coding("F32", 1, 4, lambda raw: raw.view("<f4")),
    1: Coding("F16", 1, 2, lambda raw: raw.view("<f2")),
    2: Coding("Q4_0", BLOCK, 18, _q4_0),
    3: Coding("Q4_1", BLOCK, 20, _q4_1),
    8: Coding("Q8_0", BLOCK, 34, _q8_0),
}


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies. ``shape`` is outermost first (the file writes it innermost first)."""

    path: Path
    name: str
    coding: Coding
    shape: tuple[int, ...]
    offset: int

    @property
    def stored_bytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) // self.coding.numbers * self.coding.size

    def read(self) -> Array:
        """The numbers, [shape], as float32 (F16 as float16)."""
        raw = np.fromfile(self.path, np.uint8, self.stored_bytes, offset=self.offset)
        if len(raw) != self.stored_bytes:
            raise ValueError(f"{self.path}: tensor {self.name}: {len(raw)} of {self.stored_bytes} bytes: truncated")
        return self.coding.decode(raw.reshape(-1, self.coding.size)).reshape(self.shape)


@dataclass(frozen=True)
class Gguf:
    """One file: metadata by key and tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> Gguf:
    """Read the header of a GGUF file and check every tensor's place; the numbers are not read.

    Raises ValueError naming the file and the key or tensor when the file is cut off, of another kind or too new.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        reader = _Reader(path, file, path.stat().st_size)
        if reader.take(4, "magic") != b"GGUF":
            raise ValueError(f"{path}: magic: not a GGUF file")
        version, tensors, keys = reader.unpack("<IQQ", "header")
        if version not in (2, 3):
            raise ValueError(f"{path}: version: {version} is not supported, allowed: 2, 3")
        metadata = {}
        for _ in range(reader.count(keys, 13, "metadata")):
            key = reader.string("metadata key")
            metadata[key] = reader.value(reader.unpack("<I", key)[0], key)
        entries = [_entry(reader) for _ in range(reader.count(tensors, 24, "tensors"))]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"{path}: general.alignment: {alignment!r} is not allowed, a power of two is expected")
        data = -(-file.tell() // alignment) * alignment
    return Gguf(path, metadata, {entry[0]: _place(path, *entry, data, reader.size) for entry in entries})


@dataclass
class _Reader:
    """The header as a stream that never goes past the end of the file."""

    path: Path
    file: BinaryIO
    size: int

    def take(self, length: int, what: str) -> bytes:
        if length > self.size - self.file.tell():
            raise ValueError(f"{self.path}: {what}: {length} bytes announced, beyond the file's {self.size}: truncated")
        return self.file.read(length)

    def unpack(self, form: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form), what))

    def count(self, announced: int, smallest: int, what: str) -> int:
        """A count of things of at least ``smallest`` bytes each, checked against what is left."""
        if announced * smallest > self.size - self.file.tell():
            raise ValueError(f"{self.path}: {what}: {announced} announced, more than the file can hold: truncated")
        return announced

    def string(self, what: str) -> str:
        raw = self.take(self.unpack("<Q", what)[0], what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what}: not UTF-8 text") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.string(key)
        if kind == LIST:
            return self._list(key)
        return self._numbers(kind, 1, key)[0].item()

    def _list(self, key: str) -> Any:
        kind, length = self.unpack("<IQ", key)
        if kind == STRING:
            return [self.string(key) for _ in range(self.count(length, 8, key))]
        return self._numbers(kind, length, key)

    def _numbers(self, kind: int, length: int, key: str) -> Array:
        if kind not in SCALARS:
            raise ValueError(f"{self.path}: {key}: value type {kind} is not allowed here")
        return np.frombuffer(self.take(length * np.dtype(SCALARS[kind]).itemsize, key), SCALARS[kind])


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string("tensor name")
    (dims,) = reader.unpack("<I", f"tensor {name}")
    if dims > 4:
        raise ValueError(f"{reader.path}: tensor {name}: {dims} dimensions are not allowed, at most 4 are")
    shape = reader.unpack(f"<{dims}Q", f"tensor {name}")
    kind, offset = reader.unpack("<IQ", f"tensor {name}")
    return name, shape[::-1], kind, offset


def _place(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, data: int, size: int) -> GgufTensor:
    if kind not in CODINGS:
        known = ", ".join(c.name for c in CODINGS.values())
        raise ValueError(f"{path}: tensor {name}: number type {kind} is not supported, allowed: {known}")
    coding = CODINGS[kind]
    if not shape or shape[-1] % coding.numbers:
        raise ValueError(f"{path}: tensor {name}: rows of {shape} do not divide into blocks of {coding.numbers}")
    tensor = GgufTensor(path, name, coding, shape, data + offset)
    if tensor.offset + tensor.stored_bytes > size:
        end = tensor.offset + tensor.stored_bytes
        raise ValueError(f"{path}: tensor {name}: ends at byte {end}, the file has {size}: truncated")
    return tensor
