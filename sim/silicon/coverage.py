"""Do 80 % intervals hold 80 %? Terms and misfit drawn as for a scenario, on rows that neither was taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Device, Terms
from sim.calibration.fit_collectives import collective_of
from sim.calibration.fit_formulas import seconds
from sim.calibration.fit_kernels import entry_terms, tables_of
from sim.calibration.kernel_generic import left_out_seconds
from sim.calibration.kernel_predict import entries_of, entries_of_collectives, names_of
from sim.calibration.kernel_profile import GROUP_OF
from sim.calibration.kernel_rows import columns, sent
from sim.calibration.kernel_tables import KINDS, KernelTable
from sim.calibration.ship import devices_of, of_device
from sim.calibration.spread import for_checking
from sim.calibration.spread_class import pooled
from sim.silicon.kernels import TITLES, shipped
from sim.uncertain.draws import Draw
from sim.uncertain.hardware import DeviceDraw
from sim.uncertain.summary import LEVELS

__all__ = ["LIMITS", "Covered", "covered", "inside"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SAMPLES = 60
MOST = 3000  # rows of one table: a share of 80 % is then known to 0.7 points
LIMITS = (0.70, 0.90)
OUT = "a device left out: "


@dataclass(frozen=True)
class Covered:
    """Of ``n`` held-out rows, the share whose measurement lies in its 80 % interval. ``limits``: None, not judged."""

    what: str
    device: str
    n: int
    share: float
    limits: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether the share is within limits; NaN is not."""
        return self.limits is None or self.limits[0] <= self.share <= self.limits[1]

    @property
    def allowed(self) -> str:
        """The limits in words."""
        return "" if self.limits is None else f"{self.limits[0]:.0%} to {self.limits[1]:.0%}"


def covered(tables: Sequence[KernelTable] | None = None, misfit: bool = True) -> list[Covered]:
    """By kind of kernel: every device, then all of them together, which is judged; then products of devices left out.

    ``misfit`` False: parameters alone are drawn, to see that they are too sure.
    """
    found: list[Covered] = []
    for table in tables or [shipped(kind) for kind in KINDS]:
        parts: dict[tuple[str, str], list[Mask]] = {}
        for gpu, device in devices_of([table]).items():
            for what, hits in _hits(of_device(table, gpu), device, misfit):
                parts.setdefault((what, device.name), []).append(hits)
        for what in dict.fromkeys(name for name, _ in parts):
            own = {device: np.concatenate(hits) for (name, device), hits in parts.items() if name == what}
            found += [Covered(what, device, len(hits), float(hits.mean())) for device, hits in own.items()]
            found.append(_together(what, list(own.values())))
    return found if tables else [*found, *_left_out(shipped("gemm"))]


def inside(predicted: Floats, measured: Floats) -> Mask:
    """Which of ``measured``, shape [rows], lie between outer percentiles of ``predicted``, shape [samples, rows]."""
    low, _, high = np.quantile(predicted, LEVELS, axis=0)
    found: Mask = (low <= measured) & (measured <= high)
    return found


def _together(what: str, hits: Sequence[Mask]) -> Covered:
    """All devices, each counting alike."""
    share = float(np.mean([one.mean() for one in hits]))
    return Covered(what, "all", sum(map(len, hits)), share, LIMITS)


def _hits(table: KernelTable, device: Device, misfit: bool) -> Iterator[tuple[str, Mask]]:
    """(class, which rows are inside) of every table of one device."""
    if table.kind == "collectives":
        yield from _collectives(table, device, misfit)
        return
    chosen, rows = for_checking(table), columns(table.kind, table.frame, device)
    measured, group = table.frame["seconds"].to_numpy(float), GROUP_OF[table.kind]
    for key, index in tables_of(table.kind, table.frame):
        index = _some(index[chosen[index]])
        if not len(index):
            continue
        entries = entries_of(group, key, device)
        names = np.full(len(index), "any", dtype=object)
        if table.kind != "gemm":
            names = names_of(table.frame.iloc[index], entries)
        for name in sorted(set(names)):
            own = index[names == name]
            part = {column: values[own] for column, values in rows.items()}
            drawn = _drawn(_terms(entries[name], misfit), device, group, key[2])
            predicted = np.array([seconds(table.kind, terms, part) for terms in drawn])
            yield _class(table.kind, key[2]), inside(predicted, measured[own])


def _terms(entry: Mapping[str, Any], misfit: bool) -> Terms:
    terms = entry_terms(entry)
    return terms if misfit else replace(terms, ratio=(1.0, 1.0, 1.0))


def _drawn(terms: Terms, device: Device, group: str, name: str) -> Iterator[Terms]:
    return (DeviceDraw(device.name, Draw(0, sample)).terms(group, name, terms) for sample in range(SAMPLES))


def _class(kind: str, name: str) -> str:
    """Products are judged by whether they are quantised, as the targets of errors are."""
    if kind != "gemm":
        return TITLES[kind]
    return f"{TITLES[kind]}, {'bf16' if name == 'bf16' else 'quantised'}"


def _some(index: Any) -> Any:
    return index[:: max(1, len(index) // MOST)]


def _collectives(table: KernelTable, device: Device, misfit: bool) -> Iterator[tuple[str, Mask]]:
    moved, measured, chosen = sent(table.frame), table.frame["seconds"].to_numpy(float), for_checking(table)
    link_Bps = device.link.bandwidth_Bps or float("nan")
    for entry, index in entries_of_collectives(table, device):
        index = index[chosen[index]]
        one = collective_of(entry if misfit else {**entry, "ratio": (1.0, 1.0, 1.0)})
        drawn = (DeviceDraw(device.name, Draw(0, sample)).wire(one) for sample in range(SAMPLES))
        predicted = np.array([np.asarray(wire.seconds(moved[index], link_Bps)) for wire in drawn])
        if len(index):
            yield TITLES[table.kind], inside(predicted, measured[index])


def _left_out(table: KernelTable) -> list[Covered]:
    """Products on each device by a fit of the others, with the misfit that the others had when they were left out."""
    devices, ratios = devices_of([table]), {}
    for (gpu, name), (predicted, measured) in left_out_seconds(table, devices).items():
        ratios[gpu, name] = measured / predicted
    found, formats = [], dict.fromkeys(name for _, name in ratios)
    for name in formats:
        own = {gpu: ratio for (gpu, known), ratio in ratios.items() if known == name}
        for gpu, ratio in own.items():
            low, _, high = pooled([other for one, other in own.items() if one != gpu])
            hits = (low <= ratio) & (ratio <= high)
            found.append(Covered(f"{OUT}{TITLES['gemm']}, {name}", devices[gpu].name, len(hits), float(hits.mean())))
    share = float(np.mean([one.share for one in found]))
    return [*found, Covered(f"{OUT}{TITLES['gemm']}", "all", sum(one.n for one in found), share, LIMITS)]
