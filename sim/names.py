"""Names of the field that a scenario may use under ``policy``, and what they stand for: a policy and variants.

A variant by its name is autoregressive decoding of that variant. Options go to what the name stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim.plugin import discover, suggest
from workloads.errors import shown

__all__ = ["expand", "names"]

Options = dict[str, Any]
Expansion = tuple[Any, list[Any]]  # a policy as a scenario says it, and variants to go before the scenario's own

NAMES: Mapping[str, Callable[[Options], Expansion]] = {}


def names() -> list[str]:
    """Everything that ``policy`` accepts beside the policies themselves."""
    return sorted({*NAMES, *discover("sim.variants")} - set(discover("sim.policies")))


def expand(policy: Any, variants: Sequence[Any]) -> tuple[Any, Any]:
    """``policy`` and ``variants`` of a scenario with a name of the field spelled out; others unchanged.

    Raises ValueError for a name that nothing has.
    """
    options = dict(policy) if isinstance(policy, Mapping) else {"name": policy}
    name = options.pop("name", None)
    if not isinstance(name, str) or name in discover("sim.policies"):
        return policy, variants
    if name not in names():
        known = [*discover("sim.policies"), *names()]
        said = f"policy: {shown(name)}: must be one of {', '.join(known)}"
        raise ValueError(said + suggest(name, known))
    expansion = NAMES.get(name)
    said, added = ("autoregressive", [{name: options}]) if expansion is None else expansion(options)
    return said, [*added, *variants] if isinstance(variants, list | tuple) else variants
