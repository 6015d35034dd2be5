"""How far off each kind of time may be, where a profile says nothing itself: measured where possible, else assumed.

A ratio is the 10th, 50th and 90th percentile of the true seconds (or joules) over the point's. docs/uncertainty.md says
where each comes from.
"""

from __future__ import annotations

from collections.abc import Mapping

from hardware_profiles.kernel_files import textbook_ratios
from sim.analytic.hardware import Engine, Ratio, Terms

__all__ = ["ENERGY", "HOST", "HOST_UNMEASURED", "LINK", "POWER_MEASURED", "is_class", "is_textbook", "of_terms",
           "of_textbook", "share_of"]  # fmt: skip

OWN: Ratio = (1 / 1.15, 1.0, 1.15)  # a profile that a user fitted, which says nothing of its misfit: assumed
SMALL: Ratio = (0.5, 1.0, 2.0)  # elementwise kernels, which no table times: assumed
TEXTBOOK_SMALL: Ratio = (1.0, 1.25, 2.0)  # the same against a datasheet: memory at 0.8 of its rate, and launches
HOST: Ratio = (1 / 1.34, 1.0, 1.34)  # host times of another machine: 34 % (device_model.md: shared between devices)
HOST_UNMEASURED: Ratio = (0.5, 1.0, 2.0)  # an engine that nobody measured: assumed
LINK: Ratio = (1 / 1.5, 1.0, 1.5)  # wires that no table times: assumed
ENERGY: Ratio = (1 / 1.3, 1.0, 1.3)  # class defaults that add up to the TDP: assumed
POWER_MEASURED: Ratio = (1 / 1.05, 1.0, 1.05)  # mean power of a fitted card over 16 loads: within 4 %
KNOWN_AS = {"fp16": "bf16", "tf32": "bf16", "fp32": "bf16", "fp4": "nvfp4", "int4": "int4_wo"}


def is_textbook(terms: Terms) -> bool:
    """Whether nothing about these terms was measured."""
    return terms.provenance.startswith("textbook")


def is_class(terms: Terms) -> bool:
    """Whether they are what other devices have in common: their ratio then has the spread of the terms in it."""
    return terms.provenance.endswith("(class)") or terms.provenance.startswith("class default")


def of_terms(terms: Terms, group: str, number_format: str) -> Ratio:
    """The spread of one kind of kernel: its own, or what stands in for it."""
    if is_textbook(terms):
        return of_textbook(group, number_format)
    return terms.ratio or (SMALL if group == "elementwise" else OWN)


def of_textbook(group: str, number_format: str) -> Ratio:
    """Measured over a datasheet's seconds; one-sided, as nothing is faster."""
    known: Mapping[str, Mapping[str, list[float]]] = textbook_ratios()
    if group not in known:
        return TEXTBOOK_SMALL
    name = KNOWN_AS.get(number_format, number_format)
    low, middle, high = known[group].get(name) or known[group]["any"]
    return (low, middle, high)


def share_of(engine: Engine) -> Ratio:
    """The spread of an engine's host time on another machine than where it was measured."""
    return HOST if engine.measured else HOST_UNMEASURED
