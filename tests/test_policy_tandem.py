"""Tandem: the paper's laws through the policy, passes by counting keys, projections by hand, counts of real blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tandem_pair import PRIMARY, SECONDARY, counts_of, meters_of, secondary_of
from variant_counting import A100

from sim import Scenario, simulate
from sim.analytic.cost import Layout, PassCost
from sim.analytic.model import ModelShape
from sim.analytic.precision import Precision
from sim.analytic.work import Work
from sim.axes import Axis
from sim.build import build_scenario
from sim.policies import Chunk, Chunks, Model
from sim.policies.speculative import Speculative
from sim.policies.tandem import Tandem
from sim.policies.tandem_law import end_to_end, prefill_share
from sim.policies.tandem_projection import Project, check_map, spread
from sim.quality import LOSSLESS, losses
from sim.reference.acceptance import kept_survival
from sim.reference.checkpoint import load
from sim.reference.decoding import Generation, decode
from sim.reference.replay import bootstrap_sums
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import tandem
from sim.reference.twins._secondary import load_secondary
from sim.serving.luck import Luck
from sim.speedup import Ratio, curve
from sim.validation.counts import mismatches
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out

C = 1 / 6.397  # PaLM2-Gecko's step in those of PaLM2-Bison (arXiv 2402.08644v3, table 3)
MODELS = ["model=llama-3.1-8b"]
WRITES: dict[str, Any] = {"draft": "d", "gamma": 3, "mode": "standalone"}


def speedups(options: str, *axes: Axis) -> list[float]:
    """Of a tandem with costs by decree."""
    said = f"policy={{name: tandem, draft: llama-3.2-1b, {options}}}"
    found = curve(Scenario.load("chat_h100", [said, *MODELS]), axes, Ratio(draft=C)).table["speedup"]
    return [float(s) for s in found]


# --- the paper's laws


def test_speed_of_standalone_blocks() -> None:
    """(g + 1) / (1 + g c) for g = 0, 1, 3, printed 2.744 with gamma 3; without the free token 3 / (1 + 3 c)."""
    by_hand = [(g + 1) / (1 + g * C) for g in (0, 1, 3)]
    found = speedups("mode: standalone, gamma: 3", Axis("policy.gamma", (0, 1, 3)))
    assert found == pytest.approx(by_hand) and found[2] == pytest.approx(2.744, rel=0.02)
    assert speedups("mode: standalone, gamma: 3, free_token: false") == pytest.approx([3 / (1 + 3 * C)])


def test_speed_of_judged_blocks_is_speculative_decoding() -> None:
    """Projections are part of the primary's pass: the same speedup as a chain of the same acceptance."""
    chain = "policy={name: speculative, draft: llama-3.2-1b, gamma: 7, acceptance: 0.902}"
    plain = curve(Scenario.load("chat_h100", [chain, *MODELS]), (), Ratio(draft=C)).table["speedup"]
    assert speedups("gamma: 7, acceptance: 0.902") == pytest.approx(plain.tolist())


def test_adaptive_blocks_from_run_counts() -> None:
    """Runs per answer printed for fixed and adaptive blocks on LM1B (table 5) and the fixed speedup give the other."""
    tokens = 2.756 * (1 + 7 * C) * 51.53
    counts = f"{{kind: counts, tokens: {tokens}, rounds: 54.67, drafts: 271.63}}"
    found = speedups(f"gamma: 27, adaptive: {{threshold: 0.8, rule: router}}, acceptance: {counts}")
    assert found == pytest.approx([3.04], rel=0.02)


def test_prefill_share_by_hand() -> None:
    """Half of the time in prefill and decoding three times as fast: 1.5x; and back."""
    assert end_to_end(3.0, 0.5) == pytest.approx(1.5)
    assert prefill_share(3.0, 1.5) == pytest.approx(0.5)
    assert end_to_end(2.7, 0.0) == pytest.approx(2.7)
    with pytest.raises(ValueError, match="whole: 4 is not a number from 1 to 3"):
        prefill_share(3.0, 4)
    with pytest.raises(ValueError, match=r"prefill_share: 1\.5 is not a number from 0 to 1"):
        end_to_end(2.0, 1.5)


def test_tokens_a_round() -> None:
    """The whole block where nothing is judged; 1 + the survival vector where it is; one for the primary alone."""
    assert Tandem(**WRITES).expected_tokens == 4 and Tandem(**WRITES, free_token=False).expected_tokens == 3
    assert Tandem("d", 3, acceptance=0.5).expected_tokens == 1.875
    assert Tandem("d", 0).expected_tokens == Tandem("d", 0, "standalone").expected_tokens == 1
    assert Tandem("d", 0).drafts == ()


def test_acceptance_of_one_context() -> None:
    """Where acceptance depends on the context, the settled policy has that context's; else it is itself."""
    policy = Tandem("d", 2, acceptance={"kind": "context", "points": {10: 0.9, 100: 0.5}})
    assert policy.settled(100).expected_tokens == pytest.approx(1.75)
    assert Tandem("d", 2).settled(100) is not None and Tandem("d", 2).settled(7) == Tandem("d", 2)


def test_quality_is_the_papers_or_unknown() -> None:
    """57.5 -> 44.0 with gamma 3; unknown for other blocks; nothing lost where the primary judges or writes alone."""
    assert Tandem(**WRITES).quality.loss_percent == pytest.approx(100 * (1 - 44.0 / 57.5), abs=0.01)
    assert np.isnan(losses(replace(Tandem(**WRITES), gamma=5), ()).percent)
    assert Tandem("d").quality == Tandem("d", 0, "standalone").quality == LOSSLESS


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "alone"}, "policy.mode: 'alone' is not one of speculative, standalone"),
        ({"free_token": 1}, "policy.free_token: 1 is not true or false"),
        ({"free_token": False}, "policy.free_token: False: verification gives a token anyway; needs mode standalone"),
        ({"mode": "standalone", "gamma": 0, "free_token": False}, "policy.gamma: 0 is not a whole number from 1 to 64"),
        ({"mode": "standalone", "adaptive": {}}, "policy.adaptive: blocks end early where they are judged; needs"),
        ({"adaptive": {"treshold": 0.5}}, "policy.adaptive.treshold: unknown; it takes threshold, rule, skill, last;"),
        ({"layer_map": [1, -1]}, "policy.layer_map: [1, -1] is not spread, nor a list of primary layers from 0 on"),
        ({"draft": {"model": "self", "kv": "shared"}}, "policy.draft.kv: shared: projected keys and values are"),
        ({"acceptance": 1.5}, "policy.acceptance.alpha: 1.5 is not a probability from 0 to 1"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    with pytest.raises(ValueError) as caught:
        Tandem(**{"draft": "d", **options})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_layer_maps_are_held_against_both_models() -> None:
    """Spread evenly up to the primary's last layer; a list has a place for each layer, none beyond the primary."""
    assert spread(2, 4) == (2, 4) and spread(3, 32) == (11, 21, 32) and check_map([0, 5]) == (0, 5)
    for said, message in (("[1, 2]", "must name 16 layers, each from 0 to 32"), (str([33] * 16), "each from 0 to 32")):
        policy = f"policy={{name: tandem, draft: llama-3.2-1b, layer_map: {said}}}"
        with pytest.raises(ValueError, match=rf"^policy\.layer_map: \[.*{message}"):
            build_scenario(Scenario.load("chat_h100", [policy, *MODELS]))


# --- work


def attended(new: int, cached: int, window: int | None) -> tuple[int, int]:
    """(pairs, reads) of ``new`` queries after ``cached`` tokens, key by key."""
    keys = [[k for k in range(cached + i + 1) if window is None or k > cached + i - window] for i in range(new)]
    return sum(map(len, keys)), sum(k < cached for k in keys[0])


def run_passes(policy: Tandem, totals: Any, windows: Any) -> Iterator[tuple[Any, ...]]:
    """(model, tokens, logit rows, pairs, reads) of the passes of one round of one sequence."""
    for one in policy.passes(1, totals, None, windows):
        yield (one.model, *one.work[:4])


@pytest.mark.parametrize("kinds", [(None,), (None, 7), (5,)])
@pytest.mark.parametrize(
    ("mode", "free", "rows"), [("standalone", True, 1), ("standalone", False, 0), ("speculative", True, 4)]
)
def test_passes_by_hand(mode: str, free: bool, rows: int, kinds: tuple[int | None, ...]) -> None:
    """Three secondary passes over a token, the primary's over the block, projections of it; nothing to catch up."""
    policy, windows = Tandem("d", 3, mode, free, 0.8), (kinds, kinds[::-1], kinds[::-1])
    future, context, new = policy.future(Luck(5).of(0), 0, 40), 4, 3 + free
    totals = np.array(policy.rows(future, context, windows))
    for i, gain in enumerate(future.gains.tolist()):
        want: list[Any] = []
        for model, n, at, logits in ((1, 1, 0, 1), (1, 1, 1, 1), (1, 1, 2, 1), (0, new, 0, rows)):
            counts = [attended(n, context + at, w) for w in windows[model]]
            want.append((model, n, logits, tuple(p for p, _ in counts), tuple(r for _, r in counts)))
        assert list(run_passes(policy, totals[:, i].tolist(), windows)) == [*want, (2, new, 0, None, None)]
        context += gain


def test_prompts_are_read_by_the_primary_and_projected() -> None:
    """No pass of the secondary over a prompt, alone or beside decodes; gamma 0 needs no projections either."""
    windows, chunks = ((None,),) * 3, Chunks([Chunk(0, 9, True)])
    alone = [(one.model, one.work.tokens) for one in Tandem("d", 2).passes(0, None, chunks, windows)]
    assert alone == [(0, 9), (2, 9)]
    beside = [(one.model, one.work.tokens) for one in Tandem("d", 2).passes(1, [5], chunks, windows)]
    assert beside == [(1, 1), (1, 1), (0, 12), (2, 12)]
    assert [one.model for one in Tandem("d", 0).passes(1, [5], chunks, windows[:1])] == [0]


def projections(shape: ModelShape, primary: ModelShape, tensor: int = 1) -> PassCost:
    return PassCost(shape, A100, Precision(), Layout(tensor=tensor), variants=(Project().beside(primary),))


def test_projections_by_hand() -> None:
    """Ten tokens from d = 16 to two layers of d = 8 with one KV head of 4: every FLOP and byte, bf16."""
    ops = {op.name: op for op in projections(SECONDARY, PRIMARY).ops(Work(10, 0))}
    assert {name: (op.layers, op.flops, op.weight_bytes) for name, op in ops.items()} == {
        "tandem.project": (2, 2 * 10 * 16 * 8, 16 * 8 * 2),
        "tandem.norm.attn": (2, 4 * 10 * 8, 8 * 2),
        "tandem.attn.kv": (2, 2 * 10 * 8 * 8, 8 * 8 * 2),
        "tandem.attn.rope": (2, 3 * 10 * 4, 0),
        "tandem.kv.append": (2, 0, 0),
    }
    assert ops["tandem.project"].activation_bytes == 10 * (16 + 8) * 2 and ops["tandem.kv.append"].kv_write_bytes == 160
    assert projections(SECONDARY, PRIMARY).weight_bytes_by_op == {"tandem.project": 2 * 16 * 8 * 2}
    assert float(projections(SECONDARY, PRIMARY).seconds(Work(0, 0))) == 0


def test_devices_share_heads_but_not_projections() -> None:
    """On two devices each one projects whole states and makes the keys and values of its own heads."""
    shape = dense(16, 2, 4, 2, 32, 8)
    one, two = ({op.name: op for op in projections(shape, PRIMARY, t).ops(Work(10, 0))} for t in (1, 2))
    assert two["tandem.project"].flops == one["tandem.project"].flops
    assert two["tandem.attn.kv"].flops * 2 == one["tandem.attn.kv"].flops
    assert two["tandem.kv.append"].kv_write_bytes * 2 == one["tandem.kv.append"].kv_write_bytes


def test_one_set_of_keys_and_values() -> None:
    """The pool holds the target's and the secondary's, projected or own: not three; projections cost their weights."""
    said = ["policy={name: tandem, draft: llama-3.2-1b}", *MODELS]
    built, plain = (
        build_scenario(Scenario.load("chat_h100", [p, *said[1:]]))
        for p in (said[0], said[0].replace("tandem", "speculative"))
    )
    assert built.setup.kv.token_bytes == plain.setup.kv.token_bytes
    more = dict(built.budget.lines)["draft weights"] - dict(plain.budget.lines)["draft weights"]
    assert more == 16 * 4096 * 2048 * 2


# --- blocks really written

LIMITS = (20, 3, 31)
SHAPES = {
    "full": (dense(16, 3, 2, 1, 32, 12), dense(8, 2, 2, 1, 16, 12)),
    "windows": (dense(16, 3, 4, 2, 24, 12, window=9), dense(12, 2, 2, 2, 16, 12, window=6)),
}


def runs_of(twin: tandem.Twin, target: Any, limits: tuple[int, ...] = LIMITS) -> list[Generation]:
    """A ragged batch; meters read it alone."""
    target.meter.reset()
    assert not isinstance(twin.draft, str)
    twin.draft.meter.reset()
    prompts = [stream(s, "tandem").integers(0, target.shape.vocab, n) for s, n in enumerate((9, 4, 17))]
    return decode(twin, target, prompts, limits, seed=1)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("mode", ["speculative", "standalone", "adaptive"])
def test_counts_are_exact(mode: str, shapes: tuple[ModelShape, ModelShape]) -> None:
    """FLOPs and bytes of every op of primary, secondary and projections: policy and meters are equal."""
    target, secondary = stand_in(shapes[0], 3, sharpness=2.0), secondary_of(*shapes, (1, 3))
    twin = tandem.Twin(
        secondary, 3, "standalone" if mode == "standalone" else "speculative", stop=0.3 if mode == "adaptive" else 0.0
    )
    runs = runs_of(twin, target)
    if mode == "adaptive":
        assert {len(r.drafted) for g in runs for r in g.rounds[1:]} == {1, 2, 3}
    policy = Tandem("d", 3, twin.mode, adaptive={} if mode == "adaptive" else None)
    assert mismatches(counts_of(policy, runs, *shapes), meters_of(target, secondary)) == []


def test_counts_without_the_free_token_are_exact_and_others_caught() -> None:
    """Blocks that all come from the secondary: equal counts; a policy that expects a free token differs."""
    target, secondary = stand_in(SHAPES["full"][0], 3), secondary_of(*SHAPES["full"], (1, 3))
    runs = runs_of(tandem.Twin(secondary, 3, "standalone", False), target, (19, 19, 19))
    shifted = [replace(g, rounds=(g.rounds[0], *(replace(r, accepted=2) for r in g.rounds[1:]))) for g in runs]
    right, wrong = (Tandem("d", 3, "standalone", free) for free in (False, True))
    assert mismatches(counts_of(right, shifted, *SHAPES["full"]), meters_of(target, secondary)) == []
    assert mismatches(counts_of(wrong, shifted, *SHAPES["full"]), meters_of(target, secondary)) != []


# --- whole runs, and acceptance measured


def test_a_run_gains_what_the_policy_expects() -> None:
    """Tokens a round of a served trace within 1 %; four samples of a prompt share its blocks."""
    said = ["policy={name: tandem, draft: llama-3.2-1b, gamma: 4, acceptance: 0.8}", *MODELS, "workload.requests=400"]
    requests = simulate(Scenario.load("chat_h100", said)).requests
    drafted, accepted, rounds = (int(requests[c].sum()) for c in ("drafted_tokens", "accepted_tokens", "rounds"))
    assert drafted == 4 * rounds
    assert accepted / rounds == pytest.approx(Tandem("d", 4, acceptance=0.8).expected_tokens - 1, rel=0.01)


def test_a_prompt_costs_the_secondary_nothing() -> None:
    """The first token comes sooner than with a plain drafter, which reads the prompt too."""
    ttft = []
    for name in ("tandem", "speculative"):
        said = [f"policy={{name: {name}, draft: llama-3.2-1b, gamma: 4, acceptance: 0.8}}", *MODELS]
        requests = simulate(Scenario.load("chat_h100", [*said, "workload.requests=50", "workload.rate=0.2"])).requests
        ttft.append(float(requests["ttft_ms"].mean()))
    assert ttft[0] < ttft[1]


def kept_rounds(runs: list[Generation], gamma: int) -> np.ndarray[Any, Any]:
    """Rounds and tokens of each answer, rounds that could keep every draft."""
    sums = []
    for run in runs:
        starts = np.cumsum([len(r.emitted) for r in run.rounds])[:-1]
        whole = [len(r.emitted) for at, r in zip(starts, run.rounds[1:], strict=True) if at + gamma < len(run.tokens)]
        sums.append((len(whole), sum(whole)))
    return np.array(sums, dtype=float)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_tokens_of_real_blocks(temperature: float) -> None:
    """Survival counted on text A, by place in the block, says what blocks of text B gain, within a 99 % interval."""
    primary, secondary, gamma = load("primary"), load_secondary(), 4
    first, second = (
        decode(tandem.Twin(secondary, gamma), primary, held_out(part, 32), 96, sampler=Sampler(temperature), seed=seed)
        for seed, part in enumerate("ab")
    )
    vector = kept_survival(first, gamma).tolist()
    policy = Tandem("d", gamma, acceptance={"kind": "survival", "vector": vector})
    draws = [bootstrap_sums(kept_rounds(runs, gamma), 1000, 0) for runs in (first, second)]
    half = 2.576 * float(np.linalg.norm([np.std(d[:, 1] / d[:, 0]) for d in draws]))
    rounds, tokens = kept_rounds(second, gamma).sum(axis=0)
    assert half < 0.1 * policy.expected_tokens
    assert abs(policy.expected_tokens - tokens / rounds) < half


def test_chains_are_those_of_speculative_decoding() -> None:
    """The same luck, the same rounds as a plain drafter of the same acceptance."""
    plain, own = (
        Speculative("d", 5, 0.8).future(Luck(3).of(7), 0, 90),
        Tandem("d", 5, acceptance=0.8).future(Luck(3).of(7), 0, 90),
    )
    assert plain.kept.tolist() == own.kept.tolist() and plain.gains.tolist() == own.gains.tolist()
    projections = Tandem("d").drafts[1]
    assert isinstance(projections, Model) and not projections.own_kv
