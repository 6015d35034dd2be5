"""The cheapest fleet that keeps every promise under this traffic, how sure that is, and what breaks first.

Candidates are judged on paper first (``sim/planning/screen.py``), then looked at with the clock from the cheapest
possible one upwards (``search.py``), in waves of ``WAVE`` at a time until ``keep`` plans are confirmed and nothing left
can be cheaper. Waves, and what each knows of those before it, do not depend on how many workers there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from sim.executors import Crew
from sim.planning.candidates import Candidate, candidates
from sim.planning.journal import Journal, code_stamp, scenario_stamp
from sim.planning.ranking import answer, ranked, row_of, then
from sim.planning.screen import NONSENSE, Screened, screen
from sim.planning.search import Question, search
from sim.planning.sensitivity import SIMULATED, changed_capacity, changes_of, row
from sim.planning.traffic import Traffic, traffic_of
from sim.planning.unsure import in_short, sample
from sim.scenario import PlanPart, Scenario
from sim.sweep import same_code
from sim.uncertainty import samples_checked

__all__ = ["Plan", "about", "make_plan"]

WAVE, BLOCK = 8, 16
Tick = Callable[[str, int, int], None]
Row = dict[str, Any]
Task = tuple[
    str, dict[str, Any], Traffic, Any, str
]  # what to do, the scenario as written, its traffic, arguments, code


@dataclass(frozen=True)
class Plan:
    """``rows``: every candidate, confirmed plans first by dollars, then those that miss, then those ruled out on
    paper; ``sensitivity``: of the best; ``answer``: in one sentence; ``traffic``: what was asked;
    ``unsure``: of the best on samples of the hardware (sim/planning/unsure.py), None where nobody asked.
    """

    rows: tuple[Row, ...]
    sensitivity: tuple[Row, ...]
    answer: str
    traffic: Traffic
    unsure: Row | None = None

    @property
    def best(self) -> Row | None:
        """The cheapest confirmed plan; None where there is none."""
        first = self.rows[0] if self.rows else None
        return first if first and first["status"] == "kept" else None


def about(scenario: Scenario) -> dict[str, str]:
    """What a journal's rows are of."""
    return {"study": "plan", "version": code_stamp(), "scenario": scenario_stamp(scenario)}


def make_plan(
    scenario: Scenario, crew: Crew, journal: Journal | None = None,
    tick: Tick = lambda what, done, total: None, uncertainty: int = 0,
) -> Plan:  # fmt: skip
    """Search, rank and explain. What a ``journal`` holds is not computed again; ``tick`` is told (what, done, in all).

    ``uncertainty``: on how many samples of the hardware the best plan is run (0: none). Raises ValueError, one line,
    for a scenario, a search or a promise that makes no sense.
    """
    plan = scenario.plan or PlanPart()
    if uncertainty:
        samples_checked(uncertainty)
    if all(getattr(scenario.slo, name) is None for name in ("ttft_ms", "tpot_ms", "e2el_ms")):
        raise ValueError("slo: missing: a plan is the cheapest that keeps a promise; say ttft_ms, tpot_ms or e2el_ms")
    work = _Work(scenario, traffic_of(scenario, plan), crew, journal, tick)
    chosen = candidates(scenario, plan)
    papers = work.screened(chosen)
    _some_possible(papers)
    found = work.searched(chosen, papers, plan.keep)
    rows = ranked([row_of(one, paper, found.get(i)) for i, (one, paper) in enumerate(zip(chosen, papers, strict=True))])
    question = Question(scenario, plan, work.traffic)
    best = rows[0]["number"] if rows[0]["status"] == "kept" else None
    bars = () if best is None else work.sensitivity(question, chosen[best], papers[best])
    bars = [{**bar, "then": then(rows, bar)} for bar in bars]
    unsure = None
    if best is not None and uncertainty:
        unsure = work.unsure(chosen[best], papers[best], rows[0]["units"], uncertainty)
    return Plan(tuple(rows), tuple(bars), answer(rows, question), work.traffic, unsure)


def _some_possible(papers: Sequence[Screened]) -> None:
    """Raise ValueError where the scenario makes no sense with any of the candidates."""
    if all(one.why.startswith(NONSENSE) for one in papers):
        raise ValueError(papers[0].why.removeprefix(NONSENSE).lstrip())


class _Work:
    """Tasks through the crew and the journal."""

    def __init__(self, scenario: Scenario, traffic: Traffic, crew: Crew, journal: Journal | None, tick: Tick) -> None:
        self.scenario, self.traffic, self.crew, self.journal, self.tick = scenario, traffic, crew, journal, tick
        self.data, self.stamp = scenario.model_dump(exclude_unset=True), code_stamp()

    def done(self, what: str, given: Sequence[Any], keys: Sequence[str], before: int = 0, total: int = 0) -> list[Any]:
        """What ``perform`` says of each of the arguments, in their order."""
        kept = self.journal.rows if self.journal is not None else {}
        found: dict[int, Any] = {i: kept[f"{what} {key}"] for i, key in enumerate(keys) if f"{what} {key}" in kept}
        left = [i for i in range(len(keys)) if i not in found]
        tasks: list[Task] = [(what, self.data, self.traffic, given[i], self.stamp) for i in left]
        for number, said in self.crew.results(perform, tasks, name=_named):
            found[left[number]] = said
            if self.journal is not None:
                self.journal.add(f"{what} {keys[left[number]]}", said)
            self.tick(what, before + len(found), total or len(keys))
        return [found[i] for i in range(len(keys))]

    def screened(self, chosen: Sequence[Candidate]) -> list[Screened]:
        """Every candidate on paper."""
        blocks = [list(chosen[i : i + BLOCK]) for i in range(0, len(chosen), BLOCK)]
        keys = [json.dumps([asdict(one) for one in block]) for block in blocks]
        answers = self.done("screening", blocks, keys)
        return [Screened(**one) for block in answers for one in _infinite(block)]

    def searched(self, chosen: Sequence[Candidate], papers: Sequence[Screened], keep: int) -> dict[int, Row]:
        """Rows of those looked at with the clock, by number, from the cheapest possible one upwards."""
        order = sorted((i for i, p in enumerate(papers) if not p.why), key=lambda i: _promising(papers[i], i))
        found: dict[int, Row] = {}
        while order:
            enough = _enough(found, keep)
            order = [i for i in order if papers[i].least_usd_per_hour <= enough]
            wave, order = order[:WAVE], order[WAVE:]
            given = [(chosen[i], papers[i], enough) for i in wave]
            keys = [json.dumps([asdict(one), str(limit)]) for one, _, limit in given]
            total = len(found) + len(wave) + len(order)
            found |= dict(zip(wave, self.done("simulating", given, keys, len(found), total), strict=True))
        return found

    def sensitivity(self, question: Question, candidate: Candidate, paper: Screened) -> list[Row]:
        """The bars of a plan."""
        changes = changes_of(question.scenario, candidate)
        asked = [change for change in changes if change in SIMULATED]
        answers = self.done("varying", [(candidate, paper, change) for change in asked], asked)
        capacities = {
            change: float("nan") if each is None else each for change, each in zip(asked, answers, strict=True)
        }
        return [row(question, paper, change, capacities) for change in changes]

    def unsure(self, candidate: Candidate, paper: Screened, units: int, samples: int) -> Row:
        """The best plan on samples of the hardware."""
        given = [(candidate, paper, units, number, samples) for number in range(samples)]
        return in_short(self.done("sampling", given, [f"{number} of {samples}" for number in range(samples)]))


def perform(task: Task) -> Any:
    """One task on a worker, as plain values. Raises ValueError on a worker with other code."""
    what, data, traffic, given, stamp = task
    same_code(stamp)
    scenario = Scenario.parse(data)
    question = Question(scenario, scenario.plan or PlanPart(), traffic)
    if what == "screening":
        return [asdict_plain(screen(scenario, question.plan, one, traffic)) for one in given]
    if what == "simulating":
        return search(question, *given)
    if what == "sampling":
        return sample(question, *given)
    each = changed_capacity(question, *given)
    return each if each == each else None


def asdict_plain(paper: Screened) -> Row:
    """A screened candidate as JSON takes it: infinity as a word."""
    return {k: str(v) if v == inf else v for k, v in asdict(paper).items()}


def _infinite(answer: Sequence[Row]) -> list[Row]:
    return [{k: inf if v == "inf" else v for k, v in one.items()} for one in answer]


def _named(task: Task) -> str:
    given = task[3][0]
    return f"{task[0]} {given.label if isinstance(given, Candidate) else 'candidates'}"


def _promising(paper: Screened, number: int) -> tuple[float, float, int]:
    """Cheapest first; of those, the one that carries most for its dollars."""
    return paper.least_usd_per_hour, (paper.usd_per_hour or 0.0) / paper.capacity_per_s, number


def _enough(found: dict[int, Row], keep: int) -> float:
    """Dollars an hour of the last plan that would be kept; no end while there are fewer."""
    prices = sorted(one["usd_per_hour"] for one in found.values() if one["status"] == "kept")
    return float(prices[keep - 1]) if len(prices) >= keep else inf
