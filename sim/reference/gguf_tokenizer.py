"""The tokenizer inside a GGUF file: byte-level BPE over the tokens and merges of its metadata."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import groupby
from pathlib import Path

from sim.reference.gguf_file import Gguf, read_gguf
from sim.reference.tokenizer import Tokenizer

CONTROL = 3  # token type of markers such as <|im_end|>
SPACES = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


def read_gguf_tokenizer(path: Path | str) -> Tokenizer:
    """Read the tokenizer of a GGUF file.

    Raises ValueError naming file and key for any but byte-level BPE ("gpt2") with SmolLM's way of cutting text.
    """
    file = read_gguf(Path(path))
    _demand(file, "tokenizer.ggml.model", "gpt2")
    _demand(file, "tokenizer.ggml.pre", "smollm")
    tokens, merges = _texts(file, "tokenizer.ggml.tokens"), _texts(file, "tokenizer.ggml.merges")
    vocab = _Vocabulary({token: i for i, token in enumerate(tokens)})
    vocab.unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    ranks = {}
    for i, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left + right not in vocab:
            raise ValueError(f"{path}: tokenizer.ggml.merges: {merge!r} does not make a token of the vocabulary")
        ranks[left, right] = i
    kinds = file.metadata.get("tokenizer.ggml.token_type", [])
    special = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind == CONTROL}
    return Tokenizer(vocab, ranks, smollm_cut(), special)


class _Vocabulary(dict[str, int]):
    """Token ids by piece; bytes that the vocabulary lacks (control characters) are the unknown token."""

    unknown: int = 0

    def __missing__(self, piece: str) -> int:
        return self.unknown


@cache
def smollm_cut() -> re.Pattern[str]:
    """SmolLM cuts every digit apart, then the rest as GPT-2 does; both in one expression.

    GPT-2's expression needs Unicode categories, which Python's ``re`` has not: numbers are spelt out as ranges, and a
    letter is a word character that is neither number nor underscore. White space before a digit ends a stretch of
    text there, hence the lookahead.
    """
    number = f"[{_ranges('N')}]"
    letter = rf"(?:(?!{number})[^\W_])"
    other = rf"(?:(?!{SPACES}|{number}|{letter}).)"
    parts = [number, "'(?:s|t|re|ve|m|ll|d)", f" ?{letter}+", f" ?{other}+"]
    parts += [f"{SPACES}+(?!(?!{number}|{SPACES}).)", f"{SPACES}+"]
    return re.compile("|".join(parts), re.DOTALL)


def _ranges(category: str) -> str:
    """All characters of a Unicode category (its first letter), as the inside of a character class."""
    codes = [c for c in range(0x110000) if unicodedata.category(chr(c))[0] == category]
    runs = [[c for _, c in run] for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0])]
    return "".join(f"\\U{run[0]:08x}-\\U{run[-1]:08x}" for run in runs)


def _demand(file: Gguf, key: str, allowed: str) -> None:
    found = file.metadata.get(key)
    if found != allowed:
        raise ValueError(f"{file.path}: {key}: {found!r} is not supported; allowed: {allowed!r}")


def _texts(file: Gguf, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{file.path}: {key}: a list of texts is expected")
    return value
