"""Kernel profiles: fitted terms of a measured device by kernel library, and what stands in for a device never measured.

``kernels/DEVICE.yaml`` holds the libraries of one device, ``kernels/classes.yaml`` which device stands in for which,
``kernels/generic.yaml`` what all measured devices have in common. docs/calibration.md says what each key means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from hardware_profiles.check import Items, Number, Rule, Table, Text, check, did_you_mean
from hardware_profiles.schema import SHARE, TERMS
from hardware_profiles.strict_yaml import read

__all__ = ["GROUPS", "LIBRARIES", "check_kernels", "kernels", "measured", "read_kernels", "textbook_ratios"]

Profile = dict[str, Any]
GROUPS = ("matmul", "decode_attention", "prefill_attention")
LIBRARIES = ("trtllm", "vllm", "sglang")
WIDER = {"sibling": 1.15, "class": 1.5}

TIME = Number(closed=True, most=1e9)
FINER: dict[str, Rule] = {
    "depth_limit": Number(above=1, most=1e9, infinite=True),
    "tile_rows": Number(closed=True, above=1, most=4096, whole=True),
    "wave_columns": Number(closed=True),
    "output": Number(closed=True, most=1e3),
    "tile_tokens": Number(closed=True, most=1e5),
    "walk_ns": TIME,
    "sequence_ns": TIME,
    "split_us": TIME,
    "split_tokens": Number(above=0.1, most=1e7),
    "hot_share": Number(closed=True, most=1),
    "hot_cost": SHARE,
}
SPAN = Items(Number(closed=True, infinite=True), length=2)
JUDGED = Table({"rows": Number(closed=True, whole=True), "judged": Number(closed=True, whole=True),
                "median_percent": Number(closed=True), "p90_percent": Number(closed=True)})  # fmt: skip
RATIO = Items(Number(above=1e-6, most=1e6), length=3)
RANGES = Table({}, dict.fromkeys(("m", "n", "k", "batch", "context", "heads", "head_dim", "sent_bytes"),
                                 Items(Number(closed=True, most=1e18), length=2)))  # fmt: skip
ENTRY = Table(
    {key: rule for key, rule in TERMS.items() if key != "floor_us"} | {"floor_us": TIME},
    {
        **FINER,
        "provenance": Text(),
        "interval": Table({}, dict.fromkeys({**TERMS, **FINER}, SPAN)),
        "fit": JUDGED,
        "ratio": RATIO,
        "range": RANGES,
    },
)
WIRE = Table({"small_us": TIME, "small_efficiency": Number(above=1e-6, most=2), "large_us": TIME,
              "large_efficiency": Number(above=1e-6, most=2)},
             {"fit": JUDGED, "ratio": RATIO, "range": RANGES})  # fmt: skip


def kernels(device: str, library: str) -> Profile:
    """Groups, formats, head layouts and collectives of ``device`` under ``library``, whole: gaps filled in as above.

    ``library`` may be the path of a kernel profile. ``source`` says where from. Device names are those of
    ``hardware_profiles.load``. Raises ValueError for another library.
    """
    is_file = library.lower().endswith((".yaml", ".yml"))
    if library not in LIBRARIES and not is_file:
        allowed = did_you_mean(library, LIBRARIES)
        raise ValueError(f"kernels: {library[:80]!r} is no kernel library{allowed}, or a profile's path")
    layers = [(read_kernels(library), ""), (_generic(), "class")] if is_file else _layers(device)
    own, how = layers[0]
    found: Profile = {group: {} for group in (*GROUPS, "collectives")}
    for profile, distance in layers:
        said = profile["device"] if distance != "class" else "all measured GPUs"
        for name in _order(library, profile["libraries"]):
            _fill(found, profile["libraries"][name], distance, said, name)
    source = {"": "measured", "sibling": f"from its sibling {own['device']}", "class": "class default"}[how]
    return {**found, "elementwise": _generic()["elementwise"], "source": f"{device}, {library} kernels: {source}"}


def _order(library: str, sections: Mapping[str, Any]) -> list[str]:
    """Sections from the library asked for to the others; older versions of any come last."""
    ranked = (library, *LIBRARIES)
    return sorted(sections, key=lambda name: ("@" in name, ranked.index(name) if name in ranked else len(ranked), name))


def textbook_ratios() -> dict[str, dict[str, list[float]]]:
    """10th, 50th and 90th percentile of measured over the datasheet's seconds, by group and format (``any``: all)."""
    found: dict[str, dict[str, list[float]]] = _generic()["textbook"]
    return found


def measured() -> list[str]:
    """The devices that have a kernel profile of their own."""
    names = (file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))
    return sorted(name for name in names if name not in ("classes", "generic"))


def read_kernels(path: str | PathLike[str]) -> Profile:
    """A kernel profile of a file, checked. Raises ValueError, one line."""
    file = Path(fspath(path))
    profile = read(file, file.name)
    check_kernels(profile, file.name)
    return profile


def check_kernels(profile: Profile, file: str) -> None:
    """Raise ValueError, one line naming file and key, unless ``profile`` is a sane kernel profile."""
    for key in ("device", "measurements", "libraries"):
        if key not in profile:
            raise ValueError(f"{file}: {key} is missing")
    if not isinstance(profile["libraries"], dict):
        raise ValueError(f"{file}: libraries: must be a mapping of library names")
    for library, sections in profile["libraries"].items():
        for group, name, key, entry in _entries(sections, f"{file}: libraries.{library}"):
            where = f"{file}: libraries.{library}.{group}.{name}.{key}"
            check(entry, WIRE if group == "collectives" else ENTRY, where)
            for term, (low, high) in entry.get("interval", {}).items():
                if not low <= entry[term] <= high:
                    raise ValueError(f"{where}.{term} is {entry[term]}, outside its own interval [{low}, {high}]")


def _entries(sections: Any, where: str) -> Iterator[tuple[str, str, str, Profile]]:
    if not isinstance(sections, dict):
        raise ValueError(f"{where}: must be a mapping of {', '.join(GROUPS)}, collectives")
    for group, formats in sections.items():
        if group not in (*GROUPS, "collectives"):
            raise ValueError(f"{where}.{group} is no known key{did_you_mean(group, (*GROUPS, 'collectives'))}")
        for name, entries in formats.items():
            if not isinstance(entries, dict) or (group != "collectives" and "any" not in entries):
                raise ValueError(f"{where}.{group}.{name}: must have an entry 'any'")
            for key, entry in entries.items():
                yield group, str(name), str(key), entry


def _fill(found: Profile, sections: Profile, distance: str, device: str, library: str) -> None:
    for group in (*GROUPS, "collectives"):
        for name, entries in sections.get(group, {}).items():
            if name not in found[group]:
                said = f"{device}, {library}" + (f" ({distance})" if distance else "")
                found[group][name] = {key: _wider(entry, distance, said) for key, entry in entries.items()}


def _wider(entry: Mapping[str, Any], distance: str, said: str) -> Profile:
    """The entry with its intervals widened by what a stand-in may be wrong by."""
    factor = WIDER.get(distance, 1.0)
    if "compute" not in entry:
        low, middle, high = entry.get("ratio") or (1.0, 1.0, 1.0)
        return {**entry, "ratio": [low / factor, middle, high * factor]} if "ratio" in entry else dict(entry)
    spans = {}
    for key, (low, high) in entry.get("interval", {}).items():
        rule = {**TERMS, **FINER}[key]
        most = rule.most if isinstance(rule, Number) else float("inf")
        spans[key] = [low / factor, max(entry[key], min(high * factor, most))]
    return {**entry, "interval": spans, "provenance": said}


@cache
def _layers(device: str) -> list[tuple[Profile, str]]:
    """What is known of a device, the closest first: its own profile, its sibling's, what all have in common."""
    own = [(_shipped(device), "")] if device in measured() else []
    siblings: Mapping[str, list[str]] = read(_folder() / "classes.yaml", "classes.yaml")["siblings"]
    like = [(_shipped(name), "sibling") for name, members in siblings.items() if device in members]
    return [*own, *like, (_generic(), "class")]


def _generic() -> Profile:
    return _shipped("generic")


@cache
def _shipped(name: str) -> Profile:
    profile = read(_folder() / f"{name}.yaml", f"kernels/{name}.yaml")
    check_kernels(profile, f"kernels/{name}.yaml")
    return profile


def _folder() -> Traversable:
    return files("hardware_profiles") / "kernels"
