"""What ``decodesim validate --silicon`` shows: sections, each its tables and verdicts; another one is another entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.calibration.kernel_tables import KINDS
from sim.silicon import kernels, left_out
from sim.silicon.rows import Judged, Verdict

__all__ = ["SECTIONS", "Section", "run"]


@dataclass(frozen=True)
class Section:
    """One part of the report: its tables, its verdicts, and what was left out of them, by name."""

    title: str
    rows: list[Judged]
    verdicts: list[Verdict]
    left_out: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every verdict holds."""
        return all(v.passed for v in self.verdicts)


def _kernels() -> Section:
    rows = kernels.judged()
    dropped = [f"{kernels.TITLES[kind]}: {said}" for kind in KINDS for said in kernels.shipped(kind).dropped]
    return Section("kernels on shapes held out of the fit", rows, kernels.verdicts(rows), tuple(dropped))


def _left_out() -> Section:
    rows = left_out.judged()
    return Section("kernels of a device left out of the fit", rows, left_out.verdicts(rows))


SECTIONS: dict[str, Callable[[], Section]] = {"kernels": _kernels, "left-out": _left_out}


def run() -> list[Section]:
    """All sections, in order."""
    return [make() for make in SECTIONS.values()]
