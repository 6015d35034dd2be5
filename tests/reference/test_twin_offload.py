"""What is copied over the link, counted where it is copied."""

from __future__ import annotations

import numpy as np
from analytic_models import device
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import small_shape
from variant_counting import counted

from sim.analytic.ops import ops
from sim.reference.variants.offload import Offloaded
from sim.validation.counts import FP32, measured, mismatches, ragged
from sim.validation.stand_in import stand_in
from sim.variants.offload import Offload


@settings(max_examples=40)
@given(
    weights=st.sampled_from([0.0, 0.5, 1.0]), kv=st.sampled_from([0.0, 0.5, 1.0]), overlap=st.booleans(),
    passes=st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=4),
)  # fmt: skip
def test_bytes_over_the_link_are_those_copied(
    weights: float, kv: float, overlap: bool, passes: list[list[int]]
) -> None:
    """Op by op, exactly, in both modes; every other count and every result is the plain model's."""
    shape, variant = small_shape(), Offload(weights, kv, overlap=overlap)
    base = stand_in(shape)
    twin = Offloaded.of(base, weights, kv)
    cache, plain, works = twin.new_cache(2), base.new_cache(2), []
    for news in (p for p in passes if sum(p)):
        works.append(ragged(news, cache.lengths.tolist(), (None,), sum(n > 0 for n in news)))
        tokens = [np.arange(n) % shape.vocab for n in news]
        out = twin.forward(tokens, cache)
        assert np.allclose(out, base.forward(tokens, plain), atol=1e-5)
        twin.meter.sample(out)
    assert not [str(m) for m in mismatches(counted(shape, works, variant), measured(twin.meter))]
    there, sums = variant.bound(shape, FP32, device("a100-sxm-80gb")), dict.fromkeys(twin.fetched, 0.0)
    for work in works:
        for op in there.rewrite(ops(shape, FP32, work, attention="standard"), work):
            if np.any(op.link_bytes):
                name = op.name.removesuffix(".fetch")
                sums[name] = sums.get(name, 0.0) + op.layers * op.link_bytes
    assert {k: v for k, v in sums.items() if v} == {k: v for k, v in twin.fetched.items() if v}
