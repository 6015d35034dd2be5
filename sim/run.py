"""Run a scenario: ``simulate(Scenario.load("x.yaml"))`` gives a :class:`Result`."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.account import Accounts, account_pools, pool_places
from sim.build import Built, build_scenario, with_seed
from sim.guard import memory_is_short, memory_limit_bytes, peak_memory_bytes
from sim.request import Request
from sim.scenario import FleetPart, GroupPart, Scenario
from sim.serving.cluster import ClosedLoop, Cluster
from sim.serving.conversation import Conversations
from sim.serving.fleet import Fleet, FleetCluster, Group
from sim.serving.pools import PooledCluster, Pools
from sim.serving.record import Recorder
from workloads import Columns, lengths, workload

if TYPE_CHECKING:
    import pandas as pd

MOST_SAMPLES = 1 << 16
FLUSH_EVERY = 256  # arrivals between two looks whether tables are full
INTERRUPTED = "interrupted"


@dataclass
class Result:
    """What a run left: flat tables in ``recorder``, everything else derived from them on demand.

    ``complete`` is False when the run was interrupted or its trace was damaged; ``notes`` says what happened.
    """

    built: Built
    recorder: Recorder
    events: int
    cpu_s: float
    wall_s: float
    peak_memory_bytes: int
    complete: bool = True
    notes: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def scenario(self) -> Scenario:
        """The scenario as resolved."""
        return self.built.scenario

    @cached_property
    def accounts(self) -> Accounts:
        """Where the time and the energy went, by leap."""
        pools = [(one.setup.rounds, count) for one, count in self.built.pools]
        mode = self.scenario.energy.mode
        leaps, chunks = self.recorder.leaps.frame(), self.recorder.chunks.frame()
        return account_pools(pools, leaps, chunks, mode, pool_places(pools, self.recorder))

    @cached_property
    def request_columns(self) -> dict[str, Any]:
        """The request table as NumPy columns, masked where a value is unknown."""
        from analysis.requests import request_columns

        return request_columns(self)

    @cached_property
    def round_columns(self) -> dict[str, Any]:
        """The round table as NumPy columns, likewise."""
        from analysis.rounds import round_columns

        return round_columns(self)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request, sorted by id; columns as in ``requests.parquet``."""
        import pandas as pd

        return pd.DataFrame(self.request_columns)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a leap of ``n_rounds`` equal rounds; columns as in ``rounds.parquet``."""
        import pandas as pd

        return pd.DataFrame(self.round_columns)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Everything in ``summary.json``."""
        from analysis.metrics import metrics

        return metrics(self)

    def summary(self) -> pd.DataFrame:
        """Mean, p50, p90 and p99 of TTFT, TPOT, ITL and E2EL in milliseconds, one row each."""
        import pandas as pd

        return pd.DataFrame(self.metrics["latency"]).T

    def process_cpu_s(self) -> float:
        """CPU seconds of this process up to now, its start included."""
        return time.process_time()

    def bare_events_per_s(self, events: int = 20_000) -> float:
        """Bare SimPy events (a process that only waits) per CPU second of this machine, measured now."""
        env = type(Cluster(self.built.setup, 1, self.built.router, iter(())).env)(0)

        def waits() -> Iterator[Any]:
            for _ in range(events):
                yield env.timeout(1)

        env.process(waits())  # type: ignore[arg-type]
        start_s = time.process_time()
        env.run()
        return events / max(time.process_time() - start_s, 1e-9)

    def save(self, folder: str, **options: Any) -> str:
        """Write the result folder, beside and then renamed; returns its path. Raises ValueError."""
        from analysis.store import save

        return save(self, folder, **options)


def simulate(
    scenario: Scenario | Built,
    *,
    progress: Callable[[int], None] | None = None,
    stepping: bool = False,
    flush: Callable[[Recorder, bool], None] | None = None,
) -> Result:
    """Run to the end. ``progress`` is called with the number of requests that have arrived.

    ``flush`` may take rows away from the recorder; it is called between arrivals, and with True at the end.

    Ctrl-C ends the run after the present event and the result says so; so does memory that runs short. Raises
    ValueError for a scenario that makes no sense or brings no request, DoesNotFit for one that cannot run.
    """
    built = scenario if isinstance(scenario, Built) else build_scenario(scenario, stepping)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    traffic = Traffic(built.scenario, any(one.setup.prefix is not None for one, _ in built.pools))
    cluster = clustered(built, traffic.arrivals(), progress)
    if flush is not None:
        cluster.progress = _flushing(cluster.recorder, flush, progress)
    with _Interruptible(cluster) as interruption, uncollected():
        recorder = cluster.run()
        if flush is not None:
            flush(recorder, True)
    notes = [*traffic.notes, *interruption.notes]
    if not len(recorder.requests) and not interruption.notes:
        raise ValueError(f"workload: no request arrives{_reasons(traffic)}")
    return Result(
        built,
        recorder,
        cluster.events,
        time.process_time() - cpu_s,
        time.perf_counter() - wall_s,
        peak_memory_bytes(),
        complete=not notes,
        notes=notes,
        dropped=traffic.dropped,
    )


def _flushing(
    recorder: Recorder, flush: Callable[[Recorder, bool], None], progress: Callable[[int], None] | None
) -> Callable[[int], None]:
    def arrived(count: int) -> None:
        if progress is not None:
            progress(count)
        if not count % FLUSH_EVERY:
            flush(recorder, False)

    return arrived


def clustered(
    built: Built, arrivals: Iterator[Request] | ClosedLoop | Conversations, progress: Callable[[int], None] | None
) -> Cluster:
    """The replicas of a scenario on a clock that has not begun."""
    entrance: Any = {"stale_ns": built.stale_ns, "admission": built.admission}
    if built.scenario.fleet is not None:
        fleet = FleetCluster(_fleet(built, built.scenario.fleet), built.router, arrivals, progress, **entrance)
        built.events.attach(fleet)
        return fleet
    if built.prefill is None or built.mover is None:
        return Cluster(built.setup, built.scenario.replicas, built.router, arrivals, progress, **entrance)
    (prefill, readers), (decode, writers) = built.pools
    pools = Pools(prefill.setup, decode.setup, readers, writers, built.mover)
    return PooledCluster(pools, built.router, arrivals, progress, **entrance)


def _fleet(built: Built, said: FleetPart) -> Fleet:
    groups = [
        Group(
            part.name, one.setup, part.replicas, part.weight, _rent(built.scenario, one, part),
            one.shapes[0].total_parameters,
        )
        for one, part in zip(built.groups, said.groups, strict=True)
    ]
    return Fleet(tuple(groups), said.retries, said.resume)


def _rent(scenario: Scenario, one: Built, part: GroupPart) -> float | None:
    """Dollars an hour of one replica: said, or of its devices at the scenario's price, else that of their profile."""
    said = scenario.cost.usd_per_device_hour
    each = one.device.usd_per_hour if said is None else said
    return part.usd_per_hour if part.usd_per_hour is not None or each is None else each * one.layout.devices


def pairs(
    first: Scenario, second: Scenario, repeats: int = 1, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[Result, Result]]:
    """Runs of two scenarios under the same luck: seeds ``first.seed``, ``first.seed + 1``, ... for both.

    ``tick`` is called after every run. Raises ValueError, and KeyboardInterrupt where a run was cut short.
    """
    builts = [build_scenario(first), build_scenario(second)]
    for seed in range(first.seed, first.seed + repeats):
        runs = []
        for built in builts:
            runs.append(simulate(built if seed == built.scenario.seed else with_seed(built.scenario, seed)))
            if any(note.startswith(INTERRUPTED) for note in runs[-1].notes):
                raise KeyboardInterrupt
            tick()
        yield runs[0], runs[1]


def _reasons(traffic: Traffic) -> str:
    """Why nobody came."""
    dropped = [f"{count} rows dropped for {reason}" for reason, count in traffic.dropped.items()]
    return "; ".join(["", *traffic.notes, *dropped]) or ": the window or the duration leaves none"


@contextmanager
def uncollected() -> Iterator[None]:
    """A run makes no reference cycles, and looking for some among a million rows would cost a fifth of it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Traffic:
    """The scenario's workload as requests; a damaged trace ends the stream and leaves a note."""

    def __init__(self, scenario: Scenario, told: bool = False) -> None:
        self.told = told  # whether somebody wants to know what requests are made of
        self.spec = {k: v for k, v in scenario.workload.items() if v is not None}
        self.seed = scenario.seed
        self.notes: list[str] = []
        self.dropped: Counter[str] = Counter()

    def arrivals(self) -> Iterator[Request] | ClosedLoop | Conversations:
        """Requests in order of arrival, or those who ask again when they are answered."""
        if "concurrency" in self.spec:
            return self._closed()
        if "sessions" in self.spec:
            return self._conversations(self.spec["sessions"])
        return self._requests(workload(self.spec, self.seed, dropped=self.dropped))

    def _conversations(self, said: Mapping[str, Any]) -> Conversations:
        requests = self._requests(workload(self.spec, self.seed, dropped=self.dropped))
        return Conversations(
            requests, float(said.get("think_time_s", 0.0)), bool(said.get("think_time_exponential", False))
        )

    def _closed(self) -> ClosedLoop:
        stream = lengths(self.spec, self.seed, dropped=self.dropped)
        if "requests" not in self.spec and "trace" not in self.spec:
            raise ValueError("workload: requests: missing: a closed loop needs to know when it is over")
        requests = list(self._requests(stream))
        return ClosedLoop(
            requests,
            int(self.spec["concurrency"]),
            float(self.spec.get("think_time_s", 0.0)),
            bool(self.spec.get("think_time_exponential", False)),
        )

    def _requests(self, chunks: Iterator[Columns]) -> Iterator[Request]:
        number = 0
        try:
            for chunk in _sound(chunks):
                if memory_is_short():
                    limit_GB = memory_limit_bytes() / 1e9
                    self.notes.append(f"memory runs short ({limit_GB:.3g} GB in all): no more than {number} requests")
                    return
                blocks = _blocks(chunk) if self.told else []
                if chunk.tenant is not None:
                    blocks = [*(blocks or [[None] * len(chunk)]), chunk.tenant.tolist()]
                for row in zip(*_lists(chunk), *blocks, strict=True):
                    yield Request(number, *row)
                    number += 1
        except ValueError as error:  # a TraceError, or what no table of rules foresees (a rate_scale beyond the clock)
            self.notes.append(f"the trace ended early: {error}")
            if not number:
                raise


def _sound(chunks: Iterator[Columns]) -> Iterator[Columns]:
    """The same requests, up to one whose samples would be more objects than memory holds. Raises ValueError there."""
    for chunk in chunks:
        if chunk.samples is not None and chunk.samples.max(initial=1) > MOST_SAMPLES:
            bad = int(np.argmax(chunk.samples > MOST_SAMPLES))
            if bad:
                yield chunk.part(0, bad)
            allowed = f"must be a whole number >= 1 and <= {MOST_SAMPLES}"
            raise ValueError(f"workload: samples: {chunk.samples[bad]}: {allowed}")
        yield chunk


def _blocks(chunk: Columns) -> list[list[Any]]:
    """The ids of what each request is made of, if the trace has them."""
    return [] if chunk.hash_ids is None else [[tuple(ids.tolist()) for ids in chunk.hash_ids]]


def _lists(chunk: Columns) -> list[list[int]]:
    """arrival, prompt, output, samples, priority, session as lists of Python integers."""
    n = len(chunk.arrival_ns)
    samples = chunk.samples if chunk.samples is not None else np.ones(n, dtype=np.int64)
    priority = chunk.priority if chunk.priority is not None else np.zeros(n, dtype=np.int64)
    session = chunk.session if chunk.session is not None else np.full(n, -1)
    columns = (chunk.arrival_ns, chunk.prompt_tokens, chunk.output_tokens, samples, priority, session)
    return [column.tolist() for column in columns]


class _Interruptible:
    """Ctrl-C asks the cluster to stop between two events, so that no fact is half recorded."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.notes = cluster, list[str]()
        self.installed = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> _Interruptible:
        if self.installed:
            self.previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, *_: Any) -> None:
        """The first time stop after the event, the second time at once."""
        if self.notes:
            raise KeyboardInterrupt
        self.notes.append(f"{INTERRUPTED}: requests under way are marked partial")
        self.cluster.stop()

    def __exit__(self, *_: Any) -> None:
        if self.installed:
            signal.signal(signal.SIGINT, self.previous)
