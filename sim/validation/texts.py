"""Held-out text of the shipped family as prompts: A to measure acceptance on, B to try the prediction on."""

from __future__ import annotations

from functools import cache

from sim.reference.acceptance import prompts_of
from sim.reference.checkpoint import SHIPPED
from sim.reference.decoding import Tokens
from sim.reference.tokenizer import read_tokenizer
from sim.reference.training.corpus import split_corpus


def held_out(part: str, count: int, tokens: int = 32) -> list[Tokens]:
    """``count`` prompts of ``tokens`` tokens spread over held-out text ``"a"`` or ``"b"`` of the shipped novels."""
    return prompts_of(_ids(part), count, tokens)


@cache
def _ids(part: str) -> tuple[int, ...]:
    split = split_corpus()
    text = "".join(split.held_out_a if part == "a" else split.held_out_b)
    return tuple(read_tokenizer(SHIPPED / "tokenizer.json").encode(text))
