"""HiRE that really runs: counts, what its phases find, recall against the closed form, quality of trained models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import small_shape
from variant_counting import counted

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.reference.checkpoint import load, shipped_names
from sim.reference.meter import Meter
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer
from sim.reference.variants.choosing import best, low_rank
from sim.reference.variants.hire import Hire as Twin
from sim.reference.variants.hire import KeyReach, TwoPhase
from sim.validation.counts import Tally, measured, mismatches
from sim.validation.stand_in import stand_in
from sim.validation.tokens import held_out
from sim.variants.hire import Hire
from sim.variants.hire_options import Phases
from sim.variants.topk import recall, union

TRAINED = pytest.mark.skipif(not {"primary", "relu"} <= set(shipped_names()), reason="no trained family")
GATHERED = ("logits", "mlp.up", "mlp.down")


def decoded(twin: Transformer, prompts: list[int], steps: int, sampled: int) -> list[Work]:
    """Prompts one by one, then ``steps`` decodes of all of them; the works, ``sampled`` logits a row sampled from."""
    cache, works, windows = twin.new_cache(len(prompts)), [], (None,)
    for i, n in enumerate(prompts):
        works.append(Work.chunk(n, 0, windows=windows))
        twin.forward([np.arange(n) % twin.shape.vocab], cache, [i])
        twin.meter.sample(np.zeros((1, sampled)))
    for _ in range(steps):
        held = cache.lengths.tolist()
        works.append(Work(len(held), len(held), (sum(held) + len(held),), (sum(held),)))
        twin.forward([np.array([i]) for i in range(len(held))], cache)
        twin.meter.sample(np.zeros((len(held), sampled)))
    return works


def without(tally: Tally, kind: str, ops: tuple[str, ...]) -> Tally:
    """A tally with some ops of one kind taken out."""
    return {**tally, kind: type(tally[kind])({op: n for op, n in tally[kind].items() if op not in ops})}


def any_shape(d: int, heads: int, groups: int, width: int, gated: bool, bias: bool) -> ModelShape:
    """A small decoder of 40 tokens."""
    block = Attention(heads * groups, groups, 4, 4)
    return ModelShape("any", d, 40, (Layer(block, Ffn(width, gated, bias, "relu")),) * 2)


@st.composite
def phases(draw: Any, total: int) -> dict[str, Any]:
    """Options of two phases over ``total`` units, the same for both sides."""
    group = draw(st.sampled_from([g for g in (1, 2, 4) if total % g == 0]))
    candidates = group * draw(st.integers(1, total // group))
    keep = group * draw(st.integers(1, candidates // group))
    rank = draw(st.sampled_from([None, 1, 3]))
    bits = draw(st.sampled_from([4, 3, 8] if rank is None else [None, 4]))
    return {"candidates": candidates, "keep": keep, "rank": rank, "bits": bits, "group": group}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.booleans(), st.booleans(), st.integers(1, 4))
def test_every_op_counts_as_the_phases_that_run_alone(
    data: Any, heads: int, groups: int, gated: bool, bias: bool, prompt: int
) -> None:
    """One sequence: FLOPs and bytes of every op exactly, of softmax, FFN and attention, prompts run dense."""
    shape = any_shape(8, heads, groups, 12, gated, bias)
    softmax, ffn = {**data.draw(phases(40)), "group": 1}, data.draw(phases(12))
    reach = KeyReach(data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4)))
    variant = Hire(
        {**softmax, "dense_rows": 99}, {**ffn, "dense_rows": 2 if prompt > 1 else 99},
        {"candidates": reach.candidates, "dims": reach.dims}, half_chunk_bytes=0,
    )  # fmt: skip
    twin = Twin.of(stand_in(shape), TwoPhase(**softmax), TwoPhase(**ffn, dense_rows=2 if prompt > 1 else 99), reach)
    works = [w for w in decoded(twin, [prompt], 6, softmax["candidates"])]
    ours = counted(shape, [with_reach(w, reach.candidates) for w in works], variant)
    assert not [str(m) for m in mismatches(ours, measured(twin.meter))]


def with_reach(work: Work, candidates: int) -> Work:
    """The work of one sequence with the saturating attention kind beside the whole one."""
    if work.decode_pairs is None:
        assert work.prefill_pairs is not None and work.prefill_reads is not None
        return work._replace(prefill_pairs=work.prefill_pairs * 2, prefill_reads=work.prefill_reads * 2)
    assert work.decode_reads is not None
    pairs, reads = int(work.decode_pairs[0]), int(work.decode_reads[0])
    return work._replace(decode_pairs=(pairs, min(pairs, candidates + 1)), decode_reads=(reads, min(reads, candidates)))


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(2, 4), st.booleans())
def test_a_batch_counts_alike_but_for_the_union_that_chance_makes(data: Any, batch: int, gated: bool) -> None:
    """Several sequences: everything exact; of gathered weights the expected union, here put in place by hand."""
    shape = any_shape(8, 2, 1, 12, gated, False)
    softmax, ffn = {**data.draw(phases(40)), "group": 1}, data.draw(phases(12))
    variant = Hire({**softmax, "dense_rows": 99}, {**ffn, "dense_rows": 99}, half_chunk_bytes=0)
    twin = Twin.of(stand_in(shape), TwoPhase(**softmax), TwoPhase(**ffn))
    works = decoded(twin, [1] * batch, 2, softmax["candidates"])
    theirs = measured(twin.meter)
    ours = counted(shape, works, variant)
    assert not mismatches(*(without(t, "bytes_weights", GATHERED) for t in (ours, theirs)))
    per_unit = {"logits": 8 * 4, "mlp.up": 8 * 4 * (2 if gated else 1), "mlp.down": 8 * 4}
    touched = twin.tally.touched
    seen = {"logits": touched["logits"], "mlp.up": sum(n for op, n in touched.items() if "mlp.up" in op)}
    seen["mlp.down"] = seen["mlp.up"]
    assert {op: theirs["bytes_weights"][op] for op in GATHERED} == {op: seen[op] * per_unit[op] for op in GATHERED}


def test_all_candidates_change_nothing() -> None:
    """k' of everything: the logits of the model itself, softmax, FFN and attention."""
    base = stand_in(small_shape(), 3)
    vocab, width = base.shape.vocab, base.shape.layers[0].ffn.width
    twin = Twin.of(base, TwoPhase(vocab, 4), TwoPhase(width, width, 3, None), KeyReach(99, 1))
    a, b = base.new_cache(2), twin.new_cache(2)
    for news in ((5, 2), (1, 1), (1, 1), (0, 3)):
        tokens = [stream(1, "t", int(n), i).integers(0, vocab, n) for i, n in enumerate(news)]
        assert np.allclose(base.forward(tokens, a), twin.forward(tokens, b), atol=1e-4)
    assert twin.tally.recall == 1.0 and min(twin.tally.masses) > 1 - 1e-6


def test_the_best_are_the_best() -> None:
    """Against a sort: units alone, in groups by their sum, and by shard."""
    scores = stream(2, "scores").normal(size=(5, 24))
    assert np.array_equal(best(scores, 7), np.sort(np.argsort(-scores, axis=1)[:, :7], axis=1))
    grouped = best(scores, 8, group=4)
    sums = np.argsort(-scores.reshape(5, 6, 4).sum(axis=2), axis=1)[:, :2]
    assert np.array_equal(grouped.reshape(5, 2, 4)[..., 0] // 4, np.sort(sums, axis=1))
    shards = best(scores, 6, shards=3)
    assert ((shards // 8) == np.repeat([0, 1, 2], 2)).all()


def test_a_low_rank_copy_serves_the_inputs_it_was_fitted_to() -> None:
    """Inputs in a plane of rank 3 are served exactly by rank 3; without them the error is the tail of the spectrum."""
    rng = stream(3, "rank")
    w, plane = rng.normal(size=(16, 40)), rng.normal(size=(3, 16))
    x = rng.normal(size=(200, 3)) @ plane
    project, scorer = low_rank(w, 3, x)
    assert np.abs(x @ project @ scorer - x @ w).max() < 1e-2 * np.abs(x @ w).max()
    blind = low_rank(w, 3)
    tail = np.sqrt((np.linalg.svd(w)[1][3:] ** 2).sum())
    assert np.linalg.norm(w - blind[0] @ blind[1]) == pytest.approx(tail)


def noise_of(approximate: Any, exact: Any) -> Any:
    """Standard deviation of the error over that of the scores, by row, after the slope of one on the other."""
    a, x = (m - m.mean(axis=1, keepdims=True) for m in (approximate.astype(float), exact.astype(float)))
    slope = (a * x).sum(axis=1, keepdims=True) / (x * x).sum(axis=1, keepdims=True)
    return ((a - slope * x).std(axis=1) / (slope[:, 0] * x.std(axis=1))).tolist()


@pytest.mark.parametrize(
    ("bits", "rank", "candidates"), [(4, None, 24), (3, None, 24), (2, None, 64), (None, 40, 96), (4, 40, 96)]
)
def test_recall_on_gaussian_scores_is_the_closed_form(bits: int | None, rank: int | None, candidates: int) -> None:
    """Gaussian matrices: recall of the true top 16 of 1,024 by the noise measured, within 4 standard errors + 0.01."""
    shape = ModelShape("gauss", 64, 1024, (Layer(Attention(1, 1, 4, 4), Ffn(8)),))
    twin = Twin.of(stand_in(shape, 5), TwoPhase(candidates, 16, rank, bits))
    x = stream(6, "states").normal(size=(300, 64)).astype(np.float32)
    twin.head(x)
    h = twin.final_norm(x)
    noise = noise_of(twin.copies["logits"].scores(Meter(), "x", h), h @ twin.weights["logits"])
    expected = np.mean([recall(s, candidates, 16, 1024) for s in noise[:60]])
    error = np.std(twin.tally.by_row) / len(twin.tally.by_row) ** 0.5
    assert abs(twin.tally.recall - expected) < 4 * error + 0.01


@pytest.mark.parametrize(("shards", "candidates"), [(4, 32), (8, 32), (16, 32), (8, 64)])
def test_shards_lose_what_the_closed_form_says(shards: int, candidates: int) -> None:
    """DA-TOP-k on Gaussian scores in int4: recall of the true top 16 of 1,024, within 4 standard errors + 0.01."""
    shape = ModelShape("gauss", 64, 1024, (Layer(Attention(1, 1, 4, 4), Ffn(8)),))
    twin = Twin.of(stand_in(shape, 5), TwoPhase(candidates, 16, None, 4, shards=shards))
    x = stream(6, "states").normal(size=(300, 64)).astype(np.float32)
    twin.head(x)
    h = twin.final_norm(x)
    noise = noise_of(twin.copies["logits"].scores(Meter(), "x", h), h @ twin.weights["logits"])
    expected = Phases(candidates, 16, None).recall(float(np.mean(noise)), 1024, shards)
    error = np.std(twin.tally.by_row) / len(twin.tally.by_row) ** 0.5
    assert abs(twin.tally.recall - expected) < 4 * error + 0.01


@TRAINED
@pytest.mark.parametrize(("bits", "candidates", "least"), [(4, 32, 0.998), (3, 32, 0.985)])
def test_recall_of_trained_logits_in_few_bits_is_the_closed_form(bits: int, candidates: int, least: float) -> None:
    """The primary's softmax, top 16 of 1,024: rounding noise acts as independent noise does (within 0.01)."""
    net = load("primary")
    twin = Twin.of(net, TwoPhase(candidates, 16, None, bits))
    tokens = list(np.array(held_out("a", 4, 96)))
    _, hidden = twin.forward(tokens, twin.new_cache(4), rows="all", return_hidden=[4])
    h = twin.final_norm(hidden[4])
    noise = noise_of(twin.copies["logits"].scores(Meter(), "x", h), h @ net.weights["logits"])
    expected = np.mean([recall(s, candidates, 16, 1024) for s in noise[::8]])
    assert twin.tally.recall > least and twin.tally.recall == pytest.approx(expected, abs=0.01)


@TRAINED
def test_a_low_rank_of_trained_logits_errs_where_it_hurts() -> None:
    """The closed form is an upper bound there: the error is largest among the best (docs/policies/hire.md)."""
    net = load("primary")
    tokens = list(np.array(held_out("a", 4, 96)))
    _, hidden = net.forward(tokens, net.new_cache(4), rows="none", return_hidden=[4])
    h = net.final_norm(hidden[4])
    twin = Twin.of(net, TwoPhase(48, 16, 48, None), inputs={"logits": h})
    twin.head(hidden[4])
    noise = noise_of(twin.copies["logits"].scores(Meter(), "x", h), h @ net.weights["logits"])
    expected = np.mean([recall(s, 48, 16, 1024) for s in noise[::8]])
    assert 0.9 < twin.tally.recall < expected < twin.tally.recall + 0.06


def nats(logits: Any, tokens: Any) -> float:
    """Mean nats a token of windows [n, t]."""
    x = logits.reshape(*tokens.shape, -1)[:, :-1].astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(x, tokens[:, 1:, None], axis=-1)[..., 0]
    return float((np.log(np.exp(x).sum(axis=-1)) - chosen).mean())


@TRAINED
def test_the_ffn_of_a_model_trained_with_top_k_loses_nothing_to_int4() -> None:
    """Top 96 of 768 neurons by 144 candidates: recall above 0.998 (record.json: .9995 of int4), nats within 0.002."""
    net, tokens = load("relu"), np.array(held_out("a", 8, 96))

    def run(phases: TwoPhase) -> tuple[Any, Twin]:
        twin = Twin.of(net, neurons=phases)
        return twin.forward(list(tokens), twin.new_cache(8), rows="all"), twin

    exact, _ = run(TwoPhase(768, 96, None, 8, 32))
    near, twin = run(TwoPhase(144, 96, None, 4, 32))
    assert twin.tally.recall > 0.998
    assert nats(near, tokens) == pytest.approx(nats(exact, tokens), abs=0.002)
    assert (near.argmax(axis=-1) == exact.argmax(axis=-1)).mean() > 0.98
    lost, worse = run(TwoPhase(96, 96, None, 2, 32))
    assert worse.tally.recall < 0.8 and nats(lost, tokens) > nats(exact, tokens) + 0.02


def chosen_by(part: str, k: int) -> list[Any]:
    """Neurons [texts, tokens, k] that every token of 24 texts chooses, by layer."""
    tokens = np.array(held_out(part, 24, 48))
    twin, found = Twin.of(load("relu"), neurons=TwoPhase(k, k, None, 8, 32)), []

    def note(*args: Any) -> Any:
        found.append(Twin._candidates(twin, *args).reshape(24, 48, k))
        return found[-1].reshape(-1, k)

    twin._candidates = note  # type: ignore[method-assign]
    twin.forward(list(tokens), twin.new_cache(24), rows="none")
    return found


def mean_union(found: list[Any], batch: int, draws: int = 300) -> tuple[float, float]:
    """Mean distinct neurons of batches of tokens of different texts, and its standard error."""
    luck = stream(7, "batches", batch)
    counts = []
    for _ in range(draws):
        texts, at = luck.permutation(24)[:batch], luck.integers(8, 48, batch)
        counts += [len(np.unique(layer[texts, at])) for layer in found]
    return float(np.mean(counts)), float(np.std(counts) / len(counts) ** 0.5)


@TRAINED
@pytest.mark.parametrize("k", [96, 48])
def test_the_union_over_a_batch_follows_from_the_overlap_of_two(k: int) -> None:
    """Overlap of pairs measured on text A predicts unions of 4 to 24 rows on text B within 1.5 %."""
    pairs, error = mean_union(chosen_by("a", k), 2, 1000)
    overlap, second = (2 * k - pairs) / k, chosen_by("b", k)
    assert error < 0.01 * k
    for batch in (4, 8, 16, 24):
        touched, error = mean_union(second, batch)
        assert float(union(batch, 768, k, overlap)) == pytest.approx(touched, rel=0.015)
        assert float(union(batch, 768, k)) > touched + 4 * error


@TRAINED
def test_attention_to_the_best_keys_keeps_most_of_the_weight() -> None:
    """The primary at about 80 cached tokens: 64 of them by 10 of 40 dimensions keep 95 % of the softmax."""
    net, tokens = load("primary"), np.array(held_out("a", 8, 96))
    twin = Twin.of(net, reach=KeyReach(64, 10))
    a, b = net.new_cache(8), twin.new_cache(8)
    same = []
    net.forward(list(tokens[:, :80]), a, rows="none")
    twin.forward(list(tokens[:, :80]), b, rows="none")
    for at in range(80, 95):
        step = list(tokens[:, at : at + 1])
        same.append(net.forward(step, a).argmax(axis=1) == twin.forward(step, b).argmax(axis=1))
    assert np.mean(twin.tally.masses) > 0.95 and np.mean(same) > 0.95


def test_what_the_witness_cannot_do_is_refused() -> None:
    """Windows, experts: one line."""
    with pytest.raises(ValueError, match="windows"):
        Twin.of(stand_in(small_shape(window=4)), reach=KeyReach(2, 2))
    assert Phases(3, 2).steps == ((1, 3),)
