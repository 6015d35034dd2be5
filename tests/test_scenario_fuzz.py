"""Whatever a scenario holds, it is a scenario or a ValueError of one line; nothing hangs, nothing else escapes."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.run import simulate
from sim.scenario import Scenario, override

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["inf", "1e400", "a10"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
SHARED = {
    "model": "smollm2-135m", "hardware": "l4", "engine": "ideal", "layout": {"tensor": 1, "pipeline": 1, "data": 1},
    "precision": {"weights": "bf16", "activations": "bf16", "kv": "bf16"}, "variants": [],
    "scheduler": {"name": "chunked", "token_budget": 256, "max_sequences": 16, "order": "fcfs"},
    "kv": {"mode": "paged", "block_tokens": 16, "memory_fraction": 0.9, "watermark": 0.01, "reserve_tokens": 512},
    "replicas": 2, "router": {"name": "round_robin"}, "warmup_s": 0.01, "seed": 3,
    "slo": {"ttft_ms": 50, "tpot_ms": 5, "e2el_ms": 90, "percentile": 9},
}  # fmt: skip
SYNTHETIC = {
    "rate": 100, "arrivals": {"kind": "gamma", "cv": 2, "rescale": False}, "requests": 4, "duration_s": 10,
    "samples": 2,
    "prompt": {"kind": "lognormal", "mean": 30, "cv": 1, "min": 1, "max": 99},
    "output": {"kind": "uniform", "low": 1, "high": 9}, "priority": {"0": 1, "1": 2},
}  # fmt: skip
BASES: list[dict[str, Any]] = [
    {**SHARED, "policy": {"name": "autoregressive"}, "workload": SYNTHETIC},
    {
        **SHARED, "policy": {"name": "speculative", "draft": "smollm2-135m", "gamma": 3, "acceptance": {"alpha": 0.8}},
        "workload": {
            "trace": "sharegpt-300", "rate": 50, "arrivals": {"kind": "on_off", "on_s": 1, "off_s": 1},
            "requests": 4, "max_prompt": 50, "max_output": 9, "loop": 2,
        },
    },
    {
        **SHARED, "model": "qwen2.5-7b",
        "policy": {"name": "speculative", "draft": "auto", "gamma": 2,
                   "acceptance": {"kind": "survival", "vector": [0.9, 0.8]}},
        "workload": {"mix": [{**SYNTHETIC, "weight": 0.5}, {"trace": "azure-2023-code", "weight": 1, "rate_scale": 9,
                                                            "start_s": 1, "end_s": 9, "spread_quantum_s": 0.1}],
                     "requests": 4},
    },
    {
        **SHARED, "scheduler": {"name": "static", "max_sequences": 4, "order": "priority"}, "policy": "autoregressive",
        "kv": {"mode": "reserved"},
        "workload": {"concurrency": 2, "think_time_s": 0.5, "think_time_exponential": True, "requests": 4,
                     "prompt": {"kind": "empirical", "name": "arxiv"}, "output": 3},
    },
]  # fmt: skip


class Enough(Exception):
    """The run has begun, so the scenario was legal."""


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a scenario are."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from paths(one, (*path, key))


PLACES = [(i, path) for i, base in enumerate(BASES) for path in paths(base)]
HOSTILE = st.one_of(
    VALUES,
    st.sampled_from(
        [
            0, -1, 1, 2, 1e-300, 1e300, 5e-324, -0.0, float("inf"), float("nan"), 2**31, 2**63 - 1, 2**63, 10**30,
            10**400, "1e3", "1e-320", "", " ", "../..", "/", "\0", "x" * 10_000, [], {}, [[]], {"name": None},
            {"kind": "inf"}, [1, "a"], {"kind": "fixed", "tokens": 10**8}, 10**8, 10**9, True, "inf", "nan", "null",
        ]
    ),
)  # fmt: skip


def attempt(data: Any) -> None:
    """Parse, build, and run until five requests have arrived; only a ValueError of one line may come of it."""

    def stop(arrived: int) -> None:
        if arrived >= 5:
            raise Enough

    try:
        simulate(Scenario.parse(data), progress=stop)
    except Enough:
        pass
    except ValueError as error:
        assert "\n" not in str(error) and str(error)


@pytest.mark.parametrize("base", BASES, ids=["synthetic", "trace", "mix", "closed"])
def test_the_scenarios_to_be_damaged_are_whole(base: dict[str, Any]) -> None:
    """Else the mutations below would test nothing."""
    assert len(simulate(Scenario.parse(base)).recorder.requests) == 4


@given(place=st.sampled_from(PLACES), value=HOSTILE)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_one_hostile_value(place: tuple[int, tuple[Any, ...]], value: Any) -> None:
    """Any value of a good scenario replaced by any other."""
    number, path = place
    data = copy.deepcopy(BASES[number])
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    attempt(data)


@given(place=st.sampled_from(PLACES), key=st.text(max_size=10), value=VALUES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_one_key_too_many(place: tuple[int, tuple[Any, ...]], key: str, value: Any) -> None:
    """A key that was not there, anywhere."""
    number, path = place
    data = copy.deepcopy(BASES[number])
    inner: Any = data
    for step in path:
        if not isinstance(inner[step], dict | list):
            break
        inner = inner[step]
    if isinstance(inner, dict):
        inner[key] = value
    attempt(data)


@given(VALUES)
def test_anything_at_all(value: Any) -> None:
    """A value that never was a scenario."""
    try:
        Scenario.parse(value)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError("no random value is a scenario")


@given(st.one_of(st.text(max_size=80), st.text("{}[]:&*!-#|>'\"\n abc01.", max_size=80)))
def test_any_setting(text: str) -> None:
    """--set with any text changes the mapping or raises one line."""
    data = copy.deepcopy(BASES[0])
    try:
        override(data, text)
    except ValueError as error:
        assert "\n" not in str(error)


@given(st.text("{}[]:&*!-#|>'\"\n abc01.", max_size=80))
def test_any_value_of_a_setting(text: str) -> None:
    """Whatever is on the right of the sign, YAML's tricks included."""
    data = copy.deepcopy(BASES[0])
    try:
        override(data, f"kv.{'mode'}={text}")
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        attempt(data)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file(tmp_path: Path, content: bytes) -> None:
    """Bytes that call themselves a scenario."""
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    try:
        Scenario.load(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
