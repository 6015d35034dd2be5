"""Wires within and between nodes: collectives in phases, hidden behind products, on shared tokens; whose link it is."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from analytic_models import MOE, device, model
from hypothesis import given
from hypothesis import strategies as st
from test_layouts_served import scenario

import hardware_profiles
from sim.analytic.collectives import phases, sent_bytes
from sim.analytic.cost import Layout, PassCost
from sim.analytic.hardware import Device
from sim.analytic.ops import Op
from sim.analytic.staged import pass_cost
from sim.analytic.wires import LINKS, link_kind, wired
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.variants import build
from sim.variants.gathered import check_shards

H100 = device("h100-sxm")
LLAMA = replace(model("llama-3-70b"), vocab=128_000)
TWO_NODES = Layout(tensor=16, node_devices=8, network_GBps=50, network_latency_us=4)
WORK = Work.mixed(Work.decode(4, 100), Work.chunk(512, 100))


def wires(layout: Layout, work: Work = WORK) -> list[Op]:
    return [op for op in PassCost(LLAMA, H100, layout=layout).ops(work) if op.unit == "link"]


# -- phases


def test_an_all_reduce_over_two_nodes_of_eight_by_hand() -> None:
    """16 MB: 14 within at 7/8 each way, and a lane's eighth, 2 MB, there and back between two nodes."""
    found = phases("all_reduce", 16, 8, 16e6)
    assert [sent_bytes(one.kind, one.devices, one.size_bytes) for one in found] == [14e6, 2e6, 14e6]
    assert list(map(tuple, found)) == [
        ("reduce_scatter", 8, 16e6, False), ("all_reduce", 2, 2e6, True), ("all_gather", 8, 16e6, False),
    ]  # fmt: skip


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["all_reduce", "reduce_scatter", "all_gather"]))
def test_phases_send_what_one_ring_sends_and_little_of_it_abroad(nodes: int, local: int, kind: str) -> None:
    """(l-1)/l + (n-1)/(n l) = (N-1)/N: the same bytes as flat rings, of which a ring of nodes goes abroad."""
    size = Fraction(1 << 20)
    sent = [
        (one.abroad, sent_bytes(one.kind, one.devices, float(one.size_bytes)))
        for one in phases(kind, nodes * local, local, size)
    ]
    assert sum(b for _, b in sent) == pytest.approx(sent_bytes(kind, nodes * local, float(size)))
    assert sum(b for far, b in sent if far) == pytest.approx(sent_bytes(kind, nodes, float(size)) / local)


def test_phases_of_nothing_else() -> None:
    with pytest.raises(ValueError, match="allowed: all_reduce, reduce_scatter, all_gather"):
        phases("send", 4, 2, 1)
    with pytest.raises(ValueError, match="6 devices are not whole nodes of 4"):
        phases("all_reduce", 6, 4, 1)


def test_hierarchical_collectives_take_each_phase_over_its_own_wire() -> None:
    """160 all-reduces of 4 tokens of 16 KiB: 7/8 twice at 450 GB/s, and an eighth of them at 50 GB/s after 4 us."""
    layout, work = replace(TWO_NODES, collectives="hierarchical"), Work.decode(4, 100)
    assert [(op.name, op.group, op.link_Bps) for op in wires(layout, work)][:3] == [
        ("reduce_scatter", 8, None), ("all_reduce", 2, 50e9), ("all_gather", 8, None),
    ]  # fmt: skip
    size = 4 * 8192 * 2
    flat = PassCost(LLAMA, H100, layout=replace(TWO_NODES, node_devices=None)).seconds(work)
    gap = float(PassCost(LLAMA, H100, layout=layout).seconds(work) - flat)
    ring = 2 * 15 / 16 * size / 450e9
    each = 2 * 7 / 8 * size / 450e9 + 4e-6 + 2 * 1 / 2 * size / 8 / 50e9
    assert gap == pytest.approx(160 * (each - ring))
    sent = [float(sum(op.layers * op.link_bytes for op in wires(one))) for one in (layout, TWO_NODES)]
    assert sent[0] == pytest.approx(sent[1]), "as many bytes as flat rings, elsewhere"
    assert PassCost(LLAMA, H100, layout=layout).seconds(WORK) < PassCost(LLAMA, H100, layout=TWO_NODES).seconds(WORK)


def test_within_a_node_hierarchical_is_flat() -> None:
    """The same ops where no group leaves its node."""
    near = replace(TWO_NODES, tensor=8, pipeline=2)
    costs = [pass_cost(LLAMA, H100, layout=one) for one in (near, replace(near, collectives="hierarchical"))]
    assert costs[0].ops(WORK) == costs[1].ops(WORK)


# -- shared tokens


@pytest.mark.parametrize("layout", [Layout(tensor=8), replace(TWO_NODES, collectives="hierarchical")], ids=str)
def test_shared_tokens_are_normed_once_in_all_and_sent_as_often(layout: Layout) -> None:
    """Norms inside layers: FLOPs and activations of all devices together are those of one device, exactly; every other
    op and the bytes sent stay as they were.
    """
    alone = {op.name: op for op in PassCost(LLAMA, H100).ops(WORK)}
    before, after = (
        PassCost(LLAMA, H100, layout=replace(layout, sequence_parallel=on)).ops(WORK) for on in (False, True)
    )
    norms = [op for op in after if op.name in ("norm.attn", "norm.mlp")]
    assert len(norms) == 2
    for op in norms:
        for field in ("flops", "activation_bytes"):
            mine, whole = (Fraction(float(getattr(one, field))) for one in (op, alone[op.name]))
            assert layout.tensor * mine == whole
    rest = [[op for op in ops if op.unit != "link" and op not in norms] for ops in (before, after)]
    assert [op for op in rest[0] if op.name not in ("norm.attn", "norm.mlp")] == rest[1]
    sent = [float(sum(op.layers * op.link_bytes for op in ops)) for ops in (before, after)]
    assert sent[0] == pytest.approx(sent[1])
    names = {op.name for op in after if op.unit == "link"}
    assert names == {"reduce_scatter", "all_gather"}


def test_an_order_of_collectives_around_every_block() -> None:
    """Norm of the own tokens, gather all, block, scatter."""
    ops = PassCost(LLAMA, H100, layout=Layout(tensor=8, sequence_parallel=True)).ops(Work.decode(4, 100))
    said = [op.name for op in ops if op.unit == "link" or op.name.startswith("norm.")]
    each = ["all_gather", "reduce_scatter"]
    assert said == ["norm.attn", *each, "norm.mlp", *each, "norm.final"]


@pytest.mark.parametrize("more", [{}, {"sequence_parallel": True}, {"collectives": "hierarchical"}], ids=str)
def test_variants_see_how_many_devices_share_a_layer(more: dict[str, Any]) -> None:
    """Whatever the collectives are called, and however many phases they have."""
    ops = PassCost(LLAMA, H100, layout=replace(TWO_NODES, **more)).ops(WORK)
    check_shards("x", 16, ops)
    with pytest.raises(ValueError, match=r"x\.shards: 8: the layout cuts the model over 16"):
        check_shards("x", 8, ops)


# -- overlap


@pytest.mark.parametrize("layout", [Layout(tensor=8), TWO_NODES, Layout(tensor=4, sequence_parallel=True)], ids=str)
def test_collectives_are_hidden_behind_what_runs_beside_them(layout: Layout) -> None:
    """Of the kernels that follow the tokens, the longer of collectives and all others; causes add up to it."""
    for work in (WORK, Work.decode(4, 100), Work.chunk(4096, 0)):
        plain, full = (PassCost(LLAMA, H100, layout=replace(layout, overlap=how)) for how in ("none", "full"))
        mine = [(k[0].unit == "link", float(b.seconds)) for k, b in plain.bounds(work) if k[0].driver == "tokens"]
        sent, rest = (sum(s for wire, s in mine if wire == which) for which in (True, False))
        assert float(full.seconds(work)) == pytest.approx(float(plain.seconds(work)) - min(sent, rest))
        causes = full.causes(work)
        assert sum(map(float, causes.values())) == pytest.approx(float(full.seconds(work)))
        assert float(causes["link"]) <= float(plain.causes(work)["link"])
        assert float(full.joules(work)) == float(plain.joules(work))


def test_overlap_hides_no_fetches_from_the_host() -> None:
    """Weights that come from the host are not collectives."""
    costs = [
        PassCost(
            LLAMA,
            H100,
            layout=Layout(tensor=8, overlap=how),
            variants=build([{"offload": {"weights": 0.5, "overlap": False}}]),
        )
        for how in ("none", "full")
    ]
    sent = sum(float(b.seconds) for k, b in costs[0].bounds(WORK) if k[0].unit == "link" and k[0].group > 1)
    assert any(op.unit == "link" and op.group == 1 for op in costs[0].ops(WORK))
    assert float(costs[0].seconds(WORK) - costs[1].seconds(WORK)) == pytest.approx(sent)


# -- kinds of links


def test_kinds_of_links_of_all_profiles() -> None:
    """By the first words of their names; other makers' links are of no kind that a scenario can ask for."""
    kinds = {name: link_kind(Device.from_profile(hardware_profiles.load(name)).link.name) for name in NAMES}
    assert kinds["h100-sxm"] == "nvlink" and kinds["tpu-v5e"] == "ici" and kinds["a100-pcie-80gb"] == "pcie"
    assert kinds["l40s"] == "pcie" and kinds["gaudi3"] == "ethernet" and kinds["mi300x"] is None
    assert {kind for kind in kinds.values() if kind} == set(LINKS)


NAMES = ["h100-sxm", "tpu-v5e", "a100-pcie-80gb", "l40s", "gaudi3", "mi300x"]


def test_pcie_takes_the_way_to_the_host_and_nothing_measured_elsewhere() -> None:
    """H100: 64 GB/s instead of 450; collectives that were measured over NVLink do not count."""
    over = wired(H100, "pcie")
    assert (over.link.bandwidth_Bps, H100.link.bandwidth_Bps) == (64e9, 450e9)
    assert wired(H100, "nvlink") is H100 and wired(H100, None) is H100
    built = build_scenario(scenario(layout={"tensor": 4, "link": "pcie"}, engine="vllm-v1"))
    assert built.device.kernels is not None and built.device.kernels.collective("all_reduce", 4) is None
    near = build_scenario(scenario(layout={"tensor": 4}, engine="vllm-v1"))
    assert built.costs[0].seconds(WORK) > near.costs[0].seconds(WORK)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"link": "ici", "tensor": 4}, r"layout\.link: ici: h200-sxm has NVLink4 and pcie to its host; a network"),
        ({"link": "nvlin", "tensor": 4}, r"layout\.link: 'nvlin'"),
        ({"collectives": "tree", "tensor": 4}, r"layout\.collectives: 'tree'"),
        ({"overlap": "all", "tensor": 4}, r"layout\.overlap: 'all'"),
        ({"sequence_parallel": True}, r"layout\.sequence_parallel: true: no tensor devices"),
        (
            {"tensor": 8, "collectives": "hierarchical", "node_devices": 3, "network_GBps": 50},
            r"layout\.node_devices: 3 does not divide tensor 8: hierarchical",
        ),
    ],
)
def test_wires_that_make_no_sense_are_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        build_scenario(scenario(layout=said))


@pytest.mark.parametrize("more", [{"overlap": "full"}, {"sequence_parallel": True}], ids=str)
def test_experts_over_ranks_take_them_as_well(more: dict[str, Any]) -> None:
    """One and many rounds have the same bits, with data ranks and stages."""
    cost = pass_cost(MOE, H100, layout=Layout(tensor=2, data=2, expert=2, **more))
    each = [float(cost.seconds(Work.decode(n, 64)._replace(everywhere=2 * n))) for n in range(1, 6)]
    n = np.arange(1, 6)
    assert np.asarray(cost.seconds(Work.decode(n, 64)._replace(everywhere=2 * n))).tolist() == each
