"""`init`: what a log or a scrape says arrives in a scenario that loads and runs; what is wrong with one is one line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sim import Scenario, simulate
from sim.cli import app, main
from workloads import open_trace
from workloads.errors import TraceError
from workloads.exposition import Histogram, histogram, samples
from workloads.from_log import read_log
from workloads.from_prometheus import length_law, read_scrape
from workloads.lengths import length_blocks
from workloads.source import Source

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
LOG = "timestamp,prompt_tokens,completion_tokens,ttft_ms,latency_s\n"
ROWS = "1700000010.5,300,21,100,0.5\n1700000000.0,100,11,50,0.15\n1700000004.25,200,,,\n1700000020,200,1,80,0.08\n"


def log_file(folder: Path, text: str, name: str = "gateway.csv") -> Source:
    path = folder / name
    path.write_text(text, "utf-8")
    return Source(path)


def buckets(name: str, edges: list[float], counts: list[int], total: float, stamp: str = "", model: str = MODEL) -> str:
    """A histogram as a server writes it."""
    said, lines, upto = f'engine="0",model_name="{model}"', [f"# TYPE {name} histogram"], 0
    for edge, count in zip([*edges, "+Inf"], counts, strict=True):
        upto += count
        lines.append(f'{name}_bucket{{{said},le="{edge}"}} {float(upto)}{stamp}')
    return "\n".join([*lines, f"{name}_sum{{{said}}} {total}{stamp}", f"{name}_count{{{said}}} {upto}{stamp}"]) + "\n"


def scrape(times: int = 1, stamp: str = " 1700003600000", model: str = MODEL) -> str:
    """An hour (times as much) of a server: 3,600 requests of 700 tokens, answers of 120."""
    k = times
    return "".join([
        "# a comment\n\nprocess_start_time_seconds 1.7e9\n",
        f'vllm:num_requests_running{{engine="0",model_name="{model}"}} 2\n',
        'vllm:cache_config_info{block_size="32",cache_dtype="fp8_e4m3",gpu_memory_utilization="0.85",x="a\\"b"} 1\n',
        buckets("vllm:request_prompt_tokens", [1, 10, 100, 1000, 10000], [0, 100 * k, 900 * k, 2400 * k, 200 * k, 0],
                3600 * k * 700.0, stamp, model),
        buckets("vllm:request_generation_tokens", [1, 10, 100, 1000], [0, 300 * k, 2300 * k, 1000 * k, 0],
                3600 * k * 120.0, stamp, model),
        buckets("vllm:time_to_first_token_seconds", [0.1, 0.2, 1], [1800 * k, 1764 * k, 36 * k, 0], 500.0 * k, stamp,
                model),
        buckets("vllm:time_per_output_token_seconds", [0.01, 0.02], [900 * k, 2700 * k, 0], 60.0 * k, stamp, model),
    ])  # fmt: skip


def init(*options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["init", *options])
    return done.exit_code, done.output if done.exception is None else str(done.exception)


# -- logs


def test_a_log_is_sorted_counted_from_its_first_request_and_its_tpot_worked_out(tmp_path: Path) -> None:
    """Four rows: one without an answer is left out; TPOT = (500 - 100) / 20 and (150 - 50) / 10 ms; 2 in 20 s."""
    found = read_log(log_file(tmp_path, LOG + ROWS))
    assert found.arrival_ns.tolist() == [0, 10_500_000_000, 20_000_000_000] and found.left_out == 1
    assert found.prompt_tokens.tolist() == [100, 300, 200] and found.output_tokens.tolist() == [11, 21, 1]
    assert found.latency_ms["ttft"].tolist() == [50, 100, 80] and found.latency_ms["e2el"].tolist() == [150, 500, 80]
    assert found.latency_ms["tpot"].tolist() == [10, 20]
    assert found.rate == pytest.approx(0.1) and found.busiest() == pytest.approx(2 / 20)
    assert found.busiest(10.0) == pytest.approx(2 / 10)


@pytest.mark.parametrize(
    ("stamp", "unit"),
    [
        ("1700000001", None), ("1700000001000", None), ("1700000001000000", None), ("1700000001000000000", None),
        ("2023-11-14T22:13:21Z", None), ("2023-11-14 22:13:21", None), ("1.5", None), ("1", "s"), ("1000", "ms"),
    ],
)  # fmt: skip
def test_units_of_time_are_told_by_their_size_or_said(tmp_path: Path, stamp: str, unit: str | None) -> None:
    """One second lies between two rows, in whatever unit the log has."""
    second = {"1.5": "2.5", "1": "2", "1000": "2000", "2023-11-14T22:13:21Z": "2023-11-14T22:13:22Z",
              "2023-11-14 22:13:21": "2023-11-14 22:13:22"}.get(stamp)  # fmt: skip
    second = second or str(int(stamp) + 10 ** (len(stamp) - 10))
    text = f"Time,Input Tokens,outputTokens\n{stamp},10,10\n{second},10,10\n"
    assert read_log(log_file(tmp_path, text), None, unit).span_s == pytest.approx(1.0)


def test_json_lines_with_usage_as_openai_has_it(tmp_path: Path) -> None:
    """Nested objects are columns by their path; other fields, however deep, do not matter."""
    rows = [{"created": 1700000000 + 2 * i, "usage": {"prompt_tokens": 7, "completion_tokens": 5}, "x": [[{}]]}
            for i in range(3)]  # fmt: skip
    found = read_log(log_file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "log.jsonl"))
    assert found.prompt_tokens.tolist() == [7, 7, 7] and found.span_s == 4.0 and not found.latency_ms


BAD_LOGS = {
    "no prompt": ("time,in_tok,completion_tokens\n1.5,1,1\n", "no column of prompt tokens .* --column prompt=NAME; "),
    "no unit": ("time,prompt_tokens,output_tokens\n1,1,1\n2,1,1\n", "time: '1': its unit cannot be told; --time-unit"),
    "word": (LOG + "1700000000,ten,1,1,1\n", "line 2: prompt_tokens: 'ten': a whole number"),
    "below 0": (LOG + "1700000000,-1,1,1,1\n", "line 2: prompt_tokens: '-1': tokens must be >= 0"),
    "huge": (LOG + "1700000000,999999999999,1,1,1\n", "at most 100000000 tokens; is the unit right"),
    "ragged": (LOG + "1700000000,1,1\n", "line 2: line: .* 5 values, as the header has, not 3"),
    "one": (LOG + "1700000000,1,1,1,1\n", "at least two requests at different times"),
    "no answers": (LOG + "1700000000,1,0,1,1\n1700000001,1,0,1,1\n", r"two requests .* \(2 rows left out\)"),
    "empty": ("", "at least two requests|empty"),
    "twice": ("time,time\n1,2\n", "names of columns, every one once"),
    "latency": (LOG + "1700000000,1,1,-5,1\n", "ttft_ms: '-5': a latency is not below 0"),
    "span": (LOG + "1.5,1,1,1,1\n1e10,1,1,1,1\n", "is the unit right"),
    "no object": ('{"time": 1.5, "prompt_tokens": 1, "output_tokens": 2}\n[]\n', "line 2: line: .* one JSON object"),
}


@pytest.mark.parametrize(("text", "match"), BAD_LOGS.values(), ids=BAD_LOGS)
def test_a_log_with_a_fault_is_one_line_that_names_it(tmp_path: Path, text: str, match: str) -> None:
    """File, line, column, value, and what is allowed."""
    with pytest.raises(ValueError, match=match) as caught:
        read_log(log_file(tmp_path, text))
    assert "\n" not in str(caught.value) and "gateway.csv" in str(caught.value)


def test_columns_may_be_said(tmp_path: Path) -> None:
    """And a name that is not there gets a hint."""
    text = "when,tok_in,tok_out\n1.5,10,20\n2.5,10,20\n"
    said = {"time": "when", "prompt": "tok_in", "output": "tok_out"}
    assert read_log(log_file(tmp_path, text), said).output_tokens.tolist() == [20, 20]
    with pytest.raises(ValueError, match=r"prompt=tok_inn: .* no such column; did you mean 'tok_in'\?"):
        read_log(log_file(tmp_path, text), {**said, "prompt": "tok_inn"})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_whatever_the_file_the_error_is_one_line(tmp_path: Path, junk: bytes, headed: bool) -> None:
    """Logs and scrapes of any bytes, damaged gzip among them."""
    path = tmp_path / "junk"
    for data in ((LOG.encode() if headed else b"") + junk, gzip.compress(junk)[:-3]):
        path.write_bytes(data)
        for read in (read_log, read_scrape):
            try:
                read(Source(path))
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) < 700


def test_a_log_becomes_a_scenario_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line: its trace has the log's requests, measured percentiles are comments, nothing else is
    written; a second time only on purpose."""
    monkeypatch.chdir(tmp_path)
    log_file(tmp_path, LOG + ROWS)
    told = ["--log", "gateway.csv", "--out", "mine.yaml", "--model", "llama-3.1-8b", "--hardware", "h100-sxm"]
    status, text = init(*told)
    assert status == 0 and "1 rows without tokens" in text and "wrote mine.yaml, mine-trace.csv.gz" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gateway.csv", "mine-trace.csv.gz", "mine.yaml"]
    written = Path("mine.yaml").read_text()
    assert "# Measured TTFT: p50 80 ms, p90 96 ms, p99 99.6 ms" in written
    assert "# slo: {ttft_ms: 99.6, tpot_ms: 19.9, percentile: 99}" in written
    result = simulate(Scenario.load("mine.yaml"))
    assert result.metrics["requests"]["finished"] == 3 and not result.metrics["slo"]
    [columns] = open_trace("mine-trace.csv.gz").chunks()
    assert columns.arrival_ns.tolist() == [0, 10_500_000_000, 20_000_000_000]
    before = Path("mine-trace.csv.gz").read_bytes()
    status, error = init(*told)
    assert status and "mine-trace.csv.gz exists; add --overwrite" in error
    assert init(*told, "--overwrite")[0] == 0 and Path("mine-trace.csv.gz").read_bytes() == before


def test_the_objective_in_the_comment_is_one_that_a_scenario_takes(tmp_path: Path) -> None:
    """Uncommented as it stands, it loads, with slow services too (no exponent, which YAML reads as a word)."""
    rows = "1700000000,10,11,54321.5,100\n1700000001,10,11,54321.5,100\n"
    out = tmp_path / "s.yaml"
    log = log_file(tmp_path, LOG + rows).name
    assert init("--log", log, "--out", str(out), "--model", "llama-3.1-8b", "--hardware", "h100-sxm")[0] == 0
    out.write_text(out.read_text().replace("# slo:", "slo:"))
    assert Scenario.load(out).slo.ttft_ms == pytest.approx(54320)


# -- scrapes


def test_a_scrape_says_rate_lengths_latencies_and_cache(tmp_path: Path) -> None:
    """3,600 requests in 3,600 s; half of TTFTs below 0.1 s, 99 % below 0.2 s."""
    found = read_scrape(log_file(tmp_path, scrape()))
    assert (found.model_name, found.requests, found.span_s, found.rate) == (MODEL, 3600, 3600, 1.0)
    assert found.lengths["prompt"].mean == 700 and found.lengths["output"].mean == 120
    assert found.latency_s["ttft"].percentile(50) == pytest.approx(0.1)
    assert found.latency_s["ttft"].percentile(99) == pytest.approx(0.2)
    assert found.latency_s["tpot"].percentile(25) == pytest.approx(0.01)
    assert found.cache["x"] == 'a"b' and found.gauges == {"running": 2.0}


def test_what_came_between_two_scrapes(tmp_path: Path) -> None:
    """Thrice as much after another hour: twice the rate since the first; the wrong way round is refused."""
    first, second = log_file(tmp_path, scrape()), log_file(tmp_path, scrape(3, " 1700007200000"), "b")
    found = read_scrape(second, first)
    assert (found.requests, found.span_s, found.rate) == (7200, 3600, 2.0)
    with pytest.raises(ValueError, match="counts less than the earlier scrape"):
        read_scrape(first, second)


def test_replicas_of_a_model_add_up_and_models_are_told_apart(tmp_path: Path) -> None:
    """Two engines of one model are one service; of two models one has to be named."""
    two = scrape() + scrape().replace('engine="0"', 'engine="1"')
    assert read_scrape(log_file(tmp_path, two)).requests == 7200
    mixed = log_file(tmp_path, scrape() + scrape(2, model="other"))
    assert read_scrape(mixed, served="other").requests == 7200
    with pytest.raises(ValueError, match=r"more than one model; say which with --served NAME: .*, other$"):
        read_scrape(mixed)
    with pytest.raises(ValueError, match=r"--served: othr: .* did you mean 'other'"):
        read_scrape(mixed, served="othr")


BAD_SCRAPES = {
    "no number": ("vllm:x 1e\n", "line 1: vllm:x: '1e': a number"),
    "labels": ("vllm:x{a=1} 1\n", "line 1: (labels|line): "),
    "not vllm": ("go_threads 8\n", "no vllm: metrics: what a vLLM server says"),
    "no lengths": ("vllm:x 1\n", "vllm:request_prompt_tokens_bucket: missing"),
    "no time": (scrape(stamp=""), "does not say how long it counted; say it with --seconds N"),
    "before": (scrape(stamp=" 1600000000000"), "would have counted for -1e.08 s"),
    "falls": (scrape().replace('le="100"} 1000.0', 'le="100"} 5000.0', 1), "cumulative counts: numbers that do not"),
    "edge": (scrape().replace('le="100"', 'le="many"', 1), "le: 'many': the upper edge"),
    "no inf": (scrape().replace("+Inf", "99999", 1), "edges that grow, the last one .Inf"),
    "nobody": (scrape(0), "at least one request that was answered"),
}


@pytest.mark.parametrize(("text", "match"), BAD_SCRAPES.values(), ids=BAD_SCRAPES)
def test_a_scrape_with_a_fault_is_one_line_that_names_it(tmp_path: Path, text: str, match: str) -> None:
    """File, line, metric, value, and what is allowed."""
    with pytest.raises(ValueError, match=match) as caught:
        read_scrape(log_file(tmp_path, text))
    assert "\n" not in str(caught.value) and "gateway.csv" in str(caught.value)


def test_lengths_of_a_histogram_keep_its_buckets_and_its_mean(tmp_path: Path) -> None:
    """Shares of every bucket are those counted, the mean is the sum over the count within a token."""
    counted = histogram("x", samples(log_file(tmp_path, scrape())), "vllm:request_prompt_tokens")
    assert counted is not None
    law = length_law(counted)
    tokens, share = (np.array(column) for column in zip(*law, strict=True))
    assert share.sum() == pytest.approx(1) and tokens @ share == pytest.approx(700, abs=1)
    inside = [share[(tokens > low) & (tokens <= high)].sum() for low, high in ((0, 1), (1, 10), (10, 100), (100, 1000))]
    assert inside == pytest.approx([0, 100 / 3600, 900 / 3600, 2400 / 3600])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=6, max_size=6).filter(any), st.floats(0.05, 0.95))
def test_any_histogram_of_lengths_keeps_its_mean(counts: list[int], place: float) -> None:
    """Wherever between the ends of its buckets the mean is."""
    edges = np.array([2, 16, 128, 1024, 8192, np.inf])
    lows, highs = np.array([1, 3, 17, 129, 1025, 8193]), np.array([2, 16, 128, 1024, 8192, 16384])
    mean = float(np.average(lows + place * (highs - lows), weights=counts))
    law = length_law(Histogram(edges, np.array(counts, float), mean * sum(counts)))
    assert sum(tokens * share for tokens, share in law) == pytest.approx(mean, rel=2e-2, abs=0.6)


def test_a_mean_that_no_lengths_have_is_refused() -> None:
    """All in 1 to 10 tokens cannot be 5,000 on average: a sum in another unit."""
    with pytest.raises(ValueError, match="a mean of 5000 tokens does not fit buckets that allow 1 to 10"):
        length_law(Histogram(np.array([10, np.inf]), np.array([5.0, 0.0]), 25_000.0))


def test_a_scrape_becomes_a_scenario_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model by its label, engine vLLM, cache as configured, lengths drawn from the histograms."""
    monkeypatch.chdir(tmp_path)
    log_file(tmp_path, scrape(), "metrics.txt")
    status, text = init("--prometheus", "metrics.txt", "--out", "served.yaml", "--hardware", "h100-sxm")
    assert status == 0, text
    said = Scenario.load("served.yaml")
    assert (said.model, said.engine, said.kv.block_tokens, said.kv.memory_fraction) == (
        "llama-3.1-8b", "vllm-v1", 32, 0.85,
    )  # fmt: skip
    assert said.precision.kv == "fp8" and said.workload["rate"] == 1.0
    drawn = next(length_blocks(said.workload["prompt"], "prompt", 0))
    assert drawn.mean() == pytest.approx(700, rel=0.1) and drawn.max() <= 10_000
    result = simulate(Scenario.load("served.yaml", ["workload.requests=100"]))
    assert result.metrics["requests"]["finished"] == 100
    assert "# slo: {ttft_ms: 200, tpot_ms:" in Path("served.yaml").read_text()


def test_what_does_not_fit_is_written_with_a_note(tmp_path: Path) -> None:
    """The traffic is right all the same; the layout is for whoever rents to say."""
    log, out = log_file(tmp_path, LOG + ROWS).name, tmp_path / "s.yaml"
    status, text = init("--log", log, "--out", str(out), "--model", "llama-3.1-70b", "--hardware", "h100-sxm")
    assert status == 0 and "note: it will not run as it is:" in text and out.is_file()


BAD_OPTIONS = {
    "both": (["--log", "a", "--prometheus", "b"], "one of the two"),
    "neither": ([], "one of the two"),
    "no file": (["--log", "nowhere.csv"], "--log: nowhere.csv: no such file"),
    "model": (["--log", "LOG", "--model", "lama-3.1-8b"], "did you mean 'llama-3.1-8b'"),
    "column": (["--log", "LOG", "--column", "promt=x"], "--column: promt=x: must be WHAT=NAME.*did you mean 'prompt'"),
    "unit": (["--log", "LOG", "--time-unit", "h"], "--time-unit: h: allowed: date, s"),
    "seconds": (["--prometheus", "LOG", "--seconds", "0"], "--seconds: 0: must be above 0"),
    "other": (["--log", "LOG", "--since", "x"], "--since: belongs to --prometheus"),
    "out": (["--log", "LOG", "--out", "x.txt"], "a scenario's name ends in .yaml"),
    "hardware": (["--log", "LOG", "--hardware", "h10-sxm"], "hardware: .*did you mean 'h100-sxm'"),
}


@pytest.mark.parametrize(("options", "match"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_an_option_that_means_nothing_is_one_line(
    options: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    log_file(tmp_path, LOG + ROWS)
    given_ = {"--out": "s.yaml", "--model": "llama-3.1-8b", "--hardware": "h100-sxm"}
    rest = [word for name, value in given_.items() if name not in options for word in (name, value)]
    words = [word.replace("LOG", "gateway.csv") for word in [*options, *rest]]
    monkeypatch.setattr("sys.argv", ["decodesim", "init", *words])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    with pytest.raises(ValueError, match=match):
        raise ValueError(error)
    assert [p.name for p in tmp_path.iterdir()] == ["gateway.csv"]


def test_a_trace_error_keeps_its_type(tmp_path: Path) -> None:
    """Callers that catch damaged traces catch damaged logs too."""
    with pytest.raises(TraceError):
        read_log(log_file(tmp_path, LOG + "1700000000,ten,1,1,1\n"))
