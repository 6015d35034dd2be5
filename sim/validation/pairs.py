"""Counts of real decoding: trained models and shapes of every kind, plain and speculative, chunked and ragged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.policies import Policy
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.reference.decoding import decode
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer
from sim.reference.twins import autoregressive, speculative
from sim.validation.counts import KINDS, Tally, Watched, added, decoded, measured, mismatches, ragged, simulated
from sim.validation.models import SMOLLM2, known, named
from sim.validation.row import Row
from sim.validation.stand_in import stand_in

LIMITS = (20, 3, 31)


def compare(seed: int = 0) -> list[Row]:
    """One row a kind of count and case; the error is that of the op that is furthest off, and nothing is allowed."""
    cases = [*_family(seed), *_shapes(seed), *_smollm2()]
    return [row for name, ours, theirs in cases for row in rows(name, ours, theirs)]


def rows(name: str, ours: Tally, theirs: Tally) -> Iterator[Row]:
    """One row a kind of count: totals, and the largest relative error of any op."""
    wrong = mismatches(ours, theirs)
    for kind in KINDS:
        errors = [(m.simulated - m.measured) / max(abs(m.measured), 1.0) for m in wrong if m.kind == kind]
        worst = max(errors, key=abs, default=0.0)
        ops = sum(count > 0 for count in ours[kind].values())
        what = f"{kind.replace('_', ' of ')}, {ops} ops, {name}"
        measured_total = sum(v for k, v in theirs[kind].items() if k in ours[kind])
        yield Row("counts", what, float(ours[kind].total()), float(measured_total), worst, 0.0)


def of_decoding(target: Transformer, draft: Transformer | None, gamma: int, seed: int) -> tuple[Tally, Tally]:
    """Decode a ragged batch; what the simulator's policy says of these rounds, and what the meters read."""
    models = [target] if draft is None else [target, draft]
    twin = autoregressive.Twin() if draft is None else speculative.Twin(draft, gamma)
    policy: Policy = Autoregressive() if draft is None else Speculative("draft", gamma)
    for model in models:
        model.meter.reset()
    prompts = [stream(seed, "prompt", i).integers(0, target.shape.vocab, n) for i, n in enumerate((9, 4, 17))]
    texts = decode(twin, target, prompts, LIMITS, seed=seed)
    passes = list(decoded(policy, texts, tuple(model.shape.windows for model in models)))
    ours = [
        simulated(model.shape, [work for i, work in passes if i == k], "draft." if k else "")
        for k, model in enumerate(models)
    ]
    return added(*ours), added(*(measured(model.meter) for model in models))


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


def _family(seed: int) -> Iterator[tuple[str, Tally, Tally]]:
    primary = named("primary")
    yield "primary, autoregressive", *of_decoding(primary, None, 1, seed)
    yield "primary <- drafter, gamma 4", *of_decoding(primary, named("drafter"), 4, seed)


def _shapes(seed: int) -> Iterator[tuple[str, Tally, Tally]]:
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
        yield f"{name}, chunked", *of_chunks(model, ((6, 3, 0), (4, 0, 8), (1, 1, 1)))


def _smollm2() -> Iterator[tuple[str, Tally, Tally]]:
    """SmolLM2 where it is installed."""
    if known()[SMOLLM2].path is None:
        return
    model = named(SMOLLM2)
    watched = Watched(model.shape, model.numerics, model.weights)
    yield "SmolLM2-135M, chunked", *of_chunks(watched, ((12,), (7,), (1,), (1,)))
