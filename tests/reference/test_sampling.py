"""Sampling from logits: distributions by hand, against a plain rewrite, and the addressed luck."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sim.reference.sampling import Sampler, draw, draw_rows, one_hot, softmax, stream

FLOATS = st.floats(-30, 30, allow_nan=False)
LOGITS = hnp.arrays(np.float64, st.integers(1, 12), elements=FLOATS)


def test_temperature_divides_logits():
    """At temperature 2 the odds of two tokens are the square root of those at temperature 1."""
    logits = np.log([0.64, 0.16, 0.2])
    p = Sampler(temperature=2).probabilities(logits)
    assert p[0] / p[1] == pytest.approx(2.0)
    assert Sampler().probabilities(logits) == pytest.approx([0.64, 0.16, 0.2])


def test_top_k_keeps_the_k_likeliest_and_ties():
    """Top-2 of .4 .3 .2 .1 renormalises to 4/7 and 3/7; a tie with the k-th stays."""
    assert Sampler(top_k=2).probabilities(np.log([0.1, 0.4, 0.2, 0.3])) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert Sampler(top_k=2).probabilities(np.log([0.5, 0.25, 0.25])) == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.39, [0, 1, 0, 0]), (0.5, [0, 4 / 7, 0, 3 / 7]), (0.75, [0, 4 / 9, 2 / 9, 3 / 9]), (1.0, [0.1, 0.4, 0.2, 0.3])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, expected):
    """Hand-counted nuclei of .4 .3 .2 .1."""
    assert Sampler(top_p=top_p).probabilities(np.log([0.1, 0.4, 0.2, 0.3])) == pytest.approx(expected)


def test_top_p_is_applied_after_temperature_and_top_k():
    """Nucleus mass is that of what top-k left: .4/.7 alone passes .5."""
    p = Sampler(top_k=2, top_p=0.55).probabilities(np.log([0.1, 0.4, 0.2, 0.3]))
    assert p == pytest.approx([0, 1, 0, 0])


def test_greedy_is_one_hot_at_the_first_maximum():
    """Temperature 0 puts everything on the lowest id among the largest logits."""
    assert Sampler(temperature=0).probabilities([[0.0, 2.0, 2.0], [5.0, 1.0, 0.0]]).tolist() == [[0, 1, 0], [1, 0, 0]]


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=FLOATS),
    st.floats(0.05, 3),
    st.integers(1, 9),
    st.floats(0.01, 1),
)
def test_rows_are_distributions_that_a_plain_rewrite_gives_too(logits, temperature, k, p):
    """Each row equals a loop over sorted tokens that stops at k tokens (ties in) and at mass p."""
    got = Sampler(temperature, k, p).probabilities(logits)
    for row, out in zip(logits, got, strict=True):
        assert out == pytest.approx(plain(row / temperature, k, p), abs=1e-12)


def plain(row, k, p):
    """Temperature is applied already; pure Python, one token at a time."""
    kth = sorted(row, reverse=True)[min(k, len(row)) - 1]
    weights = [math.exp(x - max(row)) if x >= kth else 0.0 for x in row]
    total = sum(weights)
    kept, mass = set(), 0.0
    for i in sorted(range(len(row)), key=lambda i: -row[i]):
        if mass >= p or not weights[i]:
            break
        kept.add(i)
        mass = sum(sorted((weights[j] / total for j in kept), reverse=True))
    left = sum(weights[i] for i in kept)
    return [weights[i] / left if i in kept else 0.0 for i in range(len(row))]


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_draw_never_returns_an_impossible_token(logits, uniform):
    """Tokens of probability 0 are not drawn, at either end of the uniform's range."""
    p = Sampler(top_k=1 + len(logits) // 2).probabilities(logits)
    for u in (uniform, 0.0, np.nextafter(1.0, 0.0)):
        assert p[draw(p, u)] > 0


def test_draw_inverts_the_cumulative_distribution():
    """Uniforms on a fine grid reproduce the probabilities."""
    p = np.array([0.0, 0.25, 0.5, 0.0, 0.25])
    grid = (np.arange(4000) + 0.5) / 4000
    tokens = draw_rows(np.tile(p, (4000, 1)), grid)
    assert np.bincount(tokens, minlength=5) / 4000 == pytest.approx(p)


def test_streams_are_addressed():
    """Equal addresses give equal numbers; any part of the address changes them; order of use does not."""
    a = stream(3, "draft", 1)
    stream(3, "verify", 1).random(10)
    first = a.random(4)
    assert (stream(3, "draft", 1).random(4) == first).all()
    others = [stream(4, "draft", 1), stream(3, "verify", 1), stream(3, "draft", 2), stream(3, "draft")]
    assert not any((g.random(4) == first).any() for g in others)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, key):
    """The error names the key, the value and what is allowed."""
    with pytest.raises(ValueError, match=f"^sampler: {key} is .*; allowed: ") as error:
        Sampler(**options)
    assert "\n" not in str(error.value)


def test_softmax_is_stable():
    """Logits of 1e4 neither overflow nor lose the ratio."""
    assert softmax([1e4, 1e4 + math.log(3)]) == pytest.approx([0.25, 0.75])
    assert one_hot([1], 3).tolist() == [[0, 1, 0]]
