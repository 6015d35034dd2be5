"""Speculative sampling on real logits: lossless in tokens and in distribution, and faults on purpose are caught."""

import numpy as np
import pytest
from scipy import stats
from small_models import exact_distribution, random_llama, teacher_forced

from sim.reference import decoding
from sim.reference.decoding import Round, decode, lenient_greedy, residual, verify
from sim.reference.replay import acceptance_probabilities, kept_per_round
from sim.reference.sampling import Sampler, one_hot, softmax, stream
from sim.reference.twins import _chain, autoregressive, make, names, speculative
from sim.reference.twins._chain import ChainSession, Draft, ModelDrafter, NoDrafter

PROMPT = np.array([1, 3, 0, 2, 2])
GREEDY = Sampler(temperature=0)
TOKENS = 4


def outputs(twin, target, sequences, tokens=TOKENS, seed=0, sampler=None):
    """Counts of each continuation of PROMPT over a batch of independent samples, [V^tokens]."""
    runs = decode(twin, target, [PROMPT] * sequences, tokens, seed=seed, sampler=sampler)
    digits = np.array([run.tokens for run in runs])
    vocab = target.shape.vocab
    return np.bincount(digits @ vocab ** np.arange(tokens - 1, -1, -1), minlength=vocab**tokens)


def p_value(counts, probabilities):
    """Chi-square goodness of fit; cells expected below 5 are merged into one."""
    expected = counts.sum() * probabilities
    rare = expected < 5
    merged = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    keep = merged[1] > 0
    return stats.chisquare(merged[0][keep], merged[1][keep] * counts.sum() / merged[1].sum()).pvalue


@pytest.fixture(scope="module")
def pair():
    """A target and a draft over four tokens that agree about two times in three."""
    return random_llama(1, sharpness=1.5), random_llama(2, d=8, layers=1, sharpness=1.0, name="tiny-draft")


@pytest.mark.parametrize(("gamma", "sampler"), [(1, Sampler()), (3, Sampler()), (2, Sampler(0.6, 3, 0.95))])
def test_sampled_output_has_the_targets_exact_distribution(pair, gamma, sampler):
    """4,000 samples of four tokens against all 256 continuations enumerated by teacher forcing."""
    target, draft = pair
    counts = outputs(speculative.Twin(draft, gamma), target, 4000, seed=gamma, sampler=sampler)
    assert p_value(counts, exact_distribution(target, PROMPT, TOKENS, sampler)) > 1e-3


def test_autoregressive_output_has_it_too(pair):
    """The baseline passes the same test, so the enumeration is right."""
    target, _ = pair
    assert p_value(outputs(autoregressive.Twin(), target, 4000), exact_distribution(target, PROMPT, TOKENS)) > 1e-3


def resample_from_p(p, q, lenience=1.0):
    """Fault: a rejected draft is replaced from the target's whole distribution."""
    return p


def bonus_one_early(drafted, p, q, coins, **options):
    """Fault: the bonus token is drawn from the distribution before the last draft, not after it."""
    accepted, own = verify(drafted, p, q, coins, **options)
    return accepted, decoding.draw(p[accepted - 1], coins[-1]) if accepted == len(drafted) else own


def no_rollback(self, sequence, draft, accepted, own):
    """Fault: the target's cache keeps the rejected draft's keys and values where the target's own token belongs."""
    emitted = (*draft.tokens[:accepted], own)
    self.contexts[sequence].extend(emitted)
    rejected = accepted < len(draft.tokens)
    self.cache.truncate(sequence, len(self.contexts[sequence]) - 1 + rejected)
    self.drafter.settle(sequence, self.contexts[sequence])
    return Round(draft.tokens, accepted, emitted)


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (decoding, "residual", resample_from_p),
        (_chain, "verify", bonus_one_early),
        (ChainSession, "_commit", no_rollback),
    ],
)
def test_the_chi_square_catches_planted_faults(pair, monkeypatch, where, name, fault):
    """Resampling from p, a bonus token off by one and stale target KV each fail at 4,000 samples, far out."""
    monkeypatch.setattr(where, name, fault)
    target, draft = pair
    counts = outputs(speculative.Twin(draft, 2), target, 4000, seed=2)
    assert p_value(counts, exact_distribution(target, PROMPT, TOKENS)) < 1e-8


class StaleDrafter(ModelDrafter):
    """Fault: only the last token is ever fed, whatever the cache holds: rejected drafts stay, catch-up is missing."""

    def unread(self, sequence, context):
        """Always one token."""
        return np.array(context[-1:])

    def settle(self, sequence, context):
        """Forgets to roll back."""


class NoCatchUp(ModelDrafter):
    """Fault: rollback is right, but after full acceptance the last draft is never fed."""

    def unread(self, sequence, context):
        """Always one token."""
        return np.array(context[-1:])


def kept_in_rounds_two_and_three(target, draft, gamma, sequences, seed):
    """Histogram [gamma+1, gamma+1] of drafts kept, of the direct sampler."""
    runs = decode(speculative.Twin(draft, gamma), target, [PROMPT] * sequences, 3 * (gamma + 1) + 1, seed=seed)
    kept = np.array([[run.rounds[i].accepted for i in (2, 3)] for run in runs])
    return np.bincount(kept @ [gamma + 1, 1], minlength=(gamma + 1) ** 2)


def replayed(target, draft, gamma, sequences, seed):
    """The same histogram from text that the target alone sampled, two teacher-forced passes and coins."""
    tokens = 3 * (gamma + 1) + 1
    runs = decode(autoregressive.Twin(), target, [PROMPT] * sequences, tokens, seed=seed)
    texts = np.array([[*run.prompt, *run.tokens] for run in runs])
    first = len(PROMPT) + 1  # the prefill emits the first token: rounds start at the second
    p, q = (teacher_forced(model, texts)[:, first - 1 : -1] for model in (target, draft))
    luck, kept = stream(seed, "coins"), []
    for row, p_row, q_row in zip(texts[:, first:], p, q, strict=True):
        betas = acceptance_probabilities(p_row, q_row, row)
        kept.append(kept_per_round(betas, gamma, luck.random(len(betas)))[1:3])
    return np.bincount(np.array(kept) @ [gamma + 1, 1], minlength=(gamma + 1) ** 2)


@pytest.fixture(scope="module")
def wide_pair():
    """Sixteen tokens, and a draft that resembles its target: the target with noise on its weights."""
    target = random_llama(5, vocab=16, d=16, sharpness=2.5, attention=4)
    noise = stream(6, "noise")
    weights = {k: w + 0.05 * noise.normal(size=w.shape).astype(np.float32) * w.std() for k, w in target.weights.items()}
    return target, type(target)(target.shape, target.numerics, weights)


def same_source(*counts):
    """p-value that two histograms come from one distribution."""
    table = np.array(counts)
    return stats.chi2_contingency(table[:, table.sum(axis=0) >= 10]).pvalue


@pytest.fixture(scope="module")
def replay_of_three(wide_pair):
    """What the replay says at gamma 3, from text the target sampled alone."""
    return replayed(*wide_pair, 3, 2000, seed=12)


def test_replay_predicts_the_direct_sampler(wide_pair, replay_of_three):
    """Drafts kept in rounds two and three agree in joint distribution with the replay on disjoint text."""
    direct = kept_in_rounds_two_and_three(*wide_pair, 3, 2000, seed=11)
    assert same_source(direct, replay_of_three) > 1e-3


@pytest.mark.parametrize("fault", [StaleDrafter, NoCatchUp])
def test_stale_draft_kv_shows_in_acceptance_and_nowhere_else(wide_pair, pair, replay_of_three, monkeypatch, fault):
    """A wrong q is still the q drafted from: the output stays exact, but the replay shows drafts being wasted."""
    monkeypatch.setattr(speculative, "ModelDrafter", fault)
    direct = kept_in_rounds_two_and_three(*wide_pair, 3, 2000, seed=11)
    assert same_source(direct, replay_of_three) < 1e-6
    target, draft = pair
    assert p_value(outputs(speculative.Twin(draft, 2), target, 4000), exact_distribution(target, PROMPT, TOKENS)) > 1e-3


@pytest.mark.parametrize(("fault", "agrees"), [(ModelDrafter, True), (StaleDrafter, False), (NoCatchUp, False)])
def test_every_draft_distribution_is_the_teacher_forced_one(wide_pair, monkeypatch, fault, agrees):
    """q of each drafted token equals one clean pass over its context; the planted cache faults break just that."""
    target, draft = wide_pair
    seen = []

    class Recorder(fault):
        def propose(self, contexts, active):
            drafts = super().propose(contexts, active)
            seen.extend((list(contexts[s]), d) for s, d in zip(active, drafts, strict=True))
            return drafts

    monkeypatch.setattr(speculative, "ModelDrafter", Recorder)
    decode(speculative.Twin(draft, 3), target, [PROMPT, PROMPT[:2]], 30, seed=4)
    gaps = []
    for context, d in seen:
        clean = teacher_forced(draft, [[*context, *d.tokens]])[0, len(context) - 1 : -1]
        gaps.append(np.abs(clean - d.q).max())
    assert len(gaps) >= 20
    assert (max(gaps) < 1e-5) == agrees


def greedy_without_cache(model, prompt, tokens):
    """The plainest decoder there is: the whole text through the model for every token."""
    text = list(prompt)
    for _ in range(tokens):
        logits = model.forward([np.array(text)], model.new_cache(1), rows="last")
        text.append(int(logits[0].argmax()))
    return tuple(text[len(prompt) :])


@pytest.fixture(scope="module")
def exact_pair():
    """64 tokens, row results independent of the batch."""
    return random_llama(21, vocab=64, sharpness=3, exact=True), random_llama(22, 64, 8, 1, sharpness=3, exact=True)


def prompts(count, vocab, seed=0, longest=9):
    """Ragged random prompts of 1 to ``longest`` tokens."""
    luck = stream(seed, "prompts")
    return [luck.integers(0, vocab, size=luck.integers(1, longest + 1)) for _ in range(count)]


@pytest.mark.parametrize(("gamma", "count"), [(1, 40), (4, 200)])
def test_greedy_speculative_output_is_token_identical(exact_pair, gamma, count):
    """Hundreds of ragged prompts, 16 tokens each: every token equals the target's own greedy output."""
    target, draft = exact_pair
    many = prompts(count, 64)
    plain = decode(autoregressive.Twin(), target, many, 16, sampler=GREEDY)
    fast = decode(speculative.Twin(draft, gamma), target, many, 16, sampler=GREEDY)
    assert [run.tokens for run in fast] == [run.tokens for run in plain]
    assert {r.accepted for run in fast for r in run.rounds} >= {0, 1}
    for prompt, run in list(zip(many, plain, strict=True))[:10]:
        assert run.tokens == greedy_without_cache(target, prompt, 16)


def test_a_draft_that_is_the_target_is_always_accepted(exact_pair):
    """Self-drafting at temperature 0 keeps every draft: gamma + 1 tokens a round, catch-up included."""
    target, _ = exact_pair
    for run in decode(speculative.Twin(target, 3), target, prompts(20, 64), 17, sampler=GREEDY):
        assert [len(r.emitted) for r in run.rounds] == [1, 4, 4, 4, 4]


def test_a_sequence_does_not_depend_on_its_batch(exact_pair):
    """Sampled output of sequence 0 is the same whatever limits and prompts its neighbours have."""
    target, draft = exact_pair
    twin, (first, *rest) = speculative.Twin(draft, 3), prompts(6, 64)
    alone = decode(twin, target, [first], 20, seed=5)[0]
    among = decode(twin, target, [first, *rest], [20, 1, 3, 7, 2, 30], seed=5)[0]
    assert among == alone
    assert decode(twin, target, [first], 20, seed=6)[0] != alone


def test_limits_and_stop_tokens_clip_the_last_round(exact_pair):
    """Outputs have the length asked for, and end at the first stop token, even inside accepted drafts."""
    target, _ = exact_pair
    twin = speculative.Twin(target, 4)
    plain = decode(twin, target, [[1, 2]], 12, sampler=GREEDY)[0]
    assert len(plain.tokens) == 12
    stop = plain.tokens[2]
    stopped = decode(twin, target, [[1, 2]], 12, sampler=GREEDY, stop=frozenset({stop}))[0]
    assert stopped.tokens == plain.tokens[: plain.tokens.index(stop) + 1]
    assert stopped.rounds[-1].accepted <= len(stopped.rounds[-1].emitted)


class Scripted:
    """A drafter of ragged chains: one-hot guesses of 0, 1, 2 ... tokens, right or wrong at random."""

    def __init__(self, vocab):
        self.vocab, self.luck = vocab, stream(9, "scripted")

    def prefill(self, prompts):
        """Needs no prompt."""

    def propose(self, contexts, active):
        """Lengths differ within a round; copying the last token is sometimes right."""
        chains = [tuple(map(int, contexts[s][-1:] * int(self.luck.integers(0, 4)))) for s in active]
        return [Draft(chain, one_hot(np.array(chain, dtype=int), self.vocab)) for chain in chains]

    def settle(self, sequence, context):
        """Keeps nothing."""


def test_ragged_and_empty_drafts_are_lossless_too(exact_pair):
    """The seam for other drafters: chains of different lengths in one round leave greedy output as it is."""
    target, _ = exact_pair

    class Twin:
        def begin(self, target, prompts, sampler, seed):
            return ChainSession(target, prompts, sampler, seed, Scripted(64))

    runs = decode(Twin(), target, prompts(40, 64), 16, sampler=GREEDY)
    assert [r.tokens for r in runs] == [
        r.tokens for r in decode(autoregressive.Twin(), target, prompts(40, 64), 16, sampler=GREEDY)
    ]
    assert {len(r.drafted) for run in runs for r in run.rounds[1:]} == {0, 1, 2, 3}


def test_the_sure_drafter_is_exact_when_sampling(pair):
    """One-hot drafts (n-gram, retrieval) under temperature 1: accepted with probability p(x), still exact."""
    target, _ = pair

    class Twin:
        def begin(self, target, prompts, sampler, seed):
            return ChainSession(target, prompts, sampler, seed, Scripted(4))

    assert p_value(outputs(Twin(), target, 4000), exact_distribution(target, PROMPT, TOKENS)) > 1e-3


def lenient_closed_form(p, q, lenience):
    """Output distribution and acceptance of one lenient step, summed by hand over tokens."""
    kept = np.minimum(q, p / lenience)
    return kept + (1 - kept.sum()) * residual(p, q, lenience), kept.sum()


@pytest.mark.parametrize("lenience", [1.0, 0.5, 0.2])
def test_lenience_accepts_more_within_its_bound(lenience):
    """alpha_l = sum min(p / l, q) and no token likelier than p / l (arXiv 2211.17192 A.5); l = 1 gives p itself."""
    luck = stream(31, "lenience")
    p, q = softmax(luck.normal(size=6)), softmax(2 * luck.normal(size=6))
    out, alpha = lenient_closed_form(p, q, lenience)
    assert (out <= p / lenience + 1e-12).all()
    counts, kept, n = np.zeros(6), 0, 20_000
    for _ in range(n):
        x = decoding.draw(q, luck.random())
        accepted, own = verify([x], np.array([p, p]), q[None], luck.random(2), lenience=lenience)
        kept += accepted
        counts[x if accepted else own] += 1
    assert kept / n == pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / n))
    assert stats.chisquare(counts, n * out).pvalue > 1e-3
    assert lenience < 1 or out == pytest.approx(p)


def test_lenient_greedy_tolerates_near_misses(exact_pair):
    """At temperature 0, a draft passes when p(x) >= l max p; acceptance rises as lenience falls, the output changes."""
    assert lenient_greedy(np.array([[0.5, 0.3, 0.2]]), 0.5).tolist() == [[1, 1, 0]]
    target, draft = exact_pair
    runs = [decode(speculative.Twin(draft, 3, lenience), target, prompts(40, 64), 16, sampler=GREEDY)
            for lenience in (1.0, 0.1, 0.01)]  # fmt: skip
    strict, loose, looser = (np.mean([run.tokens_per_round for run in batch]) for batch in runs)
    assert strict < loose < looser
    assert [r.tokens for r in runs[0]] != [r.tokens for r in runs[2]]


def test_twins_are_found_by_file_and_checked():
    """No registry: a file is a policy; misspelt names and options get a suggestion in one line."""
    assert {"autoregressive", "speculative"} <= set(names())
    assert make("speculative", {"gamma": 2}) == speculative.Twin(gamma=2)
    with pytest.raises(ValueError, match=r"'speculativ' has no twin, did you mean 'speculative'\?; allowed: "):
        make("speculativ")
    with pytest.raises(ValueError, match=r"unknown option 'gama', did you mean 'gamma'\?; allowed: draft, gamma"):
        make("speculative", {"gama": 3})


@pytest.mark.parametrize("options", [{"gamma": 0}, {"gamma": 2.5}, {"lenience": 0}, {"lenience": 1.1}])
def test_bad_options_are_refused(options):
    """gamma >= 1 and lenience in (0, 1]."""
    with pytest.raises(ValueError, match="policy speculative: .* is .*; allowed: "):
        speculative.Twin(**options)


@pytest.mark.parametrize(
    ("batch", "limits"), [([], 3), ([[]], 3), ([[1]], 0), ([[1], [2]], [3]), ([[[1, 2]]], 3)]
)
def test_bad_batches_are_refused(exact_pair, batch, limits):
    """An empty batch or prompt and limits below one are named before anything runs."""
    with pytest.raises(ValueError, match="^decode: "):
        decode(autoregressive.Twin(), exact_pair[0], batch, limits)


def test_vocabularies_must_match(exact_pair, pair):
    """A draft that speaks another vocabulary cannot be judged."""
    with pytest.raises(ValueError, match="vocabulary 4, the target tiny 64"):
        decode(speculative.Twin(pair[1]), exact_pair[0], [[1]], 2)


def test_passes_and_draft_work_are_metered(exact_pair):
    """A round costs gamma draft passes and one target pass over gamma + 1 rows; the draft's ops carry its prefix."""
    target, draft = random_llama(21, vocab=64, sharpness=3), random_llama(22, 64, 8, 1)
    run = decode(speculative.Twin(draft, 3), target, [[1, 2, 3]], 20, seed=1)[0]
    rounds = len(run.rounds) - 1
    rows = 1 + 4 * rounds  # the prefill's last row, then gamma + 1 a round
    assert target.meter.flops["logits"] == 2 * rows * 16 * 64
    assert target.meter.flops["sample"] == 5 * rows * 64
    assert draft.meter.flops["draft.logits"] == 2 * 3 * rounds * 8 * 64
    assert set(draft.meter.flops) == {k for k in draft.meter.flops if k.startswith("draft.")}
    assert isinstance(NoDrafter(3).propose([], [0])[0], Draft)
