"""``trace.json``: the run as a Chrome trace (open in ui.perfetto.dev or chrome://tracing).

Format: "Trace Event Format" (Chromium project): complete events "X", counters "C", metadata "M"; microseconds.
A replica is a process with one track of rounds, coloured by phase, and counters for batch, KV memory and queue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.fleet import group_of
from analysis.frames import Run
from sim.account import pool_places

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
    n = len(rounds["n_rounds"])
    rows = np.arange(0, n, every(run, n, most_events))
    return drawn(run, {name: rounds[name][rows] for name in SHOWN}, n, every(run, n, most_events))


def every(run: Run, leaps: int, most_events: int = TRACE_EVENTS) -> int:
    """Every how manyth leap is shown."""
    replicas = len(pool_places(run.built.pools, run.recorder))
    return max(1, -(-leaps * PER_LEAP // max(1, most_events - 2 * replicas)))


def drawn(run: Run, shown: Mapping[str, Any], n: int, step: int) -> str:
    """The trace of the leaps that are shown, columns SHOWN, which are every ``step``-th of ``n``."""
    groups = group_of(run, np.arange(len(pool_places(run.built.pools, run.recorder)))).tolist()
    replicas = len(groups)
    events = [line for r in range(replicas) for line in _names(r, groups[r])]
    for replica, phase, start_ns, duration_ns, *rest in zip(*(shown[name].tolist() for name in SHOWN), strict=True):
        events.append(EVENTS.format(replica, phase, COLOURS[phase], start_ns / 1e3, duration_ns / 1e3, *rest))
    head = json.dumps({"metadata": _about(len(shown["replica"]), n, step), "displayTimeUnit": "ms"})[:-1]
    return head + ', "traceEvents": [\n' + ",\n".join(events) + "\n]}\n"


def _about(rows: int, n: int, step: int) -> dict[str, object]:
    said = "every leap is shown" if step == 1 else f"sampled: every {step}th of {n} leaps is shown, gaps are not idle"
    return {"source": "decodesim", "leaps": n, "leaps_shown": rows, "sampling": said}


def _names(replica: int, group: str) -> list[str]:
    names = (("process_name", f"replica {replica} {group}".rstrip()), ("thread_name", "rounds"))
    return [
        json.dumps({"ph": "M", "pid": replica, "tid": 0, "name": kind, "args": {"name": name}}) for kind, name in names
    ]
