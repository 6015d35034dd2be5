"""Seconds, joules and causes of a pass: same bits alone and among others, equal to the sum over ops, and by hand."""

import timeit
from dataclasses import dataclass, replace
from math import inf
from typing import Any, ClassVar

import numpy as np
import pytest
from analytic_models import CROSS, DENSE, LATENT, MOE, SMALL, WINDOWED, calibrated, device, model
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.analytic.cost import PassCost
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.placement import Layout
from sim.analytic.precision import Precision
from sim.analytic.roofline import combine, joules
from sim.analytic.work import Work

A100, H100 = device("a100-sxm-80gb"), device("h100-sxm")
TIGHT = replace(calibrated(H100), onchip=replace(H100.onchip, capacity_bytes=1e6))  # activations spill, tiles are small
DEVICES = {"ideal": H100, "tight": TIGHT, "additive": calibrated(A100, p=1.0), "no on-chip": device("groq")}
COSTS = {(shape.name, kind): PassCost(shape, where) for shape in SMALL for kind, where in DEVICES.items()}
COSTS |= {("standard", kind): PassCost(DENSE, where, attention="standard") for kind, where in DEVICES.items()}


@st.composite
def works(draw: st.DrawFn, kinds: int) -> Work:
    """Random rounds: decode, prefill or mixed, with an encoder now and then; int64 arrays of shape [rounds]."""
    rounds = draw(st.integers(1, 12))

    def column(high: int) -> Any:
        return np.array(draw(st.lists(st.integers(0, high), min_size=rounds, max_size=rounds)), dtype=np.int64)

    halves = draw(st.sampled_from([("decode",), ("prefill",), ("decode", "prefill")]))
    columns = [f"{half}_{what}" for half in halves for what in ("pairs", "reads")]
    pairs = {name: tuple(column(1 << 24) for _ in range(kinds)) for name in columns}
    tokens, part = column(5000), column(5000)
    split = part if len(halves) == 2 else (tokens if "prefill" in halves else 0)
    extra = {f: column(4000) for f in Work._fields if f.startswith(("encoder", "cross"))}
    return Work(tokens + part * (len(halves) == 2), column(600), **pairs, prefill_tokens=split, **extra)  # type: ignore[arg-type]


def one_round(work: Work, i: int, scalar: bool) -> Work:
    """Round i alone, as Python ints or as arrays of length one."""

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(cut(v) for v in value)
        if not isinstance(value, np.ndarray):
            return value
        return int(value[i]) if scalar else value[i : i + 1].copy()

    return Work(**{f: cut(getattr(work, f)) for f in Work._fields})


@pytest.mark.parametrize("key", COSTS, ids="-".join)
@settings(max_examples=8)
@given(data=st.data())
def test_a_round_has_the_same_bits_alone_and_among_others(key: tuple[str, str], data: st.DataObject) -> None:
    """Seconds and joules are elementwise: one array call equals calls of one round, as arrays and as ints."""
    cost = COSTS[key]
    work = data.draw(works(len(cost.shape.windows)))
    fresh = PassCost(cost.shape, cost.device, attention=cost.attention)  # its tables grow in another order
    for quantity, again in ((cost.seconds, fresh.seconds), (cost.joules, fresh.joules)):
        together = np.broadcast_to(quantity(work), work.tokens.shape)
        for i in range(len(together)):
            for scalar in (False, True):
                alone = again(one_round(work, i, scalar))
                assert np.asarray(alone).reshape(()).tobytes() == together[i].tobytes()


@pytest.mark.parametrize("key", COSTS, ids="-".join)
@settings(max_examples=8)
@given(data=st.data())
def test_the_fast_path_and_the_causes_equal_the_sum_over_ops(key: tuple[str, str], data: st.DataObject) -> None:
    """Tables and coefficients give what each kernel's roofline gives, and the causes add up to it."""
    cost = COSTS[key]
    work = data.draw(works(len(cost.shape.windows)))
    by_kernel = sum(bound.seconds for _, bound in cost.bounds(work))
    np.testing.assert_allclose(cost.seconds(work), by_kernel, rtol=1e-11, atol=1e-18)
    np.testing.assert_allclose(sum(cost.causes(work).values()), by_kernel, rtol=1e-11, atol=1e-18)
    energy = sum(joules(kernel, cost.device, cost.placement) for kernel, _ in cost.bounds(work))
    np.testing.assert_allclose(cost.joules(work), energy, rtol=1e-11, atol=1e-18)


def test_no_kernel_of_a_flash_model_is_left_to_the_slow_path() -> None:
    assert not any(cost._is_loose for (name, _), cost in COSTS.items() if name != "standard")
    assert COSTS["standard", "ideal"]._is_loose


def test_two_leading_axes_cost_what_their_rows_cost() -> None:
    """Draft passes of a round come as work of shape [passes, rounds]."""
    reads = np.arange(12, dtype=np.int64).reshape(3, 4) * 1000
    cost = COSTS["dense", "tight"]
    both = cost.seconds(Work(8, 8, (reads + 8,), (reads,)))
    for row, expected in zip(reads, both, strict=True):
        assert cost.seconds(Work(8, 8, (row + 8,), (row,))).tobytes() == expected.tobytes()


def test_an_empty_pass_costs_nothing() -> None:
    for cost in COSTS.values():
        assert cost.seconds(Work(0, 0)) == 0


def test_ideal_decode_time_by_hand() -> None:
    """Llama-2-7B on an A100, batch 1: every kernel but the on-chip ones is bound by its bytes at 2,039 GB/s."""
    cost = PassCost(model("llama-2-7b"), A100)
    work = Work.decode(1, 1024)
    counts = cost.counts(work)
    assert counts["hbm_bytes"] == 13_214_154_752 + 65 * 4096 * 2 + 4096 * 2 + 1024 * 524_288
    assert cost.seconds(work) == pytest.approx(counts["hbm_bytes"] / 2039e9, rel=1e-3)
    assert cost.seconds(work) >= counts["hbm_bytes"] / 2039e9


def test_products_turn_compute_bound_at_the_ridge_point() -> None:
    """bf16 products of n rows have n FLOP a weight byte: the lines cross at peak over bandwidth, 295 on an H100."""
    ridge = H100.ridge_point("bf16")
    assert ridge == pytest.approx(295.2, abs=0.1)
    cost = PassCost(model("llama-3.1-8b"), H100)
    for rows, above in ((295, False), (296, True)):
        bound = next(b for kernel, b in cost.bounds(Work.decode(rows, 2)) if kernel[0].name == "attn.out")
        assert (bound.compute_s > bound.memory_s) == above
        assert bound.causes()["compute" if above else "weights"] == bound.seconds


def test_int8_weights_halve_the_ridge_and_w8a8_restores_it() -> None:
    """Weight-only int8 multiplies in bf16 (scaling-book: 120, not 240 tokens on a v5e); W8A8 at twice the rate."""
    tpu = device("tpu-v5e")
    for precision, tokens in ((Precision("int8"), 120.3), (Precision("int8", compute="int8"), 240.5)):
        cost = PassCost(model("llama-3.1-8b"), tpu, precision)
        rows = np.arange(1, 500)
        bound = next(b for kernel, b in cost.bounds(Work.decode(rows, 2)) if kernel[0].name == "mlp.down")
        assert rows[np.argmax(bound.compute_s >= bound.weights_s)] == np.ceil(tokens)


@pytest.mark.parametrize("p", [inf, 1.0, 1.16, 1.9, 4.0])
def test_combine_is_the_p_norm_and_does_not_underflow(p: float) -> None:
    a, b = np.array([3.0, 0.0, 5e-200, 2.0]), np.array([4.0, 0.0, 1e-200, 0.0])
    expected = np.maximum(a, b) if p == inf else np.array([(3**p + 4**p) ** (1 / p), 0.0, 0.0, 2.0])
    got = combine(a, b, p)
    np.testing.assert_allclose(got[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-14)
    assert 5e-200 <= got[2] <= 6.0000001e-200


def test_fitted_terms_enter_as_device_model_says() -> None:
    """t0 + ((F/(ef P))^p + (B/(eb BW))^p)^(1/p) + a m k / BW + c k / 4096, here for one product by hand."""
    where = calibrated(H100)
    cost = PassCost(model("llama-3.1-8b"), where)
    bound = next(b for kernel, b in cost.bounds(Work.decode(64, 2)) if kernel[0].name == "attn.out")
    m, k, n, p = 64, 4096, 4096, 1.9
    compute, memory = 2 * m * k * n / (0.78 * 989e12), k * n * 2 / (0.85 * 3350e9)
    by_hand = 3.3e-6 + (compute**p + memory**p) ** (1 / p) + 3.3 * m * k / 3350e9 + 0.6e-6 * k / 4096
    assert float(bound.seconds) == pytest.approx(32 * by_hand, rel=1e-12)


def test_joules_by_hand() -> None:
    """FLOPs by format and bytes by level times the profile's coefficients, on all devices of the layout."""
    for tensor in (1, 2):
        cost = PassCost(model("llama-3.1-8b"), H100, layout=Layout(tensor=tensor))
        work, energy = Work.decode(8, 512), H100.energy
        assert energy is not None
        counts = cost.counts(work)
        by_hand = counts["flops"] * energy.flop_J["bf16"] + counts["vector_flops"] * energy.flop_J["fp32"]
        by_hand += counts["hbm_bytes"] * energy.memory_byte_J + counts["onchip_bytes"] * energy.onchip_byte_J
        by_hand += counts["link_bytes"] * energy.link_byte_J
        assert cost.joules(work) == pytest.approx(tensor * by_hand, rel=1e-12)
        assert (counts["link_bytes"] > 0) == (tensor > 1)


def test_joules_of_a_device_without_a_power_figure_are_unknown() -> None:
    assert np.isnan(PassCost(DENSE, device("tpu-v5e")).joules(Work.decode(4, 100)))


def test_a_pass_of_absurd_size_is_refused() -> None:
    cost = COSTS["dense", "ideal"]
    with pytest.raises(ValueError, match="allowed: 0 to"):
        cost.seconds(Work(1 << 40, 0))


def test_longer_contexts_and_larger_batches_never_cost_less() -> None:
    for cost in COSTS.values():
        if not cost.shape.encoder:
            contexts = cost.seconds(Work.decode(16, np.arange(2, 3000, 7), windows=cost.shape.windows))
            batches = cost.seconds(Work.decode(np.arange(1, 600), 500, windows=cost.shape.windows))
            assert (np.diff(contexts) >= 0).all() and (np.diff(batches) >= 0).all()


@dataclass(frozen=True)
class HalfTheKv:
    """A variant for the test: keys and values take half the bytes."""

    name: ClassVar[str] = "half the kv"

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        return [replace(op, kv_read_bytes=op.kv_read_bytes / 2) for op in ops]


@dataclass(frozen=True)
class Crooked:
    """A variant whose attention is not linear in the pairs."""

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        return [replace(op, flops=np.sqrt(op.flops)) if op.name == "attn.scores" else op for op in ops]


@dataclass(frozen=True)
class Shallow:
    """A variant that leaves out the last layers, and keeps an adapter in memory."""

    layers: int

    def reshape(self, shape: ModelShape) -> ModelShape:
        return replace(shape, layers=shape.layers[: self.layers])

    def resident(self, weight_bytes: dict[str, float]) -> dict[str, float]:
        return {**weight_bytes, "adapter": 1000.0}

    def reformat(self, precision: Precision) -> Precision:
        return replace(precision, weights="int8")


def test_variants_rewrite_ops_shape_precision_and_memory() -> None:
    work = Work.decode(8, 1000)
    plain, half = PassCost(DENSE, H100), PassCost(DENSE, H100, variants=[HalfTheKv()])
    written = 8 * 192 * 2 * 1  # 3 layers of 2 heads of 32 numbers: the append is not read
    assert half.counts(work)["kv_bytes"] - written == (plain.counts(work)["kv_bytes"] - written) / 2
    assert half.seconds(work) < plain.seconds(work) and not half._is_loose
    shallow = PassCost(DENSE, H100, variants=[Shallow(1)])
    assert len(shallow.shape.layers) == 1 and shallow.precision.weights == "int8"
    assert shallow.bytes_weights == 1000 + sum(shallow.weight_bytes_by_op.values()) - 1000
    assert shallow.weight_bytes_by_op["mlp.down"] == 160 * 64


def test_a_variant_that_bends_attention_is_costed_from_its_ops() -> None:
    cost = PassCost(DENSE, H100, variants=[Crooked()])
    work = Work.decode(8, np.arange(100, 5000, 100))
    assert cost._is_loose
    np.testing.assert_allclose(cost.seconds(work), sum(b.seconds for _, b in cost.bounds(work)), rtol=1e-12)


@pytest.mark.parametrize("shape", [DENSE, WINDOWED, MOE, LATENT, CROSS], ids=lambda s: s.name)
def test_a_look_up_is_fast(shape: ModelShape) -> None:
    """A call stays off the slow path; 500 us leaves room for a loaded machine (7 us measured for a dense model)."""
    cost = PassCost(shape, H100)
    reads = np.arange(100, dtype=np.int64) * 64
    kinds = len(shape.windows)
    work = Work(64, 64, (reads + 64,) * kinds, (reads,) * kinds)
    cost.seconds(work)
    assert min(timeit.repeat(lambda: cost.seconds(work), number=20, repeat=10)) / 20 < 500e-6
