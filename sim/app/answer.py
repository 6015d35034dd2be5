"""A question answered by the analytic core alone: no clock, no page. The same question has the same answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.memory import DoesNotFit
from sim.analytic.work import Work, pairs_of, reads_of
from sim.app.parts import round_parts
from sim.app.question import BATCHES, MOST_GAMMA, Question
from sim.ask import OpView, roofline_points
from sim.axes import Axis
from sim.build import Built
from sim.policies import Policy, PromptPart, Windows
from sim.scenario import Scenario
from sim.speedup import Known, curve_of
from sim.uncertain.ranges import outside

__all__ = ["Answer", "answer"]

NO_TRAFFIC = {"rate": 1, "requests": 1, "prompt": 1, "output": 1}
GAMMAS = tuple(range(1, MOST_GAMMA + 1))
MOST_ASKED = 500  # of one place, before what it has kept is thrown away
_ONE_BY_ONE = threading.Lock()  # tabs share what was built, and one core


@dataclass(frozen=True)
class Answer:
    """Everything the page says; rates of one replica, times in milliseconds.

    ``tokens_per_s``: of the whole batch; ``ttft_ms``: of one prompt on an idle replica, None where the model cannot
    hold it; ``speedup``: over autoregressive decoding of the same target, batch and context. ``room``: why it fits or
    not; ``most_sequences``: of that context in the KV pool. ``usd_per_million``: output tokens at this batch without
    a pause, None without a price. ``parts``: milliseconds of a round by cause, ``bound`` the largest.
    ``by_gamma``, ``by_batch``: columns of the curves; ``points``, ``roofs`` (FLOP/s by label) and ``memory_Bps``:
    the roofline of one device.
    """

    question: Question
    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float | None
    round_ms: float
    expected_tokens: float
    speedup: float
    fits: bool
    room: str
    most_sequences: int
    usd_per_million: float | None
    price: str
    bound: str
    parts: Mapping[str, float]
    by_gamma: Mapping[str, NDArray[Any]]
    by_batch: Mapping[str, NDArray[Any]]
    points: tuple[OpView, ...]
    roofs: Mapping[str, float]
    memory_Bps: float
    notes: tuple[str, ...]


def answer(question: Question) -> Answer:
    """The answer. Raises ValueError, one line, for what cannot be built; DoesNotFit where the weights do not fit."""
    with _ONE_BY_ONE:
        try:
            return _answer(question)
        except DoesNotFit as error:
            raise DoesNotFit(" ".join(str(error).split())) from None


def _answer(question: Question) -> Answer:
    known = _known(question)
    fixed = _fixed(question)
    built, policy = known.of([axis.setting(axis.values[0]) for axis in fixed])
    by_gamma, by_batch = _by_gamma(known, question, fixed), _by_batch(known, question, fixed, built, policy)
    here = int(np.searchsorted(by_batch["batch"], question.batch))
    parts = {cause: float(by_batch[cause][here]) for cause in by_batch["causes"]}
    tokens_per_s = question.batch * float(by_batch["tokens_per_s"][here])
    fits, room, most = _room(built, policy, question)
    return Answer(
        question=question,
        tokens_per_s=tokens_per_s,
        tpot_ms=float(by_batch["round_ms"][here] / by_batch["expected_tokens"][here]),
        ttft_ms=_ttft_ms(built, question.prompt),
        round_ms=float(by_batch["round_ms"][here]),
        expected_tokens=float(by_batch["expected_tokens"][here]),
        speedup=float(by_batch["speedup"][here]),
        fits=fits,
        room=room,
        most_sequences=most,
        usd_per_million=_usd_per_million(built, tokens_per_s),
        price=built.device.price_note,
        bound=max(parts, key=lambda cause: parts[cause]),
        parts=parts,
        by_gamma=by_gamma,
        by_batch=by_batch,
        **_roofline(built, question),
    )


# -- what was put together for one place of the sliders serves the next


@dataclass
class _Place:
    known: Known
    asked: int = 0


def _known(question: Question) -> Known:
    """Everything that alpha, gamma, batch, context and prompt leave as it is."""
    key = (question.device, question.devices, question.model, question.format, question.engine, question.policy)
    place = _place(*key)
    place.asked += 1
    if place.asked > MOST_ASKED:  # it keeps the baseline of every batch and context that it was ever asked
        place.known, place.asked = Known(place.known.scenario), 0
    return place.known


@lru_cache(maxsize=32)
def _place(device: str, devices: int, model: str, format_: str, engine: str, policy: str) -> _Place:
    whole = Question(device=device, devices=devices, model=model, format=format_, engine=engine, policy=policy)
    return _Place(Known(Scenario.parse(whole.scenario() | {"workload": NO_TRAFFIC}, "page")))


def _fixed(question: Question) -> list[Axis]:
    values = {"acceptance": float(question.alpha), "gamma": question.gamma}
    return [Axis(f"policy.{option}", (values[option],)) for option in question.options]


# -- the parts of an answer


def _by_gamma(known: Known, question: Question, fixed: list[Axis]) -> dict[str, NDArray[Any]]:
    """Columns gamma, speedup, expected_tokens; empty where the policy has no gamma."""
    if "gamma" not in question.options:
        return {}
    axes = [Axis("policy.gamma", GAMMAS) if axis.path == "policy.gamma" else axis for axis in fixed]
    here = [Axis("batch", (question.batch,)), Axis("context", (question.context,))]
    table = curve_of(known, [*axes, *here]).table
    return {"gamma": np.array(GAMMAS), **{name: table[name] for name in ("speedup", "expected_tokens")}}


def _by_batch(
    known: Known, question: Question, fixed: list[Axis], built: Built, policy: Policy
) -> dict[str, NDArray[Any]]:
    """Columns of the curve over batch, and milliseconds of a round by cause."""
    batches = tuple(sorted({*BATCHES, question.batch}))
    table = curve_of(known, [*fixed, Axis("batch", batches), Axis("context", (question.context,))]).table
    kept = ("batch", "expected_tokens", "round_ms", "tokens_per_s", "speedup", "fits")
    parts = round_parts(built.setup.rounds, policy, np.array(batches), question.context)
    milliseconds = {cause: seconds * 1e3 for cause, seconds in parts.items()}
    return {**{name: table[name] for name in kept}, **milliseconds, "causes": np.array(list(parts))}


def _ttft_ms(built: Built, prompt: int) -> float | None:
    """One prompt on an idle replica, read in chunks of the scheduler's budget; None beyond the model's context."""
    if prompt >= built.shapes[0].max_context:
        return None
    budget = getattr(built.scheduler, "token_budget", prompt)
    cached = np.arange(0, prompt, budget)
    new = np.minimum(budget, prompt - cached)
    seconds = built.setup.rounds.seconds(0, None, _Pieces(cached, new, (cached + new == prompt).astype(np.int64)), 1)
    return (built.engine.request_s + float(np.sum(seconds))) * 1e3


@dataclass(frozen=True)
class _Pieces:
    """One prompt's pieces, each read in a round of its own; arrays of shape [rounds]."""

    cached: NDArray[np.int64]
    new: NDArray[np.int64]
    last: NDArray[np.int64]

    def part(self, windows: Windows) -> PromptPart:
        pairs = tuple(pairs_of(self.new, self.cached, window) for window in windows)
        return PromptPart(self.new, self.last, pairs, tuple(reads_of(self.cached, window) for window in windows))


def _room(built: Built, policy: Policy, question: Question) -> tuple[bool, str, int]:
    kv, shape, context = built.setup.kv, built.shapes[0], question.context
    each = float(kv.bytes_of(context + policy.tokens_per_round, context))
    most = int(kv.capacity_bytes // each)
    if context + policy.tokens_per_round > shape.max_context:
        return False, f"{shape.name} has a context of {shape.max_context:,} tokens", most
    said = f"{question.batch * each / 1e9:,.1f} GB of KV cache in a pool of {kv.capacity_bytes / 1e9:,.1f} GB"
    return question.batch <= most, said, most


def _usd_per_million(built: Built, tokens_per_s: float) -> float | None:
    hourly = built.device.usd_per_hour
    return None if hourly is None else hourly * built.layout.devices / (tokens_per_s * 3600) * 1e6


def _roofline(built: Built, question: Question) -> dict[str, Any]:
    """Dots of a prompt and of an autoregressive step on one device, its roofs, and what the answer rests on."""
    cost = built.costs[0]
    windows = cost.shape.windows
    works = {
        "prefill": Work.prefill(1, question.prompt, windows)._replace(everywhere=question.prompt),
        "decode": Work.decode(question.batch, question.context, windows=windows)._replace(everywhere=question.batch),
    }
    points = tuple(roofline_points(cost, works))
    peaks = [cost.device.peak_flops(name) for name in dict.fromkeys(p.format for p in points if p.unit == "tensor")]
    vector = cost.device.vector_flops()
    notes = [peak.note for peak in peaks] + [vector.note, *outside(cost, list(works.values()))]
    return {
        "points": points,
        "roofs": {**{peak.used_format: peak.flops for peak in peaks}, "vector units": vector.flops},
        "memory_Bps": cost.device.memory_Bps,
        "notes": tuple(dict.fromkeys(filter(None, notes))),
    }
