"""The result folder: complete or absent, typed, the same bytes for the same seed; and files that other tools read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from output_runs import BASE, RUNS, TRAFFIC, run, scenario

import analysis.store
from analysis.origin import commit
from analysis.perfetto import trace
from analysis.plots import roofline, save_figure
from analysis.store import save
from sim import Scenario, simulate
from sim.analytic.hardware import Device, Onchip
from sim.analytic.work import Work
from sim.ask import roofline_points

FILES = {
    "scenario.yaml", "requests.parquet", "rounds.parquet", "summary.json", "cost.json", "bench.json", "trace.json",
}  # fmt: skip
ROOT = Path(__file__).parents[1]
REQUESTS = (
    "id arrival_ns queue_ms first_token_ns finish_ns prompt_tokens output_tokens samples cached_tokens rounds "
    "drafted_tokens accepted_tokens preemptions replica ttft_ms tpot_ms e2el_ms joules status reason group "
    "retries tenant priority session"
).split()
WORDS = ("status", "reason", "group")
ROUNDS = (
    "replica start_ns duration_ns n_rounds phase batch context prefill_tokens waiting running kv_bytes weights_s kv_s "
    "activations_s compute_s onchip_s link_s overhead_s host_s flops hbm_bytes joules"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved result."""
    return Path(run("plain").save(tmp_path_factory.mktemp("runs") / "plain", date="20260102-030405", detailed=True))


def load(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_a_result_is_these_files_and_nothing_beside_it(folder: Path) -> None:
    """No temporary folder stays."""
    assert {p.name for p in folder.iterdir()} == FILES
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_the_request_table_has_every_column_typed(folder: Path) -> None:
    """Names are contracts; whole numbers are int64, the rest double, words a dictionary."""
    table = pq.read_table(folder / "requests.parquet")
    assert sorted(table.column_names) == sorted(REQUESTS)
    types = {name: str(table.schema.field(name).type) for name in REQUESTS}
    assert all(types[name].startswith("dictionary<values=string") for name in WORDS)
    wanted = {n: "double" if n.endswith("_ms") or n == "joules" else "int64" for n in REQUESTS if n not in WORDS}
    assert {n: t for n, t in types.items() if n not in WORDS} == wanted
    assert table["id"].to_pylist() == list(range(150)) and set(table["status"].to_pylist()) == {"finished"}
    assert table["ttft_ms"].to_pylist() == run("plain").request_columns["ttft_ms"].tolist()


def test_the_round_table_has_every_column(folder: Path) -> None:
    """The same as in memory."""
    table = pq.read_table(folder / "rounds.parquet")
    assert table.column_names == ROUNDS
    assert table["duration_ns"].to_pylist() == run("plain").round_columns["duration_ns"].tolist()
    assert table["phase"].to_pylist() == run("plain").round_columns["phase"].tolist()


def test_unknown_values_are_null(tmp_path: Path) -> None:
    """A rejected request has no first token; a one-token answer no TPOT; a prefill-only round no context."""
    result = simulate(scenario(workload={**TRAFFIC, "prompt": 200_000, "requests": 3}))
    table = pq.read_table(Path(result.save(tmp_path / "r")) / "requests.parquet")
    for name in ("first_token_ns", "finish_ns", "ttft_ms", "tpot_ms", "e2el_ms", "queue_ms", "session"):
        assert table[name].null_count == 3, name
    assert table["status"].to_pylist() == ["rejected"] * 3
    rounds = pq.read_table(Path(run("one token").save(tmp_path / "s")) / "rounds.parquet")
    assert rounds["context"].null_count == len(rounds)


def test_pandas_is_not_imported_on_the_way(tmp_path: Path) -> None:
    """It would take longer than the simulation; nor is matplotlib."""
    spec = {**BASE, "workload": {**TRAFFIC, "requests": 5}}
    code = (
        "import sys; from sim import Scenario, simulate; "
        f"simulate(Scenario.parse({spec!r})).save({str(tmp_path / 'r')!r}); "
        "sys.exit(bool({'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Whatever the hash seed; cost.json alone may differ."""
    spec = {**BASE, "replicas": 2, "workload": {**TRAFFIC, "requests": 60}}
    for seed in ("1", "2"):
        code = f"from sim import Scenario, simulate; simulate(Scenario.parse({spec!r})).save({str(tmp_path / seed)!r})"
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    for name in FILES - {"cost.json"}:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_another_seed_gives_another_result(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    saved = [Path(simulate(scenario(seed=s)).save(tmp_path / str(s))) for s in (0, 1)]
    assert (saved[0] / "requests.parquet").read_bytes() != (saved[1] / "requests.parquet").read_bytes()


def test_the_saved_scenario_repeats_the_run(folder: Path) -> None:
    """It loads, says versions and seed, and gives the same answer."""
    text = (folder / "scenario.yaml").read_text("utf-8")
    assert "# seed 0" in text and "numpy" in text and "decodesim" in text
    again = simulate(Scenario.load(folder / "scenario.yaml"))
    assert again.metrics == run("plain").metrics


def test_commit_reads_loose_packed_and_absent_heads(tmp_path: Path) -> None:
    """Without running git."""
    assert commit(tmp_path) is None
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\nabc123 refs/heads/main\n")
    assert commit(tmp_path) == "abc123"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("def456\n")
    assert commit(tmp_path) == "def456"
    (git / "HEAD").write_text("0123\n")
    assert commit(tmp_path) == "0123"


def test_an_older_result_is_replaced_only_on_purpose(tmp_path: Path) -> None:
    """Recognised by its summary.json."""
    target = Path(run("plain").save(tmp_path / "r"))
    with pytest.raises(ValueError, match="holds a result already"):
        save(run("offline"), target)
    save(run("offline"), target, overwrite=True)
    assert load(target / "summary.json") == json.loads(json.dumps(run("offline").metrics))
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_result_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    """A folder of something else, a file, a link, a missing parent: one line each."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for place, why in (("photos", "not a result"), ("file", "not a folder"), ("link", "not a folder"),
                       ("no/where", "does not exist")):  # fmt: skip
        with pytest.raises(ValueError, match=why) as caught:
            save(run("plain"), tmp_path / place, overwrite=overwrite)
        assert "\n" not in str(caught.value) and place.split("/")[0] in str(caught.value)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "photos"]


@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Half way through: nothing new, the older result untouched, one line."""
    target = tmp_path / "r"
    if old:
        run("plain").save(target)
    calls = []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(analysis.store.pq, "write_table", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        save(run("offline"), target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == (["r"] if old else [])
    if old:
        assert load(target / "summary.json") == json.loads(json.dumps(run("plain").metrics))


def test_a_folder_without_permission_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written (root may write anywhere, so the question is answered for it)."""
    monkeypatch.setattr(analysis.store.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="no permission"):
        save(run("plain"), tmp_path / "r")


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    """mkdir first, run later."""
    (tmp_path / "r").mkdir()
    assert {p.name for p in Path(run("plain").save(tmp_path / "r")).iterdir()} == FILES


def test_cost_says_what_the_simulation_took(folder: Path) -> None:
    """Counts agree with the tables; bare SimPy beside it."""
    cost, result = load(folder / "cost.json"), run("plain")
    assert cost["rounds"] == result.round_columns["n_rounds"].sum() and cost["events"] == result.events
    assert cost["requests"] == 150 and cost["cpu_s"] > 0 and cost["peak_memory_bytes"] > 1 << 20
    assert cost["requests_per_cpu_s"] == pytest.approx(150 / cost["cpu_s"])
    assert cost["bare_simpy_events_per_cpu_s"] > 1000


def test_bench_json_has_vllms_keys_and_numbers(folder: Path) -> None:
    """vllm/benchmarks/serve.py; milliseconds, and seconds in the lists by request."""
    found, latency = load(folder / "bench.json"), run("plain").metrics["latency"]
    statistics = {f"{s}_{m}_ms" for s in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl", "e2el")}
    assert statistics | set(
        "date endpoint_type label model_id tokenizer_id num_prompts request_rate burstiness max_concurrency duration "
        "completed failed total_input_tokens total_output_tokens request_throughput request_goodput output_throughput "
        "total_token_throughput input_lens output_lens ttfts itls errors".split()
    ) <= set(found)
    assert found["date"] == "20260102-030405" and found["request_rate"] == 20
    assert found["median_tpot_ms"] == latency["tpot_ms"]["p50"]
    assert np.mean(found["ttfts"]) * 1e3 == pytest.approx(found["mean_ttft_ms"])
    assert found["total_output_tokens"] == sum(found["output_lens"]) == 150 * 40
    assert found["duration"] * found["request_throughput"] == pytest.approx(150)


def test_bench_json_without_detail_is_small_and_says_inf(tmp_path: Path) -> None:
    """An offline job, as vLLM spells it."""
    found = load(Path(run("offline").save(tmp_path / "r")) / "bench.json")
    assert found["request_rate"] == "inf" and "ttfts" not in found and found["date"] == ""


# -- the trace event format, rule by rule


def test_the_trace_obeys_the_trace_event_format(folder: Path) -> None:
    """Complete events with ts and dur in microseconds that do not overlap on a track, counters, names for processes."""
    found = load(folder / "trace.json")
    assert found["metadata"]["sampling"] == "every leap is shown" and found["displayTimeUnit"] in ("ms", "ns")
    end_us: dict = {}
    for event in found["traceEvents"]:
        assert event["ph"] in "XCM" and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and isinstance(event["args"]["name"], str)
            continue
        assert isinstance(event["ts"], int | float) and event["ts"] >= 0 and isinstance(event["name"], str)
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
        else:
            assert event["dur"] > 0 and event["cname"].startswith("thread_state_")
            assert event["ts"] >= end_us.get(event["pid"], 0) - 2e-3
            end_us[event["pid"]] = event["ts"] + event["dur"]
    slices = [e for e in found["traceEvents"] if e["ph"] == "X"]
    assert len(slices) == len(run("plain").round_columns["n_rounds"])
    assert {e["name"] for e in slices} == set(run("plain").round_columns["phase"].tolist())


def test_a_long_trace_is_sampled_and_says_so() -> None:
    """Bounded in events, every replica named."""
    found = json.loads(trace(run("two replicas"), 200))
    assert len(found["traceEvents"]) <= 200
    assert found["metadata"]["leaps_shown"] < found["metadata"]["leaps"]
    assert "every" in found["metadata"]["sampling"] and "sampled" in found["metadata"]["sampling"]
    assert {e["pid"] for e in found["traceEvents"]} == {0, 1}


# -- pictures


def points(name: str) -> list:
    cost = run(name).built.costs[0]
    windows = cost.shape.windows
    return roofline_points(
        cost, {"prefill": Work.prefill(1, 512, windows), "decode": Work.decode(8, 512, windows=windows)}
    )


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_roofline_is_drawn_in_each_format(tmp_path: Path, suffix: str) -> None:
    """Magic bytes of the format, and the same bytes twice."""
    figure = roofline(points("plain"), run("plain").built.device, "a title")
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path in paths:
        save_figure(figure, path)
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert paths[0].read_bytes().startswith(magic) and paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("name", ["plain", "windows", "experts"])
def test_dots_lie_under_the_drawn_roof(name: str) -> None:
    """Every dot is below the memory line and below its ceiling, both read off the picture's own lines."""
    device, axes = run(name).built.device, roofline(points(name), run(name).built.device)
    memory = axes.lines[0].get_xydata()
    assert memory[0, 1] == pytest.approx(memory[0, 0] * device.memory_Bps) and memory[1, 1] >= memory[0, 1]
    peak = max(line.get_ydata()[-1] for line in axes.lines)
    dots = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])
    assert len(dots) > 5
    assert (dots[:, 1] <= np.minimum(peak, dots[:, 0] * device.memory_Bps) * 1.001).all()
    labels = " ".join(t.get_text() for t in axes.texts)
    assert f"ridge point {device.ridge_point('bf16'):.0f}" in labels and "main memory" in labels


def test_the_on_chip_roof_is_drawn_where_known() -> None:
    """And left out where not."""
    device = run("plain").built.device
    fields = {f: getattr(device, f) for f in device.__dataclass_fields__}
    for bandwidth, wanted in ((5e12, True), (None, False)):
        other = Device(**{**fields, "onchip": Onchip(1e6, "cache", bandwidth, None)})
        texts = [t.get_text() for t in roofline(points("plain"), other).texts]
        assert any("on chip" in t for t in texts) == wanted


def test_a_picture_of_nothing_and_an_unknown_suffix(tmp_path: Path) -> None:
    """An empty roofline is still a roofline; a suffix that is no picture is refused."""
    figure = roofline([], run("plain").built.device)
    with pytest.raises(ValueError, match=r"ends in .png, .svg, .pdf, not '.bmp'"):
        save_figure(figure, tmp_path / "x.bmp")
    with pytest.raises(ValueError, match="cannot be written"):
        save_figure(figure, tmp_path / "no" / "x.png")
    assert not list(tmp_path.iterdir())


def test_every_kind_of_run_can_be_saved(tmp_path: Path) -> None:
    """All policies, schedulers and models of the test runs."""
    for name in RUNS:
        assert {p.name for p in Path(run(name).save(tmp_path / name)).iterdir()} == FILES
