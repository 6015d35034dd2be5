"""``trace.json``: the run as a Chrome trace (open in ui.perfetto.dev or chrome://tracing).

Format: "Trace Event Format" (Chromium project): complete events "X", counters "C", metadata "M"; microseconds.
A replica is a process with one track of rounds, coloured by phase, and counters for batch, KV memory and queue.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Run

__all__ = ["TRACE_EVENTS", "trace"]

TRACE_EVENTS = 20_000
PER_LEAP = 4  # one slice, three counters
COLOURS = {"prefill": "thread_state_iowait", "decode": "thread_state_running", "mixed": "thread_state_runnable"}
EVENTS = (
    '{{"ph":"X","pid":{0},"tid":0,"name":"{1}","cat":"rounds","cname":"{2}","ts":{3:.3f},"dur":{4:.3f},'
    '"args":{{"rounds":{5},"batch":{6},"prefill_tokens":{7}}}}},\n'
    '{{"ph":"C","pid":{0},"tid":0,"name":"batch","ts":{3:.3f},"args":{{"sequences":{6}}}}},\n'
    '{{"ph":"C","pid":{0},"tid":0,"name":"KV memory","ts":{3:.3f},"args":{{"bytes":{9}}}}},\n'
    '{{"ph":"C","pid":{0},"tid":0,"name":"queue","ts":{3:.3f},"args":{{"waiting":{8}}}}}'
)
SHOWN = ("replica", "phase", "start_ns", "duration_ns", "n_rounds", "batch", "prefill_tokens", "waiting", "kv_bytes")


def trace(run: Run, most_events: int = TRACE_EVENTS) -> str:
    """The trace as JSON text with at most about ``most_events`` events: every k-th leap where there are more."""
    rounds = run.round_columns
    replicas = sum(count for _, count in run.built.pools)
    n = len(rounds["n_rounds"])
    step = max(1, -(-n * PER_LEAP // max(1, most_events - 2 * replicas)))
    rows = np.arange(0, n, step)
    events = [line for r in range(replicas) for line in _names(r)]
    for replica, phase, start_ns, duration_ns, *rest in zip(*(rounds[n][rows].tolist() for n in SHOWN), strict=True):
        events.append(EVENTS.format(replica, phase, COLOURS[phase], start_ns / 1e3, duration_ns / 1e3, *rest))
    head = json.dumps({"metadata": _about(rows, n, step), "displayTimeUnit": "ms"})[:-1]
    return head + ', "traceEvents": [\n' + ",\n".join(events) + "\n]}\n"


def _about(rows: NDArray[np.int64], n: int, step: int) -> dict[str, object]:
    said = "every leap is shown" if step == 1 else f"sampled: every {step}th of {n} leaps is shown, gaps are not idle"
    return {"source": "decodesim", "leaps": n, "leaps_shown": len(rows), "sampling": said}


def _names(replica: int) -> list[str]:
    names = (("process_name", f"replica {replica}"), ("thread_name", "rounds"))
    return [
        json.dumps({"ph": "M", "pid": replica, "tid": 0, "name": kind, "args": {"name": name}}) for kind, name in names
    ]
