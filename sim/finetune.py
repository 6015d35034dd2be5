"""Memory to fine-tune a model: weights, gradients, Adam's two moments, a 4-bit base, and activations.

Bytes a trained parameter: 16 in float32 (weight 4, gradient 4, moments 8) and in mixed precision (2 + 2, and 12 in
float32: weight, two moments; Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1); 12 in 16 bits with float32
moments, which is QLoRA's "more than 780 GB" for 65B (Dettmers et al. 2023, arXiv 2305.14314). Frozen weights need
neither gradients nor moments. Activations: of every layer its input in 16 bits, and of one layer all that its backward
pass needs, 34 bytes a token and number (Korthikanti et al. 2022, arXiv 2205.05198, equations 2 and 6, attention's
scores computed again); logits in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sim.analytic.memory import weight_bytes
from sim.analytic.model import ModelShape
from sim.analytic.precision import Precision
from sim.variants.peft import METHODS, Peft
from sim.variants.peft_layers import total_biases
from sim.variants.quantization import Quantization

__all__ = ["Memory", "memory_table"]

LAYER_BYTES, CHECKPOINT_BYTES, LOGIT_BYTES, MOMENTS_BYTES = 34, 2, 4, 8
TRAINED_BYTES = 4  # weight and gradient of an adapter, each in float32


@dataclass(frozen=True)
class Memory:
    """One way of fine-tuning: ``trainable`` parameters, and bytes line by line; ``master``: float32 copies."""

    way: str
    trainable: int
    weights_bytes: float
    master_bytes: float
    gradients_bytes: float
    moments_bytes: float
    activations_bytes: float

    @property
    def total_bytes(self) -> float:
        """The sum of the lines."""
        lines = (self.weights_bytes, self.master_bytes, self.gradients_bytes, self.moments_bytes)
        return sum(lines) + self.activations_bytes


def memory_table(shape: ModelShape, peft: Peft | None = None, tokens: int = 1024) -> list[Memory]:
    """Every way that applies to the shape, for steps of ``tokens`` tokens; adapters as ``peft`` says (LoRA of rank 8).

    Raises ValueError where ``peft`` does not apply to the shape.
    """
    peft = peft or Peft()
    everything, activations = shape.total_parameters, activation_bytes(shape, tokens)
    full = [
        _full("full, float32", everything, 4, 0, 4, activations),
        _full("full, mixed precision", everything, 2, 4, 2, activations),
        _full("full, 16 bits", everything, 2, 0, 2, activations),
    ]
    wide = sum(weight_bytes(shape, Precision()).values())
    adapted = [one for method in METHODS if (one := _applied(replace(peft, method=method, merged=False), shape))]
    if peft.method not in {one.method for one in adapted}:
        peft.reshape(shape)  # says why
    frozen = [_frozen(f"{one.method}, 16-bit base", one, shape, wide, activations) for one in adapted]
    if any(one.method == "lora" for one in adapted) and not shape.encoder:
        packed = Quantization("nf4_double")
        narrow = sum(weight_bytes(packed.reshape(shape), packed.reformat(Precision())).values())
        lora = next(one for one in adapted if one.method == "lora")
        frozen.append(_frozen("lora, 4-bit base (QLoRA)", lora, shape, narrow, activations))
    return [*full, *frozen]


def activation_bytes(shape: ModelShape, tokens: int) -> float:
    """Of one step with checkpoints at every layer, ``tokens`` tokens in all."""
    layers = len(shape.layers) + len(shape.encoder)
    states = tokens * shape.d_model * (CHECKPOINT_BYTES * layers + LAYER_BYTES)
    return float(states + tokens * shape.vocab * LOGIT_BYTES * shape.head)


def _applied(peft: Peft, shape: ModelShape) -> Peft | None:
    """The way, where it applies to the shape."""
    if peft.method == "bitfit" and not total_biases(shape):
        return None
    try:
        peft.reshape(shape)
    except ValueError:
        return None
    return peft


def _full(way: str, count: int, weight: int, master: int, gradient: int, activations: float) -> Memory:
    return Memory(way, count, count * weight, count * master, count * gradient, count * MOMENTS_BYTES, activations)


def _frozen(way: str, peft: Peft, shape: ModelShape, base_bytes: float, activations: float) -> Memory:
    """A frozen base and one adapter in float32 (biases are part of the base: their float32 copies are masters)."""
    count = peft.trainable(shape)
    trained: dict[str, Any] = {"gradients_bytes": count * TRAINED_BYTES, "moments_bytes": count * MOMENTS_BYTES}
    return Memory(way, count, base_bytes, count * TRAINED_BYTES, activations_bytes=activations, **trained)
