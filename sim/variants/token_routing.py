"""Token routing in a MatFormer: a router gives each token a size, and a batch reads the union, that of its largest.

Devvrit et al. (arXiv 2310.07707) name it as an outlook, so this is exploratory. Sizes are nested: the hidden units are
cut into bands between one size and the next, and a token of size g goes through bands 1 to g. With a share q of tokens
that reach a band of width w, n tokens multiply ``q n w`` rows of it and read it with probability ``1 - (1 - q)^n``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sim.analytic.model import Layer, ModelShape
from sim.analytic.ops import Op
from sim.analytic.work import Work
from sim.quality import UNKNOWN, Quality
from sim.variants.matformer import DIVISORS, width_of
from sim.variants.options import choice
from workloads.errors import shown

__all__ = ["Band", "TokenRouting", "bands"]

Count = Any
KEY = "variants.token_routing.shares"


class Band(NamedTuple):
    """Hidden units between one size and the next, as a share of all; ``reach``: share of tokens that go through."""

    part: float
    reach: float


@dataclass(frozen=True)
class TokenRouting:
    """``shares``: size (S, M, L, XL) to the share of tokens that the router gives it; they add up to 1."""

    name: ClassVar[str] = "token_routing"
    clashes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "quantization": "codes and scales of a band are not modelled",
            "matformer": "a slice has one size for all tokens",
            "moe": "bands are those of dense feed-forward blocks",
        }
    )
    shares: Any = (("S", 0.5), ("XL", 0.5))

    def __post_init__(self) -> None:
        """Raise ValueError for unknown sizes and for shares that do not add up."""
        pairs = list(self.shares.items()) if isinstance(self.shares, Mapping) else self.shares
        if not isinstance(pairs, list | tuple) or not pairs:
            raise ValueError(f"{KEY}: {shown(self.shares)}: must be sizes with the share of tokens of each")
        object.__setattr__(self, "shares", tuple(_pair(pair) for pair in pairs))
        total = sum(share for _, share in self.shares)
        if abs(total - 1) > 1e-9 or len(dict(self.shares)) < len(self.shares):
            raise ValueError(f"{KEY}: {shown(dict(self.shares))}: shares of different sizes must add up to 1")

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The same shape with a router in each layer. Raises ValueError for experts, biases, and odd widths."""
        stack = (*shape.encoder, *shape.layers)
        for layer in stack:
            _check_layer(layer, shape.name, [size for size, _ in self.shares])
        routers = len(stack) * shape.d_model * len(self.shares)
        return replace(shape, extra=(*shape.extra, ("mlp.router", routers)))

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Feed-forward ops band by band, summed, and the routers. Raises ValueError where there are routers already."""
        if any(op.name.endswith("mlp.router") for op in ops):
            raise ValueError(f"{KEY}: token_routing is listed twice; leave one of them out")
        return [new for op in ops for new in self._routed(op)]

    @property
    def quality(self) -> Quality:
        """Unknown: it needs a trained router."""
        return UNKNOWN

    def _routed(self, op: Op) -> list[Op]:
        kind = op.name.removeprefix("encoder.")
        if kind == "mlp.act":
            return [replace(op, flops=op.flops * self._mean, activation_bytes=op.activation_bytes * self._mean)]
        if kind not in ("mlp.up", "mlp.down") or not np.max(op.inputs):
            return [op]
        if not op.inner:
            raise ValueError(f"{KEY}: hire or contextual_sparsity gathers units of {kind} already; leave one out")
        if np.max(op.inputs) < op.inner:  # less than a row: accounts ask for a mean round, and use other ops of it
            return [op]
        product = _Product.of(op)
        if kind == "mlp.down":
            return [self._banded(op, product.rows, product.moved(self._bands, False), self._mean)]
        entering = sum(band.reach for band in self._bands)
        main = self._banded(op, product.rows, product.moved(self._bands, True), entering)
        return [product.router(op, len(self.shares)), main]

    def _banded(self, op: Op, rows: Count, moved_bytes: float, entering: float) -> Op:
        """The products of all bands as one op; ``moved_bytes`` of activations a token."""
        read = sum(band.part * (1.0 - np.power(1.0 - band.reach, rows)) for band in self._bands)
        return replace(
            op,
            flops=op.flops * self._mean,
            inputs=op.inputs * entering,
            weight_bytes=op.weight_bytes * read,
            activation_bytes=rows * moved_bytes,
        )

    @property
    def _bands(self) -> tuple[Band, ...]:
        return bands(dict(self.shares))

    @property
    def _mean(self) -> float:
        """Mean share of the hidden units that a token goes through."""
        return sum(band.part * band.reach for band in self._bands)


class _Product(NamedTuple):
    """An op as [rows, k] @ [k, n]; ``number``: bytes of one activation."""

    rows: Count
    k: int
    n: int
    number: float

    @classmethod
    def of(cls, op: Op) -> _Product:
        inputs = int(np.max(op.inputs))
        n = int(np.max(op.flops)) // (2 * inputs)
        number = float(np.max(op.activation_bytes)) / (inputs // op.inner * (op.inner + n))
        return cls(op.inputs // op.inner, op.inner, n, number)

    def moved(self, parts: Sequence[Band], up: bool) -> float:
        """Bytes that a token's activations move: the wide side by its band, the narrow side once for each band."""
        wide, narrow = (self.n, self.k) if up else (self.k, self.n)
        return self.number * sum(band.reach * (narrow + wide * band.part) for band in parts)

    def router(self, up: Op, sizes: int) -> Op:
        """[rows, d] @ [d, sizes]."""
        return replace(
            up,
            name=up.name.replace("mlp.up", "mlp.router"),
            kernel=up.kernel.replace("mlp.up", "mlp.router"),
            flops=2 * self.k * sizes * self.rows,
            weight_bytes=up.weight_bytes * (sizes / self.n),
            activation_bytes=self.rows * ((self.k + sizes) * self.number),
        )


def bands(shares: Mapping[str, float]) -> tuple[Band, ...]:
    """Bands of the hidden units that some token goes through, from the innermost one on."""
    out, before, left = [], 0.0, 1.0
    for size, share in sorted(shares.items(), key=lambda pair: -DIVISORS[pair[0]]):
        out.append(Band(1 / DIVISORS[size] - before, left))
        before, left = 1 / DIVISORS[size], max(0.0, left - share)
    return tuple(out)


def _pair(pair: Any) -> tuple[str, float]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(f"{KEY}: {shown(pair)}: must be a size and its share of tokens")
    size, share = pair
    choice(KEY, size, tuple(DIVISORS))
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"{KEY}: {size}: {shown(share)}: must be a share of tokens above 0, at most 1")
    return size, float(share)


def _check_layer(layer: Layer, model: str, sizes: Sequence[str]) -> None:
    if layer.ffn.experts or layer.ffn.bias:
        what = "experts" if layer.ffn.experts else "biases in its feed-forward blocks"
        raise ValueError(f"{KEY}: {model} has {what}; bands are those of dense blocks without biases")
    for size in sizes:
        width_of(size, layer.ffn.width, model)
