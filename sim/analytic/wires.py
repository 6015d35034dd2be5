"""Which wire joins the devices of a node, by the kind that its name says, or the one to the host in its place."""

from __future__ import annotations

from dataclasses import replace

from sim.analytic.hardware import Device, Link
from sim.analytic.kernel_book import KernelBook

__all__ = ["LINKS", "link_kind", "wired"]

LINKS = ("nvlink", "ici", "pcie", "ethernet")
SAID = {"nvlink": ("nvlink",), "ici": ("ici",), "pcie": ("pcie",), "ethernet": ("gbe", "ethernet", "roce")}


def link_kind(name: str | None) -> str | None:
    """The kind of a link of a profile by its first words ("NVLink4", "24 x 200 GbE RoCE"); None for any other."""
    said = (name or "").split("(")[0].lower()
    return next((kind for kind, words in SAID.items() if any(word in said for word in words)), None)


def wired(device: Device, kind: str | None) -> Device:
    """The device with its own link, which must be of that ``kind``, or with PCIe: then its way to the host.

    None: its own, whatever it is. Collectives that were measured over its own link are not those of PCIe, so that
    latency and bandwidth count there. Raises ValueError where it has no such link.
    """
    own = link_kind(device.link.name)
    if kind is None or kind == own:
        return device
    if kind != "pcie" or device.host_link.bandwidth_Bps is None:
        has = [device.link.name or "none", *(["pcie to its host"] if device.host_link.bandwidth_Bps else [])]
        raise ValueError(f"layout.link: {kind}: {device.name} has {' and '.join(has)}; a network between nodes of one "
                         "device is node_devices: 1 with network_GBps")  # fmt: skip
    book, host = device.kernels, device.host_link
    kernels = replace(book, collectives={}) if isinstance(book, KernelBook) else book
    return replace(device, link=Link("PCIe", host.bandwidth_Bps, host.efficiency, host.latency_s), kernels=kernels)
