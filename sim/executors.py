"""Where the points of a sweep and the candidates of a plan run: any ``concurrent.futures`` executor, named in a word.

What a task returns depends on the task alone, so that the place and the number of workers change nothing but the time.
A worker that dies takes its task with it; the task is started again elsewhere, alone, a bounded number of times, and
then named.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sim.plugin import suggest
from workloads.errors import shown

__all__ = ["Crew", "Place", "crew"]

T = TypeVar("T")
R = TypeVar("R")

KINDS = ("processes", "threads", "serial", "dask", "ray")
ALLOWED = "processes[:N], threads[:N], serial, dask://HOST:PORT, ray or ray://HOST:PORT"
MOST_WORKERS = 4096
TRIES = 3  # times that a task is started before its dying workers are taken to be its fault
CONNECT_S = 10
HOST = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})"
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
KILLED = ("KilledWorker", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")  # Dask's and Ray's words


@dataclass(frozen=True)
class Place:
    """``kind``: one of KINDS; ``workers``: how many, None for one a core; ``address``: HOST:PORT of a cluster."""

    kind: str = "processes"
    workers: int | None = None
    address: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """What ``--executor`` says. Raises ValueError, one line."""
        kind, slashes, address = text.partition("://")
        if slashes:
            return cls(kind, address=_address(text, kind, address))
        kind, colon, count = text.partition(":")
        if kind not in KINDS or kind == "dask" or (colon and kind not in ("processes", "threads")):
            raise ValueError(f"--executor: {shown(text)}: must be {ALLOWED}{suggest(kind, KINDS)}")
        return cls(kind, _count(text, count) if colon else None)


def _address(text: str, kind: str, address: str) -> str:
    found = HOST.fullmatch(address)
    if kind not in ("dask", "ray") or found is None or not 1 <= int(found["port"]) <= 65535:
        raise ValueError(f"--executor: {shown(text)}: must be {ALLOWED}, a host's name or address and a port to 65535")
    return address


def _count(text: str, count: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", count) or not 1 <= int(count) <= MOST_WORKERS:
        raise ValueError(f"--executor: {shown(text)}: workers must be a whole number from 1 to {MOST_WORKERS}")
    return int(count)


class Crew:
    """An executor, how many tasks it works on at once, and how to open another where it broke."""

    def __init__(self, opened: Callable[[], Executor], workers: int) -> None:
        self._open, self.workers = opened, workers
        self.executor = opened()

    def results(
        self, function: Callable[[T], R], tasks: Sequence[T], name: Callable[[T], str] = str
    ) -> Iterator[tuple[int, R]]:
        """(number of the task, its result) as they come. ``function`` and tasks must be fit to be pickled.

        Raises what a task raises, and ValueError, one line naming the task (``name``), where its worker dies again
        and again.
        """
        left, suspects, starts = deque(range(len(tasks))), deque[int](), Counter[int]()
        running: dict[Future[R], int] = {}
        while left or suspects or running:
            for number in self._next(left, suspects, running):
                running[self._submit(function, tasks[number])] = number
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            dead = []
            for future in sorted(done, key=lambda one: running[one]):
                number = running.pop(future)
                error = future.exception()
                if error is None:
                    yield number, future.result()
                elif isinstance(error, BrokenExecutor):
                    dead.append(number)
                else:
                    raise _as_death(error, name(tasks[number]))
            if dead:
                suspects.extend(self._renewed(sorted([*dead, *running.values()]), starts, lambda n: name(tasks[n])))
                running.clear()

    def _next(self, left: deque[int], suspects: deque[int], running: dict[Future[R], int]) -> Iterator[int]:
        """Suspects of having killed a worker run alone, so that the next death has one name; others fill the crew."""
        if suspects:
            if not running:
                yield suspects.popleft()
            return
        for _ in range(min(len(left), 2 * self.workers - len(running))):
            yield left.popleft()

    def _submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        try:
            return self.executor.submit(function, task)
        except BrokenExecutor as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            return failed

    def _renewed(self, dead: list[int], starts: Counter[int], name: Callable[[int], str]) -> list[int]:
        self.close(at_once=True)
        self.executor = self._open()
        starts.update(dead)
        for number in dead:
            if starts[number] >= TRIES:
                raise ValueError(f"{name(number)}: its worker died {TRIES} times; is there memory enough?")
        return dead

    def close(self, at_once: bool = False) -> None:
        """End the workers: after what they are doing, or now."""
        processes = list((getattr(self.executor, "_processes", None) or {}).values())
        try:
            self.executor.shutdown(wait=not at_once, cancel_futures=True)
        except TypeError:  # Dask's has no such option: closing its client forgets what is under way
            self.executor.shutdown(wait=not at_once)
        for process in processes if at_once else ():
            process.terminate()


def _as_death(error: BaseException, name: str) -> BaseException:
    """An engine's own word for a worker that died wherever it tried, as one line; any other error as it is."""
    if type(error).__name__ in KILLED:
        return ValueError(f"{name}: its worker died wherever it was tried ({type(error).__name__})")
    return error


@contextmanager
def crew(place: Place) -> Iterator[Crew]:
    """A crew at work in a place; on an error or Ctrl-C its workers are ended at once.

    Raises ValueError, one line, where the place cannot be reached or its library is not installed.
    """
    with _opened(place) as (opened, workers):
        found = Crew(opened, workers)
        try:
            yield found
        except BaseException:
            found.close(at_once=True)
            raise
        found.close()


@contextmanager
def _opened(place: Place) -> Iterator[tuple[Callable[[], Executor], int]]:
    workers = place.workers or _cores()
    if place.kind == "processes":
        with _single_threaded():
            yield lambda: _processes(workers), workers
    elif place.kind == "threads":
        yield lambda: ThreadPoolExecutor(workers), workers
    elif place.kind == "serial":
        yield _Serial, 1
    elif place.kind == "dask":
        with _dask(str(place.address)) as found:
            yield found
    else:
        with _ray(place.address) as found:
            yield found


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Serial(Executor):
    """Here and now."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _processes(workers: int) -> Executor:
    """Fresh interpreters, which inherit no locks and no threads."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_deaf)


def _deaf() -> None:
    """Ctrl-C is for the process that started the workers; it ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Workers share the cores already: each gets one thread of linear algebra."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _dask(address: str) -> Iterator[tuple[Callable[[], Executor], int]]:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("--executor: dask is not installed: pip install 'decodesim[dask]'") from None
    try:
        client = Client(f"tcp://{address}", timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"--executor: dask://{address}: no Dask scheduler answers ({_word(error)})") from None
    with client:
        workers = sum(client.nthreads().values())
        if not workers:
            raise ValueError(f"--executor: dask://{address}: that cluster has no workers")
        yield lambda: client.get_executor(pure=False), workers


@contextmanager
def _ray(address: str | None) -> Iterator[tuple[Callable[[], Executor], int]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ValueError("--executor: ray is not installed: pip install 'decodesim[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    here = {"address": "local", "include_dashboard": False, "num_cpus": _cores()}
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(**options, **(here if address is None else {"address": f"ray://{address}"}))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"--executor: ray{'' if address is None else f'://{address}'}: {_word(error)}") from None
    try:
        yield lambda: _Ray(ray), int(ray.cluster_resources().get("CPU", 1))
    finally:
        if started:
            ray.shutdown()


class _Ray(Executor):
    """Ray's tasks as futures; Ray itself starts a task again elsewhere when its worker dies."""

    def __init__(self, ray: Any) -> None:
        self.remote = ray.remote(max_retries=TRIES - 1)(_called)

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = self.remote.remote(fn, args, kwargs).future()
        return future


def _called(function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    return function(*args, **kwargs)


def _word(error: BaseException) -> str:
    """The first line of an engine's error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
