"""Encoder-decoders in a run: prompts encoded once and read across; leaping exact, counts by hand, memory kept."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from analytic_models import calibrated, device
from engine_setup import Case, label, longer, run_engine, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from test_leap_exact import differences

from sim import Scenario, simulate
from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.build import build_scenario, load_shape
from sim.policies import Chunk, Chunks, Future
from sim.policies.autoregressive import Autoregressive
from sim.policies.encoded import Encoded, Kind
from sim.policies.ngram import Ngram
from sim.policies.speculative import Speculative
from sim.request import Request
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static
from sim.serving.encoded_kv import EncodedKv
from sim.serving.kv import Span
from sim.serving.replica import Replica
from sim.speedup import curve

KINDS = (None, 7)
POLICIES = [Autoregressive(), Ngram(4, 0.6), Speculative("d", 3, 0.8), Speculative("d", 1, 1.0)]
SCHEDULERS = [Chunked(24, 6, whole=True), Chunked(64, 3, whole=True), Continuous(30, 6), Static(4)]
ALL = pytest.mark.parametrize("policy", POLICIES, ids=label)


def encoded(policy: Any, kinds: tuple[int | None, ...] = (None,), shared: bool = False) -> Encoded:
    """The policy over models with encoders; ``shared``: a draft works on the target's source."""
    windows = (kinds, *(kinds[::-1] for _ in policy.drafts))
    return Encoded(policy, tuple(Kind(True, i == 0 or not shared) for i in range(len(windows))), windows)


# --- the engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=label)
@ALL
def test_leaping_is_the_stepper(policy: Any, scheduler: Any) -> None:
    """Bit for bit: free times, bursts, groups of samples, little memory, sources that wait for a round of their own."""
    for gap in (500, 60_000):
        easy = Case(encoded(policy, KINDS), scheduler, trace(14, gap, 1), windows=KINDS, host_s=1e-6)
        assert differences(easy) == []
        crowd = longer(trace(14, gap, 2, 1000, samples=2), 8)
        tight = replace(easy, requests=crowd, quantum_ns=1000, capacity_bytes=1100, watermark=0.05)
        assert differences(tight) == []
        assert differences(replace(tight, mode="reserved", max_context=60, capacity_bytes=5000)) == []


def test_memory_pressure_preempts() -> None:
    """Sequences are preempted, and encoded and read again with what they had emitted; no round exceeds memory."""
    case = Case(encoded(Autoregressive()), Chunked(64, 8, whole=True), longer(trace(20, 9_000, 11, samples=2), 30))
    case = replace(case, capacity_bytes=1300)
    assert differences(case) == []
    _, _, recorder = run_engine(case)
    chunks, leaps = recorder.chunks.frame(), recorder.leaps.frame()
    assert (chunks["new"] > chunks["prompt"]).sum() > 3 and leaps["kv_bytes"].max() <= case.capacity_bytes


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 999, 1000, 9000]), st.integers(1, 40), st.integers(1, 16),
                       st.integers(1, 3)), min_size=1, max_size=8),
    st.sampled_from(POLICIES), st.integers(1, 7), st.integers(5, 40),
    st.one_of(st.integers(300, 3000), st.just(1 << 40)), st.sampled_from([1, 4, 16]),
)  # fmt: skip
def test_leaping_is_exact(rows: Any, policy: Any, seats: int, budget: int, capacity: int, block: int) -> None:
    """Whatever comes together."""
    now = np.cumsum([row[0] for row in rows]).tolist()
    requests = tuple(Request(i, t, p, o, n) for i, (t, (_, p, o, n)) in enumerate(zip(now, rows, strict=True)))
    case = Case(encoded(policy), Chunked(budget, seats, whole=True), requests, (None,), capacity, block)
    assert differences(case) == []
    assert differences(replace(case, scheduler=Continuous(budget, seats), quantum_ns=1000)) == []


@cache
def real() -> tuple[PassCost, PassCost]:
    """T5 base and small on an H100 with the terms that measured kernels need."""
    names = ("t5-v1.1-base", "t5-v1.1-small")
    base, small = (PassCost(load_shape(name, "model"), calibrated(device("h100-sxm"))) for name in names)
    return base, small


@ALL
def test_with_the_real_cost(policy: Any) -> None:
    """One round and many have the same bits through T5's own passes, encoder and cross attention included."""
    costs = real()[: 1 + len(policy.drafts)]
    case = Case(Encoded.of(policy, costs), Chunked(64, 8, whole=True), longer(trace(10, 200_000, 15), 60), real=costs)
    for stepping in (False, True):
        assert differences(replace(case, host_s=1e-5), stepping) == []


# --- counts ---------------------------------------------------------------------------------------


def test_counts_by_hand() -> None:
    """A source of 23 tokens: encoded once, 23 * 23 pairs both ways; then one start token, and a token a round."""
    policy = encoded(Autoregressive()).reading(23)
    (prefill,) = policy.passes(0, None, Chunks([Chunk(0, 23, True, 23)]), ((None,),))
    want = Work(1, 1, None, None, (1,), (0,), 1, 23, 529, 23, 23, 23)
    assert prefill.work == want
    rows = policy.rows(Autoregressive().future(None, 0, 26), 23, ((None,),))  # type: ignore[arg-type]
    for step in (0, 1, 25):
        (one,) = policy.passes(1, [int(row[step]) for row in rows], None, ((None,),))
        assert one.work == Work(1, 1, (step + 2,), (step + 1,), cross_pairs=23, cross_reads=23)


def test_a_preempted_request_is_encoded_again() -> None:
    """Seven tokens are out: the source is encoded anew, the decoder reads its start token and the seven in one pass."""
    policy = encoded(Autoregressive())
    (one,) = policy.passes(0, None, Chunks([Chunk(0, 30, True, 23)]), ((None,),))
    assert one.work == Work(8, 1, None, None, (36,), (0,), 8, 23, 529, 8 * 23, 23, 23)


def test_rows_of_a_draft_that_catches_up() -> None:
    """Two sequences, one behind: its draft runs two rows, each across its own source; verification gamma + 1 rows."""
    policy, windows = encoded(Speculative("d", 2, 0.5)), ((None,), (None,))
    kept = (np.array([2, 0]), np.array([0, 0]))
    totals = []
    for source, k in zip((10, 100), kept, strict=True):
        gains = k + 1
        future = Future(gains, np.cumsum(gains) - gains, k, np.full(2, 2))
        totals.append(np.array(policy.reading(source).rows(future, source, windows))[:, 1])
    passes = [one.work for one in policy.passes(2, (totals[0] + totals[1]).tolist(), None, windows)]
    assert [int(np.max(w.cross_pairs)) for w in passes] == [2 * 10 + 100, 110, 3 * 110]
    assert [int(np.max(w.cross_reads)) for w in passes] == [110] * 3


def test_a_draft_on_the_targets_cache_encodes_nothing() -> None:
    """An early exit of the target that shares its cache reads the source that the target encoded."""
    data = {"model": "t5-v1.1-base", "hardware": "h100-sxm", "workload": {"requests": 4, "rate": 5, "prompt": 20,
            "output": 8}, "policy": {"name": "speculative", "gamma": 2, "draft": {
                "model": "self", "variants": [{"early_exit": {"layers": 2}}], "kv": "shared"}}}  # fmt: skip
    built = build_scenario(Scenario.parse(data))
    passes = list(built.policy.passes(0, None, Chunks([Chunk(0, 20, True, 20)]), built.setup.windows))
    assert [one.model for one in passes] == [0] and passes[0].work.encoder_tokens == 20
    assert isinstance(built.setup.kv, EncodedKv) and built.setup.kv.source_bytes == 12 * 768 * 2 * 2


def test_memory_of_a_source() -> None:
    """Blocks of the source once for all samples, and of what each decoder has cached, a start token among it."""
    book = EncodedKv(10**6, (Span(3),), 5, block_tokens=4, lookahead=1)
    assert book.bytes_of(10, 10) == 12 * 5 + 4 * 3  # nothing is out: 10 tokens in 3 blocks, a start token in one
    assert book.bytes_of(14, 10) == 12 * 5 + 8 * 3
    assert book.group_bytes(10, [14, 10]) == 12 * 5 + 8 * 3 + 4 * 3
    assert book.bytes_along(np.array([10, 14]), 0, 10).tolist() == [book.bytes_of(10, 10), book.bytes_of(14, 10)]


# --- scenarios ------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "model": "t5-v1.1-base", "hardware": "h100-sxm", "seed": 3,
    "workload": {"requests": 60, "rate": 40, "prompt": {"kind": "uniform", "low": 5, "high": 300},
                 "output": {"kind": "uniform", "low": 1, "high": 60}},
}  # fmt: skip


@pytest.mark.parametrize("policy", ["autoregressive", {"name": "speculative", "gamma": 3}, "ngram"], ids=str)
def test_a_run_adds_up(policy: Any) -> None:
    """Every request is served; the accounts' seconds are the clock's within a thousandth; a rerun is equal."""
    run = simulate(Scenario.parse({**SMALL, "policy": policy}))
    assert run.metrics["requests"]["finished"] == 60
    assert np.abs(run.accounts.scale - 1.0).max() < 1e-3  # a mean round is not quite the mean of rounds
    assert run.built.policy.name == (policy if isinstance(policy, str) else policy["name"])
    again = simulate(run.scenario)
    assert again.recorder.requests.array().tolist() == run.recorder.requests.array().tolist()


def test_speedup_of_t5() -> None:
    """Theorem 3.8 with c and verification from T5's own passes; the source is the context."""
    scenario = Scenario.parse({**SMALL, "policy": {"name": "speculative", "draft": "t5-v1.1-small", "gamma": 3}})
    row = curve(scenario).row(0)
    base, small = (PassCost(load_shape(n, "model"), device("h100-sxm")) for n in ("t5-v1.1-base", "t5-v1.1-small"))
    step = float(base.seconds(Work.decode(1, 2)._replace(cross_pairs=1024, cross_reads=1024)))
    assert row["step_ms"] == pytest.approx(step * 1e3, rel=1e-4)  # one token more its own, one less the source's
    draft = float(small.seconds(Work.decode(1, 2)._replace(cross_pairs=1024, cross_reads=1024)))
    verify = float(base.seconds(Work.decode(1, 5, 4)._replace(cross_pairs=4 * 1024, cross_reads=1024)))
    assert row["speedup"] == pytest.approx(row["expected_tokens"] * step / (3 * draft + verify), rel=0.02)


def test_refusals() -> None:
    """What is not modelled says so: passes that only some sequences run, split prompts, drafts of another kind."""
    for key, said, why in (
        ("policy", "adaptive", "adaptive: passes that only some sequences run are not modelled with an encoder"),
        ("policy", {"name": "load_adaptive"}, "not modelled for a model with an encoder"),
        ("policy", {"name": "speculative", "draft": "llama-3.2-1b"}, "is not an encoder-decoder, as the target is"),
        ("scheduler", {"name": "chunked", "whole": False}, "an encoder reads a prompt in one piece"),
    ):
        with pytest.raises(ValueError, match=why):
            build_scenario(Scenario.parse({**SMALL, key: said}))


# --- planted faults -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["rows", "memory"])
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The engine forgets whose source it is, or counts the source once more: the stepper sees either."""
    case = Case(encoded(Speculative("d", 2, 0.7)), Chunked(48, 6, whole=True), longer(trace(12, 3_000, 4), 12))
    case = replace(case, capacity_bytes=1500)
    assert differences(case) == []
    if fault == "rows":
        monkeypatch.setattr("sim.serving.replica.Replica._rows", _forgetful)
    else:
        monkeypatch.setattr(EncodedKv, "shared_bytes", lambda self, prompt, samples: 4 * self.block_tokens)
        case = replace(case, requests=longer(trace(12, 3_000, 4, samples=2), 12))
    assert differences(case) != []


def _forgetful(self: Any, sequence: Any, futures: Any, ahead: int) -> Any:
    """Nobody is told how long the source is."""
    self.encoding, kept = None, self.encoding
    try:
        return ROWS(self, sequence, futures, ahead)
    finally:
        self.encoding = kept


ROWS = Replica._rows
