"""Small shapes and devices for the tests of the analytic core, and shortcuts to the shipped ones."""

from dataclasses import replace

import hardware_profiles
from sim.analytic.config import shape_from_config
from sim.analytic.hardware import FORMATS, Device, Terms
from sim.analytic.model import Attention, Ffn, Latent, Layer, ModelShape
from workloads.models import find


def model(name: str) -> ModelShape:
    """A shipped model."""
    return shape_from_config(*find(name))


def device(name: str) -> Device:
    """A shipped device."""
    return Device.from_profile(hardware_profiles.load(name))


def calibrated(base: Device, p: float = 1.9) -> Device:
    """The same device with terms like those that measured kernels need (reference: device_model.md)."""
    terms = Terms(0.78, 0.85, 3.3e-6, p, 3.3, 0.6e-6)
    groups = ("matmul", "decode_attention", "prefill_attention", "elementwise")
    return replace(base, **{group: dict.fromkeys(FORMATS, terms) for group in groups})


GQA = Attention(heads=8, kv_heads=2, head_dim=16, value_dim=16)
DENSE = ModelShape("dense", 64, 512, (Layer(GQA, Ffn(160)),) * 3)
NEAR = Layer(replace(GQA, window=32, sinks=True), Ffn(160), norms=4)
WINDOWED = ModelShape("windowed", 64, 512, (NEAR, Layer(GQA, Ffn(160), norms=4)) * 2)
MOE = ModelShape(
    "moe",
    64,
    512,
    (Layer(GQA, Ffn(160)), *[Layer(GQA, Ffn(48, experts=16, experts_per_token=2, shared_width=32))] * 2),
)
LATENT = ModelShape(
    "latent", 64, 512, (Layer(Attention(4, 4, 24, 16, latent=Latent(32, 40, 8, 16)), Ffn(160)),) * 2
)
CROSS = ModelShape(
    "cross",
    64,
    512,
    (Layer(replace(GQA, rope=False), Ffn(160), norms=3, cross=replace(GQA, causal=False, rope=False)),) * 2,
    encoder=(Layer(replace(GQA, causal=False, rope=False), Ffn(160)),) * 2,
)
SMALL = (DENSE, WINDOWED, MOE, LATENT, CROSS)
