"""One decoding round, pass by pass: when each runs, what bounds it, what it moves, who attends to whom.

Through the policy's own passes at the mean of its rounds, as ``decodesim speedup`` costs them: a mean count of tokens
lies between the whole ones beside it. No clock, no queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import Work
from sim.build import Built
from sim.law import laws_at
from sim.speedup import COUNTED, in_the_mean

__all__ = ["Attends", "Round", "Step", "attends_of", "round_of"]

MOVED = {
    "weights": "weight_bytes", "kv": "kv_bytes", "activations": "activation_bytes", "on chip": "onchip_bytes",
    "links": "link_bytes",
}  # fmt: skip
NOTHING, CACHED, BLOCK, PROJECTED = range(4)
EARLIER_BLOCKS, CACHED_COLUMNS = 2, 3


@dataclass(frozen=True)
class Step:
    """One forward pass. ``lane``: whose; ``start_s`` from the round's beginning; ``causes``: its seconds by what bound
    it; ``moved``: bytes of one device through main memory (weights, kv, activations), on chip and over links.
    """

    label: str
    lane: str
    tokens: float
    start_s: float
    seconds: float
    causes: Mapping[str, float]
    moved: Mapping[str, float]

    @property
    def bound(self) -> str:
        """What most of its time goes to."""
        return max(self.causes, key=lambda cause: self.causes[cause])


@dataclass(frozen=True)
class Attends:
    """Who attends to whom. ``cells``: [rows, columns] of 0 nothing, 1 cached, 2 a token of this round, 3 projected from
    the primary's states; the first ``cached`` columns stand for earlier tokens, not to scale.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]
    cached: int
    title: str


@dataclass(frozen=True)
class Round:
    """A round of ``batch`` sequences at ``context`` cached tokens; ``seconds`` = ``host_s`` + those of the steps (the
    longer of the two where the host works beside the device); ``tokens``: emitted by one sequence on average.
    """

    policy: str
    device: str
    batch: int
    context: int
    tokens: float
    host_s: float
    seconds: float
    steps: tuple[Step, ...]
    attends: Attends


def round_of(built: Built, batch: int = 1, context: int = 1024) -> Round:
    """The mean round of a scenario's policy. Raises ValueError for a batch or context below 1."""
    for name, value in (("batch", batch), ("context", context)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {value!r} must be a whole number of at least 1")
    policy, rounds = built.policy, built.setup.rounds
    loaded = getattr(policy, "loaded", None)
    law = laws_at(policy if loaded is None else loaded(batch), np.array([context]))[0]
    windows = rounds.windows[: 1 + len(policy.drafts)]
    seats = np.array([batch])
    totals: Any = law.channels(context, windows)[:, None] * batch  # means: floats
    passes, shares, launched = in_the_mean(rounds, seats, rounds.passes(seats, totals, None))
    host_s = float(np.sum(rounds.host_s(seats, seats, rounds.layers_run(launched)))) * rounds.slots
    beside = rounds.beside
    steps = tuple(_steps(built, zip(passes, shares, strict=True), 0.0 if beside else host_s))
    busy_s = sum(step.seconds for step in steps)
    return Round(
        policy.name, built.device.name, batch, context, law.expected_tokens, host_s,
        max(host_s, busy_s) if beside else host_s + busy_s, steps, attends_of(policy),
    )  # fmt: skip


def _steps(built: Built, passes: Iterable[Any], start_s: float) -> Iterator[Step]:
    """The passes one after another, those that stand for several steps taken apart; without those that never run.

    ``passes``: each with the share of rounds that run it (None: all), by which its seconds and bytes are weighed.
    """
    rounds = built.setup.rounds
    numbers: dict[str, int] = {}
    for one, share in passes:
        cost = rounds.costs[one.model]
        seconds, causes, counts = (_mean(ask, one.work) for ask in (_named(cost.seconds), cost.causes, cost.counts))
        tokens = np.atleast_1d(np.squeeze(np.asarray(one.work.tokens + 0.0 * seconds["seconds"]), axis=-1))
        rows = np.atleast_1d(np.squeeze(np.asarray(one.work.logit_rows + 0.0 * seconds["seconds"]), axis=-1))
        weights = np.broadcast_to(1.0 if share is None else np.asarray(share)[..., 0], tokens.shape)
        for number, count in enumerate(tokens):
            times = float(weights[number])
            slots = rounds.slots * times
            if not count and not rows[number]:
                continue
            role = _role(built, one)
            numbers[role] = numbers.get(role, 0) + 1
            taken = _at(seconds["seconds"], number) * slots
            yield Step(
                f"{role} {numbers[role]}" if role == "draft" else role,
                f"{_lane(role)}: {cost.shape.name}", float(count or rows[number]) * times, start_s, taken,
                {cause: _at(values, number) * slots for cause, values in causes.items()},
                {kind: _at(counts[key], number) * slots for kind, key in MOVED.items()},
            )  # fmt: skip
            start_s += taken


def _named(ask: Any) -> Any:
    return lambda work: {"seconds": ask(work)}


def _mean(ask: Any, work: Work) -> dict[str, Any]:
    """Answers for work whose counts may be means: between those of the whole counts beside them (as sim/speedup.py)."""
    low = work._replace(**{name: _whole(getattr(work, name)) for name in COUNTED})
    at_low = ask(low)
    total = dict(at_low)
    for name in COUNTED:
        rest = getattr(work, name) - getattr(low, name)
        if np.any(rest):
            more = ask(low._replace(**{name: getattr(low, name) + 1}))
            total = {key: value + rest * (more[key] - at_low[key]) for key, value in total.items()}
    return total


def _whole(count: Any) -> Any:
    return np.floor(np.asarray(count) + 1e-9).astype(np.int64)


def _at(values: Any, number: int) -> float:
    """Of one step; what all steps share has no axis of its own."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    return float(flat[number if len(flat) > 1 else 0])


def _role(built: Built, one: Any) -> str:
    if not one.model:
        return "verify" if built.policy.tokens_per_round > 1 else "decode"
    if one.work.decode_pairs is not None:
        return "draft"
    return "project" if built.policy.name == "tandem" else "heads"


def _lane(role: str) -> str:
    return {"verify": "target", "decode": "target"}.get(role, role)


# -- who attends to whom


def attends_of(policy: Any) -> Attends:
    """The mask of a round's verification: a tree's ancestors, a tandem's blocks, else the triangle of a chain."""
    inner = getattr(policy, "policy", policy)  # an encoder-decoder's form wraps the policy
    if inner.name == "tandem" and inner.gamma:
        return _tandem(inner)
    plan = getattr(inner, "plan", None)
    shape = getattr(plan, "shape", None)
    if shape is not None and hasattr(shape, "parents"):
        return _tree(shape)
    return _chain(inner.tokens_per_round)


def _tree(shape: Any) -> Attends:
    """The last token and all nodes; each sees the cache, its ancestors and itself."""
    names = ("last", *(".".join(map(str, path)) for path in shape.paths))
    own = np.zeros((len(names), len(names)), dtype=np.int64)
    own[0, 0] = BLOCK
    for node, parent in enumerate(shape.parents, 1):
        own[node] = own[parent + 1]
        own[node, node] = BLOCK
    return _with_cache(names, own, f"tree mask: {shape.nodes} nodes, {int((own > 0).sum())} pairs among them")


def _chain(tokens: int) -> Attends:
    names = ("last", *(f"draft {i}" for i in range(1, tokens)))
    own = np.tril(np.full((tokens, tokens), BLOCK))
    return _with_cache(names, own, "causal mask of verification" if tokens > 1 else "one token attends to the cache")


def _with_cache(names: tuple[str, ...], own: NDArray[np.int64], title: str) -> Attends:
    cells = np.hstack([np.full((len(names), CACHED_COLUMNS), CACHED), own])
    return Attends(names, ("cached",) * CACHED_COLUMNS + names, _plain(cells), CACHED_COLUMNS, title)


def _plain(cells: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, cells.tolist()))


def _tandem(policy: Any) -> Attends:
    """The secondary sees its own tokens of the block, and before it what is projected from the primary's states."""
    block, writes = policy.tokens_per_round, policy.gamma
    earlier = EARLIER_BLOCKS * block
    secondary = np.zeros((writes, earlier + block), dtype=np.int64)
    secondary[:, :earlier] = PROJECTED
    secondary[:, earlier : earlier + writes] = np.tril(np.full((writes, writes), BLOCK))
    primary = np.hstack([np.full((block, earlier), CACHED), np.tril(np.full((block, block), BLOCK))])
    rows = (*(f"secondary {i}" for i in range(1, writes + 1)), *(f"primary {i}" for i in range(1, block + 1)))
    before = tuple(f"block -{b}" for b in range(EARLIER_BLOCKS, 0, -1) for _ in range(block))
    columns = (*before, *(f"token {i}" for i in range(1, block + 1)))
    title = f"blocks of {block}: the secondary attends\nto the primary's earlier blocks"
    return Attends(rows, columns, _plain(np.vstack([secondary, primary])), earlier, title)
