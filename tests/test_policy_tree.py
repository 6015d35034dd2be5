"""Token trees: published optima, closed forms by hand, chains as the chain policy, hardware fits, options."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Scenario, simulate
from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.axes import Axis
from sim.build import build_scenario, load_device, load_shape
from sim.policies import Model
from sim.policies.feature import Feature
from sim.policies.heads import Heads
from sim.policies.speculative import Speculative
from sim.policies.tree import TYPICAL, Tree
from sim.policies.tree_chances import child_chances
from sim.policies.tree_data import RANKS, TREES
from sim.policies.tree_shapes import Path, Ranks, grow, sequoia
from sim.policies.tree_shapes import Tree as Shape
from sim.quality import LOSSLESS
from sim.serving.luck import Luck
from sim.speedup import curve

SEQUOIA = RANKS["sequoia"].by_depth[0]


# --- shapes


@pytest.mark.parametrize(("size", "tokens"), [(4, 2.29), (8, 2.73), (16, 3.13), (32, 3.50), (64, 3.85)])
def test_sequoia_finds_the_published_optima(size: int, tokens: float) -> None:
    """The repository's acceptance vector, so many nodes with the root: expected tokens to the printed digits."""
    tree = sequoia(SEQUOIA, size - 1, size - 1)
    assert tree.nodes == size - 1
    assert tree.expected_tokens(RANKS["sequoia"]) == pytest.approx(tokens, abs=0.006)


def test_a_chain_is_capped() -> None:
    """However long, a chain with the same vector stays at 1 / (1 - 0.634), which 8 nodes of a tree reach."""
    chains = [Shape.chain(n).expected_tokens(RANKS["sequoia"]) for n in (10, 60)]
    assert chains == pytest.approx([2.715, 2.7336], abs=2e-3)


def all_trees(nodes: int, depth: int, width: int) -> set[frozenset[Path]]:
    """Every tree of so many nodes whose nodes have their parent and better siblings, by exhaustion."""
    found: set[frozenset[Path]] = {frozenset()}
    for _ in range(nodes):
        found = {tree | {new} for tree in found for new in _next(tree, depth, width)}
    return found


def _next(tree: frozenset[Path], depth: int, width: int) -> list[Path]:
    out = []
    for parent in [(), *tree]:
        rank = sum(len(path) == len(parent) + 1 and path[:-1] == parent for path in tree)
        if len(parent) < depth and rank < width:
            out.append((*parent, rank))
    return out


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=3), st.integers(1, 6), st.integers(1, 3))
def test_the_dynamic_program_is_the_best_of_all_trees(weights: list[float], nodes: int, depth: int) -> None:
    """Chances in any order: no tree of as many nodes, or fewer, within the depth expects more tokens."""
    chances = [w / sum(weights) for w in weights]
    ranks = Ranks((tuple(chances),))
    sizes = range(1, nodes + 1)
    best = max(sum(map(ranks.of, tree)) for n in sizes for tree in all_trees(n, depth, len(chances)))
    assert sequoia(chances, nodes, depth).expected_tokens(ranks) - 1 == pytest.approx(best)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=2, max_size=3), min_size=1, max_size=3), st.integers(1, 6))
def test_growing_greedily_is_best_where_chances_fall(weights: list[list[float]], nodes: int) -> None:
    """Chances by depth, falling with rank: the likeliest paths are the best tree of their number."""
    ranks = Ranks(tuple(tuple(sorted((w / sum(row) for w in row), reverse=True)) for row in weights))
    best = max(sum(map(ranks.of, tree)) for tree in all_trees(nodes, 3, 2))
    assert grow(ranks, nodes, 3, 2).expected_tokens(ranks) - 1 == pytest.approx(best)


def test_expected_tokens_are_the_sum_of_path_products() -> None:
    """Two children of chance 1/2 and 1/4, one child of the better one: E = 1 + 1/2 + 1/4 + 1/4; by depth 3/4, 1/4."""
    policy = Tree([[0], [1], [0, 0]], [0.5, 0.25])
    assert policy.expected_tokens == 2.0 and policy.survival.tolist() == [0.75, 0.25]
    assert policy.tokens_per_round == 4 and policy.shape.widths == (1, 2, 1) and policy.shape.inner == (1, 1)


@pytest.mark.parametrize(("size", "published", "most"), [("7b", 2.31, 0.02), ("13b", 2.39, 0.02), ("33b", 2.33, 0.07)])
def test_medusa_trees_of_the_published_accuracies(size: str, published: float, most: float) -> None:
    """The 63-node tree on the five best ranks of the repository's log promises a little over what was measured."""
    ours = Tree("medusa-63", f"medusa-vicuna-{size}").expected_tokens
    assert 0 < ours / published - 1 < most


def test_published_trees_are_whole() -> None:
    """63 and 25 nodes, 4 and 5 deep."""
    shapes = {name: Shape(paths) for name, paths in TREES.items()}
    assert [(s.nodes, s.depth) for s in shapes.values()] == [(63, 4), (25, 5)]


# --- children


def test_child_chances_by_hand() -> None:
    """p = (1/2, 1/2), q = (1, 0): the only draft is kept half the time; the second child has a chance only where the
    first token is taken out, and there is nothing left to draw."""
    for way in ("specinfer", "sequoia"):
        assert child_chances([1, 1], [1, 0], 2, way).tolist() == [0.5, 0.0]
    assert child_chances([1, 1], [2, 1], 2, "greedy").tolist() == [0.5, 0.5]
    assert child_chances([3, 1], [1, 1], 2, "sequoia").sum() == pytest.approx(1.0)  # both tokens tried: one fits
    assert child_chances([3, 1], [1, 1], 2, "specinfer").tolist() == [0.75, 0.25 * 0.5]


@pytest.mark.parametrize("way", ["specinfer", "sequoia", "greedy"])
def test_child_chances_by_trial(way: str) -> None:
    """Enumeration against 40,000 tries of the rule itself, each child within 4.5 standard errors."""
    luck = np.random.default_rng(3)
    p, q = luck.dirichlet(np.ones(8), 2)
    kept = np.zeros(4)
    tries = 40_000
    for _ in range(tries):
        child = _tried(p, q, way, luck)
        if child is not None:
            kept[child] += 1
    chances = child_chances(p.tolist(), q.tolist(), 4, way)
    assert np.all(np.abs(kept / tries - chances) < 4.5 * np.sqrt(chances * (1 - chances) / tries) + 1e-9)


def _tried(p: Any, q: Any, way: str, luck: np.random.Generator) -> int | None:
    if way == "greedy":
        ranks = np.argsort(-q).tolist()[:4]
        token = int(luck.choice(8, p=p))
        return ranks.index(token) if token in ranks else None
    for child in range(4):
        token = int(luck.choice(8, p=q))
        if luck.random() * q[token] < p[token]:
            return child
        left = np.maximum(0, p - q)
        p = left / left.sum()
        if way == "sequoia":
            q = np.where(np.arange(8) == token, 0, q)
            q /= q.sum()
    return None


def test_verification_matters_where_ranks_are_distributions() -> None:
    """The same pair of distributions: drawing without replacement keeps more than drawing independently."""
    pair = {"target": [5, 3, 1, 1], "draft": [1, 3, 5, 1]}
    kept = [Tree([[0], [1], [2]], pair, verification=way).expected_tokens for way in ("specinfer", "sequoia")]
    assert kept[1] > kept[0] + 0.05


# --- luck and work


def test_a_chain_tree_is_speculative_decoding() -> None:
    """Same luck, same drafts kept, same work of every pass: chains of a draft model are the chain policy's rounds."""
    ours = Tree({"nodes": 4, "depth": 4, "width": 1}, [0.8], {"kind": "model", "draft": "d"})
    theirs = Speculative("d", 4, 0.8)
    assert ours.survival == pytest.approx(theirs.survival) and ours.tokens_per_round == theirs.tokens_per_round
    windows = ((None, 7), (5, None))
    for request in range(20):
        futures = [policy.future(Luck(1).of(request), 0, 120) for policy in (ours, theirs)]
        assert futures[0].kept.tolist() == futures[1].kept.tolist()
        works = [
            flat(policy.passes(1, np.array(policy.rows(future, 9, windows)), None, windows))
            for policy, future in zip((ours, theirs), futures, strict=True)
        ]
        assert works[0] == works[1]


def flat(passes: Any) -> list[list[Any]]:
    """Every single pass as plain numbers, in order."""
    out = []
    for model, work in passes:
        columns = [work.tokens, work.logit_rows, *work.decode_pairs, *work.decode_reads]
        wide = np.broadcast_arrays(*[np.atleast_2d(c) for c in columns])
        out += [[model, *(w[step].tolist() for w in wide)] for step in range(len(wide[0]))]
    return out


def test_who_sees_whom_by_hand() -> None:
    """A root and three nodes over five cached tokens, window 4: every key of every node counted."""
    policy, windows = Tree([[0], [1], [0, 0]], [0.5], "heads"), ((None, 4), ())
    future = policy.future(Luck(1).of(0), 0, 1)
    totals = [int(row[0]) for row in policy.rows(future, 5, windows)]
    *_, last = policy.passes(1, totals, None, windows)
    depths = (0, 1, 1, 2)
    full = sum(5 + d + 1 for d in depths)
    near = sum(min(4, 5 + d + 1) for d in depths)
    assert last.model == 0 and last.work.tokens == last.work.logit_rows == 4
    assert last.work.decode_pairs == (full, near) and last.work.decode_reads == (5, 3)


def test_dynamic_trees_follow_the_state() -> None:
    """Easy and hard rounds half and half: a tree for each expects the mean of both, more than one tree for all."""
    states = {"states": [{"share": 0.5, "ranks": [0.9, 0.05]}, {"share": 0.5, "ranks": [0.3, 0.25, 0.2]}]}
    size = {"nodes": 6, "depth": 5}
    fixed, moving = (Tree({**size, "by": by}, states, "eagle") for by in ("greedy", "dynamic"))
    each = [grow(ranks, 6, 5, 10).expected_tokens(ranks) for _, ranks in moving.states]
    assert moving.expected_tokens == pytest.approx(np.mean(each)) and moving.expected_tokens > fixed.expected_tokens
    assert [len(list(p.passes(1, [0] * p.channels(W), None, W))) for p in (moving,)] == [6]


W = ((None,), (None,))


# --- what it costs


def test_heads_cost_their_weights() -> None:
    """Five Medusa heads on a 7B model with 32,000 tokens: 5 (d^2 + V d) numbers, 0.74 billion, and no more."""
    shape, device = load_shape("llama-2-7b", "model"), load_device("a100-sxm-80gb")
    cost = PassCost(shape, device, variants=(Heads(5),))
    added = {k: v for k, v in cost.weight_bytes_by_op.items() if k.startswith("heads.")}
    assert sum(added.values()) == 2 * 5 * (4096**2 + 32000 * 4096) == pytest.approx(2 * 0.74e9, rel=0.01)
    read = sum(op.layers * op.weight_bytes for op in cost.ops(Work(0, 3)))
    assert read == sum(added.values()) and cost.shape.windows == ()
    shared = PassCost(shape, device, variants=(Heads(5, "ffn", share_vocabulary=True),))
    held = shared.weight_bytes_by_op
    assert held["heads.hidden"] == 2 * 5 * 8 * 4096**2 and "heads.logits" not in held


def test_an_eagle_layer_costs_its_weights() -> None:
    """One layer, a join of 2 d^2 numbers, the target's embedding and head: 0.24 billion numbers for a 7B target."""
    shape, device = load_shape("llama-2-7b", "model"), load_device("a100-sxm-80gb")
    cost = PassCost(shape, device, variants=(Feature(),))
    added = sum(v for k, v in cost.weight_bytes_by_op.items() if k.startswith("feature."))
    assert added == pytest.approx(2 * 0.24e9, rel=0.02)
    assert cost.kv_bytes_per_token == (PassCost(shape, device).kv_bytes_per_token[0] / 32,)


def scenario(policy: str, *more: str) -> Scenario:
    """A shipped scenario with another policy."""
    return Scenario.load("chat_h100", [f"policy={policy}", *more])


@pytest.mark.parametrize(
    "policy",
    [
        "{name: tree}",
        "{name: tree, drafter: hydra}",
        "{name: tree, tree: eagle-25, ranks: eagle-vicuna, drafter: eagle}",
        "{name: tree, tree: {nodes: 20, depth: 5, by: dynamic}, ranks: eagle-vicuna, drafter: eagle3}",
        "{name: tree, tree: [[0]], ranks: [0.85], drafter: mtp}",
        "{name: tree, tree: {nodes: 3, width: 1}, ranks: [0.7], drafter: layers}",
        "{name: tree, tree: {nodes: 15, by: sequoia}, ranks: sequoia, verification: sequoia, "
        "drafter: {kind: model, draft: llama-3.2-1b}}",
        "{name: tree, tree: {nodes: 4, width: 1}, ranks: [0.7], "
        "drafter: {kind: model, draft: {model: self, variants: [{early_exit: {layers: 8}}], kv: shared}}}",
    ],
)
def test_a_run_gains_what_the_policy_expects(policy: str) -> None:
    """Whole runs of every drafter: tokens a round within 2 %, causes of every leap add up, speedup agrees."""
    asked = scenario(policy, "workload.requests=300")
    result = simulate(asked)
    requests = result.requests
    expected = build_scenario(asked).policy.expected_tokens  # type: ignore[attr-defined]
    gained = 1 + requests["accepted_tokens"].sum() / requests["rounds"].sum()
    assert gained == pytest.approx(expected, rel=0.02)
    table = curve(asked, [Axis("batch", (1, 64))]).table
    assert table["expected_tokens"][0] == pytest.approx(expected) and table["speedup"][0] > table["speedup"][1] * 0.9


@pytest.mark.parametrize("drafter", ["heads", "hydra", "eagle", "eagle3", "layers"])
def test_leaps_are_rounds_on_real_costs(drafter: str) -> None:
    """Models without layers included, leaps cost what single rounds do, to the nanosecond, and stay one product."""
    asked = scenario(f"{{name: tree, drafter: {drafter}}}", "workload.requests=60")
    leaping, stepping = (build_scenario(asked, stepping) for stepping in (False, True))
    assert leaping.setup.rounds._linear is not None
    ends = [simulate(built).requests[["first_token_ns", "finish_ns"]] for built in (leaping, stepping)]
    assert ends[0].equals(ends[1])


def test_trees_stop_paying() -> None:
    """63 nodes: over 1.5 times as fast for one sequence, slower than plain steps from 64 on."""
    found = curve(scenario("{name: tree}"), [Axis("batch", (1, 64))]).table["speedup"]
    assert found[0] > 1.5 and found[1] < 0.5


def fitted(batch: int) -> Tree:
    """A tree of up to 64 nodes fitted to an H100."""
    how = f"{{nodes: 64, depth: 5, by: hardware, batch: {batch}}}"
    policy = build_scenario(scenario(f"{{name: tree, tree: {how}, ranks: eagle-vicuna, drafter: eagle}}")).policy
    assert isinstance(policy, Tree)
    return policy


def test_the_hardware_decides_the_size() -> None:
    """Nearly 64 nodes for one sequence, fewer with the batch, a handful at 256; no other size is faster there."""
    sizes = {batch: fitted(batch).shape.nodes for batch in (1, 16, 64, 256)}
    assert sizes[1] > 50 and sizes[1] > sizes[16] > sizes[64] >= sizes[256] and sizes[256] <= 4
    for batch in (1, 64):
        rates = {}
        for nodes in (2, 8, 24, 64, sizes[batch]):
            size = f"tree: {{nodes: {nodes}, depth: {5 if nodes != sizes[batch] else fitted(batch).shape.depth}}}"
            asked = scenario(f"{{name: tree, {size}, ranks: eagle-vicuna, drafter: eagle}}")
            rates[nodes] = curve(asked, [Axis("batch", (batch,))]).table["speedup"][0]
        assert rates[sizes[batch]] >= max(rates.values()) * 0.99


def test_acceptance_may_follow_the_context() -> None:
    """EAGLE-3's collapse with the context: settled at one, and walked along a growing one."""
    points = {at: {"kind": "length", "tokens": tokens} for at, tokens in ((2048, 2.3), (16384, 1.09))}
    kind = {"kind": "context", "points": points}
    policy = Tree({"nodes": 3, "depth": 3, "width": 1}, [0.5], "eagle3", acceptance=kind)
    assert [policy.settled(c).expected_tokens for c in (1000, 16384)] == pytest.approx([2.3, 1.09])
    early, late = (policy.future(Luck(1).of(0, 0, prompt), 0, 4000).kept.mean() for prompt in (100, 20_000))
    assert early > 1.2 and late < 0.15


def test_quality_is_said() -> None:
    """Lossless but for typical acceptance, which has a source."""
    assert all(Tree(verification=way).quality == LOSSLESS for way in ("greedy", "specinfer", "sequoia"))
    assert Tree(verification="typical").quality == TYPICAL and TYPICAL.loss_percent == 0.55
    before, after = 6.17 + 7.32 + 6.57 + 7.13, 6.18 + 7.25 + 6.43 + 7.18
    assert 100 * (before - after) / before == pytest.approx(TYPICAL.loss_percent, abs=0.005)


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": "medusa-64"}, "policy.tree: 'medusa-64' is not one of medusa-63, eagle-25; did you mean 'medusa-6"),
        ({"tree": [[0, 0]]}, "policy.tree: [0, 0]: its parent [0] is not in the tree"),
        ({"tree": [[0], [2]]}, "policy.tree: [2]: its better sibling [1] is not in the tree"),
        ({"tree": [[0], [0]]}, "policy.tree: a tree has 1 to 1024 different nodes, got 2"),
        ({"tree": {"nodes": 0}}, "policy.tree.nodes: 0 is not a whole number from 1 to 512"),
        ({"tree": {"nodes": 4, "size": 2}}, "policy.tree.size: unknown; takes nodes, depth, by"),
        ({"tree": {"nodes": 4, "by": "best"}}, "policy.tree.by: 'best' is not one of greedy, sequoia"),
        ({"tree": {"nodes": 4, "by": "sequoia"}}, "policy.tree.by: sequoia takes one list of chances"),
        ({"ranks": [0.7, 0.7]}, "policy.ranks[0]: [0.7, 0.7] adds up to 1.4; one child at most is accepted"),
        ({"ranks": "medusa"}, "policy.ranks: 'medusa' is not one of medusa-vicuna-7b"),
        ({"ranks": {"target": [1, 1], "draft": [1]}}, "policy.ranks.draft: [1] is not a list of 2 to 12 weights"),
        ({"ranks": {"states": [{"share": 0.5, "ranks": [0.5]}]}}, "policy.ranks.states: shares add up to 0.5, not"),
        ({"drafter": "head"}, "policy.drafter.kind: 'head' is not one of heads, hydra"),
        ({"drafter": {"kind": "heads", "count": 2}}, "policy.drafter.count: 2 heads, the tree is 4 deep"),
        ({"drafter": "model"}, "policy.drafter.draft: missing"),
        ({"drafter": {"kind": "mtp", "count": 2}}, "policy.drafter.count: unknown; mtp takes no options"),
        ({"verification": "tipical"}, "policy.verification: 'tipical' is not one of greedy, specinfer, sequoia, ty"),
        ({"acceptance": {"kind": "empirical", "betas": [1.0]}}, "policy.acceptance.kind: 'empirical' is not one of"),
        ({"host_us": -1}, "policy.host_us: -1 is not a number from 0 to 1e+06"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    with pytest.raises(ValueError) as caught:
        Tree(**options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


WORDS = st.sampled_from(["nodes", "depth", "by", "states", "share", "ranks", "kind", "count"])


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 70) | st.floats() | st.sampled_from(["x", "greedy", "eagle"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
        max_leaves=12,
    ),
    st.sampled_from(["tree", "ranks", "drafter", "verification", "acceptance", "host_us"]),
)  # fmt: skip
def test_hostile_options_are_taken_or_refused(value: Any, option: str) -> None:
    """Whatever YAML may hold: a policy that works, or a ValueError of one line that names the option."""
    try:
        policy = Tree(**{option: value})
    except ValueError as error:
        assert str(error).startswith(f"policy.{option}") and "\n" not in str(error)
    else:
        assert 1.0 <= policy.expected_tokens <= policy.plan.depth + 1


def test_drafts_name_models() -> None:
    """Heads and layers are the target cut down; a draft model is what was named."""
    for kind, count in (("heads", 1), ("hydra", 4), ("eagle3", 2)):
        drafts = Tree(drafter=kind).drafts
        assert len(drafts) == count and all(isinstance(d, Model) and d.name is None for d in drafts)
    assert Tree(drafter={"kind": "model", "draft": "d"}).drafts == ("d",)
    assert list(itertools.chain(Tree(drafter={"kind": "model", "draft": "self"}).drafts)) == [Model(None)]
