"""Blockwise parallel decoding: heads on the target's last states propose, the next pass judges and proposes again.

Stern et al. (arXiv 1811.03115). Greedy output is the target's own. Heads are the family's trained ones (member
``medusa``, which predict tokens 2, 3, ... after a state as Stern's do) or untrained ones of Stern's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.checkpoint import SHIPPED
from sim.reference.decoding import Round, Session, Tokens
from sim.reference.meter import Meter
from sim.reference.safetensors_file import read_index
from sim.reference.sampling import Floats, Sampler, draw, one_hot, stream
from sim.reference.twins._chain import ChainSession, Draft, NoDrafter

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

Array = NDArray[Any]


@dataclass(frozen=True)
class Twin:
    """``block``: heads, the target's own included; ``heads``: ``medusa`` or ``untrained``; ``everywhere``: they run on
    every row of a pass, else on the state that verification leaves.

    Raises ValueError for a block below 2 or heads that are neither; begin() for sampling, or more than are trained.
    """

    block: int = 4
    heads: str = "medusa"
    everywhere: bool = True

    def __post_init__(self) -> None:
        """Refuse options that propose nothing."""
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 2:
            raise ValueError(f"policy blockwise: block is {self.block!r}; allowed: an integer >= 2")
        if self.heads not in ("medusa", "untrained"):
            raise ValueError(f"policy blockwise: heads is {self.heads!r}; allowed: medusa, untrained")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """Greedy decoding only: heads have no distribution that rejection sampling could judge them by."""
        if not sampler.greedy:
            raise ValueError(f"policy blockwise: temperature is {sampler.temperature!r}; allowed: 0, it is greedy")
        heads = trained(target, self.block - 1) if self.heads == "medusa" else untrained(target, self.block - 1, seed)
        return _BlockSession(target, prompts, sampler, seed, heads, self.everywhere)


@dataclass(frozen=True)
class HeadStack:
    """Heads over a target's normalised last states. ``first`` and ``second``: each head's two matrices.

    ``gain`` None, Stern's form: x + relu(x first) second, [d, 4d] and [4d, d]. Else the family's: the norm with this
    gain of x first + silu(x second), both [d, d]. All use the target's output matrix.
    """

    target: Transformer
    first: tuple[Array, ...]
    second: tuple[Array, ...]
    gain: Array | None = None

    def propose(self, x: Array) -> Tokens:
        """The likeliest token of every head, [rows, d] -> [rows, heads]."""
        meter, exact = self.target.meter, self.target.exact
        with meter.prefix("draft."):
            states = [self._hidden(x, a, b) for a, b in zip(self.first, self.second, strict=True)]
            logits = meter.linear("heads.logits", np.concatenate(states), self.target.weights["logits"], exact=exact)
            meter.sample(logits)
        return np.stack(np.split(logits.argmax(axis=-1), len(states)), axis=1)

    def _hidden(self, x: Array, a: Array, b: Array) -> Array:
        meter, exact = self.target.meter, self.target.exact
        inner = meter.linear("heads.hidden", x, a, exact=exact)
        if self.gain is None:
            active = np.maximum(inner, 0)
            meter.add("heads.act", flops=4 * inner.size, activations=inner.nbytes + active.nbytes)
            return x + meter.linear("heads.hidden", active, b, exact=exact)
        gate = meter.linear("heads.hidden", x, b, exact=exact)
        out = inner + gate / (1 + np.exp(-gate))
        meter.add("heads.act", flops=5 * out.size, activations=3 * out.nbytes)
        meter.add("heads.norm", flops=4 * out.size, weights=self.gain.nbytes, activations=2 * out.nbytes)
        scale = np.sqrt((out * out).mean(axis=-1, keepdims=True) + 1e-5)
        return np.asarray(self.gain * (out / scale), dtype=x.dtype)


def trained(target: Transformer, count: int) -> HeadStack:
    """The first ``count`` heads of the family's ``medusa``. Raises ValueError where it has fewer, or other widths."""
    index = read_index(SHIPPED / "medusa")
    have = sum(name.endswith("inner.weight") for name in index)
    if count > have:
        raise ValueError(f"policy blockwise: block is {count + 1}; allowed: at most {have + 1} with the trained heads")
    if index["heads.0.inner.weight"].shape[0] != target.shape.d_model:
        raise ValueError(f"policy blockwise: heads medusa do not fit {target.shape.name}; allowed: primary")
    pick = [
        tuple(index[f"heads.{k}.{part}.weight"].read().astype(target.dtype).T for k in range(count))
        for part in ("residual", "inner")
    ]
    return HeadStack(target, pick[0], pick[1], target.weights["norm.final"])


def untrained(target: Transformer, count: int, seed: int = 0) -> HeadStack:
    """Stern's form with random weights: what they propose means nothing, what they cost is real."""
    d, luck = target.shape.d_model, stream(seed, "heads")
    pairs = [
        (luck.standard_normal((d, 4 * d)) / d**0.5, luck.standard_normal((4 * d, d)) / (4 * d) ** 0.5)
        for _ in range(count)
    ]
    first, second = zip(*((a.astype(target.dtype), b.astype(target.dtype)) for a, b in pairs), strict=True)
    return HeadStack(target, first, second)


class _BlockSession(ChainSession):
    """Chain rounds whose drafts come from the states of the pass before."""

    def __init__(
        self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int, heads: HeadStack,
        everywhere: bool,
    ) -> None:  # fmt: skip
        super().__init__(target, prompts, sampler, seed, NoDrafter(target.shape.vocab))
        self.heads, self.everywhere = heads, everywhere
        self.proposed: list[tuple[int, ...]] = [() for _ in prompts]

    def prefill(self) -> list[Round]:
        """One pass over the prompts; the heads read the last state of each."""
        everyone = range(len(self.prompts))
        logits, states = self._pass(self.prompts, everyone, "last")
        p, _ = self._distributions(logits)
        self._propose(everyone, states, np.arange(len(states)))
        rounds = [Round((), 0, (draw(p[i], self.luck[i].random()),)) for i in everyone]
        for sequence, r in enumerate(rounds):
            self.contexts[sequence].extend(r.emitted)
        return rounds

    def round(self, active: Sequence[int]) -> list[Round]:
        """Judge what the last pass proposed; propose from the state of the last token kept."""
        vocab = self.target.shape.vocab
        drafts = [Draft(self.proposed[s], one_hot(np.array(self.proposed[s]), vocab)) for s in active]
        feeds = [np.array([self.contexts[s][-1], *d.tokens]) for s, d in zip(active, drafts, strict=True)]
        logits, states = self._pass(feeds, active, "all")
        p, judge = self._distributions(logits)
        starts = np.concatenate([[0], np.cumsum([len(feed) for feed in feeds])])
        pieces = [slice(a, b) for a, b in pairwise(starts.tolist())]
        found = [self._verify(s, d, p[at], judge[at]) for s, d, at in zip(active, drafts, pieces, strict=True)]
        self._propose(active, states, starts[:-1] + np.array([kept for kept, _ in found]))
        return [self._commit(s, d, *one) for s, d, one in zip(active, drafts, found, strict=True)]

    def _pass(self, feeds: Sequence[Tokens], active: Sequence[int], rows: Any) -> tuple[Floats, Array]:
        """Logits and the normalised states of their rows; that norm was counted with the logits."""
        depth = len(self.target.shape.layers)
        logits, hidden = self.target.forward(feeds, self.cache, active, rows=rows, return_hidden=[depth])
        ends = np.cumsum([len(feed) for feed in feeds]) - 1
        quiet = replace(self.target, meter=Meter())
        return logits, quiet.final_norm(hidden[depth][ends] if rows == "last" else hidden[depth])

    def _propose(self, active: Sequence[int], states: Array, places: Tokens) -> None:
        """``places`` [active]: the row of each sequence's last kept token."""
        rows = self.heads.propose(states)[places] if self.everywhere else self.heads.propose(states[places])
        for sequence, tokens in zip(active, rows.tolist(), strict=True):
            self.proposed[sequence] = tuple(tokens)
