"""A prefix cache against counts that need no simulator: Mooncake's published reuse, hand counts, conservation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import Scenario, simulate
from workloads import models, open_trace

BASE: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "hardware": "h100-sxm",
    "scheduler": {"name": "chunked", "token_budget": 8192, "max_sequences": 1},
    "kv": {"prefix_cache": {"tiers": [{"name": "pool", "GB": 1e9, "GBps": 1e9}]}},
}


def scenario(workload: dict[str, Any], **more: Any) -> Scenario:
    """A scenario on one H100 whose cache forgets nothing, unless said otherwise."""
    return Scenario.parse({**BASE, "workload": workload, **more})


def by_hand(name: str, block: int, kv_block: int) -> tuple[int, int]:
    """(Tokens found, prompt tokens) of a trace read once through, nothing forgotten, one token left to read.

    The last block of a prompt is known as far as it has whole KV blocks; a prompt finds it that has as much of it.
    """
    known: dict[int, int] = {}
    found = asked = 0
    for chunk in open_trace(name).chunks():
        assert chunk.hash_ids is not None
        for ids, prompt in zip(chunk.hash_ids, chunk.prompt_tokens.tolist(), strict=True):
            asked += prompt
            most = (prompt - 1) // kv_block * kv_block
            for place, number in enumerate(ids.tolist()):
                tokens = known.get(number, 0)
                if not 0 < tokens <= most - place * block:
                    break
                found += tokens
            for place, number in enumerate(ids.tolist()):
                read = min(block, prompt // kv_block * kv_block - place * block)
                known[number] = max(read, known.get(number, 0))
    return found, asked


@pytest.mark.parametrize(
    "name, share", [("mooncake-synthetic", 65.1), pytest.param("mooncake-conversation", 37.4, marks=pytest.mark.slow)]
)
def test_an_infinite_cache_finds_what_mooncake_says(name: str, share: float, tmp_path: Path) -> None:
    """One at a time, with nothing forgotten, hit tokens are those of a count by hand: 65.1 and 37.4 % of the input."""
    config = models.find("llama-3.1-8b").config
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 20}))
    result = simulate(scenario({"trace": name}, model=str(tmp_path / "config.json")))
    found, asked = by_hand(name, 512, 16)
    section = result.metrics["prefix_cache"]
    assert result.metrics["requests"]["finished"] == result.metrics["requests"]["arrived"]
    assert section["prompt_tokens"] == asked
    assert section["hit_tokens"] == found
    assert round(100 * section["hit_rate"], 1) == share


LENGTHS = {"prompt": 1, "output": 1, "requests": 4}
SLOW = {"rate": 0.05, "arrivals": "uniform", "output": 50, "requests": 12}


def found(result: Any) -> list[int]:
    """Tokens found by each request, in order of id."""
    return [int(n) for n in result.requests["cached_tokens"]]


def test_a_shared_prefix_is_read_once_a_group() -> None:
    """The first of each group reads all 1000 tokens; later ones find the 62 whole blocks of 16 and read the rest."""
    said = {**SLOW, "prompt": 300, "shared_prefix": {"tokens": 1000, "groups": 3}}
    result = simulate(scenario(said, kv={"prefix_cache": {}}))
    assert sorted(found(result)) == [0] * 3 + [992] * 9
    assert set(result.requests["prompt_tokens"]) == {1300}
    chunks = result.recorder.chunks.frame()
    assert chunks["new"].sum() == 12 * 1300 - 9 * 992, "what is found is not read"
    assert (chunks["cached"] == 992).sum() == 9, "and what is read attends to it"


def test_a_turn_finds_all_that_was_said() -> None:
    """Of a conversation everything in whole blocks but the last answer's last token, which nobody has cached."""
    said = {**SLOW, "prompt": 30, "sessions": {"turns": 4, "think_time_s": 2.0}}
    result = simulate(scenario(said, kv={"prefix_cache": {}}))
    prompts = [30, 110, 190, 270]
    assert list(result.requests["prompt_tokens"]) == prompts * 3
    assert found(result) == [0, *((p - 30 - 1) // 16 * 16 for p in prompts[1:])] * 3
    arrival, finish = result.requests["arrival_ns"], result.requests["finish_ns"]
    gaps = {int(arrival[i] - finish[i - 1]) for i in range(12) if i % 4}
    assert gaps == {2_000_000_000}, "a turn arrives the think time after the answer before it"


def test_first_come_first_served_goes_by_arrival() -> None:
    """A later turn of an old conversation has a lower number than a first turn that arrived before it, and waits."""
    turns = {"turns": 2, "think_time_s": 1e-6}
    said = {"rate": "inf", "prompt": 20_000, "output": 4, "requests": 40, "sessions": turns}
    result = simulate(scenario(said, kv={}))
    admitted = np.argsort(result.recorder.requests.frame()["admitted_ns"])
    ids = result.recorder.requests.frame()["id"][admitted]
    assert all(ids[:20] % 2 == 0) and all(ids[20:] % 2 == 1)


def test_each_token_found_costs_what_the_engine_says() -> None:
    """Two equal prompts: the second begins 6.2 us a token found later than it would if finding were free."""
    said = {**SLOW, "requests": 2, "prompt": 16, "output": 2, "shared_prefix": {"tokens": 4096}}
    queue = {}
    for engine in ("vllm-v1", "ideal"):
        result = simulate(scenario(said, engine=engine, kv={"prefix_cache": {}}))
        rows, hits = result.recorder.requests.frame(), result.recorder.hits.frame()
        assert hits["tokens"].tolist() == [4096]
        starts = result.recorder.leaps.frame()["start_ns"]
        second = rows["admitted_ns"][rows["id"] == 1][0]
        queue[engine] = int(starts[starts >= second][0] - second)
    assert queue == {"vllm-v1": round(4096 * 6.2e3), "ideal": 0}


def test_a_load_takes_bytes_over_bandwidth_and_waits_its_turn() -> None:
    """Blocks pushed out to host memory come back at 50 GB/s after 100 us, one load behind another."""
    host = {"name": "host", "GB": 100, "GBps": 50, "latency_us": 100}
    kv = {"memory_fraction": 0.25, "prefix_cache": {"tiers": [host]}}
    said = {"rate": 1e3, "prompt": 64, "output": 2, "requests": 60, "shared_prefix": {"tokens": 8000, "groups": 8}}
    result = simulate(scenario(said, kv=kv, scheduler={"name": "chunked", "token_budget": 8192, "max_sequences": 8}))
    hits = result.recorder.hits.frame()
    loads = {name: column[hits["level"] == 1] for name, column in hits.items()}
    assert len(loads["tokens"]) > 3
    token_bytes = 2 * 32 * 8 * 128 * 2  # keys and values, layers, heads, width, bf16
    seconds = 100e-6 + loads["tokens"] * token_bytes / 50e9
    assert (loads["end_ns"] - loads["start_ns"]).tolist() == [round(s * 1e9) for s in seconds.tolist()]
    assert (loads["start_ns"][1:] >= loads["end_ns"][:-1]).all() and (loads["start_ns"] > loads["asked_ns"]).any()
    first = result.requests["first_token_ns"].to_numpy()
    assert (first[loads["request"]] > loads["end_ns"]).all()


@pytest.mark.parametrize("evict", ["lru", "fifo", "lfu"])
def test_tokens_and_bytes_are_conserved(evict: str) -> None:
    """Under pressure every prompt token is found or read, nobody holds more than there is, everybody ends."""
    kv = {"memory_fraction": 0.25, "prefix_cache": {"evict": evict, "tiers": [{"name": "host", "GB": 2, "GBps": 50}]}}
    said = {"rate": 20, "prompt": 500, "output": 60, "requests": 300, "shared_prefix": {"tokens": 2000, "groups": 30}}
    result = simulate(scenario(said, kv=kv, scheduler={"name": "chunked", "token_budget": 2048, "max_sequences": 64}))
    rows, hits, chunks = (getattr(result.recorder, name).frame() for name in ("requests", "hits", "chunks"))
    assert (rows["status"] == 0).all()
    if not rows["preemptions"].sum():
        read = np.bincount(chunks["request"], chunks["new"]) + np.bincount(hits["request"], hits["tokens"], 300)
        assert (read == 2500).all()
    section = result.metrics["prefix_cache"]
    assert section["hit_tokens"] == sum(level["hit_tokens"] for level in section["levels"]) == sum(found(result))
    assert all(level["evicted_blocks"] > 0 for level in section["levels"])
    peak = int(result.recorder.leaps.frame()["kv_bytes"].max())
    assert peak <= result.built.setup.kv.capacity_bytes
    assert sum(result.requests["cached_in_memory"]) == section["levels"][0]["hit_tokens"]


@pytest.mark.parametrize(
    "where",
    [{}, {"replicas": 2, "router": "prefix_affinity"}, {"pools": {"link_GBps": 5}}],
    ids=["one", "two", "pools"],
)
def test_leaping_through_conversations_is_stepping_through_them(where: dict[str, Any]) -> None:
    """Conversations, shared prefixes and tiers tell the same with one event a round."""
    kv = {"memory_fraction": 0.25, "prefix_cache": {"tiers": [{"name": "host", "GB": 1, "GBps": 5}]}}
    said = {
        "rate": 4, "prompt": 300, "output": 40, "requests": 120, "shared_prefix": {"tokens": 500, "groups": 3},
        "sessions": {"turns": 3, "think_time_s": 0.5, "think_time_exponential": True},
    }  # fmt: skip
    case = scenario(said, kv=kv, scheduler={"name": "chunked", "token_budget": 2048, "max_sequences": 64}, **where)
    leaped, stepped = simulate(case), simulate(case, stepping=True)
    for name in ("requests", "hits", "levels"):
        assert getattr(leaped.recorder, name).array().tolist() == getattr(stepped.recorder, name).array().tolist()


def test_reading_prompts_in_a_pool_of_their_own() -> None:
    """A prefill pool finds prefixes too: the same tokens as one replica that does both, and everybody ends."""
    said = {**SLOW, "prompt": 300, "shared_prefix": {"tokens": 1000}}
    pools = {"link_GBps": 50, "prefill": {"replicas": 1}, "decode": {"replicas": 1}}
    result = simulate(scenario(said, kv={"prefix_cache": {}}, pools=pools))
    assert found(result) == [0] + [992] * 11 and result.metrics["requests"]["finished"] == 12


def test_a_trace_that_tells_nothing_is_warned_about() -> None:
    """Azure's traces have no ids: nothing is found, and the run says why."""
    result = simulate(scenario({"trace": "azure-2023-code", "requests": 20}))
    assert result.metrics["prefix_cache"]["hit_rate"] == 0
    assert any("Nothing ever entered the prefix cache" in line for line in result.metrics["warnings"])


def test_without_a_cache_content_changes_nothing() -> None:
    """The same trace with and without ids runs alike while nobody keeps blocks."""
    said = {"rate": 3, "prompt": 1200, "output": 40, "requests": 50}
    plain = simulate(scenario(said, kv={}))
    told = simulate(scenario({**said, "prompt": 200, "shared_prefix": {"tokens": 1000}}, kv={}))
    assert plain.recorder.requests.array().tolist() == told.recorder.requests.array().tolist()
    assert plain.metrics["prefix_cache"] is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"workload": {**SLOW, "prompt": 1}}, "kv.prefix_cache: the workload tells nothing"),
        ({"kv": {"prefix_cache": {"evict": "lifo"}}}, "kv.prefix_cache.evict: 'lifo'"),
        ({"kv": {"prefix_cache": {}, "block_tokens": 24}}, "512 tokens are no multiple of kv.block_tokens, 24"),
        ({"kv": {"prefix_cache": {}, "mode": "reserved"}}, "not with kv.mode reserved"),
        ({"kv": {"prefix_cache": {"tiers": [{"name": "a", "GB": 1, "GBps": 0}]}}}, "kv.prefix_cache.tiers.0.GBps: 0"),
        ({"kv": {"prefix_cache": {"tiers": [{"name": "memory", "GB": 1, "GBps": 1}]}}}, "names must differ"),
        ({"model": "gemma-2-2b"}, "a sliding window"),
        ({"workload": {**SLOW, "prompt": 1, "shared_prefix": {"tokns": 5}}}, "shared_prefix: 'tokns': unknown key"),
        ({"workload": {**SLOW, "prompt": 1, "sessions": {"turns": 0}}}, "sessions: turns: 0: must be"),
        ({"workload": {"concurrency": 2, **LENGTHS, "sessions": {"turns": 2}}}, "sessions: not in a closed loop"),
        ({"workload": {"mix": [{**SLOW, "prompt": 1, "sessions": {"turns": 2}}]}}, "mix[0]: sessions: not in a mix"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(change: dict[str, Any], words: str) -> None:
    """Each mistake names its key and its value before the clock starts."""
    base = {**BASE, "kv": {"prefix_cache": {}}, "workload": {"trace": "mooncake-synthetic", "requests": 5}}
    with pytest.raises(ValueError) as error:
        simulate(Scenario.parse({**base, **change}))
    assert words in str(error.value) and "\n" not in str(error.value)
