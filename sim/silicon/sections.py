"""What ``decodesim validate --silicon`` shows: sections, each its tables and verdicts; another one is another entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.calibration.kernel_tables import KINDS
from sim.silicon import at_once_judged, coverage, inferencex_judged, kernels, left_out
from sim.silicon.coverage import Covered
from sim.silicon.rows import Judged, Verdict

__all__ = ["SECTIONS", "Section", "run"]


@dataclass(frozen=True)
class Section:
    """One part of the report: its tables, its verdicts, and what was left out of them, by name."""

    title: str
    rows: list[Judged]
    verdicts: list[Verdict]
    left_out: tuple[str, ...] = ()
    covered: tuple[Covered, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every verdict holds, and intervals hold as often as they say."""
        return all(v.passed for v in self.verdicts) and all(c.passed for c in self.covered)


def _kernels() -> Section:
    rows = kernels.judged()
    dropped = [f"{kernels.TITLES[kind]}: {said}" for kind in KINDS for said in kernels.shipped(kind).dropped]
    return Section("kernels on shapes held out of the fit", rows, kernels.verdicts(rows), tuple(dropped))


def _left_out() -> Section:
    rows = left_out.judged()
    return Section("kernels of a device left out of the fit", rows, left_out.verdicts(rows))


def _coverage() -> Section:
    return Section("80 % intervals, on shapes that neither fit nor spread has seen", [], [],
                   covered=tuple(coverage.covered()))  # fmt: skip


def _late_2023() -> Section:
    rows = list(at_once_judged.rows_2023())
    return Section("prefills and decode steps of late 2023, held-out points", rows, at_once_judged.verdicts_2023(rows))


def _throughput() -> Section:
    rows = list(at_once_judged.grid_rows())
    said = f"every {at_once_judged.SAMPLE}th cell of the release is run; validate --serving FILE runs all of a table"
    return Section("throughput of a release that no fit has seen", rows, at_once_judged.grid_verdicts(rows), (said,))


def _inferencex() -> Section:
    every = inferencex_judged.EVERY
    found = inferencex_judged.points(inferencex_judged.shipped())
    said = f"every {every}th of the points is run; validate --serving FILE runs all of a table"
    rows, verdicts = inferencex_judged.judged(found), inferencex_judged.verdicts(found)
    return Section("served points on H200", rows, verdicts, (said, *inferencex_judged.left_out(found)))


SECTIONS: dict[str, Callable[[], Section]] = {
    "kernels": _kernels,
    "left-out": _left_out,
    "coverage": _coverage,
    "late-2023": _late_2023,
    "throughput": _throughput,
    "inferencex": _inferencex,
}


def run() -> list[Section]:
    """All sections, in order."""
    return [make() for make in SECTIONS.values()]
