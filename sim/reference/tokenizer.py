"""A byte-level BPE tokenizer read from a `tokenizer.json`, in plain Python.

For the shipped family and other files of the same kind (one regular expression that cuts the text, byte-level alphabet,
ranked merges, special tokens). Not for Unigram, WordPiece, normalisers or templates: those raise ValueError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any


@cache
def byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each of the 256 bytes (GPT-2's table: visible Latin-1 is itself)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(b) if b in visible else chr(next(others)) for b in range(256))


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back; `decode(encode(text)) == text` for every text that UTF-8 can hold.

    Fields: `vocab` piece -> id, `ranks` pair of pieces -> merge order, `cut` the regular expression whose matches are
    encoded apart, `special` text -> id of tokens that are never cut.
    """

    vocab: dict[str, int]
    ranks: dict[tuple[str, str], int]
    cut: re.Pattern[str]
    special: dict[str, int]
    _known: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.vocab.keys() | self.special.keys())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written out in the text become their ids."""
        out: list[int] = []
        for part in _split_keeping(self._special_pattern(), text):
            if part in self.special:
                out.append(self.special[part])
            else:
                for piece in _split_keeping(self.cut, part):
                    out.extend(self._piece(piece))
        return out

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. ValueError for an id outside the vocabulary."""
        names = {i: piece for piece, i in (self.vocab | self.special).items()}
        to_byte = {c: b for b, c in enumerate(byte_alphabet())}
        raw = bytearray()
        for i in ids:
            if i not in names:
                raise ValueError(f"token id {i} is not in the vocabulary of {self.vocab_size} tokens")
            if names[i] not in self.special:
                raw.extend(to_byte[c] for c in names[i])
            elif not skip_special:
                raw.extend(names[i].encode())
        return raw.decode("utf-8", errors="replace")

    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _piece(self, piece: str) -> list[int]:
        known = self._known.get(piece)
        if known is None:
            alphabet = byte_alphabet()
            parts = self._merge([alphabet[b] for b in piece.encode("utf-8")])
            known = [self.vocab[part] for part in parts]
            if len(piece) <= 32 and len(self._known) < 65536:
                self._known[piece] = known
        return known

    def _merge(self, parts: list[str]) -> list[str]:
        """Apply the merge of lowest rank everywhere it fits, until none fits."""
        while len(parts) > 1:
            pairs = set(pairwise(parts))
            best = min(((self.ranks[pair], pair) for pair in pairs if pair in self.ranks), default=None)
            if best is None:
                break
            parts = _join(parts, best[1])
        return parts


def _join(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(parts):
        width = 2 if tuple(parts[i : i + 2]) == pair else 1
        out.append("".join(parts[i : i + width]))
        i += width
    return out


def _split_keeping(pattern: re.Pattern[str], text: str) -> list[str]:
    """Matches and the gaps between them, in order, empty ones dropped."""
    out, end = list[str](), 0
    for match in pattern.finditer(text):
        out += [text[end : match.start()], match.group()]
        end = match.end()
    return [part for part in [*out, text[end:]] if part]


def read_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`; ValueError names the file, the key and what is allowed there."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a JSON object was expected, found {type(raw).__name__}")
    model = _object(path, "model", raw.get("model"))
    _demand(path, "model.type", model.get("type"), "BPE")
    _demand(path, "normalizer", raw.get("normalizer"), None)
    vocab, merges = _object(path, "model.vocab", model.get("vocab")), model.get("merges")
    if not isinstance(merges, list) or not all(type(i) is int for i in vocab.values()):
        raise ValueError(f"{path}: model.merges must be a list and the values of model.vocab whole numbers")
    missing = [c for c in byte_alphabet() if c not in vocab]
    if missing:
        raise ValueError(f"{path}: model.vocab lacks {missing[0]!r}; the 256 letters of the byte alphabet are needed")
    ranks = {_pair(path, merge, vocab): i for i, merge in enumerate(merges)}
    return Tokenizer(vocab, ranks, _cut_pattern(path, raw), _special_tokens(path, raw.get("added_tokens") or []))


def _object(path: Path | str, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key}: {type(value).__name__} is not allowed, an object is expected")
    return value


def _special_tokens(path: Path | str, added: Any) -> dict[str, int]:
    """Text -> id of the added tokens; each needs a text and a whole number."""
    out: dict[str, int] = {}
    for token in added if isinstance(added, list) else [added]:
        content, number = (_object(path, "added_tokens", token).get(key) for key in ("content", "id"))
        if not isinstance(content, str) or not content or type(number) is not int:
            raise ValueError(f"{path}: added_tokens: {token!r} needs a text 'content' and a whole number 'id'")
        out[content] = number
    return out


def _pair(path: Path | str, merge: Any, vocab: dict[str, int]) -> tuple[str, str]:
    """A merge is ["a", "b"] in new files and "a b" in old ones."""
    pair = tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) if isinstance(merge, list) else ()
    if len(pair) != 2 or not all(isinstance(p, str) for p in pair) or "".join(pair) not in vocab:
        raise ValueError(f"{path}: model.merges: {merge!r} is not a pair of pieces whose union is in the vocabulary")
    return pair[0], pair[1]


def _cut_pattern(path: Path | str, raw: dict[str, Any]) -> re.Pattern[str]:
    steps = _object(path, "pre_tokenizer", raw.get("pre_tokenizer")).get("pretokenizers")
    kinds = [_object(path, "pre_tokenizer", step).get("type") for step in (steps if isinstance(steps, list) else [])]
    _demand(path, "pre_tokenizer.pretokenizers", kinds, ["Split", "ByteLevel"])
    assert isinstance(steps, list)
    _demand(path, "pre_tokenizer ByteLevel.use_regex", steps[1].get("use_regex"), False)
    _demand(path, "pre_tokenizer ByteLevel.add_prefix_space", steps[1].get("add_prefix_space"), False)
    _demand(path, "pre_tokenizer Split.behavior", steps[0].get("behavior"), "Isolated")
    try:
        return re.compile(steps[0]["pattern"]["Regex"])
    except (KeyError, TypeError, re.error) as error:
        raise ValueError(f"{path}: pre_tokenizer Split.pattern.Regex: not a pattern Python can run: {error}") from None


def _demand(path: Path | str, key: str, found: Any, allowed: Any) -> None:
    if found != allowed:
        raise ValueError(f"{path}: {key}: {found!r} is not supported; allowed: {allowed!r}")
