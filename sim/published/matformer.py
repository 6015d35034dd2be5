"""MatLM's sizes, its slices, and why drafting with a slice gains little; Gemma 3n's effective sizes."""

from __future__ import annotations

from functools import cache

from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.published import chains, shapes
from sim.published.table import Published, Table
from sim.speedup import step_ratio
from sim.variants import mix_n_match
from sim.variants.matformer import Matformer

LAYERS, VOCAB = 16, 256_000
GEMMA_3N = Layer(Attention(8, 2, 256, 256), Ffn(16384))


@cache
def _matlm(d: int, factor: int = 4) -> ModelShape:
    """XL of one scale: multi-head attention, ungated FFN of ``factor`` d, tied embeddings; dimensions derived."""
    block = Layer(Attention(d // 64, d // 64, 64, 64), Ffn(factor * d, gated=False))
    return ModelShape(f"matlm-{d}", d, VOCAB, (block,) * LAYERS, tied=True)


def size(row: Published, table: Table) -> float:
    """Millions of parameters of the XL model with the row's width."""
    return _matlm(int(row.model.split("d=")[1].split()[0])).total_parameters / 1e6


def smallest(row: Published, table: Table) -> float:
    """Millions of parameters of S in the 2.6B model."""
    return Matformer("S").reshape(_matlm(3072)).total_parameters / 1e6


def share(row: Published, table: Table) -> float:
    """Percent of a layer's weights in MLP or attention, for the hidden width that ``ours`` says in d."""
    counts = _matlm(3072, int(row.argument)).layers[0]
    mlp, attention = (sum(part.parameters(3072).values()) for part in (counts.ffn, counts.attention))
    return 100 * (mlp if row.quantity == "mlp_share" else attention) / (mlp + attention)


def mixes(row: Published, table: Table) -> float:
    """Mix'n'Match models of the 2.6B MatLM whose size never falls with depth, the gentlest of each parameter count."""
    return float(len(mix_n_match.mixes(_matlm(3072))))


@cache
def _draft_cost(d: int) -> float:
    """A step of S over one of XL, by bytes, on a TPU v4."""
    whole, slice_ = _matlm(d), Matformer("S").reshape(_matlm(d))
    device = shapes.device("tpu-v4")
    return step_ratio(PassCost(slice_, device), PassCost(whole, device))


def drafted(row: Published, table: Table) -> float:
    """S of 2.6B drafts one token for XL, alpha solved from this row."""
    c = _draft_cost(3072)
    return chains.speedup(chains.alpha_for(float(row.published) * (1 + c), 1), 1, c)


def ceiling(row: Published, table: Table) -> float:
    """The same if every draft were kept, of the 850M model, where a slice costs most."""
    return chains.speedup(1.0, 1, _draft_cost(1536))


def gemma_3n(row: Published, table: Table) -> float:
    """Billions of parameters in attention and feed-forward blocks, from the public dimensions."""
    said = row.settings
    layers = (GEMMA_3N,) * int(said["layers"])
    whole = ModelShape("gemma-3n", 2048, 262_400, layers)
    sliced = Matformer(int(said["ffn"])).reshape(whole).layers
    return sum(sum({**one.attention.parameters(2048), **one.ffn.parameters(2048)}.values()) for one in sliced) / 1e9
