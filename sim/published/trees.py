"""Trees and heads: what Medusa's rank accuracies give, blockwise heads, how a tree's tokens grow with its nodes."""

from __future__ import annotations

from sim.policies.blockwise import Blockwise
from sim.policies.tree import Tree
from sim.published import chains
from sim.published.table import Published, Table

FITTED_BLOCK = 4


def medusa(row: Published, table: Table) -> float:
    """Tokens a round of the published 63-node tree, ranks independent from head to head."""
    size = row.model.split("-")[1].lower()
    return Tree(tree="medusa-63", ranks=f"medusa-vicuna-{size}").expected_tokens


def blockwise(row: Published, table: Table) -> float:
    """Tokens a round over one pass, with the acceptance solved on the row of four heads; heads cost nothing."""
    fitted = table.one(row, quantity=row.quantity, gamma=str(FITTED_BLOCK))
    alpha = chains.alpha_for(table.value(fitted.id), FITTED_BLOCK - 1)
    block = int(row.gamma)
    return Blockwise(block=block, acceptance=alpha).expected_tokens if block > 1 else 1.0
