"""The diagram of docs/design.md section 2 as a table of lines: the page is the rule, this only reads it.

A line of the diagram reads "ROOM/  name  name   what they are for" or names whole files and folders
("sim/policies/  sim/schedulers/", "sim/plan.py sweep.py"); columns are two blanks or more apart. A file that the
diagram does not name stands on the lowest line of its room; a package's own __init__ on the highest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from house.tree import within

PLACE = re.compile(r"[a-z]\w*(?:/\w+)*(?:/|\.py)|[a-z]\w*")


@dataclass(frozen=True)
class Diagram:
    """Dotted names by line, bottom line first; a name stands for itself and all below it."""

    lines: tuple[frozenset[str], ...]

    def line_of(self, module: str) -> int:
        """The line on which a module stands, 0 at the bottom."""
        if module in ("sim", "sim.__main__"):
            return self.deciding if module == "sim" else len(self.lines) - 1
        below = [rank for rank, names in enumerate(self.lines) for n in names if n.startswith(module + ".")]
        if below:
            return max(below)
        named = [rank for rank, names in enumerate(self.lines) if within(module, tuple(names))]
        return max(named) if named else self._lowest(module)

    def _lowest(self, module: str) -> int:
        room = module.rpartition(".")[0]
        mates = [rank for rank, names in enumerate(self.lines) for n in names if n.rpartition(".")[0] == room != "sim"]
        return min(mates, default=0)

    @property
    def deciding(self) -> int:
        """The line of runs and plans, above every simulator."""
        return next(rank for rank, names in enumerate(self.lines) if "sim.run" in names)

    @property
    def clocked(self) -> frozenset[str]:
        """The files that may import simpy."""
        return next(names for names in self.lines if "sim.serving.replica" in names)


def read(root: Path) -> Diagram:
    """The diagram of a checkout: the first fenced block after "## 2." of its docs/design.md."""
    block = (root / "docs/design.md").read_text("utf-8").split("## 2.")[1].split("```")[1]
    lines: list[frozenset[str]] = []
    room = ""
    for text in filter(str.strip, block.splitlines()):
        room, names = _names(text, room)
        if names:
            lines.insert(0, names)
    return Diagram(tuple(lines))


def _names(text: str, room: str) -> tuple[str, frozenset[str]]:
    """The room in force after a line of the diagram, and the dotted names that it places."""
    words: list[str] = []
    for column in re.split(r"\s{2,}", text.strip()):
        found = column.split()
        if not all(PLACE.fullmatch(w) for w in found) or (len(found) > 1 and not all(w.endswith(".py") for w in found)):
            break  # the rest says what they are for
        words += found
    bare = [w for w in words if not w.endswith(("/", ".py"))]
    if words and words[0].endswith("/") and bare:
        room = words.pop(0)
    folder = ""
    names = []
    for word in words:
        path = f"{room}{word}" if word in bare else word if "/" in word else f"{folder}{word}"
        folder = path[: path.rfind("/") + 1]
        names.append(path.removesuffix(".py").rstrip("/").replace("/", "."))
    return room, frozenset(names)
