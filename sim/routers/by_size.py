"""By size: short or unimportant requests to a small model, others to a larger one, by steps of one number.

A rule in the open, in place of the learned predictors of FrugalGPT (Chen et al. 2023, arXiv 2305.05176) or RouteLLM
(Ong et al. 2024, arXiv 2406.18665): what a smaller model's answer is worth is for the reader to say.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import Some, View, named


@dataclass(frozen=True)
class BySize:
    """``groups``: names of groups, from small to large. ``steps``: one fewer ascending numbers; a request whose prompt
    tokens or priority (``by``) reach k of them goes to group k, and within it by the router ``among``.
    """

    groups: tuple[str, ...]
    steps: tuple[int, ...]
    by: str = "prompt"
    among: str = "least_outstanding"
    name: ClassVar[str] = "by_size"
    pulls: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options; lists become tuples. Raises ValueError."""
        for option, kind in (("groups", str), ("steps", int)):
            said = getattr(self, option)
            if not isinstance(said, list | tuple) or any(type(one) is not kind for one in said) or not self.groups:
                words = "names of groups" if kind is str else "whole numbers"
                raise ValueError(f"router.{option}: {said!r}: must be a list of {words}")
            object.__setattr__(self, option, tuple(said))
        if len(self.steps) != len(self.groups) - 1 or list(self.steps) != sorted(set(self.steps)):
            wanted = f"{len(self.groups) - 1} ascending numbers between {len(self.groups)} groups"
            raise ValueError(f"router.steps: {list(self.steps)}: must be {wanted}")
        if self.by not in ("prompt", "priority"):
            raise ValueError(f"router.by: {self.by!r}: must be prompt or priority")
        if named(self.among, "router.among").pulls:
            raise ValueError(f"router.among: {self.among!r}: {self.name} holds nobody back")

    def pick(self, request: Request, view: View) -> int | None:
        """Of the request's group; where nobody of it is up, of the next larger one, then of the next smaller one."""
        own = bisect_right(self.steps, request.prompt if self.by == "prompt" else request.priority)
        order = (*range(own, len(self.groups)), *range(own - 1, -1, -1))
        names = [view.facts(i).name for i in range(view.count)]
        for group in order:
            members = tuple(i for i, name in enumerate(names) if name == self.groups[group])
            if members:
                return Some(view, members).pick(named(self.among, "router.among"), request)
        return named(self.among, "router.among").pick(request, view)
