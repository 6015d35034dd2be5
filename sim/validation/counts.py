"""Counts: FLOPs and bytes of every op, as the simulator writes them and as the witness's meter read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import Ffn, ModelShape
from sim.analytic.ops import ops
from sim.analytic.precision import Precision
from sim.analytic.rewrite import apply, bound
from sim.analytic.work import Work, pairs_of, reads_of
from sim.build import load_device
from sim.policies import Chunk, Chunks, Future, Policy, Windows
from sim.reference.decoding import Generation
from sim.reference.meter import Meter
from sim.reference.transformer import Transformer

KINDS = ("flops", "bytes_weights", "bytes_kv", "bytes_activations")
WITNESS_ONLY = {"attn.qk_norm", "embed.positions", "attn.bias", "encoder.attn.bias"}  # docs/conventions.md, small print
FP32 = Precision("fp32", "fp32", "fp32")

Tally = dict[str, Counter[str]]
"""FLOPs and bytes by kind (KINDS) and op name."""


@dataclass(frozen=True)
class Mismatch:
    """One op whose counts differ."""

    kind: str
    op: str
    simulated: float
    measured: float

    def __str__(self) -> str:
        return f"{self.kind} of {self.op}: simulated {self.simulated:,.17g}, measured {self.measured:,.17g}"


@dataclass
class Watched(Transformer):
    """A model that remembers how many experts each pass visited: routing follows the numbers, no formula knows it."""

    visits: Counter[int] = field(default_factory=Counter)

    def expert(self, key: str, ffn: Ffn, expert: int, x: Any) -> Any:
        """Note the visit by layer, then run the expert."""
        self.visits[int(key.split(".")[1])] += 1
        return super().expert(key, ffn, expert, x)


def simulated(
    shape: ModelShape,
    works: Iterable[Work],
    prefix: str = "",
    visits: Mapping[int, int] | None = None,
    variants: Sequence[Any] = (),
) -> Tally:
    """What the simulator counts for passes in float32 with scores written out, as the witness computes.

    ``visits``: experts visited by layer, summed over the passes; the expected number where not given. ``variants`` of
    the model; a device, where one of them asks for it, decides no count that is compared. Passes over nothing are none.
    """
    shape, precision = apply(variants, "reshape", shape), apply(variants, "reformat", FP32)
    there = bound(variants, shape, precision, any_device()) if variants else ()
    tally: Tally = {kind: Counter() for kind in KINDS}
    for work in works:
        done = ops(shape, precision, work, attention="standard") if _runs(work) else []
        for op in apply(there, "rewrite", done, work) if done else ():
            given = visits is not None and op.name in ("moe.up", "moe.down")
            weights = 0 if given else op.weight_bytes
            values = (op.flops, weights, op.kv_read_bytes + op.kv_write_bytes, op.activation_bytes)
            for kind, value in zip(KINDS, values, strict=True):
                tally[kind][prefix + op.name] += op.layers * value
    for layer, count in (visits or {}).items():
        numbers = shape.layers[layer].ffn.expert_parameters(shape.d_model)
        for part in ("up", "down"):
            tally["bytes_weights"][f"{prefix}moe.{part}"] += 4 * count * numbers[f"mlp.{part}"]
    return tally


@cache
def any_device() -> Device:
    """A device for variants that want to know one."""
    return load_device("a100-sxm-80gb")


def _runs(work: Work) -> bool:
    return bool(np.any(work.tokens) or np.any(work.logit_rows) or np.any(work.encoder_tokens))


def measured(meter: Meter) -> Tally:
    """What the meter read, by kind."""
    return {kind: Counter(getattr(meter, kind)) for kind in KINDS}


def added(*tallies: Tally) -> Tally:
    """The sum of several tallies."""
    return {kind: sum((t[kind] for t in tallies), Counter[str]()) for kind in KINDS}


def mismatches(ours: Tally, theirs: Tally) -> list[Mismatch]:
    """Every op and kind of count that is not exactly equal; ops that only the witness counts are left out."""
    found = []
    for kind in KINDS:
        for op in sorted(ours[kind].keys() | theirs[kind].keys()):
            a, b = float(ours[kind][op]), float(theirs[kind][op])
            if a != b and op.removeprefix("draft.") not in WITNESS_ONLY:
                found.append(Mismatch(kind, op, a, b))
    return found


def ragged(news: Sequence[int], cached: Sequence[int], windows: Windows, logit_rows: int) -> Work:
    """A pass of ``news[i]`` tokens after ``cached[i]`` ones; as a decode half (both halves count alike by name)."""
    along = [(n, s) for n, s in zip(news, cached, strict=True) if n]
    pairs = tuple(sum(int(pairs_of(n, s, w)) for n, s in along) for w in windows)
    reads = tuple(sum(int(reads_of(s, w)) for _, s in along) for w in windows)
    return Work(sum(news), logit_rows, pairs, reads)


def decoded(
    policy: Policy,
    generations: Sequence[Generation],
    windows: tuple[Windows, ...],
    futures: Sequence[Future] | None = None,
) -> Iterator[tuple[int, Work]]:
    """(model, work) of every pass that the policy says was run to decode these texts in one batch, prefill first.

    The futures are those that really happened (``futures``, or what the texts' rounds say); all else is the policy's.
    """
    prompts = [len(g.prompt) for g in generations]
    for one in policy.passes(0, None, Chunks([Chunk(0, n, True) for n in prompts]), windows):
        yield one.model, one.work
    courses = [happened(g) for g in generations] if futures is None else futures
    rows = [
        np.array(policy.rows(f, n, windows)) if len(f.gains) else np.zeros((policy.channels(windows), 0), int)
        for f, n in zip(courses, prompts, strict=True)
    ]
    for at in range(max(r.shape[1] for r in rows)):
        active = [r[:, at] for r in rows if at < r.shape[1]]
        totals = np.sum(active, axis=0)[:, None]
        for one in policy.passes(len(active), totals, None, windows):
            yield from ((one.model, work) for work in each(one.work))


def happened(generation: Generation) -> Future:
    """The decode rounds of a text as a policy's future; the last round as it ran, not as it was clipped."""
    rounds = generation.rounds[1:]
    kept = np.array([r.accepted for r in rounds], dtype=np.int64)
    drafted = np.array([len(r.drafted) for r in rounds], dtype=np.int64)
    gains = kept + 1
    return Future(gains, np.cumsum(gains) - gains, kept, drafted)


def each(work: Work) -> Iterator[Work]:
    """The single passes of a work whose fields may have a leading axis, in whole numbers."""
    fields = [value if isinstance(value, tuple) else (value,) for value in work if value is not None]
    passes = max((np.shape(v)[0] for values in fields for v in values if np.ndim(v) == 2), default=1)
    for step in range(passes):
        yield Work(*(_at(value, step, passes) for value in work))


def _at(value: Any, step: int, passes: int) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_at(v, step, passes) for v in value)
    return int(np.broadcast_to(value, (passes, 1))[step, 0])
