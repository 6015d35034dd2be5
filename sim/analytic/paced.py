"""Collectives as an engine gets them: a wait before each, and a share of the pace at which they were measured alone."""

from __future__ import annotations

from dataclasses import replace

from sim.analytic.hardware import MICRO, Device, Engine
from sim.analytic.kernel_book import Collective, KernelBook

__all__ = ["paced"]


def paced(device: Device, engine: Engine) -> Device:
    """The device with the collectives that ``engine`` gets.

    Benchmarks time collectives back to back between devices that have nothing else to do; inside a step the devices
    arrive at different times, and an engine that replays no graphs launches each of them: ``collective_us`` more in
    front of each, which then runs at ``collective_speed`` times its pace. Over PCIe what counts is how the host wires
    its devices, which a measurement on another host does not say: with ``pcie_efficiency`` they take that share of the
    link instead, after ``pcie_us``.
    """
    over_pcie = engine.pcie_efficiency is not None and (device.link.name or "").startswith("PCIe")
    if not over_pcie and engine.collective_us == 0 and engine.collective_speed == 1:
        return device
    share = engine.pcie_efficiency if over_pcie and engine.pcie_efficiency is not None else 1.0
    wait_s = (engine.pcie_us if over_pcie else engine.collective_us) * MICRO
    efficiency = share if over_pcie else device.link.efficiency * engine.collective_speed
    book = device.kernels
    if isinstance(book, KernelBook):
        fixed = Collective(wait_s, share, wait_s, share)
        own = {
            key: fixed if over_pcie else _paced(one, wait_s, engine.collective_speed)
            for key, one in book.collectives.items()
        }
        book = replace(book, collectives=own)
    link = replace(device.link, latency_s=device.link.latency_s + wait_s, efficiency=efficiency)
    return replace(device, link=link, kernels=book)


def _paced(one: Collective, wait_s: float, speed: float) -> Collective:
    return Collective(
        one.small_s + wait_s, one.small_efficiency * speed, one.large_s + wait_s, one.large_efficiency * speed
    )
