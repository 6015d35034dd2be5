"""Gamma by load, really run over batches that grow and shrink: lossless, and counted exactly, off and on again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.policies import Chunk, Chunks, Future
from sim.policies.load_adaptive import LoadAdaptive
from sim.reference.decoding import Round, decode
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import autoregressive, load_adaptive
from sim.validation.counts import added, each, measured, mismatches, simulated
from sim.validation.distribution import PROMPT, chi_square, continuations, critical_share, tiny_pair
from sim.validation.stand_in import dense, stand_in

TIERS = ((1, 3), (3, 1), (4, 0))
BATCHES = [[0], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4, 0], [0, 1, 3, 4], [2], [0, 2], [1, 2, 4], [4], [3], [0], [1]]
OFF = pytest.mark.parametrize("off", ["fed", "idle"])


def policy(off: str, hysteresis: int = 0) -> LoadAdaptive:
    return LoadAdaptive("d", [{"batch": b, "gamma": g} for b, g in TIERS], hysteresis, off=off)


def future(rounds: list[Round]) -> Future:
    """The rounds of one sequence as they were."""
    kept, drafted = (
        np.array(c, dtype=np.int64) for c in ([r.accepted for r in rounds], [len(r.drafted) for r in rounds])
    )
    return Future(kept + 1, np.cumsum(kept + 1) - kept - 1, kept, drafted)


def drive(twin: load_adaptive.Twin, target: Any, prompts: Any) -> list[list[tuple[int, Round]]]:
    """Rounds over BATCHES; (sequence, what it did) of each."""
    session = twin.begin(target, prompts, Sampler(), 1)
    session.prefill()
    return [list(zip(active, session.round(active), strict=True)) for active in BATCHES]


@OFF
@pytest.mark.parametrize("window", [None, 9])
def test_counts_are_exact(off: str, window: int | None) -> None:
    """FLOPs and bytes of every op, both models, through tiers up and down: what was missed while off is read later."""
    shapes = dense(16, 2, 2, 1, 32, 12, window=window), dense(8, 1, 2, 2, 16, 12, window=window)
    target, draft = (stand_in(shape, 3 + i, sharpness=3.0) for i, shape in enumerate(shapes))
    prompts = [stream(s, "load").integers(0, 12, n) for s, n in enumerate((9, 4, 17, 2, 6))]
    target.meter.reset()
    draft.meter.reset()
    happened = drive(load_adaptive.Twin(draft, TIERS, off=off), target, prompts)
    assert [len(r[0][1].drafted) for r in happened] == [3, 1, 0, 0, 0, 3, 3, 1, 3, 3, 3, 3]
    ours, windows = policy(off), (target.shape.windows, draft.shape.windows)
    own = {s: [r for round_ in happened for n, r in round_ if n == s] for s in range(5)}
    rows = {s: np.array(ours.rows(future(own[s]), len(prompts[s]), windows)) for s in own}
    works: tuple[list[Any], list[Any]] = ([], [])
    chunks = Chunks([Chunk(0, len(p), True) for p in prompts])
    passes = [(p.model, p.work) for p in ours.passes(0, None, chunks, windows)]
    place = dict.fromkeys(range(5), 0)
    for active in BATCHES:
        total = np.sum([rows[s][:, place[s]] for s in active], axis=0)[:, None]
        passes += [(p.model, w) for p in ours.passes(len(active), total, None, windows) for w in each(p.work)]
        for s in active:
            place[s] += 1
    for model, work in passes:
        if work.tokens:
            works[model].append(work)
    tally = added(simulated(target.shape, works[0]), simulated(draft.shape, works[1], "draft."))
    assert mismatches(tally, added(measured(target.meter), measured(draft.meter))) == []


@pytest.mark.parametrize("hysteresis", [0, 1])
def test_policy_and_twin_climb_the_same_ladder(hysteresis: int) -> None:
    """The tier after any tier and batch."""
    ours, twin = policy("fed", hysteresis), load_adaptive.Twin(tiers=TIERS, hysteresis=hysteresis)
    for before in range(3):
        assert [ours.tier_of(before, n) for n in range(1, 9)] == [twin.tier(before, n) for n in range(1, 9)]


@OFF
def test_greedy_output_is_the_targets_own(off: str) -> None:
    """A batch whose sequences end one after the other passes through all tiers; every token is the target's."""
    target, draft = (stand_in(dense(16, 2, 2, 1, 32, 24), seed, sharpness=4.0) for seed in (21, 22))
    prompts, limits = [stream(s, "greedy").integers(0, 24, 8) for s in range(12)], list(range(4, 40, 3))
    twin = load_adaptive.Twin(draft, ((1, 4), (4, 2), (8, 0)), off=off)
    plain, fast = (decode(t, target, prompts, limits, sampler=Sampler(0)) for t in (autoregressive.Twin(), twin))
    assert [g.tokens for g in plain] == [g.tokens for g in fast]
    assert {len(r.drafted) for g in fast for r in g.rounds[1:]} == {0, 2, 4}


class StaleDrafter(load_adaptive.TieredDrafter):
    """Fault: what was emitted while drafts were off is never read, as in vllm-metal before its PR 716."""

    def unread(self, sequence: int, context: list[int]) -> Any:
        """Always one token."""
        return np.array(context[-1:])


def accepted(draft: Any, target: Any, off: str) -> float:
    """Share of drafts kept after twelve rounds without any: 64 sequences at once, then one by one."""
    prompts = [stream(s, "stale").integers(0, 24, 12) for s in range(64)]
    session = load_adaptive.Twin(draft, ((1, 1), (2, 0)), off=off).begin(target, prompts, Sampler(), 2)
    session.prefill()
    for _ in range(12):
        session.round(range(64))
    return float(np.mean([r.accepted for s in range(64) for r in session.round([s])]))


def test_a_stale_draft_loses_its_acceptance_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed and idle drafts come back as good as each other; a planted stale cache shows in acceptance, not in output."""
    target = stand_in(dense(16, 2, 2, 1, 32, 24), 5, sharpness=3.0)
    fed, idle = (accepted(target, target, off) for off in ("fed", "idle"))
    assert fed == idle == 1.0
    monkeypatch.setattr(load_adaptive, "TieredDrafter", StaleDrafter)
    assert accepted(target, target, "idle") < 0.9
    small, draft = tiny_pair()
    runs = decode(load_adaptive.Twin(draft, ((1, 2),)), small, [PROMPT] * 4000, 4, seed=5)
    digits = np.array([run.tokens for run in runs]) @ 4 ** np.arange(3, -1, -1)
    statistic, freedom = chi_square(np.bincount(digits, minlength=256), continuations(small, PROMPT, 4))
    assert statistic / freedom - 1 < critical_share(freedom)


@pytest.mark.parametrize("options", [{"tiers": ((2, 3),)}, {"tiers": ((1, 3), (1, 0))}, {"off": "stale"}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    """One line with the option and what is allowed."""
    [key] = options
    with pytest.raises(ValueError, match=rf"policy load_adaptive: {key} .* allowed: [^\n]*$"):
        load_adaptive.Twin(**options)
