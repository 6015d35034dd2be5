"""Names of the field that a scenario may use under ``policy``, and what they stand for: a policy and variants.

A variant by its name is autoregressive decoding of that variant. Options go to what the name stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim.plugin import discover, suggest
from workloads.errors import shown

__all__ = ["expand", "meanings", "names"]

Options = dict[str, Any]
Expansion = tuple[Any, list[Any]]  # a policy as a scenario says it, and variants to go before the scenario's own



def _tree(**usual: Any) -> Callable[[Options], Expansion]:
    """A kind of token tree; options override what the name stands for."""
    return lambda options: ({"name": "tree", **usual, **options}, [])


def _policy(name: str, **usual: Any) -> Callable[[Options], Expansion]:
    """Another name of a policy."""
    return lambda options: ({"name": name, **usual, **options}, [])


def _variant(name: str, **usual: Any) -> Callable[[Options], Expansion]:
    """Autoregressive decoding of a variant; options override what the name stands for."""
    return lambda options: ("autoregressive", [{name: {**usual, **options}}])


_DYNAMIC = {"by": "dynamic", "nodes": 60}
_GREEDY_31 = {"nodes": 31, "depth": 8}
NAMES: Mapping[str, Callable[[Options], Expansion]] = {
    "medusa": _tree(),
    "hydra": _tree(drafter="hydra"),
    "eagle": _tree(tree="eagle-25", ranks="eagle-vicuna", drafter="eagle"),
    "eagle2": _tree(
        tree={**_DYNAMIC, "depth": 6}, ranks="eagle-vicuna", drafter="eagle",
        acceptance={"kind": "length", "tokens": 4.83},
    ),
    "eagle3": _tree(
        tree={**_DYNAMIC, "depth": 8}, ranks="eagle-vicuna", drafter={"kind": "eagle3", "vocabulary": 32_000},
        acceptance={"kind": "length", "tokens": 6.62},
    ),
    "mtp": _tree(tree=[[0]], ranks=[0.87], drafter="mtp"),
    "specinfer": _tree(tree={**_GREEDY_31, "by": "greedy"}, ranks="sequoia", verification="specinfer",
                       drafter={"kind": "model", "draft": "auto"}),
    "sequoia": _tree(tree={**_GREEDY_31, "by": "sequoia"}, ranks="sequoia", verification="sequoia",
                     drafter={"kind": "model", "draft": "auto"}),
    "rest": _policy("retrieval"),
    "prompt_lookup": _policy("ngram"),
    "unigram": _policy("bigram", order=1),
    "aggressive": _policy("input_copy"),
    "distillspec": _policy("speculative"),
    "edit5": lambda options: ({"name": "text_editing", **options}, [{"early_exit": {"layers": 1}}]),
    "streamingllm": _variant("kv_eviction", method="streaming"),
    "h2o": _variant("kv_eviction", method="h2o"),
    "lora": _variant("peft", method="lora"),
    "bitnet": _variant("quantization", format="bitnet"),
}  # fmt: skip
"""What each name stands for; sources and numbers are those of docs/policies/tree.md, medusa.md and eagle.md."""


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


def meanings() -> dict[str, str]:
    """What each name stands for, in a line."""
    found = {}
    for name in names():
        policy, variants = expand(name, [])
        said = policy if isinstance(policy, str) else ", ".join(f"{k}: {v}" for k, v in policy.items() if k != "name")
        head = "" if isinstance(policy, str) else f"{policy['name']} "
        with_ = "".join(f" with {_spoken(spec)}" for spec in variants)
        found[name] = f"{head}{said}{with_}".strip()
    return found


def _spoken(spec: Any) -> str:
    [(name, options)] = spec.items()
    return f"{name} {', '.join(f'{k}: {v}' for k, v in options.items())}".strip()
