"""An answer in words, as the page says it: the sentence that is read aloud, the numbers, what it costs and rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.app.answer import Answer
from sim.app.figures import WORDS
from sim.app.runs import State

__all__ = ["facts", "run_rows", "run_sentence", "sentence", "sources"]


def sentence(found: Answer) -> str:
    """The answer first, in one sentence."""
    asked = found.question
    fits = "" if found.fits else " It does not fit into memory."
    return (
        f"{found.tokens_per_s:,.0f} tokens/s: {asked.batch} x {found.tokens_per_s / asked.batch:,.1f}, a token every"
        f" {_ms(found.tpot_ms)}; {found.speedup:.2f} times autoregressive decoding.{fits}"
    )


def facts(found: Answer) -> dict[str, tuple[str, str]]:
    """By name: a number, and what it is."""
    asked, share = found.question, found.parts[found.bound] / found.round_ms
    price = "no price in the profile" if found.usd_per_million is None else f"{found.price}; no pause between rounds"
    usd = "unknown" if found.usd_per_million is None else f"${found.usd_per_million:,.3g}"
    ttft = "none" if found.ttft_ms is None else _ms(found.ttft_ms)
    prompt = f"{asked.prompt:,} tokens, nobody before it"
    if found.ttft_ms is None:
        prompt = "longer than the model's context"
    return {
        "Tokens/s": (f"{found.tokens_per_s:,.0f}", f"{asked.devices} x {asked.device}, {asked.batch} sequences"),
        "TPOT": (_ms(found.tpot_ms), f"round {_ms(found.round_ms)}, {found.expected_tokens:.2f} tokens"),
        "TTFT": (ttft, prompt),
        "Speedup": (f"{found.speedup:.2f}", "over autoregressive, same batch and context"),
        "Memory": ("fits" if found.fits else "does not fit", f"{found.room}, for {found.most_sequences:,} sequences"),
        "$ per 1M tokens": (usd, price),
        "What binds": (WORDS[found.bound], f"{share:.0%} of a round"),
    }


def sources(found: Answer) -> list[str]:
    """What the answer rests on, a line each."""
    asked = found.question
    rests = [
        "The analytic core alone: every sequence at the same context, no queue, no clock; a run below has those.",
        "Tokens a round come from the policy's own law, seconds from the device's roofline with the engine's fitted"
        f" kernels; decodesim profiles {asked.device} lists every number with its source.",
    ]
    if asked.policy in ("medusa", "eagle", "eagle3"):
        rests.append(f"{asked.policy}: the acceptance is the published one; α and γ change nothing.")
    return [*rests, *found.notes]


def run_sentence(state: State) -> str:
    """How a run stands."""
    if state.status == "running":
        begun = f"{state.arrived:,} of at most {state.requests:,} requests" if state.arrived else "getting ready"
        return f"Running: {begun}."
    if state.table is None:
        return f"{state.status.capitalize()}: {state.why}."
    return f"{state.table['verdict']} Saved in {state.table['folder']}."


def run_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the latency table: what, then mean, p50, p90 and p99."""
    return [
        [name.removesuffix("_ms").upper(), *(_ms(row.get(key)) for key in ("mean", "p50", "p90", "p99"))]
        for name, row in table["latency"].items()
    ]


def _ms(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"
