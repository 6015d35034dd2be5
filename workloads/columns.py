"""One chunk of traffic as columns, and the two verbs every stream needs: join and re-cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Columns:
    """One chunk of a trace: n requests in order of arrival, every array of shape [n].

    `arrival_ns` never decreases (ns since the first request, or the file's own zero where its stamps are relative);
    `prompt_tokens` and `output_tokens` are at least 1. `session` is a conversation number (-1: none), `priority` an
    integer (0: none given), `samples` the samples per request. `hash_ids` are the ids of the prompt's prefix blocks of
    `hash_block_tokens` tokens each (Mooncake), the last block possibly partial. `tenant` is a number (-1: none). A
    column a trace lacks is None.
    """

    arrival_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    priority: Ints | None = None
    samples: Ints | None = None
    hash_ids: list[Ints] | None = None
    hash_block_tokens: int | None = None
    tenant: Ints | None = None

    def __len__(self) -> int:
        """Number of requests n."""
        return len(self.prompt_tokens)

    def part(self, start: int, stop: int) -> Columns:
        """Requests start .. stop-1, as views."""
        return self.take(slice(start, stop))

    def take(self, which: slice | NDArray[np.bool_] | Ints) -> Columns:
        """The requests that a slice, a mask [n] or an index array picks."""
        return Columns(
            arrival_ns=self.arrival_ns[which],
            prompt_tokens=self.prompt_tokens[which],
            output_tokens=self.output_tokens[which],
            session=None if self.session is None else self.session[which],
            priority=None if self.priority is None else self.priority[which],
            samples=None if self.samples is None else self.samples[which],
            hash_ids=None if self.hash_ids is None else [self.hash_ids[i] for i in np.arange(len(self))[which]],
            hash_block_tokens=self.hash_block_tokens,
            tenant=None if self.tenant is None else self.tenant[which],
        )

    def at(self, arrival_ns: Ints) -> Columns:
        """The same requests at other times [n]."""
        return replace(self, arrival_ns=arrival_ns)


def join(parts: Sequence[Columns]) -> Columns:
    """Chunks end to end; an optional column that some chunk lacks is filled with "none" (see `Columns`).

    Raises ValueError where prefix blocks differ in size.
    """
    if len(parts) == 1:
        return parts[0]
    return Columns(
        arrival_ns=np.concatenate([p.arrival_ns for p in parts]),
        prompt_tokens=np.concatenate([p.prompt_tokens for p in parts]),
        output_tokens=np.concatenate([p.output_tokens for p in parts]),
        session=_filled([(p.session, len(p)) for p in parts], -1),
        priority=_filled([(p.priority, len(p)) for p in parts], 0),
        samples=_filled([(p.samples, len(p)) for p in parts], 1),
        hash_ids=_hashes(parts),
        hash_block_tokens=_one_block_size(parts),
        tenant=_filled([(p.tenant, len(p)) for p in parts], -1),
    )


def rechunk(stream: Iterable[Columns], rows: int = CHUNK_ROWS) -> Iterator[Columns]:
    """The same requests in chunks of exactly `rows` (the last may be shorter).

    If the stream fails, what it had given is yielded first. Raises ValueError for rows < 1.
    """
    if rows < 1:
        raise ValueError(f"chunks: rows: {rows}: must be at least 1")
    held: list[Columns] = []
    count = 0
    source = iter(stream)
    while True:
        try:
            part = next(source, None)
        except Exception:
            yield from _cut(held, rows)
            raise
        if part is None:
            break
        held.append(part)
        count += len(part)
        if count >= rows:
            *full, rest = _cut(held, rows)
            yield from full
            held, count = [rest], len(rest)
    yield from _cut(held, rows)


def _cut(held: Sequence[Columns], rows: int) -> list[Columns]:
    if not held or not sum(len(p) for p in held):
        return []
    whole = join(held)
    return [whole.part(i, i + rows) for i in range(0, len(whole), rows)]


def _filled(parts: Sequence[tuple[Ints | None, int]], none: int) -> Ints | None:
    if all(values is None for values, _ in parts):
        return None
    return np.concatenate([np.full(n, none, np.int64) if v is None else v for v, n in parts])


def _hashes(parts: Sequence[Columns]) -> list[Ints] | None:
    if all(p.hash_ids is None for p in parts):
        return None
    nothing = np.zeros(0, np.int64)
    return [ids for p in parts for ids in (p.hash_ids if p.hash_ids is not None else [nothing] * len(p))]


def _one_block_size(parts: Sequence[Columns]) -> int | None:
    sizes = {p.hash_block_tokens for p in parts if p.hash_block_tokens is not None}
    if len(sizes) > 1:
        raise ValueError(f"hash_block_tokens: {sorted(sizes)}: traces joined must share one prefix block size")
    return sizes.pop() if sizes else None
