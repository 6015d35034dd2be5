"""Text editing and its baseline on an untrained encoder-decoder, which the family does not have: counts alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.rewrite import apply
from sim.analytic.work import Work
from sim.policies import Chunk, Chunks, Future, Model
from sim.policies.autoregressive import Autoregressive
from sim.policies.encoded import Encoded
from sim.policies.text_editing import TextEditing
from sim.reference.decoding import decode
from sim.reference.numerics import Numerics, RelativeBias
from sim.reference.transformer import Transformer
from sim.reference.twins import text_editing
from sim.validation.counts import Tally, added, each, measured, simulated
from sim.validation.stand_in import with_encoder

OWN = Attention(2, 2, 6, 6, rope=False)
ACROSS = replace(OWN, causal=False)
FFN = Ffn(10, gated=False, activation="relu")
SHAPE = ModelShape("edit5", 16, 64, (Layer(OWN, FFN, norms=3, cross=ACROSS),), (Layer(ACROSS, FFN),) * 3)
SOURCES, STEPS = (7, 4, 12), 6
NO_LUCK: Any = None


def cases() -> Iterator[tuple[str, str, Tally, Tally]]:
    """(policy, what, simulated, measured) of a batch of sources whose decoders all run so many steps."""
    target = Transformer(SHAPE, Numerics(relative=RelativeBias(8, 20)), with_encoder(SHAPE, 8))
    for pointer in (True, False):
        target.meter.reset()
        decode(text_editing.Twin(pointer=pointer), target, [np.arange(n) for n in SOURCES], STEPS)
        policy, about = TextEditing(0.4, 0.0, pointer), f"untrained T5, {'with' if pointer else 'without'} pointers"
        yield "text_editing", about, _counts(policy, int(STEPS * policy.expected_tokens)), measured(target.meter)
    target.meter.reset()
    _baseline(target)
    ours = _counts(Autoregressive(), STEPS)
    yield "autoregressive", "untrained T5, sequence to sequence", ours, measured(target.meter)


def _baseline(target: Transformer) -> None:
    """The same sources, token by token through the decoder."""
    cache = target.new_cache(len(SOURCES))
    target.encode([np.arange(n) for n in SOURCES], cache)
    for _ in range(STEPS):
        target.meter.sample(target.forward([np.array([3])] * len(SOURCES), cache))


def _counts(plain: Any, output: int) -> Tally:
    """What the simulator counts of answers of ``output`` tokens, by the policy in its encoder-decoder form."""
    models: list[tuple[Any, ...]] = [(), *(d.variants for d in plain.drafts if isinstance(d, Model))]
    shapes = [SimpleNamespace(shape=apply(variants, "reshape", SHAPE)) for variants in models]
    policy = Encoded.of(plain, shapes)
    works: list[list[Work]] = [[] for _ in models]
    for model, work in _passes(policy, output):
        works[model].append(work)
    prefixes = ("", "draft.")
    return added(*(simulated(SHAPE, w, p, variants=v) for w, p, v in zip(works, prefixes, models, strict=False)))


def _passes(policy: Encoded, output: int) -> Iterator[tuple[int, Work]]:
    """Sources read together, then every step of all of them."""
    windows = policy.windows
    prompts = Chunks([Chunk(0, n, True, n) for n in SOURCES])
    yield from ((one.model, one.work) for one in policy.passes(0, None, prompts, windows))
    future: Future = policy.future(NO_LUCK, 0, output - 1)
    totals = np.sum([policy.reading(n).rows(future, n, windows) for n in SOURCES], axis=0)
    for at in range(totals.shape[1]):
        for one in policy.passes(len(SOURCES), totals[:, at : at + 1], None, windows):
            yield from ((one.model, work) for work in each(one.work))
