"""JSON Schema of a scenario, for editors: every key, every plug-in with its options, every kind of workload."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from sim.plugin import discover
from workloads.keys import (
    ARRIVAL_ALIASES,
    ARRIVALS,
    CLOSED,
    LENGTHS,
    MIX,
    POSITIVE,
    SYNTHETIC,
    TRACE,
    Flag,
    Nested,
    Number,
    Rule,
    Table,
    Text,
)

__all__ = ["complete"]

Json = dict[str, Any]
TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}
NAMED = {"policy": "sim.policies", "scheduler": "sim.schedulers", "router": "sim.routers"}


def complete(schema: Json) -> Json:
    """A scenario's own schema (pydantic's) with what its open places stand for."""
    properties = schema["properties"]
    for key, package in NAMED.items():
        said = properties[key]
        unset = [{"type": "null"}] if said.get("default", "") is None else []
        properties[key] = {"default": said.get("default"), "anyOf": [*_plugins(package), *unset]}
    for router in properties["router"]["anyOf"][1:]:
        router["properties"]["stale_s"] = {"type": "number", "minimum": 0, "default": 0}  # of every router
    properties["variants"]["items"] = {"anyOf": _variants()}
    properties["workload"] = workload()
    for key, names in _names().items():
        properties[key]["examples"] = names
    return schema


def workload() -> Json:
    """A trace, synthetic traffic, a mix of both, or a closed loop of either."""
    kinds = {
        "a recorded trace": _object(TRACE, ["trace"]),
        "synthetic traffic": _object(SYNTHETIC, []),
        "a closed loop of users": _object({**TRACE, **SYNTHETIC, **CLOSED}, ["concurrency"]),
    }
    share = {"weight": POSITIVE}
    part = {"anyOf": [_object({**TRACE, **share}, ["trace"]), _object({**SYNTHETIC, **share}, [])]}
    mix = _object({name: rule for name, rule in MIX.items() if name != "mix"}, ["mix"])
    mix["properties"]["mix"] = {"type": "array", "minItems": 1, "maxItems": 255, "items": part}
    return {"anyOf": [{"title": title, **kind} for title, kind in {**kinds, "a mix": mix}.items()]}


def _object(table: Table, required: list[str]) -> Json:
    properties = {name: _rule(name, rule) for name, rule in table.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _rule(name: str, rule: Rule) -> Json:
    if isinstance(rule, Number):
        return _number(rule)
    if isinstance(rule, Flag):
        return {"type": "boolean"}
    if isinstance(rule, Text):
        choices: Json = {"enum": list(rule.choices)} if rule.choices else {"minLength": 1}
        return {"type": "string", **choices, **({"examples": _traces()} if name == "trace" else {})}
    assert isinstance(rule, Nested)
    if name == "arrivals":
        return _kinds(ARRIVALS, [*ARRIVALS, *ARRIVAL_ALIASES], [{"enum": [*ARRIVALS, *ARRIVAL_ALIASES]}])
    if name in ("prompt", "output"):
        return _kinds(LENGTHS, list(LENGTHS), [{"type": "integer", "minimum": 1, "maximum": 10**8}])
    return {"description": rule.allowed}


def _number(rule: Number) -> Json:
    limits = {"exclusiveMinimum": rule.above, "minimum": rule.at_least, "maximum": rule.at_most}
    out: Json = {"type": "integer" if rule.whole else "number"}
    out |= {key: limit for key, limit in limits.items() if limit is not None and math.isfinite(limit)}
    return {"anyOf": [out, {"enum": ["inf"]}]} if rule.inf else out


def _kinds(tables: Mapping[str, Table], names: list[str], short: list[Json]) -> Json:
    """One of some short forms, or {kind: NAME, ...} with that kind's options."""
    found = []
    for kind, table in tables.items():
        one = _object(table, ["kind"])
        spelled = [kind, *(alias for alias, name in ARRIVAL_ALIASES.items() if name == kind and alias in names)]
        one["properties"] = {"kind": {"enum": spelled}, **one["properties"]}
        found.append(one)
    return {"anyOf": [*short, *found]}


def _plugins(package: str) -> list[Json]:
    """A name, or a mapping of name and options."""
    known = discover(package)
    return [{"type": "string", "enum": list(known)}, *(_plugin(name, plugin) for name, plugin in known.items())]


def _plugin(name: str, plugin: type) -> Json:
    options = {f.name: _option(f) for f in fields(plugin)}
    return {
        "type": "object",
        "title": name,
        "properties": {"name": {"const": name}, **options},
        "required": ["name"],
        "additionalProperties": False,
    }


def _option(f: Field[Any]) -> Json:
    """What the annotation says; a default that JSON cannot hold is left out."""
    words = str(f.type).replace(" ", "").split("|")
    kinds = [TYPES.get(word, "null" if word == "None" else "") for word in words]
    out: Json = {"type": kinds if len(kinds) > 1 else kinds[0]} if all(kinds) else {}
    if f.default is not MISSING and isinstance(f.default, str | int | float | bool | None):
        out["default"] = f.default
    return out


def _variants() -> list[Json]:
    """A name, {name: NAME, ...options}, or {NAME: {...options}}."""
    found = _plugins("sim.variants")
    for name, plugin in discover("sim.variants").items():
        options = {**_plugin(name, plugin), "required": []}
        options["properties"] = {k: v for k, v in options["properties"].items() if k != "name"}
        one = {"type": "object", "properties": {name: options}, "required": [name], "additionalProperties": False}
        found.append(one)
    return found


def _names() -> dict[str, list[str]]:
    import hardware_profiles
    from workloads import models

    return {"model": models.names(), "hardware": hardware_profiles.names(), "engine": hardware_profiles.engine_names()}


def _traces() -> list[str]:
    from workloads import shipped

    return list(shipped())
