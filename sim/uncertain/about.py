"""Where the spreads of a scenario come from, in a line each, where that is not measurements of its own device."""

from __future__ import annotations

from sim.analytic.hardware import Engine, Terms
from sim.analytic.kernel_book import KernelBook
from sim.build import Built
from sim.uncertain.spreads import is_class, is_textbook, of_textbook

__all__ = ["about"]


def about(built: Built) -> list[str]:
    """Notes on the intervals of a scenario, of every pool."""
    found = [note for one, _ in built.pools for note in (*_device(one), *_engine(one.engine))]
    return list(dict.fromkeys(found))


def _device(built: Built) -> list[str]:
    device, book = built.device, built.device.kernels
    if isinstance(book, KernelBook):
        products = [terms for entries in book.tables["matmul"].values() for terms in entries.values()]
        if all(map(is_class, products)):
            return [f"{device.name}: no kernel of it was measured; spreads are those of measured devices left out."]
        return []
    terms: list[Terms] = list(device.matmul.values())
    if not all(map(is_textbook, terms)):
        return []
    low, middle, high = of_textbook("matmul", "bf16")
    return [f"{device.name} is a datasheet alone: measured bf16 products take {low:.2g} to {high:.2g} times as long "
            f"({middle:.2g} at the median), so intervals lie above the point."]  # fmt: skip


def _engine(engine: Engine) -> list[str]:
    if engine.name == "ideal":
        return ["engine ideal has no host time: what a real one adds is not in the intervals."]
    return [] if engine.measured else [f"engine {engine.name}: its host times are guesses, drawn within a factor of 2."]
