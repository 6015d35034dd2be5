"""What a run costs: rent and electricity, split between the tokens read and the tokens written; and all of it in brief.

The rule of the split: a pool's bill goes to prefill and decode by the device time that each took, and idle time is
spread over both in the same proportion. A round that reads prompts beside decodes is shared by the target's tokens,
as its joules are (docs/results.md). Price times tokens, of input and output together, is then the whole bill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.energy_uptime import uptime
from analysis.frames import Run
from sim.account import pool_places

__all__ = ["CostReport", "cost_of", "money_section"]

Floats = NDArray[np.float64]
RULE = "by device time of prefill and decode, idle time spread over both"


@dataclass(frozen=True)
class CostReport:
    """What ranks one plan against another. None where nobody knows a price or the power, or no token came out.

    ``dollars_per_1M_output`` puts the whole bill on the tokens written; ``split_per_1M_input`` and
    ``split_per_1M_output`` share it out by RULE. ``joules_per_output_token`` by the scenario's mode; ``floor_`` and
    ``ceiling_`` whichever the mode is. ``gCO2`` and ``kWh`` of the whole run, data centre (PUE) included.
    """

    dollars: float | None
    dollars_per_hour: float | None
    dollars_per_1M_output: float | None
    split_per_1M_input: float | None
    split_per_1M_output: float | None
    joules_per_output_token: float | None
    floor_joules_per_output_token: float | None
    ceiling_joules_per_output_token: float | None
    kWh: float | None
    gCO2: float | None
    gCO2_per_1M_output: float | None


def cost_of(run: Run) -> CostReport:
    """Dollars, joules and carbon of a finished run (``sim.run.Result``), from its ``metrics``."""
    energy, cost = run.metrics["energy"], run.metrics["cost"]
    tokens = _output_tokens(run)
    return CostReport(
        dollars=cost["usd"],
        dollars_per_hour=cost["usd_per_hour"],
        dollars_per_1M_output=cost["usd_per_million_output_tokens"],
        split_per_1M_input=cost["split"]["usd_per_million_input_tokens"],
        split_per_1M_output=cost["split"]["usd_per_million_output_tokens"],
        joules_per_output_token=energy["joules_per_output_token"],
        floor_joules_per_output_token=_each(energy["floor_joules"], tokens),
        ceiling_joules_per_output_token=_each(energy["ceiling_joules"], tokens),
        kWh=energy["kWh"],
        gCO2=energy["gCO2"],
        gCO2_per_1M_output=_each(energy["gCO2"], tokens, 1e6),
    )


def _output_tokens(run: Run) -> int:
    requests = run.request_columns
    written = requests["output_tokens"] * requests["samples"]
    return int(written[requests["status"] == "finished"].sum())


def _each(total: float | None, count: int, times: float = 1.0) -> float | None:
    return None if total is None or not count else total / count * times


def money_section(
    run: Run,
    duration_s: float,
    prompt_tokens: int,
    output_tokens: int,
    kWh: float | None,
    spent: tuple[Floats, Floats] | None = None,
    offline: bool | None = None,
) -> dict[str, Any]:
    """The ``cost`` section of ``summary.json``: rent of all devices while they were up, electricity of ``kWh``.

    ``usd_per_million_*``: the whole bill on those tokens; ``split``: shared out by RULE. ``offline``: everything
    arrived at once (``rate: inf``), so that the makespan and the bill are the answer. ``spent``: what `phase_seconds`
    says of the run, where it has been added up, and ``offline`` likewise.
    """
    pools, said = run.built.pools, run.scenario.cost
    devices = np.array([count * one.layout.devices for one, count in pools])
    prices = [price_of(run, place) for place in range(len(pools))]
    bills = _bills(run, duration_s, prices, kWh)
    total = float(bills.sum())
    usd = None if math.isnan(total) else total
    hourly = float((np.array(prices) * devices).sum() / max(devices.sum(), 1))
    if offline is None:
        arrivals = run.request_columns["arrival_ns"]
        offline = len(arrivals) > 1 and not np.any(arrivals)
    return {
        "offline": offline,
        "usd": usd,
        "usd_per_hour": None if usd is None or not duration_s else usd / duration_s * 3600,
        "usd_per_device_hour": None if math.isnan(hourly) else hourly,
        "usd_electricity": None if usd is None else (kWh or 0.0) * said.usd_per_kWh,
        "price": _source(run),
        "devices": int(devices.sum()),
        "makespan_s": duration_s,
        "usd_per_million_input_tokens": _each(usd, prompt_tokens, 1e6),
        "usd_per_million_output_tokens": _each(usd, output_tokens, 1e6),
        "usd_per_million_tokens": _each(usd, prompt_tokens + output_tokens, 1e6),
        "split": _split(spent or phase_seconds(run), bills, prompt_tokens, output_tokens),
    }


def _source(run: Run) -> str:
    """Where the prices come from: a group of the fleet, the scenario, or what a device's profile priced and when."""
    said = run.scenario.cost.usd_per_device_hour
    notes = [
        "fleet.groups.usd_per_hour" if _rent(run, place) is not None
        else one.device.price_note if said is None else "cost.usd_per_device_hour"
        for place, (one, _) in enumerate(run.built.pools)
    ]  # fmt: skip
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _rent(run: Run, place: int) -> float | None:
    """What a fleet's group says that one of its replicas costs an hour, all its devices."""
    fleet = getattr(run.scenario, "fleet", None)
    said = None if fleet is None else fleet.groups[place].usd_per_hour
    return None if said is None else float(said)


def price_of(run: Run, place: int) -> float:
    """Dollars an hour of one device of the pool at ``place``: its group's, else the scenario's, else its profile's; NaN
    where there is none.
    """
    one: Any = run.built.pools[place][0]
    rent = _rent(run, place)
    if rent is not None:
        return rent / float(one.layout.devices)
    said = run.scenario.cost.usd_per_device_hour
    price = one.device.usd_per_hour if said is None else said
    return math.nan if price is None else float(price)


def _bills(run: Run, duration_s: float, prices: list[float], kWh: float | None) -> Floats:
    """Dollars of each pool: rent while its replicas were up, and its devices' share of the electricity."""
    lives, usd_per_kWh = uptime(run, duration_s), run.scenario.cost.usd_per_kWh
    device_s = lives.by_pool(lives.up_s) * np.array([one.layout.devices for one, _ in run.built.pools])
    rent: Floats = device_s / 3600 * np.array(prices)
    if not usd_per_kWh:
        return rent
    bill = (float("nan") if kWh is None else kWh) * usd_per_kWh
    both: Floats = rent + bill * device_s / max(device_s.sum(), 1e-300)
    return both


def _split(spent: tuple[Floats, Floats], bills: Floats, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The bill by RULE; None where no round ran or no price is known."""
    reading_s, writing_s = spent
    spent_s = reading_s + writing_s
    if not spent_s.sum() or math.isnan(bills.sum()):
        keys = ("prefill_share", "usd_input", "usd_output", "usd_per_million_input_tokens",
                "usd_per_million_output_tokens")  # fmt: skip
        return {"rule": RULE, **dict.fromkeys(keys)}
    overall = reading_s.sum() / spent_s.sum()
    shares = np.where(spent_s > 0, reading_s / np.maximum(spent_s, 1e-300), overall)  # of a pool that never worked
    usd_input, usd_output = float((bills * shares).sum()), float((bills * (1 - shares)).sum())
    return {
        "rule": RULE,
        "prefill_share": float(overall),
        "usd_input": usd_input,
        "usd_output": usd_output,
        "usd_per_million_input_tokens": _each(usd_input, prompt_tokens, 1e6),
        "usd_per_million_output_tokens": _each(usd_output, output_tokens, 1e6),
    }


def phase_seconds(run: Run) -> tuple[Floats, Floats]:
    """Replica seconds of reading prompts and of decoding, shape [pools] each; a mixed round by its target's tokens."""
    rounds, pools = run.round_columns, run.built.pools
    place = pool_places(pools, run.recorder)[rounds["replica"]]
    each = np.array([one.policy.tokens_per_round for one, _ in pools])[place]
    read = rounds["prefill_tokens"].astype(np.float64)
    written = (rounds["batch"] * rounds["n_rounds"] * each).astype(np.float64)
    share = read / np.maximum(read + written, 1.0)
    seconds = rounds["duration_ns"] * 1e-9
    reading, writing = (np.bincount(place, seconds * part, len(pools)).astype(float) for part in (share, 1 - share))
    return reading, writing
