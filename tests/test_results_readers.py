"""Results of serving benchmarks are read with each tool's own meaning of its words, and damage is named."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.results import read

VLLM = {
    "date": "20260101-000000", "endpoint_type": "vllm", "backend": "vllm", "model_id": "meta-llama/Llama-3.1-8B",
    "num_prompts": 10, "request_rate": 4.0, "burstiness": 1.0, "max_concurrency": None, "duration": 5.0,
    "completed": 10, "total_input_tokens": 5120, "total_output_tokens": 1280, "request_throughput": 2.0,
    "request_goodput:": None, "output_throughput": 256.0, "mean_ttft_ms": 40.0, "median_ttft_ms": 39.0,
    "p99_ttft_ms": 80.0, "mean_tpot_ms": 9.0, "mean_itl_ms": 9.1, "mean_e2el_ms": 1200.0,
}  # fmt: skip


def written(tmp_path, value, name="bench.json"):
    """A file with that text, or that value as JSON."""
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return str(path)


def test_vllm_plain(tmp_path):
    """Means of lengths are totals over completed requests; the stray colon of old files is no trouble."""
    (point,) = read(written(tmp_path, VLLM))
    assert (point.rate, point.concurrency, point.requests) == (4.0, None, 10)
    assert (point.prompt.mean, point.output.mean) == (512, 128) and point.said["model"] == "meta-llama/Llama-3.1-8B"
    assert point.measured["mean_ttft_ms"] == 40 and point.measured["output_throughput"] == 256
    assert "request_goodput" not in str(point.measured)


@pytest.mark.parametrize(
    ("rate", "most", "load"),
    [("inf", 8, (None, 8)), ("inf", None, (math.inf, None)), (3, None, (3.0, None)), (3, 8, (3.0, 8))],
)
def test_vllm_loads(tmp_path, rate, most, load):
    """An infinite rate under a limit is a closed loop; without one, everything at once."""
    (point,) = read(written(tmp_path, {**VLLM, "request_rate": rate, "max_concurrency": most}))
    assert (point.rate, point.concurrency) == load


def test_vllm_detailed_and_appended(tmp_path):
    """Lists give every answered request's lengths; results appended to one file are as many points."""
    lists = {"input_lens": [100, 200, 300], "output_lens": [10, 0, 30], "ttfts": [0.1, 0, 0.2], "itls": [[], [], []]}
    one = {**VLLM, **lists, "completed": 2, "total_input_tokens": 400, "total_output_tokens": 40}
    points = read(written(tmp_path, json.dumps(one) + "\n" + json.dumps(VLLM) + "\n", "many.jsonl"))
    assert points[0].rows == ((100, 10), (300, 30)) and points[0].prompt.std == 100 and points[1].rows == ()
    assert points[1].where.endswith("result 2")


def summary(mean, **more):
    """A GuideLLM distribution of ten successful requests."""
    return {"successful": {"mean": mean, "median": mean, "count": 10, "std_dev": 0.0, "percentiles": {"p99": 2 * mean},
                           **more}, "errored": {}, "total": {}}  # fmt: skip


GUIDE = {
    "metadata": {"version": 1},
    "benchmarks": [{
        "config": {"strategy": {"type_": "concurrent", "streams": 16}, "model": "qwen3-8b"},
        "metrics": {
            "request_latency": summary(1.5), "time_to_first_token_ms": summary(50.0),
            "inter_token_latency_ms": summary(11.0), "time_per_output_token_ms": summary(14.0),
            "prompt_token_count": summary(512), "output_token_count": summary(128),
            "output_tokens_per_second": summary(900.0), "requests_per_second": summary(7.0),
        },
    }],
}  # fmt: skip


def test_guidellm_words(tmp_path):
    """Its ITL is our TPOT, its TPOT (first token included) is not read, its latency is in seconds."""
    (point,) = read(written(tmp_path, GUIDE))
    assert point.measured["mean_tpot_ms"] == 11 and point.measured["mean_e2el_ms"] == 1500
    assert point.measured["p99_ttft_ms"] == 100 and point.measured["request_throughput"] == 7
    assert 14.0 not in point.measured.values() and not any("itl" in name for name in point.measured)
    assert (point.rate, point.concurrency, point.said["model"]) == (None, 16, "qwen3-8b")


@pytest.mark.parametrize(
    ("strategy", "load"),
    [({"type_": "synchronous"}, (None, 1)), ({"type_": "constant", "rate": 2.5}, (2.5, None)),
     ({"type_": "poisson", "rate": 2}, (2.0, None)), ({"type_": "throughput"}, (math.inf, None))],
)  # fmt: skip
def test_guidellm_strategies(tmp_path, strategy, load):
    """Each strategy is the load that it makes."""
    one = {**GUIDE["benchmarks"][0], "config": {"strategy": strategy}}
    (point,) = read(written(tmp_path, {"benchmarks": [one]}))
    assert (point.rate, point.concurrency) == load


def record(start_ms, ttft_ms, itl_ms, output, end_ms, unit="ms"):
    """An AIPerf record; times in ``unit``."""
    by = {"ms": 1, "s": 1e-3, "ns": 1e6}[unit]
    metrics = {"time_to_first_token": ttft_ms, "inter_token_latency": itl_ms, "request_latency": end_ms - start_ms}
    lengths = {"input_sequence_length": 256, "output_sequence_length": output}
    return {
        "metadata": {"request_start_ns": int(start_ms * 1e6), "request_end_ns": int(end_ms * 1e6)},
        "metrics": {**{k: {"value": v * by, "unit": unit} for k, v in metrics.items()},
                    **{k: {"value": v, "unit": "tokens"} for k, v in lengths.items()},
                    "inter_chunk_latency": {"value": [itl_ms * by] * 3, "unit": unit}},
        "error": None,
    }  # fmt: skip


@pytest.mark.parametrize("unit", ["ms", "s", "ns"])
def test_aiperf_closed_loop(tmp_path, unit):
    """Two users, one after another without a pause: a closed loop of two; units are taken as written."""
    rows = [record(1000 * i, 100, 10, 91, 1000 * (i + 1), unit) for i in range(20) for _ in range(2)]
    rows.append({**rows[0], "error": {"code": 500}})
    rows.append({**rows[0], "metadata": {**rows[0]["metadata"], "benchmark_phase": "warmup"}})
    (point,) = read(written(tmp_path, "\n".join(map(json.dumps, rows)), "profile_export.jsonl"))
    assert (point.rate, point.concurrency, point.requests) == (None, 2, 40)
    assert point.measured["mean_tpot_ms"] == pytest.approx(10) and point.measured["mean_itl_ms"] == pytest.approx(10)
    assert point.measured["output_throughput"] == pytest.approx(40 * 91 / 20)
    assert "1 of 41 requests failed" in point.notes[0]


def test_aiperf_open_loop_keeps_its_arrivals(tmp_path):
    """Gaps between answers and new requests: arrivals are replayed as they were, in order of their starts."""
    rows = [record(100 * i + 70 * (i % 3), 20, 5, 5, 100 * i + 70 * (i % 3) + 40) for i in reversed(range(12))]
    (point,) = read(written(tmp_path, "\n".join(map(json.dumps, rows)), "x.jsonl"))
    assert point.concurrency is None and len(point.starts_s) == 12 and point.starts_s[0] == 0
    assert point.starts_s[1] == pytest.approx(0.17)


def test_csv_rows(tmp_path):
    """The documented table; empty cells are unsaid, and NaN is left out and named."""
    text = ("model,rate,concurrency,prompt_tokens,prompt_std,output_tokens,mean_ttft_ms,mean_tpot_ms\n"
            "qwen3-8b,2.5,,512,100,64,30,8\n,,4,512,,64,31,nan\n")  # fmt: skip
    first, second = read(written(tmp_path, text, "t.csv"))
    assert (first.rate, first.concurrency, first.prompt.std) == (2.5, None, 100)
    assert (second.rate, second.concurrency, second.said) == (None, 4, {})
    assert second.measured == {"mean_ttft_ms": 31} and "line 3: mean_tpot_ms: nan" in second.notes[0]


BAD = {
    "": "empty",
    "[]": "holds nothing",
    "{": "not JSON",
    '{"a": 1}': "keys a",
    "[1, 2]": "a int",
    json.dumps({**VLLM, "completed": 0}): "completed: 0: must be a number above 0",
    json.dumps({**VLLM, "request_rate": -1}): "request_rate: -1",
    json.dumps({**VLLM, "max_concurrency": 1e9}): "max_concurrency",
    json.dumps({**VLLM, "input_lens": [1], "output_lens": [1, 2]}): "output_lens",
    json.dumps({**VLLM, "input_lens": ["x"], "output_lens": [1]}): "input_lens[0]",
    json.dumps({**GUIDE, "benchmarks": [{"metrics": 1}]}): "benchmarks[0]: metrics",
    json.dumps({"benchmarks": []}): "no measured point",
    json.dumps({**record(0, 1, 1, 2, 9), "metrics": {}}): "input_sequence_length",
    "a,b\n1,2\n": "must have rate or concurrency",
    "rate,prompt_tokens,output_tokens,mean_ttft_ms\nx,1,1,1\n": "line 2: rate: 'x'",
    "rate,prompt_tokens,output_tokens,mean_ttft_ms\n,1,1,1\n": "both empty",
    "rate,prompt_tokens,output_tokens,mean_ttft_ms,mean_tpto_ms\n1,1,1,1,1\n": "mean_tpto_ms: unknown column",
    "rate,prompt_tokens,output_tokens,mean_ttft_ms\n1,-5,1,1\n": "prompt_tokens: -5",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_damage_is_named_in_one_line(tmp_path, text):
    """One line with the file, the key, the value, and what is allowed."""
    with pytest.raises(ValueError, match=r"(?s).*") as error:
        read(written(tmp_path, text, "odd.json"))
    assert BAD[text] in str(error.value) and "odd.json" in str(error.value) and "\n" not in str(error.value)


def test_missing_and_binary_files(tmp_path):
    """No file, and no text."""
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read(tmp_path / "b.json")


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3))
SAMPLES = [VLLM, GUIDE, record(0, 10, 5, 5, 40), {**VLLM, "input_lens": [5], "output_lens": [5]}]


def places(value, path=()):
    """Every place in a nested value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value, path, new):
    """The value with another at one place."""
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = changed(copied[path[0]], path[1:], new)
    return copied


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_ends_in_points_or_a_line(tmp_path_factory, data):
    """Whatever one value is replaced by: sound points, or a ValueError of one line."""
    sample = data.draw(st.sampled_from(SAMPLES))
    path = data.draw(st.sampled_from(list(places(sample))))
    file = tmp_path_factory.mktemp("r") / "f.json"
    file.write_text(json.dumps(changed(sample, path, data.draw(VALUES))), "utf-8")
    try:
        points = read(file)
    except ValueError as error:
        assert "\n" not in str(error) and "f.json" in str(error)
        return
    assert all(p.requests > 0 and p.prompt.mean > 0 and all(v > 0 for v in p.measured.values()) for p in points)
