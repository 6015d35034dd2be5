"""A primary and a secondary with Gaussian weights, small enough to enumerate, and what their meters read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from variant_counting import counted

from sim.analytic.model import ModelShape
from sim.policies.tandem_projection import Project
from sim.reference.decoding import Generation
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer
from sim.reference.twins._secondary import Secondary
from sim.validation.counts import Tally, added, decoded, measured, simulated
from sim.validation.stand_in import dense, stand_in

PRIMARY = dense(16, 3, 2, 1, 32, 4)
SECONDARY = dense(8, 2, 2, 1, 16, 4)


def secondary_of(primary: ModelShape, shape: ModelShape, layer_map: tuple[int, ...], seed: int = 1) -> Secondary:
    """A random secondary of ``shape`` beside a primary."""
    model = stand_in(shape, seed)
    luck = stream(seed, "projections")
    size = (primary.d_model, shape.d_model)
    matrices = [luck.standard_normal(size).astype(np.float32) / np.float32(size[0] ** 0.5) for _ in shape.layers]
    return Secondary(
        model.shape, model.numerics, model.weights, projections=tuple(matrices), layer_map=tuple(layer_map)
    )


def tiny_tandem(seed: int = 0, exact: bool = False) -> tuple[Transformer, Secondary]:
    """Over four tokens; the secondary reads the primary's layers 1 and 3."""
    target = replace(stand_in(PRIMARY, seed, sharpness=1.5), exact=exact)
    return target, replace(secondary_of(PRIMARY, SECONDARY, (1, 3), seed + 1), exact=exact)


def meters_of(target: Transformer, secondary: Secondary) -> Tally:
    """What both read since they were reset; projections are among the secondary's."""
    return added(measured(target.meter), measured(secondary.meter))


def counts_of(policy: Any, runs: list[Generation], target: ModelShape, secondary: ModelShape) -> Tally:
    """FLOPs and bytes of the rounds that really happened, as the policy's passes say."""
    windows = (target.windows, secondary.windows, secondary.windows)
    passes = list(decoded(policy, runs, windows))
    works = [[work for model, work in passes if model == k] for k in range(3)]
    project = Project().beside(target)
    return added(
        simulated(target, works[0]), simulated(secondary, works[1], "draft."), counted(secondary, works[2], project)
    )
