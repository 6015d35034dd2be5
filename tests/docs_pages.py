"""Reads pages (Markdown, notebooks) as code blocks and runs them; a failure names page and line."""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import subprocess
import sys
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

RUNNABLE = ("python", "console", "bash")
ALIASES = {"py": "python", "python3": "python", "pycon": "python", "sh": "bash", "shell": "bash", "zsh": "bash"}
LONGEST_COMMAND_S = 300
FENCE = re.compile(
    r"(?:^[ ]*<!--\s*not executed(?P<colon>:?)\s*(?P<reason>.*?)\s*-->[ ]*\n\n?)?"
    r"^(?P<indent>[ ]*)```(?P<language>[\w+-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class PageError(AssertionError):
    """A block did not do what its page shows; the message starts with PAGE:LINE."""


@dataclass(frozen=True)
class Block:
    """One block of code: page, line of its first line of code, language, text, and why it is not run, if it is not."""

    page: str
    line: int
    language: str
    text: str
    skipped: str | None = None

    @property
    def place(self) -> str:
        """PAGE:LINE."""
        return f"{self.page}:{self.line}"


def blocks(path: Path, page: str) -> list[Block]:
    """The runnable blocks of a page; PageError for a language that would be passed over, or a skip without a reason."""
    text = path.read_text("utf-8")
    return _cells(text, page) if path.suffix == ".ipynb" else _fences(text, page)


def _fences(text: str, page: str) -> list[Block]:
    found = []
    for m in FENCE.finditer(text):
        language, line = m["language"], text.count("\n", 0, m.start("text")) + 1
        if language in ALIASES:
            raise PageError(f"{page}:{line}: ```{language} is not run; write ```{ALIASES[language]}")
        if m["reason"] == "":
            raise PageError(f"{page}:{line}: `not executed` without a reason")
        if language in RUNNABLE:
            found.append(Block(page, line, language, textwrap.dedent(m["text"]), m["reason"]))
    return found


def _cells(text: str, page: str) -> list[Block]:
    cells = json.loads(text)["cells"]
    code = [(n, "".join(c["source"])) for n, c in enumerate(cells, 1) if c["cell_type"] == "code"]
    return [Block(f"{page}[cell {n}]", 1, "python", source) for n, source in code]


def run(found: list[Block], folder: Path, root: Path) -> None:
    """Run the blocks of one page in order, in `folder` and one namespace; PageError at the first that fails."""
    module = ModuleType("page")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        for block in found:
            if block.skipped is None:
                _run_block(block, module, folder, root)
    finally:
        del sys.modules[module.__name__]
    _uncalled([b for b in found if b.language == "python" and b.skipped is None])


def _run_block(block: Block, module: ModuleType, folder: Path, root: Path) -> None:
    if block.language == "console":
        for line, command, wanted in _session(block):
            shown = _shell(f"{block.page}:{line}", command, folder, root)
            if wanted.strip() and not doctest.OutputChecker().check_output(wanted, shown, LOOSELY):
                raise PageError(f"{block.page}:{line}: $ {command}\nthe page shows:\n{wanted}\nbut it prints:\n{shown}")
    elif block.language == "bash":
        _shell(block.place, block.text, folder, root)
    else:
        _python(block, module)


def _python(block: Block, module: ModuleType) -> None:
    try:
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), module.__dict__)
    except SyntaxError as error:
        raise PageError(f"{block.page}:{error.lineno}: SyntaxError: {error.msg}") from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        shown = [n for n, frame in enumerate(frames) if frame.filename == block.page][-1]
        below = "".join(traceback.format_list(frames[shown + 1 :][-4:]))
        place = f"{block.page}:{frames[shown].lineno}"
        raise PageError(f"{place}: {type(error).__name__}: {error}\n{below}") from None


def _session(block: Block) -> list[tuple[int, str, str]]:
    """(line, command, output shown) of each `$ command` of a console block."""
    found: list[tuple[int, str, str]] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            found.append((number, line[2:], ""))
        elif not found:
            raise PageError(f"{block.page}:{number}: a console block begins with `$ command`")
        else:
            found[-1] = (*found[-1][:2], f"{found[-1][2]}{line}\n")
    return found


def _shell(place: str, command: str, folder: Path, root: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=_environment(folder, root),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_COMMAND_S,
    )
    if done.returncode:
        raise PageError(f"{place}: exit status {done.returncode}: {command}\n{done.stdout}")
    return done.stdout


def _environment(folder: Path, root: Path) -> dict[str, str]:
    """Plain terminal; `decodesim` is the checkout's where there is a checkout, else the installed command."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "MPLBACKEND": "Agg"}
    if (root / "sim").is_dir():
        paths.insert(0, str(_stand_in(folder)))
        env["PYTHONPATH"] = str(root)
    return {**env, "PATH": os.pathsep.join(paths)}


def _stand_in(folder: Path) -> Path:
    command = folder.parent / f"{folder.name}-bin" / "decodesim"
    if not command.exists():
        command.parent.mkdir()
        code = "import sys; from sim.cli import main; sys.argv[0] = 'decodesim'; sys.exit(main())"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
        command.chmod(0o755)
    return command.parent


def _uncalled(found: list[Block]) -> None:
    trees = [(b, ast.parse(b.text)) for b in found]
    used = {n.id for _, t in trees for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    for block, tree in trees:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name not in used:
                raise PageError(f"{block.page}:{block.line + node.lineno - 1}: {node.name} is shown but never called")
