"""Facts on disk: the recorder's tables flushed in blocks while the clock runs, and read back block by block.

A block has what was recorded between two arrivals, so that its chunks are of its own leaps. Memory holds one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["TABLES", "Facts", "Frame"]

Ints = NDArray[np.int64]
Frame = dict[str, Ints]
TABLES = ("requests", "leaps", "chunks", "stays", "hits", "refused", "levels", "moves")
BLOCK = 1 << 15  # rows of a table at which a block is full


class Facts:
    """Blocks of the tables named TABLES under ``folder``, which exists; ``rows``: at how many a block is full.

    ``end_ns``: the end of the last round or request; ``first_ns``, ``last_ns``: of arrivals; ``arrived``, ``rounds``,
    ``drafted``, ``accepted``, ``leaps``: of all requests. Raises OSError where the disk is full.
    """

    def __init__(self, folder: Path, rows: int = BLOCK) -> None:
        self.folder, self.rows = folder, rows
        self.end_ns = self.last_ns = self.arrived = self.rounds = self.drafted = self.accepted = self.leaps = 0
        self.first_ns = 1 << 62
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        self._groups: list[dict[str, int]] = []
        self._first_leaps: list[dict[int, int]] = []

    def __len__(self) -> int:
        """Blocks so far."""
        return len(self._groups)

    def flush(self, recorder: Any, last: bool = False) -> None:
        """Put the tables on disk if one of them is full, or if this is the last time (``sim.run.simulate`` calls)."""
        here = (table for name in TABLES if len(table := getattr(recorder, name)) - table.gone >= self.rows)
        if not last and next(here, None) is None:
            return
        groups: dict[str, int] = {}
        for name in TABLES:
            table = getattr(recorder, name)
            self._columns[name] = table.columns
            rows = table.take()
            self._note(name, {column: rows[:, i] for i, column in enumerate(table.columns)})
            if len(rows):
                groups[name] = self._write(name, table.columns, rows)
        self._groups.append(groups)

    def _write(self, name: str, columns: tuple[str, ...], rows: Ints) -> int:
        """The number of the row group."""
        packed = pa.table([pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(c))])
                           for c in rows.T], names=list(columns))  # fmt: skip
        if name not in self._writers:
            self._writers[name] = pq.ParquetWriter(
                self._path(name), packed.schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
        self._writers[name].write_table(packed, row_group_size=len(rows))
        return sum(name in one for one in self._groups)

    def _note(self, name: str, rows: Frame) -> None:
        """What has to be known before the blocks are read."""
        if name == "requests":
            self.arrived += len(rows["id"])
            self.last_ns = max(self.last_ns, int(rows["arrival_ns"].max(initial=0)))
            self.first_ns = min(self.first_ns, int(rows["arrival_ns"].min(initial=self.first_ns)))
            self.rounds += int(rows["rounds"].sum())
            self.drafted += int(rows["drafted"].sum())
            self.accepted += int(rows["accepted"].sum())
            self.end_ns = max(self.end_ns, int(rows["finish_ns"][rows["status"] == 0].max(initial=0)))
        elif name == "leaps":
            self.leaps += len(rows["rounds"])
            self.end_ns = max(self.end_ns, int((rows["start_ns"] + rows["duration_ns"]).max(initial=0)))
        elif name == "stays":
            whose = np.unique(rows["replica"]).tolist()
            self._first_leaps.append({r: int(rows["first_leap"][rows["replica"] == r].min()) for r in whose})

    def close(self) -> None:
        """No more blocks come; the files are whole."""
        for writer in self._writers.values():
            writer.close()

    def remove(self) -> None:
        """Delete the files."""
        for name in self._writers:
            self._path(name).unlink()

    def blocks(self) -> Iterator[dict[str, Frame]]:
        """Tables as columns, block after block."""
        files = {name: pq.ParquetFile(self._path(name)) for name in self._writers}
        for groups in self._groups:
            yield {name: self._frame(files.get(name), groups.get(name), name) for name in TABLES}

    def wanted(self) -> list[dict[int, int]]:
        """By block: of each replica, the first leap in which a stay of a later block begins; none where it has none."""
        found: list[dict[int, int]] = []
        later: dict[int, int] = {}
        for firsts in reversed(self._first_leaps):
            found.append(dict(later))
            for replica, leap in firsts.items():
                later[replica] = min(leap, later.get(replica, leap))
        return found[::-1]

    def _frame(self, file: pq.ParquetFile | None, group: int | None, name: str) -> Frame:
        if file is None or group is None:
            return {column: np.empty(0, dtype=np.int64) for column in self._columns[name]}
        read = file.read_row_group(group, use_threads=False)
        return {c: read.column(c).chunk(0).to_numpy() for c in self._columns[name]}

    def _path(self, name: str) -> Path:
        return self.folder / f"facts-{name}.parquet"
