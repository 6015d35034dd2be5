"""The page of a run: the folder that ``decodesim run --out`` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.plots import latencies, latencies_table, phase_bars, phase_bars_table, timeline_table, timelines
from analysis.report.intervals import mean_and_percentiles
from analysis.report.page import Html, Page, cards, chart, element, joined, picture, preformatted, table
from analysis.report.read import read_json, read_parquet, read_text
from analysis.verdict import sentence

__all__ = ["flattened", "run_page", "scenario_section"]

METRICS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}
STATISTICS = ("mean", "p50", "p90", "p99", "max")
REQUESTS = ["id", "arrival_ns", "status", "prompt_tokens", "output_tokens", "queue_ms", *METRICS, "preemptions"]
ROUNDS = ["replica", "start_ns", "batch", "waiting", "kv_bytes"]
SLOWEST = 200


def run_page(folder: Path, most_rows: int) -> Page:
    """Answer, numbers, latencies with intervals, where time went, timelines, the slowest requests, the scenario."""
    found = read_json(folder / "summary.json")
    requests, rounds = (
        read_parquet(folder / "requests.parquet", REQUESTS),
        read_parquet(folder / "rounds.parquet", ROUNDS),
    )
    asked, origin, resolved = scenario_section(folder)
    sections = [
        ("In numbers", cards(_headline(found))),
        ("Latency", _latency(found, requests, most_rows)),
        *([("Promises", _promises(found, most_rows))] if found["slo"] else []),
        ("Where the time went", _phases(found, most_rows)),
        ("Over time", _over_time(rounds)),
        ("The slowest requests", _slowest(requests, most_rows)),
        ("Everything measured", table(["what", "value"], list(flattened(found)), most_rows)),
        *resolved,
    ]
    warnings = [] if found["complete"] else ["The run is not complete: what came before it stopped is shown."]
    title = "Run: " + (" on ".join(line.partition(": ")[2] for line in asked[:2]) or folder.name)
    return Page(title, sentence(found), asked, [*warnings, *map(str, found["warnings"])], sections, origin)


def scenario_section(folder: Path) -> tuple[list[str], list[str], list[tuple[str, Html]]]:
    """(what was asked, lines about versions, the section with the resolved scenario), as far as the folder has one."""
    path = folder / "scenario.yaml"
    if not path.is_file():
        return [], [], []
    text = read_text(path)
    origin = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    resolved = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return list(_asked(text)), origin, [("The scenario as resolved", preformatted(resolved))]


def _asked(text: str) -> Iterator[str]:
    """The top keys of the scenario that say what was asked, read line by line: nothing in it is built."""
    for key in ("model", "hardware", "policy", "variants", "workload", "replicas", "slo"):
        if said := _key(text, key):
            yield f"{key}: {said}"


def _key(text: str, key: str) -> str:
    """What stands at a top key of block-style YAML, in one line."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(f"{key}:")), None)
    if start is None:
        return ""
    below = []
    for line in lines[start + 1 :]:
        if line and not line.startswith((" ", "-")):
            break
        below.append(line.strip())
    first = lines[start].partition(":")[2].strip()
    said = first or ", ".join(line for line in below if not line.endswith((": null", ": []", ": {}")))
    return "" if said in ("null", "[]", "{}") else said


def _headline(found: Mapping[str, Any]) -> dict[str, object]:
    latency, accepted = found["latency"], found["acceptance"]
    return {
        "requests finished": found["requests"]["finished"],
        "output tokens per second": found["throughput"]["output_tokens_per_s"],
        "TTFT p99 (ms)": latency["ttft_ms"]["p99"],
        "TPOT p99 (ms)": latency["tpot_ms"]["p99"],
        "goodput (requests/s)": (found["goodput"] or {}).get("requests_per_s"),
        "tokens a decode round": accepted["mean_accepted_length"] if accepted["drafted_tokens"] else None,
        "matrix rate in use (MFU)": found["utilisation"]["mfu"],
        "bandwidth in use (MBU)": found["utilisation"]["mbu"],
        "joules per output token": found["energy"]["joules_per_output_token"],
        "USD per million output tokens": found["cost"]["usd_per_million_output_tokens"],
    }


def _latency(found: Mapping[str, Any], requests: Mapping[str, Any], most_rows: int) -> Html:
    rows = [[f"{name} (ms)", *(found["latency"][key][s] for s in STATISTICS)]
            for key, name in {**METRICS, "itl_ms": "ITL"}.items()]  # fmt: skip
    finished = requests["status"] == "finished"
    samples = {name: requests[key][finished] for key, name in METRICS.items()}
    cdf = latencies_table(samples)
    limits = {METRICS[one["metric"]]: float(one["limit"]) for one in found["slo"] if one["metric"] in METRICS}
    still = picture(latencies(cdf, limits), "Share of requests within so many milliseconds, a line for each metric")
    lines = {name: (cdf["ms"][cdf["metric"] == name], cdf["share"][cdf["metric"] == name] * 100) for name in samples}
    drawn = chart(lines, "milliseconds", "share within (%)", still, steps=True, log_x=True)
    return joined(table(["", *STATISTICS], rows, most_rows), drawn, _intervals(samples, most_rows))


def _intervals(samples: Mapping[str, Any], most_rows: int) -> Html:
    rows = [[name, *row] for name, values in samples.items() for row in mean_and_percentiles(values)]
    if not rows:
        return element("p", "Fewer than 30 requests finished: no intervals.", kind="note")
    note = (
        "95 % intervals of finished requests, from blocks of consecutive ones drawn again: how much this run's numbers "
        "would move under other luck of the same kind. What the model leaves out is not in them."
    )
    return joined(table(["metric", "statistic", "ms", "low", "high"], rows, most_rows), element("p", note, kind="note"))


def _promises(found: Mapping[str, Any], most_rows: int) -> Html:
    rows = []
    for one in found["slo"]:
        name = METRICS.get(one["metric"], one["metric"])
        rows.append([name, one["percentile"], one["limit"], one["value"], "met" if one["met"] else "missed"])
    return table(["metric", "percentile", "at most (ms)", "was (ms)", ""], rows, most_rows)


def _phases(found: Mapping[str, Any], most_rows: int) -> Html:
    if not found["phases"]:
        return element("p", "Nothing ran.")
    bars = picture(phase_bars(phase_bars_table(found["phases"])), "Seconds of each kind of round by cause")
    rows = [[name, one["seconds"], one["rounds"], one["mean_batch"], one["mfu"], one["mbu"], one["bound_by"]]
            for name, one in found["phases"].items()]  # fmt: skip
    return joined(bars, table(["phase", "seconds", "rounds", "mean batch", "MFU", "MBU", "bound by"], rows, most_rows))


def _over_time(rounds: Mapping[str, Any]) -> Html:
    over = timeline_table(rounds)
    if not len(over["second"]):
        return element("p", "Nothing ran.")
    names = {"batch": "decoding sequences", "waiting": "waiting requests", "kv_GB": "KV memory (GB)"}
    still = picture(timelines(over), "Batch, queue and KV memory over time")
    lines = {label: (over["second"], over[name]) for name, label in names.items()}
    return chart(lines, "time (s)", "sequences, requests, GB", still, steps=True)


def _slowest(requests: Mapping[str, Any], most_rows: int) -> Html:
    order = np.argsort(-np.ma.filled(np.ma.asarray(requests["e2el_ms"], dtype=np.float64), -1.0), kind="stable")
    names = ["id", "arrival_s", *REQUESTS[2:]]
    columns = {**requests, "arrival_s": requests["arrival_ns"] * 1e-9}
    rows = [[_known(columns[name][i]) for name in names] for i in order[:SLOWEST]]
    return table(names, rows, most_rows)


def _known(value: Any) -> object:
    return None if value is np.ma.masked else value.item() if hasattr(value, "item") else value


def flattened(value: Mapping[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Nested values as (path, value); lists and what lies deeper than eight levels in one piece."""
    for key, inner in value.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(inner, Mapping) and depth < 8:
            yield from flattened(inner, path, depth + 1)
        elif isinstance(inner, Mapping | list):
            yield path, str(inner)[:1000]
        else:
            yield path, inner
