"""A model cut into pipeline stages: one :class:`PassCost` a stage, and together the same questions answered.

Rounds of a pipeline (sim/serving/dealt.py) deal their work to as many micro-batches as there are stages. Work here is
that of one micro-batch. All stages wait for the slowest, so that one micro-batch leaves every *slot*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np

from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device
from sim.analytic.layout import Layout, Stage
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.placement import Placement
from sim.analytic.precision import Precision
from sim.analytic.rewrite import apply, in_stages
from sim.analytic.roofline import Bound, larger
from sim.analytic.work import Work

__all__ = ["Cost", "StagedCost", "pass_cost"]

Array = Any


def pass_cost(
    shape: ModelShape,
    device: Device,
    precision: Precision | None = None,
    layout: Layout | None = None,
    variants: Sequence[Any] = (),
    onchip_claim: float = 0,
) -> Cost:
    """The cost of a pass in any layout. A model of fewer layers than stages (a small draft, output heads) has one stage
    to itself. Raises ValueError where the layout does not divide the model's layers.
    """
    layout = layout or Layout()
    if len(apply(in_stages(variants), "reshape", shape).layers) >= layout.pipeline > 1:
        return StagedCost(shape, device, precision, layout, variants, onchip_claim)
    alone = {"variants": variants, "onchip_claim": onchip_claim, "stage": Stage()}
    return PassCost(shape, device, precision, layout, **alone)  # type: ignore[arg-type]


class StagedCost:
    """Cost of one micro-batch in a pipeline; has what :class:`PassCost` has.

    Bytes of weights and of a cached token are those of the stage that holds most of them.
    """

    def __init__(
        self,
        shape: ModelShape,
        device: Device,
        precision: Precision | None,
        layout: Layout,
        variants: Sequence[Any] = (),
        onchip_claim: float = 0,
    ) -> None:
        """Cost every stage by itself."""
        self.stages = tuple(
            PassCost(
                shape, device, precision, layout, variants=variants, onchip_claim=onchip_claim,
                stage=Stage(index, layout.pipeline),
            )
            for index in range(layout.pipeline)
        )  # fmt: skip
        first = self.stages[0]
        self.shape, self.device, self.precision, self.layout = first.shape, device, first.precision, layout
        self.attention, self.variants = first.attention, first.variants
        self._kinds = [[first.shape.windows.index(w) for w in one.local.windows] for one in self.stages]

    def at_clock(self, MHz: int) -> StagedCost:
        """As :meth:`PassCost.at_clock`, every stage."""
        return self._of_stages(tuple(one.at_clock(MHz) for one in self.stages))

    def on(self, device: Device) -> StagedCost:
        """As :meth:`PassCost.on`, every stage."""
        return self._of_stages(tuple(one.on(device) for one in self.stages))

    def padded(self, buckets: tuple[int, ...]) -> StagedCost:
        """As :meth:`PassCost.padded`, every stage."""
        return self._of_stages(tuple(one.padded(buckets) for one in self.stages))

    def _of_stages(self, stages: tuple[PassCost, ...]) -> StagedCost:
        other = copy(self)
        other.stages, other.device = stages, stages[0].device
        return other

    # -- of a slot

    def seconds(self, work: Work) -> Array:
        """Seconds of a slot: of the slowest stage, its send included; elementwise over rounds."""
        slot: Array = 0.0
        for one, part in self._parts(work):
            slot = larger(slot, one.seconds(part))
        return slot

    def joules(self, work: Work) -> Array:
        """Dynamic joules of all devices while as many micro-batches as there are stages pass through all of them."""
        total: Array = 0.0
        for one, part in self._parts(work):
            total = total + one.joules(part)
        return total

    def decode_line(self) -> None:
        """Nothing: the largest of several stages is no line."""
        return None

    def prefill_line(self) -> tuple[Any, ...]:
        """Nothing, likewise."""
        return ()

    # -- of all stages, one device of each

    def ops(self, work: Work) -> list[Op]:
        """The ops of a micro-batch on its way through one device of every stage."""
        return [op for one, part in self._parts(work) for op in one.ops(part)]

    def bounds(self, work: Work) -> list[tuple[list[Op], Bound]]:
        """Every kernel on that way with its times."""
        return [pair for one, part in self._parts(work) for pair in one.bounds(part)]

    def causes(self, work: Work) -> dict[str, Array]:
        """Seconds by what bound each kernel on that way."""
        return _added([one.causes(part) for one, part in self._parts(work)])

    def counts(self, work: Work) -> dict[str, Array]:
        """Totals on that way, as :meth:`PassCost.counts`."""
        return _added([one.counts(part) for one, part in self._parts(work)])

    def workspace_bytes(self, tokens: int, rows: int) -> float:
        """The largest of any stage."""
        return max(one.workspace_bytes(tokens, rows if one.stage.last else 0) for one in self.stages)

    # -- memory

    @cached_property
    def bytes_weights(self) -> float:
        """Bytes of weights on one device of the fullest stage."""
        return max(one.bytes_weights for one in self.stages)

    @cached_property
    def weight_bytes_by_op(self) -> dict[str, float]:
        """The same by op name, each of the stage that has most of it."""
        names = dict.fromkeys(name for one in self.stages for name in one.weight_bytes_by_op)
        return {name: max(one.weight_bytes_by_op.get(name, 0.0) for one in self.stages) for name in names}

    @cached_property
    def kv_bytes_per_token(self) -> tuple[float, ...]:
        """Bytes of a cached token on one device by attention kind, each of the stage with most of it."""
        held = [0.0] * len(self.shape.windows)
        for one, kinds in zip(self.stages, self._kinds, strict=True):
            for kind, size in zip(kinds, one.kv_bytes_per_token, strict=True):
                held[kind] = max(held[kind], size)
        return tuple(held)

    @property
    def cross_bytes_per_token(self) -> float:
        """None: models with an encoder have no stages."""
        return 0.0

    @property
    def local(self) -> ModelShape:
        """What a device of the first stage computes; it has as many layers as any."""
        return self.stages[0].local

    @property
    def placement(self) -> Placement:
        """Where the first stage's numbers lie."""
        return self.stages[0].placement

    def _parts(self, work: Work) -> list[tuple[PassCost, Work]]:
        """Each stage with the work that it sees: the attention kinds of its own layers, logits in the last one."""
        return [(one, _of(work, kinds, one.stage.last)) for one, kinds in zip(self.stages, self._kinds, strict=True)]


Cost = PassCost | StagedCost


def _of(work: Work, kinds: Sequence[int], last: bool) -> Work:
    names = ("decode_pairs", "decode_reads", "prefill_pairs", "prefill_reads")
    columns = {name: getattr(work, name) for name in names}
    own = {name: c if c is None else tuple(c[kind] for kind in kinds) for name, c in columns.items()}
    return work._replace(logit_rows=work.logit_rows if last else 0 * np.asarray(work.logit_rows), **own)


def _added(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    total: dict[str, Array] = dict(parts[0])
    for part in parts[1:]:
        for name, value in part.items():
            total[name] = total[name] + value
    return total
