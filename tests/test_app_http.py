"""The page's server, spoken to without a browser: who is let in, what bad requests get, how runs begin and end."""

from __future__ import annotations

import builtins
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_client import PORT, URL, Tab, site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sim.app import worker
from sim.app.asked import MOST_REQUESTS
from sim.app.door import LARGEST_BYTES, refusal
from sim.app.question import Question
from sim.app.runs import Runs
from sim.app.serve import listening

pytest.importorskip("dash")

SHORT = {"requests": 0, "output": 1}  # positions: 100 requests of 16 tokens
LONG = {"requests": 7, "output": 9}  # 20,000 of 4,096
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with site(tmp_path_factory.mktemp("site") / "runs") as (client, _):
        yield Tab(client)


# --- who is let in


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", "", "0.0.0.0:8050"])
def test_another_host_is_refused(tab: Tab, host: str) -> None:
    """DNS rebinding: a name of somebody else's that points here."""
    response = tab.client.get("/", base_url=URL, headers={"Host": host})
    assert (response.status_code, response.text) == (403, "decodesim: refused: Host: must be 127.0.0.1:8050\n")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)
def test_another_site_starts_no_run(tab: Tab, headers: dict[str, str]) -> None:
    response = tab.post(tab.body("run.data", "start.n_clicks"), **headers)
    assert response.status_code == 403 and response.text.startswith("decodesim: refused: ")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_no_other_method_is_let_in(tab: Tab, method: str) -> None:
    """A preflight of another site is refused, and with it what it asks for."""
    response = tab.client.open("/_dash-update-component", method=method, base_url=URL)
    assert response.status_code == 403 and "Access-Control-Allow-Origin" not in response.headers


def test_its_own_page_is_let_in_by_both_names() -> None:
    for host in (f"127.0.0.1:{PORT}", f"localhost:{PORT}"):
        assert not refusal("POST", {"Host": host, "Origin": f"http://{host}", **JSON}, PORT)
    assert not refusal("GET", {"Host": "127.0.0.1"}, 80)


def test_it_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    with listening(0, tmp_path / "runs") as (address, server):
        assert address == f"http://127.0.0.1:{server.port}/"
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_the_page_comes_with_all_it_needs(tab: Tab) -> None:
    """No script, style or font of another place; scripts of other places would not run either."""
    response = tab.client.get("/", base_url=URL)
    assert response.status_code == 200 and "http://" not in response.text and "https://" not in response.text
    assert "default-src 'self'; script-src 'self' 'sha256-" in response.headers["Content-Security-Policy"]
    for name in ("page.css", "page.js"):
        assert tab.client.get(f"/assets/{name}", base_url=URL).status_code == 200


# --- answers, and bad requests


def test_moving_a_slider_gives_an_answer(tab: Tab) -> None:
    small, large = tab.moved(batch=0), tab.moved(batch="11")
    assert small["problem"] == large["problem"] == {"children": ""}
    assert small["sentence"]["children"].split(": ")[1].startswith("1 x ")
    assert large["sentence"]["children"].split(": ")[1].startswith("64 x ")
    assert [trace["name"] for trace in large["figure-roofline"]["figure"]["data"]][-2:] == ["prefill", "decode"]


def test_alpha_and_gamma_rest_where_a_policy_has_none(tab: Tab) -> None:
    assert tab.moved(policy="medusa")["alpha"] == tab.moved(policy="autoregressive")["gamma"] == {"disabled": True}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("batch", 99, "batch: position 99: must be a whole number from 0 to 19"),
        ("batch", -1, "batch: position -1: must be a whole number from 0 to 19"),
        ("gamma", None, "gamma: position None: must be a whole number from 0 to 15"),
        ("alpha", "NaN", "alpha: position 'NaN': must be a whole number from 0 to 99"),
        ("context", [1], "context: position [1]: must be a whole number from 0 to 20"),
        ("device", "../../etc", "device: '../../etc': must be one of a10,"),
        ("model", "llama-3.1-70b", "h100-sxm: weights 141 GB"),
        ("model", "gpt2", "policy.draft: 'auto': no shipped model"),
        ("policy", {"name": "speculative"}, "policy: {'name': 'speculative'}: must be one of autoregressive,"),
    ],
)
def test_a_bad_value_is_one_line_on_the_page(tab: Tab, key: str, value: Any, line: str) -> None:
    shown = tab.moved(**{key: value})
    said = shown["problem"]["children"]
    assert said.startswith(line) and "\n" not in said and shown["sentence"]["children"] == ""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["batch", "gamma", "alpha", "model", "policy", "device"]),
    value=st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=4),
)
def test_no_posted_value_is_an_error_of_the_server(tab: Tab, key: str, value: Any) -> None:
    response = tab.post(tab.body("sentence.children", "batch.value", **{key: value}))
    assert response.status_code == 200 and "\n" not in response.json["response"]["problem"]["children"]


JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["output", "outputs", "inputs", "state", "changedPropIds", "id", "property", "value"]), inner)
), max_leaves=8)  # fmt: skip


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=40), JUNK.map(json.dumps), st.text(max_size=20)))
def test_no_posted_body_is_an_error_of_the_server(tab: Tab, body: str | bytes) -> None:
    assert 400 <= tab.post(body).status_code < 500


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(["output", "outputs", "inputs", "state", "changedPropIds"]), junk=JUNK)
def test_no_damaged_request_of_the_page_is_an_error_of_the_server(tab: Tab, part: str, junk: Any) -> None:
    response = tab.post(tab.body("sentence.children", "batch.value") | {part: junk})
    assert response.status_code < 500


def test_a_huge_body_is_not_read(tab: Tab) -> None:
    assert tab.post(b" " * (LARGEST_BYTES + 1)).status_code == 413


def test_two_tabs_know_nothing_of_each_other(tab: Tab) -> None:
    one, two = tab, Tab(tab.client)
    one.values["batch"], two.values["batch"] = 3, 9
    try:
        before = one.moved()["sentence"]
        two.moved()
        assert one.moved()["sentence"] == before != two.moved()["sentence"]
    finally:
        one.values["batch"] = 5


# --- runs


def wait(tab: Tab, run: str, seconds: float = 60) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while (shown := tab.poll(run))["poll"]["disabled"] is False:
        assert time.monotonic() < end, shown["run-said"]
        time.sleep(0.2)
    return shown


@pytest.mark.slow
def test_a_run_is_saved_and_shown_and_leaves_no_process(tmp_path: Path) -> None:
    with site(tmp_path / "runs") as (client, runs):
        tab = Tab(client)
        name = tab.begin(**SHORT)["run"]["data"]
        shown = wait(tab, name)
        folder = tmp_path / "runs" / name
        assert shown["run-said"]["children"].endswith(f"Saved in {folder}.")
        assert json.loads((folder / "summary.json").read_text())["requests"]["finished"] == 100
        assert shown["progress"]["value"] == "1.000" and runs.under_way == 0
        assert [entry.name for entry in (tmp_path / "runs").iterdir()] == [name]


@pytest.mark.slow
def test_two_run_at_once_a_third_is_refused_and_cancel_ends_them(tmp_path: Path) -> None:
    with site(tmp_path / "runs") as (client, runs):
        tab = Tab(client)
        one, two = (tab.begin(**LONG)["run"]["data"] for _ in range(2))
        processes = [run.process for run in runs._runs.values()]
        assert tab.begin(**LONG)["run-said"]["children"] == "run: 2 are under way; wait for one, or cancel it"
        for name in (one, two):
            assert tab.poll(name, cancel=True)["run-said"]["children"] == "Cancelled: cancelled."
        assert runs.under_way == 0 and not any(process.is_alive() for process in processes)
        assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_a_run_that_nobody_asks_after_ends_by_itself(tmp_path: Path) -> None:
    """A tab closed during a run."""
    with site(tmp_path / "runs", abandoned_s=1.0) as (client, runs):
        tab = Tab(client)
        name = tab.begin(**LONG)["run"]["data"]
        process = runs._runs[name].process
        for _ in range(5):
            time.sleep(0.5)
            assert tab.poll(name)["poll"]["disabled"] is False  # asked after, it goes on
        process.join(20)
        assert not process.is_alive() and runs.under_way == 0
        assert "its page was closed" in tab.poll(name)["run-said"]["children"]


@pytest.mark.slow
def test_the_apps_end_is_the_runs_end(tmp_path: Path) -> None:
    with site(tmp_path / "runs") as (client, runs):
        tab = Tab(client)
        process = runs._runs[tab.begin(**LONG)["run"]["data"]].process
    assert not process.is_alive()


@pytest.mark.slow
def test_a_run_whose_process_is_killed_says_so(tmp_path: Path) -> None:
    with site(tmp_path / "runs") as (client, runs):
        tab = Tab(client)
        name = tab.begin(**LONG)["run"]["data"]
        runs._runs[name].process.kill()
        assert "its process ended early" in wait(tab, name)["run-said"]["children"]


def test_a_run_that_cannot_be_is_one_line(tab: Tab) -> None:
    for values in ({"source": "nothing"}, {"rate": 99}, {"model": "none"}, {"requests": None}):
        said = tab.begin(**values)["run-said"]["children"]
        assert said and "\n" not in said


def test_an_unknown_run_is_one_line(tab: Tab) -> None:
    for name in ("app-99", "../etc", ""):
        assert "not known here" in tab.poll(name)["run-said"]["children"]
    assert tab.poll(None)["poll"] == {"disabled": True}


def test_runs_that_have_no_place_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Runs(tmp_path / "file" / "runs") as runs, pytest.raises(ValueError, match="cannot be made"):
        runs.start({}, MOST_REQUESTS)


# --- the command


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^--port: {port}: .*; 0 takes any"), listening(port, tmp_path):
            pass


def test_without_dash_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "dash":
            raise ImportError(f"No module named {name!r}", name=name)
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    line = r"^app: dash is not installed: pip install 'decodesim\[app\]'$"
    with pytest.raises(ValueError, match=line), listening(0, tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the children of a process")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_the_command_leaves_no_process_however_it_ends(tab: Tab, tmp_path: Path, ending: signal.Signals) -> None:
    """The worker of a run under way sees the end of its pipe."""
    command = [sys.executable, "-m", "sim.cli", "app", "--port", "0", "--no-browser"]
    paths = {"PYTHONPATH": str(Path(__file__).parents[1])}
    said = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ | paths)
    assert said.stdout is not None
    address = said.stdout.readline().split()[2]
    assert begun_at(address, tab) == "app-1"
    workers = children(said.pid)
    assert workers
    said.send_signal(ending)
    assert said.wait(30) == (0 if ending == signal.SIGINT else -signal.SIGKILL)
    end = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def test_a_worker_leaves_with_the_page_also_while_it_has_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing, building and saving send nothing, so that no send would fail."""
    left: list[int] = []
    monkeypatch.setattr(worker.os, "_exit", left.append)
    page, mine = multiprocessing.Pipe()
    page.close()

    def slow(*_: Any, **__: Any) -> None:
        end = time.monotonic() + 10
        while not left and time.monotonic() < end:
            time.sleep(0.01)
        raise ValueError("too late to say")

    monkeypatch.setattr(worker, "simulate", slow)
    traffic = {"rate": 1, "requests": 1, "prompt": 1, "output": 1}
    with pytest.raises(OSError):
        worker.work(Question().scenario() | {"workload": traffic}, "", mine)
    assert left == [1]


def begun_at(address: str, tab: Tab) -> str:
    """Press Start on a page that is served for real."""
    body = json.dumps(tab.body("run.data", "start.n_clicks", **LONG)).encode()
    request = urllib.request.Request(f"{address}_dash-update-component", body, JSON)
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["response"]["run"]["data"])


def children(pid: int) -> list[int]:
    """Processes that were started from one, by Linux's own list."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_command_takes_no_host_and_no_foolish_port() -> None:
    from sim.cli import app

    for arguments in (["--host", "0.0.0.0"], ["--port", "70000"]):
        assert CliRunner().invoke(app, ["app", *arguments]).exit_code == 2
