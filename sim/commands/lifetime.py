"""``decodesim lifetime``: training once beside inference a day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sim import show
from sim.build import Built, build_scenario, load_device
from sim.lifetime import MEASURES, Footprint, Lifetime, Training, training_flops, training_watts
from sim.run import simulate
from sim.scenario import Scenario

if TYPE_CHECKING:
    from sim.run import Result

__all__ = ["Asked", "lifetime_of", "run"]

SHARES = (0.5, 0.8)
LABELS = {"kWh": "energy (kWh)", "usd": "dollars", "gCO2": "carbon (g CO2)"}
DAY_S = 86_400


@dataclass(frozen=True)
class Asked:
    """The options of the command: ``tokens`` or ``flops`` of the training run, and what it ran on."""

    tokens: float | None
    flops: float | None
    mfu: float
    hardware: str | None
    watts: float | None
    requests_per_day: float | None

    def __post_init__(self) -> None:
        """Raises ValueError, one line, for options that contradict each other or mean nothing."""
        if (self.tokens is None) == (self.flops is None):
            raise ValueError("--tokens: say how many tokens the model was trained on, or --flops; one of the two")
        for name in ("tokens", "flops", "watts", "requests_per_day"):
            given = getattr(self, name)
            if given is not None and not 0 < given < 1e35:
                raise ValueError(f"--{name.replace('_', '-')}: {given:g}: must be above 0 and below 1e35")


def run(file: str, settings: Sequence[str], asked: Asked, out: str | None, as_json: bool) -> None:
    """Simulate the scenario, put training beside it, show and draw both."""
    from analysis.plots import save_figure
    from analysis.plots.lifetime import lifetime_figure
    from analysis.plots.style import SUFFIXES

    if out is not None and Path(out).suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out: {out}: a picture ends in {', '.join(SUFFIXES)}")
    built = build_scenario(Scenario.load(file, settings))
    training = _training(built, asked)
    result = simulate(built)
    found, requests = lifetime_of(result, training, asked.requests_per_day)
    if out is not None:
        save_figure(lifetime_figure(found), out)
    if as_json:
        show.as_json(_plain(found, training, requests))
        return
    _show(found, training, requests, f"{built.shapes[0].name}, trained once, then {requests:,.0f} requests a day")
    if out is not None:
        typer.echo(f"wrote {out}")


def _training(built: Built, asked: Asked) -> Training:
    """The training run; on the scenario's device and with its prices where nothing else is said."""
    device = built.device if asked.hardware is None else load_device(asked.hardware)
    energy, cost = built.scenario.energy, built.scenario.cost
    said = cost.usd_per_device_hour if asked.hardware is None else None
    flops = training_flops(built.shapes[0], asked.tokens) if asked.tokens is not None else asked.flops
    assert flops is not None
    return Training(
        flops=flops,
        peak_flops=device.peak_flops("bf16").flops,
        mfu=asked.mfu,
        device_W=training_watts(device, energy.host_W) if asked.watts is None else asked.watts,
        usd_per_hour=device.usd_per_hour if said is None else said,
        pue=energy.pue,
        grid_gCO2_per_kWh=energy.grid_gCO2_per_kWh,
        usd_per_kWh=cost.usd_per_kWh,
    )


def lifetime_of(result: Result, training: Training, requests_per_day: float | None = None) -> tuple[Lifetime, float]:
    """Training beside a day of a simulated run's requests, and how many those are (None: as fast as it finished them).

    Each request takes its share of everything that the run took, idle time included. Raises ValueError where the run
    finished none.
    """
    metrics = result.metrics
    finished, seconds = metrics["requests"]["finished"], metrics["duration_s"]
    if not finished or not seconds:
        raise ValueError("workload: no request finished, so that nobody knows what one takes")
    requests = finished / seconds * DAY_S if requests_per_day is None else requests_per_day
    energy = metrics["energy"]
    whole = Footprint(energy["kWh"], metrics["cost"]["usd"], energy["gCO2"])
    return Lifetime(training.footprint, whole.times(requests / finished)), requests


def _plain(found: Lifetime, training: Training, requests: float) -> dict[str, Any]:
    days = {f"{share:.0%}": {m: found.passes_after_days(share, m) for m in MEASURES} for share in SHARES}
    return {
        "training": {**asdict(training), "device_hours": training.device_hours, **asdict(found.training)},
        "daily": {"requests": requests, **asdict(found.daily)},
        "days_until_inference_is": days,
    }


def _show(found: Lifetime, training: Training, requests: float, title: str) -> None:
    rows = [
        [LABELS[m], getattr(found.training, m), getattr(found.daily, m)]
        + [found.passes_after_days(share, m) for share in SHARES]
        for m in MEASURES
    ]
    show.grid(title, ["", "training", "inference a day", "days to pass it", "days to 80 %"], rows)
    show.console().print(
        f"training: {training.flops:.3g} FLOPs, {show.number(training.device_hours)} device hours at "
        f"{training.mfu:.0%} of peak", soft_wrap=True,
    )  # fmt: skip
