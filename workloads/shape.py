"""Pure transforms of a stream of requests: each takes chunks and gives chunks, whatever their size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from workloads.columns import Columns, Ints, join
from workloads.draws import draws

Stream = Iterable[Columns]


def slice_rows(stream: Stream, start: int = 0, stop: int | None = None) -> Iterator[Columns]:
    """Requests number start .. stop-1, their times unchanged."""
    seen = 0
    for chunk in stream:
        first, last = max(start - seen, 0), len(chunk) if stop is None else min(stop - seen, len(chunk))
        if first < last:
            yield chunk.part(first, last)
        seen += len(chunk)
        if stop is not None and seen >= stop:
            return


def slice_time(stream: Stream, start_s: float = 0.0, end_s: float = math.inf) -> Iterator[Columns]:
    """Requests that arrive in [start_s, end_s), their times counted from start_s."""
    start_ns = round(start_s * 1e9)
    for chunk in stream:
        first = int(np.searchsorted(chunk.arrival_ns, start_ns, side="left"))
        last = int(np.searchsorted(chunk.arrival_ns, end_s * 1e9, side="left"))
        if first < last:
            part = chunk.part(first, last)
            yield part.at(part.arrival_ns - start_ns)
        if last < len(chunk):
            return


def scale_rate(stream: Stream, factor: float) -> Iterator[Columns]:
    """`factor` times as many requests per second: every time divided by it, to the nearest ns.

    Raises ValueError for a factor that is not positive, or so small that times leave int64 ns.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(f"rate_scale: {factor}: must be a number > 0")
    for chunk in stream:
        scaled = np.rint(chunk.arrival_ns / factor)
        if len(scaled) and scaled[-1] >= 2.0**62:
            raise ValueError(f"rate_scale: {factor}: too small: arrivals must stay within 146 years")
        yield chunk.at(scaled.astype(np.int64))


def loop(again: Callable[[], Stream], times: int) -> Iterator[Columns]:
    """The same requests `times` over, one pass behind the other; `again` starts a pass.

    A pass lasts its span plus one mean gap, so that the mean rate is kept. Conversations and prefix blocks are the same
    ones in every pass: a prefix cache will find them again.
    """
    shift_ns = 0
    for _ in range(times):
        count, first_ns, last_ns = 0, 0, 0
        for chunk in again():
            if not len(chunk):
                continue
            first_ns = first_ns if count else int(chunk.arrival_ns[0])
            count, last_ns = count + len(chunk), int(chunk.arrival_ns[-1])
            yield chunk.at(chunk.arrival_ns + shift_ns)
        if not count:
            return
        gap_ns = (last_ns - first_ns) // (count - 1) if count > 1 else 0
        shift_ns += last_ns + gap_ns


def cap(
    stream: Stream, requests: int | None = None, max_prompt: int | None = None, max_output: int | None = None
) -> Iterator[Columns]:
    """At most `requests` requests, prompts and outputs cut to at most `max_prompt` and `max_output` tokens.

    Prefix blocks beyond a cut prompt go.
    """
    for chunk in slice_rows(stream, 0, requests):
        prompt = chunk.prompt_tokens if max_prompt is None else np.minimum(chunk.prompt_tokens, max_prompt)
        output = chunk.output_tokens if max_output is None else np.minimum(chunk.output_tokens, max_output)
        hashes = chunk.hash_ids
        if hashes is not None and max_prompt is not None and chunk.hash_block_tokens is not None:
            blocks = -(-prompt // chunk.hash_block_tokens)
            hashes = [ids[:n] for ids, n in zip(hashes, blocks, strict=True)]
        yield replace(chunk, prompt_tokens=prompt, output_tokens=output, hash_ids=hashes)


def spread_quantum(stream: Stream, quantum_ns: int, seed: int) -> Iterator[Columns]:
    """Spreads requests stamped together over the quantum their stamp stands for.

    Mooncake's conversation stamps lie on a grid of about 3 s. A stamp is taken as the start of its quantum: the n
    requests that share it move to n uniform times in [stamp, stamp + quantum), in file order, but never past the next
    stamp. The draws belong to the rows, so the result does not depend on chunk sizes. Raises ValueError for a quantum
    below 1 ns.
    """
    if quantum_ns < 1:
        raise ValueError(f"spread_quantum_s: {quantum_ns / 1e9}: must be at least 1e-9")
    rng = draws(seed, "spread")
    held: Columns | None = None  # the requests of the last stamp seen: their next stamp is not known yet
    for chunk in stream:
        whole = chunk if held is None else join([held, chunk])
        last = int(np.searchsorted(whole.arrival_ns, whole.arrival_ns[-1], side="left"))
        if last:
            yield _spread(whole.part(0, last), quantum_ns, int(whole.arrival_ns[last]), rng)
        held = whole.part(last, len(whole))
    if held is not None and len(held):
        yield _spread(held, quantum_ns, int(held.arrival_ns[-1]) + quantum_ns, rng)


def _spread(part: Columns, quantum_ns: int, next_ns: int, rng: np.random.Generator) -> Columns:
    stamps, count = np.unique(part.arrival_ns, return_counts=True)
    room = np.minimum(np.append(stamps[1:], next_ns) - stamps, quantum_ns)
    group = np.repeat(np.arange(len(stamps)), count)
    luck = rng.random(len(part))
    order = np.lexsort((luck, group))  # sorts within each stamp, leaves the stamps in place
    offset = np.floor(luck[order] * room[group]).astype(np.int64)
    return part.at(part.arrival_ns + offset)


def thin(stream: Stream, share: float, seed: int, number: int = 0) -> Iterator[Columns]:
    """Each request kept with probability `share`; `number` tells streams of one seed apart."""
    rng = draws(seed, "thin", number)
    for chunk in stream:
        kept = chunk.take(rng.random(len(chunk)) < share)
        if len(kept):
            yield kept


def mix(streams: Sequence[Stream], weights: Sequence[float], seed: int) -> Iterator[Columns]:
    """Streams merged in order of time; of stream i each request is kept with probability weights[i], in (0, 1].

    Ties go to the earlier stream. Conversation and prefix block ids of different streams are kept apart (id * number of
    streams + stream). Raises ValueError for weights out of range.
    """
    if len(streams) != len(weights) or not 0 < len(streams) < 256:
        raise ValueError(f"mix: {len(streams)} streams, {len(weights)} weights: one weight each, at most 255")
    for weight in weights:
        if not 0 < weight <= 1:
            raise ValueError(f"mix: weight: {weight}: must be a number > 0 and <= 1, the share of that stream kept")
    parts = [
        apart(thin(stream, weight, seed, i) if weight < 1 else iter(stream), i, len(streams))
        for i, (stream, weight) in enumerate(zip(streams, weights, strict=True))
    ]
    return _merge(parts)


def apart(stream: Stream, number: int, of: int) -> Iterator[Columns]:
    """The same requests with ids that no other of `of` streams shares (-1, no conversation, stays)."""
    for chunk in stream:
        if not len(chunk):
            continue
        session = None if chunk.session is None else np.where(chunk.session < 0, -1, chunk.session * of + number)
        hashes = None if chunk.hash_ids is None else [ids * of + number for ids in chunk.hash_ids]
        yield replace(chunk, session=session, hash_ids=hashes)


def _merge(parts: Sequence[Iterator[Columns]]) -> Iterator[Columns]:
    """Merges by (time, stream): what comes at or before the earliest last known request can go.

    That request's stream then has nothing left and fetches its next chunk; a stream that has ended drops out.
    """
    held = {i: chunk for i, part in enumerate(parts) if (chunk := next(part, None)) is not None}
    while held:
        bound_ns, slowest = min((int(chunk.arrival_ns[-1]), i) for i, chunk in held.items())
        ready = {i: _ready(chunk, bound_ns, tied=i <= slowest) for i, chunk in held.items()}
        yield _sorted([held[i].part(0, n) for i, n in sorted(ready.items()) if n])
        held = {i: chunk.part(ready[i], len(chunk)) for i, chunk in held.items()}
        more = next(parts[slowest], None)
        if more is None:
            del held[slowest]
        else:
            held[slowest] = more


def _ready(chunk: Columns, bound_ns: int, tied: bool) -> int:
    return int(np.searchsorted(chunk.arrival_ns, bound_ns, side="right" if tied else "left"))


def _sorted(parts: Sequence[Columns]) -> Columns:
    whole = join(parts)
    return whole.take(np.argsort(whole.arrival_ns, kind="stable"))


def pick(streams: Sequence[Stream], weights: Sequence[float], seed: int, block_rows: int) -> Iterator[Columns]:
    """Requests taken in turn from streams, each next one from stream i with probability weights[i] / sum(weights).

    Times are those of the streams, hence not in order: replace them. Ends when a stream that is due has ended.
    """
    if any(not (weight > 0 and math.isfinite(weight)) for weight in weights):
        raise ValueError(f"mix: weight: {list(weights)}: must be numbers > 0")
    upto = np.cumsum(np.asarray(weights, np.float64))
    upto /= upto[-1]
    rng = draws(seed, "mix")
    tubes = [_Tube(apart(stream, i, len(streams))) for i, stream in enumerate(streams)]
    while True:
        chosen = np.searchsorted(upto, rng.random(block_rows), side="right").clip(0, len(streams) - 1)
        parts: list[Columns] = []
        places: list[Ints] = []
        ends = block_rows
        for i, tube in enumerate(tubes):
            where = np.flatnonzero(chosen == i)
            part = tube.take(len(where))
            got = 0 if part is None else len(part)
            if got < len(where):
                ends = min(ends, int(where[got]))
            if part is not None:
                parts.append(part)
                places.append(where[:got])
        if ends and parts:
            yield _placed(parts, places, ends)
        if ends < block_rows:
            return


def _placed(parts: Sequence[Columns], places: Sequence[Ints], ends: int) -> Columns:
    place = np.concatenate(places)
    whole = join(parts).take(np.argsort(place, kind="stable"))
    return whole.part(0, ends)


class _Tube:
    """A stream from which any number of requests can be taken."""

    def __init__(self, stream: Iterator[Columns]) -> None:
        self.stream, self.held = stream, [Columns(*(np.zeros(0, np.int64),) * 3)]

    def take(self, rows: int) -> Columns | None:
        """The next `rows` requests, fewer at the end; None for none."""
        while sum(map(len, self.held)) < rows and (more := next(self.stream, None)) is not None:
            self.held.append(more)
        whole = join([part for part in self.held if len(part)] or self.held[:1])
        self.held = [whole.part(rows, len(whole))]
        return whole.part(0, rows) if rows and len(whole) else None
