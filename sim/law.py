"""What a policy does round by round with the luck spread evenly: tokens of a round and its mean channels. No clock."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.policies import Future, Policy, Windows

__all__ = ["Law", "Spread", "laws_at"]

Floats = NDArray[np.float64]
ROUNDS = 1024  # of the future that means are taken over
LATER = 64  # rounds left out at the front: what a sequence does once it has settled


class Spread:
    """Luck without luck: every purpose draws each of ``ROUNDS`` evenly spaced uniforms once, in a mixed order.

    Means over ``ROUNDS`` rounds then miss a survival vector by at most 1/(2 ROUNDS) in each entry. Takes the place of
    the addressed draws of a sample (``sim.policies.Draws``).
    """

    prompt = 0

    def __init__(self) -> None:
        self._kept: dict[str, Floats] = {}

    def uniforms(self, purpose: str, start: int, count: int) -> Floats:
        """``count`` draws from own round ``start`` on; they repeat after ``ROUNDS``."""
        return self._draws(purpose).take(np.arange(start, start + count), mode="wrap")

    def from_tile(self, purpose: str, build: Any, *beside: str) -> tuple[Any, int, int]:
        """What ``build`` makes of one lap, shape [1, ROUNDS], of this purpose and of each of those ``beside`` it."""
        return build(*(self._draws(one)[None, :] for one in (purpose, *beside))), 0, ROUNDS

    def _draws(self, purpose: str) -> Floats:
        if purpose not in self._kept:
            mixed = np.random.Generator(np.random.PCG64(list(purpose.encode()))).permutation(ROUNDS)
            self._kept[purpose] = (mixed + 0.5) / ROUNDS
        return self._kept[purpose]


SPREAD = Spread()


class Law(NamedTuple):
    """What a policy does round by round, context put aside: ``future`` with offsets 0, and tokens a round."""

    policy: Policy
    future: Future
    expected_tokens: float

    @classmethod
    def of(cls, policy: Policy) -> Law:
        """From a future of ``ROUNDS`` rounds; tokens a round by the policy's own closed form where it has one."""
        rounds = ROUNDS + LATER
        whole = policy.future(SPREAD, 0, (rounds + 1) * policy.tokens_per_round)
        gains, kept, drafted = (column[:rounds] for column in (whole.gains, whole.kept, whole.drafted))
        closed = getattr(policy, "expected_tokens", None)
        mean = float(gains[LATER:].mean()) if closed is None else float(closed)
        return cls(policy, Future(gains, np.zeros_like(gains), kept, drafted), mean)

    def channels(self, context: int, windows: tuple[Windows, ...]) -> Floats:
        """Mean of the policy's channels for one sequence with ``context`` tokens cached; shape [channels]."""
        if self._counts_on(windows):
            return self._one_by_one(context, windows)
        rows = self.policy.rows(self.future, context, windows)
        return np.array([row[LATER:].mean() for row in rows])

    def _counts_on(self, windows: tuple[Windows, ...]) -> bool:
        """Whether the policy lets the context grow by itself, offsets or not, as one with a constant gain may."""
        two = Future(*(column[:2] for column in self.future[:4]))
        moved = two._replace(offsets=two.offsets + np.array([0, two.gains[0]]))
        pairs = zip(self.policy.rows(two, 64, windows), self.policy.rows(moved, 64, windows), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    def _one_by_one(self, context: int, windows: tuple[Windows, ...]) -> Floats:
        """The same from each kind of round and the one before it, which begins a gain earlier."""
        columns = np.stack([self.future.gains, self.future.kept, self.future.drafted])[:, LATER - 1 :]
        kinds, counts = np.unique(np.concatenate([columns[:, :-1], columns[:, 1:]]), axis=1, return_counts=True)
        total = np.zeros(self.policy.channels(windows))
        for kind, count in zip(kinds.T, counts, strict=True):
            (gains, kept, drafted), first = kind.reshape(2, 3).T.copy(), min(int(kind[0]), context)
            two = Future(gains, np.array([0, first]), kept, drafted)
            rows = self.policy.rows(two, context - first, windows)
            total += count * np.array([row[1] for row in rows])
        return np.asarray(total / counts.sum())


def laws_at(policy: Policy, contexts: NDArray[np.int64]) -> list[Law]:
    """The law at each of some contexts: one and the same unless the policy says that it depends (``settled``)."""
    settled = getattr(policy, "settled", None)
    if settled is None or settled(int(contexts[0])) is policy:
        return [Law.of(policy)] * len(contexts)
    return [Law.of(settled(int(context))) for context in contexts]
