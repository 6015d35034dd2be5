"""The cases of every variant: a model that really computes or stores otherwise, and the simulator's variant for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.rewrite import apply
from sim.analytic.work import Work
from sim.policies import Windows
from sim.reference.packed_matrix import Rule as Grid
from sim.reference.quantized import Bits, Quantized
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer
from sim.reference.variants import distilled, early_exit, kv_sharing, matformer, peft, pruning, token_routing
from sim.reference.variants.attention import Linear
from sim.reference.variants.contextual_sparsity import Keep, Sparse, fitted
from sim.reference.variants.hire import Hire, KeyReach, TwoPhase
from sim.reference.variants.kv_eviction import Evicting, Rule
from sim.reference.variants.moe import RoutedMoe, visited
from sim.reference.variants.offload import Offloaded
from sim.validation.counts import Tally, measured, ragged, simulated
from sim.validation.policies import model
from sim.validation.stand_in import dense, stand_in
from sim.variants import build

PASSES = ((26, 21), (4, 0), (1, 1), (1, 1))
SMALL = ModelShape("small", 16, 31, (Layer(Attention(4, 2, 6, 6), Ffn(10)),) * 2)
EXPERTS = ModelShape("experts", 16, 31, (Layer(Attention(4, 2, 6, 6), Ffn(10, experts=6, experts_per_token=2)),) * 2)


@dataclass(frozen=True)
class Changed:
    """Variant ``name`` really done by ``twin`` on a model of ``shape``; ``about`` says of what and with which options.

    ``alone``: one sequence, prompt before decodes (what is gathered for a batch is a union that chance makes);
    ``sampled``: logits a row that are sampled from, where it is not the vocabulary.
    """

    name: str
    about: str
    twin: Transformer
    shape: ModelShape
    options: dict[str, Any]
    alone: bool = False
    sampled: int = 0

    @property
    def variant(self) -> Any:
        """The simulator's."""
        return build([{self.name: self.options}])[0]


def of_variant(changed: Changed) -> tuple[Tally, Tally]:
    """Passes of a prompt and of single tokens: what the simulator counts, and what the meter read."""
    twin, variant = changed.twin, changed.variant
    twin.meter.reset()
    windows = tuple(apply([variant], "reshape", changed.shape).windows)
    works = list(_alone(changed, windows) if changed.alone else _chunked(twin, windows))
    visits = None
    if isinstance(twin, RoutedMoe) and twin.capacity is None:
        visits = {i: sum(visited(found)) for i, found in twin.choices.items()}
    return simulated(changed.shape, works, visits=visits, variants=(variant,)), measured(twin.meter)


def _chunked(twin: Transformer, windows: Windows) -> Iterator[Work]:
    """A ragged batch: prompts, a chunk, single tokens."""
    cache = twin.new_cache(2)
    for news in PASSES:
        yield ragged(news, cache.lengths.tolist(), windows, sum(n > 0 for n in news))
        twin.meter.sample(twin.forward([np.arange(n) % twin.shape.vocab for n in news], cache))


def _alone(changed: Changed, windows: Windows) -> Iterator[Work]:
    """One text: three tokens at once, then one by one."""
    twin, cache = changed.twin, changed.twin.new_cache(1)
    for number in range(6):
        new, held = 1 if number else 3, int(cache.lengths[0])
        work = ragged([new], [held], windows, 1)
        yield work if number else _as_prefill(work)
        logits = twin.forward([np.arange(new) % twin.shape.vocab], cache)
        twin.meter.sample(np.zeros((1, changed.sampled)) if changed.sampled else logits)


def _as_prefill(work: Work) -> Work:
    return Work(work.tokens, work.logit_rows, None, None, work.decode_pairs, work.decode_reads, work.tokens)


def cases() -> Iterator[Changed]:
    """Every variant that has a twin, trained weights where the family has them."""
    primary, nested = model("primary"), model("matformer")
    yield from _numbers(primary)
    yield from _shapes(primary, nested)
    yield from _caches(primary)
    yield from _adapters()
    yield from _gathered(primary)


def _numbers(primary: Transformer) -> Iterator[Changed]:
    """Number formats of two kinds."""
    said: Sequence[tuple[str, Bits, dict[str, Any]]] = (
        ("int4 in groups of 128, zero points", Bits(Grid(4, 128, zero_point=True)), {"format": "awq"}),
        ("int8 by channel, weights and activations", Bits(Grid(8), 8), {"weights": 8, "activations": 8}),
    )
    for about, bits, options in said:
        yield Changed("quantization", f"primary, {about}", Quantized.of(primary, bits), primary.shape, options)


def _shapes(primary: Transformer, nested: Transformer) -> Iterator[Changed]:
    """Other shapes cut out of trained weights."""
    yield Changed("matformer", "its S", matformer.twin(nested, "S"), nested.shape, {"size": "S"})
    mix = ["S", "M", "L", "XL"][: len(nested.shape.layers)]
    mix += ["XL"] * (len(nested.shape.layers) - len(mix))
    yield Changed("matformer", "a mix", matformer.twin(nested, mix), nested.shape, {"size": mix})
    base, widths = stand_in(dense(16, 2, 4, 2, 32, 40)), [4]
    routers = {i: np.zeros((16, 1), np.float32) for i in range(2)}
    routed = token_routing.twin(base, widths, routers)
    yield Changed("token_routing", "untrained, all in S", routed, base.shape, {"shares": {"S": 1.0}})
    yield Changed("early_exit", "primary, 2 layers", early_exit.twin(primary, 2), primary.shape, {"layers": 2})
    yield Changed("distilled", "every other layer of primary", distilled.twin(primary, 2), primary.shape, {})
    kept = list(range(len(primary.shape.layers) - 1))
    narrow = pruning.twin(primary, layers=kept, ffn=[96] * len(kept), d_model=64)
    options = {"layers": kept, "ffn": [96] * len(kept), "d_model": 64}
    yield Changed("pruning", "primary, depth and width", narrow, primary.shape, options)
    yield Changed("kv_sharing", "primary, MQA", kv_sharing.twin(primary, 1), primary.shape, {"kind": "mqa"})


def _caches(primary: Transformer) -> Iterator[Changed]:
    """What is kept of keys and values, and where."""
    for method in ("streaming", "h2o", "window"):
        twin = Evicting.of(primary, Rule(16, method, 2))
        options = {"budget": 16, "method": method, "sinks": 2}
        yield Changed("kv_eviction", f"primary, {method}, 16 tokens", twin, primary.shape, options)
    far = Offloaded.of(primary, 0.5, 0.5)
    yield Changed("offload", "primary, half of weights and KV", far, primary.shape, {"weights": 0.5, "kv": 0.5})
    for features in (0, 8):
        kind = "performer" if features else "linear"
        options = {"kind": kind, **({"features": features} if features else {})}
        yield Changed("attention", f"untrained, {kind}", Linear.of(stand_in(SMALL), features), SMALL, options)


def _adapters() -> Iterator[Changed]:
    """Experts and adapters: random weights, real routing and real products."""
    options: dict[str, Any]
    for capacity in (None, 1.25):
        options = {} if capacity is None else {"capacity": capacity}
        about = "untrained, as routed" if capacity is None else "untrained, fixed buffers"
        yield Changed("moe", about, RoutedMoe.of(stand_in(EXPERTS), capacity), EXPERTS, options)
    lora = peft.with_lora(stand_in(SMALL), 3, ["q", "v"], 3, [0, 0])
    options = {"adapters": 3, "in_batch": 1, "rank": 3, "targets": ["q", "v"]}
    yield Changed("peft", "untrained LoRA", lora, SMALL, options)
    houlsby = peft.with_bottlenecks(stand_in(SMALL), 4, 2, 3, [1, 1])
    options = {"method": "adapter", "adapters": 3, "in_batch": 1, "bottleneck": 4, "places": 2}
    yield Changed("peft", "untrained bottlenecks", houlsby, SMALL, options)


def _gathered(primary: Transformer) -> Iterator[Changed]:
    """Two phases and predictors, one sequence: what is gathered for it is what it chose."""
    softmax, ffn = TwoPhase(64, 16), TwoPhase(24, 12, dense_rows=2)
    plain = {"rank": None, "bits": 4}
    options = {
        "softmax": {"candidates": 64, "keep": 16, "dense_rows": 99, **plain},
        "ffn": {"candidates": 24, "keep": 12, "dense_rows": 2, **plain}, "half_chunk_bytes": 0,
    }  # fmt: skip
    yield Changed("hire", "primary, softmax and FFN", Hire.of(primary, softmax, ffn), primary.shape, options, True, 64)
    options = {"softmax": None, "attention": {"candidates": 3, "dims": 4}, "half_chunk_bytes": 0}
    twin = Hire.of(primary, None, None, KeyReach(3, 4))
    yield Changed("hire", "primary, attention", twin, primary.shape, options, True)
    relu = model("relu")
    texts = [stream(4, "fit", i).integers(0, relu.shape.vocab, 48) for i in range(6)]
    keep = Keep(96, 1, 8, True, 2)
    options = {"neurons": 96, "heads": 1, "rank": 8, "dense_rows": 2, "half_chunk_bytes": 0}
    sparse = Sparse.of(relu, keep, fitted(relu, texts, keep))
    yield Changed("contextual_sparsity", "relu, heads and neurons", sparse, relu.shape, options, True)
