"""Adaptive drafts: the law of stopping by enumeration and frequency, ragged passes by counting keys, run counts."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from scipy.special import betainc

from sim import Scenario, simulate
from sim.policies import Future
from sim.policies.adaptive import SKILL, TOKENS, Adaptive
from sim.policies.guided import Guided
from sim.policies.predicted import Rule, incomplete_beta, stopping
from sim.policies.ragged import Ragged, behind
from sim.serving.luck import Luck
from sim.speedup import Ratio, curve
from workloads import acceptance as measured

KINDS = [
    ("tokens", {"kind": "tokens", "mean": 0.7, "concentration": 1.3}),
    ("beta", {"kind": "beta", "mean": 0.7, "concentration": 2.0}),
    ("rule", {"kind": "rule", "go": 0.6, "on": 0.9, "off": 0.4}),
    ("iid", 0.8),
    ("counts", {"kind": "counts", "tokens": 300, "rounds": 100, "drafts": 320}),
    ("empirical", {"kind": "empirical", "betas": [0.9, 0.2, 1.0, 0.6, 0.0, 0.8, 1.0]}),
]
LAWS = pytest.mark.parametrize("acceptance", [a for _, a in KINDS], ids=[n for n, _ in KINDS])
LAST = pytest.mark.parametrize("last", ["kept", "dropped"])


# --- the law


def test_incomplete_beta_is_scipys() -> None:
    """The continued fraction agrees with scipy over ten orders of magnitude of its parameters."""
    rng = np.random.default_rng(0)
    for x, a, b in zip(rng.random(400), 10 ** rng.uniform(-3, 4, 400), 10 ** rng.uniform(-3, 4, 400), strict=True):
        assert incomplete_beta(x, a, b) == pytest.approx(betainc(a, b, x), abs=1e-9)


def test_means_by_hand() -> None:
    """Two drafts at most, goes on half the time, keeps 0.8 of the good and 0.2 of the bad: every path added up."""
    law = {"kind": "rule", "go": 0.5, "on": 0.8, "off": 0.2}
    kept, dropped = (Adaptive("d", 2, last=last, acceptance=law).means for last in ("kept", "dropped"))
    # stop at 1: 0.5, one draft kept with 0.2; stop at 2: 0.25 (0.8, then 0.2); never: 0.25 (0.8, then 0.8)
    assert kept.tokens == pytest.approx(1 + 0.5 * 0.2 + 0.25 * (0.8 + 0.16) + 0.25 * (0.8 + 0.64))
    assert (kept.drafts, kept.passes) == (1.5, 1.5)
    assert dropped.tokens == pytest.approx(1 + 0.25 * 0.8 + 0.25 * (0.8 + 0.64))
    assert (dropped.drafts, dropped.passes) == (0.75, 1.5)
    assert Adaptive("d", 2, acceptance=law).wall_time_factor(0.1) == pytest.approx(kept.tokens / 1.15)


@LAST
@pytest.mark.parametrize("kind", ["tokens", "beta"])
@pytest.mark.parametrize("skill", [0.0, 0.4, 1.0])
def test_difficulty_by_brute_force(kind: str, skill: float, last: str) -> None:
    """Closed forms against 200,000 rounds played out token by token from the model's own words."""
    policy = Adaptive("d", 4, 0.6, skill=skill, last=last, acceptance={"kind": kind, "mean": 0.7, "concentration": 2.0})
    rng, rounds = np.random.default_rng(1), 200_000
    shape = (rounds, 4)
    b = rng.beta(1.4, 0.6, shape if kind == "tokens" else (rounds, 1)) * np.ones(shape)
    seen = np.where(rng.random(shape) < skill, b, rng.beta(1.4, 0.6, shape))
    going = np.cumprod(seen >= 0.6, axis=1)
    offered = going if last == "dropped" else np.concatenate([np.ones((rounds, 1)), going[:, :-1]], axis=1)
    kept = np.cumprod((rng.random(shape) < b) * offered, axis=1).sum(axis=1)
    passes = 1 + going[:, :-1].sum(axis=1)
    for got, want in zip((kept + 1, offered.sum(axis=1), passes), policy.means, strict=True):
        assert abs(got.mean() - want) < 4.5 * got.std() / rounds**0.5 + 1e-12


@LAST
@LAWS
def test_luck_follows_the_law(acceptance: Any, last: str) -> None:
    """Tokens, drafts and passes a round over 40,000 rounds lie within 4.5 standard errors of the closed forms."""
    policy = Adaptive("d", 5, 0.55, last=last, acceptance=acceptance)
    future = policy.future(Luck(3).of(0), 0, 90_000)
    for got, want in zip(
        (future.kept + 1, future.drafted, policy.ragged.runs(future.drafted)), policy.means, strict=True
    ):
        error = float(got.std()) / len(got) ** 0.5
        assert abs(float(got.mean()) - want) <= 4.5 * error + 1e-3 and error < 0.02


def test_a_router_that_knows_drafts_less_and_loses_less() -> None:
    """More skill: more of the drafts kept; threshold 0: the chain; a higher threshold: shorter drafts."""
    shares = [(m.tokens - 1) / m.drafts for m in (Adaptive("d", 8, skill=s).means for s in (0.0, 0.3, 0.6, 1.0))]
    assert shares == sorted(shares) and shares[-1] > 1.15 * shares[0]
    assert Adaptive("d", 8, 0.0).means.drafts == pytest.approx(8)
    assert Adaptive("d", 8, 0.0).means.tokens == pytest.approx(1 + sum(0.71**k for k in range(1, 9)))
    lengths = [Adaptive("d", 8, t).means.drafts for t in (0.1, 0.3, 0.6, 0.9)]
    assert lengths == sorted(lengths, reverse=True)
    assert set(SKILL) == {"router", "confidence", "entropy"}


def test_the_default_is_the_shipped_pairs() -> None:
    """Mean and concentration of the default are the first two moments of the pair that it names."""
    betas = measured.load("primary--drafter")
    mean = betas.mean()
    assert TOKENS["mean"] == pytest.approx(mean, abs=0.005)
    assert TOKENS["concentration"] == pytest.approx(mean * (1 - mean) / betas.var() - 1, abs=0.05)


def test_thresholds_meet_the_same_luck() -> None:
    """In the same round a rule that goes on more often never stops earlier."""
    futures = [
        Adaptive("d", 6, acceptance={"kind": "rule", "go": go, "on": 0.9, "off": 0.9}).future(Luck(4).of(0), 0, 4000)
        for go in (0.3, 0.6, 0.9)
    ]
    for less, more in pairwise(futures):
        assert (less.drafted[:300] <= more.drafted[:300]).all() and (less.kept[:300] <= more.kept[:300]).all()


# --- along a text


def exact_means(betas: list[float], go: list[float], most: int, dropped: bool) -> tuple[float, float]:
    """(tokens, drafts) a round by the stationary distribution over the places of a ring, solved as a linear system."""
    n = len(betas)
    moves, tokens, drafts = np.zeros((n, n)), np.zeros(n), np.zeros(n)
    for at in range(n):
        for stop in range(1, most + 2):
            p = float(np.prod([go[(at + i) % n] for i in range(stop - 1)]))
            p *= 1.0 if stop > most else 1.0 - go[(at + stop - 1) % n]
            offered = stop - 1 if dropped else min(stop, most)
            drafts[at] += p * offered
            for kept in range(offered + 1):
                q = float(np.prod([betas[(at + i) % n] for i in range(kept)]))
                q *= 1.0 if kept == offered else 1.0 - betas[(at + kept) % n]
                tokens[at] += p * q * (kept + 1)
                moves[at, (at + kept + 1) % n] += p * q
    system = np.vstack([moves.T - np.eye(n), np.ones(n)])
    weight = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)[0]
    return float(weight @ tokens), float(weight @ drafts)


@LAST
@pytest.mark.parametrize("predicted", [None, [0.8, 0.9, 0.1, 0.7, 0.6, 0.2, 0.9]])
def test_a_text_by_its_stationary_distribution(last: str, predicted: Any) -> None:
    """Tokens and drafts a round along a ring of seven places, with a rule of some skill and as predicted."""
    betas = [0.9, 0.2, 1.0, 0.6, 0.0, 0.8, 0.95]
    spec = {"kind": "empirical", "betas": betas} | ({} if predicted is None else {"predicted": predicted})
    policy = Adaptive("d", 3, 0.55, skill=0.7, last=last, acceptance=spec)
    assert isinstance(policy.walk, Guided)
    tokens, drafts = exact_means(betas, list(policy.walk.go), 3, last == "dropped")
    assert policy.means.tokens == pytest.approx(tokens, rel=1e-3)
    assert policy.means.drafts == pytest.approx(drafts, rel=1e-3)


# --- passes


def attended(new: int, cached: int, window: int | None) -> tuple[int, int]:
    """(pairs, reads) of ``new`` queries after ``cached`` tokens, key by key."""
    keys = [[k for k in range(cached + i + 1) if window is None or k > cached + i - window] for i in range(new)]
    return sum(map(len, keys)), sum(k < cached for k in keys[0])


def draft_cache(draft: list[tuple[int, int]], ragged: Ragged, context: int) -> list[tuple[int, int, int, int]]:
    """(target's cached, draft's cached, offered, passes) before each round, token by token, rounds (offered, kept)."""
    target, drafted, out = context, context, []
    for offered, kept in draft:
        runs = int(ragged.runs(np.array([offered]))[0])
        out.append((target, drafted, offered, runs))
        if runs:
            drafted = min(target + runs, target + kept + 1)
        target += kept + 1
    return out


@pytest.mark.parametrize("kinds", [(None,), (None, 7), (5,)])
@pytest.mark.parametrize(
    "ragged", [Ragged(3), Ragged(3, spare=True), Ragged(3, fed=True)], ids=["bare", "spare", "fed"]
)
def test_ragged_passes_by_hand(ragged: Ragged, kinds: tuple[int | None, ...]) -> None:
    """Three sequences of random rounds, drafts of no token included: every pass, every key, catch-up included."""
    rng, windows = np.random.default_rng(5), (kinds, kinds[::-1])
    samples = []
    for context in (9, 4, 17):
        offered = rng.integers(0, 4, 14)
        samples.append((context, [(int(d), int(rng.integers(0, d + 1))) for d in offered]))
    caches = [draft_cache(rounds, ragged, context) for context, rounds in samples]
    rows = np.sum([ragged.rows(future(rounds), context, windows) for context, rounds in samples], axis=0)
    assert len(rows) == ragged.channels(windows)
    for number in range(14):
        now = [cache[number] for cache in caches]
        want = [by_hand(now, j, kinds[::-1], ragged) for j in range(1, 4)]
        news = [(1 + offered, target) for target, _, offered, _ in now]
        want.append((0, sum(n for n, _ in news), sum(n for n, _ in news), *counts(news, kinds)))
        got = [
            (one.model, one.work.tokens, one.work.logit_rows, one.work.decode_pairs, one.work.decode_reads)
            for one in ragged.passes(3, rows[:, number].tolist(), None, windows)
        ]
        assert got == want


def counts(news: list[tuple[int, int]], kinds: tuple[int | None, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(pairs, reads) by kind of passes of (new, cached) tokens."""
    each = [[attended(n, c, w) for n, c in news] for w in kinds]
    return tuple(sum(p for p, _ in one) for one in each), tuple(sum(r for _, r in one) for one in each)


def by_hand(now: Any, j: int, kinds: tuple[int | None, ...], ragged: Ragged) -> tuple[Any, ...]:
    """Draft pass j: the first catches up and asks for logits only where a token is wanted."""
    live = [(target, drafted, offered) for target, drafted, offered, runs in now if runs >= j]
    news = [(1 + t - d, d) if j == 1 else (1, t + j - 1) for t, d, _ in live]
    rows = sum(offered > 0 for _, _, offered in live) if ragged.fed and j == 1 else len(live)
    return (1, sum(n for n, _ in news), rows, *counts(news, kinds))


def future(rounds: list[tuple[int, int]]) -> Future:
    """A future of rounds (offered, kept)."""
    drafted, kept = (np.array(c, dtype=np.int64) for c in zip(*rounds, strict=True))
    return Future(kept + 1, np.cumsum(kept + 1) - kept - 1, kept, drafted)


def test_behind_by_hand() -> None:
    """A round that keeps all leaves one token; rounds without a pass leave all of theirs; others none."""
    kept, runs = (np.array(c) for c in zip(*[(2, 2), (0, 0), (0, 0), (1, 3), (0, 1), (1, 1)], strict=True))
    assert behind(kept, runs).tolist() == [0, 1, 2, 3, 0, 0]


def test_a_shared_cache_reads_no_prompts_and_is_never_behind() -> None:
    """A draft that works on the target's cache."""
    ragged, windows = Ragged(2, shared=True), ((None,), (None,))
    rows = ragged.rows(future([(2, 2), (1, 1), (2, 0)]), 10, windows)
    late = rows[1 + 2 + 2]
    assert late.tolist() == [0, 0, 0]
    assert [one.model for one in ragged.passes(0, None, None, windows)] == [0]


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "policy.gamma: 0 is not a whole number from 1 to 64"),
        ({"threshold": 1.5}, "policy.threshold: 1.5 is not a probability from 0 to 1"),
        ({"rule": "luck"}, "policy.rule: 'luck' is not one of router, confidence, entropy"),
        ({"last": "lost"}, "policy.last: 'lost' is not one of kept, dropped"),
        ({"acceptance": {"kind": "token", "mean": 0.5}}, "policy.acceptance.kind: 'token' is not one of iid, tokens"),
        ({"acceptance": {"kind": "rule", "go": 0.5}}, "policy.acceptance: kind rule takes go, off, on, got ['go']"),
        ({"acceptance": {"kind": "counts", "tokens": 9, "rounds": 4, "drafts": 2}}, "policy.acceptance.drafts: 2 in 4"),
        ({"acceptance": {"kind": "counts", "tokens": 99, "rounds": 4, "drafts": 9}}, "policy.acceptance.tokens: 99 in"),
        (
            {"acceptance": {"kind": "empirical", "betas": [0.5, 0.5], "predicted": [1]}},
            "policy.acceptance.predicted: [1] is not a list of 2 numbers",
        ),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    with pytest.raises(ValueError) as caught:
        Adaptive("d", **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# --- published counts, and a whole run

C_GECKO = 1 / 6.397  # a decode step of the secondary, in steps of the primary (published, Tandem deck)
RUNS = {"rounds": 54.67, "drafts": 271.63}  # arXiv 2402.08644v3, table 5, LM1B with adaptive blocks
TOKENS_LM1B = 2.756 * (51.53 + 360.73 * C_GECKO)  # of a response: the fixed block's decode-only speedup and run counts


def test_tandem_adaptive_blocks_from_run_counts() -> None:
    """3.040x on LM1B, decode only (table 9), within 2 %, from run counts and c, through the policy and the curve."""
    counts_ = f"{{kind: counts, tokens: {TOKENS_LM1B}, rounds: {RUNS['rounds']}, drafts: {RUNS['drafts']}}}"
    policy = f"{{name: adaptive, draft: llama-3.2-1b, gamma: 27, rule: router, threshold: 0.8, acceptance: {counts_}}}"
    scenario = Scenario.load("bench_speculative", [f"policy={policy}"])
    ours = curve(scenario, ratio=Ratio(C_GECKO)).row(0)["speedup"]
    assert ours == pytest.approx(3.040, rel=0.02)
    fixed = TOKENS_LM1B / (51.53 + 360.73 * C_GECKO)
    assert ours / fixed == pytest.approx(1.103, rel=0.02)


def test_counts_come_out_again() -> None:
    """What run counts went in as, the closed forms give back, whatever the last token does."""
    for last, (tokens, drafts) in product(("kept", "dropped"), ((350, 320), (120, 110), (250, 400))):
        law = {"kind": "counts", "tokens": tokens, "rounds": 100, "drafts": drafts}
        if last == "dropped" and tokens - 100 > drafts - 100:
            continue
        means = Adaptive("d", 6, last=last, acceptance=law).means
        assert (100 * means.tokens, 100 * means.passes) == pytest.approx((tokens, drafts), rel=1e-6)


def test_no_rule_is_better_than_what_was_published() -> None:
    """Under the law of tokens even an oracle needs more drafts than Tandem's router for as many tokens: its default."""
    law = stopping({"kind": "tokens", "mean": 0.904, "concentration": 3.0}, Rule(27, 0.8, 1.0, False))
    drafts = float(law.stops @ np.minimum(np.arange(1, 29), 27))
    assert drafts > RUNS["drafts"] / RUNS["rounds"]


def test_a_run_gains_what_the_policy_expects() -> None:
    """Tokens and drafts a round of a served trace are the closed forms' within 1.5 %, and passes stop when all do."""
    said = "{name: adaptive, draft: llama-3.2-1b, gamma: 6}"
    requests = simulate(Scenario.load("chat_h100", [f"policy={said}", "workload.requests=500"])).requests
    drafted, accepted, rounds = (int(requests[c].sum()) for c in ("drafted_tokens", "accepted_tokens", "rounds"))
    means = Adaptive("d", 6).means
    assert 1 + accepted / rounds == pytest.approx(means.tokens, rel=0.015)
    assert drafted / rounds == pytest.approx(means.drafts, rel=0.015)
