"""A draft model that grows a tree level by level, every node of a level but the deepest in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.decoding import Tokens
from sim.reference.sampling import Floats, Sampler, softmax, stream
from sim.reference.twins._tree import Array, Context, Draft, Shape, children_of
from sim.reference.twins._tree_levels import Slots, level_batch, run

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


class ModelTree:
    """SpecInfer's and Sequoia's drafter: a pass a depth. What is accepted above the deepest level stays cached."""

    layers: tuple[int, ...] = ()

    def __init__(self, model: Transformer, shape: Shape, way: str, sampler: Sampler, sequences: int, seed: int) -> None:
        """``way``: how children are chosen, see :func:`sim.reference.twins._tree.children_of`."""
        self.model, self.shape, self.way, self.sampler = model, shape, way, sampler
        self.slots = Slots(shape, inner=False)
        self.cache = model.new_cache(sequences)
        self.luck = [stream(seed, "draft", i) for i in range(sequences)]

    def prefill(self, prompts: Sequence[Tokens], states: Sequence[Array]) -> None:
        """Read the prompts; no logits are needed."""
        with self.model.meter.prefix("draft."):
            self.model.forward(prompts, self.cache, range(len(prompts)), rows="none")

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """A pass over what was not read yet, then one over each level that has children."""
        rows = len(self.shape.depths)
        tokens = np.zeros((len(active), rows), np.int64)
        q = np.zeros((len(active), rows, self.model.shape.vocab))
        with self.model.meter.prefix("draft."):
            feeds = [np.array(contexts[s][int(self.cache.lengths[s]) :], np.int64) for s in active]
            logits = self.model.forward(feeds, self.cache, active, rows="last")
            self._choose(0, logits, tokens, q, active)
            for depth in range(1, self.shape.depth):
                self._choose(depth, self._level(depth, tokens, active), tokens, q, active)
        drawn = self.way in ("specinfer", "sequoia")
        return [Draft(tuple(map(int, tokens[i, 1:])), q[i] if drawn else None) for i in range(len(active))]

    def settle(self, sequence: int, context: Context, path: Sequence[int], states: Array) -> None:
        """Keep what was accepted and run; only a node of the deepest level was not."""
        filled = self.slots.before(self.shape.depth)
        self.cache.bases[sequence] = int(self.cache.lengths[sequence]) - len(filled)
        self.cache.keep(sequence, [filled.index(row) for row in path if row in filled])

    def _level(self, depth: int, tokens: Tokens, active: Sequence[int]) -> Array:
        """Logits of the rows of ``depth`` that have children."""
        now = self.slots.level(depth)
        batch = level_batch(self.slots, depth, tokens[:, now].tolist(), active, self.cache, self.model.exact)
        x = run(self.model, self.model.embed(batch.ids, batch.positions), batch, self.cache)
        wanted = [self.shape.children[row] != () for row in now]
        return self.model.head(x[np.tile(wanted, len(active))])

    def _choose(self, depth: int, logits: Array, tokens: Tokens, q: Floats, active: Sequence[int]) -> None:
        self.model.meter.sample(logits)
        soft = softmax(logits) if self.way in ("greedy", "typical") else self.sampler.probabilities(logits)
        parents = self.shape.rows_at(depth, inner=True)
        for i, of_one in enumerate(soft.reshape(len(active), len(parents), -1)):
            for row, one in zip(parents, of_one, strict=True):
                q[i, row] = one
                children = self.shape.children[row]
                tokens[i, list(children)] = children_of(one, len(children), self.way, self.luck[active[i]])
