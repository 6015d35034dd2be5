"""A tandem on real states: projections by hand, caches against fresh ones, losslessness, acceptance; faults planted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tandem_pair import SECONDARY, secondary_of, tiny_tandem

from sim.reference import decoding
from sim.reference.acceptance import teacher_forced, tokens_per_round
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, decode
from sim.reference.numerics import rms_norm
from sim.reference.rope import rotate
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import autoregressive, plan, tandem
from sim.reference.twins._secondary import Secondary, load_secondary
from sim.reference.twins.tandem import Twin, Writer, block_rows
from sim.validation.distribution import PROMPT, chi_square, continuations, critical_share
from sim.validation.tokens import held_out

GREEDY, ONE = Sampler(0), Sampler(1.0)


@pytest.fixture(scope="module")
def family() -> tuple[Any, Secondary]:
    """The shipped primary and its secondary."""
    return load("primary"), load_secondary()


# --- projections


def test_keys_and_values_by_hand() -> None:
    """Project, norm, map, rotate the keys at absolute positions: NumPy written out, layer by layer."""
    target, secondary = tiny_tandem()
    text = np.array([1, 0, 3, 2, 2])
    _, states = target.forward([text], target.new_cache(1), return_hidden=True)
    cache = secondary.new_cache(1)
    secondary.renew(states, cache, [0], [0], [5])
    for j, source in enumerate((1, 3)):
        y = rms_norm(states[source] @ secondary.projections[j], secondary.weights[f"layers.{j}.norm.attn"], 1e-5)
        qkv = y @ secondary.weights[f"layers.{j}.attn.qkv"]
        keys, values = qkv[:, 8:12], qkv[:, 12:]  # two query heads of 4, then one key and one value head
        turned = rotate(keys[:, None], *secondary.rotation(SECONDARY.layers[j].attention, np.arange(5)))
        assert cache.keys[j][0, 0, :5] == pytest.approx(turned[:, 0], abs=1e-5)
        assert cache.values[j][0, 0, :5] == pytest.approx(values, abs=1e-5)
    assert cache.lengths.tolist() == [5]


def test_a_secondary_must_fit() -> None:
    """Projections and sources one a layer, as wide as the layers; of this primary and no other."""
    target, secondary = tiny_tandem()
    with pytest.raises(ValueError, match=r"1 projections and 2 sources; allowed: 2 of each, one a layer"):
        replace(secondary, projections=secondary.projections[:1])
    with pytest.raises(ValueError, match=r"projections must be \[d_P, 8\]"):
        replace(secondary, projections=tuple(w[:, :4] for w in secondary.projections))
    for wrong in (replace(secondary, layer_map=(1, 4)), secondary_of(SECONDARY, SECONDARY, (1, 2))):
        with pytest.raises(ValueError, match="is no secondary of d16-l3"):
            decode(Twin(wrong), target, [PROMPT], 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "gamma is 0; allowed: an integer >= 1"),
        ({"mode": "x"}, "mode is 'x'; allowed: speculative, standalone"),
        ({"free_token": False}, "free_token is False; allowed in mode standalone only"),
        ({"stop": 0.5, "mode": "standalone"}, "stop is 0.5; allowed: 0 to 1, in mode speculative"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with policy, key and value."""
    with pytest.raises(ValueError, match=f"^policy tandem: {message}$"):
        Twin(**options)


# --- blocks


def rows_written(run: Generation, target: Any, secondary: Secondary) -> np.ndarray[Any, Any]:
    """What the secondary should have drawn each drafted token from, computed from scratch, [drafts, V]."""
    text, at, out = np.array([*run.prompt, *run.tokens]), len(run.prompt) + 1, []
    for r in run.rounds[1:]:
        context = text[:at]  # all emitted; the last one is what the block begins with
        _, states = target.forward([context[:-1]], target.new_cache(1), rows="none", return_hidden=True)
        cache = secondary.new_cache(1)
        secondary.renew(states, cache, [0], [0], [at - 1])
        out.append(ONE.probabilities(secondary.forward([np.array([context[-1], *r.drafted[:-1]])], cache, rows="all")))
        at += len(r.emitted)
    return np.concatenate(out)


class Recorded(Writer):
    """Notes the distributions that drafts were drawn from."""

    seen: list[Any]

    def propose(self, contexts: Sequence[Any], active: Sequence[int]) -> Any:
        """As the writer does."""
        drafts = super().propose(contexts, active)
        self.seen = [*getattr(self, "seen", []), *(draft.q for draft in drafts)]
        return drafts


class Stale(Recorded):
    """Fault: what the secondary wrote in the block is kept in place of projections of it."""

    def renew(self, states: Any, sequences: Sequence[int], starts: Sequence[int], feeds: Sequence[Any]) -> None:
        """Prompts only; later the missing last token is projected, the rest stays."""
        held = int(self.cache.lengths[0])
        if starts[0] == 0:
            super().renew(states, sequences, starts, feeds)
        elif starts[0] + len(feeds[0]) > held:
            late = {layer: x[held - starts[0] :] for layer, x in states.items()}
            self.model.renew(late, self.cache, sequences, [held], [starts[0] + len(feeds[0]) - held])


class Shifted(Recorded):
    """Fault: projections written one place too early."""

    def renew(self, states: Any, sequences: Sequence[int], starts: Sequence[int], feeds: Sequence[Any]) -> None:
        """The states of each pass without their first token."""
        less = {layer: np.concatenate([x[1:], x[-1:]]) for layer, x in states.items()}
        super().renew(less, sequences, starts, feeds)


def furthest(writer: type[Recorded], mode: str) -> float:
    """Largest difference between what drafts were drawn from and the same from scratch, over one answer."""
    target, secondary = tiny_tandem()
    made: list[Recorded] = []

    def make(*options: Any) -> Recorded:
        made.append(writer(*options))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tandem, "Writer", make)
        [run] = decode(Twin(secondary, 3, mode), target, [PROMPT], 30, seed=2)
    wanted = rows_written(run, target, secondary)
    seen = np.concatenate(made[0].seen)[: len(wanted)]
    return float(np.abs(seen - wanted).max())


@pytest.mark.parametrize("mode", ["speculative", "standalone"])
def test_caches_hold_what_a_fresh_start_would(mode: str) -> None:
    """After every round the secondary draws from what it would, had it begun there; stale or shifted it does not."""
    assert furthest(Recorded, mode) < 1e-5
    assert furthest(Stale, mode) > 1e-2
    assert furthest(Shifted, mode) > 1e-2


def test_batches_and_sequences_alone_write_the_same() -> None:
    """A ragged batch gives, with exact models, the very tokens of its sequences alone: no states are mixed up."""
    target, secondary = tiny_tandem(exact=True)
    prompts = [stream(s, "tandem").integers(0, 4, n) for s, n in enumerate((5, 2, 9))]
    for mode in ("speculative", "standalone"):
        twin = Twin(secondary, 3, mode)
        together = decode(twin, target, prompts, (25, 9, 30), sampler=GREEDY)
        alone = [decode(twin, target, [p], n, sampler=GREEDY)[0] for p, n in zip(prompts, (25, 9, 30), strict=True)]
        assert [g.tokens for g in together] == [g.tokens for g in alone]


def test_block_rows_are_what_blocks_are_drawn_from(family: tuple[Any, Secondary]) -> None:
    """Cutting a standalone text into its blocks again gives the tokens that were written, greedily."""
    primary, secondary = family
    [run] = decode(Twin(secondary, 3, "standalone"), primary, held_out("a", 1), 41, sampler=GREEDY)
    text, first = np.array([*run.prompt, *run.tokens]), len(run.prompt)
    rows = block_rows(primary, secondary, text, 4, GREEDY, first=-first % 4)
    written = [t for t in range(first, len(text) - 1) if (t - first) % 4 != 3]  # the place before each of its tokens
    assert [int(rows[t].argmax()) for t in written] == [int(text[t + 1]) for t in written]


# --- losslessness


def test_greedy_output_is_the_primarys(family: tuple[Any, Secondary]) -> None:
    """Judged blocks, of one length or adaptive, end in the primary's own greedy text; standalone blocks do not."""
    primary, secondary = (replace(m, exact=True) for m in family)
    plain = decode(autoregressive.Twin(), primary, held_out("a", 6), 32, sampler=GREEDY)
    for twin in (Twin(secondary, 4), Twin(secondary, 6, stop=0.4)):
        fast = decode(twin, primary, held_out("a", 6), 32, sampler=GREEDY)
        assert [g.tokens for g in fast] == [g.tokens for g in plain]
        assert sum(r.accepted for g in fast for r in g.rounds) > 60
    alone = decode(Twin(secondary, 4, "standalone"), primary, held_out("a", 6), 32, sampler=GREEDY)
    assert [g.tokens for g in alone] != [g.tokens for g in plain]


def excess(twin: Twin, draws: int = 2000) -> tuple[float, float]:
    """(chi-square over its degrees of freedom less 1, what is still likely) of sampled four-token continuations."""
    target, _ = tiny_tandem()
    runs = decode(twin, target, [PROMPT] * draws, 4, seed=5)
    digits = np.array([run.tokens for run in runs]) @ 4 ** np.arange(3, -1, -1)
    statistic, freedom = chi_square(np.bincount(digits, minlength=256), continuations(target, PROMPT, 4))
    return statistic / freedom - 1, critical_share(freedom)


@pytest.mark.parametrize("options", [{}, {"stop": 0.4}])
def test_sampled_output_has_the_primarys_distribution(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 continuations by chi-square; resampling from p instead of the residual is caught; so is standalone."""
    _, secondary = tiny_tandem()
    got, likely = excess(Twin(secondary, 3, **options))
    assert got < likely
    assert excess(Twin(secondary, 3, "standalone"))[0] > 3 * likely
    monkeypatch.setattr(decoding, "residual", lambda p, q, lenience=1.0: p)
    assert excess(Twin(secondary, 3, **options))[0] > 3 * likely


# --- what the trained secondary is worth


def alphas_of(primary: Any, secondary: Secondary, texts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Mean acceptance by place in a block of 8, each token once at every place, [8]."""
    sums = np.zeros((2, 8))
    for text in texts:
        p = teacher_forced(primary, text, ONE)
        for first in range(8):
            both = np.minimum(p, block_rows(primary, secondary, text, 8, ONE, first)).sum(axis=1)
            places = (np.arange(len(text)) + first) % 8
            np.add.at(sums[0], places[31:-1], both[31:-1])
            np.add.at(sums[1], places[31:-1], 1)
    return np.asarray(sums[0] / sums[1])


def test_acceptance_by_place_in_the_block(family: tuple[Any, Secondary]) -> None:
    """As the record has it, measured with other software: least at the first place, then flat (within 0.012)."""
    primary, secondary = family
    runs = decode(autoregressive.Twin(), primary, held_out("a", 16), 128, seed=3)
    got = alphas_of(primary, secondary, [np.array([*g.prompt, *g.tokens]) for g in runs])
    record = json.loads((SHIPPED / "record.json").read_text("utf-8"))["tandem"]
    [row] = [r for r in record if r["text"] == "own_a" and r["temperature"] == 1.0]
    assert got == pytest.approx(np.array(row["alpha_by_index"]), abs=0.012)
    assert got[1:].min() - got[0] > 0.02


@pytest.mark.slow
def test_the_layer_map_matters(family: tuple[Any, Secondary]) -> None:
    """Reading other layers than it was trained on, the secondary's blocks keep fewer tokens."""
    primary, secondary = family
    means = []
    for layer_map in ((2, 4), (1, 3), (4, 2)):
        twin = Twin(replace(secondary, layer_map=layer_map), 4)
        means.append(tokens_per_round(decode(twin, primary, held_out("a", 24), 96, seed=5), 4))
    for other in means[1:]:
        assert means[0].mean - other.mean > 2.5 * float(np.hypot(means[0].sd, other.sd))


def loss_of(rows: Any, text: np.ndarray[Any, Any]) -> float:
    """Mean loss, in nats, of the tokens behind the 32nd."""
    at = np.arange(31, len(text) - 1)
    return float(-np.log(rows[at, text[at + 1]]).mean())


@pytest.mark.slow
def test_what_the_secondary_loses(family: tuple[Any, Secondary]) -> None:
    """Loss on held-out text: above the primary's by 0.1 to 0.2 nats, and no better than a distilled drafter alone."""
    primary, secondary = family
    texts = held_out("b", 24, 160)
    large, small = (
        float(np.mean([loss_of(teacher_forced(m, text, ONE), text) for text in texts]))
        for m in (primary, load("drafter-distilled"))
    )
    for gamma in (2, 8):
        own = float(np.mean([loss_of(block_rows(primary, secondary, text, gamma, ONE), text) for text in texts]))
        assert 0.1 < own - large < 0.2 and 0 < own - small < 0.1


def agreement(runs: list[Generation], primary: Any) -> float:
    """Share of written tokens that are the primary's greedy choice in their place."""
    hits = []
    for run in runs:
        text, first = np.array([*run.prompt, *run.tokens]), len(run.prompt)
        best = teacher_forced(primary, text, GREEDY).argmax(axis=1)
        hits.append((best[first - 1 : -1] == text[first:]).mean())
    return float(np.mean(hits))


@pytest.mark.slow
def test_longer_blocks_stray_further(family: tuple[Any, Secondary]) -> None:
    """Standalone, greedy: the longer the block, the fewer tokens are the primary's own choice, down to the plan's."""
    primary, secondary = family
    prompts = held_out("a", 24)
    shares = [agreement(decode(Twin(secondary, g, "standalone"), primary, prompts, 96, sampler=GREEDY), primary)
              for g in (1, 3, 7)]  # fmt: skip
    planned = agreement(decode(plan.Twin(secondary, 8), primary, prompts, 96, sampler=GREEDY), primary)
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.8
    assert 0.6 < planned < shares[1]
