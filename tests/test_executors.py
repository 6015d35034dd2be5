"""Executors: the same bits wherever tasks run, a worker that dies, addresses that nobody should trust."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.executors import Crew, Place, crew
from sim.planning.points import over, points
from sim.scenario import Scenario
from sim.sweep import run_point, sweep

TRAFFIC = "workload={rate: 8, arrivals: poisson, prompt: 200, output: 30, requests: 150}"


def small() -> Scenario:
    return Scenario.load("chat_h100", [TRAFFIC])


def swept(place: str) -> list[dict[str, Any]]:
    chosen = points(over(["workload.rate=4,16", "scheduler.max_sequences=8,64", "layout.tensor=1,3"], "grid"))
    with crew(Place.parse(place)) as hands:
        return sweep(small(), chosen, hands)


def square(number: int) -> int:
    return number * number


def fails(number: int) -> int:
    raise KeyError(number)


def dies_once(task: tuple[str, int]) -> int:
    """Kills its own worker the first time that number 3 comes."""
    folder, number = task
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_dies(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


# -- the same bits everywhere


def test_a_process_pool_and_threads_answer_the_same_bits_as_one_process() -> None:
    alone = swept("serial")
    assert [row["status"] for row in alone] == ["ok", "invalid"] * 4
    assert swept("processes:2") == alone
    assert swept("threads:3") == alone


@pytest.mark.slow
def test_a_dask_cluster_of_worker_processes_answers_the_same_bits(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        assert swept(cluster.scheduler_address.replace("tcp", "dask")) == swept("serial")


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_costs_no_row(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        place = Place.parse(cluster.scheduler_address.replace("tcp", "dask"))
        with crew(place) as hands:
            found = dict(hands.results(dies_once, [(str(tmp_path), n) for n in range(8)]))
    assert (tmp_path / "died").exists() and found == {n: n * n for n in range(8)}


@pytest.mark.slow
def test_a_local_ray_answers_the_same_bits_and_survives_a_killed_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    assert swept("ray") == swept("serial")
    with crew(Place.parse("ray")) as hands:
        found = dict(hands.results(dies_once, [(str(tmp_path), n) for n in range(6)]))
    assert (tmp_path / "died").exists() and found == {n: n * n for n in range(6)}


def test_rows_do_not_depend_on_the_order_in_which_tasks_end() -> None:
    """An executor that works from the last task to the first changes nothing."""

    class Backwards(Executor):
        def __init__(self) -> None:
            self.waiting: list[tuple[Future[Any], Any]] = []

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self.waiting.append((future, lambda: fn(*args, **kwargs)))
            if len(self.waiting) == 2:
                for one, call in reversed(self.waiting):
                    one.set_result(call())
                self.waiting.clear()
            return future

    chosen = points(over(["workload.rate=4,8,16,20"], "grid"))
    with crew(Place.parse("serial")) as hands:
        assert sweep(small(), chosen, Crew(Backwards, 1)) == sweep(small(), chosen, hands)


# -- workers that die, tasks that fail


def test_the_task_of_a_worker_that_dies_is_done_elsewhere(tmp_path: Path) -> None:
    with crew(Place.parse("processes:2")) as hands:
        found = dict(hands.results(dies_once, [(str(tmp_path), n) for n in range(8)]))
    assert (tmp_path / "died").exists() and found == {n: n * n for n in range(8)}


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_named_after_three_times() -> None:
    with (
        pytest.raises(ValueError, match=r"^task 3: its worker died 3 times"),
        crew(Place.parse("processes:2")) as hands,
    ):
        list(hands.results(always_dies, list(range(6)), name=lambda n: f"task {n}"))


@pytest.mark.slow
def test_the_innocent_are_not_blamed_for_a_neighbour() -> None:
    """Every result but the killer's arrives before the killer is named."""
    found: dict[int, int] = {}
    with pytest.raises(ValueError, match="task 3"), crew(Place.parse("processes:2")) as hands:
        for number, result in hands.results(always_dies, list(range(4)), name=lambda n: f"task {n}"):
            found[number] = result
    assert set(found) >= {0, 1, 2} - {3}


def test_a_pool_that_refuses_a_task_because_it_broke_is_opened_anew() -> None:
    class Once(Executor):
        broken = True

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if Once.broken:
                Once.broken = False
                raise BrokenProcessPool("gone")
            future: Future[Any] = Future()
            future.set_result(fn(*args))
            return future

    assert dict(Crew(Once, 2).results(square, [1, 2, 3])) == {0: 1, 1: 4, 2: 9}


@pytest.mark.parametrize("place", ["serial", "threads:2", "processes:2"])
def test_a_task_that_raises_ends_the_work_with_its_own_error(place: str) -> None:
    with pytest.raises(KeyError), crew(Place.parse(place)) as hands:
        list(hands.results(fails, [1, 2, 3]))


def test_a_worker_with_other_code_is_refused() -> None:
    with pytest.raises(ValueError, match="a worker runs decodesim .*, not decodesim 0.0.1"):
        run_point((small().model_dump(exclude_unset=True), (), "decodesim 0.0.1"))


def test_workers_have_one_thread_of_linear_algebra_each_and_the_environment_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with crew(Place.parse("processes:1")) as hands:
        assert dict(hands.results(os.getenv, ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])) == {0: "1", 1: "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


# -- what --executor takes


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("processes", Place()),
        ("processes:4", Place("processes", 4)),
        ("threads:2", Place("threads", 2)),
        ("serial", Place("serial")),
        ("ray", Place("ray")),
        ("dask://10.0.0.7:8786", Place("dask", address="10.0.0.7:8786")),
        ("dask://[::1]:8786", Place("dask", address="[::1]:8786")),
        ("ray://head.example.org:10001", Place("ray", address="head.example.org:10001")),
    ],
)
def test_a_place_is_what_it_says(text: str, place: Place) -> None:
    assert Place.parse(text) == place


@pytest.mark.parametrize(
    "text",
    ["", "dask", "proceses:2", "processes:0", "processes:-1", "processes:99999", "processes:2.5", "serial:2", "dask://",
     "dask://host", "dask://host:0", "dask://host:70000", "dask://user:word@host:8786", "dask://host:8786/../x",
     "dask://host:8786?a=b", "dask://-host:1", "dask://ho st:1", "ray://$(reboot):1", "ftp://host:21", "dask://::1:8786",
     "file:///etc/passwd", "dask://host:8786\n", "ray:2", "processes:٣", "dask://" + "a" * 5000 + ":1"],
)  # fmt: skip
def test_a_hostile_place_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="--executor") as caught:
        Place.parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_place_or_one_line(text: str) -> None:
    try:
        place = Place.parse(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert place.kind in text


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("distributed", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    for text, extra in (("dask://localhost:1", "dask"), ("ray", "ray")):
        with pytest.raises(ValueError, match=rf"pip install 'decodesim\[{extra}\]'"), crew(Place.parse(text)):
            pass


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("sim.executors.CONNECT_S", 1)
    wanted = r"dask://127.0.0.1:9: no Dask scheduler answers"
    with pytest.raises(ValueError, match=wanted) as caught, crew(Place.parse("dask://127.0.0.1:9")):
        pass
    assert "\n" not in str(caught.value)


# -- how well two cores are used


def busy(seconds: float) -> float:
    """So much CPU time, whatever the machine does else."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds


@pytest.mark.benchmark
@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_pool_of_two_uses_more_than_85_percent_of_two_cores() -> None:
    """60 tasks of 0.1 s of CPU time, workers started before, against the same work in two pieces: what the two cores
    give at this moment, whoever else uses them.
    """
    with crew(Place.parse("processes:2")) as hands:
        list(hands.results(busy, [0.01] * 8))
        wall_s = []
        for tasks in ([3.0, 3.0], [0.1] * 60):
            start = time.perf_counter()
            list(hands.results(busy, tasks))
            wall_s.append(time.perf_counter() - start)
    assert max(3.0, wall_s[0]) / wall_s[1] > 0.85
