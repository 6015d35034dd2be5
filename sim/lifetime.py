"""A model's lifetime: what training took once beside what inference takes every day, in energy, money and carbon.

Nothing here has a clock. Training is FLOPs over what devices sustain (6 for each parameter and token: Kaplan et al.
2020, section 2.1, a forward pass and a backward pass of twice its work); a day of inference is that of a simulated run,
as often as requests come. With T spent once and d a day, inference passes training after T/d days and is the share s
of the total after s/(1-s) T/d: 80 % after four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape

__all__ = ["MEASURES", "Footprint", "Lifetime", "Training", "active_parameters", "training_flops", "training_watts"]

J_PER_KWH = 3.6e6
MEASURES = ("kWh", "usd", "gCO2")


@dataclass(frozen=True)
class Footprint:
    """Energy at the meter of the data centre, dollars and grams of carbon dioxide; None where unknown."""

    kWh: float | None
    usd: float | None
    gCO2: float | None

    def times(self, factor: float) -> Footprint:
        """So many of it."""
        return Footprint(*(None if v is None else v * factor for v in (self.kWh, self.usd, self.gCO2)))


@dataclass(frozen=True)
class Training:
    """One training run: ``flops`` of the model at ``mfu`` of the device's ``peak_flops`` (FLOP/s).

    ``device_W``: of one device while it trains, its share of the host included; ``usd_per_hour`` of one device; both
    None where unknown. ``usd_per_kWh`` where electricity is paid beside the rent.
    """

    flops: float
    peak_flops: float
    mfu: float
    device_W: float | None
    usd_per_hour: float | None
    pue: float
    grid_gCO2_per_kWh: float
    usd_per_kWh: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for FLOPs or a share that mean nothing."""
        if not 0 < self.flops < 1e35:
            raise ValueError(f"training FLOPs: {self.flops:g}: must be above 0 and below 1e35")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu: {self.mfu:g}: must be a share above 0, up to 1")

    @property
    def device_hours(self) -> float:
        """Hours of one device, however many share them."""
        return self.flops / (self.peak_flops * self.mfu) / 3600

    @property
    def footprint(self) -> Footprint:
        """All of it; idle time, failed runs and the experiments before it are not in these FLOPs."""
        hours = self.device_hours
        kWh = None if self.device_W is None else hours * self.device_W / 1000 * self.pue
        usd = None if self.usd_per_hour is None else hours * self.usd_per_hour
        if usd is not None and self.usd_per_kWh:
            usd = None if kWh is None else usd + kWh * self.usd_per_kWh
        return Footprint(kWh, usd, None if kWh is None else kWh * self.grid_gCO2_per_kWh)


@dataclass(frozen=True)
class Lifetime:
    """Training once and inference a day."""

    training: Footprint
    daily: Footprint

    def passes_after_days(self, share: float, measure: str = "kWh") -> float | None:
        """Days until inference is that share of the total, by one of MEASURES; 0.5 is where it passes training.

        None where either is unknown or nobody asks anything. Raises ValueError for a share that is never reached.
        """
        if not 0 <= share < 1:
            raise ValueError(f"share: {share:g}: must be at least 0 and below 1; inference never becomes all of it")
        once, day = getattr(self.training, measure), getattr(self.daily, measure)
        return None if once is None or not day else share / (1 - share) * once / day

    def share_after(self, days: float, measure: str = "kWh") -> float | None:
        """Share of inference in the total after so many days."""
        once, day = getattr(self.training, measure), getattr(self.daily, measure)
        return None if once is None or day is None else days * day / (once + days * day)

    def with_requests(self, factor: float) -> Lifetime:
        """The same with so many times the requests."""
        return replace(self, daily=self.daily.times(factor))


def training_flops(shape: ModelShape, tokens: float) -> float:
    """6 N D: six for each parameter that a token meets and each token. Attention over the context is left out."""
    return 6.0 * active_parameters(shape) * tokens


def active_parameters(shape: ModelShape) -> int:
    """Parameters that one token meets: all of a dense model, of experts those that it is sent to."""
    idle = 0
    for layer in (*shape.layers, *shape.encoder):
        if layer.ffn.experts:
            unmet = layer.ffn.experts - layer.ffn.experts_per_token
            idle += unmet * sum(layer.ffn.expert_parameters(shape.d_model).values())
    return shape.total_parameters - idle


def training_watts(device: Device, host_W: float) -> float | None:
    """What a device is taken to draw while it trains: its TDP, and the host's share."""
    return None if device.tdp_W is None else device.tdp_W + host_W
