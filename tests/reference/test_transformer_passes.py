"""However the tokens of a text are split into passes, batches and trees, the logits are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_transformer, small_shape

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.batch import TreeMask
from sim.reference.transformer import Transformer

SHAPES = {
    "full": small_shape(),
    "window": small_shape(3),
    "moe": small_shape(experts=4),
    "biased": small_shape(qkv_bias=True, out_bias=True, qk_norm=6),
    "mixed": replace(small_shape(), layers=small_shape(4).layers[:1] + small_shape().layers[:1]),
}
MODELS = {name: random_transformer(shape) for name, shape in SHAPES.items()}
RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(0, 31, n) for n in (19, 11, 14)]


def whole(model: Transformer, text: np.ndarray) -> np.ndarray:
    """Logits of every position, from one pass over one sequence."""
    return model.forward([text], model.new_cache(), rows="all")


@st.composite
def chunkings(draw: st.DrawFn) -> list[list[int]]:
    """For each of some passes, how many new tokens each of the three sequences brings (0 to 5)."""
    return draw(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=6))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25)
@given(plan=chunkings())
def test_any_ragged_chunking_gives_the_logits_of_one_pass(name: str, plan: list[list[int]]) -> None:
    """Ragged batches of chunks give each sequence what it gets alone in one pass."""
    model = MODELS[name]
    cache, at = model.new_cache(3), [0, 0, 0]
    got: list[list[np.ndarray]] = [[], [], []]
    for counts in plan:
        new = [text[a : a + n] for text, a, n in zip(TEXTS, at, counts, strict=True)]
        logits = model.forward(new, cache, rows="all")
        for i, part in enumerate(np.split(logits, np.cumsum([len(t) for t in new])[:-1])):
            got[i].append(part)
        at = [a + len(t) for a, t in zip(at, new, strict=True)]
    for text, parts, reached in zip(TEXTS, got, at, strict=True):
        np.testing.assert_allclose(np.concatenate(parts), whole(model, text)[:reached], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15)
@given(plan=chunkings())
def test_exact_mode_gives_the_same_bits_for_any_chunking(name: str, plan: list[list[int]]) -> None:
    """With ``exact`` a token's float32 logits do not depend, to the last bit, on what else is in the pass."""
    model = replace(random_transformer(SHAPES[name], dtype=np.float32), exact=True)
    cache, at = model.new_cache(3), [0, 0, 0]
    wanted = [whole(model, text) for text in TEXTS]
    for counts in plan:
        new = [text[a : a + n] for text, a, n in zip(TEXTS, at, counts, strict=True)]
        logits = model.forward(new, cache, rows="all")
        alone = [w[a : a + len(t)] for w, a, t in zip(wanted, at, new, strict=True)]
        assert (logits == np.concatenate(alone)).all()
        at = [a + len(t) for a, t in zip(at, new, strict=True)]


def test_exact_mode_holds_at_the_widths_of_the_shipped_family() -> None:
    """d 192, 6 heads over 2, FFN 512: chunks of 1 to 8 beside other sequences, every logit the same to the last bit."""
    layer = Layer(Attention(6, 2, 32, 32), Ffn(512))
    model = random_transformer(ModelShape("primary", 192, 1024, (layer,) * 4), dtype=np.float32)
    model.exact = True
    text, cache, at = RNG.integers(0, 1024, 60), model.new_cache(3), 0
    want = whole(model, text)
    for count in (20, 1, 5, 2, 8, 1, 1, 7, 15):
        batch = [text[:3], text[at : at + count], text[5 : 5 + count]]
        logits = model.forward(batch, cache, rows=list(range(3, 3 + count)))
        assert (logits == want[at : at + count]).all()
        at += count


def test_without_exact_mode_the_last_bits_do_depend_on_the_batch() -> None:
    """The reason for ``exact``: BLAS rounds a row otherwise when it comes with others (if this fails, drop it)."""
    model = random_transformer(replace(small_shape(), d_model=64), dtype=np.float32)
    text = RNG.integers(0, 31, 40)
    cache = model.new_cache()
    steps = np.concatenate([model.forward([text[i : i + 1]], cache) for i in range(len(text))])
    assert (steps != whole(model, text)).any()
    np.testing.assert_allclose(steps, whole(model, text), rtol=1e-3, atol=1e-4)


TREE = TreeMask((-1, -1, 0, 0, 1, 2, 5))  # 0 -> (2 -> 5 -> 6, 3); 1 -> 4
BRANCHES = ([0, 2, 5, 6], [0, 3], [1, 4])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tree_nodes_get_the_logits_of_their_branch(name: str, exact: bool) -> None:
    """A tree pass gives each node what decoding its branch as plain text gives; in exact mode, bit for bit."""
    model = replace(random_transformer(SHAPES[name], dtype=np.float32), exact=True) if exact else MODELS[name]
    drafted = RNG.integers(0, 31, 7)
    cache = model.new_cache(2)
    model.forward([TEXTS[0], TEXTS[1]], cache, rows="none")
    logits = model.forward([drafted, drafted], cache, rows="all", tree=TREE)
    for row, text in ((0, TEXTS[0]), (7, TEXTS[1])):
        for branch in BRANCHES:
            chain = whole(model, np.concatenate([text, drafted[branch]]))[len(text) :]
            tree = logits[row + np.array(branch)]
            if exact:
                assert (tree == chain).all()
            np.testing.assert_allclose(tree, chain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("branch", [[0, 2, 5], [1, 4], [0], []])
def test_keeping_a_branch_continues_as_if_it_had_been_plain_text(name: str, branch: list[int]) -> None:
    """After ``keep`` the cache holds the prompt and the branch, nothing of the rest of the tree."""
    model = MODELS[name]
    drafted, more = RNG.integers(0, 31, 7), RNG.integers(0, 31, 3)
    cache = model.new_cache()
    model.forward([TEXTS[0]], cache, rows="none")
    model.forward([drafted], cache, rows="none", tree=TREE)
    cache.keep(0, branch)
    assert cache.lengths[0] == len(TEXTS[0]) + len(branch)
    plain = whole(model, np.concatenate([TEXTS[0], drafted[branch], more]))
    np.testing.assert_allclose(model.forward([more], cache, rows="all"), plain[-3:], rtol=1e-9, atol=1e-9)


def test_truncation_forgets_a_rejected_draft() -> None:
    """Roll-back then other tokens equals never having drafted."""
    model = MODELS["mixed"]
    cache = model.new_cache()
    model.forward([TEXTS[0]], cache)
    cache.truncate(0, 6)
    again = model.forward([TEXTS[1][:5]], cache, rows="all")
    plain = whole(model, np.concatenate([TEXTS[0][:6], TEXTS[1][:5]]))[6:]
    np.testing.assert_allclose(again, plain, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="length: 99 is not allowed, sequence 0 holds 11"):
        cache.truncate(0, 99)


def test_forks_go_their_own_way_from_one_prompt() -> None:
    """Copies of a sequence share its past and not its future."""
    model = MODELS["full"]
    cache = model.new_cache(2)
    model.forward([TEXTS[0]], cache, [1])
    copies = cache.fork(1, 2)
    assert copies == [2, 3]
    tails = [TEXTS[1][:4], TEXTS[2][:2]]
    logits = model.forward(tails, cache, copies, rows="last")
    for got, tail in zip(logits, tails, strict=True):
        np.testing.assert_allclose(got, whole(model, np.concatenate([TEXTS[0], tail]))[-1], rtol=1e-9, atol=1e-9)
    assert cache.lengths.tolist() == [0, 19, 23, 21]


def test_a_token_outside_the_window_changes_nothing() -> None:
    """One windowed layer: logits depend on the last ``window`` tokens only, and do depend on the first of these."""
    model = random_transformer(small_shape(5, layers=1))
    base = whole(model, TEXTS[0])[-1]
    for distance, same in ((5, True), (4, False)):
        other = TEXTS[0].copy()
        other[-1 - distance] = (other[-1 - distance] + 1) % 31
        assert np.allclose(whole(model, other)[-1], base, rtol=1e-12) is same


def test_rows_pick_logits_without_changing_them() -> None:
    """``last``, ``none`` and a list are rows of ``all``; sequences without new tokens have no last row."""
    model = MODELS["full"]
    texts = [TEXTS[0], TEXTS[1][:0], TEXTS[2]]
    every = model.forward(texts, model.new_cache(3), rows="all")
    np.testing.assert_allclose(model.forward(texts, model.new_cache(3)), every[[18, 32]], rtol=1e-9, atol=1e-9)
    picked = model.forward(texts, model.new_cache(3), rows=[3, 20])
    np.testing.assert_allclose(picked, every[[3, 20]], rtol=1e-9, atol=1e-9)
    assert model.forward(texts, model.new_cache(3), rows="none").shape == (0, 31)


def test_hidden_states_lead_to_the_logits() -> None:
    """State 0 is the embedding; the last one through the head gives the logits; a list of layers gives just these."""
    model = MODELS["full"]
    logits, hidden = model.forward([TEXTS[0]], model.new_cache(), rows="all", return_hidden=True)
    assert sorted(hidden) == [0, 1, 2]
    np.testing.assert_array_equal(hidden[0], model.weights["embed"][TEXTS[0]])
    np.testing.assert_array_equal(model.head(hidden[2]), logits)
    _, one = model.forward([TEXTS[0]], model.new_cache(), return_hidden=[1])
    np.testing.assert_array_equal(one[1], hidden[1])


def test_early_exit_is_the_head_on_an_early_state() -> None:
    """The first layer alone gives the logits of the full model's first hidden state."""
    model = MODELS["full"]
    _, hidden = model.forward([TEXTS[0]], model.new_cache(), return_hidden=[1])
    early = model.early_exit(1)
    np.testing.assert_allclose(whole(early, TEXTS[0]), model.head(hidden[1]), rtol=1e-12)
    full_cache = model.new_cache()  # an early exit may draft into the full model's cache
    early.forward([TEXTS[0]], full_cache)
    assert full_cache.lengths[0] == 19


def test_a_matformer_slice_equals_zeroing_the_other_units() -> None:
    """The first m hidden units alone compute what the full FFN computes with the others set to zero."""
    model = MODELS["biased"]
    zeroed = {k: v.copy() for k, v in model.weights.items()}
    for i in range(2):
        zeroed[f"layers.{i}.mlp.down"][4:] = 0
    small = model.sliced(4)
    np.testing.assert_allclose(whole(small, TEXTS[0]), whole(replace(model, weights=zeroed), TEXTS[0]), rtol=1e-9)
    assert small.shape.layers[0].ffn.width == 4
    with pytest.raises(ValueError, match="width: 11 is not allowed in layer 0"):
        model.sliced(11)


def test_mixture_of_experts_against_a_loop_over_tokens() -> None:
    """Routing by a plain loop: softmax over all experts, the two best, weights that add up to one."""
    model = MODELS["moe"]
    x = np.random.default_rng(0).normal(size=(9, 16))
    want = []
    for row in x:
        scores = np.exp(row @ model.weights["layers.0.moe.router"])
        best = sorted(range(4), key=lambda e: -scores[e])[:2]
        total = 0
        for e in best:
            gate, up = np.split(row @ model.weights["layers.0.moe.up"][e], 2)
            hidden = gate / (1 + np.exp(-gate)) * up
            total = total + scores[e] / sum(scores[b] for b in best) * (hidden @ model.weights["layers.0.moe.down"][e])
        want.append(total)
    np.testing.assert_allclose(model.moe(0, x), np.stack(want), rtol=1e-9)


def encoder_decoder() -> ModelShape:
    """A small T5: two layers each side."""
    own = Attention(2, 2, 6, 6, rope=False)
    ffn = Ffn(10, gated=False, activation="relu")
    decoder, encoder = Layer(own, ffn, norms=3, cross=own), Layer(replace(own, causal=False), ffn)
    return ModelShape("t5", 16, 31, (decoder,) * 2, (encoder,) * 2)


@pytest.mark.parametrize("exact", [False, True])
def test_encoder_decoder_batches_like_single_sequences(exact: bool) -> None:
    """Ragged sources and targets give each pair what it gets alone."""
    model = replace(random_transformer(encoder_decoder()), exact=exact)
    cache = model.new_cache(2)
    model.encode([TEXTS[0], TEXTS[1]], cache)
    both = model.forward([TEXTS[2][:6], TEXTS[2][6:9]], cache, rows="all")
    for source, target, got in ((TEXTS[0], TEXTS[2][:6], both[:6]), (TEXTS[1], TEXTS[2][6:9], both[6:])):
        alone = model.new_cache()
        model.encode([source], alone)
        want = model.forward([target], alone, rows="all")
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        if exact:
            assert (got == want).all()
    with pytest.raises(ValueError, match="sequence 0: encode its source text before decoding"):
        model.forward([TEXTS[0]], model.new_cache())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "token too large": ({"tokens": [np.array([1, 31])]}, r"sequence 0: 31 is outside .*allowed are 0\.\.30"),
    "token negative": ({"tokens": [np.array([-1])]}, r"sequence 0: -1 is outside the vocabulary"),
    "floats": ({"tokens": [np.array([1.0])]}, r"a flat array of integers, not float64\(1,\)"),
    "unknown sequence": ({"tokens": [np.array([1])], "sequences": [2]}, r"sequences: 2 is not allowed.*0\.\.1"),
    "twice": ({"tokens": [np.array([1])] * 2, "sequences": [0, 0]}, r"sequences: \[0, 0\] repeats one"),
    "nothing": ({"tokens": []}, r"an empty batch is not allowed"),
    "tree size": ({"tokens": [np.array([1])], "tree": TREE}, r"tree: 7 nodes are not allowed for 1 new tokens"),
    "row": ({"tokens": [np.array([1])], "rows": [1]}, r"rows: \[1\] not allowed, the pass has tokens 0\.\.0"),
    "rows": ({"tokens": [np.array([1])], "rows": "first"}, r"rows: 'first' is not allowed"),
    "hidden": ({"tokens": [np.array([1])], "return_hidden": [9]}, r"return_hidden: \[9\] not allowed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_passes_are_refused_and_leave_no_trace(case: str) -> None:
    """A refused pass raises one clear line, counts nothing and leaves the cache as it was."""
    model = random_transformer(small_shape())
    cache = model.new_cache(2)
    model.forward([TEXTS[0]], cache)
    model.meter.reset()
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        model.forward(options.pop("tokens"), cache, options.pop("sequences", None), **options)
    assert "\n" not in str(caught.value)
    assert cache.lengths.tolist() == [19, 0] and not model.meter.flops


def test_shapes_the_witness_cannot_run_are_refused() -> None:
    """A feature that would be passed over in silence is an error instead."""
    with pytest.raises(ValueError, match="small: latent attention, sinks.*not supported by the witness"):
        random_transformer(small_shape(sinks=True))


def test_a_tree_whose_parents_come_later_is_refused() -> None:
    """Nodes are listed after their parents."""
    with pytest.raises(ValueError, match=r"parents\[0\]: 1 is not allowed"):
        TreeMask((1, -1))
