"""Where the joules of a run went: dynamic by op and level, running units, static power, idle replicas, hosts.

Two ways of counting, side by side. The *floor* has what coefficients say of FLOPs and bytes, and idle power all the
time a replica is up; whatever else a busy chip draws is not in it. The *ceiling* has every device at its TDP (or at the
cap that governs its clock) while rounds run, and at idle power between them. ``energy.mode`` says which of the two the
run's ``joules`` are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.energy_by_op import LEVELS, spent_by_op
from analysis.energy_uptime import Uptime, uptime
from analysis.frames import Run
from sim.account import running_W

__all__ = ["J_PER_KWH", "Energy", "energy_of", "energy_section", "energy_warnings"]

J_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Energy:
    """Joules of all devices of a run, NaN where power is unknown.

    ``by_op``: dynamic joules by (op, level), each level one of ``energy_by_op.LEVELS``. ``running``: units that run,
    whatever they compute, where a profile tells it. ``static``: idle power while rounds ran. ``idle``: the same between
    rounds. ``ceiling_busy``: TDP while rounds ran. ``host``: of servers, all the time they were up.
    ``over_tdp_s``: replica seconds in which the floor is above the ceiling.
    """

    mode: str
    by_op: dict[tuple[str, str], float]
    running: float
    static: float
    idle: float
    ceiling_busy: float
    host: float
    over_tdp_s: float

    @property
    def dynamic(self) -> float:
        """Joules of FLOPs and bytes."""
        return float(sum(self.by_op.values()))

    @property
    def floor(self) -> float:
        """Everything by coefficients, hosts included."""
        return self.dynamic + self.running + self.static + self.idle + self.host

    @property
    def ceiling(self) -> float:
        """Everything at TDP while rounds run, hosts included."""
        return self.ceiling_busy + self.idle + self.host

    @property
    def total(self) -> float:
        """By the mode asked for."""
        return self.ceiling if self.mode == "tdp" else self.floor

    def by_level(self) -> dict[str, float]:
        """Dynamic joules by level of memory, in the order of LEVELS; levels that took none are left out."""
        sums = {level: sum(J for (_, at), J in self.by_op.items() if at == level) for level in LEVELS}
        return {level: joules for level, joules in sums.items() if joules}

    def by_op_and_level(self) -> dict[str, dict[str, float]]:
        """Dynamic joules by op, the largest first, and within an op by level."""
        ops = dict.fromkeys(op for op, _ in self.by_op)
        found = {op: {at: J for (name, at), J in self.by_op.items() if name == op} for op in ops}
        return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


def energy_of(run: Run, duration_s: float) -> Energy:
    """The joules of a finished run up to ``duration_s``, the end of its last round."""
    leaps, chunks = run.recorder.leaps.frame(), run.recorder.chunks.frame()
    lives, accounts, pools = uptime(run, duration_s), run.accounts, run.built.pools
    busy_s = leaps["duration_ns"] * 1e-9
    running = 0.0
    for place, (one, _) in enumerate(pools):
        mine = lives.pool[leaps["replica"]] == place
        running += float((running_W(one.setup.rounds, {k: c[mine] for k, c in leaps.items()}) * busy_s[mine]).sum())
    above = accounts.floor > accounts.ceiling * (1 + 1e-9)
    return Energy(
        mode=run.scenario.energy.mode,
        by_op=spent_by_op(pools, leaps, chunks, lives.pool, accounts.metered),
        running=running,
        static=at_idle_power(run, lives, lives.busy_s),
        idle=at_idle_power(run, lives, lives.idle_s),
        ceiling_busy=float(accounts.ceiling.sum()),
        host=host_joules(run, lives),
        over_tdp_s=float(busy_s[above].sum()),
    )


def at_idle_power(run: Run, lives: Uptime, seconds: Any) -> float:
    """Joules of all devices at idle power for so many seconds of each replica."""
    total = 0.0
    for (one, _), spent_s in zip(run.built.pools, lives.by_pool(seconds), strict=True):
        idle_W = float("nan") if one.device.energy is None else one.device.energy.idle_W
        total += float(spent_s) * idle_W * one.layout.devices
    return total


def host_joules(run: Run, lives: Uptime) -> float:
    """Joules of the servers while they were up."""
    devices = np.array([one.layout.devices for one, _ in run.built.pools])
    return float((lives.by_pool(lives.up_s) * devices).sum()) * float(run.scenario.energy.host_W)


def energy_warnings(run: Run, section: dict[str, Any]) -> list[str]:
    """A sentence where coefficients draw more than the devices can: power would have slowed them down."""
    return over_tdp(run, section, float(run.round_columns["duration_ns"].sum()) * 1e-9)


def over_tdp(run: Run, section: dict[str, Any], busy_s: float) -> list[str]:
    """The same, given the seconds in which rounds ran."""
    over_s = section.get("over_tdp_s", 0.0)
    if over_s <= 0.01 * busy_s or any(one.setup.power is not None for one, _ in run.built.pools):
        return []
    return [
        f"FLOPs and bytes draw more than the TDP in {over_s / busy_s:.0%} of the busy time: real devices would lower "
        "their clocks (clock: governed)."
    ]


def energy_section(run: Run, duration_s: float, output_tokens: int) -> dict[str, Any]:
    """The ``energy`` section of ``summary.json`` (docs/results.md); its numbers are null where power is unknown."""
    return section_of(energy_of(run, duration_s), run, duration_s, output_tokens)


def section_of(found: Energy, run: Run, duration_s: float, output_tokens: int) -> dict[str, Any]:
    """The same from joules that have been added up."""
    said = run.scenario.energy
    total = found.total
    if np.isnan(total):
        numbers = ("joules", "busy_joules", "idle_joules", "host_joules", "joules_per_output_token", "mean_W",
                   "floor_joules", "ceiling_joules", "kWh", "gCO2")  # fmt: skip
        return {"mode": said.mode, **dict.fromkeys(numbers)}
    kWh = total * said.pue / J_PER_KWH
    return {
        "mode": said.mode,
        "joules": total,
        "busy_joules": total - found.idle - found.host,
        "idle_joules": found.idle,
        "host_joules": found.host,
        "joules_per_output_token": total / output_tokens if output_tokens else None,
        "mean_W": total / duration_s if duration_s else None,
        "floor_joules": found.floor,
        "ceiling_joules": None if np.isnan(found.ceiling) else found.ceiling,
        "over_tdp_s": found.over_tdp_s,
        "floor": {"dynamic": found.dynamic, "running": found.running, "static": found.static, "idle": found.idle,
                  "host": found.host},
        "by_level": found.by_level(),
        "by_op": found.by_op_and_level(),
        "pue": said.pue,
        "kWh": kWh,
        "grid_gCO2_per_kWh": said.grid_gCO2_per_kWh,
        "gCO2": kWh * said.grid_gCO2_per_kWh,
    }  # fmt: skip
