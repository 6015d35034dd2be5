"""The run in one sentence: was the promise kept, what binds, what binds next."""

from __future__ import annotations

from typing import Any

from analysis.frames import Run

__all__ = ["sentence", "verdict"]

CAUSES = {
    "weights": "reading weights",
    "kv": "reading the KV cache",
    "activations": "moving activations",
    "compute": "compute",
    "onchip": "on-chip bandwidth",
    "link": "the links between devices",
    "overhead": "kernel launches",
    "host": "host time",
}


def verdict(run: Run) -> str:
    """One plain sentence about the run, computed from its summary."""
    return sentence(run.metrics)


def sentence(found: dict[str, Any]) -> str:
    """The same from ``summary.json``."""
    if not found["phases"]:
        return "Nothing ran: no request was served."
    promise = _promise(found)
    if _is_offline(found):
        promise = f"{_job(found)}; {promise[:1].lower()}{promise[1:]}"
    return f"{promise}; {_bound(found)}; {_next(found)}."


def _job(found: dict[str, Any]) -> str:
    """Makespan and bill of an offline job, which are what it was run for."""
    bill = "" if found["cost"]["usd"] is None else f" for ${_figure(found['cost']['usd'])}"
    return f"Finishes {found['requests']['finished']:,} requests in {_figure(found['duration_s'])} s{bill}"


def _is_offline(found: dict[str, Any]) -> bool:
    return bool(found.get("cost", {}).get("offline"))


def _figure(value: float) -> str:
    """Three digits that matter, and no exponent for people."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _promise(found: dict[str, Any]) -> str:
    if not found["slo"]:
        served = f"{found['requests']['finished']:,} requests in {_figure(found['duration_s'])} s"
        return f"Serves {served}; no objective was set"
    kept = [_objective(one) for one in found["slo"] if one["met"]]
    missed = [_objective(one) for one in found["slo"] if not one["met"]]
    if not missed:
        return f"Meets {' and '.join(kept)}"
    return f"Misses {' and '.join(missed)}" + (f", meets {' and '.join(kept)}" if kept else "")


def _objective(one: dict[str, Any]) -> str:
    name = one["metric"].removesuffix("_ms").upper()
    value = "no value" if one["value"] is None else f"{_figure(one['value'])} ms"
    return f"{name} p{one['percentile']:g} <= {one['limit']:g} ms ({value})"


def _bound(found: dict[str, Any]) -> str:
    """What bound the phase that took most of the time, and for how much of it."""
    name, phase = max(found["phases"].items(), key=lambda item: float(item[1]["seconds"]))
    share = phase["seconds_by_cause"][phase["bound_by"]] / phase["seconds"]
    label = {"mixed": "rounds that mix prefill and decode are"}.get(name, f"{name} is")
    return f"{label} bound by {CAUSES[phase['bound_by']]} ({share:.0%} of its time)"


def _next(found: dict[str, Any]) -> str:
    """Of what grows at least with the rate, the resource that is nearest to being used up."""
    if not found["headroom"]:
        return "nothing else was used"
    name, share = max(found["headroom"].items(), key=lambda item: float(item[1]))
    if any("backlog grows" in warning for warning in found["warnings"]):
        return f"the backlog grows, with {name} in use for {share:.0%}"
    if share > 0.9:
        return f"{name} is nearly saturated ({share:.0%} in use)"
    if _is_offline(found):
        return f"{name} saturates next ({share:.0%} in use)"
    times = float(f"{1 / share:.2g}")
    return f"before {_figure(times)} times this rate {name} saturates next ({share:.0%} in use)"
