"""HiRE's attention at decode: scores in a few key dimensions for all cached tokens, exact attention for the best k'.

As the lecture deck proposes it (arXiv 2402.09360 leaves it to future work). A query attends to its own key and the k'
best others, so that pairs and reads saturate as those of a window of k' + 1 do; the shape carries that as a further
attention kind, exact for each sequence. Several new tokens of one sequence (verification) read k' rows together here,
which is a lower bound: their choices may differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sim.analytic.model import Attention, ModelShape
from sim.analytic.ops import Op
from sim.analytic.work import Work
from sim.variants.hire_options import Reach, step_of

__all__ = ["two_phase_attention"]

Count = Any
PARTS = ("attn.scores", "attn.softmax", "attn.values")


def two_phase_attention(ops: list[Op], work: Work, shape: ModelShape, block: Attention, reach: Reach) -> list[Op]:
    """The ops of one layer with full attention; its decode half in two phases."""
    kind = shape.windows.index(None)
    places = [i for i, op in enumerate(ops) if op.driver == ("decode", kind) and op.name in PARTS]
    if len(places) != len(PARTS):
        return ops
    mine = [ops[i] for i in places]
    share = reach.width(block.head_dim) / block.head_dim
    both = [*_approximate(mine, share), *_exact(mine, work, shape, reach, kind)]
    return [*ops[: places[0]], *both, *(op for i, op in enumerate(ops) if i > places[0] and i not in places)]


def _approximate(mine: list[Op], share: float) -> list[Op]:
    """Phase 1: part of every key read, a score for every pair; one comparison a score picks the best."""
    scores, softmax, _ = mine
    fewer = {c: getattr(scores, c) * share for c in ("flops", "kv_read_bytes", "activation_bytes")}
    found = replace(softmax, name="attn.select", flops=softmax.flops / 5, activation_bytes=softmax.activation_bytes / 2)
    return [
        replace(scores, name="attn.approx", kernel=scores.kernel.replace("attn.scores", "attn.approx"), **fewer),
        replace(found, kernel=found.kernel.replace("attn.softmax", "attn.select")),
    ]


def _exact(mine: list[Op], work: Work, shape: ModelShape, reach: Reach, kind: int) -> list[Op]:
    """Phase 2: whole keys and values of what was chosen, by the columns of the saturating kind.

    Where k' follows the rows of the pass there is a kind for each, active in its rows; no table covers those ops, which
    are then costed round by round.
    """
    steps, out = reach.steps, []
    step = step_of(steps, work.half_tokens("decode"))
    for number, (_, candidates) in enumerate(steps):
        other = shape.windows.index(candidates + 1)
        active = 1.0 * (np.asarray(step) == number) if len(steps) > 1 else 1.0
        driver = ("decode" if len(steps) == 1 else "stepped", other)
        out += [replace(_moved(op, work, kind, other, active), driver=driver) for op in mine]
    return out


def _moved(op: Op, work: Work, kind: int, other: int, active: Count) -> Op:
    """An op that counts pairs and reads of one kind, by those of another; queries and outputs stay."""
    assert work.decode_pairs is not None and work.decode_reads is not None
    counts = {"flops": _each(op.flops, work.decode_pairs[kind]) * work.decode_pairs[other] * active}
    counts["kv_read_bytes"] = _each(op.kv_read_bytes, work.decode_reads[kind]) * work.decode_reads[other] * active
    written = op.activation_bytes * active
    if op.name == "attn.softmax":
        written = _each(op.activation_bytes, work.decode_pairs[kind]) * work.decode_pairs[other] * active
    return replace(op, **counts, activation_bytes=written)


def _each(counts: Count, of: Count) -> float:
    """What one pair or read counts; the same in every round."""
    most = float(np.max(of))
    return float(np.max(counts)) / most if most else 0.0
