"""What a scenario offers to be tuned: longer and shorter drafts, other trees, fewer bits, smaller slices of its model.

Only what the scenario itself makes known is varied. Another draft model would have another acceptance rate, which
nobody stated; ``--over`` takes any key and states it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import yaml

from sim import names
from sim.build import load_shape
from sim.plugin import discover
from sim.scenario import Scenario
from sim.variants import build as build_variants
from sim.variants.matformer import Matformer
from sim.variants.mix_n_match import mixes as mix_n_match

__all__ = ["FORMATS", "Choice", "choices_of"]

FORMATS = ("int8", "awq", "fp8", "smoothquant")
GAMMAS = (*range(1, 9), 10, 12, 16)
NODES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Choice:
    """What to call it, and the settings that make it."""

    label: str
    settings: tuple[str, ...]


def choices_of(scenario: Scenario, mixes: int = 0) -> list[Choice]:
    """Every combination of the scenario's ways to decode, formats and slices, but the scenario as it is.

    ``mixes``: Mix'n'Match models beside the four sizes, where the model can be sliced. Raises ValueError where mixes
    are asked of a model that cannot.
    """
    policies = [Choice("", ()), *_policies(scenario)]
    variants = [Choice("", ()), *(_with(scenario, one) for one in (*_formats(scenario), *_slices(scenario, mixes)))]
    found = []
    for policy, variant in product(policies, variants):
        label = ", ".join(part for part in (policy.label, variant.label) if part)
        if label:
            found.append(Choice(label, (*policy.settings, *variant.settings)))
    return found


def _policies(scenario: Scenario) -> Iterator[Choice]:
    """Plain decoding, and the policy with other lengths of draft or sizes of tree."""
    said, _ = names.expand(scenario.policy, [])
    options = dict(said) if isinstance(said, Mapping) else {"name": said}
    name = str(options["name"])
    if name != "autoregressive":
        yield Choice("autoregressive", ("policy=autoregressive",))
    known = discover("sim.policies").get(name)
    has = {f.name: f.default for f in fields(known)} if known is not None else {}
    if "gamma" in has and not isinstance(options.get("gamma", has["gamma"]), list):
        for gamma in GAMMAS:
            if gamma != options.get("gamma", has["gamma"]):
                yield _policy({**options, "gamma": gamma}, f"{name} gamma {gamma}")


    if name == "tree" and options.get("acceptance") is None:  # measured for one tree, it says nothing of another
        for nodes in NODES:
            yield _policy({**options, "tree": {"nodes": nodes, "by": "greedy"}}, f"tree of {nodes} nodes")


def _policy(options: dict[str, Any], label: str) -> Choice:
    return Choice(label, (f"policy={_yaml(options)}",))


def _formats(scenario: Scenario) -> Iterator[Any]:
    """Number formats, unless the scenario has chosen one."""
    if not any(_is(spec, "quantization") for spec in _own(scenario)):
        yield from ({"quantization": {"format": name}} for name in FORMATS)


def _slices(scenario: Scenario, mixes: int) -> Iterator[Any]:
    """MatFormer sizes, where the scenario says that its model is nested (``variants: [matformer: ...]``) or mixes are
    asked for: a slice of a model that was not trained for it is noise.
    """
    given = [spec for spec in _own(scenario) if _is(spec, "matformer")]
    if not given and not mixes:
        return
    shape = load_shape(scenario.model, "model")
    used = build_variants(given)
    sizes: list[Any] = [size for size in ("S", "M", "L", "XL") if Matformer(size) not in used]
    if mixes:
        sizes += [list(mix.sizes) for mix in mix_n_match(shape, mixes) if len(set(mix.sizes)) > 1]
    yield from ({"matformer": {"size": size}} for size in sizes)


def _with(scenario: Scenario, spec: Any) -> Choice:
    """The scenario's variants with one of this kind replaced or added."""
    [(name, options)] = spec.items()
    rest = [one for one in _own(scenario) if not _is(one, name)]
    label = ", ".join(_short(value) for value in options.values())
    return Choice(f"{name} {label}", (f"variants={_yaml([*rest, spec])}",))


def _own(scenario: Scenario) -> list[Any]:
    return list(scenario.variants)


def _is(spec: Any, name: str) -> bool:
    return spec == name or (isinstance(spec, Mapping) and (name in spec or spec.get("name") == name))


def _short(value: Any) -> str:
    """A list of sizes by how often each comes: ``12 x S + 4 x L``."""
    if not isinstance(value, list):
        return str(value)
    return " + ".join(f"{value.count(size)} x {size}" for size in dict.fromkeys(value))


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 30).strip()
