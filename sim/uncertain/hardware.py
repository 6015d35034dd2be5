"""One sample of a device and of an engine: terms within their intervals, times the misfit of each kind of kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sim.analytic.hardware import MICRO, Clock, Device, Energy, Engine, Link, Terms
from sim.analytic.kernel_book import Collective, KernelBook
from sim.uncertain.draws import Draw, between, factor
from sim.uncertain.spreads import (
    ENERGY,
    LINK,
    POWER_MEASURED,
    is_class,
    is_textbook,
    of_terms,
    of_textbook,
    share_of,
)

__all__ = ["DeviceDraw", "Widen", "drawn_device", "drawn_engine", "slower"]

Widen = Mapping[str, float]  # by group (matmul ...): how many times wider, for questions beyond what was measured
GROUPS = ("matmul", "decode_attention", "prefill_attention", "elementwise")
# A profile's key, the field of Terms, and the unit of the key.
TERMS = {
    "compute": ("compute_efficiency", 1.0), "memory": ("memory_efficiency", 1.0), "floor_us": ("floor_s", MICRO),
    "overlap_p": ("overlap_p", 1.0), "quantise": ("quantise", 1.0), "depth_us": ("depth_s", MICRO),
    "depth_limit": ("depth_limit", 1.0), "wave_columns": ("wave_columns", 1.0), "output": ("output", 1.0),
    "tile_tokens": ("tile_tokens", 1.0), "walk_ns": ("walk_s", 1e-9), "sequence_ns": ("sequence_s", 1e-9),
    "split_us": ("split_s", MICRO), "split_tokens": ("split_tokens", 1.0),
}  # fmt: skip
HOST_TERMS = {
    "host_us_per_step": ("step_s", MICRO), "host_us_per_layer": ("layer_s", MICRO),
    "host_us_per_sequence": ("sequence_s", MICRO), "request_ms": ("request_s", 1e-3),
    "cached_token_us": ("cached_token_s", MICRO),
}  # fmt: skip
SPEEDS = {"product_speed": ("matmul",), "attention_speed": ("decode_attention", "prefill_attention")}


def drawn_device(device: Device, engine: Engine, draw: Draw, widen: Widen) -> Device:
    """The device of one sample; peaks, capacities and prices are what they are."""
    own = DeviceDraw(device.name, draw, widen, _speeds(engine, draw))
    terms: dict[str, Any] = {group: {name: own.terms(group, name, one) for name, one in getattr(device, group).items()}
             for group in GROUPS}  # fmt: skip
    book = device.kernels
    wire = LINK if isinstance(book, KernelBook) else of_textbook("collectives", "any")
    textbook = not isinstance(book, KernelBook) and all(map(is_textbook, device.matmul.values()))
    spread = wire if textbook else LINK
    return replace(
        device,
        kernels=own.book(book) if isinstance(book, KernelBook) else book,
        link=_link(device.link, factor(draw.normal(f"{device.name}/link"), spread, widen.get("collectives", 1.0))),
        host_link=_link(device.host_link, factor(draw.normal(f"{device.name}/host_link"), LINK)),
        energy=_energy(device, draw),
        clock=_clock(device.clock, device.energy, draw),
        **terms,
    )


def drawn_engine(engine: Engine, draw: Draw) -> Engine:
    """The engine of one sample: its host times within their intervals, all times what another machine may differ by."""
    slow = factor(draw.normal(f"{engine.name}/host"), share_of(engine))
    said = {key: (low, high) for key, low, high in engine.interval}
    times: dict[str, Any] = {}
    for key, (name, unit) in HOST_TERMS.items():
        value = getattr(engine, name)
        if key in said:
            low, high = said[key]
            value = between(draw.normal(f"{engine.name}/{key}"), value, low * unit, high * unit)
        times[name] = value * slow
    return replace(engine, **times)


def slower(terms: Terms, by: float) -> Terms:
    """Terms of a kernel that takes ``by`` times as long, whatever its size."""
    longer = ("floor_s", "quantise", "depth_s", "output", "walk_s", "sequence_s", "split_s")
    shorter = ("compute_efficiency", "memory_efficiency")
    changed: dict[str, Any] = {name: getattr(terms, name) * by for name in longer}
    changed |= {name: getattr(terms, name) / by for name in shorter}
    return replace(terms, **changed)


class DeviceDraw:
    """One sample of one device's kernels. Formats and head layouts of one group share what their addresses share."""

    def __init__(
        self, name: str, draw: Draw, widen: Widen | None = None, speeds: Mapping[str, float] | None = None
    ) -> None:
        """Of the device ``name``; ``speeds``: how much faster an engine was drawn than its point, by group."""
        self.name, self.draw, self.widen, self.speeds = name, draw, widen or {}, speeds or {}

    def terms(self, group: str, number_format: str, terms: Terms) -> Terms:
        """Terms within their intervals, but for class defaults, times the misfit of the group and format."""
        kind = number_format.partition("@")[0]
        ratio, place = of_terms(terms, group, kind), f"{self.name}/{group}/{kind}"
        by = factor(self.draw.normal(place), ratio, self.widen.get(group, 1.0)) / self.speeds.get(group, 1.0)
        if is_textbook(terms):
            by = max(by, 1.0)
        return slower(terms if is_class(terms) else self._within(terms, place), by)

    def book(self, book: KernelBook) -> KernelBook:
        """All of a library's kernels."""
        tables = {
            group: {
                name: {key: self.terms(group, name, one) for key, one in entries.items()}
                for name, entries in by_format.items()
            }
            for group, by_format in book.tables.items()
        }
        wires = {key: self.wire(one) for key, one in book.collectives.items()}
        return replace(
            book, tables=tables, elementwise=self.terms("elementwise", "any", book.elementwise), collectives=wires
        )

    def wire(self, one: Collective) -> Collective:
        """One collective; all of a device are off by the same number of deviations."""
        z = self.draw.normal(f"{self.name}/collectives")
        by = factor(z, one.ratio or LINK, self.widen.get("collectives", 1.0))
        return replace(
            one, small_s=one.small_s * by, small_efficiency=one.small_efficiency / by, large_s=one.large_s * by,
            large_efficiency=one.large_efficiency / by,
        )  # fmt: skip

    def _within(self, terms: Terms, place: str) -> Terms:
        changed: dict[str, Any] = {}
        for key, low, high in terms.interval:
            if key in TERMS:
                name, unit = TERMS[key]
                value = between(self.draw.normal(f"{place}/{key}"), getattr(terms, name), low * unit, high * unit)
                changed[name] = max(value, 1.0) if key == "overlap_p" else value
        return replace(terms, **changed) if changed else terms


def _speeds(engine: Engine, draw: Draw) -> dict[str, float]:
    """What an engine's speeds are drawn at, over what they are, by group."""
    found = {}
    for key, low, high in engine.interval:
        if key in SPEEDS:
            value: float = getattr(engine, key)
            drawn = between(draw.normal(f"{engine.name}/{key}"), value, low, high)
            found.update(dict.fromkeys(SPEEDS[key], drawn / value))
    return found


def _link(link: Link, by: float) -> Link:
    return replace(link, efficiency=link.efficiency / by, latency_s=link.latency_s * by)


def _energy(device: Device, draw: Draw) -> Energy | None:
    """Joules of FLOPs and bytes, all times one factor; idle power is what it is."""
    energy = device.energy
    if energy is None:
        return None
    measured = device.clock is not None and device.clock.provenance.startswith("FITTED")
    by = factor(draw.normal(f"{device.name}/energy"), POWER_MEASURED if measured else ENERGY)
    levels: dict[str, Any] = {name: getattr(energy, name) * by for name in
                              ("memory_byte_J", "onchip_byte_J", "link_byte_J")}  # fmt: skip
    return replace(energy, flop_J={name: value * by for name, value in energy.flop_J.items()}, **levels)


def _clock(clock: Clock | None, energy: Energy | None, draw: Draw) -> Clock | None:
    if clock is None or energy is None:
        return clock
    spans = {key: (low, high) for key, low, high in clock.interval}
    drawn: dict[str, Any] = {
        key: between(draw.normal(f"clock/{key}"), getattr(clock, key), *spans[key]) for key in spans
    }
    if "cap_W" in drawn:
        drawn["cap_W"] = max(drawn["cap_W"], 1.01 * energy.idle_W)
    return replace(clock, **drawn)
