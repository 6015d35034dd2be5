"""Trees that are really drafted and verified: every count exact, lossless where it should be, planted faults found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_models import exact_distribution, random_llama

from sim.analytic.model import ModelShape
from sim.analytic.ops import ops
from sim.analytic.rewrite import apply, bound
from sim.analytic.work import Work
from sim.policies import Model
from sim.policies.feature import Feature
from sim.policies.tree import Tree
from sim.policies.tree_chances import child_chances
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, decode
from sim.reference.numerics import rms_norm
from sim.reference.sampling import Sampler, draw, stream
from sim.reference.transformer import Transformer
from sim.reference.twins import _tree, autoregressive, make, tree
from sim.reference.twins._tree import Draft, Judge, Shape, TreeSession, children_of
from sim.reference.twins._tree_features import FeatureWeights, Wide
from sim.reference.twins._tree_heads import HeadWeights
from sim.validation.counts import FP32, KINDS, Tally, added, decoded, measured, mismatches
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out

BUSHY = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0))
CHAIN = ((0,), (0, 0), (0, 0, 0))
PROMPT = np.array([1, 3, 0, 2, 2])


# --- counts


def simulated(shape: ModelShape, variants: Sequence[Any], works: Sequence[Work], prefix: str) -> Tally:
    """What the simulator counts of these passes with variants, in float32 with scores written out."""
    shape = apply(variants, "reshape", shape)
    ready = bound(variants, shape, FP32, None)  # type: ignore[arg-type]
    tally: Tally = {kind: Counter() for kind in KINDS}
    for work in works:
        for op in apply(ready, "rewrite", ops(shape, FP32, work, attention="standard"), work):
            values = (op.flops, op.weight_bytes, op.kv_read_bytes + op.kv_write_bytes, op.activation_bytes)
            for kind, value in zip(KINDS, values, strict=True):
                tally[kind][prefix + op.name] += op.layers * int(value)
    return tally


def compared(
    policy: Tree, twin: tree.Twin, target: Transformer, draft: Transformer | None = None, want: set[int] | None = None
) -> list[Any]:
    """Decode a ragged batch with the twin; what counts of the policy's passes differ from the meters' readings.

    ``want``: numbers of kept nodes that must occur; where not given, none and some.
    """
    models = [target] if draft is None else [target, draft]
    for model in models:
        model.meter.reset()
    vocab = target.shape.vocab
    prompts = [stream(7, "prompt", i).integers(0, vocab, n) for i, n in enumerate((9, 4, 17))]
    texts = decode(twin, target, prompts, (25, 3, 31), seed=3)
    kept = {r.accepted for g in texts for r in g.rounds[1:]}
    assert kept >= want if want else 0 in kept and len(kept) > 1, kept
    members: list[tuple[ModelShape, tuple[Any, ...]]] = [(target.shape, ())]
    for one in policy.drafts:
        own = isinstance(one, Model)
        members.append((target.shape, one.variants) if own else (draft.shape, ()))  # type: ignore[union-attr]
    windows = tuple(apply(variants, "reshape", shape).windows for shape, variants in members)
    passes = list(decoded(policy, texts, windows))
    tallies = [
        simulated(shape, variants, [w for i, w in passes if i == k], "draft." if k else "")
        for k, (shape, variants) in enumerate(members)
    ]
    return mismatches(added(*tallies), added(*(measured(m.meter) for m in models)))


def small(window: int | None = None, seed: int = 0, layers: int = 3) -> Transformer:
    """A target of three layers over twelve tokens, flat enough that drafts are sometimes right."""
    return stand_in(dense(16, layers, 4, 2, 24, 12, window=window), seed, sharpness=1.0)


def paths(shape: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """As a scenario spells them."""
    return [list(path) for path in shape]


@pytest.mark.parametrize("way", ["greedy", "specinfer", "sequoia"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shape", [BUSHY, CHAIN], ids=["bushy", "chain"])
def test_a_drafted_tree_counts_alike(shape: Any, window: int | None, way: str) -> None:
    """Level by level through a draft model, windows in both, catch-up after the deepest level: every op, exactly."""
    target = small(window)
    draft = stand_in(dense(8, 2, 2, 1, 12, 12, window=None if window is None else 4), 1, sharpness=1.0)
    policy = Tree(paths(shape), [0.5], {"kind": "model", "draft": "d"}, way)
    assert compared(policy, tree.Twin(shape, draft, way), target, draft) == []


@pytest.mark.parametrize("shape", [BUSHY, CHAIN], ids=["bushy", "chain"])
def test_the_deepest_level_is_caught_up(shape: Any) -> None:
    """A draft that is the target keeps whole paths: the deepest node was not run, the next first pass takes two."""
    target, draft = small(), small()
    twin = tree.Twin(shape, draft, "specinfer")
    texts = decode(twin, target, [PROMPT], 60)
    assert sum(r.accepted == 3 for r in texts[0].rounds) > 5
    assert compared(Tree(paths(shape), [0.5], {"kind": "model", "draft": "d"}), twin, target, draft, {3}) == []


def test_medusa_heads_count_alike() -> None:
    """Heads with a vocabulary each, and with the target's for all of them."""
    target = small()
    for own in (True, False):
        heads = HeadWeights.untrained(target, 4, own=own)
        policy = Tree(paths(BUSHY), [0.5], {"kind": "heads", "count": 4, "share_vocabulary": not own})
        assert compared(policy, tree.Twin(BUSHY, heads), target) == []


def test_the_family_heads_count_alike() -> None:
    """The trained heads of the shipped family: two products, the target's norm and vocabulary."""
    target = load("primary")
    said = {"kind": "heads", "count": 4, "products": 2, "norm": True, "share_vocabulary": True}
    assert compared(Tree(paths(BUSHY), [0.5], said), tree.Twin(BUSHY), target) == []


def test_hydra_heads_count_alike() -> None:
    """A head a depth over every node with children."""
    target = small()
    heads = HeadWeights.untrained(target, 3, wide=True)
    assert compared(Tree(paths(BUSHY), [0.5], "hydra"), tree.Twin(BUSHY, heads), target) == []


def features(target: Transformer, kind: str, seed: int = 5) -> FeatureWeights:
    """Untrained weights of a drafter on the target's states."""
    variant = {
        "eagle": Feature(), "eagle3": Feature(join="wide", norms=1), "mtp": Feature(norms=2, dense=False),
        "layers": Feature(3, join="none", dense=False),
    }[kind]  # fmt: skip
    d, luck = target.shape.d_model, stream(seed, "features")
    net = stand_in(variant.reshape(target.shape), seed)
    weights = {**net.weights, **{k: target.weights[k] for k in ("embed", "logits", "norm.final")}}
    ones = tuple(np.ones(d, np.float32) for _ in range(variant.norms))
    net = replace(net, weights=weights, meter=target.meter)
    if kind == "eagle3":
        wide = luck.normal(size=(2 * d, weights["layers.0.attn.qkv"].shape[1])).astype(np.float32)
        net = Wide(net.shape, net.numerics, {**weights, "layers.0.attn.qkv": wide}, target.meter)
        fuse = luck.normal(size=(3 * d, d)).astype(np.float32) / 8
        return FeatureWeights(net, "wide", None, fuse, ones)
    matrix = (luck.normal(size=(2 * d, d)) / 6).astype(np.float32)
    return FeatureWeights(net, variant.join, matrix, None, ones)


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "mtp", "layers"])
@pytest.mark.parametrize("window", [None, 5])
def test_feature_drafters_count_alike(kind: str, window: int | None) -> None:
    """Draft-extend over what was accepted, levels of nodes with children, joins, fusion, parallel layers."""
    target = small(window)
    policy = Tree(paths(BUSHY), [0.5], kind)
    assert compared(policy, tree.Twin(BUSHY, features(target, kind)), target) == []


def test_the_comparison_finds_a_wrong_tree() -> None:
    """A policy with one node more, or one that does not catch up, differs from the meter."""
    target, draft = small(), stand_in(dense(8, 2, 2, 1, 12, 12), 1)
    said = {"kind": "model", "draft": "d"}
    assert compared(Tree(paths((*BUSHY, (2, 0))), [0.5], said), tree.Twin(BUSHY, draft), target, draft)
    deeper = Tree(paths((*CHAIN, (0, 0, 0, 0))), [0.5], said)
    assert compared(deeper, tree.Twin(CHAIN, draft), target, draft)


# --- distribution


@pytest.fixture(scope="module")
def pair() -> tuple[Transformer, Transformer]:
    """A target and a draft over four tokens that agree about two times in three."""
    return random_llama(1, sharpness=1.5), random_llama(2, d=8, layers=1, sharpness=1.0, name="tiny-draft")


def p_value(twin: Any, target: Transformer, samples: int = 4000, tokens: int = 4) -> float:
    """Chi-square of sampled continuations of PROMPT against all 256 of them, enumerated by teacher forcing."""
    runs = decode(twin, target, [PROMPT] * samples, tokens, seed=tokens)
    digits = np.array([run.tokens for run in runs]) @ 4 ** np.arange(tokens - 1, -1, -1)
    counts, chances = np.bincount(digits, minlength=4**tokens), exact_distribution(target, PROMPT, tokens)
    expected = samples * chances
    rare = expected < 5
    seen, due = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    return float(stats.chisquare(seen[due > 0], due[due > 0] * seen.sum() / due.sum()).pvalue)


WIDE = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0))


@pytest.mark.parametrize("way", ["greedy", "specinfer", "sequoia"])
def test_sampled_trees_have_the_targets_exact_distribution(pair: Any, way: str) -> None:
    """4,000 samples of four tokens, children chosen, drawn independently and drawn without replacement."""
    target, draft = pair
    assert p_value(tree.Twin(WIDE, draft, way), target) > 1e-3


def test_heads_and_features_are_lossless_too(pair: Any) -> None:
    """Untrained drafters at temperature 1: wrong drafts cost nothing but speed."""
    target, _ = pair
    assert p_value(tree.Twin(WIDE, HeadWeights.untrained(target, 2)), target) > 1e-3
    assert p_value(tree.Twin(WIDE, features(target, "eagle")), target) > 1e-3


def keep_first_rows(self: TreeSession, sequence: int, path: Sequence[int]) -> None:
    """Fault: the cache keeps the first rows of the pass, not those of the accepted path."""
    self.cache.keep(sequence, list(range(1 + len(path))))


@pytest.mark.parametrize(
    ("where", "name", "fault", "way"),
    [
        (_tree, "residual", lambda p, q, lenience=1.0: p, "specinfer"),
        (_tree, "residual", lambda p, q, lenience=1.0: p, "sequoia"),
        (TreeSession, "keep", keep_first_rows, "greedy"),
    ],
)
def test_the_chi_square_finds_planted_faults(
    pair: Any, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any, way: str
) -> None:
    """Resampling from p and stale keys of a rejected branch fail far out at the same number of samples."""
    monkeypatch.setattr(where, name, fault)
    target, draft = pair
    assert p_value(tree.Twin(WIDE, draft, way), target) < 1e-8


ONE_NODE = Shape(((0,), (1,), (2,)))


def judged(way: str, draws: int = 20_000, vocab: int = 5, seed: int = 2) -> tuple[Any, Any, Any]:
    """(tokens that came out, which child was kept (3: none), p and q) of one node with three children, many times."""
    luck = stream(seed, "one node")
    p, q = luck.dirichlet(np.ones(vocab), 2)
    judge, tokens, kept = Judge(way), np.zeros(vocab, int), np.zeros(4, int)
    for _ in range(draws):
        drafted = children_of(q, 3, way, luck)
        path, own = judge(ONE_NODE, Draft(tuple(drafted), np.stack([q] * 4)), np.stack([p] * 4), luck)
        tokens[drafted[path[0] - 1] if path else own] += 1
        kept[path[0] - 1 if path else 3] += 1
    return tokens, kept, (p, q)


WAYS = ("greedy", "specinfer", "sequoia")


@pytest.mark.parametrize("way", WAYS)
def test_one_node_emits_the_targets_token(way: str) -> None:
    """20,000 judgements of three children: tokens as the target has them, children kept as enumerated exactly."""
    tokens, kept, (p, q) = judged(way)
    assert stats.chisquare(tokens, p * tokens.sum()).pvalue > 1e-3
    chances = child_chances(p, q, 3, way)
    due = np.append(chances, 1 - chances.sum()) * kept.sum()
    assert stats.chisquare(kept, due * kept.sum() / due.sum()).pvalue > 1e-3


def test_children_without_replacement_are_kept_more_often() -> None:
    """Sequoia spends no chance twice: over 50 pairs of distributions it never keeps less, and often more."""
    more = []
    for seed in range(50):
        p, q = stream(seed, "pairs").dirichlet(np.ones(6) / 2, 2)
        more.append(child_chances(p, q, 3, "sequoia").sum() - child_chances(p, q, 3, "specinfer").sum())
    assert min(more) > -1e-9 and np.mean(more) > 0.05


@pytest.mark.parametrize(
    ("name", "fault", "way"),
    [
        ("without", lambda q, token: q, "sequoia"),
        ("residual", lambda p, q, lenience=1.0: p, "sequoia"),
        ("residual", lambda p, q, lenience=1.0: p, "specinfer"),
    ],
)
def test_one_node_finds_planted_faults(monkeypatch: pytest.MonkeyPatch, name: str, fault: Any, way: str) -> None:
    """A token left in q after it was drawn, and a p that rejections do not change, bias the output far out."""
    right = _tree.without
    monkeypatch.setattr(_tree, name, fault)
    if name == "without":  # the children are still drawn without replacement
        monkeypatch.setattr(f"{__name__}.children_of", lambda q, n, way, luck: _drawn(q, n, luck, right))
    tokens, _, (p, _) = judged(way)
    assert stats.chisquare(tokens, p * tokens.sum()).pvalue < 1e-8


def _drawn(q: Any, count: int, luck: Any, without: Any) -> list[int]:
    out: list[int] = []
    for _ in range(count):
        out.append(draw(q, luck.random()))
        q = without(q, out[-1])
    return out


# --- the same text, and how much of it at once


def test_greedy_trees_write_the_targets_own_text() -> None:
    """At temperature 0 and row by row, not one of 40 prompts ends differently; nodes beside the best are kept too."""
    target = stand_in(dense(16, 2, 2, 1, 32, 24), 21, sharpness=4.0)
    target.exact = True
    draft = stand_in(dense(16, 1, 2, 1, 32, 24), 21, sharpness=4.0)
    prompts = [stream(s, "greedy").integers(0, 24, 8) for s in range(40)]
    plain = decode(autoregressive.Twin(), target, prompts, 24, sampler=Sampler(0))
    for drafter in (draft, features(target, "eagle3"), HeadWeights.untrained(target, 3)):
        fast = decode(tree.Twin(BUSHY, drafter), target, prompts, 24, sampler=Sampler(0))
        assert [g.tokens for g in plain] == [g.tokens for g in fast]
        assert sum(r.accepted for g in fast for r in g.rounds) > 20
        best = [r for g in fast for r in g.rounds[1:] if r.accepted and r.own and r.emitted[0] != r.drafted[0]]
        assert best, "rank 1 or 2 of the root was kept somewhere"


def test_a_chain_is_speculative_decoding() -> None:
    """A tree of one branch keeps the drafts that the chain's own twin keeps, round by round, at temperature 0."""
    target, draft = random_llama(21, 64, sharpness=3, exact=True), random_llama(22, 64, 8, 1)
    prompts = [stream(s, "chain").integers(0, 64, 6) for s in range(20)]
    one, other = (
        decode(twin, target, prompts, 24, sampler=Sampler(0))
        for twin in (tree.Twin(CHAIN, draft), make("speculative", {"draft": draft, "gamma": 3}))
    )
    assert [[r.accepted for r in g.rounds] for g in one] == [[r.accepted for r in g.rounds] for g in other]
    assert [g.tokens for g in one] == [g.tokens for g in other]


def kept_depths(runs: Sequence[Generation], depth: int) -> Iterator[list[int]]:
    """Kept nodes of each run's rounds, those too near the limit left out, however they went."""
    for run in runs:
        starts = np.cumsum([len(r.emitted) for r in run.rounds])[:-1]
        yield [r.accepted for at, r in zip(starts, run.rounds[1:], strict=True) if at + depth + 1 <= len(run.tokens)]


# --- the trained heads: acceptance of text A predicts text B

TEXTS, TOKENS, NODES = 48, 96, 24


def rank_lines(texts: Sequence[Generation], target: Transformer) -> Iterator[np.ndarray[Any, Any]]:
    """[positions, heads] of each text: the rank that head k gave to the token k + 2 places after the position's own."""
    heads = HeadWeights.load(SHIPPED / "medusa", target)
    deep = len(target.shape.layers)
    for g in texts:
        ids = np.array([*g.prompt, *g.tokens])
        _, hidden = target.forward([ids], target.new_cache(1), rows="none", return_hidden=[deep])
        h = rms_norm(hidden[deep], target.weights["norm.final"], target.numerics.eps)
        out = [heads.hidden(k, h, h, target.meter, target.numerics.eps) for k in range(4)]
        logits = np.stack(out) @ target.weights["logits"]  # [heads, n, V]
        ranks = np.argsort(np.argsort(-logits, axis=-1, kind="stable"), axis=-1)
        first, last = len(g.prompt) - 1, len(ids) - 5
        yield np.array([[ranks[k, t, ids[t + 2 + k]] for k in range(4)] for t in range(first, last)])


def replayed(line: Any, shape: Shape) -> list[int]:
    """Nodes kept in each round along a text that the target wrote: its own tokens are what it would choose again."""
    known, at, kept = set(shape.paths), 0, []
    while at < len(line):
        k = 0
        while k < shape.depth and tuple(line[at, : k + 1]) in known:
            k += 1
        kept.append(k)
        at += k + 1
    return kept


def mean_and_error(kept: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Tokens a round over all texts, and its standard error from a jackknife over them."""
    sums = np.array([(len(k), sum(k) + len(k)) for k in kept], dtype=float)
    total = sums.sum(axis=0)
    left = (total[1] - sums[:, 1]) / (total[0] - sums[:, 0])
    return float(total[1] / total[0]), float(np.sqrt((len(left) - 1) * ((left - left.mean()) ** 2).sum() / len(left)))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_tokens_a_round_of_the_trained_heads(temperature: float) -> None:
    """Measured on text A: chances by rank, which grow the tree, and survival in that tree. Text B, decoded with it,
    gains what the survival vector predicts, within a 99 % interval of both; chances multiplied as if heads were
    independent promise more or less than that by under 15 %."""
    target, sampler = load(SHIPPED / "primary"), Sampler(temperature)
    texts = decode(autoregressive.Twin(), target, held_out("a", TEXTS), TOKENS, sampler=sampler, seed=1)
    lines = list(rank_lines(texts, target))
    every = np.concatenate(lines)
    ranks = [[float((every[:, k] == r).mean()) for r in range(10)] for k in range(4)]
    grown = Tree({"nodes": NODES, "depth": 4}, ranks, {"kind": "heads", "count": 4})
    shape = Shape(grown.shape.paths)
    first = [replayed(line, shape) for line in lines]
    alive = [float(np.mean([k >= d for one in first for k in one])) for d in range(1, shape.depth + 1)]
    policy = Tree({"nodes": NODES, "depth": 4}, ranks, acceptance={"kind": "survival", "vector": alive})
    twin = tree.Twin(shape.paths)
    runs = decode(twin, target, held_out("b", TEXTS), TOKENS, sampler=sampler, seed=2)
    (_, a_error), (mean, b_error) = mean_and_error(first), mean_and_error(list(kept_depths(runs, shape.depth)))
    half = 2.576 * float(np.hypot(a_error, b_error))
    assert half < 0.1 * mean and mean > 1.3
    assert abs(policy.expected_tokens - mean) < half
    assert abs(grown.expected_tokens / mean - 1) < 0.15


@pytest.mark.slow
def test_typical_acceptance_is_lossy_and_faster() -> None:
    """The trained heads at temperature 1: over half as many tokens again as the exact rule, a text that is likelier
    (2.5 for 2.8 nats a token) with the target's likeliest token as often: less variety is what it costs."""
    target = load(SHIPPED / "primary")
    found = {}
    for way in ("greedy", "typical"):
        runs = decode(tree.Twin(BUSHY, verification=way), target, held_out("b", 24), 64, seed=3)
        found[way] = (*likelihood(runs, target), float(np.mean([g.tokens_per_round for g in runs])))
    (plain, agree, slow), (typical, more, fast) = found["greedy"], found["typical"]
    assert fast > 1.5 * slow and typical < plain - 0.2 and abs(more - agree) < 0.05


def likelihood(runs: Sequence[Generation], target: Transformer) -> tuple[float, float]:
    """(nats a token under the target, share of tokens that are its likeliest) of what was emitted."""
    nats, hits = [], []
    for g in runs:
        ids, n = np.array([*g.prompt, *g.tokens]), len(g.prompt)
        p = Sampler().probabilities(target.forward([ids[:-1]], target.new_cache(1), rows="all"))[n - 1 :]
        nats += (-np.log(p[np.arange(len(p)), ids[n:]])).tolist()
        hits += (p.argmax(axis=-1) == ids[n:]).tolist()
    return float(np.mean(nats)), float(np.mean(hits))


def test_typical_acceptance_changes_the_distribution(pair: Any) -> None:
    """It is not the target's, far beyond chance: what makes the policy say that it is lossy."""
    target, draft = pair
    assert p_value(tree.Twin(WIDE, draft, "typical"), target, 1000) < 1e-8


def test_typical_rule_by_hand() -> None:
    """Four equal tokens have entropy ln 4 and the bar 0.3 / 4 = 0.075; a sure token's bar is epsilon."""
    judge = Judge("typical")
    assert judge.bars(np.array([[0.25] * 4, [1.0, 0, 0, 0]])) == pytest.approx([0.075, 0.09])
    assert judge.truncated(np.array([0.05, 0.6, 0.35]), 0.09).tolist() == [0.0, 0.6, 0.35]


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": ((0, 0),)}, r"policy tree: tree has \[0, 0\]; allowed: "),
        ({"tree": ((1,),)}, r"policy tree: tree has \[1\]; allowed: "),
        ({"verification": "best"}, "policy tree: verification is 'best'; allowed: greedy, specinfer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with the option, its value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        tree.Twin(**options)


def test_a_drafter_that_cannot_serve_is_named(pair: Any) -> None:
    """Heads cannot be drawn from; a tree deeper than the heads, or a draft of another vocabulary, is refused."""
    target, _ = pair
    heads = HeadWeights.untrained(target, 1)
    for twin, message in (
        (tree.Twin(WIDE, heads), "tree is 2 deep; allowed: at most the 1 heads"),
        (tree.Twin(((0,),), heads, "sequoia"), "verification is 'sequoia'; allowed with heads: greedy, typical"),
        (tree.Twin(WIDE, features(target, "eagle"), "specinfer"), "allowed on features: greedy, typical"),
        (tree.Twin(WIDE, random_llama(3, 5)), "vocabulary 5, the target tiny 4; allowed: one vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(twin, target, [PROMPT], 2)
