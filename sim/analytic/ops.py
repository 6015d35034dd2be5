"""A pass as named ops: FLOPs and bytes of everything that a transformer does, by the names of docs/conventions.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np

from sim.analytic.collectives import Phase, chance_met, phases, sent_bytes
from sim.analytic.fused import Attended
from sim.analytic.hardware import GB, MICRO
from sim.analytic.layout import Layout, Stage
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work

__all__ = ["Driver", "Op", "ops"]

Count = Any  # an int, or an array of shape [rounds]
Driver = str | tuple[str, int]


@dataclass(frozen=True, slots=True)
class Op:
    """One named piece of a pass, counts of ONE layer, to be taken ``layers`` times.

    ``kernel``: ops with the same one run fused. ``unit``: "tensor", "vector", "link" or "none" (moves bytes only).
    ``terms``: which fitted terms of the device apply. ``driver``: the columns of Work that the counts follow:
    "tokens", "everywhere", "rows", "decode_tokens", "encoder", "encoder_pairs", "cross", "cross_kv", or with the index
    of the
    attention kind ("decode", k), ("prefill", k) and ("decompress", k).
    ``flops``, ``inputs`` (numbers that enter a product) and bytes are ints or arrays of shape [rounds]; ``inner`` is
    the length of a product's dot products; ``link_Bps`` the rate of the wire, None for the link between devices, and
    ``link_latency_s`` what such a wire waits. ``group``: of a collective, how many devices take part.
    ``stored``: format of the weights, or of the cache that attention reads; ``attended``: what attention attends to.
    ``matrices``: experts whose matrices a grouped product reads; None: a product of one.
    """

    name: str
    kernel: str
    unit: Literal["tensor", "vector", "link", "none"]
    format: str
    terms: str
    driver: Driver
    layers: int = 1
    flops: Count = 0
    weight_bytes: Count = 0
    kv_read_bytes: Count = 0
    kv_write_bytes: Count = 0
    activation_bytes: Count = 0
    link_bytes: Count = 0
    inputs: Count = 0
    inner: int = 0
    link_Bps: float | None = None
    link_latency_s: float = 0.0
    group: int = 1
    stored: str = ""
    attended: Attended | None = None
    matrices: Count | None = None


def ops(
    shape: ModelShape,
    precision: Precision,
    work: Work,
    *,
    attention: Literal["flash", "standard"] = "flash",
    tile_bytes: float = inf,
    layout: Layout | None = None,
    stage: Stage | None = None,
) -> list[Op]:
    """All ops of one pass of ``shape`` on one device, equal layers folded into one set, in order of execution.

    ``shape`` is what the device computes (already cut by ``placement.shard`` and ``stage``; the collectives of
    ``layout`` are added here). ``tile_bytes``: on-chip memory of a flash tile. Raises ValueError for an unknown
    ``attention``.
    """
    if attention not in ("flash", "standard"):
        raise ValueError(f"attention: {attention!r} is unknown; allowed: flash, standard")
    where = layout or Layout(), stage or Stage()
    return list(_Pass(shape, precision, work, attention == "flash", tile_bytes, *where).run())


@dataclass(frozen=True)
class _Stack:
    """One group of equal layers: ``tag`` prefixes kernels, ``prefix`` names."""

    tag: str
    prefix: str
    rows: Count
    driver: str
    layers: int


class _Pass:
    """Writes the ops of one pass; holds what all of them need."""

    def __init__(
        self, shape: ModelShape, precision: Precision, work: Work, flash: bool, tile_bytes: float, layout: Layout,
        stage: Stage,
    ) -> None:  # fmt: skip
        self.shape, self.precision, self.work = shape, precision, work
        self.flash, self.tile_bytes, self.tensor = flash, tile_bytes, layout.tensor
        self.layout, self.stage = layout, stage
        self.act_bytes = FORMATS[precision.activations].stored_bytes
        self.kv_bytes = FORMATS[precision.kv].stored_bytes

    def run(self) -> Iterator[Op]:
        shape, work = self.shape, self.work
        if shape.encoder:
            yield self.embed(_Stack("enc", "encoder.", work.encoder_tokens, "encoder", 1))
            yield from self.stack(shape.encoder, "enc", "encoder.", work.encoder_tokens, "encoder")
            if shape.final_norm:
                yield self.norm("norm.final", _Stack("enc", "encoder.", work.encoder_tokens, "encoder", 1))
        if shape.layers:
            if self.stage.first:
                yield self.embed(_Stack("dec", "", work.tokens, "tokens", 1))
            yield from self.stack(shape.layers, "dec", "", work.tokens, "tokens")
        if not self.stage.last:
            yield self.send(_Stack("dec", "", work.tokens, "tokens", 1))
        yield from self.head(_Stack("head", "", work.logit_rows, "rows", 1))

    def stack(self, layers: tuple[Layer, ...], tag: str, prefix: str, rows: Count, driver: str) -> Iterator[Op]:
        for i, (layer, count) in enumerate(Counter(layers).items()):
            yield from self.layer(layer, _Stack(f"{tag}{i}", prefix, rows, driver, count))

    def layer(self, layer: Layer, at: _Stack) -> Iterator[Op]:
        post = layer.norms >= 4
        yield from self.shared_norm("norm.attn", at)
        yield from self.attention(layer.attention, at)
        yield from self.reduce(at)
        if post:
            yield self.norm("norm.post_attn", self.share(at))
        if layer.cross is not None:
            yield from self.shared_norm("norm.cross", at)
            yield from self.cross(layer.cross, at)
            yield from self.reduce(at)
        if layer.norms >= 2:
            yield from self.shared_norm("norm.mlp", at)
        yield from self.moe(layer.ffn, at) if layer.ffn.experts else self.mlp(layer.ffn, at)
        yield from self.reduce(at)
        if post:
            yield self.norm("norm.post_mlp", self.share(at))

    # -- around the layers

    def embed(self, at: _Stack) -> Op:
        numbers = at.rows * self.shape.d_model
        fmt = self.precision.head_format
        return replace(
            self.move("embed", at, numbers),
            format=fmt,
            weight_bytes=numbers * FORMATS[fmt].stored_bytes / self.tensor,
        )

    def head(self, at: _Stack) -> Iterator[Op]:
        shape, rows = self.shape, at.rows
        if shape.layers and shape.final_norm:
            yield self.norm("norm.final", at)
        if not shape.head:
            return
        yield self.product("logits", at, rows, shape.d_model, shape.vocab, shape.d_model * shape.vocab)
        sampled = self.vector("sample", at, rows, 5 * shape.vocab, 0)
        yield replace(sampled, activation_bytes=rows * shape.vocab * FORMATS["fp32"].stored_bytes)

    # -- one block each

    def attention(self, block: Attention, at: _Stack) -> Iterator[Op]:
        if block.latent is not None:
            yield from self.latent(block, at)
            return
        d, rows, names = self.shape.d_model, at.rows, block.parameters(self.shape.d_model)
        width = block.heads * block.head_dim + block.kv_heads * (block.head_dim + block.value_dim)
        yield self.product("attn.qkv", at, rows, d, width, names["attn.qkv"] + 2 * block.qk_norm)
        yield from self.cache_write(block, at, (block.heads + block.kv_heads) * block.head_dim)
        yield from self.halves(block, at)
        yield self.product("attn.out", at, rows, block.heads * block.value_dim, d, names["attn.out"])

    def cache_write(self, block: Attention, at: _Stack, rotated: int) -> Iterator[Op]:
        """RoPE and the write of the new keys and values, one kernel; an encoder keeps no cache."""
        if block.rope:
            yield replace(self.vector("attn.rope", at, at.rows, 3 * rotated, 2 * rotated), kernel=f"{at.tag}/attn.rope")
        if block.sinks:
            sinks = self.move("attn.scores", at, 0)
            weights = self.weights("attn.scores", block.heads, at.rows)
            yield replace(sinks, kernel=f"{at.tag}/attn.rope", weight_bytes=weights)
        if not at.prefix:
            written = at.rows * block.cached_width * self.kv_bytes
            append = self.move("kv.append", at, 0)
            yield replace(append, kernel=f"{at.tag}/attn.rope", kv_write_bytes=written)

    def halves(self, block: Attention, at: _Stack) -> Iterator[Op]:
        """Attention proper, once for each half of the pass that is present."""
        work = self.work
        if at.prefix:
            yield from self.attend(block, at, "encoder_pairs", at.rows, work.encoder_pairs, 0, True)
            return
        kind = self.shape.windows.index(block.window)
        if work.prefill_pairs is not None and work.prefill_reads is not None:
            pairs, reads = work.prefill_pairs[kind], work.prefill_reads[kind]
            yield from self.attend(block, at, ("prefill", kind), work.half_tokens("prefill"), pairs, reads, True)
        if work.decode_pairs is not None and work.decode_reads is not None:
            pairs, reads = work.decode_pairs[kind], work.decode_reads[kind]
            yield from self.attend(block, at, ("decode", kind), work.half_tokens("decode"), pairs, reads, False)

    def attend(
        self, block: Attention, at: _Stack, driver: Driver, rows: Count, pairs: Count, reads: Count, tiled: bool
    ) -> Iterator[Op]:
        """Scores, softmax and values; ``tiled``: many queries a sequence, so K and V may be read once a tile."""
        cross = "cross" if driver == "cross" else "attn"
        half = driver if isinstance(driver, str) else driver[0]
        terms = "prefill_attention" if tiled else "decode_attention"
        read = self.tile_reads(block, pairs, reads) if tiled and self.flash else reads
        fused = f"{at.tag}/{cross}.{half}" if self.flash else ""
        base = Op("", fused, "tensor", self.precision.attention_format, terms, driver, at.layers)
        q_width, o_width = block.heads * block.head_dim, block.heads * block.value_dim
        k_width, v_width = block.kv_heads * block.head_dim, block.kv_heads * block.value_dim
        if block.latent is not None and half == "decode":
            rank, rope = block.latent.kv_rank, block.latent.rope_dim
            q_width, o_width, k_width, v_width = block.heads * (rank + rope), block.heads * rank, rank + rope, 0
        per_number = self.act_bytes if block.latent is not None and half != "decode" else self.kv_bytes
        spilled = 0 if self.flash else 4 * block.heads * pairs * self.act_bytes
        if self.flash:
            # MLA's kernels are its own and were not measured: those of grouped heads stand in.
            kv_heads = block.kv_heads if block.latent is None else max(1, block.heads // 8)
            geometry = block.heads, kv_heads, block.head_dim if block.latent is None else 128, block.window is not None
            attended = Attended(pairs, reads, rows, *geometry, tiled, (k_width + v_width) * per_number)
            base = replace(base, stored=self.precision.kv, attended=attended)
        for op in (
            replace(base, name=f"{cross}.scores", flops=2 * q_width * pairs, kv_read_bytes=read * k_width * per_number,
                    activation_bytes=rows * q_width * self.act_bytes),
            replace(base, name=f"{cross}.softmax", unit="vector", format="fp32", flops=5 * block.heads * pairs,
                    activation_bytes=spilled),
            replace(base, name=f"{cross}.values", flops=2 * o_width * pairs, kv_read_bytes=read * v_width * per_number,
                    activation_bytes=rows * o_width * self.act_bytes),
        ):  # fmt: skip
            name = at.prefix + op.name
            yield replace(op, name=name, kernel=fused or f"{at.tag}/{name}.{half}")

    def tile_reads(self, block: Attention, pairs: Count, reads: Count) -> Count:
        """Tokens whose K and V come from memory: once, or once a tile (FlashAttention, theorem 2)."""
        rows = self.tile_bytes / (4 * block.head_dim * self.act_bytes)
        return np.maximum(reads, pairs / max(1.0, np.floor(rows)))

    def latent(self, block: Attention, at: _Stack) -> Iterator[Op]:
        """MLA: queries and latent for all tokens; decompressed for the prefill half, absorbed for the decode half."""
        mla, d, rows, names = block.latent, self.shape.d_model, at.rows, block.parameters(self.shape.d_model)
        assert mla is not None
        q = block.heads * block.head_dim
        if mla.q_rank is None:
            yield self.product("attn.q", at, rows, d, q, names["attn.q"])
        else:
            yield self.product("attn.q_down", at, rows, d, mla.q_rank, names["attn.q_down"])
            yield self.product("attn.q_up", at, rows, mla.q_rank, q, names["attn.q_up"])
        yield self.product("attn.kv_down", at, rows, d, mla.kv_rank + mla.rope_dim, names["attn.kv_down"])
        yield from self.cache_write(block, at, (block.heads + 1) * mla.rope_dim)
        yield from self.decompress(block, at)
        yield from self.absorb(block, at)
        yield from self.halves(block, at)
        yield self.product("attn.out", at, rows, block.heads * block.value_dim, d, names["attn.out"])

    def decompress(self, block: Attention, at: _Stack) -> Iterator[Op]:
        """Keys and values of new and cached tokens from their latents: what a prefill half attends to."""
        mla, work = block.latent, self.work
        if mla is None or work.prefill_reads is None:
            return
        kind = self.shape.windows.index(block.window)
        reads = work.prefill_reads[kind]
        rows, wide = work.half_tokens("prefill") + reads, block.heads * (mla.nope_dim + block.value_dim)
        weights = block.parameters(self.shape.d_model)["attn.kv_up"]
        gather = replace(self.move("attn.kv_up", at, 0), kernel=f"{at.tag}/attn.gather", driver=("prefill", kind))
        yield replace(gather, kv_read_bytes=reads * block.cached_width * self.kv_bytes)
        up = self.product("attn.kv_up", at, rows, mla.kv_rank, wide, weights)
        yield replace(up, driver=("decompress", kind))

    def absorb(self, block: Attention, at: _Stack) -> Iterator[Op]:
        """The two products that stand in for decompression at decode (arXiv 2405.04434, section 2.1.2)."""
        mla = block.latent
        if mla is None or self.work.decode_pairs is None:
            return
        rows, h = self.work.half_tokens("decode"), block.heads
        half = replace(at, driver="decode_tokens")
        for name, k, n in (
            ("attn.q_absorb", mla.nope_dim, mla.kv_rank),
            ("attn.v_absorb", mla.kv_rank, block.value_dim),
        ):
            yield self.product(name, half, rows * h, k, n, h * k * n)

    def cross(self, block: Attention, at: _Stack) -> Iterator[Op]:
        """Attention to the encoder's tokens; their keys and values are made once, at prefill."""
        d, rows, work = self.shape.d_model, at.rows, self.work
        q, kv = block.heads * block.head_dim, block.kv_heads * (block.head_dim + block.value_dim)
        bias = 1 if block.qkv_bias else 0
        yield self.product("cross.q", at, rows, d, q, (d + bias) * q + 2 * block.qk_norm)
        made = self.product("cross.kv", at, work.cross_kv_tokens, d, kv, (d + bias) * kv)
        yield replace(made, driver="cross_kv", kv_write_bytes=work.cross_kv_tokens * kv * self.kv_bytes)
        yield from self.attend(block, at, "cross", rows, work.cross_pairs, work.cross_reads, False)
        out = block.parameters(d)["attn.out"]
        yield self.product("cross.out", at, rows, block.heads * block.value_dim, d, out)

    def mlp(self, block: Ffn, at: _Stack) -> Iterator[Op]:
        weights = block.parameters(self.shape.d_model)
        yield from self.feed_forward("mlp.", block, at, at.rows, block.width, weights["mlp.up"], weights["mlp.down"])

    def moe(self, block: Ffn, at: _Stack) -> Iterator[Op]:
        d, rows = self.shape.d_model, at.rows
        weights = block.parameters(d)
        yield self.product("moe.router", at, rows, d, block.experts, weights["moe.router"])
        if self.layout.data > 1:
            yield self.exchange("moe.dispatch", block, at)
            yield from self.experts(block, replace(at, rows=self.work.everywhere, driver="everywhere"))
            yield self.exchange("moe.combine", block, at)
        else:
            yield from self.experts(block, at)
        if block.shared_width:
            shared = (weights["moe.shared_up"], weights["moe.shared_down"])
            yield from self.feed_forward("moe.shared_", block, at, rows, block.shared_width, *shared)

    def experts(self, block: Ffn, at: _Stack) -> Iterator[Op]:
        """This device's part of what all tokens ask of the experts, which are taken to be chosen alike."""
        one, groups = block.expert_parameters(self.shape.d_model), block.expert_groups
        visited = visited_experts(block.experts, block.experts_per_token, at.rows) / groups
        rows = at.rows * block.experts_per_token
        for op, numbers in zip(
            self.feed_forward("moe.", block, at, rows if groups == 1 else rows / groups, block.width, 0, 0),
            (one["mlp.up"], 0, one["mlp.down"]),
            strict=True,
        ):
            fmt = self.precision.weight_format(op.name, self.shape.expert_format)
            read = visited * (numbers * FORMATS[fmt].stored_bytes)
            yield replace(op, weight_bytes=read, matrices=visited if op.unit == "tensor" else None)

    def feed_forward(
        self, kind: str, block: Ffn, at: _Stack, rows: Count, width: int, up: int, down: int
    ) -> Iterator[Op]:
        d, wide = self.shape.d_model, width * block.up_factor
        yield self.product(f"{kind}up", at, rows, d, wide, up)
        yield self.vector(f"{kind}act", at, rows, (5 if block.gated else 4) * width, wide + width)
        yield self.product(f"{kind}down", at, rows, width, d, down)

    def norm(self, name: str, at: _Stack) -> Op:
        d = self.shape.d_model
        op = self.vector(name, at, at.rows, 4 * d, 2 * d)
        return replace(op, weight_bytes=self.weights(name, self.shape.norm_vectors * d, at.rows))

    # -- between devices

    def reduce(self, at: _Stack) -> Iterator[Op]:
        """All-reduce of the block's output over the devices that share the layer; of its tokens, if they share those
        as well: a reduce-scatter, and an all-gather before the next block.
        """
        if self.tensor > 1:
            yield from self.together("reduce_scatter" if self.layout.sequence_parallel else "all_reduce", at)

    def together(self, kind: str, at: _Stack) -> Iterator[Op]:
        """A collective of the residual stream, in as many phases as there are wires."""
        size, local = self.shape.d_model * self.act_bytes, self.layout.node_share
        whole = Phase(kind, self.tensor, size, self.layout.leaves_node(self.tensor))
        for one in (whole,) if local == self.tensor else phases(kind, self.tensor, local, size):
            each = sent_bytes(one.kind, one.devices, one.size_bytes)
            op = self.wire(one.kind, at, at.rows * each, one.devices, one.abroad)
            yield replace(op, kernel=f"{op.kernel}.network") if one is not whole and one.abroad else op

    def share(self, at: _Stack) -> _Stack:
        """The tokens whose residual stream is this device's: all, or those of one of ``tensor`` devices."""
        return replace(at, rows=at.rows / self.tensor) if self.layout.sequence_parallel else at

    def shared_norm(self, name: str, at: _Stack) -> Iterator[Op]:
        """A norm in front of a block, which wants all tokens."""
        yield self.norm(name, self.share(at))
        if self.layout.sequence_parallel:
            yield from self.together("all_gather", at)

    def exchange(self, name: str, block: Ffn, at: _Stack) -> Op:
        """All-to-all between data ranks: each token to the peers whose experts it chose, or their results back.

        Each of the ranks' ``tensor`` lanes sends to its peer in the other ranks (docs/conventions.md).
        """
        data = self.layout.data
        met = chance_met(block.experts, block.experts_per_token, block.expert_groups)
        each = (data - 1) * met * (self.shape.d_model * self.act_bytes)
        return self.wire(name, at, at.rows * each, data, self.layout.leaves_node(self.layout.stage_devices))

    def send(self, at: _Stack) -> Op:
        """The residual stream on its way to the next stage, from each device to its peer."""
        numbers = at.rows * self.shape.d_model
        return self.wire("send", at, numbers * self.act_bytes, 2, self.layout.leaves_node_after(self.stage.index))

    def wire(self, name: str, at: _Stack, sent: Count, group: int, abroad: bool) -> Op:
        """A collective of ``group`` devices, each of which sends so many bytes; ``abroad``: between nodes."""
        op = Op(at.prefix + name, f"{at.tag}/{name}", "link", "", "link", at.driver, at.layers, link_bytes=sent)
        if not abroad:
            return replace(op, group=group)
        rate = (self.layout.network_GBps or 0.0) * GB
        return replace(op, group=group, link_Bps=rate, link_latency_s=self.layout.network_latency_us * MICRO)

    # -- the three shapes of op

    def product(self, name: str, at: _Stack, rows: Count, k: int, n: int, weights: int) -> Op:
        """[rows, k] @ [k, n] with ``weights`` numbers read once if there are any rows."""
        stored = self.precision.weight_format(name, self.shape.expert_format)
        return Op(
            at.prefix + name,
            f"{at.tag}/{name}",
            "tensor",
            self.precision.product_format(stored),
            "matmul",
            at.driver,
            at.layers,
            flops=2 * k * n * rows,
            weight_bytes=self.weights(name, weights, rows),
            activation_bytes=rows * (k + n) * self.act_bytes,
            inputs=rows * k,
            inner=k,
            stored=stored,
        )

    def vector(self, name: str, at: _Stack, rows: Count, flops: int, numbers: int) -> Op:
        """``flops`` on the vector units and ``numbers`` read or written, for each row."""
        op = self.move(name, at, rows * numbers)
        return replace(op, unit="vector", format="fp32", flops=rows * flops)

    def move(self, name: str, at: _Stack, numbers: Count) -> Op:
        """``numbers`` activations read or written and nothing computed."""
        op = Op(at.prefix + name, f"{at.tag}/{name}", "none", "fp32", "elementwise", at.driver, at.layers)
        return replace(op, activation_bytes=numbers * self.act_bytes)

    def weights(self, name: str, numbers: int, rows: Count) -> Count:
        stored = FORMATS[self.precision.weight_format(name, self.shape.expert_format)].stored_bytes
        return numbers * stored * (np.asarray(rows) > 0)


def visited_experts(experts: int, per_token: int, tokens: Count) -> Count:
    """Expected distinct experts of ``tokens`` tokens that choose ``per_token`` each, uniformly: E(1-(1-k/E)^n)."""
    return experts * (1.0 - np.power(1.0 - per_token / experts, np.asarray(tokens, dtype=np.float64)))
