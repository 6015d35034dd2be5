"""Every layout of a scenario's model over some devices: what a device holds, how fast it is, or why it is not legal."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

from sim.analytic.cost import DoesNotFit
from sim.analytic.layout import Layout, layouts
from sim.analytic.rewrite import apply
from sim.ask import explain
from sim.build import (
    DEFAULT_MEMORY_FRACTION,
    expanded,
    load_device,
    load_engine,
    load_precision,
    load_shape,
    with_kernels,
)
from sim.scenario import Scenario
from sim.variants import build as build_variants

__all__ = ["Cut", "compared"]


@dataclass(frozen=True)
class Cut:
    """One layout. ``weights_GB``: of one device; ``kv_tokens``: of a replica; ``prefill_ms`` of one prompt,
    ``decode_ms`` of a round of the batch asked about; ``why``: what keeps it from being used, empty where nothing
    does; NaN stands for the numbers where something does.
    """

    layout: str
    tensor: int
    pipeline: int
    expert: int
    data: int
    weights_GB: float
    kv_tokens: int
    prefill_ms: float
    decode_ms: float
    tokens_per_s: float
    why: str = ""


def compared(scenario: Scenario, devices: int, batch: int = 1, prompt: int = 1024, context: int = 1024) -> list[Cut]:
    """Layouts over exactly ``devices``, the usable ones by seconds of a decode round, the others as they come.

    Drafts are left out. Raises ValueError for a scenario that makes no sense.
    """
    scenario = expanded(scenario)
    variants = build_variants(scenario.variants)
    shape = apply(variants, "reshape", load_shape(scenario.model, "model"))
    found = [_cut(scenario, one.layout, one.reason, batch, prompt, context) for one in layouts(shape, devices)]
    return sorted(found, key=lambda cut: (bool(cut.why), cut.decode_ms if not cut.why else 0.0))


def _cut(scenario: Scenario, layout: Layout, reason: str | None, batch: int, prompt: int, context: int) -> Cut:
    counts = (layout.tensor, layout.pipeline, layout.expert, layout.data)
    if reason is None:
        try:
            return _explained(scenario, layout, counts, batch, prompt, context)
        except DoesNotFit as error:
            reason = str(error)
    return Cut(str(layout), *counts, nan, 0, nan, nan, nan, reason)


def _explained(
    scenario: Scenario, layout: Layout, counts: tuple[int, int, int, int], batch: int, prompt: int, context: int
) -> Cut:
    engine = load_engine(scenario.engine)
    device = with_kernels(load_device(scenario.hardware), engine)
    said = explain(
        load_shape(scenario.model, "model"), device, load_precision(scenario), layout, engine=engine,
        memory_fraction=scenario.kv.memory_fraction or engine.memory_fraction or DEFAULT_MEMORY_FRACTION, batch=batch,
        prompt=prompt, context=context, variants=build_variants(scenario.variants),
    )  # fmt: skip
    weights_GB = dict(said.budget.lines)["weights"] / 1e9
    return Cut(
        str(layout), *counts, weights_GB, said.kv_tokens, said.prefill_s * 1e3, said.decode_s * 1e3, said.tokens_per_s
    )
