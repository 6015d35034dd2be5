"""Variants: rewrite the ops of one forward pass. One per file; found by name, never registered.

A variant is a frozen dataclass with a class attribute ``name``, whose fields are its options in a scenario, and with
at least one of the methods of :class:`Variant`. Variants compose in a list, applied from first to last;
``sim.analytic.cost.PassCost`` takes the list. ``tests/test_conformance_variants.py`` says what each of them owes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from sim import plugin
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import Precision
from sim.analytic.work import Work

__all__ = ["METHODS", "Variant", "build"]

METHODS = ("reshape", "reformat", "resident", "rewrite")


class Variant(Protocol):
    """What a variant may do; a method that it does not have changes nothing.

    Counts of rewritten ops stay elementwise functions of the columns that their ``driver`` names, so that a round
    costs the same alone and among others. Attention ops that stay linear in pairs, reads and tokens stay fast.
    """

    name: ClassVar[str]

    def reshape(self, shape: ModelShape) -> ModelShape:
        """Another shape (a MatFormer slice, an early exit), before it is cut over devices."""
        ...

    def reformat(self, precision: Precision) -> Precision:
        """Other number formats (quantization)."""
        ...

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """Bytes that the weights take in memory by op name, of one device (adapters, predictors, pruned weights)."""
        ...

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """The ops of one pass on one device: counts changed, ops added or taken away."""
        ...


def build(specs: Sequence[Any], package: str = "sim.variants") -> tuple[Any, ...]:
    """The variants that a scenario's ``variants:`` list asks for, each a name or ``{name: {option: value}}``.

    Raises ValueError naming entry, value and what is allowed.
    """
    if isinstance(specs, (str, Mapping)) or not isinstance(specs, Sequence):
        raise ValueError(f"variants: {specs!r} must be a list of names or of NAME: {{options}}")
    return tuple(plugin.build(package, f"variants[{i}]", _named(i, spec)) for i, spec in enumerate(specs))


def _named(index: int, spec: Any) -> Any:
    """``{name: {options}}`` as the mapping with a ``name`` key that plug-ins are built from."""
    if isinstance(spec, str) or (isinstance(spec, Mapping) and "name" in spec):
        return spec
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ValueError(f"variants[{index}]: {spec!r} must be a name or NAME: {{options}}")
    [(name, options)] = spec.items()
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"variants[{index}].{name}: {options!r} must be a mapping of options")
    return {**(options or {}), "name": name}
