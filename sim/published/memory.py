"""What the KV cache holds (PagedAttention, deck 004), and parameters that follow from shapes."""

from __future__ import annotations

from sim.analytic.memory import kv_bytes_per_token
from sim.published import shapes
from sim.published.table import Published, Table
from sim.serving.kv import KvBudget, Span

OPT = {
    "OPT-13B": shapes.shape("opt-13b"),
    "OPT-66B": shapes.opt("opt-66b", 9216, 72, 64),
    "OPT-175B": shapes.opt("opt-175b", 12288, 96, 96),
}
GIB = 1 << 30


def _token_bytes(model: str) -> int:
    return int(sum(kv_bytes_per_token(OPT[model], shapes.FP16)))


def slots(row: Published, table: Table) -> float:
    """Thousands of tokens that the printed gigabytes (GiB) hold, block by block."""
    pool = table.value(table.one(row, quantity="kv_memory_GB", model=row.model).id) * GIB
    budget = KvBudget(int(pool), (Span(_token_bytes(row.model)),))
    blocks = budget.capacity_bytes // budget.bytes_of(1)
    return blocks * budget.block_tokens / 1e3


def token_kb(row: Published, table: Table) -> float:
    """Kilobytes (KiB) of one token's keys and values."""
    return _token_bytes(row.model) / 1024


def request_gb(row: Published, table: Table) -> float:
    """Gigabytes (GiB) of a request of 2,048 tokens."""
    return KvBudget(64 * GIB, (Span(_token_bytes(row.model)),)).bytes_of(2048) / GIB


def values_per_token(row: Published, table: Table) -> float:
    """Numbers that one token of a shipped model keeps in the cache."""
    return float(shapes.shape(row.model).kv_width_per_token)


SHIPPED = {"BERT-base": "bert-base", "DistilBERT": "distilbert"}


def millions(row: Published, table: Table) -> float:
    """Parameters of a shipped model in millions."""
    return shapes.shape(SHIPPED[row.model]).total_parameters / 1e6


SHAREGPT = (161, 338)  # mean tokens of prompt and output in the paper's figure 11


def utilization(row: Published, table: Table) -> float:
    """Percent of the allocated cache that holds tokens, over a request of mean length, set aside as ``ours`` says.

    ``reserved``: room for 2,048 tokens at once.
    """
    spans, mode = (Span(_token_bytes("OPT-13B")),), row.argument
    budget = KvBudget(64 * GIB, spans, mode="reserved" if mode == "reserved" else "paged", reserve_tokens=2048)
    contexts = range(SHAREGPT[0], sum(SHAREGPT))
    held = sum(budget.bytes_of(t) for t in contexts)
    return 100 * sum(t * budget.token_bytes for t in contexts) / held
