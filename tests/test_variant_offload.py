"""Weights and cache behind a link: times by hand, overlap, memory, chunks against what was published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analytic_models import LATENT, SMALL, device, model
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import variants
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Link
from sim.analytic.placement import Layout
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.quality import LOSSLESS, UNKNOWN
from sim.run import simulate
from sim.scenario import Scenario
from sim.variants.offload import Offload

RTX = device("rtx-4090")
SEVENTY = model("llama-2-70b")


def step_s(shape: Any, *v: Any, batch: int = 1, context: int = 128, **more: Any) -> float:
    cost = PassCost(shape, RTX, variants=v, **more)
    return float(cost.seconds(Work.decode(batch, context, windows=cost.shape.windows)))


def layer_bytes(shape: Any) -> int:
    return sum(2 * n for op, n in shape.parameters().items() if op.startswith(("attn.", "mlp.")))


def test_a_step_takes_as_long_as_its_bytes_over_the_link() -> None:
    """Llama-2-70B on a 4090: all layers over PCIe, by hand; everything else runs beside it (but for the head)."""
    by_hand = layer_bytes(SEVENTY) / 31.5e9
    assert step_s(SEVENTY, Offload(1.0, link_GBps=31.5)) == pytest.approx(by_hand, rel=0.01)
    assert RTX.host_link.bandwidth_Bps is not None
    assert step_s(SEVENTY, Offload(1.0)) == pytest.approx(layer_bytes(SEVENTY) / RTX.host_link.bandwidth_Bps, rel=0.01)


def test_without_overlap_times_add_up() -> None:
    """Fetching before the work: the plain step and the fetches, one after the other."""
    beside, before = (step_s(SEVENTY, Offload(0.5, link_GBps=20.0, overlap=o)) for o in (True, False))
    fetched = 0.5 * layer_bytes(SEVENTY) / 20e9
    assert before == pytest.approx(step_s(SEVENTY) + fetched, rel=1e-6)
    assert fetched < beside < before


def test_a_large_batch_shares_the_fetch() -> None:
    """Seconds a token fall in proportion until the products take longer than the link."""
    times = [step_s(SEVENTY, Offload(1.0), batch=b, context=2) for b in (1, 16, 256)]
    assert times[2] < 1.05 * times[0] and times[1] == pytest.approx(times[0], rel=0.01)


def test_memory_holds_what_stays() -> None:
    """70B in 16 bits does not fit into 24 GB; with nine tenths of the layers elsewhere it does."""
    cost = PassCost(SEVENTY, RTX, variants=[Offload(0.9)])
    assert cost.bytes_weights == pytest.approx(0.1 * layer_bytes(SEVENTY) + 2 * (2 * 262_144_000 + 1_318_912))
    assert PassCost(SEVENTY, RTX, variants=[Offload(kv=0.75)]).kv_bytes_per_token == (327_680 / 4,)


def test_a_cache_behind_the_link_is_fetched_every_step() -> None:
    """Batch 8, 4,096 tokens of 320 KiB: half of it over the link; rounds stay on the fast path."""
    cost = PassCost(SEVENTY, RTX, variants=[Offload(kv=0.5, link_GBps=1.0)])
    seconds = float(cost.seconds(Work.decode(8, 4097))) - step_s(SEVENTY, batch=8, context=4097)
    assert seconds == pytest.approx(8 * 4096 * 327_680 / 2 / 1e9, rel=0.02)
    assert not cost._is_loose


@pytest.mark.parametrize(
    ("name", "gigabytes", "rate", "published_ms"),
    [("naive", 13.4, 6.1, 2196), ("hybrid", 6.7, 6.1, 1090), ("bundled", 0.2, 2.25, 87)],
)
def test_io_times_of_llm_in_a_flash_are_bytes_over_throughput(
    name: str, gigabytes: float, rate: float, published_ms: float
) -> None:
    """arXiv 2312.11514, table 2: identities, to print rounding."""
    shape = model("opt-6.7b")
    moved = PassCost(shape, RTX, variants=[Offload(gigabytes * 1e9 / layer_bytes(shape) if gigabytes < 10 else 1.0)])
    assert moved.bytes_weights >= 0
    assert gigabytes / rate * 1e3 == pytest.approx(published_ms, rel=0.03), name


def test_throughput_of_chunks_is_predicted_from_one_of_them() -> None:
    """The time of a request comes from rows of 8 KiB at 1.25 GB/s; rows and columns bundled, 16 KiB, got 2.25 GB/s."""
    one, two = (Offload(1.0, link_GBps=6.1, chunk_KiB=k).rate_Bps(RTX) / 1e9 for k in (8, 16))
    assert one == pytest.approx(1.25, rel=0.01)
    assert two == pytest.approx(2.25, rel=0.1)


def test_a_batch_fetches_the_union_of_its_neurons() -> None:
    """Of 5 % a token: 5 % for one, 1 - 0.95^32 = 81 % for 32; the products are not made smaller here."""
    shape = model("opt-6.7b")

    def fetched(batch: int) -> float:
        done = PassCost(shape, RTX, variants=[Offload(1.0, loaded=0.05)]).ops(Work.decode(batch, 10))
        return float(sum(op.layers * op.link_bytes for op in done if op.name.startswith("mlp.")))

    whole = 2 * (2_148_007_936 + 2_147_614_720)
    assert fetched(1) == pytest.approx(0.05 * whole) and fetched(32) == pytest.approx((1 - 0.95**32) * whole)


@pytest.mark.parametrize("shape", [s for s in SMALL if s is not LATENT], ids=lambda s: s.name)
@settings(max_examples=8)
@given(start=st.integers(1, 300), overlap=st.booleans())
def test_a_round_costs_the_same_alone_and_among_others(shape: Any, start: int, overlap: bool) -> None:
    cost = PassCost(shape, RTX, variants=[Offload(0.5, 0.5, overlap=overlap, loaded=0.3)])
    batch = np.arange(start, start + 3)
    alone = [float(cost.seconds(Work.decode(int(n), 70, windows=shape.windows))) for n in batch]
    many = Work.decode(batch, 70, windows=shape.windows)
    assert cost.seconds(many).tolist() == alone
    assert sum(cost.causes(many).values()) == pytest.approx(alone, rel=1e-9)


def test_each_device_of_a_group_fetches_its_own_part() -> None:
    """Two devices, two links to the host: half the bytes each."""
    alone, pair = (
        PassCost(SEVENTY, device("a100-pcie-80gb"), layout=Layout(tensor=t), variants=[Offload(1.0)]) for t in (1, 2)
    )
    bytes_of = [c.counts(Work.decode(1, 10))["link_bytes"] for c in (alone, pair)]
    reduced = PassCost(SEVENTY, device("a100-pcie-80gb"), layout=Layout(tensor=2)).counts(Work.decode(1, 10))
    assert bytes_of[1] - reduced["link_bytes"] == pytest.approx(bytes_of[0] / 2, rel=0.01)


def test_a_run_that_did_not_fit_does() -> None:
    """Llama-2-13B in 16 bits on a 4090: refused, then served slowly."""
    base = {"model": "llama-2-13b", "hardware": "rtx-4090",
            "workload": {"requests": 5, "rate": 0.1, "prompt": 50, "output": 5}}  # fmt: skip
    with pytest.raises(ValueError, match="leaves no KV cache"):
        build_scenario(Scenario.model_validate(base))
    done = simulate(Scenario.model_validate({**base, "variants": [{"offload": {"weights": 0.5}}]}))
    assert done.complete and done.requests["tpot_ms"].median() > 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": 2}, "weights: 2: must be a number from 0 to 1"),
        ({"kv": float("nan")}, "kv: nan"),
        ({"link_GBps": 0}, "link_GBps: 0"),
        ({"chunk_KiB": "8"}, "chunk_KiB: '8'"),
        ({"overlap": 1}, "overlap: 1: must be true or false"),
        ({"weight": 1}, "weight: unknown option.*did you mean 'weights'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        variants.build([{"offload": options}])
    assert "\n" not in str(refused.value)


def test_a_device_without_a_link_to_its_host_is_refused() -> None:
    lonely = replace(RTX, host_link=Link("host", None))
    with pytest.raises(ValueError, match="link_GBps: missing: the profile of rtx-4090 gives no link"):
        PassCost(SEVENTY, lonely, variants=[Offload(1.0)])
    with pytest.raises(ValueError, match="latent attention"):
        PassCost(LATENT, RTX, variants=[Offload(1.0)])


def test_quality() -> None:
    assert Offload(1.0).quality == LOSSLESS and Offload(1.0, loaded=0.1).quality == UNKNOWN
