"""The request table: a row per request that arrived, sorted by id, with the metrics of ``vllm bench serve``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.fleet import group_of, tokens_a_round
from analysis.frames import Columns, Run, masked
from analysis.reuse import cached_columns
from sim.account import request_joules

__all__ = ["FINISHED", "STATUS", "request_columns"]

STATUS = ("finished", "rejected", "failed", "partial")  # by the recorder's number
FINISHED, REJECTED = 0, 1
REASONS = ("never", "rate", "full", "queue")  # by the gateway's number
MS = 1e-6  # milliseconds in a nanosecond


def request_columns(run: Run, joules: Any = None) -> Columns:
    """Columns of ``requests.parquet`` (docs/results.md), each of shape [requests]; ``joules`` by id, where known."""
    table = run.recorder.requests.frame()
    order = np.argsort(table["id"], kind="stable")
    rows = {name: np.ascontiguousarray(column[order]) for name, column in table.items()}
    return {
        "id": rows["id"],
        "arrival_ns": rows["arrival_ns"],
        **_times(rows),
        "prompt_tokens": rows["prompt"],
        "output_tokens": rows["output"],
        "samples": rows["samples"],
        **cached_columns(run, rows),
        "rounds": rows["rounds"],
        "drafted_tokens": rows["drafted"],
        "accepted_tokens": rows["accepted"],
        "preemptions": rows["preemptions"],
        "replica": rows["replica"],
        "joules": _joules(run, rows["id"]) if joules is None else joules,
        "status": np.array(STATUS)[rows["status"]],
        "reason": _reasons(run, rows),
        "group": group_of(run, rows["replica"]),
        "retries": rows["retries"],
        "tenant": masked(rows["tenant"], rows["tenant"] < 0),
        "priority": rows["priority"],
        "session": masked(rows["session"], rows["session"] < 0),
    }


def _reasons(run: Run, rows: dict[str, Any]) -> NDArray[np.str_]:
    """Why a request was rejected, in the gateway's words; ``never``: no replica could ever serve it."""
    at = np.where(rows["status"] == REJECTED, 0, -1)
    refused = run.recorder.refused.frame()
    at[np.searchsorted(rows["id"], refused["request"])] = refused["reason"]
    return np.array([*REASONS, ""])[at]


def _times(rows: dict[str, Any]) -> Columns:
    """TTFT = first token - arrival, E2EL = finish - arrival, TPOT = (E2EL - TTFT)/(output - 1): vLLM's definitions."""
    arrival, first, finish, output = (rows[n] for n in ("arrival_ns", "first_token_ns", "finish_ns", "output"))
    unfinished, silent = rows["status"] != FINISHED, first < 0
    return {
        "queue_ms": masked((rows["admitted_ns"] - arrival) * MS, rows["admitted_ns"] < 0),
        "first_token_ns": masked(first, silent),
        "finish_ns": masked(finish, unfinished),
        "ttft_ms": masked((first - arrival) * MS, silent),
        "tpot_ms": masked((finish - first) * MS / np.maximum(output - 1, 1), unfinished | (output < 2)),
        "e2el_ms": masked((finish - arrival) * MS, unfinished),
    }


def _joules(run: Run, ids: NDArray[np.int64]) -> Any:
    """Each request's share of its rounds' energy; null where the device's energy is unknown."""
    recorder = run.recorder
    who, joules = request_joules(
        run.accounts,
        recorder.leaps.frame(),
        recorder.chunks.frame(),
        recorder.stays.frame(),
        tokens_a_round(run),
    )
    summed = np.bincount(np.searchsorted(ids, who), joules, len(ids))
    return masked(summed, np.isnan(summed) | np.isnan(run.accounts.idle_W))
