"""The lectures' examples give the lectures' numbers."""

import numpy as np
import pytest
from scipy import stats

from sim.reference.demos import (
    HEADLINE,
    PET_DRAFT,
    PET_TARGET,
    PETS,
    SOURCE,
    apply_edits,
    headline,
    pets,
    rejection,
    text_editing,
)


def test_dog_is_kept_four_times_in_five_and_cat_always():
    """Q(dog) = .5 > P(dog) = .4, so it is kept with .8; Q(cat) = .2 < P(cat) = .35, so it always is."""
    r = rejection(PET_TARGET, PET_DRAFT)
    assert dict(zip(PETS, r.keep, strict=True)) == pytest.approx(
        {"dog": 0.8, "cat": 1.0, "the": 1.0, "(all others)": 0.23 / 0.28}
    )
    assert r.alpha == pytest.approx(0.4 + 0.2 + 0.02 + 0.23)
    assert r.replace == pytest.approx([0, 1, 0, 0])  # only cat is likelier under P: every rejection becomes a cat
    assert r.output == pytest.approx(PET_TARGET)
    assert PET_DRAFT.sum() == pytest.approx(1) and PET_TARGET.sum() == pytest.approx(1)


def test_pets_drawn_for_real_follow_the_target():
    """20,000 drafts: dogs kept 4 times in 5, cats always, and what comes out is P (chi-square)."""
    counts = pets(20_000)
    dogs = counts[0].sum(axis=1)
    assert dogs[1] / dogs.sum() == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / dogs.sum()))
    assert counts[1, 0].sum() == counts[2, 0].sum() == 0
    assert stats.chisquare(counts.sum(axis=(0, 1)), 20_000 * PET_TARGET).pvalue > 1e-3
    assert stats.chisquare(counts.sum(axis=(0, 1)), 20_000 * PET_DRAFT).pvalue < 1e-12  # it is not Q


def test_the_headline_takes_nine_target_passes():
    """The figure's nine lines: the first emits five tokens from one pass; the last line ends the text."""
    run, vocab = headline()
    assert len(run.rounds) == 9
    assert [vocab[t] for t in run.tokens] == list(HEADLINE)
    assert len(run.rounds[0].emitted) == 5
    rejected = [vocab[r.drafted[r.accepted]] for r in run.rounds if r.accepted < len(r.drafted)]
    assert rejected == ["bond", "7", "7", "7", "0", "5", "tokyo"]
    assert [vocab[r.own[0]] for r in run.rounds] == ["n", "5", "6", "points", "1", "9", "in", "late", "[END]"]


def test_editing_takes_10_steps_where_rewriting_takes_27():
    """The deck: 27 steps of 7 ms = 189 ms; 10 steps of 1.3 ms; 2.7x fewer steps, 5.4x shorter ones, 14.5x in all."""
    demo = text_editing()
    assert (demo.seq2seq_steps, demo.edit_steps) == (27, 10)
    assert demo.seq2seq_ms == pytest.approx(189)
    assert demo.speedup == pytest.approx(14.5, abs=0.05)
    assert demo.text == demo.rewritten
    assert demo.text == (
        "I was walking through the park when I was struck by a bicycle... my arm hurts a little now."
    )


def test_edits_outside_the_source_are_refused():
    """An insertion needs a position, and a position that exists."""
    assert apply_edits(["a", "b"], frozenset({1}), ["<extra_id_0>", "x", "</s>", "y"]) == ["a", "x"]
    for decoded in (["x"], [f"<extra_id_{len(SOURCE)}>", "x"]):
        with pytest.raises(ValueError, match="^edit: 'x' is inserted at "):
            apply_edits(SOURCE, frozenset(), decoded)
