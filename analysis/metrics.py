"""``summary.json``: everything that a run is asked for, in one nested mapping of plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import usage
from analysis.classes import classes_section, good_ones, tenants_section
from analysis.energy import energy_section, energy_warnings
from analysis.energy_money import money_section
from analysis.fleet import fleet_section
from analysis.frames import Columns, Run, known
from analysis.latency import Statistics, describe, describe_weighted
from analysis.moves import moves_section
from analysis.promise import LIMITED, judge
from analysis.requests import REASONS
from analysis.reuse import prefix_section, prefix_warnings
from analysis.switching import switch_section
from analysis.warnings import warnings_of

__all__ = ["acceptance_of", "metrics", "statuses", "throughput", "tokens_of"]


def metrics(run: Run) -> dict[str, Any]:
    """Sections and keys as docs/results.md defines them; None where a value does not exist."""
    requests = run.request_columns
    end_s = _end_s(run)
    start_s = min(run.scenario.warmup_s, end_s)
    counted = requests["arrival_ns"] >= start_s * 1e9
    chosen = {name: column[counted] for name, column in requests.items()}
    finished = requests["status"] == "finished"
    totals = tokens_of(requests, finished)
    accepted = acceptance_of(requests)
    energy = energy_section(run, end_s, totals[1])
    prefix_cache = prefix_section(run)
    return {
        "complete": run.complete,
        "requests": statuses(run, requests),
        "duration_s": end_s,
        "window_s": [start_s, end_s],
        "latency": _latency(run, chosen),
        "queue_ms": describe(known(chosen, "queue_ms")),
        "throughput": throughput(requests, finished, start_s, end_s),
        "slo": judge(chosen, run.scenario.slo),
        "goodput": _goodput(run, chosen, end_s - start_s),
        "classes": classes_section(run, chosen, end_s - start_s),
        "tenants": tenants_section(run, chosen, end_s - start_s),
        "fleet": fleet_section(run, end_s),
        "switch": switch_section(run),
        "utilisation": usage.utilisation(run, end_s),
        "phases": usage.phases(run),
        "headroom": usage.headroom(run, end_s),
        "acceptance": accepted,
        "kv": usage.kv(run, accepted["mean_accepted_length"] or 1.0),
        "prefix_cache": prefix_cache,
        "moves": moves_section(run),
        "energy": energy,
        "clock": usage.clock(run),
        "cost": money_section(run, end_s, *totals, kWh=energy["kWh"]),
        "warnings": warnings_of(run) + energy_warnings(run, energy) + prefix_warnings(prefix_cache),
    }


def _end_s(run: Run) -> float:
    """From the start of the clock to the end of the last round or the last finish."""
    rounds, finish = run.round_columns, known(run.request_columns, "finish_ns")
    return float(max((rounds["start_ns"] + rounds["duration_ns"]).max(initial=0), finish.max(initial=0.0))) * 1e-9


def statuses(run: Run, requests: Columns) -> dict[str, Any]:
    """How many requests came, how each ended, and rows of the trace that were no requests."""
    counts = {name: int((requests["status"] == name).sum()) for name in ("finished", "rejected", "failed", "partial")}
    preemptions = int(requests["preemptions"].sum())
    reasons = {word: int((requests["reason"] == word).sum()) for word in REASONS}
    dropped = {reason: int(n) for reason, n in sorted(run.dropped.items())}
    return {"arrived": len(requests["id"]), **counts, "rejected_for": {word: n for word, n in reasons.items() if n},
            "preemptions": preemptions, "dropped_rows": dropped}  # fmt: skip


def _latency(run: Run, chosen: Columns) -> dict[str, Statistics]:
    """TTFT, TPOT and E2EL over requests that have them, ITL over all gaps between tokens of the run."""
    gaps, weights = run.recorder.gaps.weighted()
    itl = describe_weighted(gaps * 1e-6, weights)
    table = {name: describe(known(chosen, name)) for name in LIMITED}
    return {"ttft_ms": table["ttft_ms"], "tpot_ms": table["tpot_ms"], "itl_ms": itl, "e2el_ms": table["e2el_ms"]}


def tokens_of(requests: Columns, rows: NDArray[np.bool_]) -> tuple[int, int]:
    """(prompt, output) tokens of the requests ``rows``; every sample's output counts, the prompt once."""
    output = requests["output_tokens"] * requests["samples"]
    return int(requests["prompt_tokens"][rows].sum()), int(output[rows].sum())


def throughput(requests: Columns, finished: NDArray[np.bool_], start_s: float, end_s: float) -> dict[str, Any]:
    """Requests that finished in the window, and their tokens, by its length."""
    rows = finished & (np.ma.filled(requests["finish_ns"], -1) >= start_s * 1e9)
    prompt, output = tokens_of(requests, rows)
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


def _goodput(run: Run, chosen: Columns, seconds: float) -> dict[str, float] | None:
    """Requests a second that met every objective, and their share of those sent; None without objectives."""
    met, sent = good_ones(run, chosen), len(chosen["id"])
    if not sent or met is None:
        return None
    good = int(met.sum())
    return {"requests_per_s": good / seconds if seconds else 0.0, "attainment": good / sent}


def acceptance_of(requests: Columns) -> dict[str, Any]:
    """Tokens a decode round before clipping, 1 + accepted/rounds, and the share of drafted tokens kept."""
    rounds, drafted, accepted = (int(requests[n].sum()) for n in ("rounds", "drafted_tokens", "accepted_tokens"))
    return {
        "mean_accepted_length": 1 + accepted / rounds if rounds else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "rounds": rounds,
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
    }
