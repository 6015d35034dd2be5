"""From times to the numbers of a profile: peak, bandwidths, efficiencies, host time, each with its interval.

With p = 1 (a NumPy product overlaps nothing) the roofline of sim/analytic/roofline.py is linear in the reciprocals of
its rates. So the simulator's own counts of each timed step are its features, and the rates come from non-negative least
squares of relative errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from sim.analytic.memory import weight_bytes
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op, ops
from sim.analytic.precision import Precision
from sim.calibration import probes
from sim.calibration.cases import Case
from sim.calibration.session import Session
from sim.variants.packed_products import PackedProducts

Floats = NDArray[np.float64]
FP32 = Precision("fp32", "fp32", "fp32")
FEATURES = (
    "matmul", "elementwise", "decode_attention", "prefill_attention",  # FLOPs
    "memory", "onchip",  # bytes
    "pack",  # numbers
    "step", "layer", "sequence",  # times
)  # fmt: skip
SMALLEST_GAIN = 1e-9


@dataclass(frozen=True)
class Machine:
    """What was measured, in SI units. Efficiencies are shares of ``peak_flops``, the best rate of a bare product.

    ``memory_share``: bandwidth that the executor sees over ``memory_Bps``, that of a bare stream. ``pack_s``: seconds
    to lay one number of a matrix out before a product with many rows.
    """

    memory_Bps: float
    onchip_Bps: float
    onchip_bytes: float
    peak_flops: float
    memory_share: float
    pack_s: float
    matmul: float
    elementwise: float
    decode_attention: float
    prefill_attention: float
    step_s: float
    layer_s: float
    sequence_s: float


def features(shape: ModelShape, case: Case, resident: bool) -> Floats:
    """The simulator's counts of one step by FEATURES; ``resident``: the weights stay in the cache."""
    counts = dict.fromkeys(FEATURES, 0.0)
    work = case.work
    for op in PackedProducts().rewrite(ops(shape, FP32, work, attention="standard"), work):
        group = op.terms
        counts[group] += float(op.layers * op.flops)
        counts["pack"] += float(op.layers * op.inputs) if group == "matmul" else 0.0
        weights, kv = (float(op.layers * b) for b in (op.weight_bytes, op.kv_read_bytes + op.kv_write_bytes))
        counts["memory"] += kv if resident else kv + weights
        counts["onchip"] += weights if resident and _bound_by_weights(op) else 0.0
    counts |= {"step": 1.0, "layer": len(shape.layers), "sequence": case.batch}
    return np.array([counts[name] for name in FEATURES])


def _bare(product: tuple[int, int, int]) -> Floats:
    """The counts of a product alone, [m, k] @ [k, n]."""
    m, k, n = product
    counts = {"matmul": 2.0 * m * k * n, "pack": float(k * n)}
    return np.array([counts.get(name, 0.0) for name in FEATURES])


def fit(repeat: Mapping[str, float], steps: Mapping[Case, float]) -> Machine:
    """The machine behind probe times and step times (seconds). Raises ValueError where they make no sense."""
    if not all(0 < t < np.inf for t in (*repeat.values(), *steps.values())):
        raise ValueError("calibration: a measurement took no time, or no end of it; run it again")
    stream = {mb: mb * 1e6 / repeat[f"stream.{mb}"] for mb in probes.STREAM_MB}
    slow = stream[probes.STREAM_MB[-1]]
    fast = max(slow, float(np.median([stream[mb] for mb in probes.STREAM_MB[1:4]])))
    peak = max(2.0 * m * k * n / repeat[f"rate.{m}.{k}.{n}"] for m, k, n in probes.RATES)
    onchip_bytes = _capacity(stream, (fast * slow) ** 0.5)
    rows = [features(case.shape, case, _held(case.shape) <= onchip_bytes) for case in steps]
    took = [*steps.values(), *(repeat[f"rate.{m}.{k}.{n}"] for m, k, n in probes.RATES)]
    cost = dict(zip(FEATURES, nonnegative(np.array([*rows, *map(_bare, probes.RATES)]), np.array(took)), strict=True))
    peak = max(peak, 1 / cost["matmul"] if cost["matmul"] else 0.0)  # a bare product pays for packing too
    share = {name: _share(cost[name], peak) for name in FEATURES[:4]}
    found = Machine(
        memory_Bps=slow,
        onchip_Bps=1 / cost["onchip"] if cost["onchip"] else fast,
        onchip_bytes=onchip_bytes,
        peak_flops=peak,
        memory_share=_share(cost["memory"], slow),
        pack_s=cost["pack"],
        **share,
        step_s=cost["step"],
        layer_s=cost["layer"],
        sequence_s=cost["sequence"],
    )
    if broken := [name for name, value in asdict(found).items() if not (np.isfinite(value) and value >= 0)]:
        raise ValueError(f"calibration: {', '.join(broken)}: the measurements make no sense; run it again")
    return found


def fit_session(session: Session, cases: Sequence[Case]) -> tuple[Machine, dict[str, tuple[float, float]]]:
    """The machine behind the best of all repeats of the probes and of ``cases``, and the range of each repeat's own."""
    times = session.times(cases)
    middle = fit(_best(session.probes), {case: min(t) for case, t in times.items()})
    own = [fit(p, {case: t[i] for case, t in times.items()}) for i, p in enumerate(session.probes)]
    each = [asdict(m) for m in (*own, middle)]
    return middle, {name: (min(m[name] for m in each), max(m[name] for m in each)) for name in each[0]}


def nonnegative(rows: Floats, seconds: Floats) -> Floats:
    """``x >= 0`` that minimises the squared relative errors of ``rows @ x`` against ``seconds``; [n, f], [n] -> [f].

    Lawson and Hanson's active set (Solving Least Squares Problems, 1974, chapter 23), columns scaled to 1: the column
    that would help most enters; when one would turn negative, it leaves. Columns that are all zero stay at zero.
    """
    scaled = rows / seconds[:, None]
    size = np.sqrt((scaled**2).sum(axis=0))
    size[size == 0] = np.inf
    scaled, aim = scaled / size, np.ones(len(rows))
    x, used = np.zeros(rows.shape[1]), np.zeros(rows.shape[1], dtype=bool)
    for _ in range(10 * len(x)):
        gain = np.where(used, -np.inf, scaled.T @ (aim - scaled @ x))
        if not gain.max() > SMALLEST_GAIN:
            break
        used[int(gain.argmax())] = True
        while True:
            trial = np.zeros(len(x))
            trial[used] = np.linalg.lstsq(scaled[:, used], aim, rcond=None)[0]
            if (trial[used] > 0).all():
                break
            low = used & (trial <= 0)
            step = float(np.min(x[low] / np.maximum(x[low] - trial[low], 1e-300)))
            x = x + step * (trial - x)
            used &= x > 1e-12
        x = trial
    return np.asarray(x / size)


def _best(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: min(r[name] for r in repeats) for name in repeats[0]}


def _share(cost: float, peak: float) -> float:
    """A rate, given as its reciprocal, as a share of a peak; 1 where it costs nothing that could be seen."""
    return float(np.clip(1 / (cost * peak), 2e-4, 1.0)) if cost > 0 else 1.0


def _held(shape: ModelShape) -> float:
    """Bytes of the model's weights."""
    return sum(weight_bytes(shape, FP32).values())


def _bound_by_weights(op: Op) -> bool:
    """Whether reading the weights takes longer than multiplying with them: one row."""
    return bool(op.terms == "matmul" and op.inner and op.flops and not np.any(op.inputs) and op.weight_bytes)


def _capacity(stream: Mapping[int, float], between_Bps: float) -> float:
    """Bytes at which the streaming rate crosses from the cache's to the memory's, interpolated in logarithms."""
    sizes = list(stream)
    for small, large in pairwise(sizes):
        a, b = stream[small], stream[large]
        if a >= between_Bps > b and large > 4:
            along = log(a / between_Bps) / log(a / b)
            return exp(log(small * 1e6) + along * log(large / small))
    return sizes[-1] * 1e6
