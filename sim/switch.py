"""Variable model serving, from a scenario's ``switch`` to the policy that follows the line."""

from __future__ import annotations

from collections.abc import Sequence

from sim.analytic.staged import Cost
from sim.policies import Policy
from sim.policies.autoregressive import Autoregressive
from sim.policies.switching import Step, Switching
from sim.scenario import SwitchPart
from sim.variants import build as build_variants

__all__ = ["check_one_cache", "switched"]


def switched(said: SwitchPart | None, policy: Policy) -> Policy:
    """The policy over the tiers' models; as it is without any. Raises ValueError naming key and value."""
    if said is None:
        return policy
    if not isinstance(policy, Autoregressive):
        raise ValueError(f"switch: with policy {policy.name}: must be autoregressive; load_adaptive changes gamma")
    steps = [
        Step(tier.waiting, tuple(build_variants(tier.variants, key=f"switch.tiers[{i}].variants")))
        for i, tier in enumerate(said.tiers)
    ]
    return Switching(tuple(steps), said.hysteresis, said.switch_ms)


def check_one_cache(policy: Policy, costs: Sequence[Cost]) -> None:
    """Raise ValueError where tiers could not work on one KV cache; ``costs``: of the tiers' models."""
    if not isinstance(policy, Switching):
        return
    first = costs[0]
    if first.shape.encoder:
        raise ValueError(f"switch: {first.shape.name} has an encoder, whose cross attention no tier shares yet")
    for i, cost in enumerate(costs[1:], 1):
        same = cost.shape.windows == first.shape.windows
        if not same or list(cost.kv_bytes_per_token) != list(first.kv_bytes_per_token):
            raise ValueError(f"switch.tiers[{i}].variants: change the KV cache, which all tiers share; use others")
