"""Variants: rewrite the ops of one forward pass. One per file; found by name, never registered.

A variant is a frozen dataclass with a class attribute ``name``, whose fields are its options in a scenario, and with
at least one of the methods of :class:`Variant`. Variants compose in a list, applied from first to last;
``sim.analytic.cost.PassCost`` takes the list. ``tests/test_conformance_variants.py`` says what each of them owes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from sim import plugin
from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import Precision
from sim.analytic.work import Work

__all__ = ["METHODS", "Variant", "build", "check_clashes"]

METHODS = ("reshape", "reformat", "resident", "cached", "rewrite", "bound")


class Variant(Protocol):
    """What a variant may do; a method that it does not have changes nothing.

    Counts of rewritten ops stay elementwise functions of the columns that their ``driver`` names, so that a round
    costs the same alone and among others. Attention ops that stay linear in pairs, reads and tokens stay fast.

    It may also have ``quality`` (sim/quality.py; absent where it is lossless), ``clashes`` (names of variants and
    policies that it cannot go with, and why) and ``nested`` (True: a slice of the model, whose weights are the
    model's own; what it adds in ``resident`` under new names is counted). ``stage`` orders them whatever the list says:
    number formats (0) before what chooses among the numbers (1, the default) before where they lie (2). One that a
    policy puts on a draft may have ``beside(target)``: what stands for it where the target has this shape (a tandem's
    projections).
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

    def cached(self, bytes_per_token: tuple[float, ...]) -> tuple[float, ...]:
        """KV bytes that a token takes in memory, by attention kind (a cache that lies elsewhere)."""
        ...

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """The ops of one pass on one device: counts changed, ops added or taken away."""
        ...

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> Any:
        """What stands for it on one device, where ``resident``, ``cached`` and ``rewrite`` need to know that."""
        ...


def build(specs: Sequence[Any], package: str = "sim.variants", key: str = "variants") -> tuple[Any, ...]:
    """The variants that a scenario's list under ``key`` asks for, each a name or ``{name: {option: value}}``.

    Raises ValueError naming entry, value and what is allowed, or which two do not go together, and why.
    """
    if isinstance(specs, (str, Mapping)) or not isinstance(specs, Sequence):
        raise ValueError(f"{key}: {specs!r} must be a list of names or of NAME: {{options}}")
    built = tuple(plugin.build(package, f"{key}[{i}]", _named(f"{key}[{i}]", spec)) for i, spec in enumerate(specs))
    check_clashes(built, key)
    return built


def check_clashes(plugins: Sequence[Any], key: str = "variants") -> None:
    """Raise ValueError where one of them says (``clashes``: name -> reason) that it cannot go with another."""
    for one in plugins:
        clashes: Mapping[str, str] = getattr(one, "clashes", {})
        for other in plugins:
            if other is not one and other.name in clashes:
                raise ValueError(f"{key}: {one.name} cannot go with {other.name}: {clashes[other.name]}")


def _named(entry: str, spec: Any) -> Any:
    """``{name: {options}}`` as the mapping with a ``name`` key that plug-ins are built from."""
    if isinstance(spec, str) or (isinstance(spec, Mapping) and "name" in spec):
        return spec
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ValueError(f"{entry}: {spec!r} must be a name or NAME: {{options}}")
    [(name, options)] = spec.items()
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"{entry}.{name}: {options!r} must be a mapping of options")
    return {**(options or {}), "name": name}
