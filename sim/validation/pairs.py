"""Counts of real passes: every policy and variant, trained models and shapes of every kind, chunked and ragged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.validation import editing
from sim.validation.cases import of_case
from sim.validation.counts import KINDS, Mismatch, Tally, Watched, measured, mismatches, ragged, simulated
from sim.validation.models import SMOLLM2, known, named
from sim.validation.policies import trained, untrained
from sim.validation.row import Row
from sim.validation.stand_in import stand_in
from sim.validation.variants import cases, of_variant


def compare(seed: int = 0) -> list[Row]:
    """One row a case; the error is that of the op and kind of count that is furthest off, and nothing is allowed."""
    cases_run = (*_decoding(seed), *editing.cases(), *_changed(), *_shapes(seed), *_smollm2())
    return [row(name, about, ours, theirs) for name, about, ours, theirs in cases_run]


def row(name: str, about: str, ours: Tally, theirs: Tally) -> Row:
    """FLOPs of a case, simulated and measured, and the largest relative error of any op in FLOPs or bytes."""
    wrong = mismatches(ours, theirs)
    worst = max(wrong, key=lambda m: abs(_error(m)), default=None)
    ops = {op for kind in KINDS for op, count in ours[kind].items() if count > 0}
    what = f"{name}: FLOPs, bytes of {len(ops)} ops, {about}" + ("" if worst is None else f"; worst: {worst}")
    totals = [float(sum(v for k, v in t["flops"].items() if k in ours["flops"])) for t in (ours, theirs)]
    return Row("counts", what, totals[0], totals[1], 0.0 if worst is None else _error(worst), 0.0)


def _error(one: Mismatch) -> float:
    return (one.simulated - one.measured) / max(abs(one.measured), 1.0)


def _decoding(seed: int) -> Iterator[tuple[str, str, Tally, Tally]]:
    """Every policy, by its own passes of rounds that happened."""
    for case in (*trained(), *untrained()):
        yield case.name, case.about, *of_case(case, seed)


def _changed() -> Iterator[tuple[str, str, Tally, Tally]]:
    """Every variant."""
    for changed in cases():
        yield changed.name, changed.about, *of_variant(changed)


def of_chunks(model: Watched, passes: Sequence[Sequence[int]]) -> tuple[Tally, Tally]:
    """Run ragged passes of ``passes[p][i]`` tokens of sequence i on a fresh cache; both tallies, experts as visited."""
    cache, works = model.new_cache(len(passes[0])), []
    model.meter.reset()
    model.visits.clear()
    for news in passes:
        emitting = sum(n > 0 for n in news)
        works.append(ragged(news, cache.lengths.tolist(), model.shape.windows, emitting))
        model.meter.sample(model.forward([np.arange(n) % model.shape.vocab for n in news], cache))
    return simulated(model.shape, works, visits=model.visits), measured(model.meter)


def _shapes(seed: int) -> Iterator[tuple[str, str, Tally, Tally]]:
    """Windows, grouped heads, norms after blocks, experts: what the family does not have."""
    near, far = Attention(4, 2, 6, 6, window=5), Attention(4, 2, 6, 6, qk_norm=6)
    experts = Ffn(10, experts=6, experts_per_token=2)
    biased = Layer(replace(far, qkv_bias=True, out_bias=True, rope=False), Ffn(10, False, True))
    shapes = {
        "windows and post-norms": ModelShape("w", 16, 31, (Layer(near, Ffn(10), 4), Layer(far, Ffn(10), 4))),
        "experts": ModelShape("e", 16, 31, (Layer(far, experts), Layer(far, experts))),
        "biases and LayerNorm": ModelShape("b", 16, 31, (biased,), norm="layer"),
    }
    for name, shape in shapes.items():
        model = stand_in(shape, seed, kind=Watched)
        assert isinstance(model, Watched)
        yield "autoregressive", f"{name}, chunked", *of_chunks(model, ((6, 3, 0), (4, 0, 8), (1, 1, 1)))


def _smollm2() -> Iterator[tuple[str, str, Tally, Tally]]:
    """SmolLM2 where it is installed."""
    if known()[SMOLLM2].path is None:
        return
    model = named(SMOLLM2)
    watched = Watched(model.shape, model.numerics, model.weights)
    yield "autoregressive", "SmolLM2-135M, chunked", *of_chunks(watched, ((12,), (7,), (1,), (1,)))
