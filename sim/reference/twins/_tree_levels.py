"""One level of a tree through a drafter whose cache holds the levels above it: who sees which slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.batch import Batch, Order, Span
from sim.reference.cache import KVCache
from sim.reference.twins._tree import Shape

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

Array = NDArray[Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Slots:
    """Which rows of a tree a drafter runs, level by level, and where their keys lie behind the root's."""

    shape: Shape
    inner: bool

    def level(self, depth: int) -> tuple[int, ...]:
        """Rows run at a depth."""
        return self.shape.rows_at(depth, self.inner)

    def before(self, depth: int) -> tuple[int, ...]:
        """Rows whose slots are filled when a depth is run, in their order."""
        return tuple(row for d in range(1, depth) for row in self.level(d))


@dataclass(frozen=True)
class Level(Batch):
    """New tokens at one depth of a tree. ``row_depths``: of the slots behind the root, the new tokens' included;

    ``sees`` [new, slots]: their ancestors and themselves.
    """

    row_depths: tuple[int, ...] = ()
    sees: tuple[tuple[bool, ...], ...] = ()

    def _span(self, places: list[int], window: int | None) -> Span:
        n, depth = len(self.sees), self.row_depths[-1]
        bases = self.starts[places] - (len(self.row_depths) - n)  # tokens up to the root
        low = 0 if window is None else max(0, int(bases.min()) - window)
        slots = np.arange(low, int(bases.max()) + len(self.row_depths))
        behind = slots - bases[:, None]  # [b, L], below 0: text up to the root
        place = np.clip(behind, 0, len(self.row_depths) - 1)
        inside = behind < len(self.row_depths)
        seen = (behind < 0)[:, None] | ((behind >= 0) & inside)[:, None] & np.array(self.sees)[:, place].swapaxes(0, 1)
        key_depths = np.where(behind < 0, behind + 1, np.array(self.row_depths)[place])  # [b, L]
        distances = np.repeat((key_depths - depth)[:, None], n, axis=1)
        near = inside & (behind < len(self.row_depths) - n)  # cached before this pass
        if window is not None:
            seen &= distances > -window
            near &= key_depths - depth > -window
        rows = self.offsets[places][:, None] + np.arange(n)
        visible = None if seen.all() else seen
        return Span(self.sequences[places], rows, slots, visible, distances, int(seen.sum()), int(near.sum()))


def level_batch(
    slots: Slots, depth: int, ids: Sequence[Sequence[int]], active: Sequence[int], cache: KVCache, exact: bool
) -> Level:
    """The rows of ``depth`` of every active sequence, ``ids`` [b, n]; the cache holds the root and the levels above."""
    before, now = slots.before(depth), slots.level(depth)
    n, parents = len(now), slots.shape.mask.parents
    sees = tuple(tuple(_above(parents, row, other) for other in (*before, *now)) for row in now)
    order = Order(np.full(n, depth - 1 - len(before)), np.eye(n, dtype=bool))
    index = np.asarray(active, np.int64)
    return Level(
        ids=np.asarray(ids, np.int64).reshape(-1),
        sequences=index,
        counts=np.full(len(index), n),
        starts=cache.lengths[index],
        orders=(order,) * len(index),
        exact=exact,
        row_depths=tuple(slots.shape.depths[row] for row in (*before, *now)),
        sees=sees,
    )


def _above(parents: Sequence[int], row: int, other: int) -> bool:
    while row > other:
        row = parents[row]
    return row == other


def run(model: Transformer, x: Array, batch: Batch, cache: KVCache) -> Array:
    """The layers of a model over states that are there already, [tokens, d] -> [tokens, d]; the cache grows."""
    cache.reserve(int((batch.starts + batch.counts).max()))
    for i in range(len(model.shape.layers)):
        x = model.block(i, x, batch, cache)
    cache.commit(batch.sequences, batch.counts)
    return x
