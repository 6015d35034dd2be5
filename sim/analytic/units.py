"""Numbers with their unit, for messages."""

from __future__ import annotations

NS, US, MS = 1e-9, 1e-6, 1e-3
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def with_unit(value: float, unit: str) -> str:
    """A number with a decimal prefix and its unit, three digits: ``with_unit(3.35e12, "B/s") == "3.35 TB/s"``."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def show_bytes(value: float) -> str:
    """Bytes as decimal GB (or MB, kB), the unit that data sheets use."""
    return with_unit(value, "B")


def show_seconds(value: float) -> str:
    """Seconds as s, ms, us or ns, whichever gives a number of at least one."""
    for scale, unit in ((1.0, "s"), (MS, "ms"), (US, "us")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / NS:.3g} ns"
