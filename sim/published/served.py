"""PaLM on many TPUv4 (Pope et al. 2022): utilization is an identity; HBM alone does not give the latency."""

from __future__ import annotations

from dataclasses import replace

from sim.analytic.cost import PassCost
from sim.analytic.model import ModelShape
from sim.analytic.precision import Precision
from sim.analytic.work import Work
from sim.published import shapes
from sim.published.table import Published, Table

PALM = {"PaLM-540B": shapes.palm("palm-540b", 18432, 48, 118), "PaLM-62B": shapes.palm("palm-62b", 8192, 32, 64)}
DECODED = 64  # tokens of every decode row
INT8 = Precision("int8", "bf16", "bf16")


def _chips(row: Published) -> int:
    return int(row.hardware.split("x")[0])


def _tokens(row: Published) -> int:
    """Tokens that a decode row emits one after the other, or that a prefill row reads at once."""
    return DECODED if "decode" in row.config else 2048


def mfu(row: Published, table: Table) -> float:
    """Percent: two FLOPs a parameter and token over what the chips could do in the printed latency."""
    same = {"model": row.model, "hardware": row.hardware, "batch": row.batch, "config": row.config}
    seconds = table.value(table.one(row, quantity="latency", **same).id)
    peak = shapes.device("tpu-v4").peak_flops("bf16").flops * _chips(row)
    return 100 * 2 * PALM[row.model].total_parameters * int(row.batch) * _tokens(row) / (seconds * peak)


def _step_s(shape: ModelShape, chips: int, batch: int, precision: Precision) -> float:
    """A decode step if the chips were one, with their bandwidths and rates added up and nothing between them."""
    v4 = shapes.device("tpu-v4")
    peaks = {name: rate * chips for name, rate in v4.peaks.items()}
    whole = replace(v4, memory_Bps=v4.memory_Bps * chips, peaks=peaks)
    return float(PassCost(shape, whole, precision).seconds(Work.decode(batch, 2048)))


def decode(row: Published, table: Table) -> float:
    """Seconds of 64 decode steps by main memory alone."""
    precision = INT8 if "int8" in row.config else Precision()
    return DECODED * _step_s(PALM[row.model], _chips(row), int(row.batch), precision)
