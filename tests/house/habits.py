"""How the files are written: banned calls, long functions, missing docstrings, places of one machine, weight.

A rule takes a tree and yields faults, each one line "FILE:LINE: what is wrong". Run as a program it prints how
long the functions are: `PYTHONPATH=tests python -m house.habits`.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from house.diagram import read
from house.layers import is_command_line
from house.tree import Function, Source, Tree, within

LONGEST_FUNCTION_LINES = 60
LARGEST_REPOSITORY_BYTES = 40_000_000

STREAMS = {"PCG64", "PCG64DXSM", "Philox", "SeedSequence", "default_rng"}
ADDRESSED = STREAMS | {"BitGenerator", "Generator"}
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
STOPWATCH = {f"time.{name}{unit}" for name in ("perf_counter", "process_time", "monotonic") for unit in ("", "_ns")}
ABSOLUTE = re.compile(r"(?<![\w./:~-])/(?:work|home|root|Users|tmp|mnt|srv|workspace)/[\w.~-]+|\b[A-Z]:\\+Users\b")


def luck(tree: Tree) -> Iterator[str]:
    """No global random state: no `random`, no `np.random.seed` and friends, no generator without a seed."""
    for source, i in tree.imports:
        if within(i.target, "random"):
            yield f"{source.path}:{i.line}: the random module is global state"
    for source in tree.sources:
        for node in source.nodes:
            yield from _unaddressed(source, node)


def _unaddressed(source: Source, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
        if node.attr not in ADDRESSED:
            yield f"{source.path}:{node.lineno}: np.random.{node.attr} is global state"
    elif isinstance(node, ast.ImportFrom) and node.module == "numpy.random":
        for name in {a.name for a in node.names} - ADDRESSED:
            yield f"{source.path}:{node.lineno}: numpy.random.{name} is global state"
    elif isinstance(node, ast.Call) and _last(node.func) in STREAMS and not node.args and not node.keywords:
        yield f"{source.path}:{node.lineno}: {ast.unparse(node)} has no seed"


def _last(function: ast.expr, words: int = 1) -> str:
    return ".".join(ast.unparse(function).split(".")[-words:])


def silence(tree: Tree) -> Iterator[str]:
    """No print and no sys.stdout below the command line."""
    for source in tree.sources:
        for node in [] if is_command_line(source) else source.nodes:
            called = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            if called or (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdout"):
                yield f"{source.path}:{node.lineno}: printing below the command line"  # type: ignore[attr-defined]


def no_now(tree: Tree) -> Iterator[str]:
    """No wall clock below the command line; a stopwatch only in the witness and from the deciding line up."""
    diagram = read(tree.root)
    for source in tree.sources:
        measures = within(source.module, "sim.reference") or diagram.line_of(source.module) >= diagram.deciding
        banned = WALL_CLOCK if measures else WALL_CLOCK | STOPWATCH
        for node in [] if is_command_line(source) else source.nodes:
            if isinstance(node, ast.Call) and _last(node.func, 2) in banned:
                yield f"{source.path}:{node.lineno}: {ast.unparse(node.func)}() below the command line"


def short(tree: Tree) -> Iterator[str]:
    """No function is longer than 60 lines."""
    for source in tree.sources:
        for function in source.functions:
            if (lines := length_lines(function)) > LONGEST_FUNCTION_LINES:
                allowed = f"at most {LONGEST_FUNCTION_LINES} are allowed"
                yield f"{source.path}:{function.lineno}: {function.name} has {lines} lines, {allowed}"


def length_lines(function: Function) -> int:
    """Lines from `def` to the last statement; docstring and blank lines included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def documented(tree: Tree) -> Iterator[str]:
    """Every public module, class, function and method says what it is."""
    for source in tree.sources:
        if not ast.get_docstring(source.tree):
            yield f"{source.path}:1: module without a docstring"
        for node in _public(source.tree):
            if not ast.get_docstring(node):
                yield f"{source.path}:{node.lineno}: {node.name} without a docstring"


def _public(scope: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    for node in scope.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def portable(tree: Tree) -> Iterator[str]:
    """No text file names a place on one machine."""
    for path in tree.files:
        for number, line in enumerate(_text_lines(tree.root / path), 1):
            if found := ABSOLUTE.search(line):
                yield f"{path}:{number}: {found[0]} is a place on one machine"


def _text_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").split("\n")
    except UnicodeDecodeError:
        return []


def light(tree: Tree) -> Iterator[str]:
    """The files of a clone take less than 40 MB."""
    sizes = {p: (tree.root / p).stat().st_size for p in tree.files}
    total = sum(sizes.values())
    if total >= LARGEST_REPOSITORY_BYTES:
        largest = max(sizes, key=lambda p: sizes[p])
        yield f"{largest}:1: {sizes[largest]:,} of {total:,} bytes; less than {LARGEST_REPOSITORY_BYTES:,} are allowed"


def report(tree: Tree) -> str:
    """How much code there is and how long its functions are, in one line."""
    lengths = sorted(length_lines(f) for s in tree.sources for f in s.functions) or [0]
    p90 = lengths[int(0.9 * (len(lengths) - 1))]
    code = sum(s.text.count("\n") for s in tree.sources)
    return (
        f"{len(tree.sources)} files, {code} lines, {len(lengths)} functions: "
        f"median {statistics.median(lengths):g} lines, p90 {p90}, longest {lengths[-1]}"
    )


if __name__ == "__main__":
    sys.stdout.write(report(Tree(Path(".").resolve())) + "\n")
