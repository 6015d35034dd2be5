"""Trace runs that a page has started: at most two at once, each in a process, ended when nobody asks after it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from sim.app.worker import work

__all__ = ["ABANDONED_S", "MOST_AT_ONCE", "Runs", "State"]

MOST_AT_ONCE = 2
MOST_KEPT = 20
ABANDONED_S = 90.0  # a browser lets a hidden tab ask once a minute
LONGEST_S = 1800.0
Status = Literal["running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class State:
    """How a run stands: ``arrived`` of ``requests``; ``table`` when done (``worker.told``), ``why`` when it is not."""

    status: Status
    arrived: int
    requests: int
    table: Mapping[str, Any] | None = None
    why: str = ""


@dataclass
class _Run:
    process: BaseProcess
    pipe: Connection
    folder: Path
    requests: int
    started_s: float
    asked_s: float
    arrived: int = 0
    status: Status = "running"
    table: Mapping[str, Any] | None = None
    why: str = ""

    def show(self) -> State:
        """A copy that does not change."""
        return State(self.status, self.arrived, self.requests, self.table, self.why)


class Runs:
    """The runs of one app. Results go to numbered folders below ``folder``; use as a context to leave none behind."""

    def __init__(self, folder: Path, abandoned_s: float = ABANDONED_S, longest_s: float = LONGEST_S) -> None:
        self.folder, self.abandoned_s, self.longest_s = folder, abandoned_s, longest_s
        self._runs: dict[str, _Run] = {}
        self._number, self._lock, self._closed = 0, threading.Lock(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Runs:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with self._lock:
            for run in self._runs.values():
                self._end(run, "cancelled", "the app ended")

    @property
    def under_way(self) -> int:
        """How many run at this moment."""
        with self._lock:
            return self._count()

    def start(self, scenario: Mapping[str, Any], requests: int) -> str:
        """Begin a run and return its name. Raises ValueError where two are under way or there is no place for it."""
        with self._lock:
            for run in self._runs.values():
                self._listen(run)
            if self._count() >= MOST_AT_ONCE:
                raise ValueError(f"run: {MOST_AT_ONCE} are under way; wait for one, or cancel it")
            folder = self._place()
            mine, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=work, args=(dict(scenario), str(folder), theirs), daemon=True
            )
            process.start()
            theirs.close()  # so that its end is seen here
            now = time.monotonic()
            self._runs[folder.name] = _Run(process, mine, folder, requests, now, now)
            self._forget()
            return folder.name

    def ask(self, name: str) -> State:
        """How a run stands; whoever asks keeps it going. Raises ValueError for one that is not known (any more)."""
        with self._lock:
            run = self._known(name)
            run.asked_s = time.monotonic()
            self._listen(run)
            return run.show()

    def cancel(self, name: str) -> State:
        """End a run; one that has ended stays as it is. Raises ValueError likewise."""
        with self._lock:
            run = self._known(name)
            self._listen(run)
            self._end(run, "cancelled", "cancelled")
            return run.show()

    # -- with the lock held

    def _count(self) -> int:
        return sum(run.status == "running" for run in self._runs.values())

    def _known(self, name: str) -> _Run:
        if name not in self._runs:
            raise ValueError("run: not known here (any more); start it again")
        return self._runs[name]

    def _place(self) -> Path:
        """A new folder's path; its parent is made."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.folder}: cannot be made: {error.strerror or error}") from None
        self._number += 1
        while (self.folder / f"app-{self._number}").exists():
            self._number += 1
        return self.folder / f"app-{self._number}"

    def _listen(self, run: _Run) -> None:
        """Take in what a worker has said."""
        try:
            while run.status == "running" and run.pipe.poll():
                word, value = run.pipe.recv()
                if word == "at":
                    run.arrived = value
                elif word == "done":
                    run.table = value
                    self._end(run, "done", "")
                else:
                    self._end(run, "failed", value)
        except (EOFError, OSError):
            self._end(run, "failed", "its process ended early, for want of memory perhaps")

    def _end(self, run: _Run, status: Status, why: str) -> None:
        if run.status != "running":
            return
        run.status, run.why = status, why
        if status != "done":
            run.process.kill()
        run.process.join(10)
        run.pipe.close()
        part = run.folder.with_name(f".{run.folder.name}.{run.process.pid}.part")
        rmtree(part, ignore_errors=True)  # what a killed worker had half written (analysis/store.py)

    def _forget(self) -> None:
        for name in list(self._runs)[:-MOST_KEPT]:
            if self._runs[name].status != "running":
                del self._runs[name]

    def _keep(self) -> None:
        """Look after runs that nobody asks after."""
        while not self._closed.wait(min(1.0, self.abandoned_s / 4)):
            now = time.monotonic()
            with self._lock:
                for run in self._runs.values():
                    self._listen(run)
                    if now - run.asked_s > self.abandoned_s:
                        self._end(run, "cancelled", "nobody asked after it: its page was closed")
                    elif now - run.started_s > self.longest_s:
                        self._end(run, "cancelled", f"took longer than {self.longest_s:g} s")
