"""What stays on chip, how a shape is cut over devices, what a device's memory holds."""

from dataclasses import replace
from typing import Any

import pytest
from analytic_models import DENSE, LATENT, MOE, device, model

from sim.analytic.cost import DoesNotFit, Layout, PassCost, memory_budget
from sim.analytic.hardware import Device
from sim.analytic.placement import place, shard
from sim.analytic.precision import Precision
from sim.analytic.work import Work

TPU, H100 = device("tpu-v5e"), device("h100-sxm")
MIB = 1 << 20


def with_onchip(base: Device, **changes: Any) -> Device:
    return replace(base, onchip=replace(base.onchip, **changes))


def test_halving_vmem_sends_exactly_these_bytes_to_main_memory() -> None:
    """Llama-3.1-8B, a prompt of 4,096 tokens on a v5e with 128 and with 64 MiB of VMEM.

    Between 64 and 128 MiB lie the activations of attn.qkv and of RoPE (80 MiB each); attn.out and the norms take
    exactly 64 MiB and still fit; the feed-forward ops exceed both. Flash tiles hold half as many queries, so K and V
    are read twice as often: pairs / (M / (4 * 128 * 2)) tokens of 4,096 bytes a layer.
    """
    shape, work = model("llama-3.1-8b"), Work.prefill(1, 4096)
    whole, half = (
        PassCost(shape, with_onchip(TPU, capacity_bytes=mib * MIB)).counts(work)["hbm_bytes"] for mib in (128, 64)
    )
    assert TPU.onchip.capacity_bytes == 128 * MIB
    qkv, rope = 4096 * (4096 + 6144) * 2, 4096 * 2 * (32 + 8) * 128 * 2
    assert 64 * MIB < qkv == rope <= 128 * MIB
    assert 4096 * (4096 + 4096) * 2 == 64 * MIB < 128 * MIB < 4096 * (14336 + 4096) * 2
    pairs = 4096 * 4097 // 2
    tiles = pairs / (64 * MIB // 1024) - pairs / (128 * MIB // 1024)
    assert half - whole == pytest.approx(32 * (qkv + rope + tiles * 4096), rel=1e-12)


def test_a_drafter_that_fits_into_vmem_is_read_from_there() -> None:
    """SmolLM2-135M in int8 (134.5 MB) fits 144 MiB beside no other claim; its reads leave main memory."""
    big, precision = with_onchip(TPU, capacity_bytes=144.0 * MIB), Precision("int8", head="int8")
    cost = PassCost(model("smollm2-135m"), big, precision)
    counts = cost.counts(Work.decode(1, 128))
    assert cost.bytes_weights == 134_515_008 and cost.placement.resident
    assert counts["weight_bytes"] == 0 and counts["kv_bytes"] == 128 * 30 * 2 * 3 * 64 * 2
    crowded = PassCost(model("smollm2-135m"), big, precision, onchip_claim=20 * MIB)
    assert not crowded.placement.resident and crowded.counts(Work.decode(1, 128))["weight_bytes"] > 134e6
    assert cost.seconds(Work.decode(1, 128)) < crowded.seconds(Work.decode(1, 128))


def test_resident_weights_leave_less_room_for_activations_and_tiles() -> None:
    free = place(with_onchip(TPU, capacity_bytes=100.0), 60, 0)
    assert (free.resident, free.free_bytes, free.tile_bytes) == (True, 40, 40)
    claimed = place(with_onchip(TPU, capacity_bytes=100.0), 60, 50)
    assert (claimed.resident, claimed.free_bytes) == (False, 50)
    assert place(with_onchip(TPU, capacity_bytes=100.0), 60, 300).free_bytes == 0


def test_weights_stay_out_of_on_chip_memory_of_unknown_bandwidth() -> None:
    assert not place(with_onchip(TPU, bandwidth_Bps=None), 1, 0).resident


def test_a_device_that_is_all_sram_reads_weights_at_sram_speed() -> None:
    """Groq: the main memory is the SRAM, so its bandwidth is the bound and tiles are free."""
    cost = PassCost(model("smollm2-135m"), device("groq"), Precision("int8", "fp16", "fp16", head="int8"))
    assert not cost.placement.resident and cost.placement.tile_bytes == float("inf")
    assert cost.seconds(Work.decode(1, 128)) >= 134_515_008 / 80e12


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-70b", "mixtral-8x7b"])
@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_shards_add_up_to_the_whole(name: str, tensor: int) -> None:
    """FLOPs, product weights and KV of all devices are those of one; router, norms and gather are per device."""
    shape = model(name)
    for work in (Work.decode(16, 1000), Work.prefill(2, 300)):
        whole, part = PassCost(shape, H100), PassCost(shape, H100, layout=Layout(tensor=tensor))
        copied = {"moe.router"}
        for field in ("flops", "weight_bytes", "kv_read_bytes", "kv_write_bytes"):
            ours, theirs = (
                sum(
                    op.layers * getattr(op, field)
                    for op in cost.ops(work)
                    if op.unit != "vector" and op.name not in copied
                )
                for cost in (part, whole)
            )
            assert tensor * ours == pytest.approx(theirs, rel=1e-12), field
    assert tensor * part.kv_bytes_per_token[0] == whole.kv_bytes_per_token[0]


def test_kv_heads_fewer_than_devices_are_replicated() -> None:
    """Eight KV heads on 16 devices: one each, so the cache is held twice in all."""
    shape = replace(model("llama-3-70b"), vocab=128_000)
    whole, part = PassCost(shape, H100), PassCost(shape, H100, layout=Layout(tensor=16))
    assert 16 * part.kv_bytes_per_token[0] == 2 * whole.kv_bytes_per_token[0]
    assert shard(shape, Layout(tensor=16)).layers[0].attention.kv_heads == 1


def test_the_latent_cache_is_replicated_on_every_device() -> None:
    part = PassCost(LATENT, H100, layout=Layout(tensor=4))
    assert part.kv_bytes_per_token == PassCost(LATENT, H100).kv_bytes_per_token


def test_all_reduce_takes_the_ring_time() -> None:
    """Two a layer, each sends 2 (t-1)/t of tokens * d * 2 bytes over 450 GB/s; latency comes on top."""
    shape, work = model("llama-3-70b"), Work.decode(64, 1000)
    per_layer = 2 * 2 * (7 / 8) * 64 * 8192 * 2
    cost = PassCost(shape, H100, layout=Layout(tensor=8))
    assert cost.counts(work)["link_bytes"] == pytest.approx(80 * per_layer)
    assert cost.causes(work)["link"] == pytest.approx(80 * per_layer / 450e9)
    slow = replace(H100, link=replace(H100.link, latency_s=5e-6))
    more = PassCost(shape, slow, layout=Layout(tensor=8)).seconds(work) - cost.seconds(work)
    assert more == pytest.approx(160 * 5e-6)


def test_a_device_without_a_link_figure_cannot_be_cut_over() -> None:
    with pytest.raises(ValueError, match=r"link\.bandwidth_GBps is unknown"):
        PassCost(DENSE, device("groq"), layout=Layout(tensor=2)).seconds(Work.decode(1, 2))


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"tensor": 0}, r"layout\.tensor: 0 must be"),
        ({"tensor": True}, r"layout\.tensor: True must be"),
        ({"tensor": 2.0}, r"layout\.tensor: 2\.0 must be"),
        ({"pipeline": -1}, r"layout\.pipeline: -1 must be"),
        ({"data": "2"}, r"layout\.data: '2' must be"),
    ],
)
def test_layouts_that_do_not_exist_are_refused(layout: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layout(**layout)


@pytest.mark.parametrize(("tensor", "what"), [(3, "attention heads"), (16, "attention heads")])
def test_layouts_that_do_not_divide_the_model_are_refused(tensor: int, what: str) -> None:
    with pytest.raises(ValueError, match=rf"layout\.tensor: {tensor} does not divide the {what}"):
        PassCost(MOE, H100, layout=Layout(tensor=tensor))
    with pytest.raises(ValueError, match=r"layout\.pipeline: 2: a PassCost is one stage"):
        PassCost(MOE, H100, layout=Layout(pipeline=2))


def test_the_memory_budget_adds_up() -> None:
    budget = memory_budget("box", 80e9, 16e9, draft_bytes=1e9, workspace_bytes=2e9, memory_fraction=0.9)
    assert sum(size for _, size in budget.lines) == budget.capacity_bytes == 80e9
    assert budget.kv_pool_bytes == pytest.approx(80e9 * 0.9 - 19e9)
    assert [name for name, _ in budget.lines] == ["weights", "draft weights", "workspace", "KV pool", "reserve"]


def test_what_does_not_fit_is_added_up_in_the_message() -> None:
    """Llama-3-70B in bf16 on one H100: 141 GB of weights in 80 GB."""
    cost = PassCost(model("llama-3-70b"), H100)
    with pytest.raises(DoesNotFit, match=r"h100-sxm: weights 141 GB \+ reserve 8 GB = 149 GB, .* 80 GB of memory"):
        memory_budget("h100-sxm", H100.memory_bytes, cost.bytes_weights, memory_fraction=0.9)
    with pytest.raises(DoesNotFit, match="least KV 30 GB"):
        memory_budget("box", 80e9, 60e9, least_kv_bytes=30e9)


@pytest.mark.parametrize("fraction", [0, -1, 1.1, float("nan")])
def test_a_memory_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="memory_fraction"):
        memory_budget("box", 1e9, 1.0, memory_fraction=fraction)
