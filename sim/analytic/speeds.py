"""How fast an engine runs a device's kernels beside what was fitted to them: products, and attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sim.analytic.hardware import Device, Terms
from sim.analytic.kernel_book import KernelBook

__all__ = ["at_speeds"]


def at_speeds(device: Device, product: float, attention: float) -> Device:
    """The device with efficiencies of products and of attention times these; floors stay.

    A device whose kernels are all as fitted: 1 each.
    """
    if product == attention == 1.0:
        return device
    speeds = {"matmul": product, "decode_attention": attention, "prefill_attention": attention}
    own: dict[str, Any] = {group: _faster(getattr(device, group), speed) for group, speed in speeds.items()}
    book = device.kernels
    if isinstance(book, KernelBook):
        tables = {
            group: {name: _faster(entries, speeds[group]) for name, entries in by_format.items()}
            for group, by_format in book.tables.items()
        }
        book = replace(book, tables=tables)
    return replace(device, kernels=book, **own)


def _faster(terms: Mapping[str, Terms], speed: float) -> dict[str, Terms]:
    return {key: _at(one, speed) for key, one in terms.items()}


def _at(terms: Terms, speed: float) -> Terms:
    compute, memory = terms.compute_efficiency * speed, terms.memory_efficiency * speed
    return replace(terms, compute_efficiency=compute, memory_efficiency=memory)
