"""A decoding run to look at: the tokens of each target pass, with what was accepted and what was rejected.

For one prompt and human eyes; measurements read :class:`~sim.reference.decoding.Generation`. Nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from rich.text import Text

from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, Round, Twin, decode
from sim.reference.gguf_tokenizer import read_gguf_tokenizer
from sim.reference.sampling import Sampler
from sim.reference.tokenizer import read_tokenizer
from sim.reference.transformer import Transformer
from sim.reference.twins import make

TREES = ("tree", "retrieval")  # whose drafts are no chain: several are rejected at once
Status = Literal["accepted", "rejected", "own"]
STYLES: dict[Status, str] = {"accepted": "green", "rejected": "red strike", "own": "blue"}
BRACKETS: dict[Status, tuple[str, str]] = {"accepted": ("[", "]"), "rejected": ("<", ">"), "own": ("", "")}


class Codec(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids."""
        ...


@dataclass(frozen=True)
class Piece:
    """One token on show: its text, its id, and whether it is a kept draft, a rejected one or the target's own."""

    text: str
    token: int
    status: Status


@dataclass(frozen=True)
class Transcript:
    """One run: the prompt, a line of pieces for each target pass (the prefill's first), and the output as text."""

    model: str
    policy: str
    prompt: str
    lines: tuple[tuple[Piece, ...], ...]
    text: str
    generation: Generation

    @property
    def tokens(self) -> int:
        """Tokens put out."""
        return len(self.generation.tokens)

    @property
    def passes(self) -> int:
        """Passes of the target, the prefill included."""
        return len(self.generation.rounds)

    @property
    def tokens_per_pass(self) -> float:
        """Output tokens per decode pass of the target, the prefill and its token left out; nan when there was none."""
        return self.generation.tokens_per_round

    @property
    def summary(self) -> str:
        """One line: tokens, passes and their ratio, drafts kept."""
        drafted = sum(len(r.drafted) for r in self.generation.rounds)
        kept = sum(r.accepted for r in self.generation.rounds)
        drafts = f"; {kept} of {drafted} drafted tokens kept" if drafted else ""
        rate = f" ({self.tokens_per_pass:.2f} tokens a pass after the prefill)" if self.passes > 1 else ""
        return f"{self.tokens} tokens in {self.passes} target passes{rate}{drafts}"


RUN_OPTIONS = ("new_tokens", "temperature", "top_k", "top_p", "exact")


def run(
    model: str | Path | Transformer,
    policy: str = "speculative",
    prompt: str = "",
    options: Mapping[str, object] | None = None,
    seed: int = 0,
    codec: Codec | None = None,
    twin: Twin | None = None,
) -> Transcript:
    """Decode one prompt with a real model.

    ``options``: ``new_tokens`` (48), ``temperature``, ``top_k``, ``top_p``, ``exact``; any other key is an option of
    the policy's twin, which a ``twin`` that is ready has already. A name or path brings its tokenizer; a model object
    needs ``codec``. An empty prompt starts from ``<|endoftext|>``. Raises ValueError for unknown models, policies or
    options.
    """
    given = dict(options or {})
    own = {key: given.pop(key) for key in RUN_OPTIONS if key in given}
    twin = make(policy, given) if twin is None else twin
    new_tokens = own.pop("new_tokens", 48)
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int):
        raise ValueError(f"new_tokens: {new_tokens!r} is not allowed; allowed: an integer >= 1")
    exact = bool(own.pop("exact", False))
    sampler = Sampler(**own)  # type: ignore[arg-type]  # checks its own types
    target = model if isinstance(model, Transformer) else load(model, exact=exact)
    words = codec or codec_of(model)
    ids = words.encode(prompt or "<|endoftext|>")
    [generation] = decode(twin, target, [np.array(ids)], new_tokens, sampler=sampler, seed=seed)
    name = target.shape.name if isinstance(model, Transformer) else str(model)
    return transcribe(generation, words, name, policy, prompt)


def codec_of(model: str | Path | Transformer) -> Codec:
    """The tokenizer that belongs to a model's name or path. Raises ValueError for a model object, which has none."""
    if isinstance(model, Transformer):
        raise ValueError(f"codec: model {model.shape.name} is an object without tokenizer; allowed: give a codec")
    path = Path(model)
    if path.suffix == ".gguf":
        return read_gguf_tokenizer(path)
    near = path / "tokenizer.json"
    return read_tokenizer(near if near.exists() else SHIPPED / "tokenizer.json")


def transcribe(generation: Generation, codec: Codec, model: str = "", policy: str = "", prompt: str = "") -> Transcript:
    """Put words to a generation."""
    lines = tuple(tuple(_pieces(r, codec, policy in TREES)) for r in generation.rounds)
    return Transcript(model, policy, prompt, lines, codec.decode(generation.tokens), generation)


def _pieces(r: Round, codec: Codec, tree: bool) -> Iterable[Piece]:
    """Kept drafts, the first rejected draft of a chain (later ones were never judged), the target's own token.

    A draft that stays without being judged (the secondary of a plan) is nobody's rejection.
    """
    judged = bool(r.own) and not tree and r.drafted[r.accepted : r.accepted + 1] != r.own[:1]
    rejected = r.drafted[r.accepted : r.accepted + 1] if judged else ()
    for status, tokens in (("accepted", r.emitted[: r.accepted]), ("rejected", rejected), ("own", r.own)):
        for token in tokens:
            yield Piece(codec.decode([token]), int(token), status)  # type: ignore[arg-type]  # a literal above


def render(transcript: Transcript, colour: bool = True, width: int = 100) -> Text:
    """The classic figure: one line a target pass, each repeating the text so far (its last ``width`` characters).

    Accepted drafts green, the rejected one red, the target's own token blue (arXiv 2211.17192, figure 1); without
    colour accepted drafts stand in [square] brackets and rejected ones in <angle> brackets. A legend and the summary
    close it.
    """
    out, so_far = Text(), transcript.prompt
    for line in transcript.lines:
        out.append(_tail(so_far, width), style="dim" if colour else "")
        for piece in line:
            out.append(*_shown(piece.text, piece.status, colour))
        out.append("\n")
        so_far += "".join(piece.text for piece in line if piece.status != "rejected")
    _append_legend(out, colour)
    out.append(transcript.summary)
    return out


def _append_legend(out: Text, colour: bool) -> None:
    names: Sequence[tuple[str, Status]] = (
        ("accepted draft", "accepted"),
        ("rejected draft", "rejected"),
        ("target's own", "own"),
    )
    for name, status in names:
        out.append(*_shown(name, status, colour))
        out.append("  ")
    out.append("\n")


def _shown(text: str, status: Status, colour: bool) -> tuple[str, str]:
    visible = text.replace("\n", "⏎")
    if colour:
        return visible, STYLES[status]
    left, right = BRACKETS[status]
    return f"{left}{visible}{right}", ""


def _tail(text: str, width: int) -> str:
    flat = text.replace("\n", "⏎")
    return flat if len(flat) <= width else "…" + flat[len(flat) - width + 1 :]
