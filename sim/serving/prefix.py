"""A prefix cache: KV blocks of prompts that were read before, in a replica's own memory and in tiers below it.

A request may carry ids of its content, one for every ``block_tokens`` tokens (Mooncake's ``hash_ids``); equal ids mean
equal tokens up to the end of that block. An *entry* holds the first ``tokens`` tokens of such a block, a whole number
of KV blocks. While anybody runs with it, it is pinned; otherwise it is idle and may go when room is needed
(docs/design.md, "The rules of a prefix cache"). After vLLM's automatic prefix caching (docs.vllm.ai, design/
prefix_caching) and SGLang's radix cache (Zheng et al. 2024, arXiv 2312.07104, section 3).

No clock here: whoever calls says what time it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sim.request import Request
from sim.serving.eviction import RULES, Shelf

__all__ = ["Hit", "Offers", "Prefix", "PrefixStore", "Tier"]


@dataclass(frozen=True)
class Tier:
    """Memory below a replica's own: host, SSD, a share of a remote pool. A load takes ``latency + bytes / Bps``."""

    name: str
    capacity_bytes: int
    Bps: float
    latency_s: float = 0.0

    def ns(self, size_bytes: int) -> int:
        """Whole nanoseconds of a load, at least one."""
        return max(1, round((self.latency_s + size_bytes / self.Bps) * 1e9))


@dataclass(frozen=True)
class Prefix:
    """What the prefix caches of all replicas of a pool have in common.

    ``block_tokens``: of an id; ``kv_block_tokens``: of a KV block, which divides it; ``token_bytes``: of all models
    together; ``token_s``: what the engine takes for each token found.
    """

    block_tokens: int
    kv_block_tokens: int
    token_bytes: int
    evict: str = "lru"
    tiers: tuple[Tier, ...] = ()
    token_s: float = 0.0

    def covered(self, request: Request) -> int:
        """Tokens whose content the ids tell: of the prompt, and of a lone sample's answer where more ids follow."""
        if request.blocks is None:
            return 0
        told, prompt = len(request.blocks) * self.block_tokens, request.prompt
        if request.samples > 1 or told < prompt + self.block_tokens:
            return min(told, prompt)
        return min(told, prompt + request.output)

    def whole(self, request: Request, tokens: int) -> int:
        """Of the first ``tokens`` of a request, those that are covered and lie in whole KV blocks."""
        return min(tokens, self.covered(request)) // self.kv_block_tokens * self.kv_block_tokens


@dataclass(slots=True)
class Entry:
    """What is cached of one block: its first ``tokens`` tokens, ``runs`` sequences that run with it, hits so far."""

    tokens: int
    born: int
    runs: int = 0
    uses: int = 0
    ready_ns: int = 0


@dataclass(slots=True)
class Hit:
    """What a newcomer found: (level, tokens, start of the load, its end) of each level, 0 being the replica's own."""

    tokens: int
    ready_ns: int
    levels: list[tuple[int, int, int, int]]


@dataclass(slots=True)
class _Run:
    """What a running sequence shares with the cache: the first ``tokens`` tokens of its blocks."""

    blocks: tuple[int, ...]
    tokens: int = 0


class _Level:
    """A tier: entries nobody runs with, a budget, and the link up, which carries one load at a time."""

    def __init__(self, tier: Tier, evict: str, token_bytes: int) -> None:
        self.tier, self.token_bytes = tier, token_bytes
        self.entries: dict[int, Entry] = {}
        self.shelf: Shelf = RULES[evict]()
        self.used_bytes = self.free_ns = self.born = self.evicted = 0

    def put(self, number: int, tokens: int, uses: int) -> Iterator[tuple[int, Entry]]:
        """Take an entry in, or more of one that is here; yields those that have to go for it."""
        entry = self.entries.get(number)
        if entry is None:
            self.born += 1
            entry = self.entries[number] = Entry(0, self.born)
        else:
            self.shelf.remove(number)
        self.used_bytes += max(0, tokens - entry.tokens) * self.token_bytes
        entry.tokens, entry.uses = max(tokens, entry.tokens), max(uses, entry.uses)
        self.shelf.put(number, entry.born, entry.uses)
        while self.used_bytes > self.tier.capacity_bytes:
            gone = self.shelf.pop()
            entry = self.entries.pop(gone)
            self.used_bytes -= entry.tokens * self.token_bytes
            self.evicted += 1
            yield gone, entry

    def touch(self, number: int) -> None:
        """It was found here; the copy stays."""
        entry = self.entries[number]
        entry.uses += 1
        self.shelf.remove(number)
        self.shelf.put(number, entry.born, entry.uses)

    def load(self, size_bytes: int, now_ns: int) -> tuple[int, int]:
        """When a load that is asked for now starts and ends."""
        start_ns = max(now_ns, self.free_ns)
        self.free_ns = start_ns + self.tier.ns(size_bytes)
        return start_ns, self.free_ns


@dataclass
class Offers:
    """What the heads of a line would find, one after another, if they were admitted now; nothing is changed."""

    store: PrefixStore
    now_ns: int
    taken: set[int] = field(default_factory=set)

    def tokens_bytes(self, request: Request, tokens: int) -> tuple[int, bool, int]:
        """(Tokens found, whether they have to be waited for, bytes that become pinned) of the next in line."""
        store, found, more, waits = self.store, 0, 0, False
        for number, held, level in store.find(request, tokens):
            found += held
            entry = store.entries.get(number)
            waits = waits or level > 0 or (entry is not None and entry.ready_ns > self.now_ns)
            if number not in self.taken and (entry is None or not entry.runs):
                self.taken.add(number)
                more += held * store.spec.token_bytes
        return found, waits or store.host_ns(found) > 0, more


class PrefixStore:
    """The prefix cache of one replica. ``pinned_bytes`` and ``idle_bytes`` lie in its own KV memory."""

    def __init__(self, spec: Prefix) -> None:
        self.spec = spec
        self.entries: dict[int, Entry] = {}
        self.shelf = RULES[spec.evict]()
        self.levels = [_Level(tier, spec.evict, spec.token_bytes) for tier in spec.tiers]
        self.runs: dict[int, _Run] = {}
        self.pinned_bytes = self.idle_bytes = self.born = self.evicted = 0

    def find(self, request: Request, tokens: int) -> Iterator[tuple[int, int, int]]:
        """(Id, tokens, level) of the entries that a request which has to read so many tokens would find.

        The chain from its first block on, without a gap; an entry counts whole or not at all, and at least one token is
        left to read.
        """
        size, left = self.spec.block_tokens, self.spec.whole(request, tokens - 1)
        entries = self.entries
        for number in request.blocks or ():
            if left <= 0:
                return
            entry = entries.get(number)
            held, level = self._below(number) if entry is None else (entry.tokens, 0)
            if not 0 < held <= left:
                return
            yield number, held, level
            if held < size:
                return
            left -= held

    def tokens(self, request: Request) -> int:
        """Prompt tokens that a request which came now would find, at any level."""
        return sum(held for _, held, _ in self.find(request, request.prompt))

    def shared_bytes(self, number: int) -> int:
        """Bytes of a running sequence that the cache holds for it."""
        run = self.runs.get(number)
        return 0 if run is None else run.tokens * self.spec.token_bytes

    def host_ns(self, tokens: int) -> int:
        """What the engine takes for so many tokens found."""
        return round(tokens * self.spec.token_s * 1e9)

    def take(self, request: Request, tokens: int, now_ns: int) -> Hit:
        """A sequence that has to read so many tokens is admitted: pin what it finds, load what lies below."""
        run = _Run(request.blocks or ())
        by_level, ready_ns = [0] * (1 + len(self.levels)), now_ns
        loaded: list[tuple[int, Entry]] = []
        for number, held, level in self.find(request, tokens):
            if level:
                self.levels[level - 1].touch(number)
                loaded.append((level, self._new(number, held)))
            entry = self.entries[number]
            entry.uses += 1
            self._pin(number, entry)
            ready_ns = max(ready_ns, entry.ready_ns)
            by_level[level] += held
            run.tokens += held
        times = self._loads(by_level, now_ns)
        for level, entry in loaded:
            entry.ready_ns = times[level][1]
        ready_ns = max([ready_ns, *(end_ns for _, end_ns in times.values())]) + self.host_ns(run.tokens)
        self.runs[request.id] = run
        levels = [(level, found, *times.get(level, (now_ns, now_ns))) for level, found in enumerate(by_level) if found]
        return Hit(run.tokens, ready_ns, levels)

    def add(self, request: Request, tokens: int) -> int:
        """Its first ``tokens`` tokens will have been read: what lies in whole blocks enters the cache.

        Returns the bytes that the sequence holds no longer by itself. A block that is there already is shared from now
        on, and the copy given up; a longer one is left alone.
        """
        run, size = self.runs[request.id], self.spec.block_tokens
        before, most = run.tokens, self.spec.whole(request, tokens)
        while run.tokens < most:
            place = run.tokens // size
            number, wanted = run.blocks[place], min(size, most - place * size)
            entry = self.entries.get(number)
            if entry is not None and entry.tokens > wanted:
                break
            entry = entry or self._new(number, 0)
            if run.tokens == place * size:
                self._pin(number, entry)
            self.pinned_bytes += (wanted - entry.tokens) * self.spec.token_bytes
            entry.tokens, run.tokens = wanted, place * size + wanted
        return (run.tokens - before) * self.spec.token_bytes

    def counts(self) -> list[tuple[int, int, int]]:
        """(Level, entries evicted from it, bytes that lie idle in it now) of each level."""
        own = (0, self.evicted, self.idle_bytes)
        return [own, *((i, below.evicted, below.used_bytes) for i, below in enumerate(self.levels, 1))]

    def release(self, number: int) -> None:
        """A sequence leaves: what nobody else runs with is idle, the end of the chain before its beginning."""
        run = self.runs.pop(number, None)
        if run is None:
            return
        for place in reversed(range(-(-run.tokens // self.spec.block_tokens))):
            block = run.blocks[place]
            entry = self.entries[block]
            entry.runs -= 1
            if not entry.runs:
                self.pinned_bytes -= entry.tokens * self.spec.token_bytes
                self.idle_bytes += entry.tokens * self.spec.token_bytes
                self.shelf.put(block, entry.born, entry.uses)

    def shrink(self, spare_bytes: int) -> None:
        """Idle entries go, to the next tier or for good, until they take no more than so many bytes."""
        while self.idle_bytes > spare_bytes and len(self.shelf):
            number = self.shelf.pop()
            entry = self.entries.pop(number)
            assert not entry.runs, "only idle blocks are evicted"
            self.idle_bytes -= entry.tokens * self.spec.token_bytes
            self.evicted += 1
            self._drop(number, entry, 0)

    def _drop(self, number: int, entry: Entry, level: int) -> None:
        """Into the tier below, from which others may drop further."""
        if level < len(self.levels):
            for gone, pushed in self.levels[level].put(number, entry.tokens, entry.uses):
                self._drop(gone, pushed, level + 1)

    def _below(self, number: int) -> tuple[int, int]:
        """Tokens held of a block in the fastest tier that has it, and its level; (0, 0): nowhere."""
        for level, below in enumerate(self.levels, 1):
            entry = below.entries.get(number)
            if entry is not None:
                return entry.tokens, level
        return 0, 0

    def _new(self, number: int, tokens: int) -> Entry:
        """An entry in the replica's own memory; idle until it is pinned, which its caller does at once."""
        self.born += 1
        entry = self.entries[number] = Entry(tokens, self.born)
        self.idle_bytes += tokens * self.spec.token_bytes
        self.shelf.put(number, entry.born, 0)
        return entry

    def _pin(self, number: int, entry: Entry) -> None:
        if not entry.runs:
            self.shelf.remove(number)
            self.idle_bytes -= entry.tokens * self.spec.token_bytes
            self.pinned_bytes += entry.tokens * self.spec.token_bytes
        entry.runs += 1

    def _loads(self, by_level: list[int], now_ns: int) -> dict[int, tuple[int, int]]:
        """Start and end of what each tier sends up; all of a newcomer's tokens in a tier are one load."""
        return {
            level: self.levels[level - 1].load(tokens * self.spec.token_bytes, now_ns)
            for level, tokens in enumerate(by_level)
            if level and tokens
        }
