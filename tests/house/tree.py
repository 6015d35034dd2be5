"""A checkout as the house rules see it: its files, its modules, and what each file imports."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGES = ("analysis", "hardware_profiles", "sim", "workloads")
NEVER_TRACKED = {".git", ".venv", "__pycache__", ".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache", "shared"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported name: the module it comes from, the line, and whether it waits inside a function."""

    target: str
    line: int
    late: bool


@dataclass(frozen=True)
class Source:
    """One Python file: its path relative to the root and its text."""

    path: str
    text: str

    @cached_property
    def module(self) -> str:
        """The dotted name under which the file is imported."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, self.path)

    @property
    def is_package(self) -> bool:
        """Whether the file is a package's __init__."""
        return self.path.endswith("/__init__.py")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the parsed file."""
        return list(ast.walk(self.tree))

    @cached_property
    def functions(self) -> list[Function]:
        """Every function and method, nested ones too."""
        return [n for n in self.nodes if isinstance(n, Function)]

    @cached_property
    def late(self) -> set[int]:
        """Identities of the nodes that do not run on import: bodies of functions and of `if TYPE_CHECKING`."""
        guards = (n for n in self.nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
        return {id(n) for waiting in (*self.functions, *guards) for n in ast.walk(waiting)}


@dataclass(frozen=True)
class Tree:
    """A checkout: what a clone of it would hold."""

    root: Path

    @cached_property
    def files(self) -> list[str]:
        """Paths of all files that are, or on `git add` would be, tracked; a plain walk where there is no git."""
        listed = _git_files(self.root)
        return sorted(p for p in (_walk(self.root) if listed is None else listed) if (self.root / p).is_file())

    @cached_property
    def sources(self) -> list[Source]:
        """The Python files of the four packages."""
        paths = [p for p in self.files if p.endswith(".py") and p.split("/")[0] in PACKAGES]
        return [Source(p, (self.root / p).read_text("utf-8")) for p in paths]

    @cached_property
    def modules(self) -> set[str]:
        """Dotted names of every module of the four packages."""
        return {s.module for s in self.sources}

    @cached_property
    def imports(self) -> list[tuple[Source, Import]]:
        """Every import of every file; `from package import module` counts as the module, relative ones are resolved."""
        return [
            (source, Import(target, node.lineno, id(node) in source.late))
            for source in self.sources
            for node in source.nodes
            if isinstance(node, ast.Import | ast.ImportFrom)
            for target in self._targets(source, node)
        ]

    def _targets(self, source: Source, node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [a.name for a in node.names]
        base = node.module or ""
        if node.level:
            parts = source.module.split(".")
            base = ".".join([*parts[: len(parts) - node.level + source.is_package], base]).rstrip(".")
        names = [f"{base}.{a.name}" for a in node.names]
        return [name if name in self.modules else base for name in names]


def _git_files(root: Path) -> list[str] | None:
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return None


def _walk(root: Path) -> list[str]:
    paths = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    return [p.as_posix() for p in paths if not NEVER_TRACKED & set(p.parts)]


def within(module: str, names: tuple[str, ...] | str) -> bool:
    """Whether a module is one of the names or lies below one."""
    return any(module == n or module.startswith(n + ".") for n in ((names,) if isinstance(names, str) else names))
