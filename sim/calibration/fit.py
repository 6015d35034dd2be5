"""From probes to the numbers of a profile: peaks, bandwidths, efficiencies, host time, each with its interval.

The formulas are those of the roofline that will use the numbers (sim/analytic/roofline.py), solved for one unknown
at a time; the interval is the range over repeats of everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log

import numpy as np

from sim.analytic.ops import Op, ops
from sim.analytic.precision import Precision
from sim.analytic.work import Work
from sim.calibration import probes
from sim.validation.stand_in import dense

FP32 = Precision("fp32", "fp32", "fp32")
TYPICAL_LAYERS = 4  # the host's time for a sequence grows with layers; the engine profile has one number


@dataclass(frozen=True)
class Machine:
    """What was measured, in SI units; efficiencies are shares of ``peak_flops``.

    ``pack_s``: seconds to lay one number of a matrix out before a product with many rows.
    """

    memory_Bps: float
    onchip_Bps: float
    onchip_bytes: float
    peak_flops: float
    pack_s: float
    elementwise: float
    decode_attention: float
    prefill_attention: float
    step_s: float
    layer_s: float
    sequence_s: float


def fit(seconds: Mapping[str, float]) -> Machine:
    """The machine behind one set of probe times (seconds by name). Raises ValueError where they make no sense."""
    stream = {mb: mb * 1e6 / seconds[f"stream.{mb}"] for mb in probes.STREAM_MB}
    fast, slow = float(np.median([stream[mb] for mb in probes.STREAM_MB[1:4]])), stream[probes.STREAM_MB[-1]]
    fast = max(fast, slow)
    peak, pack_s = _products(seconds)
    caches = [_cache_share(i, seconds, peak) for i in range(len(probes.CACHES))]
    squares = [_square_share(i, seconds, peak) for i in range(len(probes.SQUARES))]
    machine = Machine(
        memory_Bps=slow,
        onchip_Bps=fast,
        onchip_bytes=_capacity(stream, (fast * slow) ** 0.5),
        peak_flops=peak,
        pack_s=pack_s,
        elementwise=_share(_layer_flops() / _more(seconds, "layer", probes.LAYER_ROWS), peak),
        decode_attention=float(np.median(caches)),
        prefill_attention=float(np.median(squares)),
        **_host(seconds),
    )
    broken = [name for name, value in asdict(machine).items() if not (np.isfinite(value) and value >= 0)]
    if broken or not peak > 0:
        raise ValueError(f"calibration: {', '.join(broken) or 'peak_flops'}: the probes contradict each other; run it again")
    return machine


def fit_all(repeats: Sequence[Mapping[str, float]]) -> tuple[Machine, dict[str, tuple[float, float]]]:
    """The machine behind the medians of several sets of probes, and the range of every number over the sets."""
    middle = fit({name: float(np.median([r[name] for r in repeats])) for name in repeats[0]})
    each = [asdict(fit(r)) for r in repeats] + [asdict(middle)]
    return middle, {name: (min(m[name] for m in each), max(m[name] for m in each)) for name in each[0]}


def _more(seconds: Mapping[str, float], name: str, sizes: tuple[int, int]) -> float:
    """How much longer the larger of two sizes takes: what is left of the host's code cancels."""
    return max(seconds[f"{name}.{sizes[1]}"] - seconds[f"{name}.{sizes[0]}"], 1e-9)


def _share(rate: float, peak: float) -> float:
    return float(np.clip(rate / peak, 2e-4, 1.0))


def _products(seconds: Mapping[str, float]) -> tuple[float, float]:
    """Peak rate and packing time: least squares of ``t = flops / peak + weights * pack``, errors relative."""
    shapes = [("rate", s) for s in probes.RATES] + [("pack", s) for s in probes.PACKS]
    took = np.array([seconds[f"{kind}.{m}.{k}.{n}"] for kind, (m, k, n) in shapes])
    terms = np.array([(2.0 * m * k * n, float(k * n)) for _, (m, k, n) in shapes])
    solved, *_ = np.linalg.lstsq(terms / took[:, None], np.ones(len(took)), rcond=None)
    return float(1 / max(solved[0], 1e-18)), float(max(solved[1], 0.0))


def _capacity(stream: Mapping[int, float], between_Bps: float) -> float:
    """Bytes at which the streaming rate crosses from the cache's to the memory's, interpolated in logarithms."""
    sizes = list(stream)
    for small, large in zip(sizes[:-1], sizes[1:], strict=True):
        a, b = stream[small], stream[large]
        if a >= between_Bps > b and large > 4:
            along = log(a / between_Bps) / log(a / b)
            return exp(log(small * 1e6) + along * log(large / small))
    return sizes[-1] * 1e6


def _layer_flops() -> float:
    """FLOPs of the elementwise probe, docs/conventions.md, of the rows by which its two sizes differ."""
    d, width, heads, kv_heads, dim = probes.LAYER
    few, many = probes.LAYER_ROWS
    return float((many - few) * (2 * 4 * d + 5 * width + 3 * (heads + kv_heads) * dim))


def _cache_share(i: int, seconds: Mapping[str, float], peak: float) -> float:
    sequences, heads, kv_heads, dim = probes.CACHES[i]
    few, many = (Work.decode(sequences, length + 1) for length in probes.CONTEXTS)
    flops = _attention_flops(heads, kv_heads, dim, many) - _attention_flops(heads, kv_heads, dim, few)
    return _share(flops / _more(seconds, f"cache.{i}", probes.CONTEXTS), peak)


def _square_share(i: int, seconds: Mapping[str, float], peak: float) -> float:
    sequences, heads, kv_heads, dim = probes.SQUARES[i]
    few, many = (Work.prefill(sequences, n) for n in probes.SQUARE)
    flops = _attention_flops(heads, kv_heads, dim, many) - _attention_flops(heads, kv_heads, dim, few)
    return _share(flops / _more(seconds, f"square.{i}", probes.SQUARE), peak)


def _attention_flops(heads: int, kv_heads: int, dim: int, work: Work) -> float:
    """Scores, softmax and values of one layer, by the simulator's own ops."""
    shape = dense(heads * dim, 1, heads, kv_heads, 8, 8)
    return float(sum(op.flops for op in ops(shape, FP32, work, attention="standard") if _is_attention(op)))


def _is_attention(op: Op) -> bool:
    return op.name in ("attn.scores", "attn.softmax", "attn.values")


def _host(seconds: Mapping[str, float]) -> dict[str, float]:
    """Host time of a pass, of a layer and of a sequence: ``a + b*layers + c*sequences + e*layers*sequences``."""
    cells = probes.EMPTY
    terms = np.array([(1.0, layers, batch, layers * batch) for layers, batch in cells])
    took = np.array([seconds[f"empty.{layers}.{batch}"] for layers, batch in cells])
    a, b, c, e = np.linalg.solve(terms, took)
    return {"step_s": max(a, 0.0), "layer_s": max(b, 0.0), "sequence_s": max(c + e * TYPICAL_LAYERS, 0.0)}
