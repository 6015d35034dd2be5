"""The lectures' examples, run: rejection sampling on two pets, the figure of a speculative run, text editing.

Each demo is data plus the ordinary decoding code; nothing here knows a model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.reference.decoding import Generation, Round, residual, verify
from sim.reference.sampling import Floats, one_hot, stream

PETS = ("dog", "cat", "the", "(all others)")
PET_DRAFT: Floats = np.array([0.5, 0.2, 0.02, 0.28])
"""Q of the tutorial deck for "My favourite pet was a ..."; the deck's dots are summed into one token."""
PET_TARGET: Floats = np.array([0.4, 0.35, 0.02, 0.23])
"""P of the same deck."""


@dataclass(frozen=True)
class Rejection:
    """What rejection sampling does with one draft distribution, in closed form, [V] each.

    ``keep``: probability that a draft of this token is kept, ``min(1, p / q)``; ``replace``: where a rejected draft's
    replacement comes from; ``output``: what comes out, which is the target; ``alpha``: how often a draft is kept.
    """

    keep: Floats
    replace: Floats
    output: Floats
    alpha: float


def rejection(p: Floats, q: Floats) -> Rejection:
    """The acceptance rule on two explicit distributions [V] (arXiv 2211.17192, section 2.3 and appendix A.1)."""
    kept = np.minimum(p, q)
    keep = np.divide(kept, q, out=np.ones_like(p), where=q > 0)
    replace = residual(p, q)
    alpha = float(kept.sum())
    return Rejection(keep, replace, kept + (1 - alpha) * replace, alpha)


def pets(rounds: int, seed: int = 0) -> Floats:
    """Draft and judge a pet ``rounds`` times: counts [drafted token, 0 rejected / 1 kept, token that came out]."""
    counts = np.zeros((len(PETS), 2, len(PETS)))
    luck = stream(seed, "pets")
    drafts = luck.choice(len(PETS), size=rounds, p=PET_DRAFT)
    p, q = np.stack([PET_TARGET, PET_TARGET]), PET_DRAFT[None]  # [g + 1, V], [g, V]
    for drafted, coins in zip(drafts, luck.random((rounds, 2)), strict=True):
        kept, own = verify([drafted], p, q, coins)
        counts[drafted, kept, drafted if kept else own] += 1
    return counts


def _cut(pieces: str) -> tuple[str, ...]:
    return tuple(pieces.split(" "))


HEADLINE = _cut(
    "japan ' s benchmark n ik kei 22 5 index rose 22 6 . 69 points , or 1 . 5 percent , to 10 , 98 9 . 79 in late "
    "morning trading . [END]"
)
"""The headline that the target writes in the figure, in its word pieces (n ik kei, 22 5, 98 9 are one word each)."""

GUESSES = (
    ("japan", "'", "s", "benchmark", "bond"),
    ("ik", "kei", "22", "7"),
    ("index", "rose", "22", "7"),
    (".", "69", "7"),
    (",", "or", "0"),
    (".", "5", "percent", ",", "to", "10", ",", "98", "5"),
    (".", "79"),
    ("tokyo",),
    ("morning", "trading", "."),
)
"""What the draft proposes in each of the nine target passes, up to its first wrong guess (arXiv 2211.17192, figure 1).

Of line 7 the deck's text shows no rejected guess: there its last token is taken as the target's bonus.
"""


def headline() -> tuple[Generation, tuple[str, ...]]:
    """Replay the figure through the acceptance rule at temperature 0: the rounds, and the vocabulary they index."""
    vocab = tuple(dict.fromkeys([*HEADLINE, *(word for line in GUESSES for word in line)]))
    text = np.array([vocab.index(word) for word in HEADLINE])
    rounds, at, coins = [], 0, np.full(16, 0.5)
    for line in GUESSES:
        drafted = [vocab.index(word) for word in line]
        p = one_hot(text[at : at + len(drafted) + 1], len(vocab))  # a greedy target is certain
        accepted, own = verify(drafted, p, one_hot(drafted, len(vocab)), coins)
        rounds.append(Round(tuple(drafted), accepted, (*drafted[:accepted], own)))
        at += accepted + 1
    return Generation((), tuple(rounds)), vocab


SOURCE = _cut(
    "▁i ▁was ▁walking ▁through ▁the ▁park ▁when ▁struck ▁by ▁bicycle ... ▁my ▁arm ▁hurt s ▁ a ▁little ▁now ."
)
"""The sentence to correct: 20 word pieces; the deck counts the end mark as the 21st."""
CORRECTED = _cut(
    "▁I ▁was ▁walking ▁through ▁the ▁park ▁when ▁I ▁was ▁struck ▁by ▁ a ▁bicycle ▁ ... ▁my ▁arm ▁hurt s ▁ a ▁little "
    "▁now ▁ . </s>"
)
"""Its correction as a sequence-to-sequence decoder writes it: 27 steps with T5's word pieces."""
DELETED = frozenset({0, 1})
"""What EdiT5's tagger drops: "i was". It runs in the encoder and costs no decoder step."""
INSERTIONS = _cut("<extra_id_1> ▁I ▁was <extra_id_6> ▁I ▁was <extra_id_8> ▁ a </s>")
"""What EdiT5's decoder writes: where to insert (after which source piece), and what; 10 steps."""


def apply_edits(source: Sequence[str], deleted: frozenset[int], decoded: Sequence[str]) -> list[str]:
    """Realise an edit: keep the source pieces not ``deleted``, insert what was decoded after the piece that each
    ``<extra_id_N>`` names (counted from 0), stop at ``</s>``.

    Raises ValueError when an insertion names no source piece, or text comes before the first position.
    """
    inserted: dict[int, list[str]] = {}
    at: int | None = None
    for piece in decoded:
        if piece == "</s>":
            break
        if piece.startswith("<extra_id_"):
            at = int(piece.removeprefix("<extra_id_").removesuffix(">"))
        elif at is None or at >= len(source):
            raise ValueError(f"edit: {piece!r} is inserted at {at}; allowed: after <extra_id_0..{len(source) - 1}>")
        else:
            inserted.setdefault(at, []).append(piece)
    kept = ([] if i in deleted else [piece] for i, piece in enumerate(source))
    return [piece for i, own in enumerate(kept) for piece in (*own, *inserted.get(i, []))]


@dataclass(frozen=True)
class Editing:
    """Text editing against rewriting: decoder steps, decoder milliseconds at the lecture's measured step times."""

    seq2seq_steps: int
    edit_steps: int
    seq2seq_ms: float
    edit_ms: float
    text: str
    rewritten: str

    @property
    def speedup(self) -> float:
        """How many times shorter the decoder runs."""
        return self.seq2seq_ms / self.edit_ms


def text_editing(seq2seq_step_ms: float = 7.0, edit_step_ms: float = 1.3) -> Editing:
    """The grammar correction of the tutorial deck, both ways (EdiT5, arXiv 2205.12209; step times from the deck).

    Every decoded piece costs one decoder step; tags, and reordering, come out of the encoder.
    """
    return Editing(
        seq2seq_steps=len(CORRECTED),
        edit_steps=len(INSERTIONS),
        seq2seq_ms=seq2seq_step_ms * len(CORRECTED),
        edit_ms=edit_step_ms * len(INSERTIONS),
        text=_words(apply_edits(SOURCE, DELETED, INSERTIONS)),
        rewritten=_words(CORRECTED[:-1]),
    )


def _words(pieces: Sequence[str]) -> str:
    """Pieces joined: ``▁`` is a space; spaces before punctuation and at the start go."""
    text = "".join(pieces).replace("▁", " ")
    for mark in (".", "..."):
        text = text.replace(f" {mark}", mark)
    return text.strip()
