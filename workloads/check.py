"""Raw rows -> checked columns: every rule a trace must keep, tested as it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workloads.columns import Columns, Ints
from workloads.errors import TraceError, Word
from workloads.layout import Rows

TOKENS_MAX = 10**8
TOO_MANY = f"at most {TOKENS_MAX} tokens; is the unit right?"
STAMP_NS_MAX = 2**62
SPAN_NS_MAX = 10 * 365 * 86_400 * 10**9
"""Ten years: a longer trace is a unit mistaken for another (ms read as s, ns as ms)."""


def checked(stream: Iterable[Rows], file: str, dropped: Counter[str], need_arrivals: bool) -> Iterator[Columns]:
    """Rows -> Columns with arrivals from 0, in order, without zero-token rows (counted in `dropped`).

    Rows before a bad one are yielded first. Raises TraceError, with `rows_ok` set.
    """
    state = _State(file, dropped, need_arrivals)
    try:
        for rows in stream:
            yield from state.take(rows)
    except TraceError as error:
        error.rows_ok = state.rows_ok
        raise
    if not state.rows_read:
        raise TraceError(file, 1, "rows", 0, "at least one row of data")


class _State:
    """What the checks remember from one block to the next."""

    def __init__(self, file: str, dropped: Counter[str], need_arrivals: bool) -> None:
        self.file, self.dropped, self.need_arrivals = file, dropped, need_arrivals
        self.rows_ok = 0
        self.rows_read = 0
        self.base_ns = 0
        self.last_ns = 0

    def take(self, rows: Rows) -> Iterator[Columns]:
        if not len(rows.lines):
            return
        if not self.rows_read and rows.arrival_ns is not None:
            self.base_ns = _base(rows)
        rows = self._timed(rows)
        bad = self._first_bad(rows)
        good = len(rows.lines) if bad is None else bad[0]
        columns = self._columns(rows, good)
        self.rows_read += good
        self.rows_ok += len(columns)
        if len(columns):
            yield columns
        if bad is not None:
            raise TraceError(self.file, int(rows.lines[bad[0]]), *bad[1:])

    def _timed(self, rows: Rows) -> Rows:
        if rows.arrival_ns is None:
            if self.need_arrivals:
                allowed = "a trace with arrival times, or give a rate"
                raise TraceError(self.file, int(rows.lines[0]), "arrivals", Word("none"), allowed)
            return replace(rows, arrival_ns=np.zeros(len(rows.lines), np.int64))
        safe = np.clip(rows.arrival_ns, -STAMP_NS_MAX, STAMP_NS_MAX)  # so that the difference cannot wrap around
        return replace(rows, arrival_ns=safe - self.base_ns)

    def _first_bad(self, rows: Rows) -> tuple[int, str, object, str] | None:
        """(index, key, value, what is allowed) of the first row that breaks a rule."""
        arrival = _arrivals(rows)
        before = np.concatenate([[self.last_ns], arrival[:-1]])
        at, tokens_in, tokens_out = rows.keys
        found = [
            _first(rows.prompt < 0, tokens_in, rows.prompt, "tokens must be >= 0"),
            _first(rows.output < 0, tokens_out, rows.output, "tokens must be >= 0"),
            _first(rows.prompt > TOKENS_MAX, tokens_in, rows.prompt, TOO_MANY),
            _first(rows.output > TOKENS_MAX, tokens_out, rows.output, TOO_MANY),
            _first(arrival < 0, at, arrival, "arrival ns must be >= 0 and not before the first row"),
            _first(arrival > SPAN_NS_MAX, at, arrival, "arrival ns within ten years of the first; is the unit right?"),
            _first(arrival < before, at, arrival, "arrivals must not decrease; sort the file by arrival"),
            _first(_at_least_one(rows.samples), "samples", rows.samples, "samples must be >= 1"),
            _first(_below_zero(rows.tenant), "tenant", rows.tenant, "numbers of tenants must be >= 0"),
        ]
        return min((f for f in found if f is not None), key=lambda f: f[0], default=None)

    def _columns(self, rows: Rows, good: int) -> Columns:
        arrival = _arrivals(rows)
        if good:
            self.last_ns = int(arrival[good - 1])
        columns = Columns(
            arrival, rows.prompt, rows.output, rows.session, rows.priority, rows.samples, rows.hash_ids,
            rows.hash_block_tokens, rows.tenant,
        ).part(0, good)  # fmt: skip
        empty_prompt = columns.prompt_tokens == 0
        empty_output = (columns.output_tokens == 0) & ~empty_prompt
        self._count("zero_prompt_tokens", empty_prompt)
        self._count("zero_output_tokens", empty_output)
        drop = empty_prompt | empty_output
        return columns.take(~drop) if drop.any() else columns

    def _count(self, reason: str, mask: NDArray[np.bool_]) -> None:
        if mask.any():
            self.dropped[reason] += int(mask.sum())


def _base(rows: Rows) -> int:
    """Stamps that are calendar times count from the first row; relative ones keep the file's zero."""
    first = 0 if rows.arrival_ns is None else int(rows.arrival_ns[0])
    return first if rows.epoch or first > SPAN_NS_MAX else 0


def _arrivals(rows: Rows) -> Ints:
    assert rows.arrival_ns is not None
    return rows.arrival_ns


def _at_least_one(samples: Ints | None) -> NDArray[np.bool_]:
    return np.zeros(0, np.bool_) if samples is None else samples < 1


def _below_zero(tenants: Ints | None) -> NDArray[np.bool_]:
    return np.zeros(0, np.bool_) if tenants is None else tenants < 0


def _first(mask: NDArray[np.bool_], key: str, values: Ints | None, allowed: str) -> tuple[int, str, object, str] | None:
    if values is None or not mask.any():
        return None
    index = int(mask.argmax())
    return index, key, int(values[index]), allowed
