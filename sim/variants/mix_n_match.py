"""Mix'n'Match: the hundreds of models inside one MatFormer, with what they hold and what they are likely to lose.

Devvrit et al. (arXiv 2310.07707, section 3.3): sizes may be mixed freely over layers, 4^L models; those whose size
rises slowly with depth do best. This enumerates the rising ones, C(L + 3, 3) of them. Not a plug-in: ``tune`` asks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from types import MappingProxyType

from sim.analytic.memory import weight_bytes
from sim.analytic.model import ModelShape
from sim.analytic.precision import FORMATS, Precision
from sim.variants.matformer import DIVISORS, Matformer
from sim.variants.options import choice

__all__ = ["WITNESS_NATS", "Mix", "mixes", "predicted_nats"]

WITNESS_NATS: Mapping[str, float] = MappingProxyType({"S": 3.25507, "M": 3.19844, "L": 3.18223, "XL": 3.18085})
"""Nats a token of the shipped MatFormer (0.87 M parameters, 3 layers) on held-out text A, standard error 0.014
(sim/reference/family/record.json). A stand-in: other models' own losses were not published.
"""


@dataclass(frozen=True)
class Mix:
    """One model: ``sizes`` by layer; its parameters in all and ``inner``, those outside the embedding and head;
    ``bytes_weights`` in the precision asked for; ``nats`` a token as interpolated, None without losses to go by.
    """

    sizes: tuple[str, ...]
    parameters: int
    inner: int
    bytes_weights: float
    nats: float | None

    @property
    def slope(self) -> int:
        """How many sizes lie between the first layer's and the last one's; gentle mixes do best."""
        order = list(DIVISORS)
        return order.index(self.sizes[-1]) - order.index(self.sizes[0])

    def variant(self) -> Matformer:
        """The variant that runs it."""
        return Matformer(self.sizes)


def mixes(
    shape: ModelShape,
    count: int | None = None,
    *,
    sizes: Sequence[str] = tuple(DIVISORS),
    precision: Precision | None = None,
    nats: Mapping[str, float] | None = WITNESS_NATS,
) -> list[Mix]:
    """Mixes of ``sizes`` whose size never falls with depth, from the smallest; the gentlest of those of one parameter
    count. ``count``: at most that many, spread evenly, both ends included.

    ``nats``: loss of each size when all layers have it. Raises ValueError for unknown sizes, a count below 2, experts.
    """
    if count is not None and count < 2:
        raise ValueError(f"count: {count} mixes: at least 2, the smallest and the largest")
    order = sorted({choice("sizes", size, tuple(DIVISORS)) for size in sizes}, key=lambda size: -DIVISORS[size])
    tally = _Tally.of(shape, order, precision or Precision())
    known = {tally.uniform(k)[0]: nats[size] for k, size in enumerate(order)} if nats is not None else {}
    best: dict[int, Mix] = {}
    for cuts in combinations_with_replacement(range(tally.layers + 1), len(order) - 1):
        inner, stored = tally.between(cuts)
        if inner not in best or tally.slope(cuts) < best[inner].slope:
            guess = predicted_nats(inner, known) if known else None
            best[inner] = Mix(tally.named(cuts), inner + tally.outer, inner, stored, guess)
    return _spread([best[inner] for inner in sorted(best)], count)


Cuts = tuple[int, ...]  # layers from the one cut to the next have the same size


@dataclass(frozen=True)
class _Tally:
    """Running sums over layers of (parameters, bytes) of the blocks that are cut, by size; and what is never cut."""

    order: Sequence[str]
    sums: Sequence[Sequence[tuple[int, float]]]
    outer: int
    fixed: tuple[int, float]

    @classmethod
    def of(cls, shape: ModelShape, order: Sequence[str], precision: Precision) -> _Tally:
        sums = [list(_running(Matformer(size).reshape(shape), precision)) for size in order]
        whole, whole_bytes = list(_running(shape, precision))[-1]
        counts = shape.parameters()
        outer = counts["embed"] + counts.get("logits", 0)
        stored = sum(weight_bytes(shape, precision).values())
        return cls(order, sums, outer, (shape.total_parameters - outer - whole, stored - whole_bytes))

    @property
    def layers(self) -> int:
        return len(self.sums[0]) - 1

    def between(self, cuts: Cuts) -> tuple[int, float]:
        """Parameters outside embedding and head, and bytes of the whole model."""
        numbers, stored = self.fixed
        for sums, low, high in zip(self.sums, (0, *cuts), (*cuts, self.layers), strict=True):
            numbers += sums[high][0] - sums[low][0]
            stored += sums[high][1] - sums[low][1]
        return numbers, stored

    def uniform(self, size: int) -> tuple[int, float]:
        """The same with one size everywhere."""
        return self.between((0,) * size + (self.layers,) * (len(self.order) - 1 - size))

    def named(self, cuts: Cuts) -> tuple[str, ...]:
        """The size of each layer."""
        runs = zip(self.order, (0, *cuts), (*cuts, self.layers), strict=True)
        return tuple(size for size, low, high in runs for _ in range(low, high))

    def slope(self, cuts: Cuts) -> int:
        """Sizes between the first layer's and the last one's."""
        names = list(DIVISORS)
        used = [names.index(s) for s, low, high in zip(self.order, (0, *cuts), (*cuts, self.layers), strict=True)
                if high > low]  # fmt: skip
        return used[-1] - used[0]


def _running(shape: ModelShape, precision: Precision) -> Iterator[tuple[int, float]]:
    """Parameters and bytes of the feed-forward blocks of the first 0, 1, ... layers, the encoder's first."""
    numbers, stored = 0, 0.0
    yield numbers, stored
    for layer in (*shape.encoder, *shape.layers):
        for op, count in layer.ffn.parameters(shape.d_model).items():
            numbers += count
            stored += count * FORMATS[precision.weight_format(op, shape.expert_format)].stored_bytes
        yield numbers, stored


def predicted_nats(inner: int, known: Mapping[int, float]) -> float:
    """Loss at ``inner`` parameters outside the embedding: straight lines between the ``known`` ones, flat beyond."""
    points = sorted(known.items())
    for (low, before), (high, after) in pairwise(points):
        if low <= inner <= high:
            return before + (after - before) * (inner - low) / (high - low)
    return points[0][1] if inner < points[0][0] else points[-1][1]


def _spread(found: list[Mix], count: int | None) -> list[Mix]:
    """``count`` of them at even steps."""
    if count is None or len(found) <= count:
        return found
    return [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]
