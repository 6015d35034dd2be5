"""decodesim: how fast, how dear and how hot an LLM service will be under real traffic, and why.

>>> from sim import Scenario, simulate
>>> result = simulate(Scenario.load("chat_h100"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.run import Result, simulate
    from sim.scenario import Scenario

__all__ = ["Result", "Scenario", "simulate"]


def __getattr__(name: str) -> Any:
    """Load on first use: a command that only prints help must not import the engine."""
    if name in ("Result", "simulate"):
        from sim import run

        return getattr(run, name)
    if name == "Scenario":
        from sim.scenario import Scenario

        return Scenario
    raise AttributeError(f"module 'sim' has no attribute {name!r}")
