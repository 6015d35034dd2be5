"""The new tokens of one pass, ragged over sequences, and who among them sees which cached token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TreeMask:
    """A tree of drafted tokens: ``parents[j] < j`` is the node that j follows, -1 the last cached token.

    A node sees all cached tokens, its ancestors and itself; its position is that of its parent plus one.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise ValueError(f"parents[{node}]: {parent} is not allowed, a parent is -1 or an earlier node")

    @staticmethod
    def chain(length: int) -> TreeMask:
        """Ordinary causal order: every token follows the one before it."""
        return TreeMask(tuple(range(-1, length - 1)))

    @cached_property
    def depths(self) -> Ints:
        """Steps from the last cached token, less one, [nodes]."""
        depths = np.zeros(len(self.parents), np.int64)
        for node, parent in enumerate(self.parents):
            depths[node] = depths[parent] + 1 if parent >= 0 else 0
        return depths

    @cached_property
    def sees(self) -> NDArray[np.bool_]:
        """[nodes, nodes]: row j is true at the ancestors of j and at j."""
        sees = np.eye(len(self.parents), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node] |= sees[parent]
        return sees


@dataclass(frozen=True)
class Order:
    """How the n new tokens of a sequence stand to each other: depths [n], and who sees whom [n, n]."""

    depths: Ints
    sees: NDArray[np.bool_]

    @staticmethod
    def of(tree: TreeMask | None, length: int) -> Order:
        """The order of a tree, or (None) of plain causal text."""
        if tree is None:
            return Order(np.arange(length), np.tri(length, dtype=bool))
        return Order(tree.depths, tree.sees)


@dataclass(frozen=True)
class Span:
    """Queries that are attended together: a rectangle of the batch, for one attention kind.

    ``sequences`` [b]; ``rows`` [b, n] into the pass's tokens; ``slots`` [L] of the cache; ``visible`` [b, n, L] or
    None where all is; ``distances`` [b, n, L] key position less query position. ``pairs``: attended pairs,
    ``cached``: cached tokens read.
    """

    sequences: Ints
    rows: Ints
    slots: Ints
    visible: NDArray[np.bool_] | None
    distances: Ints
    pairs: int
    cached: int

    def gather(self, array: Array) -> Array:
        """[sequences, heads, capacity, dim] -> [b, heads, L, dim]: the slots read (a view where they are adjacent)."""
        low, high = int(self.slots[0]), int(self.slots[-1]) + 1
        rows = self.sequences
        first = int(rows[0])
        adjacent = bool((rows == np.arange(first, first + len(rows))).all())
        part = array[first : first + len(rows), :, low:high] if adjacent else array[rows, :, low:high]
        return part if high - low == len(self.slots) else part[:, :, self.slots - low]


@dataclass(frozen=True)
class Batch:
    """New tokens of one pass: ``ids`` [tokens] of ``sequences`` [B] in turn, ``counts`` [B] each after ``starts`` [B].

    ``orders``: one :class:`Order` a sequence. ``exact``: every query is attended alone, over just what it sees.
    """

    ids: Ints
    sequences: Ints
    counts: Ints
    starts: Ints
    orders: tuple[Order, ...]
    exact: bool = False

    @cached_property
    def offsets(self) -> Ints:
        """[B + 1]: where the tokens of each sequence begin."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def positions(self) -> Ints:
        """[tokens]: position of each token in its sequence."""
        return np.concatenate([s + o.depths for s, o in zip(self.starts, self.orders, strict=True)])

    @cached_property
    def lengths(self) -> Ints:
        """[tokens]: tokens of its sequence once this pass is done (for dynamic RoPE)."""
        return np.repeat(self.starts + self.counts, self.counts)

    @cached_property
    def _spans(self) -> dict[int | None, list[Span]]:
        return {}

    def spans(self, window: int | None) -> list[Span]:
        """The rectangles to attend, for a window (None: all positions); computed once a pass and kind."""
        if window not in self._spans:
            merged = [self._span(group, window) for group in self._groups()]
            self._spans[window] = [one for span in merged for one in _rows_apart(span)] if self.exact else merged
        return self._spans[window]

    def _groups(self) -> list[list[int]]:
        """Places in the batch that can be attended together: same number of tokens, same order."""
        groups: dict[tuple[int, int], list[int]] = {}
        for place, (count, order) in enumerate(zip(self.counts, self.orders, strict=True)):
            key = (int(count), place if self.exact else id(order))
            groups.setdefault(key, []).append(place)
        return [places for (count, _), places in groups.items() if count]

    def _span(self, places: list[int], window: int | None) -> Span:
        order, starts = self.orders[places[0]], self.starts[places]
        n = len(order.depths)
        low = 0 if window is None else max(0, int(starts.min()) - window + 1)
        slots = np.arange(low, int(starts.max()) + n)
        ahead = slots - starts[:, None]  # [b, L], below 0: cached
        node = np.clip(ahead, 0, n - 1)
        fresh = (ahead >= 0) & (ahead < n)
        seen = (ahead < 0)[:, None] | (fresh[:, None] & order.sees[:, node].swapaxes(0, 1))  # [b, n, L]
        key_depths = np.where(ahead < 0, ahead, order.depths[node])  # [b, L]
        distances = key_depths[:, None] - order.depths[:, None]
        if window is not None:
            seen &= distances > -window
        cached = starts if window is None else np.minimum(starts, window - 1)
        rows = self.offsets[places][:, None] + np.arange(n)
        visible = None if seen.all() else seen
        return Span(self.sequences[places], rows, slots, visible, distances, int(seen.sum()), int(cached.sum()))


def _rows_apart(span: Span) -> list[Span]:
    """One span a query, over exactly the slots it sees; what is read of the cache is counted with the first."""
    out = []
    for i in range(span.rows.shape[1]):
        seen = np.ones(len(span.slots), bool) if span.visible is None else span.visible[0, i]
        cached = span.cached if i == 0 else 0
        distances = span.distances[:, i : i + 1, seen]
        one = Span(span.sequences, span.rows[:, i : i + 1], span.slots[seen], None, distances, int(seen.sum()), cached)
        out.append(one)
    return out


def make_batch(
    tokens: Sequence[Array],
    sequences: Sequence[int],
    lengths: Ints,
    vocab: int,
    tree: TreeMask | Sequence[TreeMask | None] | None = None,
    exact: bool = False,
) -> Batch:
    """Check the new tokens of a pass and line them up.

    ``lengths``: cached tokens of all the cache's sequences; ``tree``: one for all or one a sequence. Raises
    ValueError on a token outside the vocabulary, an unknown or repeated sequence, or a tree of another size.
    """
    _check_sequences(tokens, sequences, len(lengths))
    arrays = [np.asarray(t) for t in tokens]
    for sequence, ids in zip(sequences, arrays, strict=True):
        _check_tokens(sequence, ids, vocab)
    trees = list(tree) if isinstance(tree, Sequence) else [tree] * len(arrays)
    if len(trees) != len(arrays):
        raise ValueError(f"tree: {len(trees)} trees are not allowed for {len(arrays)} sequences")
    orders: dict[tuple[int, TreeMask | None], Order] = {}
    for ids, one in zip(arrays, trees, strict=True):
        if one is not None and len(one.parents) != len(ids):
            raise ValueError(f"tree: {len(one.parents)} nodes are not allowed for {len(ids)} new tokens")
        orders.setdefault((len(ids), one), Order.of(one, len(ids)))
    index = np.asarray(sequences, np.int64)
    return Batch(
        ids=np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64),
        sequences=index,
        counts=np.array([len(a) for a in arrays], np.int64),
        starts=lengths[index],
        orders=tuple(orders[len(a), t] for a, t in zip(arrays, trees, strict=True)),
        exact=exact,
    )


def _check_sequences(tokens: Sequence[Array], sequences: Sequence[int], held: int) -> None:
    if len(tokens) != len(sequences):
        raise ValueError(f"tokens: {len(tokens)} arrays are not allowed for {len(sequences)} sequences")
    if not tokens:
        raise ValueError("tokens: an empty batch is not allowed, give at least one sequence")
    if len(set(sequences)) != len(sequences):
        raise ValueError(f"sequences: {list(sequences)} repeats one, each may come once in a pass")
    for sequence in sequences:
        if not 0 <= sequence < held:
            raise ValueError(f"sequences: {sequence} is not allowed, the cache holds 0..{held - 1}")


def _check_tokens(sequence: int, ids: Array, vocab: int) -> None:
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"tokens of sequence {sequence}: give a flat array of integers, not {ids.dtype}{ids.shape}")
    outside = (ids < 0) | (ids >= vocab)
    if outside.any():
        bad = ids[outside][0]
        raise ValueError(f"tokens of sequence {sequence}: {bad} is outside the vocabulary, allowed are 0..{vocab - 1}")
