"""``bench.json``: the run in the layout that ``vllm bench serve --save-result`` writes, for tools that read that.

Keys and definitions: vllm/benchmarks/serve.py. Percentiles are vLLM's default (99) and the medians; seconds in the
detailed lists, milliseconds elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.frames import Run

__all__ = ["bench"]

STATISTICS = {"mean": "mean", "median": "p50", "std": "std", "p99": "p99"}


def bench(run: Run, *, date: str = "", detailed: bool = False) -> dict[str, Any]:
    """The mapping that vLLM would save at ``date`` (YYYYMMDD-HHMMSS); ``detailed`` adds input_lens, output_lens, ttfts.

    itls would need every token of every request; a leap keeps their distribution only, so itls is left empty.
    """
    found, scenario = run.metrics, run.scenario
    throughput, goodput, counts = found["throughput"], found["goodput"], found["requests"]
    start_s, end_s = found["window_s"]
    out = {
        "date": date,
        "endpoint_type": "decodesim",
        "backend": "decodesim",
        "label": None,
        "model_id": scenario.model,
        "tokenizer_id": scenario.model,
        "num_prompts": counts["arrived"],
        **_asked(scenario.workload),
        "duration": end_s - start_s,
        "completed": throughput["completed"],
        "failed": counts["arrived"] - counts["finished"],
        "total_input_tokens": throughput["prompt_tokens"],
        "total_output_tokens": throughput["output_tokens"],
        "request_throughput": throughput["requests_per_s"],
        "request_goodput": goodput["requests_per_s"] if goodput else None,
        "output_throughput": throughput["output_tokens_per_s"],
        "total_token_throughput": throughput["total_tokens_per_s"],
    }
    for metric, table in found["latency"].items():
        out |= {f"{ours}_{metric}": table[theirs] or 0.0 for ours, theirs in STATISTICS.items()}
    return out | (_lists(run) if detailed else {})


def _asked(workload: dict[str, Any]) -> dict[str, Any]:
    """request_rate ("inf" as a word), burstiness and max_concurrency, as far as the traffic was given that way."""
    rate = workload.get("rate")
    endless = rate is None or str(rate) in ("inf", ".inf") or rate == float("inf")
    return {
        "request_rate": "inf" if endless else rate,
        "burstiness": workload.get("burstiness", 1.0),
        "max_concurrency": workload.get("concurrency"),
    }


def _lists(run: Run) -> dict[str, Any]:
    requests = run.request_columns
    ttfts = np.ma.filled(requests["ttft_ms"], 0.0) * 1e-3
    output = np.where(requests["status"] == "finished", requests["output_tokens"], 0)
    return {
        "input_lens": requests["prompt_tokens"].tolist(),
        "output_lens": output.tolist(),
        "ttfts": ttfts.tolist(),
        "itls": [[] for _ in ttfts],
        "errors": ["" if s == "finished" else str(s) for s in requests["status"]],
    }
