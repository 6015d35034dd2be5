"""A run whose facts lie on disk, block by block: each block is a small run, and carries what ends in a later one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.facts import Facts, Frame
from analysis.fleet import tokens_a_round
from analysis.frames import Columns, Run, masked
from analysis.requests import request_columns
from analysis.rounds import round_columns
from sim.account import Accounts, account_pools, joules_each, leap_rows, pool_places

__all__ = ["Block", "blocks"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """A table of a block, with as much of the recorder's own as analysis asks for."""

    columns: Frame

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def frame(self) -> Frame:
        """Columns by name."""
        return self.columns


class Tables:
    """The recorder of a block: its own rows, and what the whole run has (lives, gaps)."""

    def __init__(self, whole: Any, frames: dict[str, Frame]) -> None:
        self.lives, self.gaps = whole.lives, whole.gaps
        for name, columns in frames.items():
            setattr(self, name, Rows(columns))


class Block:
    """The part of a run in one block of facts; see ``analysis.frames.Run``. Its requests are those that ended in it."""

    def __init__(self, run: Run, frames: dict[str, Frame], shares: _Shares) -> None:
        self.built, self.scenario, self.notes = run.built, run.scenario, run.notes
        self.complete, self.dropped = run.complete, Counter[str]()
        self.recorder: Any = Tables(run.recorder, frames)
        pools = [(one.setup.rounds, count) for one, count in self.built.pools]
        places = pool_places(pools, self.recorder)
        self.accounts: Accounts = account_pools(
            pools, frames["leaps"], frames["chunks"], self.scenario.energy.mode, places
        )
        self.joules = shares.of(self)

    @cached_property
    def round_columns(self) -> Columns:
        """Rows of rounds.parquet."""
        return round_columns(self)  # type: ignore[arg-type]

    @cached_property
    def request_columns(self) -> Columns:
        """Rows of requests.parquet, by id."""
        unknown = np.isnan(self.joules) | np.isnan(self.accounts.idle_W)
        return request_columns(self, masked(self.joules, unknown))  # type: ignore[arg-type]


def blocks(run: Run, facts: Facts) -> Iterator[Block]:
    """The run's blocks in order."""
    shares, hits = _Shares(), _Later()
    before = np.zeros(0, dtype=np.int64)
    for frames, wanted in zip(facts.blocks(), facts.wanted(), strict=True):
        leaps, chunks, stays = frames["leaps"], frames["chunks"], frames["stays"]
        replicas = 1 + max(int(table["replica"].max(initial=-1)) for table in (leaps, chunks, stays))
        before = np.append(before, np.zeros(max(0, replicas - len(before)), dtype=np.int64))
        chunks["leap"] = chunks["leap"] - before[chunks["replica"]]
        before = before + np.bincount(leaps["replica"], minlength=len(before))
        frames["hits"] = hits.due(frames["hits"], frames["requests"]["id"])
        yield Block(run, frames, shares)
        shares.forget(wanted)


class _Later:
    """Rows by request, kept until the block in which the request ends."""

    def __init__(self) -> None:
        self.kept: Frame | None = None

    def due(self, rows: Frame, ended: Ints) -> Frame:
        """Those of requests that end in this block."""
        every = rows if self.kept is None else {n: np.concatenate((self.kept[n], c)) for n, c in rows.items()}
        now = np.isin(every["request"], ended)
        self.kept = {name: column[~now] for name, column in every.items()}
        return {name: column[now] for name, column in every.items()}


class _Shares:
    """Each request's share of the joules of its leaps (``sim.account.request_joules``), block after block.

    ``sums``: of each replica, joules of a decoding sequence from its first leap up to the start of each later leap, the
    first ``forgotten`` of which nobody needs any more.
    """

    def __init__(self) -> None:
        self.sums: dict[int, Floats] = {}
        self.forgotten: dict[int, int] = {}
        self.kept: tuple[Ints, Floats] = (np.zeros(0, dtype=np.int64), np.zeros(0))

    def of(self, block: Block) -> Floats:
        """Joules of the requests that end in the block, by id."""
        tables = block.recorder
        leaps, chunks, stays = (table.frame() for table in (tables.leaps, tables.chunks, tables.stays))
        per_token, per_seat = joules_each(block.accounts, leaps, tokens_a_round(block))  # type: ignore[arg-type]
        for replica in np.unique(leaps["replica"]).tolist():
            known = self.sums.get(replica, np.zeros(1))
            more = known[-1] + np.cumsum(per_seat[leaps["replica"] == replica])
            self.sums[replica] = np.concatenate((known, more))
        read = per_token[leap_rows(leaps, chunks)] * chunks["new"]
        who = np.concatenate((self.kept[0], stays["request"], chunks["request"]))
        joules = np.concatenate((self.kept[1], self._stayed(stays), read))
        ids = np.sort(tables.requests.frame()["id"])
        now = np.isin(who, ids)
        self.kept = who[~now], joules[~now]
        return np.bincount(np.searchsorted(ids, who[now]), joules[now], len(ids)).astype(np.float64)

    def _stayed(self, stays: Frame) -> Floats:
        joules = np.zeros(len(stays["request"]))
        for replica in np.unique(stays["replica"]).tolist():
            mine, base = stays["replica"] == replica, self.forgotten.get(replica, 0)
            first, last = (stays[name][mine] - base for name in ("first_leap", "last_leap"))
            sums = self.sums[replica]
            joules[mine] = (sums[last] - sums[first]) * stays["seats"][mine]
        return joules

    def forget(self, wanted: dict[int, int]) -> None:
        """Keep only what stays of later blocks need: of each replica from that leap on."""
        for replica, sums in self.sums.items():
            base = self.forgotten.get(replica, 0)
            first = min(wanted.get(replica, base + len(sums) - 1), base + len(sums) - 1)
            if first > base:
                self.sums[replica] = sums[first - base :].copy()
                self.forgotten[replica] = first
