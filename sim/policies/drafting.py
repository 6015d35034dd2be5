"""The draft of a scenario: a model by name or path, or any model with any variants, the target itself included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sim.plugin import suggest
from sim.policies import Model
from workloads.errors import shown

KEYS = ("model", "variants", "kv")
SELF = "self"


def model_of(said: Any, key: str = "policy.draft") -> str | Model:
    """What a scenario says under ``key``: a name or path, or ``{model: NAME or self, variants: [...], kv: own or
    shared}``; ``self`` is the target (early exit, MatFormer slice, fewer bits), which alone may share its cache.

    Raises ValueError naming key and value.
    """
    if isinstance(said, str) and said:
        return Model(None) if said == SELF else said
    if not isinstance(said, Mapping) or not isinstance(said.get("model"), str) or not said["model"]:
        raise ValueError(f"{key}: {shown(said)} is not the name or path of a model, or model, variants and kv")
    for name in said:
        if name not in KEYS:
            raise ValueError(f"{key}.{str(name)[:80]}: unknown; a draft has {', '.join(KEYS)}{suggest(name, KEYS)}")
    variants, kv = said.get("variants", ()), said.get("kv", "own")
    if not isinstance(variants, list | tuple):
        raise ValueError(f"{key}.variants: {shown(variants)} is not a list")
    if kv not in ("own", "shared"):
        raise ValueError(f"{key}.kv: {shown(kv)}: must be own or shared")
    name = None if said["model"] == SELF else said["model"]
    if kv == "shared" and name is not None:
        raise ValueError(f"{key}.kv: {name} is another model, whose keys and values are not the target's; must be own")
    return Model(name, tuple(variants), kv == "own")


def shares_kv(drafts: Iterable[str | Model]) -> bool:
    """Whether a draft works on the target's cache: it reads no prompts, and has never anything to catch up."""
    return any(isinstance(draft, Model) and not draft.own_kv for draft in drafts)
