"""What fine-tuning trains and pruning leaves, from shapes; what a link fetches; sparsity of a pass."""

from __future__ import annotations

from dataclasses import replace

from sim.analytic.cost import PassCost
from sim.analytic.model import Attention as Block
from sim.analytic.model import Ffn, Layer, ModelShape
from sim.analytic.roofline import hbm_bytes
from sim.analytic.work import Work
from sim.finetune import memory_table
from sim.published import shapes
from sim.published.quantized import OPT_175B
from sim.published.table import Published, Table
from sim.variants.attention import Attention
from sim.variants.contextual_sparsity import ContextualSparsity
from sim.variants.offload import Offload
from sim.variants.peft import Peft
from sim.variants.pruning import Pruning

ROBERTA_VOCAB = 50_265
EACH_ITS_OWN = Peft("lora", rank=16, targets=("q", "k", "v", "o", "gate", "up", "down"), adapters=32, in_batch=32)
ATTENDING = ("attn.scores", "attn.softmax", "attn.values")
LIKE = {"RoBERTa-base": "bert-base", "RoBERTa-large": "bert-large", "BERT-large": "bert-large"}


def _shape(row: Published) -> ModelShape:
    """RoBERTa is BERT with another vocabulary."""
    found = shapes.shape(LIKE[row.model])
    return replace(found, vocab=ROBERTA_VOCAB) if row.model.startswith("RoBERTa") else found


def _method(row: Published) -> Peft:
    return Peft(method="bitfit") if row.config == "BitFit" else Peft(method="lora", rank=8, targets=("q", "v"))


def trainable(row: Published, table: Table) -> float:
    """Millions of parameters that are trained: all, LoRA of rank 8 on q and v, or the biases."""
    shape = _shape(row)
    return (shape.total_parameters if row.config == "FT" else _method(row).trainable(shape)) / 1e6


def trainable_share(row: Published, table: Table) -> float:
    """Percent of all parameters."""
    shape = _shape(row)
    return 100 * _method(row).trainable(shape) / shape.total_parameters


def moments(row: Published, table: Table) -> float:
    """Numbers of four bytes that Adam keeps for each trained weight."""
    full = memory_table(shapes.shape("llama-2-7b"))[0]
    return full.moments_bytes / full.trainable / 4


def sheared(row: Published, table: Table) -> float:
    """Billions of parameters that remain of Llama-2-7B."""
    return Pruning(to=row.model.lower()).reshape(shapes.shape("llama-2-7b")).total_parameters / 1e9


def fetched(row: Published, table: Table) -> float:
    """Milliseconds to fetch the gigabytes over the link that the row names."""
    said = row.config.partition("; ")[2].split()
    link = Offload(weights=1.0, link_GBps=float(said[3]))
    return float(said[0]) * 1e9 / link.rate_Bps(shapes.device("apple-m2-ultra")) * 1e3


def chunked(row: Published, table: Table) -> float:
    """The same where the link's rate is what chunks get of its 6.1 GB/s: the size of a chunk decides."""
    said, chunk_kib = row.config.partition("; ")[2].split(), float(row.argument)
    link = Offload(weights=1.0, link_GBps=6.1, chunk_KiB=chunk_kib)
    return float(said[0]) * 1e9 / link.rate_Bps(shapes.device("apple-m2-ultra")) * 1e3


def dejavu(row: Published, table: Table) -> float:
    """Gain of a decode step of OPT-175B where 4,096 of 49,152 neurons are read, eight A100 as one."""
    a100 = shapes.device("a100-sxm-80gb")
    eight = replace(a100, memory_Bps=8 * a100.memory_Bps, peaks={name: 8 * rate for name, rate in a100.peaks.items()})
    work = Work.decode(1, 512)
    sparse = PassCost(OPT_175B, eight, shapes.FP16, variants=[ContextualSparsity(neurons=4096)])
    return float(PassCost(OPT_175B, eight, shapes.FP16).seconds(work) / sparse.seconds(work))


def attention_gb(row: Published, table: Table) -> float:
    """Gigabytes that scores, softmax and values of one attention layer move forward (the row: and backward)."""
    layer = Layer(Block(16, 16, 64, 64), Ffn(4096, gated=False))
    shape = ModelShape("gpt2-medium-layer", 1024, 2, (layer,))
    kind = row.config.partition(";")[0]
    cost = PassCost(shape, shapes.device("a100-sxm-40gb"), shapes.FP16, variants=[Attention(kind=kind)])
    kernels = [ops for ops, _ in cost.bounds(Work.prefill(int(row.batch), 1024)) if ops[0].name.startswith(ATTENDING)]
    return sum(float(part) for ops in kernels for part in hbm_bytes(ops, cost.placement)) / 1e9


def offloaded(row: Published, table: Table) -> float:
    """Seconds a token where all layers cross the link of the row before they are multiplied."""
    link = float(row.config.split()[1])
    variant = Offload(weights=1.0, link_GBps=link, overlap=False)
    cost = PassCost(shapes.shape(row.model.lower().replace("llama2", "llama-2")), shapes.device("rtx-4090"),
                    shapes.FP16, variants=[variant])  # fmt: skip
    return float(cost.seconds(Work.decode(1, 128)))


def adapters(row: Published, table: Table) -> float:
    """Tokens a second with an adapter for each of 32 sequences, from the printed rate of the model without any."""
    size = row.quantity.rsplit("_", 1)[1]
    plain = next(table.like(row, quantity=f"vllm_backbone_{'only_' if size == '7B' else ''}tok_s_{size}"))
    shape, work = shapes.shape(f"llama-2-{size.lower()}"), Work.decode(32, 512)
    bare, served = (
        float(PassCost(shape, shapes.device("a100-sxm-80gb"), shapes.FP16, variants=chosen).seconds(work))
        for chosen in ((), (EACH_ITS_OWN,))
    )
    return table.value(plain.id) * bare / served
