"""The probes: single products, single blocks of the executor, and models too small to compute anything.

None of them is a case that the result is judged by (sim/validation/seconds.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.calibration.timing import Stopwatch
from sim.reference.attention import attend
from sim.reference.decoding import Session
from sim.reference.meter import Meter
from sim.reference.numerics import rms_norm, silu
from sim.reference.rope import Rope, rotate
from sim.reference.sampling import Sampler, stream
from sim.reference.transformer import Transformer
from sim.reference.twins import autoregressive
from sim.validation.stand_in import dense, stand_in

Array = NDArray[np.float32]
Probe = Callable[[Stopwatch], float]

STREAM_MB = (1, 2, 4, 8, 16, 32, 64, 128)
RATES = ((64, 256, 768), (256, 512, 2048), (256, 1024, 1024))  # rows, k, n
PACKS = ((4, 256, 768), (4, 512, 2048), (8, 576, 3072))
LAYER = (384, 1024, 6, 2, 64)  # width, ffn, heads, KV heads, head width
LAYER_ROWS = (1, 97)
CACHES = ((1, 4, 4, 32), (1, 8, 2, 64), (8, 8, 4, 32))  # sequences, heads, KV heads, head width
SQUARES = ((1, 8, 4, 32), (1, 6, 2, 64))
CONTEXTS = (64, 512)
SQUARE = (16, 224)
EMPTY = ((1, 1), (6, 1), (1, 8), (6, 8))  # layers, sequences


def stream_probes() -> dict[str, Probe]:
    """Matrix-vector products by the size of the matrix: all of it is read once."""
    return {f"stream.{mb}": _product(1, 1024, mb * 1_000_000 // 4096) for mb in STREAM_MB}


def rate_probes() -> dict[str, Probe]:
    """Matrix products with many rows."""
    return {f"rate.{m}.{k}.{n}": _product(m, k, n) for m, k, n in RATES}


def all_probes() -> dict[str, Probe]:
    """Everything that a profile is made of, by name."""
    return {
        **stream_probes(),
        **rate_probes(),
        **{f"pack.{m}.{k}.{n}": _product(m, k, n) for m, k, n in PACKS},
        **{f"layer.{rows}": _elementwise(rows, *LAYER) for rows in LAYER_ROWS},
        **{f"cache.{i}.{length}": _cache(*kind, length) for i, kind in enumerate(CACHES) for length in CONTEXTS},
        **{f"square.{i}.{n}": _square(*kind, n) for i, kind in enumerate(SQUARES) for n in SQUARE},
        **{f"empty.{layers}.{batch}": _empty(layers, batch) for layers, batch in EMPTY},
    }


def measure(probes: Mapping[str, Probe], watch: Stopwatch) -> dict[str, float]:
    """Seconds by probe, one after the other."""
    return {name: probe(watch) for name, probe in probes.items()}


def _random(*size: int) -> Array:
    return stream(0, "probe", *size).standard_normal(size, dtype=np.float32)


def _product(rows: int, k: int, n: int) -> Probe:
    """``[rows, k] @ [k, n]``, the weights stored as checkpoints store them."""
    x, w = _random(rows, k), _random(n, k).T
    return lambda watch: watch.best(lambda: x @ w)


def _elementwise(rows: int, d: int, width: int, heads: int, kv_heads: int, dim: int) -> Probe:
    """Two norms, a gated activation and RoPE of one layer."""
    x, up, ones = _random(rows, d), _random(rows, 2 * width), np.ones(d, np.float32)
    q, k = _random(rows, heads, dim), _random(rows, kv_heads, dim)
    angles = Rope(dim).angles(np.arange(rows))[:, None].astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)

    def layer() -> Any:
        rotated = rotate(q, cos, sin), rotate(k, cos, sin)
        return rms_norm(x, ones, 1e-5), rms_norm(x, ones, 1e-5), silu(up[:, :width]) * up[:, width:], rotated

    return lambda watch: watch.best(layer)


def _cache(sequences: int, heads: int, kv_heads: int, dim: int, length: int) -> Probe:
    """One query a sequence over ``length`` cached tokens, laid out as the cache is (with room to grow)."""
    q = _random(sequences, 1, heads, dim)
    k, v = (_random(sequences, kv_heads, 2 * length, dim)[:, :, : length + 1] for _ in range(2))
    pairs, meter = sequences * (length + 1), Meter()
    return lambda watch: watch.best(lambda: attend(meter, "attn", q, k, v, pairs=pairs, cached=sequences * length))


def _square(sequences: int, heads: int, kv_heads: int, dim: int, n: int) -> Probe:
    """A causal prompt of ``n`` tokens; the whole square is multiplied, as the executor does."""
    q, k, v = _random(sequences, n, heads, dim), *(_random(sequences, kv_heads, n, dim) for _ in range(2))
    sees, meter = np.tri(n, dtype=bool)[None].repeat(sequences, axis=0), Meter()
    pairs = sequences * n * (n + 1) // 2
    return lambda watch: watch.best(lambda: attend(meter, "attn", q, k, v, pairs=pairs, cached=0, visible=sees))


def _empty(layers: int, batch: int) -> Probe:
    """A decode round of a model with almost nothing to compute: what the host's code costs."""
    session = Steps(stand_in(dense(8, layers, 2, 1, 8, 8)), batch, 4)
    return session.round_s


class Steps:
    """Rounds of a batch decoded autoregressively at one context, timed; each round is undone before the next."""

    def __init__(self, model: Transformer, batch: int, context: int) -> None:
        """``batch`` sequences of ``context`` cached tokens each."""
        vocab = model.shape.vocab
        prompts = [stream(i, "step").integers(0, vocab, context) for i in range(batch)]
        self.begin: Callable[[], Session] = lambda: autoregressive.Twin().begin(model, prompts, Sampler(), 0)
        self.batch, self.context = range(batch), context

    def round_s(self, watch: Stopwatch) -> float:
        """Seconds of a decode round."""
        session: Any = self.begin()
        session.prefill()

        def back() -> None:
            for i in self.batch:
                session.cache.truncate(i, self.context)
                del session.contexts[i][self.context + 1 :]

        return watch.best(lambda: session.round(self.batch), back)

    def prefill_s(self, watch: Stopwatch) -> float:
        """Seconds of reading the prompts, first token included."""
        fresh: list[Session] = []
        return watch.best(lambda: fresh[-1].prefill(), lambda: fresh.append(self.begin()))
