"""Counts of a variant: the simulator's ops against what the meter of a model that really does it has read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sim.analytic.model import ModelShape
from sim.analytic.ops import ops
from sim.analytic.rewrite import apply
from sim.analytic.work import Work
from sim.reference.transformer import Transformer
from sim.validation.counts import FP32, KINDS, Tally, measured, mismatches, ragged


def counted(shape: ModelShape, works: Iterable[Work], *variants: Any) -> Tally:
    """What the simulator counts for ``shape`` with the variants, in the witness's float32 with scores written out."""
    shape, precision = apply(variants, "reshape", shape), apply(variants, "reformat", FP32)
    tally: Tally = {kind: Counter() for kind in KINDS}
    for work in works:
        for op in apply(variants, "rewrite", ops(shape, precision, work, attention="standard"), work):
            values = (op.flops, op.weight_bytes, op.kv_read_bytes + op.kv_write_bytes, op.activation_bytes)
            for kind, value in zip(KINDS, values, strict=True):
                tally[kind][op.name] += op.layers * value
    return tally


def run(model: Transformer, passes: Sequence[Sequence[int]], rows: str = "last") -> list[Work]:
    """Run passes of so many tokens a sequence; the work of each, as decode halves."""
    cache, works = model.new_cache(len(passes[0])), []
    model.meter.reset()
    for news in (p for p in passes if sum(p)):
        logits = {"last": sum(n > 0 for n in news), "all": sum(news), "none": 0}[rows]
        works.append(ragged(news, cache.lengths.tolist(), model.shape.windows, logits))
        model.meter.sample(model.forward([np.arange(n) % model.shape.vocab for n in news], cache, rows=rows))
    return works


def differences(shape: ModelShape, works: Iterable[Work], model: Transformer, *variants: Any) -> list[str]:
    """Every op whose counts are not exactly equal, as text."""
    return [str(m) for m in mismatches(counted(shape, works, *variants), measured(model.meter))]
