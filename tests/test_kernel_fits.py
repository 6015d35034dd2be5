"""Fits of kernel timings: planted terms come back, formulas are the simulator's, held-out errors stay within limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import hardware_profiles
from sim.analytic.attention import AttentionCost
from sim.analytic.cost import PassCost
from sim.analytic.fused import Attended, layout_keys
from sim.analytic.hardware import Device, Terms
from sim.analytic.kernel_book import Collective, KernelBook, scheme
from sim.analytic.ops import Op
from sim.analytic.placement import Placement
from sim.analytic.precision import Precision
from sim.analytic.roofline import on_device
from sim.analytic.work import Work
from sim.build import load_shape
from sim.calibration.fit_collectives import fit_collectives
from sim.calibration.fit_formulas import FORMULAS, cold, seconds
from sim.calibration.fit_kernels import entry_terms, fit_table, parameters
from sim.calibration.kernel_profile import kernel_profile, save
from sim.calibration.kernel_rows import columns, is_held
from sim.calibration.kernel_tables import KernelTable
from sim.silicon import kernels as silicon

H100 = Device.from_profile(hardware_profiles.load("h100-sxm"))
PLACE = Placement(False, 5e7, 1e6)


class One:
    """A book in which every kernel has the same terms."""

    def __init__(self, terms: Terms) -> None:
        self.elementwise = self.terms = replace(terms, streams=True)

    def product(self, stored: str, multiplied: str) -> Terms:
        return self.terms

    def attention(self, group: str, computed: str, kv: str, layout: tuple[int, int, int, bool]) -> Terms:
        return self.terms

    def collective(self, kind: str, devices: int) -> None:
        return None


def products(terms: Terms, noise: float, seed: int = 1) -> KernelTable:
    """Timings of products on an H100 that obeys ``terms``, off by a lognormal factor."""
    sizes = [(m, n, k) for m in (1, 8, 33, 64, 129, 256, 1024, 4096) for n in (512, 1536, 4096, 14336, 32768)
             for k in (512, 2048, 5120, 16384, 65536)]  # fmt: skip
    frame = pd.DataFrame(sizes, columns=["m", "n", "k"]).assign(
        gpu="h100_sxm", version="", dtype="bf16", kv_dtype="bf16", kernel="", library="vllm"
    )
    luck = np.random.Generator(np.random.Philox(seed))
    clean = seconds("gemm", terms, columns("gemm", frame, H100))
    return KernelTable("gemm", frame.assign(seconds=clean * np.exp(noise * luck.standard_normal(len(frame)))), "t")


PLANTED = Terms(0.71, 0.86, 4.2e-6, 2.4, 0.0, 2e-6, depth_limit=9000.0, tile_rows=128, output=0.5)


def test_planted_terms_come_back_within_their_intervals() -> None:
    """From timings with 3 % noise: efficiencies within 3 %, the floor within 10 %, and the intervals hold them."""
    entry = fit_table(products(PLANTED, 0.03), np.arange(200), H100, everything=True)["any"]
    assert entry["compute"] == pytest.approx(0.71, rel=0.03) and entry["memory"] == pytest.approx(0.86, rel=0.03)
    assert entry["floor_us"] == pytest.approx(4.2, rel=0.1) and entry["tile_rows"] == 128
    for key, planted in (("compute", 0.71), ("memory", 0.86), ("floor_us", 4.2)):
        low, high = entry["interval"][key]
        assert low * 0.98 <= planted <= high * 1.02, key


def test_intervals_cover_planted_terms() -> None:
    """Over 20 noisy tables, 90 % intervals of the memory share contain it 14 times at least."""
    hits = 0
    for seed in range(20):
        entry = fit_table(products(PLANTED, 0.05, seed), np.arange(200), H100, everything=True)["any"]
        low, high = entry["interval"]["memory"]
        hits += low <= 0.86 <= high
    assert hits >= 14


def test_a_tenth_of_wild_rows_bends_little() -> None:
    """Every tenth time ten times too long: efficiencies move by less than 5 %."""
    table = products(PLANTED, 0.02)
    wild = table.frame["seconds"].to_numpy().copy()
    wild[::10] *= 10
    entry = fit_table(replace(table, frame=table.frame.assign(seconds=wild)), np.arange(200), H100, True)["any"]
    assert entry["compute"] == pytest.approx(0.71, rel=0.05) and entry["memory"] == pytest.approx(0.86, rel=0.05)


@pytest.mark.parametrize("m", [1, 64, 65, 700])
def test_the_fit_s_product_is_the_simulator_s(m: int) -> None:
    """A product op on the device takes what the fit's formula says, to the last digits."""
    terms = replace(PLANTED, quantise=3.0, wave_columns=2000.0)
    n, k = 4096, 14336
    op = Op("x", "x", "tensor", "bf16", "matmul", "tokens", flops=2 * m * n * k, weight_bytes=2 * n * k,
            activation_bytes=2 * m * (n + k), inputs=m * k, inner=k, stored="bf16")  # fmt: skip
    frame = pd.DataFrame({"m": [m], "n": [n], "k": [k], "dtype": ["bf16"]})
    fitted = float(seconds("gemm", terms, columns("gemm", frame, H100))[0])
    assert float(on_device([op], replace(H100, kernels=One(terms)), PLACE).seconds) == pytest.approx(fitted, rel=1e-12)


DECODE = Terms(0.1, 0.85, 8e-6, 2.5, tile_tokens=200.0, walk_s=2e-9, sequence_s=3e-9, split_s=4e-6, split_tokens=500.0)
PREFILL = Terms(0.6, 0.7, 9e-6, 1.0, tile_tokens=90.0, walk_s=3e-8)


@pytest.mark.parametrize(("batch", "length"), [(1, 16), (1, 8192), (64, 512), (7, 33)])
def test_the_fit_s_attention_is_the_simulator_s(batch: int, length: int) -> None:
    """Decode and prefill attention of equal sequences take what the fits' formulas say."""
    heads, kv, dim = 32, 8, 128
    about = {"batch": [batch], "heads": [heads], "kv_heads": [kv], "head_dim": [dim], "window": [0], "dtype": ["bf16"],
             "kv_dtype": ["bf16"]}  # fmt: skip
    decode, prefill = pd.DataFrame({**about, "kv_len": [length]}), pd.DataFrame({**about, "isl": [length]})
    pairs, tokens = batch * length, batch
    one = op(pairs, pairs, tokens, "decode_attention", pairs * kv * dim * 4, False)
    fitted = float(seconds("decode_attention", DECODE, columns("decode_attention", decode, H100))[0])
    assert float(on_device([one], replace(H100, kernels=One(DECODE)), PLACE).seconds) == pytest.approx(fitted)
    if batch == 1:  # of several prompts the simulator knows only the totals
        pairs = length * (length + 1) // 2
        one = op(pairs, 0, length, "prefill_attention", 0, True)
        fitted = float(seconds("prefill_attention", PREFILL, columns("prefill_attention", prefill, H100))[0])
        found = float(on_device([one], replace(H100, kernels=One(PREFILL)), PLACE).seconds)
        assert found == pytest.approx(fitted, rel=1e-9)


def op(pairs: int, reads: int, tokens: int, terms: str, kv_bytes: int, prefill: bool) -> Op:
    """Fused attention of 32 heads over 8 KV heads of 128 dimensions."""
    seen = Attended(pairs, reads, tokens, 32, 8, 128, False, prefill, 2.0 * 2 * 8 * 128)
    return Op("attn.scores", "a", "tensor", "bf16", terms, "tokens", flops=4 * 32 * 128 * pairs, kv_read_bytes=kv_bytes,
              activation_bytes=4 * tokens * 32 * 128, stored="bf16", attended=seen)  # fmt: skip


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-3-4b", "deepseek-v3"])
@pytest.mark.parametrize("device", ["h100-sxm", "l40s", "mi300x"])
def test_the_hot_path_is_the_sum_of_the_kernels(model: str, device: str) -> None:
    """With a library's terms a pass costs what its kernels cost one by one, and the same bits in an array."""
    shape = load_shape(model, "model")
    cost = PassCost(shape, with_library(device, "vllm"), Precision(kv="fp8"))
    batches = [1, 2, 16, 40]
    decode = [Work.decode(b, 700 + b, windows=shape.windows) for b in batches]
    many = Work.decode(np.array(batches), 700 + np.array(batches), windows=shape.windows)
    assert [float(cost.seconds(w)) for w in decode] == [float(s) for s in cost.seconds(many)]
    prompt = Work.prefill(1, 900, windows=shape.windows)
    for work in (*decode, Work.prefill(2, 300, windows=shape.windows), Work.mixed(decode[2], prompt)):
        one_by_one = sum(float(bound.seconds) for _, bound in cost.bounds(work))
        assert float(cost.seconds(work)) == pytest.approx(one_by_one, rel=1e-9)


def with_library(name: str, library: str) -> Device:
    """A shipped device under a kernel library."""
    device = Device.from_profile(hardware_profiles.load(name))
    return replace(device, kernels=KernelBook.from_profile(hardware_profiles.kernels(device.name, library)))


def test_neutral_terms_change_nothing() -> None:
    """A device without a library and one whose library is the textbook cost the same decode, activations aside."""
    terms, op_ = Terms(), op(100, 100, 1, "decode_attention", 4096, False)
    bare = on_device([op_], H100, PLACE)
    assert cold(replace(terms, hot_share=0.5, hot_cost=0.2)) == terms
    assert float(on_device([op_], replace(H100, kernels=None), PLACE).seconds) == float(bare.seconds)


def test_layouts_and_formats_have_names() -> None:
    """Head layouts fall back from the closest name to any; formats are named as kernel tables name them."""
    assert layout_keys(32, 8, 128, False) == ("gqa-128-full", "gqa-128", "128-full", "gqa", "128", "any")
    assert layout_keys(64, 1, 64, True)[0] == "wide-64-window" and layout_keys(8, 8, 256, False)[0] == "mha-256-full"
    known = {("bf16", "bf16"): "bf16", ("int4_g128", "bf16"): "int4_wo", ("int8", "bf16"): "int8_wo",
             ("mxfp8", "fp8"): "fp8_block", ("nvfp4", "fp4"): "nvfp4", ("int8", "int8"): "int8"}  # fmt: skip
    assert {pair: scheme(*pair) for pair in known} == known


def test_collectives_switch_algorithms() -> None:
    """The faster of two: 5 us + a fifth of the link, or 20 us + four fifths; planted ones come back within 10 %."""
    planted = Collective(5e-6, 0.2, 20e-6, 0.8)
    assert planted.seconds(0, 450e9) == 0
    sizes = [2**i for i in range(7, 29)]
    frame = pd.DataFrame({"op": "all_reduce", "num_gpus": 4, "message_size": sizes, "dtype": "bf16", "library": "x"})
    moved = np.array(sizes) * 2 * 1.5
    frame["seconds"] = planted.seconds(moved, 450e9)
    entry = fit_collectives(frame, H100)["all_reduce"][4]
    found = Collective.from_profile(entry).seconds(moved, 450e9)
    assert np.median(np.abs(found / frame["seconds"] - 1)) < 0.02 and entry["fit"]["p90_percent"] < 10


def test_every_parameter_has_a_meaning_and_a_bound() -> None:
    """Each term starts within its bounds, and its meaning is on the page."""
    for kind in FORMULAS:
        for p in parameters(kind, "fp8"):
            assert p.low < p.start < p.high and p.meaning


def test_a_profile_that_is_written_reads_back(tmp_path) -> None:
    """What calibrate writes, the loader accepts, and it predicts what the fit did."""
    table = products(PLANTED, 0.02)
    profile = kernel_profile([table], H100, "test", everything=True)
    save(profile, tmp_path / "k.yaml")
    read = hardware_profiles.kernel_files.read_kernels(tmp_path / "k.yaml")
    entry = read["libraries"]["vllm"]["matmul"]["bf16"]["any"]
    rows = columns("gemm", table.frame, H100)
    ours, theirs = seconds("gemm", entry_terms(entry), rows), seconds("gemm", PLANTED, rows)
    assert np.median(np.abs(ours / theirs - 1)) < 0.02


def test_held_halves_are_halves_of_shapes() -> None:
    """No (n, k) is on both sides, and each side has 40 to 60 % of the rows."""
    table = silicon.shipped("gemm")
    held = is_held("gemm", table.frame)
    sides = [set(zip(part["n"], part["k"], strict=True)) for part in (table.frame[held], table.frame[~held])]
    assert not sides[0] & sides[1] and 0.4 < held.mean() < 0.62


@pytest.mark.slow
def test_held_out_errors_stay_within_their_limits() -> None:
    """The report of validate --silicon: no quantity beyond its limit, and each at least three times the datasheet's."""
    for v in silicon.verdicts(silicon.judged()):
        assert v.passed, v
        assert v.textbook > 3 * v.median, v


def test_attention_cost_knows_its_library() -> None:
    """The cost of an attention kernel carries the library's terms where the device has one, and none where not."""
    shape = load_shape("llama-3.1-8b", "model")
    assert all(part.fused is None for _, part in PassCost(shape, H100)._decode)
    parts = [part for _, part in PassCost(shape, with_library("h100-sxm", "trtllm"))._decode]
    assert parts and all(isinstance(part, AttentionCost) and part.fused is not None for part in parts)
