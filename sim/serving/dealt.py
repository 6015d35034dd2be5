"""What a round lasts where a replica's devices do not all do the same: pipeline stages, data ranks, or both.

A round's sequences are dealt out evenly: to ``data`` ranks, and on each rank to as many micro-batches as there are
pipeline stages. All of them wait for the fullest share, which has ``ceil(seats / shares)`` sequences of mean size. A
micro-batch goes on to the next stage every *slot*, as long as the slowest stage takes for the fullest one; a round is
over when every micro-batch has been through all stages and the first one may begin again, which is ``pipeline`` slots,
however few micro-batches there are: each token then waits for all stages in turn, and a full pipeline never idles. A
pipeline that stood empty fills first: ``m`` micro-batches take ``pipeline + m - 1`` slots (GPipe, Huang et al. 2019,
arXiv 1811.06965, section 2.3).

Prompt chunks go whole to the rank with fewest prompt tokens, and in pieces of at most ``piece`` tokens to the
micro-batch with fewest. Engines with their own scheduler on every rank, or plans of p batches that overlap, do about
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import Work
from sim.policies import Chunk, Chunks, Pass, Prompts, Totals
from sim.serving.rounds import Rounds

__all__ = ["DealtRounds", "cut", "fullest"]


@dataclass(frozen=True)
class DealtRounds(Rounds):
    """Rounds of ``pipeline`` stages and ``data`` ranks. ``layers``: of the stage that has most of them.

    ``piece``: most prompt tokens of a micro-batch that belong together.
    """

    pipeline: int = 1
    data: int = 1
    piece: int = 1 << 20

    @property
    def slots(self) -> int:
        """How often the slowest stage works in a round."""
        return self.pipeline

    @property
    def shares(self) -> int:
        """Micro-batches of all ranks."""
        return self.pipeline * self.data

    def seconds(self, seats: Any, totals: Totals | None, prompts: Prompts | None, sequences: Any) -> Any:
        """Seconds of each round: slots of the fullest share."""
        return super().seconds(seats, totals, prompts, sequences) * float(self.pipeline)

    def host_s(self, sequences: Any, seats: Any = None, layers_run: Any = 0, prompts: Prompts | None = None) -> Any:
        """Host seconds of a slot; every rank and micro-batch has its own sequences to look after."""
        ways = self.pipeline * self.data
        few = None if seats is None else _ceil(seats, ways)
        return super().host_s(_ceil(sequences, ways), few, layers_run, prompts)

    def passes(self, seats: Any, totals: Any, prompts: Prompts | None) -> list[Pass]:
        """The passes of the fullest micro-batch of the fullest rank; ``everywhere``: of the fullest on all ranks."""
        whole = self._read(prompts)
        batch = self._share(seats, totals, self.pipeline, fullest(cut(whole, self.piece), self.pipeline))
        if self.data == 1:
            return batch
        mine = fullest(cut(fullest(whole, self.data), self.piece), self.pipeline)
        rank = self._share(seats, totals, self.pipeline * self.data, mine)
        return [
            Pass(one.model, one.work._replace(everywhere=all_.work.tokens))
            for one, all_ in zip(rank, batch, strict=True)
        ]

    def mean_passes(self, seats: Any, totals: Any, prompts: Prompts | None) -> list[Pass]:
        """The passes of the mean share, for accounts: shares of all ranks and micro-batches add up to the round."""
        ways = self.pipeline * self.data
        return [
            Pass(one.model, _part(one.work, ways)._replace(everywhere=one.work.tokens / self.pipeline))
            for one in self.policy.passes(seats, totals, prompts, self.windows)
        ]

    def filling_ns(self, ns: NDArray[np.int64], prompts: Prompts | None) -> int:
        """More nanoseconds of a round of ``ns`` that finds the pipeline empty."""
        pieces = len(cut(self._read(prompts), self.piece))
        return int(ns[0]) * max(0, min(pieces, self.pipeline) - 1) // self.pipeline

    @staticmethod
    def _read(prompts: Prompts | None) -> list[Chunk]:
        assert prompts is None or isinstance(prompts, Chunks), "chunks are dealt out one by one"
        return [] if prompts is None else prompts.chunks

    def _share(self, seats: Any, totals: Any, ways: int, chunks: list[Chunk]) -> list[Pass]:
        prompts = Chunks(chunks) if chunks else None
        if totals is None:
            return list(self.policy.passes(0, None, prompts, self.windows))
        few = _ceil(seats, ways)
        return list(self.policy.passes(few, _of(totals, few, seats), prompts, self.windows))


def cut(chunks: Sequence[Chunk], piece: int) -> list[Chunk]:
    """Chunks in pieces of at most so many tokens, in order; only the last of a prompt's emits."""
    out = []
    for chunk in chunks:
        begun = 0
        while begun < chunk.new:
            new = min(piece, chunk.new - begun)
            last = chunk.last and begun + new == chunk.new
            out.append(chunk._replace(cached=chunk.cached + begun, new=new, last=last))
            begun += new
    return out


def fullest(chunks: Sequence[Chunk], ways: int) -> list[Chunk]:
    """Each chunk in turn to the one of ``ways`` with fewest tokens, the first of them; those of the fullest one."""
    if ways == 1:
        return list(chunks)
    dealt: list[list[Chunk]] = [[] for _ in range(ways)]
    held = [0] * ways
    for chunk in chunks:
        at = held.index(min(held))
        dealt[at].append(chunk)
        held[at] += chunk.new
    return dealt[held.index(max(held))]


def _ceil(count: Any, ways: int) -> Any:
    return -(-count // ways)


def _of(totals: Any, few: Any, seats: Any) -> Any:
    """The totals of ``few`` of ``seats`` sequences of mean size: whole numbers rounded up, means as they are."""
    if isinstance(totals, list):
        return [-(-total * few // seats) for total in totals]
    if totals.dtype.kind == "f":
        return totals * few / np.maximum(seats, 1)
    return -(-totals * few // np.maximum(seats, 1))


def _part(work: Work, ways: int) -> Work:
    """Every count over ``ways``."""
    columns = {
        name: tuple(part / ways for part in value) if isinstance(value, tuple) else value / ways
        for name, value in work._asdict().items()
        if value is not None
    }
    return work._replace(**columns)
