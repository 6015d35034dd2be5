"""What every policy owes: found by name, never listed here. Options that reach its corners: tests/engine_setup.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_setup import POLICIES, label, policies
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.analytic.work import Work
from sim.plugin import build, discover
from sim.policies import Chunk, Chunks, Future, Model
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.serving.luck import Luck

ALL = pytest.mark.parametrize("policy", policies(), ids=label)
KINDS = [(None,), (None, 7), (5,), (3, None, 11)]
COLUMNS = ("gains", "kept", "drafted")
FIELDS = tuple(Work.__annotations__)
FEW = settings(max_examples=25)  # of each policy; thousands over all of them at the end of the section


def windows_of(policy: Any, kinds: tuple[int | None, ...]) -> tuple[tuple[int | None, ...], ...]:
    """These kinds for the target and, in reverse order, for each draft."""
    return (kinds, *(kinds[::-1] for _ in policy.drafts))


def columns(future: Future) -> list[list[int]]:
    return [getattr(future, c).tolist() for c in COLUMNS]


# --- what it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(discover("sim.policies")))
def test_a_policy_is_a_frozen_dataclass_of_its_options(name: str) -> None:
    """One name, no base class, values that compare and hash, nothing to change after it was made."""
    kind = discover("sim.policies")[name]
    assert kind.__bases__ == (object,) and kind.__name__.lower() == name.replace("_", "")
    first, second = (build("sim.policies", "policy", {"name": name, **POLICIES[name][0]}) for _ in range(2))
    assert first == second
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.name = "other"
    assert isinstance(first.tokens_per_round, int) and first.tokens_per_round >= 1
    assert all(isinstance(draft, str | Model) for draft in first.drafts)


@pytest.mark.parametrize("name", sorted(discover("sim.policies")))
def test_options_are_checked(name: str) -> None:
    """Whatever a scenario says, an option is taken or refused with a ValueError of one line that names it."""
    options, refused = POLICIES[name][0], set()
    with pytest.raises(ValueError, match=r"^policy\.no_such_option: [^\n]+$"):
        build("sim.policies", "policy", {"name": name, **options, "no_such_option": 1})
    for option in dataclasses.fields(discover("sim.policies")[name]):
        for value in (None, -1, 0, True, 1.5, 10**9, math.nan, "no such", [], [2.0], {}, {"kind": "none"}):
            try:
                build("sim.policies", "policy", {"name": name, **options, option.name: value})
            except ValueError as error:
                assert str(error).startswith("policy.") and "\n" not in str(error) and option.name in str(error)
                refused.add(option.name)
    assert refused == {f.name for f in dataclasses.fields(discover("sim.policies")[name])}


# --- the future -----------------------------------------------------------------------------------


@ALL
@FEW
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 200))
def test_a_future_emits_exactly_what_remains(policy: Any, request_id: int, start: int, remaining: int) -> None:
    """Whole int64 columns of one length; every round gains, none more than its rows; the sum is what remained."""
    future = policy.future(Luck(1).of(request_id), start, remaining)
    arrays = (future.gains, future.offsets, future.kept, future.drafted)
    assert len({a.shape for a in arrays}) == 1 and all(a.dtype == np.int64 for a in arrays)
    assert future.gains.sum() == remaining and future.gains.min() >= 1
    assert future.gains.max() <= policy.tokens_per_round
    assert (future.offsets == np.cumsum(future.gains) - future.gains).all()
    assert (future.kept >= 0).all() and (future.kept <= future.drafted).all()


@ALL
@FEW
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(2, 150), st.integers(0, 10**6))
def test_a_future_in_pieces_is_the_future(policy: Any, request_id: int, start: int, remaining: int, cut: int) -> None:
    """Cut anywhere and drawn again from its own round number, the rest is the same: what preemption relies on."""
    draws = Luck(2).of(request_id)
    whole = policy.future(draws, start, remaining)
    cut %= len(whole.gains)
    done = int(whole.gains[:cut].sum())
    rest = policy.future(Luck(2).of(request_id), start + cut, remaining - done)
    assert [c[cut:] for c in columns(whole)] == columns(rest)


@ALL
@FEW
@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 80))
def test_a_shorter_future_is_clipped_not_redrawn(policy: Any, request_id: int, remaining: int, more: int) -> None:
    """With less to emit, kept and drafted are a prefix of the longer future's, and so are the gains but the last."""
    short = policy.future(Luck(3).of(request_id), 0, remaining)
    long = policy.future(Luck(3).of(request_id), 0, remaining + more)
    n = len(short.gains)
    assert short.kept.tolist() == long.kept[:n].tolist() and short.drafted.tolist() == long.drafted[:n].tolist()
    assert short.gains[:-1].tolist() == long.gains[: n - 1].tolist() and short.gains[-1] <= long.gains[n - 1]


@pytest.mark.slow
@settings(max_examples=2000)
@given(st.sampled_from(policies()), st.integers(0, 10**6), st.integers(0, 40), st.integers(2, 200), st.integers(0))
def test_futures_at_length(policy: Any, request_id: int, start: int, remaining: int, cut: int) -> None:
    """The three above with many more examples, any policy."""
    test_a_future_emits_exactly_what_remains.hypothesis.inner_test(policy, request_id, start, remaining)
    test_a_future_in_pieces_is_the_future.hypothesis.inner_test(policy, request_id, start, remaining, cut)
    less = 1 + cut % (remaining - 1)
    test_a_shorter_future_is_clipped_not_redrawn.hypothesis.inner_test(policy, request_id, less, remaining - less)


@ALL
def test_a_policy_is_pure(policy: Any) -> None:
    """Asking twice, after other questions and after others wrote into an answer, gives the same answer."""
    windows, luck = windows_of(policy, (None, 7)), Luck(4)
    for start in (0, 3):
        check_purity(policy, windows, luck, start)


def check_purity(policy: Any, windows: Any, luck: Luck, start: int) -> None:
    """One question, a vandal, the same question."""
    first = policy.future(luck.of(9), start, 50)
    said = columns(first), [row.tolist() for row in policy.rows(first, 20, windows)]
    for column in (*(getattr(first, c) for c in COLUMNS), *policy.rows(first, 20, windows)):
        if column.flags.writeable:
            column[:] = -5
    policy.future(luck.of(1), 0, 9)
    again = policy.future(luck.of(9), start, 50)
    assert said == (columns(again), [row.tolist() for row in policy.rows(again, 20, windows)])


@ALL
def test_mean_tokens_a_round(policy: Any) -> None:
    """The mean of kept + 1 over 40,000 rounds lies within 4.5 standard errors of ``expected_tokens``; a policy that
    drafts nothing gains exactly one."""
    future = policy.future(Luck(6).of(0), 0, 40_000)
    got = future.kept[:-1] + 1.0
    if not future.drafted.any():
        assert (got == 1.0).all()
        return
    error = float(got.std(ddof=1)) / math.sqrt(len(got))
    assert abs(float(got.mean()) - policy.expected_tokens) <= 4.5 * error + 1e-9
    assert error < 0.02


@pytest.mark.parametrize("acceptance", [0.6, {"kind": "beta", "mean": 0.7, "concentration": 2.0}])
def test_survival_by_position(acceptance: Any) -> None:
    """P(at least k kept) is the survival vector, each position within 4.5 standard errors."""
    policy = Speculative("d", 5, acceptance)
    kept = policy.future(Luck(7).of(0), 0, 60_000).kept[:-1]
    for k, want in enumerate(policy.survival, 1):
        error = math.sqrt(want * (1 - want) / len(kept))
        assert abs(float((kept >= k).mean()) - want) < 4.5 * error


def test_gammas_meet_the_same_luck() -> None:
    """A chain keeps min(kept, gamma) of what a longer chain keeps in the same round."""
    long = Speculative("d", 8, 0.8).future(Luck(8).of(0), 0, 3000).kept[:400]
    for gamma in range(1, 8):
        short = Speculative("d", gamma, 0.8).future(Luck(8).of(0), 0, 3000).kept[:400]
        assert (short == np.minimum(long, gamma)).all()


# --- the work -------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("kinds", KINDS)
def test_rows_are_as_many_as_declared(policy: Any, kinds: tuple[int | None, ...]) -> None:
    """``channels`` int64 arrays of one value a round, none negative; a row does not look ahead."""
    windows = windows_of(policy, kinds)
    future = policy.future(Luck(9).of(0), 0, 60)
    rows = policy.rows(future, 13, windows)
    assert len(rows) == policy.channels(windows)
    assert all(r.dtype == np.int64 and r.shape == future.gains.shape and r.min() >= 0 for r in rows)
    for n in range(1, len(future.gains)):
        so_far = Future(future.gains[:n], future.offsets[:n], future.kept[:n], future.drafted[:n])
        assert [r[n - 1] for r in rows] == [r[-1] for r in policy.rows(so_far, 13, windows)]


def flat(policy: Any, seats: Any, totals: Any, prompts: Any, windows: Any) -> dict[tuple[int, str], Any]:
    """Work of a round summed by model and field (and attention kind)."""
    sums: dict[tuple[int, str], Any] = {}
    for one in policy.passes(seats, totals, prompts, windows):
        for name, value in parts(one.work):
            if np.ndim(value) == 2:
                value = value.sum(axis=0)
            elif name in ("tokens", "logit_rows") and (steps := leading(one.work)):
                value = value * steps
            sums[one.model, name] = sums.get((one.model, name), 0) + value
    return sums


def parts(work: Work) -> Iterator[tuple[str, Any]]:
    for name in FIELDS:
        value = getattr(work, name)
        pieces = value if isinstance(value, tuple) else (value,)
        yield from ((f"{name}{i}", piece) for i, piece in enumerate(pieces if value is not None else ()))


def leading(work: Work) -> int:
    """How many passes a work with a leading axis stands for."""
    shapes = [np.shape(v) for _, v in parts(work) if np.ndim(v) == 2]
    return shapes[0][0] if shapes else 0


@ALL
@pytest.mark.parametrize("kinds", KINDS)
def test_work_is_additive(policy: Any, kinds: tuple[int | None, ...]) -> None:
    """The work of a batch is the sum of the work of its sequences, in whole numbers: what the horizon relies on."""
    windows, rounds = windows_of(policy, kinds), 6
    alone = []
    for i in range(5):
        future = policy.future(Luck(10).of(i), 0, 60)
        alone.append(np.array([r[:rounds] for r in policy.rows(future, 3 + 4 * i, windows)]))
    batch = flat(policy, 5, sum(alone), None, windows)
    pieces = [flat(policy, 1, rows, None, windows) for rows in alone]
    for key, value in batch.items():
        total = np.sum([np.broadcast_to(p[key], rounds) for p in pieces], axis=0)
        assert np.broadcast_to(value, rounds).tolist() == total.tolist(), key


@ALL
@pytest.mark.parametrize("kinds", KINDS)
def test_many_rounds_are_each_round(policy: Any, kinds: tuple[int | None, ...]) -> None:
    """Passes over many rounds hold in each column what passes over that round hold; seats may be an array too."""
    windows = windows_of(policy, kinds)
    future = policy.future(Luck(11).of(0), 0, 60)
    totals = np.array(policy.rows(future, 13, windows)) * 3
    rounds = totals.shape[1]
    together = flat(policy, 3, totals, None, windows)
    by_array = flat(policy, np.full(rounds, 3), totals, None, windows)
    for i in range(rounds):
        one = flat(policy, 3, totals[:, i : i + 1], None, windows)
        for key, value in one.items():
            want = np.broadcast_to(value, 1)[0]
            assert np.broadcast_to(together[key], rounds)[i] == want == np.broadcast_to(by_array[key], rounds)[i], key


def writers_of(policy: Any, draft: Any) -> list[int]:
    """Models without a cache that write into the one of ``draft``, which is another model than the target."""
    drafts = list(enumerate(policy.drafts, 1))
    same = [(m, other) for m, other in drafts if isinstance(draft, Model) and isinstance(other, Model)]
    return [m for m, other in same if other.name == draft.name is not None and not other.own_kv]


@ALL
def test_prompts_alone_and_beside_decodes(policy: Any) -> None:
    """Chunks add their tokens to the passes of every model with its own cache, or of a model that writes into it (a
    tandem's projections), whether anybody decodes or not; only the last chunk needs logits, of the target."""
    windows = windows_of(policy, (None, 7))
    prompts = Chunks([Chunk(0, 9, False), Chunk(5, 6, True)])
    totals = np.array(policy.rows(policy.future(Luck(12).of(0), 0, 60), 13, windows))[:, :1]
    alone, beside = flat(policy, 0, None, prompts, windows), flat(policy, 1, totals, prompts, windows)
    decodes = flat(policy, 1, totals, None, windows)
    for model, draft in enumerate(("", *policy.drafts)):
        if isinstance(draft, str) or draft.own_kv:
            assert any(alone.get((m, "tokens0")) == 15 for m in (model, *writers_of(policy, draft)))
    assert alone[0, "logit_rows0"] == 1
    assert np.all(beside[0, "logit_rows0"] == alone[0, "logit_rows0"] + decodes[0, "logit_rows0"])
    for key, value in beside.items():
        if key[1] not in ("logit_rows0",):
            assert np.all(value == alone.get(key, 0) + decodes.get(key, 0)), key


def attended(new: int, cached: int, window: int | None) -> tuple[int, int]:
    """(pairs, reads) of ``new`` queries after ``cached`` tokens, key by key."""
    keys = [[k for k in range(cached + i + 1) if window is None or k > cached + i - window] for i in range(new)]
    return sum(map(len, keys)), sum(k < cached for k in keys[0])


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_speculative_passes_by_hand(gamma: int, kinds: tuple[int | None, ...]) -> None:
    """Every round of one sequence, pass by pass, pairs counted key by key: the first draft pass takes two tokens where
    all drafts of the round before were kept (the draft has not seen its last one), the target gamma + 1."""
    policy = Speculative("d", gamma, 0.8)
    windows = windows_of(policy, kinds)
    future = policy.future(Luck(13).of(0), 0, 40)
    totals, context, behind = np.array(policy.rows(future, 4, windows)), 4, 0
    for i in range(len(future.gains)):
        passes = [(1 + behind, context - behind, 1)] + [(1, context + step, 1) for step in range(1, gamma)]
        want = [(1, *p) for p in passes] + [(0, gamma + 1, context, gamma + 1)]
        assert list(each_pass(policy, totals[:, i : i + 1], windows)) == [by_hand(w, windows) for w in want]
        context, behind = context + int(future.gains[i]), int(future.kept[i] == gamma)


@pytest.mark.parametrize("kinds", KINDS)
def test_autoregressive_passes_by_hand(kinds: tuple[int | None, ...]) -> None:
    """One token a round after all that is cached."""
    policy, windows = Autoregressive(), (kinds,)
    totals = np.array(policy.rows(policy.future(Luck(14).of(0), 0, 20), 4, windows))
    for i in range(20):
        assert list(each_pass(policy, totals[:, i : i + 1], windows)) == [by_hand((0, 1, 4 + i, 1), windows)]


Counted = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]


def by_hand(one: tuple[int, int, int, int], windows: Any) -> Counted:
    """(model, tokens, logit rows, pairs, reads) of a pass of ``new`` tokens after ``cached``."""
    model, new, cached, logit_rows = one
    counts = [attended(new, cached, w) for w in windows[model]]
    return model, new, logit_rows, tuple(p for p, _ in counts), tuple(r for _, r in counts)


def each_pass(policy: Any, totals: Any, windows: Any) -> Iterator[Counted]:
    """The same of every pass of one round of one sequence, leading axes unrolled."""
    for one in policy.passes(1, totals, None, windows):
        work = one.work
        for step in range(leading(work) or 1):
            pairs, reads = (
                tuple(int(np.broadcast_to(v, (leading(work) or 1, 1))[step, 0]) for v in values)
                for values in (work.decode_pairs, work.decode_reads)
            )
            yield one.model, int(np.ravel(work.tokens)[0]), int(np.ravel(work.logit_rows)[0]), pairs, reads
