"""From a checked table to the columns that formulas take: peaks of the device, bytes of the formats, traps left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.collectives import sent_bytes
from sim.analytic.fused import layout_keys
from sim.analytic.hardware import Device, Terms
from sim.calibration.fit_formulas import seconds
from sim.calibration.kernel_tables import KernelTable

__all__ = ["TRAPS", "columns", "is_held", "layouts", "plausible", "shapes", "without_traps"]

Frame = Any
Floats = NDArray[np.float64]
STORED = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0, "nvfp4": 0.5625, "int8_wo": 1.0, "int4_wo": 0.5}
MULTIPLIED = {"fp8_block": "fp8", "nvfp4": "fp4", "int8_wo": "bf16", "int4_wo": "bf16"}
ELEMENT_BYTES = {"bf16": 2, "int8": 1, "fp8": 1, "float32": 4}
Choice = Callable[[Frame], Any]

# Rows that do not time what they say (device_model.md, "Traps in the data"): (kind, which rows, why).
TRAPS: tuple[tuple[str, Choice, str], ...] = (
    ("gemm", lambda f: (f["library"] == "vllm") & (f["dtype"] == "fp8_block"),
     "trap: vLLM's block-fp8 products were timed eagerly, launches included"),
    ("gemm", lambda f: f["dtype"].isin(["int8_wo", "int4_wo", "int8"])
     & ~(f["gpu"].str.contains("a100") & (f["library"] == "trtllm")) & (f["gpu"] != ""),
     "trap: weight-only and W8A8 kernels are genuine only for A100 with TensorRT-LLM"),
    ("collectives", lambda f: f["kernel"].str.contains("eager"),
     "trap: timed eagerly, launches included; serving runs them under graphs"),
)  # fmt: skip


def without_traps(table: KernelTable) -> KernelTable:
    """The table without the rows of TRAPS, each named in ``dropped``."""
    for kind, choose, why in TRAPS:
        if kind == table.kind:
            table = table.keep(~choose(table.frame), why)
    return table


def columns(kind: str, frame: Frame, device: Device) -> dict[str, Floats]:
    """The columns of a formula. Raises ValueError for a number format that the device has no rate for."""
    rates = {name: _peak(device, kind, name) for name in frame["dtype"].unique()}
    size = len(frame)
    out = {
        "peak_flops": frame["dtype"].map(rates).to_numpy(float),
        "memory_Bps": np.full(size, device.memory_Bps),
        "onchip_bytes": np.full(size, device.onchip.capacity_bytes),
    }
    if kind == "gemm":
        sizes = {c: frame[c].to_numpy(float) for c in ("m", "n", "k")}
        return out | sizes | {"weight_bytes": frame["dtype"].map(STORED).to_numpy(float)}
    out |= {c: frame[c].to_numpy(float) for c in ("batch", "heads", "kv_heads", "head_dim")}
    window = np.where(frame["window"] > 0, frame["window"], np.inf)
    out["kv_bytes"] = np.where(frame["kv_dtype"] == "bf16", 2.0, 1.0)
    if kind == "decode_attention":
        return out | {"kv_len": np.minimum(frame["kv_len"].to_numpy(float), window)}
    isl = frame["isl"].to_numpy(float)
    full = np.minimum(window, isl)
    return out | {"isl": isl, "pairs": full * (full + 1) / 2 + (isl - full) * full}


def sent(frame: Frame) -> Floats:
    """Bytes that each device sends in each collective; ``message_size`` counts elements."""
    found = np.empty(len(frame))
    wide = frame["dtype"].map(ELEMENT_BYTES).fillna(2).to_numpy(float)
    size = frame["message_size"].to_numpy(float) * wide
    for (kind, devices), index in frame.groupby(["op", "num_gpus"]).indices.items():
        found[index] = sent_bytes(str(kind), int(devices), size[index])
    return found


def shapes(kind: str, frame: Frame) -> NDArray[np.int64]:
    """A number for each row's shape, the same for rows of the same: (n, k), a head layout, or a message size."""
    if kind == "gemm":
        n, k = (frame[c].to_numpy(np.int64) for c in ("n", "k"))
        return np.asarray((n * 2654435761 + k * 283521) // 1024, dtype=np.int64)
    if kind == "collectives":
        return np.asarray(np.rint(np.log2(frame["message_size"].to_numpy(float))), dtype=np.int64)
    parts = zip(("heads", "kv_heads", "head_dim", "window"), (7919, 104729, 31, 17), strict=True)
    total = sum(frame[c].to_numpy(np.int64) * factor for c, factor in parts)
    return np.asarray(total, dtype=np.int64) // 8


def is_held(kind: str, frame: Frame) -> NDArray[np.bool_]:
    """Which half of the shapes no fit may see: the file's own column ``held``, or even shape numbers."""
    if "held" in frame:
        return np.asarray(frame["held"], dtype=np.bool_)
    return np.asarray(shapes(kind, frame) % 2 == 0)


def layouts(kind: str, frame: Frame) -> list[str]:
    """The name of each row's head layout: ``gqa-128-full`` where decodes are timed, ``128-full`` for prefills."""
    place = 0 if kind == "decode_attention" else 2
    heads = zip(frame["heads"], frame["kv_heads"], frame["head_dim"], frame["window"] > 0, strict=True)
    layouts = [(int(h), int(k), int(d), bool(w)) for h, k, d, w in heads]
    names = {layout: layout_keys(*layout)[place] for layout in set(layouts)}
    return [names[layout] for layout in layouts]


def plausible(table: KernelTable, device: Device) -> None:
    """Refuse times that no such device can have taken: another unit, or another device. Raises ValueError."""
    if table.kind == "collectives":
        bandwidth = device.link.bandwidth_Bps or np.inf
        ideal = sent(table.frame) / bandwidth
    else:
        ideal = seconds(table.kind, Terms(), columns(table.kind, table.frame, device))
    large = ideal >= np.quantile(ideal, 0.7)
    ratio = float(np.median(table.frame["seconds"].to_numpy()[large] / np.maximum(ideal[large], 1e-12)))
    if 0.6 <= ratio <= 120:
        return
    units = {1e3: "microseconds", 1e6: "nanoseconds"} if ratio > 1 else {1e-3: "seconds"}
    unit = next((name for factor, name in units.items() if 0.6 <= ratio / factor <= 60), None)
    guess = f"{unit} instead of milliseconds?" if unit else "another device, or another unit?"
    raise ValueError(
        f"{table.file}: ms: large cases take {ratio:.3g} times what {device.name} takes by its datasheet: {guess}"
    )


def _peak(device: Device, kind: str, name: str) -> float:
    known: Mapping[str, Any] = STORED if kind == "gemm" else {"bf16": 0, "fp8": 0}
    if name not in known:
        raise ValueError(f"dtype: {name!r} is no number format of {kind}; allowed: {', '.join(known)}")
    return device.peak_flops(MULTIPLIED.get(name, name)).flops
