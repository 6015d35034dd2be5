"""Text editing on an untrained T5: what is tagged, ordered and inserted; counts equal to the simulator's, exactly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analytic_models import device
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_transformer

from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.policies import Chunk, Chunks, Future
from sim.policies.autoregressive import Autoregressive
from sim.policies.edit_heads import EditHeads
from sim.policies.encoded import Encoded
from sim.policies.text_editing import TextEditing
from sim.reference.decoding import Generation, decode
from sim.reference.demos import CORRECTED, DELETED, INSERTIONS, SOURCE, apply_edits
from sim.reference.sampling import Sampler
from sim.reference.twins import text_editing
from sim.reference.twins.text_editing import Plan, realised
from sim.validation.counts import FP32, KINDS, Tally, added, measured, mismatches, simulated

OWN = Attention(2, 2, 6, 6, rope=False)
FFN = Ffn(10, gated=False, activation="relu")
BOTH_WAYS = replace(OWN, causal=False)


def shape(decoder: int = 1, vocab: int = 64) -> ModelShape:
    """EdiT5 in small: three encoder layers, one of a decoder."""
    return ModelShape(
        "edit5", 16, vocab, (Layer(OWN, FFN, norms=3, cross=BOTH_WAYS),) * decoder, (Layer(BOTH_WAYS, FFN),) * 3
    )


def costs(model: ModelShape, pointer: bool) -> list[PassCost]:
    """The target's and the heads', in the witness's float32 with scores written out."""
    return [
        PassCost(model, device("h100-sxm"), FP32, attention="standard", variants=variants)
        for variants in ((), (EditHeads(pointer),))
    ]


def heads_tally(cost: PassCost, works: list[Work]) -> Tally:
    """What the simulator counts for the heads, as a draft's."""
    tally: Tally = {kind: Counter() for kind in KINDS}
    for work in works:
        for op in cost.ops(work):
            values = (op.flops, op.weight_bytes, op.kv_read_bytes + op.kv_write_bytes, op.activation_bytes)
            for kind, value in zip(KINDS, values, strict=True):
                tally[kind][f"draft.{op.name}"] += op.layers * value
    return tally


def passes_of(policy: Any, sources: list[int], steps: int) -> list[tuple[int, Work]]:
    """Passes of a batch whose decoders run so many steps, all of them to the end."""
    prompts = Chunks([Chunk(0, n, True, n) for n in sources])
    found = [(one.model, one.work) for one in policy.passes(0, None, prompts, policy.windows)]
    output = int(steps * policy.expected_tokens) if steps > 1 else 1
    rows = []
    for source in sources:
        future: Future = policy.future(None, 0, output - 1) if output > 1 else Future(*[np.zeros(0, int)] * 4)
        rows.append(np.array(policy.reading(source).rows(future, source, policy.windows)))
    total = sum(rows[1:], rows[0])
    for at in range(total.shape[1]):
        decodes = policy.passes(len(sources), total[:, at].tolist(), None, policy.windows)
        found += [(one.model, one.work) for one in decodes]
    return found


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 3), st.booleans(),
    st.sampled_from([0.25, 0.4, 10 / 27, 1.0]),
)  # fmt: skip
def test_counts_are_the_simulators(sources: list[int], steps: int, decoder: int, pointer: bool, share: float) -> None:
    """Encoder, heads, and a decoder that runs as many steps as the policy says: FLOPs and bytes of every op."""
    model = shape(decoder)
    target = random_transformer(model, dtype=np.float32)
    twin = text_editing.Twin(pointer=pointer)
    decode(twin, target, [np.arange(n) for n in sources], steps)
    target_cost, heads_cost = costs(model, pointer)
    policy = Encoded.of(TextEditing(share, 0.0, pointer), [target_cost, heads_cost])
    found = passes_of(policy, sources, steps)
    assert sum(m == 0 for m, _ in found) == steps
    ours = added(
        simulated(model, [w for m, w in found if m == 0]), heads_tally(heads_cost, [w for m, w in found if m == 1])
    )
    assert [str(m) for m in mismatches(ours, measured(target.meter))] == []


def test_a_baseline_counts_like_the_policy_without_edits() -> None:
    """Sequence to sequence: the same model and steps without heads, by the plain policy in its encoder-decoder form."""
    model = shape(2)
    target, sources = random_transformer(model, dtype=np.float32), [7, 4]
    cache = target.new_cache(2)
    target.encode([np.arange(n) for n in sources], cache)
    for _ in range(6):
        target.meter.sample(target.forward([np.array([3]), np.array([5])], cache))
    plain = Encoded.of(Autoregressive(), costs(model, True)[:1])
    prompts = Chunks([Chunk(0, n, True, n) for n in sources])
    found = [(one.model, one.work) for one in plain.passes(0, None, prompts, plain.windows)]
    no_luck: Any = None
    future = Autoregressive().future(no_luck, 0, 5)
    rows = np.sum([plain.reading(n).rows(future, n, plain.windows) for n in sources], axis=0)
    for at in range(5):
        found += [(0, one.work) for one in plain.passes(2, rows[:, at].tolist(), None, plain.windows)]
    assert [str(m) for m in mismatches(simulated(model, [w for _, w in found]), measured(target.meter))] == []


def test_the_tutorials_sentence() -> None:
    """Its edit makes its correction, word for word, by the twin's own rule and by the demo's; 10 steps for 27."""
    pieces = {piece: i for i, piece in enumerate(dict.fromkeys((*SOURCE, *CORRECTED, *INSERTIONS)))}
    vocab = len(pieces) + len(SOURCE)
    marks = {f"<extra_id_{i}>": vocab - 1 - i for i in range(len(SOURCE))}
    decoded = [marks.get(piece, pieces[piece]) for piece in INSERTIONS]
    plan = Plan(tuple(i for i in range(len(SOURCE)) if i not in DELETED))
    words = {number: piece for piece, number in pieces.items()}
    text = realised([pieces[p] for p in SOURCE], plan, decoded, vocab, end=pieces["</s>"])
    assert [words[n] for n in text] == apply_edits(SOURCE, DELETED, INSERTIONS)
    assert TextEditing(10 / 27).steps(len(CORRECTED)) == len(INSERTIONS) == 10


@settings(max_examples=40)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=9), st.lists(st.integers(0, 63), max_size=12), st.integers(0, 9)
)
def test_nothing_is_lost(source: list[int], decoded: list[int], seed: int) -> None:
    """A text holds every kept token once and every decoded word before the end, however nonsensical the marks."""
    kept = tuple(np.random.default_rng(seed).permutation(len(source))[: len(source) // 2 + 1].tolist())
    text = realised(source, Plan(kept), decoded, 64)
    words = decoded[: decoded.index(1)] if 1 in decoded else decoded
    want = [source[i] for i in kept] + [t for t in words if t < 64 - len(source)]
    assert sorted(text) == sorted(want)


def test_texts_of_a_real_model() -> None:
    """Greedy and sampled: tags keep some tokens, the order is theirs, each text by itself as in the batch."""
    target = replace(random_transformer(shape(), dtype=np.float32), exact=True)
    sources = [np.arange(2, 2 + n) for n in (9, 5, 12)]
    twin = text_editing.Twin()
    for sampler in (None, Sampler(temperature=1.0)):
        together = text_editing.edit(twin, target, sources, 6, sampler=sampler, seed=4)
        plans = list(twin.planned)
        assert all(sorted(set(p.kept)) == sorted(p.kept) and max(p.kept, default=0) < len(s)
                   for p, s in zip(plans, sources, strict=True))  # fmt: skip
        assert any(len(p.kept) < len(s) for p, s in zip(plans, sources, strict=True))
        alone = text_editing.edit(twin, target, sources[:1], 6, sampler=sampler, seed=4)
        assert alone[0] == together[0] and isinstance(alone[0][0], Generation)
    straight = text_editing.Twin(pointer=False)
    text_editing.edit(straight, target, sources, 6, seed=4)
    assert [sorted(p.kept) for p in plans] == [list(p.kept) for p in straight.planned]


def test_it_is_another_model() -> None:
    """Lossy and said so: with one decoder layer of two, the decoder's tokens agree with the whole one's only now and
    then; measured on an untrained model, as no encoder-decoder is shipped."""
    whole = random_transformer(shape(2), dtype=np.float32)
    sources = [np.random.default_rng(i).integers(2, 40, 10) for i in range(40)]
    runs = [decode(text_editing.Twin(), model, sources, 8) for model in (whole, whole.early_exit(1))]
    agree = np.mean([a == b for x, y in zip(*runs, strict=True) for a, b in zip(x.tokens, y.tokens, strict=True)])
    assert 0.0 <= agree < 0.9
    assert TextEditing().quality.loss_percent is None


def test_refusals() -> None:
    """A decoder-only model cannot be edited with."""
    decoder = replace(shape(), encoder=(), layers=(Layer(OWN, FFN),))
    with pytest.raises(ValueError, match="policy text_editing: edit5 has no encoder; allowed: encoder-decoders"):
        decode(text_editing.Twin(), random_transformer(decoder), [np.arange(3)], 2)
