"""Early exit, distillation and pruning for real: counts of what is left, losslessness of self-drafts, what is lost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_twin_matformer import nats_and_choices
from variant_counts import differences, run

from sim.policies.speculative import Speculative
from sim.reference.checkpoint import load, shipped_names
from sim.reference.decoding import decode
from sim.reference.sampling import Sampler
from sim.reference.twins import autoregressive, speculative
from sim.reference.variants import distilled, early_exit, pruning
from sim.validation.counts import added, decoded, measured, mismatches, simulated
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out
from sim.variants.distilled import Distilled
from sim.variants.early_exit import EarlyExit
from sim.variants.pruning import Pruning

GREEDY = Sampler(0.0)
PASSES = st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2).filter(sum), min_size=1, max_size=3)
ROWS = st.sampled_from(["last", "all", "none"])
EXITS = st.integers(1, 4) | st.lists(st.integers(0, 3), min_size=1, unique=True).map(sorted)
family = pytest.mark.skipif("primary" not in shipped_names(), reason="no trained family")


def deep(layers=4):
    """A stand-in decoder with biases on queries, keys and values."""
    shape = dense(16, layers, 4, 2, 24, 40)
    one = replace(shape.layers[0], attention=replace(shape.layers[0].attention, qkv_bias=True))
    return stand_in(replace(shape, layers=(one,) * layers))


@settings(max_examples=40, deadline=None)
@given(layers=EXITS, passes=PASSES, rows=ROWS)
def test_an_early_exit_counts_as_the_variant_says(layers, passes, rows):
    """A prefix or any subset of the layers: FLOPs and bytes of every op."""
    base = deep()
    twin = early_exit.twin(base, layers)
    assert twin.shape == EarlyExit(layers).reshape(base.shape)
    assert not differences(base.shape, run(twin, passes, rows), twin, EarlyExit(layers))


@settings(max_examples=20, deadline=None)
@given(every=st.integers(1, 5), passes=PASSES, rows=ROWS)
def test_a_student_counts_as_the_variant_says(every, passes, rows):
    """Every other layer, or every n-th."""
    base = deep()
    twin = distilled.twin(base, every)
    assert not differences(base.shape, run(twin, passes, rows), twin, Distilled(every))


@settings(max_examples=40, deadline=None)
@given(
    layers=st.lists(st.integers(0, 3), min_size=2, max_size=2, unique=True).map(sorted),
    heads=st.lists(st.sampled_from([2, 4]), min_size=2, max_size=2),
    ffn=st.lists(st.integers(1, 24), min_size=2, max_size=2),
    d_model=st.sampled_from([None, 6, 16]), passes=PASSES, rows=ROWS,
)  # fmt: skip
def test_a_pruned_model_counts_as_the_variant_says(layers, heads, ffn, d_model, passes, rows):
    """Depth, heads, hidden units and width, uneven over layers: every op, and every parameter."""
    base = deep()
    twin = pruning.twin(base, layers=layers, heads=heads, ffn=ffn, d_model=d_model)
    variant = Pruning(layers=layers, heads=heads, ffn=ffn, d_model=d_model)
    assert twin.shape == variant.reshape(base.shape)
    assert sum(w.size for w in twin.weights.values()) == twin.shape.total_parameters
    assert not differences(base.shape, run(twin, passes, rows), twin, variant)


def test_cutting_what_is_zero_changes_nothing():
    """A head, a hidden unit and dimensions of the stream that are zero go first, and the logits stay as they were."""
    base = deep(1)
    weights = {key: w.copy() for key, w in base.weights.items()}
    weights["layers.0.attn.out"][8:] = 0  # the second group of two heads
    weights["layers.0.mlp.down"][[3, 17]] = 0
    whole = replace(base, weights=weights)
    cut = pruning.twin(whole, heads=[2], ffn=[22])
    assert cut.shape.layers[0].attention.kv_heads == 1
    tokens = [np.arange(7)]
    assert cut.forward(tokens, cut.new_cache(1)) == pytest.approx(whole.forward(tokens, whole.new_cache(1)), abs=1e-5)


def test_scattered_zeros_save_nothing():
    """Nine tenths of the weights zero: the meter counts every product and byte as before, and so does the variant."""
    base = deep()
    twin = pruning.zeroed(base, 0.9)
    share = np.mean([(w == 0).mean() for k, w in twin.weights.items() if k.startswith("layers.") and w.ndim == 2])
    assert share == pytest.approx(0.9, abs=0.02)
    works = run(twin, [[5, 2], [1, 1]])
    assert not differences(base.shape, works, twin) and not differences(
        base.shape, works, twin, Pruning(unstructured=0.9)
    )


@pytest.mark.parametrize("layers", [1, 3])
def test_an_early_exit_that_drafts_on_the_targets_cache_is_lossless_and_counts_alike(layers):
    """Greedy tokens are the target's; draft and verification passes count exactly."""
    target = replace(deep(), exact=True)
    prompts = [np.arange(5) % 40, np.arange(3) % 40]
    alone = decode(autoregressive.Twin(), target, prompts, 20, sampler=GREEDY)
    target.meter.reset()
    both = decode(
        speculative.Twin(early_exit.twin(target, layers), 3, shared=True), target, prompts, 20, sampler=GREEDY
    )
    assert [t.tokens for t in both] == [t.tokens for t in alone]
    variant = EarlyExit(layers)
    policy = Speculative({"model": "self", "variants": [{"early_exit": {"layers": layers}}], "kv": "shared"}, 3, 0.5)
    shapes = (target.shape, variant.reshape(target.shape))
    works = list(decoded(policy, both, (shapes[0].windows, shapes[1].windows)))
    ours = added(*(simulated(shapes[m], [w for k, w in works if k == m], "draft." * m) for m in (0, 1)))
    assert not [str(m) for m in mismatches(ours, measured(target.meter))]


def test_a_subset_of_layers_has_no_prefix_of_the_cache_to_share():
    """Layers 1 and 2 keep other keys than layers 0 and 1; with windows that differ by layer the session refuses."""
    base = deep()
    near = replace(base.shape.layers[0], attention=replace(base.shape.layers[0].attention, window=3))
    mixed = replace(base, shape=replace(base.shape, layers=(near, *base.shape.layers[1:])))
    twin = speculative.Twin(early_exit.twin(mixed, [1, 2]), 2, shared=True)
    with pytest.raises(ValueError, match="a slice or a prefix"):
        decode(twin, mixed, [np.arange(3)], 4)


@family
def test_what_cutting_costs_an_untrained_student():
    """Nats and argmax agreement of the shipped 4-layer primary on 16 windows of text A (docs/policies): cutting without
    training on ruins it, less so the more that stays; half of the weights zeroed by magnitude costs least."""
    base, tokens = load("primary"), np.array(held_out("a", 16, 128))
    nats, truth = nats_and_choices(base, tokens)
    cuts = {
        "exit 1": early_exit.twin(base, 1), "exit 2": early_exit.twin(base, 2), "exit 3": early_exit.twin(base, 3),
        "every 2": distilled.twin(base, 2), "half the units": pruning.twin(base, ffn=[224] * 4),
        "half zero": pruning.zeroed(base, 0.5),
    }  # fmt: skip
    lost = {name: nats_and_choices(net, tokens) for name, net in cuts.items()}
    agreed = {name: float((choices == truth).mean()) for name, (_, choices) in lost.items()}
    assert lost["exit 1"][0] > lost["exit 2"][0] > lost["exit 3"][0] > nats + 0.1
    assert lost["every 2"][0] > nats + 1 and lost["half zero"][0] - nats < lost["half the units"][0] - nats
    assert agreed["half zero"] > agreed["half the units"] > agreed["exit 1"]
