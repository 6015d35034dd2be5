"""Scenarios: what is allowed works, what is not is one line that names file, key, value and what is allowed."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from sim.build import build_scenario
from sim.run import Result, simulate
from sim.scenario import MOST_REPLICAS, Scenario, override, schema, shipped_scenarios

SMALL = {
    "model": "smollm2-135m",
    "hardware": "l4",
    "workload": {"rate": 50, "prompt": 30, "output": 5, "requests": 10},
}


def refusal(*settings: str, base: str = "bench_speculative") -> str:
    """The message with which a scenario is refused before anything runs."""
    with pytest.raises(ValueError) as caught:
        simulate(Scenario.load(base, ["workload.requests=3", *settings]))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 2000
    return message


def written(folder: Path, text: str) -> str:
    path = folder / "scenario.yaml"
    path.write_text(text, "utf-8")
    return str(path)


# --- what is refused, and how -------------------------------------------------------------------------------------

REFUSED = [
    # a key that nobody knows, with the one that was meant
    ("polcy=speculative", "polcy: unknown key", "did you mean 'policy'?"),
    ("kv.blok_tokens=3", "kv.blok_tokens: unknown key", "did you mean 'block_tokens'?"),
    ("slo.ttft=500", "slo.ttft: unknown key", "did you mean 'ttft_ms'?"),
    ("workload.requestz=3", "'requestz': unknown key", "did you mean 'requests'?"),
    ("policy.gama=3", "policy.gama: unknown option of speculative", "did you mean 'gamma'?"),
    ("scheduler.token_budgt=3", "scheduler.token_budgt: unknown option of chunked", "did you mean 'token_budget'?"),
    ("router.width=3", "router.width: unknown option of round_robin", "no options"),
    # a name that nobody knows
    ("policy=specluative", "policy: 'specluative': must be one of adaptive, auto", "did you mean 'speculative'?"),
    ("scheduler=chunkd", "scheduler: 'chunkd': must be one of chunked", "did you mean 'chunked'?"),
    ("router=round_robn", "router: 'round_robn': must be one of", "did you mean 'round_robin'?"),
    ("policy={}", "policy: name: missing", "must be one of"),
    ("model=llama-3.1-8c", "model: no model config 'llama-3.1-8c'", "did you mean 'llama-3.1-8b'?"),
    ("hardware=h100-sxn", "hardware: no device profile 'h100-sxn'", "did you mean 'h100-sxm'?"),
    ("engine=idael", "engine: no engine profile 'idael'", "did you mean 'ideal'?"),
    ("policy.draft=llama-3.2-1", "policy.draft: no model config", "did you mean 'llama-3.2-1b'?"),
    ("workload={trace: azure-2023-cov}", "azure-2023-cov", "did you mean 'azure-2023-conv'?"),
    ("precision.kv=fp9", "kv: 'fp9'", "did you mean 'fp8'?"),
    ("kv.mode=pagd", "kv.mode: 'pagd'", "'paged' or 'reserved'"),
    # units, infinities, switches where numbers belong
    ("slo.ttft_ms=500ms", "slo.ttft_ms: '500ms'", "valid number"),
    ("workload.rate=10ms", "rate: '10ms'", "must be a number > 0"),
    ("slo.ttft_ms=-1", "slo.ttft_ms: -1", "greater than 0"),
    ("slo.ttft_ms=.nan", "slo.ttft_ms: nan", "finite"),
    ("slo.ttft_ms=.inf", "slo.ttft_ms: inf", "finite"),
    ("slo.percentile=100", "slo.percentile: 100", "less than 100"),
    ("slo.ttft_ms='5'", "slo.ttft_ms: '5'", "valid number"),
    ("warmup_s=-1", "warmup_s: -1", "greater than or equal to 0"),
    ("workload.rate=.nan", "rate: nan", "must be a number > 0"),
    ("workload.rate=true", "rate: True", "must be a number > 0"),
    ("replicas=true", "replicas: True", "only where a key is a switch"),
    ("kv.memory_fraction=true", "kv.memory_fraction: True", "only where a key is a switch"),
    ("policy.gamma=true", "policy.gamma: True", "whole number from 1"),
    ("policy.gamma=.inf", "policy.gamma: inf", "whole number from 1"),
    ("scheduler.max_sequences=true", "scheduler.max_sequences: True", "whole number from 1"),
    ("replicas=2.5", "replicas: 2.5", "integer"),
    ("seed=-1", "seed: -1", "greater than or equal to 0"),
    ("policy.acceptance=1.5", "policy.acceptance.alpha: 1.5", "probability"),
    # nothing to do
    ("workload.prompt=0", "prompt: 0", "whole number >= 1"),
    ("workload.output=0", "output: 0", "whole number >= 1"),
    ("workload.requests=0", "requests: 0", "whole number >= 1"),
    ("workload={}", "rate: missing", "a workload needs trace, mix, or rate"),
    # absurd sizes
    ("workload.requests=1e30", "requests: 1e+30", "whole number"),
    ("workload.requests=1e9999", "requests: inf", "whole number"),
    ("workload.prompt=1e12", "prompt: 1000000000000", "<= 1e+08"),
    ("workload.samples=100000000000", "samples: 100000000000", "<= 65536"),
    ("replicas=1000000000", "replicas: 1000000000", f"less than or equal to {MOST_REPLICAS}"),
    ("scheduler.token_budget=1000000000000", "scheduler.token_budget: 1000000000000", "from 1 to"),
    ("policy.gamma=1000", "policy.gamma: 1000", "from 1 to 64"),
    ("layout.tensor=1000000", "layout.tensor: 1000000", "does not divide"),
    ("kv.reserve_tokens=1", "kv.reserve_tokens: 1", "no room"),
    # a thing of another kind
    ("hardware=llama-3.1-8b", "hardware: no device profile 'llama-3.1-8b'", "allowed"),
    ("model=h100-sxm", "model: no model config 'h100-sxm'", "allowed"),
    ("model=[1, 2]", "model: [1, 2]", "string"),
    ("policy=5", "policy: 5", ""),
    ("policy.draft=true", "policy.draft: True", "model"),
    ("workload=5", "workload: 5", "valid dictionary"),
    ("variants=foo", "variants: 'foo'", "list"),
    ("model.name=x", "model holds 'llama-3.1-8b'", "no keys"),
    # YAML's other powers
    ("kv=&a [*a]", "--set kv: '&a [*a]'", "anchors and aliases are not allowed"),
    ("hardware=!!python/object:os.system x", "--set hardware", "tags are not allowed"),
    ("workload={rate: 1, rate: 2}", "--set workload", "given twice"),
    ("model={", "--set model: '{'", "not a YAML value"),
    ("policy=" + "[" * 50 + "]" * 50, "--set policy", "nested deeper than 12"),
    ("=3", "--set '=3'", "key=value"),
    ("a..b=3", "--set 'a..b=3'", "key=value"),
    ("model", "--set 'model'", "key=value"),
]


@pytest.mark.parametrize(("setting", "names", "allowed"), REFUSED, ids=[r[0][:40] for r in REFUSED])
def test_refused_by_name(setting: str, names: str, allowed: str) -> None:
    """One line with the key, the value, and what is allowed or was meant."""
    message = refusal(setting)
    assert names in message and allowed in message


FILES = [
    ("", "must be a mapping"),
    ("- a\n- b\n", "must be a mapping"),
    ("model: a\nmodel: b\n", "line 2: key 'model' is given twice"),
    ("a: &x [1]\nb: *x\n", "anchors and aliases are not allowed"),
    ("model: !!python/object/apply:os.system ['true']\n", "tags are not allowed"),
    ("model: [unclosed\n", "not valid YAML"),
    ("\0", "not allowed"),
    ("a: " + "[" * 1000 + "]" * 1000, "nested deeper"),
    ("a: " + "x" * 1_100_000, "larger than"),
    ("hardware: l4\nworkload: {}\n", "model: missing; every scenario needs model, hardware and workload"),
    ("model: a\nhardware: b\nworkload: {}\nfleet: {}\n", "fleet.groups: missing; fleet needs it"),
    ("model: a\nhardware: b\nworkload: {}\nfleet: {groups: [{}]}\n", "missing; fleet.groups.0 needs it"),
    ("seed: " + "9" * 5000 + "\n", "Exceeds the limit"),
]


@pytest.mark.parametrize(("text", "said"), FILES, ids=[text[:20].strip() or "nothing" for text, _ in FILES])
def test_refused_file(tmp_path: Path, text: str, said: str) -> None:
    """One line that begins with the file."""
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        Scenario.load(path)
    assert str(caught.value).startswith(path) and said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["chat_h10", ".", "..", "/", "no/such/file", "nothing.yaml", "", "a" * 5000, "x\0y"])
def test_no_such_scenario(name: str) -> None:
    """A folder, a missing file and a misspelt name are told apart from scenarios, in one short line."""
    with pytest.raises(ValueError) as caught:
        Scenario.load(name)
    assert len(str(caught.value)) < 6000 and "\n" not in str(caught.value)


def test_billion_laughs_are_cheap(tmp_path: Path) -> None:
    """A file of 400 bytes that stands for a gigabyte is refused before it is expanded."""
    laughs = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefgh")]
    with pytest.raises(ValueError, match="anchors"):
        Scenario.load(written(tmp_path, "\n".join(laughs)))


def test_values_without_end_are_refused() -> None:
    """A mapping that contains itself, from Python."""
    loop: dict[str, object] = {}
    loop["policy"] = loop
    with pytest.raises(ValueError, match="nested deeper"):
        Scenario.parse({**SMALL, "policy": loop})
    with pytest.raises(ValueError, match="more than 20000 values"):
        Scenario.parse({**SMALL, "workload": {"mix": [1] * 30_000}})
    with pytest.raises(ValueError, match="workload.rate: bytes: must be"):
        Scenario.parse({**SMALL, "workload": {"rate": b"1"}})
    with pytest.raises(ValueError, match="3: a key must be a word"):
        Scenario.parse({**SMALL, 3: 4})


def test_weights_that_do_not_fit_are_added_up() -> None:
    """A legal question whose answer is no: the message has the arithmetic."""
    message = refusal("model=llama-3-70b", "policy=autoregressive")
    assert "h100-sxm: weights 141" in message and "80 GB" in message and "leaves no KV cache" in message


def test_an_encoder_alone_is_not_served() -> None:
    """What a run cannot do, and what can."""
    assert "decodes nothing; roofline takes it" in refusal("model=bert-base", "policy=autoregressive")


# --- requests that cannot be served -------------------------------------------------------------------------------


def small(**changes: object) -> Result:
    return simulate(Scenario.parse({**SMALL, **changes}))


def test_a_prompt_beyond_the_context_is_rejected_and_reported() -> None:
    """10 requests, none served; nothing hangs, and the summary says so."""
    run = small(workload={"rate": 5, "prompt": 10**8, "output": 10**8, "requests": 10})
    assert run.metrics["requests"]["rejected"] == 10
    assert any("rejected" in warning for warning in run.metrics["warnings"])


def test_zero_token_rows_of_a_trace_are_dropped_and_counted(tmp_path: Path) -> None:
    """By reason, once per pass of a loop."""
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,0,5\n2,10,0\n3,10,5\n4,0,0\n")
    once = small(workload={"trace": str(trace)})
    assert once.metrics["requests"]["arrived"] == 2
    assert once.metrics["requests"]["dropped_rows"] == {"zero_output_tokens": 1, "zero_prompt_tokens": 2}
    thrice = small(workload={"trace": str(trace), "loop": 3})
    assert thrice.dropped == {"zero_output_tokens": 3, "zero_prompt_tokens": 6}
    closed = small(workload={"trace": str(trace), "concurrency": 2})
    assert closed.dropped == once.dropped
    part = {"trace": str(trace)}
    assert small(workload={"mix": [part, {**part, "weight": 0.5}]}).dropped == {
        "zero_output_tokens": 2, "zero_prompt_tokens": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0,0,5\n", "no request arrives; 1 rows dropped for zero_prompt_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n0,x,5\n", "line 2"),
        ("", "empty"),
        ("arrival_s,prompt_tokens,output_tokens\n", "at least one row"),
    ],
    ids=["all dropped", "first row bad", "empty", "header alone"],
)
def test_a_trace_without_a_request_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    """Nothing to simulate, and why."""
    trace = tmp_path / "t.csv"
    trace.write_text(text)
    with pytest.raises(ValueError, match=said):
        small(workload={"trace": str(trace)})


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("3,10,5\n2,10,5\n", "line 5.*must not decrease"),
        ("2,10\n", "line 4"),
        ("2,nan,5\n", "line 4"),
        ("2,10,-5\n", "line 4"),
    ],
)
def test_a_damaged_trace_ends_the_run_as_partial(tmp_path: Path, rows: str, said: str) -> None:
    """What came before the damage is served and counted; the note says where it is."""
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,10,5\n" + rows)
    run = small(workload={"trace": str(trace)})
    assert not run.complete and len(run.notes) == 1
    assert run.metrics["requests"]["finished"] >= 2
    assert re.search(said, run.notes[0])


def test_a_row_with_absurd_samples_ends_the_run_as_partial(tmp_path: Path) -> None:
    """A billion samples of one prompt would be a billion objects."""
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens,samples\n0,10,5,1\n1,10,5,2\n2,10,5,1000000000\n")
    run = small(workload={"trace": str(trace)})
    assert run.metrics["requests"]["finished"] == 2
    assert not run.complete and "samples: 1000000000: must be a whole number >= 1 and <= 65536" in run.notes[0]


def test_memory_that_runs_short_ends_the_run_as_partial(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has arrived is served; the note says that there would have been more."""
    calls = iter([False, False, True, True])
    monkeypatch.setattr("sim.run.memory_is_short", lambda: next(calls))
    run = small(workload={"rate": "inf", "prompt": 3, "output": 1, "requests": 10**12})
    assert not run.complete and "memory runs short" in run.notes[0]
    assert run.metrics["requests"]["finished"] == len(run.recorder.requests) > 0


def test_many_replicas_are_affordable() -> None:
    """As many as a scenario may ask for, in well under a gigabyte."""
    from sim.guard import peak_memory_bytes

    run = small(replicas=MOST_REPLICAS)
    assert run.metrics["requests"]["finished"] == 10
    assert peak_memory_bytes() < 3e9


# --- what is allowed ----------------------------------------------------------------------------------------------


def test_a_number_with_a_power_of_ten_is_a_number() -> None:
    """YAML 1.1 reads 1e3 as text; a scenario does not."""
    data = Scenario.parse({**SMALL, "workload": {"rate": "1e3", "requests": "2E1"}, "warmup_s": "1.5e-3"})
    assert data.workload == {"rate": 1000, "requests": 20} and data.warmup_s == 0.0015
    assert Scenario.load("chat_h100", ["scheduler.token_budget=1e3"]).scheduler["token_budget"] == 1000


def test_levels_of_priority_are_numbers(tmp_path: Path) -> None:
    """YAML keys are words here, and levels are not."""
    path = written(tmp_path, yaml.safe_dump(SMALL).replace("rate: 50", "rate: 50\n  priority: {0: 3, 1: 1}"))
    assert set(simulate(Scenario.load(path)).requests["priority"]) <= {0, 1}


def test_overrides_reach_into_plug_ins() -> None:
    """A name becomes a mapping; the default's options can be set; the rest stays."""
    assert Scenario.load("chat_h100", ["scheduler.max_sequences=7"]).scheduler == {
        "name": "chunked", "token_budget": 2048, "max_sequences": 7,
    }  # fmt: skip
    data = dict(SMALL)
    override(data, "policy.gamma=2")
    assert data["policy"] == {"name": "autoregressive", "gamma": 2}


def test_with_settings_leaves_the_original_alone() -> None:
    """A copy; nothing shared changes."""
    first = Scenario.load("chat_h100")
    second = first.with_settings(["workload.requests=5", "slo.ttft_ms=1"])
    assert "requests" not in first.workload and second.workload["requests"] == 5
    assert first.slo.ttft_ms == 500 and second.slo.ttft_ms == 1


def test_files_are_found_beside_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a file are relative to it, paths in --set to the working folder, names stay names."""
    (tmp_path / "sub").mkdir()
    trace = "arrival_s,prompt_tokens,output_tokens\n0,10,5\n"
    (tmp_path / "sub/mine.csv").write_text(trace)
    (tmp_path / "here.csv").write_text(trace + "1,10,5\n")
    (tmp_path / "sub/s.yaml").write_text(
        "model: HuggingFaceTB/SmolLM2-135M\nhardware: l4\nworkload: {mix: [{trace: mine.csv}, {trace: ./mine.csv}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    scenario = Scenario.load("sub/s.yaml")
    assert [part["trace"] for part in scenario.workload["mix"]] == [os.path.join("sub", "mine.csv")] * 2
    assert len(simulate(scenario).recorder.requests) == 2
    assert len(simulate(Scenario.load("sub/s.yaml", ["workload={trace: here.csv}"])).recorder.requests) == 2


def test_a_resolved_scenario_is_a_scenario() -> None:
    """What a run writes down says every default, and runs again to the same end."""
    first = simulate(Scenario.parse(SMALL))
    again = simulate(Scenario.parse(yaml.safe_load(first.scenario.to_yaml())))
    assert again.scenario == first.scenario
    assert (again.recorder.requests.array() == first.recorder.requests.array()).all()


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_build(name: str) -> None:
    """Each names things that exist and fits its hardware, and says in its first line what it is."""
    assert build_scenario(Scenario.load(name)).budget.kv_pool_bytes > 0
    assert shipped_scenarios()[name].read_text().startswith("# ")


def test_closed_loop_may_think_at_random() -> None:
    """Key think_time_exponential reaches the clock."""
    spec = {"concurrency": 1, "think_time_s": 10, "prompt": 30, "output": 5, "requests": 20}
    fixed, drawn = (small(workload={**spec, "think_time_exponential": flag}) for flag in (False, True))
    gaps = [set(run.requests["arrival_ns"].diff().dropna()) for run in (fixed, drawn)]
    assert len(gaps[0]) < len(gaps[1])


# --- the schema ---------------------------------------------------------------------------------------------------


def test_schema_names_everything_that_can_be_named() -> None:
    """Plug-ins with their options, kinds of arrivals, models and devices."""
    found = schema()["properties"]
    policies = {p["title"]: p["properties"] for p in found["policy"]["anyOf"] if "title" in p}
    assert set(found["policy"]["anyOf"][0]["enum"]) == set(policies) >= {"autoregressive", "speculative"}
    assert policies["speculative"]["gamma"] == {"type": "integer", "default": 4}
    assert {"type": "null"} in found["scheduler"]["anyOf"] and found["scheduler"]["default"] is None
    assert "llama-3.1-8b" in found["model"]["examples"] and "h100-sxm" in found["hardware"]["examples"]
    workloads = {w["title"]: w["properties"] for w in found["workload"]["anyOf"]}
    assert "azure-2023-conv" in workloads["a recorded trace"]["trace"]["examples"]
    assert workloads["synthetic traffic"]["requests"] == {"type": "integer", "minimum": 1}


@pytest.mark.parametrize("name", shipped_scenarios())
def test_schema_takes_what_ships_and_nothing_else(name: str) -> None:
    """Every shipped scenario, resolved or as written; no unknown key at any depth."""
    jsonschema = pytest.importorskip("jsonschema")
    valid = jsonschema.Draft202012Validator(schema()).is_valid
    jsonschema.Draft202012Validator.check_schema(schema())
    data = yaml.safe_load(shipped_scenarios()[name].read_text())
    assert valid(data)
    for key in ("modell", "slo.ttft", "kv.blocks", "workload.requestz", "scheduler.budget", "policy.gama"):
        wrong = yaml.safe_load(yaml.safe_dump(data))
        override(wrong, f"{key}=1")
        assert not valid(wrong), key


@pytest.mark.parametrize(
    ("workload", "good"),
    [
        ({"rate": "inf", "prompt": 5, "output": 5, "requests": 3}, True),
        ({"rate": 3, "arrivals": {"kind": "gamma", "cv": 2}, "lengths": "sharegpt-300", "duration_s": 9}, True),
        ({"mix": [{"trace": "azure-2023-code", "weight": 0.5}, {"trace": "azure-2023-conv"}]}, True),
        ({"concurrency": 4, "prompt": {"kind": "lognormal", "mean": 100, "cv": 1}, "output": 3, "requests": 9}, True),
        ({"rate": -3, "prompt": 5, "output": 5, "requests": 3}, False),
        ({"rate": 3, "prompt": 0, "output": 5, "requests": 3}, False),
        ({"rate": 3, "arrivals": {"kind": "gama"}, "prompt": 5, "output": 5, "requests": 3}, False),
        ({"mix": [{"trase": "azure-2023-code"}]}, False),
    ],
)  # fmt: skip
def test_schema_and_loader_agree_on_workloads(workload: dict[str, object], good: bool) -> None:
    """What an editor underlines is what a run refuses."""
    jsonschema = pytest.importorskip("jsonschema")
    data = {**SMALL, "workload": workload}
    assert jsonschema.Draft202012Validator(schema()).is_valid(data) == good
    from sim.run import Traffic

    if good:
        Traffic(Scenario.parse(data)).arrivals()
    else:
        with pytest.raises(ValueError):
            next(iter(Traffic(Scenario.parse(data)).arrivals()))
