"""From a scenario's ``kv.prefix_cache`` to the prefix cache of its replicas, and what stands in the way of one."""

from __future__ import annotations

from sim.analytic.hardware import GB, MICRO, Engine
from sim.scenario import Scenario
from sim.serving.prefix import Prefix, Tier
from sim.serving.replica import Setup
from workloads import block_tokens

__all__ = ["prefix_of"]

KEY = "kv.prefix_cache"


def prefix_of(scenario: Scenario, setup: Setup, engine: Engine, whole_bytes: int) -> Prefix:
    """The prefix cache that a scenario asks for; ``whole_bytes``: of a token in the caches of all devices together.

    A replica counts the bytes of one of its devices, so tiers are scaled to that. Raises ValueError, one line.
    """
    said, kv = scenario.kv.prefix_cache, setup.kv
    assert said is not None, "nobody asked for a prefix cache"
    size = block_tokens(scenario.workload)
    if size is None:
        raise ValueError(f"{KEY}: the workload tells nothing of its content; needs a trace, shared_prefix or sessions")
    if size % kv.block_tokens:
        raise ValueError(
            f"{KEY}: the workload's blocks of {size} tokens are no multiple of kv.block_tokens, {kv.block_tokens}"
        )
    if kv.mode == "reserved":
        raise ValueError(f"{KEY}: not with kv.mode reserved, which has no blocks; must be paged")
    if setup.rounds.encoders or any(span.window is not None for span in kv.spans):
        kind = "an encoder" if setup.rounds.encoders else "layers with a sliding window"
        raise ValueError(f"{KEY}: {scenario.model} has {kind}, whose blocks cannot be found again yet")
    names = [tier.name for tier in said.tiers]
    if len({"memory", *names}) <= len(names):
        raise ValueError(f"{KEY}.tiers: {', '.join(names)}: names must differ from each other and from memory")
    part = kv.token_bytes / whole_bytes if whole_bytes else 1.0
    tiers = tuple(
        Tier(tier.name, int(tier.GB * GB * part), tier.GBps * GB * part, tier.latency_us * MICRO) for tier in said.tiers
    )
    return Prefix(size, kv.block_tokens, kv.token_bytes, said.evict, tiers, engine.cached_token_s)
