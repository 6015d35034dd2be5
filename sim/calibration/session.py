"""A calibration session: probes, fitted and judged steps in turn, several times over, because machines drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sim.calibration.cases import Case
from sim.calibration.probes import Probe, measure
from sim.calibration.timing import Stopwatch


@dataclass(frozen=True)
class Session:
    """What was timed. ``probes``: seconds by name, one mapping a repeat; ``steps``: cases, seconds by repeat."""

    probes: list[dict[str, float]]
    steps: list[tuple[Case, list[float]]]

    def plain(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {"probes": self.probes, "steps": [[asdict(case), seconds] for case, seconds in self.steps]}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Session:
        """The session that :meth:`plain` described."""
        return cls(list(plain["probes"]), [(Case(**case), seconds) for case, seconds in plain["steps"]])

    def times(self, cases: Sequence[Case]) -> dict[Case, list[float]]:
        """Seconds by repeat of those of the cases that were timed."""
        return {case: seconds for case, seconds in self.steps if case in set(cases)}


def run(probes: Mapping[str, Probe], cases: Sequence[Case], repeats: int, watch: Stopwatch) -> Session:
    """Time every probe and every case once in each of ``repeats`` rounds; cases in the order given."""
    steps: list[tuple[Case, list[float]]] = [(case, []) for case in cases]
    found = []
    for _ in range(repeats):
        found.append(measure(probes, watch))
        for case, seconds in steps:
            seconds.append(case.seconds(watch))
    return Session(found, steps)


def interleaved(first: Sequence[Case], second: Sequence[Case]) -> list[Case]:
    """Both lists, spread evenly among each other."""
    places = [((i + 0.5) / len(cases), case) for cases in (first, second) for i, case in enumerate(cases)]
    return [case for _, case in sorted(places, key=lambda place: place[0])]
