"""Seconds: whole steps of the executor, timed here, against the simulator on a profile calibrated here.

Calibration and judged steps are timed in turn, in one process and one thread. The judged models, batches and contexts
are not among those that the profile was fitted to (sim/calibration/cases.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device, Engine
from sim.analytic.model import ModelShape
from sim.calibrate import of_session, timed
from sim.calibration.cases import Case, judged
from sim.calibration.fit import FP32
from sim.calibration.session import Session
from sim.policies import Chunk, Chunks
from sim.policies.autoregressive import Autoregressive
from sim.serving.luck import Luck
from sim.serving.rounds import Rounds
from sim.validation.row import Row
from sim.variants.packed_products import PackedProducts

MEDIAN, P90 = 0.15, 0.30


@dataclass(frozen=True)
class Step:
    """One judged step: what it took and what the simulator says, in seconds."""

    case: Case
    simulated_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Relative error of the simulation."""
        return self.simulated_s / self.measured_s - 1


def compare(repeats: int = 2) -> list[Row]:
    """Median and 90th percentile of the errors of all judged steps, and the median of each phase."""
    return rows(steps(timed(1, repeats, "judge")))


def rows(found: Iterable[Step]) -> list[Row]:
    """The table's lines; simulated and measured are the seconds of all steps together."""
    done = list(found)
    decode, prefill = ([s for s in done if s.case.phase == phase] for phase in ("decode", "prefill"))
    return [
        _row(f"median error of {len(decode)} decode steps (s)", decode, 0.5, MEDIAN),
        _row(f"median error of {len(prefill)} prefill steps (s)", prefill, 0.5, MEDIAN),
        _row(f"90th percentile of the errors of {len(done)} steps (s)", done, 0.9, P90),
    ]


def steps(session: Session) -> list[Step]:
    """Fit the profile to the session's calibration, and predict its judged steps."""
    found = of_session(session, "here", 2000, 1, {})
    device, engine = Device.from_profile(found.device), Engine.from_profile(found.engine)
    rounds: dict[str, Rounds] = {}
    out = []
    for case, seconds in session.times(judged()).items():
        if case.model not in rounds:
            rounds[case.model] = simulator(case.shape, device, engine)
        out.append(Step(case, predicted_s(case, rounds[case.model]), min(seconds)))
    return out


def simulator(shape: ModelShape, device: Device, engine: Engine) -> Rounds:
    """The simulator of the NumPy executor: scores written out, weights packed, autoregressive."""
    cost = PassCost(shape, device, FP32, attention="standard", variants=[PackedProducts()])
    return Rounds(Autoregressive(), (cost,), engine, (shape.windows,), (len(shape.layers),))


def predicted_s(case: Case, rounds: Rounds) -> float:
    """Seconds of one step as a replica would charge them."""
    policy, windows = rounds.policy, rounds.windows
    if case.phase == "prefill":
        prompts = Chunks([Chunk(0, case.context, True)] * case.batch)
        return float(rounds.seconds(0, None, prompts, case.batch))
    channels = policy.rows(policy.future(Luck(0).of(0), 0, 1), case.context, windows)
    totals = [case.batch * int(channel[0]) for channel in channels]
    return float(rounds.seconds(case.batch, totals, None, case.batch))


def _row(what: str, done: list[Step], quantile: float, threshold: float) -> Row:
    error = float(np.quantile(np.abs([s.error for s in done]), quantile)) if done else float("nan")
    return Row("seconds", what, sum(s.simulated_s for s in done), sum(s.measured_s for s in done), error, threshold)
