"""``summary.json``: everything that a run is asked for, in one nested mapping of plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import usage
from analysis.frames import Columns, Run, known
from analysis.latency import Statistics, describe, describe_weighted
from analysis.promise import LIMITED, judge, kept
from analysis.warnings import warnings_of

__all__ = ["metrics"]


def metrics(run: Run) -> dict[str, Any]:
    """Sections and keys as docs/results.md defines them; None where a value does not exist."""
    requests = run.request_columns
    end_s = _end_s(run)
    start_s = min(run.scenario.warmup_s, end_s)
    counted = requests["arrival_ns"] >= start_s * 1e9
    chosen = {name: column[counted] for name, column in requests.items()}
    finished = requests["status"] == "finished"
    totals = _tokens(requests, finished)
    accepted = _acceptance(requests)
    return {
        "complete": run.complete,
        "requests": _statuses(run, requests),
        "duration_s": end_s,
        "window_s": [start_s, end_s],
        "latency": _latency(run, chosen),
        "queue_ms": describe(known(chosen, "queue_ms")),
        "throughput": _throughput(requests, finished, start_s, end_s),
        "slo": judge(chosen, run.scenario.slo),
        "goodput": _goodput(chosen, run.scenario.slo, end_s - start_s),
        "utilisation": usage.utilisation(run, end_s),
        "phases": usage.phases(run),
        "headroom": usage.headroom(run, end_s),
        "acceptance": accepted,
        "kv": usage.kv(run, accepted["mean_accepted_length"] or 1.0),
        "energy": usage.energy(run, end_s, totals[1]),
        "clock": usage.clock(run),
        "cost": usage.money(run, end_s, *totals),
        "warnings": warnings_of(run),
    }


def _end_s(run: Run) -> float:
    """From the start of the clock to the end of the last round or the last finish."""
    rounds, finish = run.round_columns, known(run.request_columns, "finish_ns")
    return float(max((rounds["start_ns"] + rounds["duration_ns"]).max(initial=0), finish.max(initial=0.0))) * 1e-9


def _statuses(run: Run, requests: Columns) -> dict[str, Any]:
    counts = {name: int((requests["status"] == name).sum()) for name in ("finished", "rejected", "failed", "partial")}
    preemptions = int(requests["preemptions"].sum())
    dropped = {reason: int(n) for reason, n in sorted(run.dropped.items())}
    return {"arrived": len(requests["id"]), **counts, "preemptions": preemptions, "dropped_rows": dropped}


def _latency(run: Run, chosen: Columns) -> dict[str, Statistics]:
    """TTFT, TPOT and E2EL over requests that have them, ITL over all gaps between tokens of the run."""
    gaps, weights = run.recorder.gaps.weighted()
    itl = describe_weighted(gaps * 1e-6, weights)
    table = {name: describe(known(chosen, name)) for name in LIMITED}
    return {"ttft_ms": table["ttft_ms"], "tpot_ms": table["tpot_ms"], "itl_ms": itl, "e2el_ms": table["e2el_ms"]}


def _tokens(requests: Columns, rows: NDArray[np.bool_]) -> tuple[int, int]:
    """(prompt, output) tokens of the requests ``rows``; every sample's output counts, the prompt once."""
    output = requests["output_tokens"] * requests["samples"]
    return int(requests["prompt_tokens"][rows].sum()), int(output[rows].sum())


def _throughput(requests: Columns, finished: NDArray[np.bool_], start_s: float, end_s: float) -> dict[str, Any]:
    """Requests that finished in the window, and their tokens, by its length."""
    rows = finished & (np.ma.filled(requests["finish_ns"], -1) >= start_s * 1e9)
    prompt, output = _tokens(requests, rows)
    seconds = end_s - start_s
    rate = 1 / seconds if seconds > 0 else 0.0
    return {
        "completed": int(rows.sum()),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "requests_per_s": int(rows.sum()) * rate,
        "output_tokens_per_s": output * rate,
        "total_tokens_per_s": (prompt + output) * rate,
    }


def _goodput(chosen: Columns, slo: Any, seconds: float) -> dict[str, float] | None:
    """Requests a second that met every objective, and their share of those sent; None without objectives."""
    good, sent = int(kept(chosen, slo).sum()), len(chosen["id"])
    if not sent or all(getattr(slo, name) is None for name in LIMITED):
        return None
    return {"requests_per_s": good / seconds if seconds else 0.0, "attainment": good / sent}


def _acceptance(requests: Columns) -> dict[str, Any]:
    """Tokens a decode round before clipping, 1 + accepted/rounds, and the share of drafted tokens kept."""
    rounds, drafted, accepted = (int(requests[n].sum()) for n in ("rounds", "drafted_tokens", "accepted_tokens"))
    return {
        "mean_accepted_length": 1 + accepted / rounds if rounds else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "rounds": rounds,
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
    }
