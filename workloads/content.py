"""What synthetic prompts are made of: system prompts that groups of requests share, and conversations of several turns.

A content id stands for ``hash_block_tokens`` tokens in a row, as in Mooncake's ``hash_ids``: equal ids, equal tokens up
to the end of that block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from workloads.columns import Columns, Ints
from workloads.draws import draws
from workloads.keys import SESSIONS, SHARED_PREFIX, check

__all__ = ["SYNTHETIC_BLOCK", "told", "turns"]

SYNTHETIC_BLOCK = 16


def turns(said: Mapping[str, object], where: str = "workload") -> int:
    """Turns of each conversation; 1 where there are none. Raises ValueError for a part that makes no sense."""
    if "sessions" not in said:
        return 1
    sessions = check(said["sessions"], SESSIONS, f"{where}: sessions", required=["turns"])
    return cast(int, sessions["turns"])


def told(
    body: Iterator[Columns], said: Mapping[str, object], seed: int, stream: int = 0, where: str = "workload"
) -> Iterator[Columns]:
    """The same requests with their content, where `said` has `shared_prefix` or `sessions`; unchanged where not.

    Each prompt begins with its group's `tokens` tokens, the group drawn uniformly. In a conversation a turn's prompt is
    everything said before it, answers included, and the new tokens. Raises ValueError at once.
    """
    if "shared_prefix" not in said and "sessions" not in said:
        return body
    shared: dict[str, object] = {"tokens": 0, "groups": 1}
    if "shared_prefix" in said:
        shared |= check(said["shared_prefix"], SHARED_PREFIX, f"{where}: shared_prefix", required=["tokens"])
    block = cast(int, said.get("hash_block_tokens", SYNTHETIC_BLOCK))
    book = _Book(block, cast(int, shared["tokens"]), cast(int, shared["groups"]), turns(said, where))
    return book.written(body, draws(seed, "group", stream))


@dataclass
class _Book:
    """Ids are given in order: first those of all shared prefixes, then those of one conversation after another."""

    block: int
    prefix: int
    groups: int
    turns: int

    def written(self, body: Iterator[Columns], rng: np.random.Generator) -> Iterator[Columns]:
        """Prompts, ids and conversation numbers of every request, in order."""
        free = self.groups * (self.prefix // self.block)
        number, turn, group, before = 0, 0, 0, 0
        for chunk in body:
            prompts, hashes, sessions = [], [], []
            for new, output in zip(chunk.prompt_tokens.tolist(), chunk.output_tokens.tolist(), strict=True):
                if not turn:
                    group, before = int(rng.integers(self.groups)), self.prefix
                prompt = before + new
                before, turn = prompt + output, turn + 1
                prompts.append(prompt)
                sessions.append(number)
                hashes.append(self._ids(group, free, before if self.turns > 1 else prompt))
                if turn == self.turns:
                    free, number, turn = free + len(hashes[-1]), number + 1, 0
            yield replace(
                chunk,
                prompt_tokens=np.array(prompts, np.int64),
                session=np.array(sessions, np.int64) if self.turns > 1 else chunk.session,
                hash_ids=hashes,
                hash_block_tokens=self.block,
            )

    def _ids(self, group: int, free: int, tokens: int) -> Ints:
        """Blocks of a shared prefix, then those of a conversation, whose own numbers begin at ``free``."""
        whole, blocks = self.prefix // self.block, -(-tokens // self.block)
        return np.concatenate((np.arange(whole) + group * whole, np.arange(whole, blocks) + free)).astype(np.int64)
