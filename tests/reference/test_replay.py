"""Acceptance replay: closed forms, hand counts, the direct sampler, coverage of the stated intervals."""

import itertools

import numpy as np
import pytest
from scipy import signal, stats

from sim.reference.decoding import verify
from sim.reference.replay import (
    acceptance_probabilities,
    iid_survival,
    kept_per_round,
    mean_beta,
    predict,
    survival_interval,
    survival_vector,
)
from sim.reference.sampling import draw, softmax, stream


def test_beta_by_hand():
    """min(1, q/p): .5/.4 is certain, .2/.35 is not."""
    p, q = np.array([[0.4, 0.35, 0.25]] * 2), np.array([[0.5, 0.2, 0.3]] * 2)
    assert acceptance_probabilities(p, q, np.array([0, 1])) == pytest.approx([1.0, 0.2 / 0.35])


def test_mean_beta_over_the_target_is_one_minus_total_variation():
    """E_p[beta] = sum min(p, q) = alpha (arXiv 2211.17192, corollary 3.6)."""
    p, q = (softmax(stream(1, name).normal(size=9)) for name in "pq")
    betas = acceptance_probabilities(np.tile(p, (9, 1)), np.tile(q, (9, 1)), np.arange(9))
    assert p @ betas == pytest.approx(1 - np.abs(p - q).sum() / 2)


def test_text_the_target_cannot_produce_is_refused():
    """p(x) = 0 is an error that names the position."""
    with pytest.raises(ValueError, match="token 1 at position 0 has probability 0"):
        acceptance_probabilities(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]), np.array([1]))


def test_rounds_by_hand():
    """accepts 1 1 0 1 1 1 0 0 1 .. at gamma 2: bonus after two, a rejection at once, ..."""
    accepts = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=float)
    # starts: 0 (kept 2, bonus at 2) -> 3 (kept 2, bonus at 5) -> 6 (0) -> 7 (0) -> 8 (2) -> 11: no room for a round
    assert kept_per_round(accepts, 2, np.full(12, 0.5)).tolist() == [2, 2, 0, 0, 2]


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_constant_beta_is_geometric(gamma):
    """With beta = a everywhere the survival vector is a^k (Leviathan's capped geometric)."""
    assert survival_vector(np.full(400, 0.7), gamma) == pytest.approx(iid_survival(0.7, gamma))
    assert 1 + iid_survival(0.7, gamma).sum() == pytest.approx((1 - 0.7 ** (gamma + 1)) / 0.3)


@pytest.mark.parametrize("gamma", [1, 3])
def test_survival_is_the_sum_over_all_coins(gamma):
    """On a text of 7 tokens: enumerate the 2^7 outcomes, weigh them, count kept drafts of all rounds."""
    betas = np.array([0.9, 0.2, 0.7, 0.5, 0.95, 0.1, 0.6])
    rounds, reached = 0.0, np.zeros(gamma)
    for outcome in itertools.product([0, 1], repeat=len(betas)):
        weight = np.prod([b if hit else 1 - b for b, hit in zip(betas, outcome, strict=True)])
        kept = kept_per_round(np.array(outcome, dtype=float), gamma, np.full(7, 0.5))
        rounds += weight * len(kept)
        reached += weight * (kept[:, None] > np.arange(gamma)).sum(axis=0)
    assert survival_vector(betas, gamma) == pytest.approx(reached / rounds)


def test_replay_with_coins_agrees_with_the_expectation():
    """Mean kept drafts over many throws come to the survival vector's sum."""
    betas = stream(2, "betas").uniform(0.2, 1, size=300)
    kept = np.concatenate([kept_per_round(betas, 4, stream(s, "coins").random(300)) for s in range(400)])
    assert kept.mean() == pytest.approx(survival_vector(betas, 4).sum(), abs=4 * kept.std() / np.sqrt(len(kept)))


def markov_pair(vocab=6):
    """A target and a draft that look at the last token only: rows are next-token distributions."""
    p = softmax(1.5 * stream(5, "p").normal(size=(vocab, vocab)))
    return p, softmax(np.log(p) + stream(5, "q").normal(size=(vocab, vocab)))


def direct_rounds(p, q, gamma, tokens, luck):
    """Kept drafts per round of the real algorithm on the Markov pair, for as many rounds as surely fit."""
    last, kept, emitted = 0, [], 0
    while emitted + gamma < tokens:
        chain = [last]
        for _ in range(gamma):
            chain.append(draw(q[chain[-1]], luck.random()))
        n, own = verify(chain[1:], p[chain], q[chain[:-1]], luck.random(gamma + 1))
        kept.append(n)
        emitted += n + 1
        last = own
    return kept


def replayed_rounds(p, q, gamma, tokens, luck):
    """The same from text sampled from p alone, and coins."""
    text = [0]
    for _ in range(tokens):
        text.append(draw(p[text[-1]], luck.random()))
    betas = acceptance_probabilities(p[text[:-1]], q[text[:-1]], np.array(text[1:]))
    return kept_per_round(betas, gamma, luck.random(tokens)).tolist()


@pytest.mark.parametrize("gamma", [1, 4])
def test_replay_reproduces_the_direct_sampler_in_distribution(gamma):
    """Histograms of (kept in a round, kept in the next) agree: chi-square over 4,000 texts each way, alpha 1e-3."""
    p, q = markov_pair()
    table = np.zeros((2, gamma + 1, gamma + 1))
    for way, run in enumerate((direct_rounds, replayed_rounds)):
        luck = stream(7, run.__name__, gamma)
        for _ in range(4000):
            kept = run(p, q, gamma, 3 * (gamma + 1), luck)  # the second and third round: starts are no longer fixed
            table[way, kept[1], kept[2]] += 1
    assert stats.chi2_contingency(table.reshape(2, -1)[:, table.sum(axis=0).ravel() > 0]).pvalue > 1e-3


def test_a_wrong_beta_is_caught_by_that_comparison():
    """Replaying with alpha in place of beta fails the same chi-square by far, so it has the power it claims."""
    p, q = markov_pair()
    luck = stream(7, "direct")
    kept = [direct_rounds(p, q, 4, 15, luck)[1:3] for _ in range(4000)]
    alphas = np.minimum(p, q).sum(axis=1)
    luck = stream(8, "wrong")
    wrong = [kept_per_round(np.full(15, alphas.mean()), 4, luck.random(15))[1:3] for _ in range(4000)]
    counts = [np.bincount(np.array(k) @ [5, 1], minlength=25) for k in (kept, wrong)]
    table = np.array(counts)[:, np.sum(counts, axis=0) > 0]
    assert stats.chi2_contingency(table).pvalue < 1e-5


def drifting_betas(seed, tokens):
    """Betas with the autocorrelation that text has: difficulty is an AR(1) process with a memory of ten tokens."""
    noise = stream(seed, "drift").normal(size=tokens) * np.sqrt(1 - 0.9**2)
    level = signal.lfilter([1], [1, -0.9], noise)
    return 1 / (1 + np.exp(-1 - 1.5 * level))


def long_run():
    """Tokens per round of the drifting process over 800,000 tokens."""
    return 1 + survival_vector([drifting_betas(10_000 + s, 20_000) for s in range(40)], 4).sum()


def coverage(runs, truth):
    """Share of intervals that hold the truth."""
    return np.mean([r.tokens_per_round_low <= truth <= r.tokens_per_round_high for r in runs])


def test_bootstrap_intervals_cover():
    """95 % intervals from 3,000 tokens hold the long-run value in at least 88 % of 150 repetitions (blocks of 64)."""
    truth = long_run()
    runs = [survival_interval(drifting_betas(s, 3000), 4, resamples=300, seed=s) for s in range(150)]
    assert 0.88 <= coverage(runs, truth) < 1.0


def test_single_token_blocks_would_not_cover():
    """With blocks of one token the interval ignores correlation and covers too seldom: blocks earn their keep."""
    runs = [survival_interval(drifting_betas(s, 3000), 4, block_tokens=1, resamples=99, seed=s) for s in range(20)]
    assert coverage(runs, long_run()) < 0.7


def test_prediction_for_a_disjoint_text_holds_at_its_level():
    """Acceptance of one text predicts tokens per round on another: at least 85 % of the 95 % intervals hold."""
    runs = [predict(drifting_betas(s, 3000), drifting_betas(1000 + s, 3000), 4, resamples=300) for s in range(80)]
    assert np.mean([run.holds for run in runs]) >= 0.85


def test_iid_fails_where_difficulty_is_shared_and_the_survival_vector_does_not():
    """Half of the texts easy (.95), half hard (.45): alpha is .7, but most rounds are spent in the hard half."""
    easy_and_hard = [np.full(400, level) for level in [0.95, 0.45] * 20]
    p = predict(easy_and_hard, easy_and_hard[:20], 7)
    rate = [(1 - a**8) / (1 - a) for a in (0.95, 0.45)]
    # rounds weigh by 1 / rate: tokens over rounds
    assert p.measured == pytest.approx(2 / (1 / rate[0] + 1 / rate[1]), rel=0.02)
    assert abs(p.error) < 0.01
    assert mean_beta(easy_and_hard) == pytest.approx(0.7)
    assert p.iid_error == pytest.approx(3.1412 / 2.8569 - 1, rel=0.1)  # 10 % too many


@pytest.mark.parametrize(("betas", "gamma"), [(np.ones(4), 4), (np.ones(9), 0), ([np.ones(2), np.ones(3)], 5)])
def test_too_little_text_or_no_draft_is_refused(betas, gamma):
    """One line that says what is missing."""
    with pytest.raises(ValueError, match="^replay: "):
        survival_vector(betas, gamma)
