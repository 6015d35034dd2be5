"""What lossy ways of decoding lose, really run: the target's likeliest token kept or not, and nats a token.

No cost model predicts these; the rows hold what is measured here against what was recorded when the page of the method
was written, so that a twin that changes its output is found. Lossless variants must change no choice at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.agreement import agreement
from sim.reference.decoding import decode
from sim.reference.packed_matrix import Rule as Grid
from sim.reference.quantized import Bits, Quantized
from sim.reference.transformer import Transformer
from sim.reference.variants import distilled, early_exit, kv_sharing, matformer, pruning
from sim.reference.variants.contextual_sparsity import Keep, Sparse, fitted
from sim.reference.variants.hire import Hire, TwoPhase
from sim.reference.variants.kv_eviction import Evicting, Rule
from sim.reference.variants.moe import RoutedMoe
from sim.reference.variants.offload import Offloaded
from sim.validation.policies import model, trained
from sim.validation.row import Row
from sim.validation.stand_in import stand_in
from sim.validation.texts import held_out
from sim.validation.variants import EXPERTS

AWAY = 0.05  # of all choices: other rounding picks other tokens, and texts part ways
WINDOWS, LENGTH = 16, 128
PROMPTS, TOKENS = 24, 64
Array = NDArray[Any]


@dataclass(frozen=True)
class Lossy:
    """Variant ``name`` on ``base``, done by ``twin``; ``recorded``: equal argmaxes when it was written, 1: lossless."""

    name: str
    about: str
    base: Transformer
    twin: Transformer
    recorded: float = 1.0


POLICIES: Mapping[str, float] = {
    "bild: primary <- drafter": 0.992,
    "tree: primary, Medusa's trained heads, typical acceptance": 0.409,
    "tandem: standalone, with the free token": 0.785,
    "tandem: standalone, without the free token": 0.594,
    "plan: primary, then secondary": 0.710,
}


def compare() -> list[Row]:
    """Policies whose text is not the target's, then variants."""
    return [*_policies(), *(_row(one) for one in variants())]


def _policies() -> Iterator[Row]:
    """Of what was written, how much the target would have written there: greedy, but for typical acceptance."""
    prompts = held_out("a", PROMPTS)
    for case in (c for c in trained() if not c.lossless):
        runs = decode(case.twin, case.target, prompts, TOKENS, sampler=case.sampler)
        found, name = agreement(case.target, runs), f"{case.name}: {case.about}"
        what = f"{name}: tokens that the target would have chosen, {found.nll:.2f} nats each"
        yield _said(what, POLICIES[name], found.argmax, AWAY)


def variants() -> Iterator[Lossy]:
    """Trained weights, changed; at the end what changes nothing."""
    primary, nested, relu = model("primary"), model("matformer"), model("relu")
    awq, int8 = Bits(Grid(4, 128, zero_point=True)), Bits(Grid(8), 8)
    yield Lossy("quantization", "int4 in groups of 128", primary, Quantized.of(primary, awq), 0.899)
    yield Lossy("quantization", "int8 weights and activations", primary, Quantized.of(primary, int8), 0.986)
    for size, recorded in (("S", 0.811), ("L", 0.965)):
        yield Lossy("matformer", f"its {size}", nested, matformer.twin(nested, size), recorded)
    for layers, recorded in ((2, 0.257), (3, 0.519)):
        twin = early_exit.twin(primary, layers)
        yield Lossy("early_exit", f"{layers} of 4 layers, untaught", primary, twin, recorded)
    yield Lossy("distilled", "every other layer, untaught", primary, distilled.twin(primary, 2), 0.330)
    half = [layer.ffn.width // 2 for layer in primary.shape.layers]
    yield Lossy("pruning", "half of the hidden units, untaught", primary, pruning.twin(primary, ffn=half), 0.446)
    yield Lossy("kv_sharing", "MQA by means, untaught", primary, kv_sharing.twin(primary, 1), 0.423)
    for method, recorded in (("streaming", 0.934), ("h2o", 0.937), ("window", 0.942)):
        twin = Evicting.of(primary, Rule(32, method, 4))
        yield Lossy("kv_eviction", f"{method}, 32 tokens of {LENGTH}", primary, twin, recorded)
    hire = Hire.of(relu, TwoPhase(128, 32), TwoPhase(144, 96))
    yield Lossy("hire", "softmax and FFN of relu", relu, hire, 0.919)
    keep = Keep(384, None, 64)
    sparse = Sparse.of(relu, keep, fitted(relu, [np.array(t) for t in held_out("b", 24, 96)], keep))
    yield Lossy("contextual_sparsity", "half of relu's neurons", relu, sparse, 0.943)
    yield Lossy("kv_sharing", "MHA by copies", primary, kv_sharing.twin(primary, 4))
    yield Lossy("matformer", "XL", nested, matformer.twin(nested, "XL"))
    yield Lossy("offload", "half of weights and KV", primary, Offloaded.of(primary, 0.5, 0.5))
    routed = stand_in(EXPERTS)
    yield Lossy("moe", "untrained, as routed", routed, RoutedMoe.of(routed))


def _row(one: Lossy) -> Row:
    texts = [t % one.base.shape.vocab for t in held_out("a", WINDOWS, LENGTH)]
    (before, ours), (after, theirs) = (choices(m, texts) for m in (one.base, one.twin))
    lossless = one.recorded == 1.0
    known = not lossless and isfinite(after)  # HiRE's softmax leaves tokens without a chance
    cost = f", {after - before:+.3f} nats a token" if known else ""
    what = f"{one.name}: equal choices, {one.about}{cost}"
    return _said(what, one.recorded, float((ours == theirs).mean()), 1e-3 if lossless else AWAY)


def _said(what: str, recorded: float, measured: float, allowed: float) -> Row:
    """Absolute error: shares are of all tokens."""
    return Row("distribution", what, recorded, measured, measured - recorded, allowed)


def choices(net: Transformer, texts: list[Array]) -> tuple[float, Array]:
    """Mean nats a token of windows of one length, and the likeliest next tokens, [windows, length - 1]."""
    logits = net.forward(texts, net.new_cache(len(texts)), rows="all").astype(np.float64)
    logits = logits.reshape(len(texts), len(texts[0]), -1)[:, :-1]
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, np.array(texts)[:, 1:, None], axis=-1)[..., 0]
    return float((np.log(np.exp(logits).sum(axis=-1)) - chosen).mean()), logits.argmax(axis=-1)
