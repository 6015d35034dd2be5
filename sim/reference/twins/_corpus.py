"""The family's training text as tokens: what table drafts are counted from, and what retrieval searches."""

from __future__ import annotations

from functools import cache

import numpy as np

from sim.reference.checkpoint import SHIPPED
from sim.reference.decoding import Tokens
from sim.reference.tokenizer import read_tokenizer
from sim.reference.training.corpus import split_corpus


@cache
def corpus(characters: int = 400_000) -> Tokens:
    """Token ids of ``characters`` from the training parts of all novels in equal shares, [n], not to be written to."""
    novels = split_corpus().train
    share = characters // len(novels)
    ids = read_tokenizer(SHIPPED / "tokenizer.json").encode("".join(novel[:share] for novel in novels))
    tokens = np.array(ids, dtype=np.int64)
    tokens.setflags(write=False)
    return tokens
