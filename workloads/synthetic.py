"""Synthetic traffic: an arrival process times length distributions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import cast

import numpy as np

from workloads.arrivals import Arrivals, arrivals
from workloads.columns import CHUNK_ROWS, Columns, Ints, rechunk
from workloads.content import told, turns
from workloads.draws import BLOCK_ROWS, draws
from workloads.errors import shown
from workloads.keys import ARRIVAL_ALIASES, SYNTHETIC, Number, check
from workloads.lengths import joint_blocks, length_blocks

LEVEL = Number(whole=True)
WEIGHT = Number(above=0)


def synthetic(
    spec: Mapping[str, object], seed: int, *, rows: int = CHUNK_ROWS, stream: int = 0, where: str = "workload"
) -> Iterator[Columns]:
    """`{rate, arrivals, prompt, output | lengths, requests | duration_s, samples, priority}` -> chunks of requests.

    The first N requests do not depend on how many follow (save with `rescale`), nor on `rows`. `stream` tells the parts
    of a mix apart. Raises ValueError at the call, not at the first chunk, for a spec that makes no sense.
    """
    said = check(spec, SYNTHETIC, where)
    process = arrival_process(said, where)
    if "requests" not in said and "duration_s" not in said:
        raise ValueError(f"{where}: requests: missing: give requests or duration_s")
    if math.isinf(process.rate) and "requests" not in said:
        raise ValueError(f"{where}: requests: missing: at an infinite rate no duration ends the stream")
    body = body_blocks(said, seed, stream, where)
    return rechunk(timed(body, process, said, seed, stream, turns(said, where)), rows)


def arrival_process(said: Mapping[str, object], where: str = "workload") -> Arrivals:
    """The arrival process of `rate` and `arrivals` (Poisson unless said). Raises ValueError without a rate."""
    kind = said.get("arrivals", "poisson")
    name = kind.get("kind") if isinstance(kind, Mapping) else kind
    if "rate" not in said and ARRIVAL_ALIASES.get(str(name), name) != "inf":
        raise ValueError(f"{where}: rate: missing: {SYNTHETIC['rate'].allowed} requests/s")
    return arrivals(kind, float(cast(float, said.get("rate", math.inf))), f"{where}: arrivals")


def timed(
    body: Iterator[Columns], process: Arrivals, said: Mapping[str, object], seed: int, stream: int = 0, each: int = 1
) -> Iterator[Columns]:
    """`body`'s requests in order, at the times of `process`, up to `requests` and `duration_s`.

    ``each`` of them share a time: the turns of a conversation, of which only the first arrives then.
    """
    requests, duration_s = cast("int | None", said.get("requests")), cast("float | None", said.get("duration_s"))
    end_ns = math.inf if duration_s is None else duration_s * 1e9
    left = math.inf if requests is None else requests
    times = process.blocks(seed, stream, requests if requests is None else -(-requests // each))
    times = times if each == 1 else (part for at in times for part in np.split(np.repeat(at, each), each))
    for chunk, at in zip(rechunk(body, BLOCK_ROWS), times, strict=False):
        early = int(np.searchsorted(at[: len(chunk)], end_ns, side="left"))
        take = int(min(early, left))
        if take:
            yield chunk.part(0, take).at(at[:take])
        left -= take
        if take < len(chunk) or not left:
            return


def body_blocks(said: Mapping[str, object], seed: int, stream: int, where: str = "workload") -> Iterator[Columns]:
    """Endless requests without times (all at 0): lengths, samples and priority as `said`. Raises ValueError at once."""
    if ("lengths" in said) == bool({"prompt", "output"} & set(said)):
        raise ValueError(f"{where}: prompt: give prompt and output, or lengths")
    missing = [side for side in ("prompt", "output") if "lengths" not in said and side not in said]
    if missing:
        raise ValueError(f"{where}: {missing[0]}: missing: tokens, or {{kind: ..., ...}}")
    if "lengths" in said:
        pairs = joint_blocks(cast(str, said["lengths"]), seed, stream)
    else:
        pairs = zip(*(length_blocks(said[side], side, seed, stream) for side in ("prompt", "output")), strict=True)
    first = next(pairs)  # so that a bad length is an error now
    levels = priority_blocks(said.get("priority"), seed, stream, where)
    bodies = _bodies(first, pairs, said, levels, tenant_blocks(said.get("tenant"), seed, stream, where))
    return told(bodies, said, seed, stream, where)


def _bodies(
    first: tuple[Ints, ...],
    rest: Iterator[tuple[Ints, ...]],
    said: Mapping[str, object],
    levels: Iterator[Ints | None],
    tenants: Iterator[Ints | None],
) -> Iterator[Columns]:
    samples = cast("int | None", said.get("samples"))
    nothing = np.zeros(BLOCK_ROWS, np.int64)
    prompt, output = first
    while True:
        yield Columns(
            arrival_ns=nothing,
            prompt_tokens=prompt,
            output_tokens=output,
            priority=next(levels),
            samples=None if samples is None else np.full(BLOCK_ROWS, samples, np.int64),
            tenant=next(tenants),
        )
        prompt, output = next(rest)


def tenant_blocks(spec: object, seed: int, stream: int, where: str) -> Iterator[Ints | None]:
    """The same of tenants, whose numbers are at least 0."""
    numbers = list(spec) if isinstance(spec, Mapping) else [spec]
    if spec is not None and any(LEVEL.accepts(one) and int(cast(int, one)) < 0 for one in numbers):
        raise ValueError(f"{where}: tenant: {shown(spec)}: numbers of tenants must be at least 0")
    return priority_blocks(spec, seed, stream, where, "tenant")


def priority_blocks(spec: object, seed: int, stream: int, where: str, key: str = "priority") -> Iterator[Ints | None]:
    """Endless blocks [8192] of a constant level or of `{level: weight}` drawn, or None without a priority."""
    if spec is None:
        return repeat(None)
    if LEVEL.accepts(spec):
        return repeat(np.full(BLOCK_ROWS, int(cast(int, spec)), np.int64))
    if not isinstance(spec, Mapping) or not spec:
        raise ValueError(f"{where}: {key}: {shown(spec)}: must be {SYNTHETIC['priority'].allowed}")
    for level, weight in spec.items():
        if not LEVEL.accepts(level) or not WEIGHT.accepts(weight):
            raise ValueError(f"{where}: {key}: {shown(level)}: {shown(weight)}: a whole level and a weight > 0")
    return _drawn(spec, draws(seed, key[:4] if key == "priority" else key, stream))


def _drawn(spec: Mapping[int, float], rng: np.random.Generator) -> Iterator[Ints]:
    levels = np.array([int(level) for level in spec], np.int64)
    upto = np.cumsum(np.array([float(weight) for weight in spec.values()]))
    while True:
        yield levels[np.searchsorted(upto / upto[-1], rng.random(BLOCK_ROWS), side="right").clip(0, len(levels) - 1)]
