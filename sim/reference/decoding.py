"""Decoding that really happens: rounds, the acceptance rule, and the loop that turns a policy's twin into text.

A *twin* (``sim/reference/twins/NAME.py``) is a frozen dataclass that runs one decoding policy on real models. Its
``begin`` returns a *session*, which prefills the prompts and then runs one round at a time for the sequences still
active; each round says of each sequence what was drafted, how much of it was kept and what was emitted. The loop
below knows nothing of drafts, trees or heads; a twin knows nothing of limits and stop tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.reference.sampling import Floats, Sampler, draw

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """One round of one sequence: tokens ``drafted``, how many were ``accepted``, tokens ``emitted``.

    The first ``accepted`` emitted tokens are drafts (the first ones of a chain, a path of a tree); what follows is the
    target's own: a correction after a rejection, or the bonus token after full acceptance.
    """

    drafted: tuple[int, ...]
    accepted: int
    emitted: tuple[int, ...]

    def __post_init__(self) -> None:
        """A round always emits at least one token, and never accepts what it did not draft."""
        assert 0 <= self.accepted <= min(len(self.drafted), len(self.emitted)), self
        assert self.emitted, self

    @property
    def own(self) -> tuple[int, ...]:
        """The emitted tokens that the target chose itself."""
        return self.emitted[self.accepted :]

    def clipped(self, tokens: int) -> Round:
        """The round as far as its first ``tokens`` emitted tokens reach: what an output limit leaves of it."""
        return Round(self.drafted, min(self.accepted, tokens), self.emitted[:tokens])


class Session(Protocol):
    """A batch of sequences being decoded: caches, contexts and luck live here."""

    def prefill(self) -> list[Round]:
        """Read the prompts; one round a sequence, nothing drafted, one token emitted."""
        ...

    def round(self, active: Sequence[int]) -> list[Round]:
        """Run one round for the sequences ``active`` (ascending); rounds in their order."""
        ...


class Twin(Protocol):
    """A decoding policy that really runs. Its dataclass fields are the policy's options."""

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """Set up caches for the prompts ([n_i] token ids each) and address the luck of each sequence by ``seed``."""
        ...


@dataclass(frozen=True)
class Generation:
    """What one sequence did: its prompt and its rounds, the prefill's first."""

    prompt: tuple[int, ...]
    rounds: tuple[Round, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The output, without the prompt."""
        return tuple(token for r in self.rounds for token in r.emitted)

    @property
    def tokens_per_round(self) -> float:
        """Output tokens per target pass, the prefill and its token left out; nan without a decode round."""
        rounds = self.rounds[1:]
        return sum(len(r.emitted) for r in rounds) / len(rounds) if rounds else float("nan")


def decode(
    twin: Twin,
    target: Transformer,
    prompts: Sequence[Sequence[int] | Tokens],
    new_tokens: int | Sequence[int],
    *,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: frozenset[int] = frozenset(),
) -> list[Generation]:
    """Decode every prompt until its limit or a stop token; the batch is ragged and shrinks as sequences end.

    ``new_tokens`` is one limit or one a prompt; a round that passes the limit is clipped. A sequence's output depends
    on the seed and its place in the batch, not on the others (to the last bit only with an exact transformer). Raises
    ValueError for an empty batch or prompt, or a limit below 1.
    """
    ids = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    limits = [new_tokens] * len(ids) if isinstance(new_tokens, int) else list(new_tokens)
    _check_batch(ids, limits)
    session = twin.begin(target, ids, sampler or Sampler(), seed)
    rounds: list[list[Round]] = [[] for _ in ids]
    left = list(limits)
    active = list(range(len(ids)))
    latest = session.prefill()
    while active:
        for sequence, r in zip(active, latest, strict=True):
            rounds[sequence].append(_clip(r, left[sequence], stop))
            kept = rounds[sequence][-1].emitted
            left[sequence] = 0 if kept[-1] in stop else left[sequence] - len(kept)
        active = [sequence for sequence in active if left[sequence] > 0]
        latest = session.round(active) if active else []
    return [Generation(tuple(map(int, i)), tuple(r)) for i, r in zip(ids, rounds, strict=True)]


def _clip(r: Round, left: int, stop: frozenset[int]) -> Round:
    ends = [at + 1 for at, token in enumerate(r.emitted) if token in stop]
    return r.clipped(min([left, *ends]))


def _check_batch(prompts: Sequence[Tokens], limits: Sequence[int]) -> None:
    if not prompts:
        raise ValueError("decode: prompts is empty; allowed: at least one prompt")
    if len(limits) != len(prompts):
        raise ValueError(f"decode: new_tokens has {len(limits)} limits for {len(prompts)} prompts; allowed: one each")
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if prompt.ndim != 1 or not len(prompt):
            raise ValueError(f"decode: prompt {i} has shape {prompt.shape}; allowed: [n] token ids with n >= 1")
        if limit < 1:
            raise ValueError(f"decode: new_tokens of prompt {i} is {limit}; allowed: an integer >= 1")


def residual(p: Floats, q: Floats, lenience: float = 1.0) -> Floats:
    """What a rejected draft is replaced from: ``norm(max(0, p - lenience * q))``, [V], [V] -> [V].

    Leviathan et al. (arXiv 2211.17192) algorithm 1, with appendix A.5's lenience. Where nothing is left (p equals q to
    the last bit, so that a rejection is an event of probability 0) it is p.
    """
    left = np.maximum(0.0, p - lenience * q)
    total = left.sum()
    return np.asarray(left / total) if total > 0 else p


def accepts(p: Floats, q: Floats, token: int, coin: float, lenience: float = 1.0) -> bool:
    """Whether a token drawn from q [V] is kept under p [V]: with probability ``min(1, p(x) / (lenience * q(x)))``."""
    return bool(coin * lenience * q[token] < p[token])


def verify(
    drafted: Sequence[int],
    p: Floats,
    q: Floats,
    coins: Floats,
    *,
    lenience: float = 1.0,
    judge: Floats | None = None,
) -> tuple[int, int]:
    """Judge a drafted chain: -> (drafts accepted, the target's own next token).

    ``drafted`` [g] token ids, drawn from ``q`` [g, V]; ``p`` [g+1, V] the target's distributions, the last one after
    all drafts; ``coins`` [g+1] uniforms, the last for the target's own token. ``judge`` [g+1, V] stands in for p where
    drafts are judged (see :func:`lenient_greedy`). Speculative sampling, algorithm 1 of arXiv 2211.17192: the output
    is distributed as p for any q when lenience is 1; no token is then likelier than ``p / lenience``. Greedy decoding
    is the case of one-hot rows.
    """
    judge = p if judge is None else judge
    for i, token in enumerate(drafted):
        if not accepts(judge[i], q[i], token, coins[i], lenience):
            return i, draw(residual(p[i], q[i], lenience), coins[-1])
    return len(drafted), draw(p[len(drafted)], coins[-1])


def lenient_greedy(soft: Floats, lenience: float) -> Floats:
    """1 for every token that a greedy target tolerates, else 0: ``soft >= lenience * max(soft)``, [n, V] -> [n, V].

    ``soft`` are the target's probabilities at temperature 1. Source: arXiv 2211.17192 appendix A.5, which prints the
    comparison reversed.
    """
    return np.asarray(soft >= lenience * soft.max(axis=-1, keepdims=True), dtype=np.float64)
