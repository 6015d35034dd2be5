"""A run streamed to disk: facts while the clock runs, then the result folder block by block, in memory that stays flat.

The tables have the rows of ``analysis.store.save``; requests come in the order in which they ended. Percentiles are
exact (analysis/order.py reads the column back, three times); sums differ in their last digits, as they are added up in
another order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.bench import bench
from analysis.cost_report import cost_report
from analysis.facts import Facts
from analysis.fleet import life_columns
from analysis.frames import Columns, Run, known
from analysis.moves import move_columns
from analysis.order import SHIFTS
from analysis.origin import header
from analysis.perfetto import SHOWN, TRACE_EVENTS, drawn, every
from analysis.store import MARK, WORDS, check_target, new_folder, table, write_json
from analysis.stream_blocks import Block, blocks
from analysis.stream_summary import Orders, summary
from analysis.stream_sums import Window, added, of_block, subsets, tops_of

__all__ = ["Stream", "streaming"]

ASKED = ("arrival_ns", "queue_ms", "ttft_ms", "tpot_ms", "e2el_ms", "priority", "tenant", "group")


@contextmanager
def streaming(folder: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Stream]:
    """Open a result folder for a run: pass ``stream.facts.flush`` to ``simulate``, then call ``stream.save``.

    Raises ValueError, one line, where the folder is something else or cannot be written.
    """
    target = Path(folder)
    check_target(target, overwrite)
    with new_folder(target) as beside:
        yield Stream(target, beside, Facts(beside))


@dataclass
class Stream:
    """A result folder in the making; ``beside`` will take the place of ``target``."""

    target: Path
    beside: Path
    facts: Facts
    writers: dict[str, pq.ParquetWriter] = field(default_factory=dict)

    def save(self, run: Run, *, date: str = "", trace_events: int = TRACE_EVENTS) -> Streamed:
        """Write every file of docs/results.md; what a summary tells is in the ``metrics`` of what comes back."""
        self.facts.close()
        facts = self.facts
        window = Window(run, facts.end_ns, facts.last_ns, 1 + facts.accepted / facts.rounds if facts.rounds else 1.0)
        sums, tops, shown = self._blocks(run, window, trace_events)
        done = Streamed(run, facts, window, sums, tops, self._orders(run, window))
        (self.beside / "scenario.yaml").write_text(header(run.scenario.seed) + run.scenario.to_yaml(), "utf-8")
        if len(run.recorder.lives):
            self._write("lives", life_columns(run))
            self.writers["lives"].close()
        if trace_events:
            step = every(run, sums["leaps"], trace_events)
            (self.beside / "trace.json").write_text(drawn(run, shown, sums["leaps"], step), "utf-8")
        write_json(self.beside / "bench.json", bench(done, date=date))  # type: ignore[arg-type]
        write_json(self.beside / MARK, done.metrics)
        write_json(self.beside / "cost.json", cost_report(run, (facts.arrived, sums["rounds"], sums["leaps"])))
        self.facts.remove()
        return done

    def _blocks(self, run: Run, window: Window, trace_events: int) -> tuple[Any, dict[str, float], Columns]:
        """Write the tables; sums, highest values, and the leaps that the trace shows."""
        sums: Any = None
        tops: dict[str, float] = {}
        shown: dict[str, list[NDArray[Any]]] = {name: [] for name in SHOWN}
        step, before = every(run, self.facts.leaps, max(trace_events, 1)), 0
        for block in blocks(run, self.facts):
            self._tables(block)
            more = of_block(block, window)  # type: ignore[arg-type]
            sums = more if sums is None else added(sums, more)
            tops = {name: max(value, tops.get(name, value)) for name, value in tops_of(block).items()}  # type: ignore[arg-type]
            rows = np.arange(-before % step, more["leaps"], step)
            for name in SHOWN:
                shown[name].append(block.round_columns[name][rows])
            before += more["leaps"]
        return sums, tops, {name: np.concatenate(parts) for name, parts in shown.items()}

    def _tables(self, block: Block) -> None:
        self._write("requests", block.request_columns)
        self._write("rounds", block.round_columns)
        if block.scenario.pools is not None:
            self._write("moves", move_columns(block))  # type: ignore[arg-type]

    def _write(self, name: str, columns: Columns) -> None:
        rows = table(columns)
        if name not in self.writers:
            path = self.beside / f"{name}.parquet"
            self.writers[name] = pq.ParquetWriter(path, rows.schema, compression="zstd", use_dictionary=WORDS)
        if rows.num_rows or name == "moves":
            self.writers[name].write_table(rows)

    def _orders(self, run: Run, window: Window) -> Orders:
        """Percentiles of every subset of requests, from the file; closes the files of tables."""
        for writer in self.writers.values():
            writer.close()
        found = Orders(run)
        file = pq.ParquetFile(self.beside / "requests.parquet")
        for _ in SHIFTS:
            for group in range(file.num_row_groups):
                read = file.read_row_group(group, columns=list(ASKED), use_threads=False)
                requests = {name: _column(read.column(name)) for name in ASKED}
                for key, rows in subsets(run, requests, window):
                    found.add(key, {name: known(requests, name, rows) for name in ASKED if name.endswith("_ms")})
            found.turn()
        return found


@dataclass
class Streamed:
    """A finished run whose tables are on disk, as far as its summary goes (see ``analysis.frames.Run``)."""

    run: Any
    facts: Facts
    window: Window
    sums: dict[str, Any]
    tops: dict[str, float]
    orders: Orders

    @property
    def scenario(self) -> Any:
        """As resolved."""
        return self.run.scenario

    @property
    def built(self) -> Any:
        """What it names."""
        return self.run.built

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Everything in ``summary.json``."""
        return summary(_Longest(self.run, self.tops), self.window, self.facts, self.sums, self.tops, self.orders)


class _Longest:
    """A run in which the longest request and round stand for all, and whose tables are empty."""

    def __init__(self, run: Any, tops: dict[str, float]) -> None:
        self.built, self.recorder, self.scenario = run.built, run.recorder, run.scenario
        self.complete, self.notes, self.dropped = run.complete, run.notes, run.dropped
        nothing = {name: np.zeros(0, dtype=np.int64) for name in ("replica", "duration_ns")}
        longest = {name: np.array([tops[name]]) for name in ("context", "batch", "prefill_tokens")}
        self.round_columns: Columns = nothing | longest
        self.request_columns: Columns = {"prompt_tokens": np.array([tops["prompt_tokens"]])}


def _column(values: Any) -> Any:
    """A column of a file, masked where it is unknown."""
    whole = values.combine_chunks()
    array = whole.chunk(0) if hasattr(whole, "chunk") else whole
    if hasattr(array, "dictionary"):
        words = np.array(array.dictionary.to_pylist())
        return words[array.indices.to_numpy(zero_copy_only=False)] if len(words) else np.zeros(len(array), dtype="U1")
    missing = array.is_null().to_numpy(zero_copy_only=False)
    return np.ma.MaskedArray(array.fill_null(0).to_numpy(zero_copy_only=False), mask=missing)
