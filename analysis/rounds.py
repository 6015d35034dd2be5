"""The round table: a row per leap of ``n_rounds`` rounds with the same batch, and a row per round on demand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Columns, Run, masked

__all__ = ["PHASES", "expand_rounds", "phase_numbers", "round_columns"]

PHASES = ("prefill", "decode", "mixed")
KEPT = ("replica", "start_ns", "duration_ns")


def round_columns(run: Run) -> Columns:
    """Columns of ``rounds.parquet`` (docs/results.md), each of shape [leaps]."""
    leaps, accounts = run.recorder.leaps.frame(), run.accounts
    seats, counts = leaps["seats"], accounts.counts
    hbm_bytes = counts["weight_bytes"] + counts["kv_bytes"] + counts["activation_bytes"]
    return {
        **{name: np.ascontiguousarray(leaps[name]) for name in KEPT},
        "n_rounds": np.ascontiguousarray(leaps["rounds"]),
        "phase": np.array(PHASES)[phase_numbers({"prefill_tokens": accounts.prefill_tokens, "batch": seats})],
        "batch": np.ascontiguousarray(seats),
        "context": masked(accounts.context, seats == 0),
        "prefill_tokens": accounts.prefill_tokens,
        **{name: np.ascontiguousarray(leaps[name]) for name in ("waiting", "running", "kv_bytes")},
        **{f"{cause}_s": seconds for cause, seconds in accounts.seconds.items()},
        "flops": counts["flops"],
        "hbm_bytes": hbm_bytes,
        "joules": masked(accounts.joules, np.isnan(accounts.joules)),
    }


def phase_numbers(rounds: Mapping[str, Any]) -> NDArray[np.int64]:
    """Place in PHASES of each leap, by whether prompts are read and whether sequences decode."""
    return np.where(rounds["prefill_tokens"] == 0, 1, np.where(rounds["batch"] == 0, 0, 2))


def expand_rounds(frame: Mapping[str, Any]) -> Columns:
    """A row per round: what adds up is divided evenly over a leap's rounds, whole nanoseconds exactly.

    ``frame``: columns of the round table, or that table as a data frame. The rounds of a leap differ by the tokens that
    the batch gained meanwhile, which an even split leaves out; run with ``stepping`` to have every round measured.
    """
    columns = {str(name): np.ma.asarray(frame[name]) for name in frame}
    n = np.asarray(columns["n_rounds"])
    out: Columns = {name: np.repeat(column, n) for name, column in columns.items()}
    shares = [name for name in columns if name.endswith("_s") or name in ("flops", "hbm_bytes", "joules")]
    out |= {name: out[name] / np.repeat(n, n) for name in shares}
    place = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
    whole = np.repeat(np.asarray(columns["duration_ns"]), n)
    ends = [whole * (place + extra) // np.repeat(n, n) for extra in (0, 1)]
    out |= {"start_ns": out["start_ns"] + ends[0], "duration_ns": ends[1] - ends[0], "n_rounds": np.ones_like(place)}
    return {name: _plain(column) for name, column in out.items()}


def _plain(column: Any) -> Any:
    return column if np.ma.is_masked(column) else np.ma.getdata(column)
