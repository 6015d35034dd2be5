"""What the simulator counts for passes of a model with variants, in the witness's float32 with scores written out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from analytic_models import device

from sim.analytic.model import ModelShape
from sim.analytic.ops import ops
from sim.analytic.rewrite import apply, bound
from sim.analytic.work import Work
from sim.validation.counts import FP32, KINDS, Tally

A100 = device("a100-sxm-80gb")


def counted(shape: ModelShape, works: Iterable[Work], *variants: Any, visits: Mapping[int, int] | None = None) -> Tally:
    """FLOPs and bytes by kind and op; ``visits``: experts by layer, in place of the expected number of them."""
    shape, precision = apply(variants, "reshape", shape), apply(variants, "reformat", FP32)
    there = bound(variants, shape, precision, A100)
    tally: Tally = {kind: Counter() for kind in KINDS}
    for work in works:
        done = ops(shape, precision, work, attention="standard")
        for op in apply(there, "rewrite", done, work):
            given = visits is not None and op.name in ("moe.up", "moe.down")
            weights = 0 if given else op.weight_bytes
            values = (op.flops, weights, op.kv_read_bytes + op.kv_write_bytes, op.activation_bytes)
            for kind, value in zip(KINDS, values, strict=True):
                tally[kind][op.name] += op.layers * value
    for layer, count in (visits or {}).items():
        numbers = shape.layers[layer].ffn.expert_parameters(shape.d_model)
        for part in ("up", "down"):
            tally["bytes_weights"][f"moe.{part}"] += 4 * count * numbers[f"mlp.{part}"]
    return tally
