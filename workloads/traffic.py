"""The workload part of a scenario -> a stream of requests: a trace, synthetic traffic, or a mix of both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from workloads import shape
from workloads.columns import CHUNK_ROWS, Columns, Ints, rechunk
from workloads.content import SYNTHETIC_BLOCK
from workloads.draws import BLOCK_ROWS
from workloads.errors import hint, shown
from workloads.keys import CLOSED, COUNT, MIX, POSITIVE, SYNTHETIC, TRACE, check
from workloads.synthetic import arrival_process, body_blocks, priority_blocks, synthetic, tenant_blocks, timed
from workloads.trace import Trace, open_trace

Spec = Mapping[str, object]
Dropped = Counter[str] | None
TRACE_BLOCK = 512
FILE_TIME = ("start_s", "end_s", "rate_scale", "spread_quantum_s")


def workload(
    spec: Spec, seed: int, *, rows: int = CHUNK_ROWS, where: str = "workload", dropped: Dropped = None
) -> Iterator[Columns]:
    """The requests that a scenario's `workload` mapping describes, in order of arrival, in chunks of `rows`.

    `{trace: ...}`, `{mix: [...]}` or synthetic (`{rate, prompt, output, requests, ...}`); `workloads.keys` says what
    each allows. `dropped`, where given, adds up by reason the rows that the traces leave out (see `Trace.dropped`):
    in every part of a mix and every pass of a loop, and in whole blocks of a file, so that rows just before `start_s`
    or just behind the last request may be among them. Raises ValueError at the call for a spec that makes no sense;
    TraceError while reading a damaged trace.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"{where}: {shown(spec)}: a mapping with trace, mix, or rate, prompt and output")
    for key in CLOSED:
        if key in spec:
            raise ValueError(f"{where}: {key}: a closed loop has no arrival stream: its requests come from lengths()")
    return rechunk(_stream(spec, seed, 0, where, dropped), rows)


def lengths(
    spec: Spec, seed: int, *, rows: int = CHUNK_ROWS, where: str = "workload", dropped: Dropped = None
) -> Iterator[Columns]:
    """The requests of a closed loop (`concurrency`, `think_time_s`) in order, without times (`arrival_ns` all 0).

    Without `requests` a synthetic stream never ends. `dropped` and errors as in `workload`.
    """
    said = {key: value for key, value in spec.items() if key not in CLOSED}
    check({key: spec[key] for key in spec if key in CLOSED}, CLOSED, where)
    for key in ("rate", "arrivals", "duration_s", *FILE_TIME, "mix", "sessions"):
        if key in said:
            raise ValueError(f"{where}: {key}: not in a closed loop, whose requests follow completions, not a clock")
    if "trace" in said:
        said = check(said, TRACE, where, required=["trace"])
        body = _trace_body(_open(said), said, seed, 0, where, dropped)
    else:
        said = check(said, SYNTHETIC, where)
        body = body_blocks(said, seed, 0, where)
    return rechunk(shape.slice_rows(body, 0, cast("int | None", said.get("requests"))), rows)


def block_tokens(spec: Spec) -> int | None:
    """Tokens of one block of the content ids that a workload may give (`hash_ids`); None for one that gives none.

    Of a mix, those of the first part that gives any: parts must agree. Raises ValueError for a size that is no count.
    """
    parts = spec.get("mix")
    if isinstance(parts, list):
        return next((size for part in parts if (size := block_tokens(part)) is not None), None)
    told = "trace" in spec or bool({"shared_prefix", "sessions"} & set(spec))
    said = spec.get("hash_block_tokens", TRACE_BLOCK if "trace" in spec else SYNTHETIC_BLOCK)
    if not COUNT.accepts(said):
        raise ValueError(f"workload: hash_block_tokens: {shown(said)}: must be {COUNT.allowed}")
    return int(cast(int, said)) if told else None


def _stream(spec: Spec, seed: int, stream: int, where: str, dropped: Dropped) -> Iterator[Columns]:
    if "mix" in spec:
        return _mixed(spec, seed, where, dropped)
    if "trace" in spec:
        return _traced(check(spec, TRACE, where), seed, stream, where, dropped)
    if not {"rate", "prompt", "output", "lengths", "arrivals"} & set(spec):
        known = {**SYNTHETIC, **TRACE, **MIX}
        unknown = next((key for key in spec if key not in known), None)
        problem = "rate: missing: a workload needs trace, mix, or rate with prompt and output"
        if unknown is not None:
            problem = f"{shown(unknown)}: unknown key: {hint(str(unknown), known)}"
        raise ValueError(f"{where}: {problem}")
    return synthetic(spec, seed, stream=stream, where=where)


# traces ------------------------------------------------------------------------------------------


def _open(said: Spec) -> Trace:
    form, block = cast("str | None", said.get("format")), cast(int, said.get("hash_block_tokens", TRACE_BLOCK))
    return open_trace(cast(str, said["trace"]), format=form, hash_block_tokens=block)


def _traced(said: Spec, seed: int, stream: int, where: str, dropped: Dropped) -> Iterator[Columns]:
    trace = _open(said)
    if "rate" in said or "arrivals" in said:
        clash = next((key for key in FILE_TIME if key in said), None)
        if clash is not None:
            raise ValueError(f"{where}: {clash}: not with rate or arrivals, which replace the times of the file")
        body = _trace_body(trace, said, seed, stream, where, dropped)
        return timed(body, arrival_process(said, where), said, seed, stream)
    if not trace.has_arrivals():
        raise ValueError(f"{where}: rate: missing: {trace.name} gives lengths only; needs a number > 0 or inf")
    start_s, end_s = cast(float, said.get("start_s", 0.0)), cast(float, said.get("end_s", math.inf))
    if start_s >= end_s:
        raise ValueError(f"{where}: end_s: {end_s}: must be > start_s, {start_s}")
    requests = cast("int | None", said.get("requests"))
    original = _file_times(trace, said, seed, start_s, end_s, dropped)
    scaled = shape.scale_rate(original, cast(float, said.get("rate_scale", 1.0)))
    timely = shape.slice_time(scaled, 0.0, cast(float, said.get("duration_s", math.inf)))
    return _dressed(shape.slice_rows(timely, 0, requests), said, seed, stream, where)


def _file_times(
    trace: Trace, said: Spec, seed: int, start_s: float, end_s: float, dropped: Dropped
) -> Iterator[Columns]:
    """The window of the file, spread within its quantum if asked to, as many times over as asked."""
    quantum_s = cast("float | None", said.get("spread_quantum_s"))

    def once() -> Iterator[Columns]:
        whole = _tallied(trace, trace.chunks(), dropped)
        fine = whole if quantum_s is None else shape.spread_quantum(whole, max(1, round(quantum_s * 1e9)), seed)
        return shape.slice_time(fine, start_s, end_s)

    return shape.loop(once, cast(int, said.get("loop", 1)))


def _trace_body(
    trace: Trace, said: Spec, seed: int, stream: int, where: str, dropped: Dropped
) -> Iterator[Columns]:
    """A trace's requests in file order with all times 0, `loop` times over."""
    times = range(cast(int, said.get("loop", 1)))
    passes = (chunk for _ in times for chunk in _tallied(trace, trace.lengths(), dropped))
    untimed = (chunk.at(np.zeros(len(chunk), np.int64)) for chunk in passes)
    return _dressed(untimed, said, seed, stream, where)


def _tallied(trace: Trace, chunks: Iterator[Columns], dropped: Dropped) -> Iterator[Columns]:
    """One pass over a trace; what it leaves out is added to `dropped` as it is read."""
    if dropped is None:
        yield from chunks
        return
    seen: Counter[str] = Counter()
    try:
        for chunk in chunks:
            dropped.update(trace.dropped - seen)
            seen = trace.dropped.copy()
            yield chunk
    finally:
        dropped.update(trace.dropped - seen)


def _dressed(stream: Iterator[Columns], said: Spec, seed: int, number: int, where: str) -> Iterator[Columns]:
    """Lengths capped, samples and priority replaced, where the spec says so."""
    limits = cast("tuple[int | None, int | None]", (said.get("max_prompt"), said.get("max_output")))
    capped = shape.cap(stream, None, *limits) if limits != (None, None) else stream
    if not {"samples", "priority", "tenant"} & set(said):
        return capped
    levels = priority_blocks(said.get("priority"), seed, number, where)
    return _labelled(capped, said, levels, tenant_blocks(said.get("tenant"), seed, number, where))


def _labelled(
    stream: Iterator[Columns], said: Spec, levels: Iterator[Ints | None], tenants: Iterator[Ints | None]
) -> Iterator[Columns]:
    samples = cast("int | None", said.get("samples"))
    for chunk, level, tenant in zip(rechunk(stream, BLOCK_ROWS), levels, tenants, strict=False):
        n = len(chunk)
        chunk = chunk if tenant is None else replace(chunk, tenant=tenant[:n])
        chunk = chunk if samples is None else replace(chunk, samples=np.full(n, samples, np.int64))
        yield chunk if level is None else replace(chunk, priority=level[:n])


# mixes -------------------------------------------------------------------------------------------


def _mixed(spec: Spec, seed: int, where: str, dropped: Dropped) -> Iterator[Columns]:
    """With a rate of its own: one arrival process, requests picked by weight. Without: the parts' own, merged."""
    said = check(spec, MIX, where)
    parts, weights = _parts(said["mix"], where)
    if "rate" in said or "arrivals" in said:
        if "requests" not in said and "duration_s" not in said:
            raise ValueError(f"{where}: requests: missing: give requests or duration_s")
        bodies = [_endless(part, seed, i, f"{where}: mix[{i}]", dropped) for i, part in enumerate(parts)]
        picked = shape.pick(bodies, weights, seed, BLOCK_ROWS)
        return timed(picked, arrival_process(said, where), said, seed)
    streams = [_stream(part, seed, i, f"{where}: mix[{i}]", dropped) for i, part in enumerate(parts)]
    merged = shape.mix(streams, weights, seed)
    timely = shape.slice_time(merged, 0.0, cast(float, said.get("duration_s", math.inf)))
    return shape.slice_rows(timely, 0, cast("int | None", said.get("requests")))


def _parts(said: object, where: str) -> tuple[list[Spec], list[float]]:
    if not isinstance(said, list) or not 1 <= len(said) <= 255:
        raise ValueError(f"{where}: mix: {shown(said)}: a list of 1 to 255 workloads, each with a weight")
    parts: list[Spec] = []
    weights: list[float] = []
    for i, part in enumerate(said):
        if not isinstance(part, Mapping) or "mix" in part:
            raise ValueError(f"{where}: mix[{i}]: {shown(part)}: a workload mapping, and no mix within a mix")
        if "sessions" in part:
            raise ValueError(f"{where}: mix[{i}]: sessions: not in a mix, whose requests follow a clock, not an answer")
        weight = part.get("weight", 1.0)
        if not POSITIVE.accepts(weight):
            raise ValueError(f"{where}: mix[{i}]: weight: {shown(weight)}: must be {POSITIVE.allowed}")
        parts.append({key: value for key, value in part.items() if key != "weight"})
        weights.append(float(weight))
    return parts, weights


def _endless(part: Spec, seed: int, number: int, where: str, dropped: Dropped) -> Iterator[Columns]:
    """A part's requests without times and without end; a trace starts again when it is through."""
    for key in ("rate", "arrivals", "requests", "duration_s", "loop", *FILE_TIME):
        if key in part:
            raise ValueError(f"{where}: {key}: belongs to the mix as a whole, which has a rate of its own")
    if "trace" not in part:
        return body_blocks(check(part, SYNTHETIC, where), seed, number, where)
    said = check(part, TRACE, where)
    return _trace_body(_open(said), {**said, "loop": 2**62}, seed, number, where, dropped)
