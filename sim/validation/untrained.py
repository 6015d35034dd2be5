"""Drafters on a target's states with Gaussian weights: what they propose means nothing, what they cost is real."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.policies.feature import Feature
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer
from sim.reference.twins._tree_features import FeatureWeights, Wide
from sim.validation.stand_in import stand_in

Array = NDArray[Any]
FEATURES = {
    "eagle": Feature(),
    "eagle3": Feature(join="wide", norms=1),
    "mtp": Feature(norms=2, dense=False),
    "layers": Feature(3, join="none", dense=False),
}


def features(target: Transformer, kind: str, seed: int = 5) -> FeatureWeights:
    """An EAGLE, EAGLE-3, multi-token or parallel-layer drafter of a target, its meter and output matrix shared."""
    variant, d, luck = FEATURES[kind], target.shape.d_model, stream(seed, "features")
    net = stand_in(variant.reshape(target.shape), seed)
    outer = {key: target.weights[key] for key in ("embed", "logits", "norm.final")}
    net = replace(net, weights={**net.weights, **outer}, meter=target.meter)
    gains = tuple(np.ones(d, np.float32) for _ in range(variant.norms))

    def matrix(rows: int, columns: int) -> Array:
        return np.asarray(luck.normal(size=(rows, columns)) / rows**0.5, dtype=np.float32)

    if kind != "eagle3":
        return FeatureWeights(net, variant.join, matrix(2 * d, d), None, gains)
    wide = {**net.weights, "layers.0.attn.qkv": matrix(2 * d, net.weights["layers.0.attn.qkv"].shape[1])}
    return FeatureWeights(Wide(net.shape, net.numerics, wide, target.meter), "wide", None, matrix(3 * d, d), gains)
