"""Parameter-efficient fine-tuning as it is served: merged into the weights, or many adapters beside one model.

lora: W + A B of rank ``rank`` on the ``targets`` (Hu et al. 2021, arXiv 2106.09685, section 4.1); adapter: bottlenecks
after attention and feed-forward block (Houlsby et al. 2019, arXiv 1902.00751, section 2.1); bitfit: biases alone (Ben
Zaken et al. 2022, arXiv 2106.10199); prompt: ``tokens`` learned keys and values in front of every layer's (Li and Liang
2021, arXiv 2101.00190; Lester et al. 2021, arXiv 2104.08691). Of ``adapters`` that are resident a pass reads those that
its batch uses, each once (the gathered products of Punica, arXiv 2310.18547, and S-LoRA, arXiv 2311.03285).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.quality import UNKNOWN, Quality
from sim.variants.expert_law import inclusion, visited, zipf
from sim.variants.layer_ops import layer_of
from sim.variants.options import choice, whole
from sim.variants.peft_layers import HOMES, TARGETS, Beside, biases, lora_sizes, total_biases
from workloads.errors import shown

__all__ = ["METHODS", "Peft"]

Count = Any
KEY = "variants.peft"
METHODS = ("lora", "adapter", "bitfit", "prompt")
GLUE = "GLUE mean, RoBERTa-base, 86.4 fully fine-tuned -> {}"
TABLE = "arXiv 2106.09685, table 2"
QUALITY: Mapping[str, Quality] = MappingProxyType(
    {
        "lora": Quality(-0.9, GLUE.format(87.2), TABLE),
        "adapter": Quality(1.2, GLUE.format(85.4), TABLE),
        "bitfit": Quality(1.4, GLUE.format(85.2), TABLE),
    }
)


@dataclass(frozen=True)
class Peft:
    """``method``: lora, adapter, bitfit or prompt. ``merged``: one set of weights, at no cost (lora, bitfit).

    ``rank``, ``targets`` (q, k, v, o, gate, up, down): of lora. ``bottleneck``, ``places`` (2: after attention and
    feed-forward block, 1: after the latter): of adapter. ``tokens``: of prompt. ``adapters``: resident ones, of which
    every sequence uses one, chosen by popularity ``skew`` (adapter of rank r: r^-skew); ``in_batch``: different ones in
    a pass, where it is known; None: as many as its rows are expected to use, taking each row for a sequence.
    """

    name: ClassVar[str] = "peft"
    method: str = "lora"
    merged: bool = False
    rank: int = 8
    targets: Any = ("q", "v")
    bottleneck: int = 64
    places: int = 2
    tokens: int = 20
    adapters: int = 1
    in_batch: int | None = None
    skew: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        choice(f"{KEY}.method", self.method, METHODS)
        for option in ("rank", "bottleneck", "tokens", "adapters"):
            whole(f"{KEY}.{option}", getattr(self, option), 1)
        whole(f"{KEY}.places", self.places, 1, 2)
        if self.in_batch is not None:
            whole(f"{KEY}.in_batch", self.in_batch, 1, self.adapters)
        if isinstance(self.skew, bool) or not isinstance(self.skew, int | float) or not 0 <= self.skew <= 10:
            raise ValueError(f"{KEY}.skew: {shown(self.skew)}: must be a number from 0 to 10")
        if not isinstance(self.merged, bool):
            raise ValueError(f"{KEY}.merged: {shown(self.merged)}: must be true or false")
        if self.merged and (self.adapters > 1 or self.method not in ("lora", "bitfit")):
            said = "one set of lora or bitfit alone can be merged into the weights"
            raise ValueError(f"{KEY}.merged: {self.adapters} of {self.method}: {said}")
        object.__setattr__(self, "targets", _targets(self.targets))

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The shape as it is. Raises ValueError where there is nothing to adapt in the way that was asked for."""
        stack = (*shape.layers, *shape.encoder)
        if any(layer.attention.latent is not None for layer in stack) and self.method in ("lora", "prompt"):
            raise ValueError(f"{KEY}.method: {self.method}: {shape.name} has latent attention, which is not modelled")
        if self.method == "bitfit" and not total_biases(shape):
            raise ValueError(f"{KEY}.method: bitfit: {shape.name} has no biases")
        for target in self.targets if self.method == "lora" else ():
            for layer in stack:
                lora_sizes(layer, shape, target, f"{KEY}.targets")
        return shape

    def trainable(self, shape: ModelShape) -> int:
        """Parameters of one adapter for the whole model, encoder and decoder."""
        stack = (*shape.layers, *shape.encoder)
        if self.method == "lora":
            sizes = (lora_sizes(layer, shape, t, f"{KEY}.targets") for layer in stack for t in self.targets)
            return sum(self.rank * (k + n) for k, n in sizes)
        if self.method == "adapter":
            d, m = shape.d_model, self.bottleneck
            return len(stack) * self.places * (2 * d * m + m + d)
        if self.method == "bitfit":
            return total_biases(shape)
        return self.tokens * sum(layer.attention.cached_width for layer in stack)

    def distinct(self, rows: Count) -> Count:
        """Different adapters that a pass of so many rows reads, elementwise."""
        n = np.asarray(rows, dtype=np.float64)
        if self.in_batch is not None:
            return np.minimum(n, float(self.in_batch))
        return visited(inclusion(zipf(self.adapters, self.skew), 1), n)

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Served:
        """The adapters of one shape."""
        return _Served(self, shape, precision)

    @property
    def quality(self) -> Quality:
        """Against full fine-tuning of one model on one benchmark; unknown for soft prompts."""
        return QUALITY.get(self.method, UNKNOWN)


@dataclass(frozen=True)
class _Served:
    peft: Peft
    shape: ModelShape
    precision: Precision

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """One line more: all adapters, in the activations' format (learned keys and values in the cache's)."""
        peft = self.peft
        if peft.merged:
            return dict(weight_bytes)
        number = FORMATS[self.precision.kv if peft.method == "prompt" else self.precision.activations]
        return {**weight_bytes, "peft": peft.adapters * peft.trainable(self.shape) * number.stored_bytes}

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Small products beside the ones they adapt."""
        return ops if self.peft.merged else [new for op in ops for new in self._with(op, work)]

    def _with(self, op: Op, work: Work) -> list[Op]:
        layer, name = layer_of(op, self.shape), op.name.removeprefix("encoder.")
        if layer is None:
            return [op]
        peft, rows = self.peft, work.encoder_tokens if op.driver == "encoder" else work.tokens
        beside = Beside(op, rows, peft.distinct(rows), FORMATS[self.precision.activations].stored_bytes)
        if peft.method == "lora":
            targets = [t for t in peft.targets if HOMES[t] == name]
            sizes = {t: lora_sizes(layer, self.shape, t, KEY) for t in targets}
            return [op, *(new for t, (k, n) in sizes.items() for new in beside.lora(t, k, n, peft.rank))]
        if peft.method == "adapter" and name in ("attn.out", "mlp.down", "moe.down")[2 - peft.places :]:
            return [op, *beside.adapter(name.split(".")[0].replace("moe", "mlp"), self.shape.d_model, peft.bottleneck)]
        if peft.method == "bitfit":
            return [beside.with_biases(biases(layer, self.shape).get(name, 0))]
        if peft.method == "prompt" and name == "attn.qkv":
            kv_bytes = FORMATS[self.precision.kv].stored_bytes
            return [op, *beside.prompt(layer.attention, peft.tokens, kv_bytes)]
        return [op]


def _targets(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not values or len(set(map(str, values))) < len(values):
        raise ValueError(f"{KEY}.targets: {shown(values)}: must be a list of different ones of {', '.join(TARGETS)}")
    return tuple(choice(f"{KEY}.targets", value, TARGETS) for value in values)
