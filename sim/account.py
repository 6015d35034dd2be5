"""Where the time and the energy of a run went, leap by leap: the recorded totals costed once more, op by op.

The clock keeps only seconds. Here the mean round of every leap (its sums divided by its rounds) goes through the
policy's passes again and through the kernels of each pass: seconds by cause, FLOPs, bytes, joules. Means make no
difference to what is linear in the work, which a leap's attention is; the seconds are then scaled, by a factor very
near 1, so that the causes of a leap add up to the nanoseconds it took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.analytic.ops import Op
from sim.analytic.roofline import CAUSES, hbm_bytes, joules, kernels, on_device, onchip_bytes
from sim.analytic.staged import Cost
from sim.analytic.work import Work, pairs_of, reads_of
from sim.policies import Pass, PromptPart, Sources, Windows
from sim.serving.rounds import Rounds

__all__ = [
    "LINEAR", "SECONDS", "Accounts", "Block", "Mode", "Prompted", "account", "account_pools", "driven", "joules_each",
    "leap_rows", "mean_rounds", "pool_places", "request_joules", "running_W",
]  # fmt: skip

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = Mapping[str, Ints]
Mode = Literal["coefficients", "tdp"]

SECONDS = (*CAUSES, "host")
COUNTS = ("flops", "vector_flops", "weight_bytes", "kv_bytes", "activation_bytes", "onchip_bytes", "link_bytes")
ROWS = (*CAUSES, *COUNTS, "joules", "compute_time_s")
LINEAR = ("tokens", "rows")
BLOCK = 1 << 15


@dataclass(frozen=True)
class Accounts:
    """Columns by leap, each of shape [leaps], in the order of the leap table.

    ``seconds``: by cause (SECONDS), adding up to the leap's duration. ``counts``: FLOPs and bytes of one device
    (COUNTS) and ``compute_time_s``, the seconds that the arithmetic would take if nothing else limited it.
    ``joules``: of all devices of the replica, static power while the leap ran included, NaN where energy is unknown;
    those of the mode asked for: ``floor``, what FLOPs and bytes are known to take, or ``ceiling``, what the devices
    draw at most (their TDP, or the cap that governs their clock).
    ``context``: cached tokens that the target reads per decoding sequence and full-attention layer, NaN without
    decodes. ``read_bytes``: KV bytes that the decoding sequences have cached. ``prefill_tokens``: of the chunks.
    ``metered``: dynamic joules counted round by round over those of mean rounds, 1 where they were not counted.
    ``scale``: the clock's seconds over those computed here. ``idle_W``: static power of a replica's devices.
    """

    seconds: dict[str, Floats]
    counts: dict[str, Floats]
    joules: Floats
    floor: Floats
    ceiling: Floats
    context: Floats
    read_bytes: Floats
    prefill_tokens: Ints
    metered: Floats
    scale: Floats
    idle_W: float


def account(rounds: Rounds, leaps: Columns, chunks: Columns, mode: Mode = "coefficients") -> Accounts:
    """Account for every leap of a run. ``leaps`` and ``chunks`` are the recorder's tables."""
    n = len(leaps["rounds"])
    totals = np.zeros((len(ROWS), n))
    reads = np.zeros((2, n))
    books: dict[int, list[_Book]] = {}
    prompts = Prompted.of(leap_rows(leaps, chunks), chunks, n)
    host_s = np.zeros(n)
    for rows, MHz, passes, seats, part in mean_rounds(rounds, leaps, prompts):
        if MHz not in books:
            books[MHz] = [_Book(cost.at_clock(MHz) if MHz else cost) for cost in rounds.costs]
        _add_block(books[MHz], passes, seats, rows, totals, reads, getattr(rounds.policy, "targets", (0,)))
        sequences = (leaps["seats"] + leaps["chunks"])[rows]
        slot_s = rounds.host_s(sequences, seats if np.ndim(seats) else None, rounds.layers_run(passes), part)
        host_s[rows] = slot_s * rounds.slots
        if rounds.beside:
            host_s[rows] = np.maximum(host_s[rows] - totals[: len(CAUSES), rows].sum(axis=0), 0.0)
    reads *= rounds.shares
    totals *= leaps["rounds"]
    return _scaled(rounds, leaps, totals, reads, host_s, prompts.tokens, mode)


class Block(NamedTuple):
    """Leaps of one kind and clock: their rows, MHz (0: fixed), the passes of their mean rounds, how many decode in
    each (0: nobody), and the prompts that they read (None: none).
    """

    rows: Ints
    MHz: int
    passes: list[Pass]
    seats: Any
    prompts: Prompted | None


def mean_rounds(rounds: Rounds, leaps: Columns, prompts: Prompted) -> Iterator[Block]:
    """The mean round of every leap, in blocks of leaps that are alike; ``prompts``: of all of them."""
    for rows, decoding, reading in _blocks(leaps):
        part = prompts.only(rows) if reading else None
        passes, seats = _passes(rounds, leaps, rows, part, decoding)
        yield Block(rows, int(leaps["clock_MHz"][rows[0]]), passes, seats, part)


def pool_places(pools: Sequence[tuple[Any, int]], recorder: Any = None) -> Ints:
    """Place in ``pools`` of each replica, by its number: as many as each pool says, in the order of their numbers.

    Where ``recorder.lives`` says to which group each replica belonged that ever was there, that is what counts.
    """
    lives = getattr(recorder, "lives", None)
    if lives is None or not len(lives):
        return np.repeat(np.arange(len(pools)), [count for _, count in pools])
    rows = lives.frame()
    places = np.zeros(int(rows["replica"].max()) + 1, dtype=np.int64)
    places[rows["replica"]] = rows["group"]
    return places


def account_pools(
    pools: Sequence[tuple[Rounds, int]],
    leaps: Columns,
    chunks: Columns,
    mode: Mode = "coefficients",
    places: Ints | None = None,
) -> Accounts:
    """The same where replicas are not all alike: (rounds, how many); ``places``: ``pool_places``, by default as many.

    ``idle_W`` is that of a mean replica.
    """
    if len(pools) == 1:
        return account(pools[0][0], leaps, chunks, mode)
    pool = pool_places(pools) if places is None else places
    rows = [pool[leaps["replica"]] == i for i in range(len(pools))]
    mine = [pool[chunks["replica"]] == i for i in range(len(pools))]
    parts = [
        account(rounds, {k: c[here] for k, c in leaps.items()}, {k: c[there] for k, c in chunks.items()}, mode)
        for (rounds, _), here, there in zip(pools, rows, mine, strict=True)
    ]
    places = np.argsort(np.concatenate([np.flatnonzero(here) for here in rows]))
    idle_W = float(np.mean(np.array([part.idle_W for part in parts])[pool]))

    def joined(columns: Sequence[Any]) -> Any:
        return np.concatenate(columns)[places]

    named = {
        group: {key: joined([getattr(part, group)[key] for part in parts]) for key in getattr(parts[0], group)}
        for group in ("seconds", "counts")
    }
    single = [f.name for f in fields(Accounts) if f.name not in ("seconds", "counts", "idle_W")]
    flat = {name: joined([getattr(part, name) for part in parts]) for name in single}
    return Accounts(idle_W=idle_W, **named, **flat)  # type: ignore[arg-type]


def leap_rows(leaps: Columns, parts: Columns, number: str = "leap") -> Ints:
    """Row in the leap table of each row of ``parts``, which says (replica, how many leaps that replica had before)."""
    order = np.argsort(leaps["replica"], kind="stable")
    counts = np.bincount(leaps["replica"], minlength=int(parts["replica"].max(initial=0)) + 1)
    starts = np.cumsum(counts) - counts
    rows: Ints = order[starts[parts["replica"]] + parts[number]]
    return rows


@dataclass(frozen=True)
class Prompted:
    """The prompt chunks of many leaps as columns, to be summed by leap; ``at`` is each one's place among ``n``."""

    at: Ints
    cached: Ints
    new: Ints
    last: Ints
    prompt: Ints
    n: int

    @classmethod
    def of(cls, rows: Ints, chunks: Columns, n: int) -> Prompted:
        """The recorder's chunk table, given the leap row of each chunk; sorted by leap."""
        order = np.argsort(rows, kind="stable")
        cached, new, last, prompt = (chunks[name][order] for name in ("cached", "new", "last", "prompt"))
        return cls(rows[order], cached, new, last, prompt, n)

    @property
    def tokens(self) -> Ints:
        """Prompt tokens read in each leap, shape [n]."""
        return self._sum(self.new)

    def only(self, rows: Ints) -> Prompted:
        """Those of the leaps ``rows`` (ascending), renumbered by their place in it."""
        inside = np.zeros(self.n, dtype=bool)
        inside[rows] = True
        mine = inside[self.at]
        places = np.searchsorted(rows, self.at[mine])
        cached, new, last, prompt = (c[mine] for c in (self.cached, self.new, self.last, self.prompt))
        return Prompted(places, cached, new, last, prompt, len(rows))

    def part(self, windows: Windows) -> PromptPart:
        """Totals by leap for a model with these attention kinds, shape [n] each."""
        pairs = tuple(self._sum(pairs_of(self.new, self.cached, w)) for w in windows)
        reads = tuple(self._sum(reads_of(self.cached, w)) for w in windows)
        return PromptPart(self.tokens, self._sum(self.last), pairs, reads)

    def encoded(self) -> tuple[Prompted, Sources]:
        """What the decoder reads of them, and what the encoder does, as ``sim.policies.Chunks`` has it."""
        source, rows = self.prompt, self.new - self.prompt + 1
        read = Sources(self._sum(source), self._sum(source * source), self._sum(source * rows))
        return Prompted(self.at, self.cached, rows, self.last, source, self.n), read

    def _sum(self, column: Ints) -> Ints:
        """Exact: whole numbers stay far below 2^53."""
        return np.bincount(self.at, column, self.n).astype(np.int64)


def request_joules(
    accounts: Accounts, leaps: Columns, chunks: Columns, stays: Columns, tokens_per_round: Any
) -> tuple[Ints, Floats]:
    """(request, joules) pairs to be summed by request: a leap's joules by the target tokens that each one ran.

    A decoding sequence runs ``tokens_per_round`` a round (a number, or one for each leap), a chunk its own tokens.
    Sequences that were cut off when a run was interrupted have no stay, and their share stays unassigned.
    """
    per_token, per_seat = joules_each(accounts, leaps, tokens_per_round)
    order = np.argsort(leaps["replica"], kind="stable")
    before = np.concatenate(([0.0], np.cumsum(per_seat[order])))
    counts = np.bincount(leaps["replica"], minlength=int(stays["replica"].max(initial=0)) + 1)
    start = (np.cumsum(counts) - counts)[stays["replica"]]
    stayed = (before[start + stays["last_leap"]] - before[start + stays["first_leap"]]) * stays["seats"]
    read = per_token[leap_rows(leaps, chunks)] * chunks["new"]
    return np.concatenate((stays["request"], chunks["request"])), np.concatenate((stayed, read))


def joules_each(accounts: Accounts, leaps: Columns, tokens_per_round: Any) -> tuple[Floats, Floats]:
    """Joules of a target token and of a decoding sequence in each leap, shape [leaps] each; see `request_joules`."""
    decode = leaps["seats"] * leaps["rounds"] * tokens_per_round
    per_token = accounts.joules / np.maximum(decode + accounts.prefill_tokens, 1)
    return per_token, np.where(leaps["seats"] > 0, per_token * leaps["rounds"] * tokens_per_round, 0.0)


# -- one block of leaps of the same kind


def _blocks(leaps: Columns) -> Iterator[tuple[Ints, bool, bool]]:
    """(rows, somebody decodes, prompts are read): leaps of one kind and clock, at most BLOCK at a time."""
    decoding, reading, clock = leaps["seats"] > 0, leaps["chunks"] > 0, leaps["clock_MHz"]
    for decode, read in ((True, False), (False, True), (True, True)):
        alike = np.flatnonzero((decoding == decode) & (reading == read))
        for MHz in np.unique(clock[alike]):
            rows = alike[clock[alike] == MHz]
            for start in range(0, len(rows), BLOCK):
                yield rows[start : start + BLOCK], decode, read


def _passes(
    rounds: Rounds, leaps: Columns, rows: Ints, prompts: Prompted | None, decoding: bool
) -> tuple[list[Pass], Any]:
    """The passes of the mean round of the leaps ``rows``, and how many decode in each."""
    seats: Any = leaps["seats"][rows] if decoding else 0
    sums: Any = None
    if decoding:
        names = [f"sum_{i}" for i in range(rounds.policy.channels(rounds.windows))]  # others of a fleet may have more
        sums = np.stack([leaps[name][rows] for name in names]) / leaps["rounds"][rows]
    return rounds.mean_passes(seats, sums, prompts), seats


def _add_block(
    books: Sequence[_Book], passes: Sequence[Pass], seats: Any, rows: Ints, totals: Floats, reads: Floats,
    targets: Sequence[int] = (0,),
) -> None:
    """Put the mean round of the leaps ``rows`` into ``totals`` [ROWS, leaps] and ``reads`` [context, bytes].

    ``targets``: models that write what is put out; each sequence is in the pass of one of them.
    """  # fmt: skip
    met: set[int] = set()
    block = np.zeros((len(ROWS), len(rows)))
    for one in passes:
        block += books[one.model].rows(one.work)
        if np.ndim(seats) and one.model not in met and one.work.decode_reads:  # projections and heads have none
            met.add(one.model)
            reads[:, rows] += _cached(one.work, seats, books[one.model].cost, one.model in targets)
    totals[:, rows] = block


def _cached(work: Work, seats: Ints, cost: Cost, target: bool) -> Floats:
    """(longest context over attention kinds, a sequence; KV bytes cached) of a model's first pass with decodes."""
    kinds = work.decode_reads or ()
    held: Any = sum((r * size for r, size in zip(kinds, cost.kv_bytes_per_token, strict=True)), np.zeros(len(seats)))
    held = held + (work.cross_reads - work.cross_kv_tokens) * cost.cross_bytes_per_token
    longest = np.maximum.reduce(list(kinds)) / seats if target else np.zeros(len(seats))
    return np.stack([longest, held])


def driven(work: Work) -> Iterator[tuple[Sequence[str], NDArray[Any], int]]:
    """(drivers of ops, the count that they follow by leap, how often a round runs them) of what one count decides."""
    steps = max((p.shape[0] for p in work.decode_pairs or () if np.ndim(p) == 2), default=1)
    same = np.array_equal(work.tokens, work.logit_rows)
    groups = [LINEAR] if same else [(name,) for name in LINEAR]
    columns = [work.tokens] if same else [work.tokens, work.logit_rows]
    for drivers, counts in zip(groups, columns, strict=True):
        if np.any(counts):
            yield drivers, np.asarray(counts), steps


class _Book:
    """Every quantity of ROWS for one model's passes; what depends on one count alone is looked up by it."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost

    def rows(self, work: Work) -> Floats:
        """Shape [ROWS, n]; leading axes of the work (draft steps) are summed."""
        total: Floats = self._attention(work)
        for drivers, counts, steps in driven(work):
            total = total + steps * self._looked_up(drivers, counts)
        return total

    def _looked_up(self, drivers: Sequence[str], counts: NDArray[Any]) -> Floats:
        """Kernels that follow one count, by its value; a mean count lies between two whole ones."""
        low = counts.astype(np.int64)
        rest = counts - low
        seen = np.bincount(low, minlength=int(low.max()) + 2) > 0
        seen[1:] |= seen[:-1]
        place = np.cumsum(seen) - 1
        table = self._table(drivers, np.flatnonzero(seen))
        found: Floats = table.take(place[low], axis=1)
        if np.any(rest):
            found += rest * (table.take(place[low + 1], axis=1) - found)
        return found

    def _table(self, drivers: Sequence[str], counts: Ints) -> Floats:
        work = Work(counts if "tokens" in drivers else 0, counts if "rows" in drivers else 0)
        return self._total((op for op in self.cost.ops(work) if op.driver in drivers), counts.shape)

    def _attention(self, work: Work) -> Floats:
        """Everything else: attention, and what runs once per cached token."""
        columns = [c for pairs in (work.decode_pairs, work.prefill_pairs) for c in pairs or ()]
        columns += [work.tokens, work.logit_rows, work.encoder_tokens]
        shape = np.broadcast_shapes(*(np.shape(c) for c in columns))
        total = self._total((op for op in self.cost.ops(work) if op.driver not in LINEAR), shape)
        return total if total.ndim < 3 else total.sum(axis=1)

    def _total(self, ops: Iterator[Op], shape: tuple[int, ...]) -> Floats:
        total = np.zeros((len(ROWS), *shape))
        for kernel in kernels(ops):
            for row, value in zip(total, self._kernel(kernel), strict=True):
                if np.ndim(value) or value:
                    row += value
        return total

    def _kernel(self, kernel: list[Op]) -> list[Any]:
        """The values of ROWS, in that order, for one kernel over its layers."""
        device, place = self.cost.device, self.cost.placement
        bound = on_device(kernel, device, place)
        layers = kernel[0].layers
        flops = [sum(op.flops for op in kernel if op.unit == unit) for unit in ("tensor", "vector")]
        links = sum(op.link_bytes for op in kernel)
        counts = (*flops, *hbm_bytes(kernel, place), onchip_bytes(kernel), links)
        energy = joules(kernel, device, place) * self.cost.layout.devices
        return [*bound.causes().values(), *(layers * c for c in counts), energy, bound.compute_s]


def running_W(rounds: Rounds, leaps: Columns) -> Floats:
    """Watts of running compute units beyond idle power, FLOPs and bytes, of all devices, where a profile tells them."""
    clock, devices = rounds.costs[0].device.clock, rounds.costs[0].layout.devices
    if clock is None:
        return np.zeros(len(leaps["rounds"]))
    MHz = np.where(leaps["clock_MHz"] > 0, leaps["clock_MHz"], clock.rated_MHz)
    volts = np.maximum(MHz, clock.voltage_floor_MHz) / clock.rated_MHz
    watts: Floats = clock.busy_W * devices * (MHz / clock.rated_MHz) * volts**2
    return watts


def _metered(leaps: Columns, joules: Floats) -> Floats:
    """What the clock counted of each leap over ``joules``, those of its mean rounds; 1 where it counted nothing."""
    nJ = leaps.get("nJ", np.full(len(joules), -1))
    counted: Floats = np.where((nJ >= 0) & (joules > 0), nJ * 1e-9 / np.where(joules > 0, joules, 1.0), 1.0)
    return counted


def _most_W(rounds: Rounds, leaps: Columns) -> Floats:
    """Watts that all devices of a replica draw at most, NaN where unknown: TDP, or the cap that governs their clock."""
    device, devices = rounds.costs[0].device, rounds.costs[0].layout.devices
    tdp_W = float("nan") if device.tdp_W is None else device.tdp_W
    cap_W = tdp_W if device.clock is None else min(tdp_W, device.clock.cap_W)
    watts: Floats = devices * np.where(leaps["clock_MHz"] > 0, cap_W, tdp_W)
    return watts


def _scaled(
    rounds: Rounds, leaps: Columns, totals: Floats, reads: Floats, host_s: Floats, prefill_tokens: Ints, mode: Mode
) -> Accounts:
    """Add host time, make the causes add up to the leap, add static power."""
    seconds = dict(zip(CAUSES, totals, strict=False))
    seconds["host"] = host_s * leaps["rounds"]
    duration_s = leaps["duration_ns"] * 1e-9
    raw = sum(seconds.values())
    scale = duration_s / np.where(raw > 0, raw, duration_s)
    energy, devices = rounds.costs[0].device.energy, rounds.costs[0].layout.devices
    idle_W = energy.idle_W * devices if energy is not None else float("nan")
    rest = dict(zip(ROWS[len(CAUSES) :], totals[len(CAUSES) :], strict=True))
    metered = _metered(leaps, rest["joules"])
    floor = metered * rest.pop("joules") + (idle_W + running_W(rounds, leaps)) * duration_s
    ceiling = _most_W(rounds, leaps) * duration_s
    return Accounts(
        seconds={name: value * scale for name, value in seconds.items()},
        joules=ceiling if mode == "tdp" else floor,
        floor=floor,
        ceiling=ceiling,
        counts=rest,
        context=np.where(leaps["seats"] > 0, reads[0], np.nan),
        read_bytes=reads[1],
        prefill_tokens=prefill_tokens,
        metered=metered,
        scale=scale,
        idle_W=idle_W,
    )
