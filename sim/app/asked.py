"""From what the page's controls send to a question or a run; every value is checked, wherever it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.app.question import BATCHES, DEVICES, LENGTHS, MOST_ALPHA, MOST_GAMMA, Question, choices
from sim.scenario import Scenario, override, shipped_scenarios
from workloads.errors import shown

__all__ = ["HERE", "LISTS", "MOST_REQUESTS", "OUTPUTS", "RATES", "REQUESTS", "SLIDERS", "Slider",
           "offered", "question", "run_of", "start_positions"]  # fmt: skip

MOST_REQUESTS = 20_000
REQUESTS = (100, 200, 500, 1000, 2000, 5000, 10_000, MOST_REQUESTS)
RATES = (0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 100)
OUTPUTS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
HERE = "the settings above"


@dataclass(frozen=True)
class Slider:
    """A slider over ``values``: it sends its position, counted from 0. ``said``: a value in words."""

    label: str
    values: tuple[Any, ...]
    said: Callable[[Any], str] = str

    def at(self, key: str, position: Any) -> Any:
        """The value at a position, a whole number that may be text. Raises ValueError."""
        try:
            number = int(str(position)[:20])
            if number < 0 or isinstance(position, bool):
                raise IndexError
            return self.values[number]
        except (ValueError, IndexError):
            last = len(self.values) - 1
            raise ValueError(f"{key}: position {shown(position)}: must be a whole number from 0 to {last}") from None


def _tokens(count: int) -> str:
    return f"{count:,} tokens"


SLIDERS: Mapping[str, Slider] = {
    "devices": Slider("Devices sharing the model", DEVICES),
    "batch": Slider("Batch", BATCHES, lambda batch: f"{batch:,} sequence{'s' * (batch > 1)}"),
    "context": Slider("Context of each", LENGTHS, _tokens),
    "prompt": Slider("Prompt of a newcomer", LENGTHS, _tokens),
    "alpha": Slider("Acceptance rate α", tuple(n / 100 for n in range(round(MOST_ALPHA * 100) + 1)), "{:.2f}".format),
    "gamma": Slider("Draft length γ", tuple(range(1, MOST_GAMMA + 1))),
    "rate": Slider("Arrivals", RATES, lambda rate: f"{rate:g} requests/s"),
    "output": Slider("Output", OUTPUTS, _tokens),
    "requests": Slider("Requests", REQUESTS, "{:,}".format),
}
"""By the name of what they set; the last three are of a run."""
LISTS: Mapping[str, str] = {
    "device": "Device", "model": "Model", "format": "Number format", "engine": "Engine", "policy": "Policy",
}  # fmt: skip


def question(said: Mapping[str, Any]) -> Question:
    """From names and slider positions. Raises ValueError, one line."""
    known = {key: said[key] for key in LISTS if key in said}
    numbers = {key: SLIDERS[key].at(key, said[key]) for key in SLIDERS if key in said and hasattr(Question, key)}
    return Question(**known, **numbers)


def run_of(source: Any, settings: Mapping[str, Any], traffic: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The scenario of a run as a mapping, and its requests: the settings of the page or a shipped scenario by name.

    ``traffic``: positions of rate, output and requests; a shipped scenario keeps its own traffic and only ends
    earlier. Raises ValueError.
    """
    values = {key: SLIDERS[key].at(key, traffic.get(key)) for key in ("rate", "output", "requests")}
    requests = int(values["requests"])
    if source == HERE:
        asked = question(settings)
        workload = {"rate": values["rate"], "arrivals": "poisson", "prompt": asked.prompt, "output": values["output"],
                    "requests": requests}  # fmt: skip
        return _checked(asked.scenario() | {"workload": workload}), requests
    if not isinstance(source, str) or source not in shipped_scenarios():
        raise ValueError(f"run: {shown(source)}: must be one of {', '.join([HERE, *shipped_scenarios()])}")
    data = Scenario.load(source).model_dump(exclude_unset=True)
    override(data, f"workload.requests={min(requests, _own(data))}")
    return _checked(data), min(requests, _own(data))


def _own(data: Mapping[str, Any]) -> int:
    """How many requests a scenario says that it has; no limit where it says nothing."""
    said = data["workload"].get("requests")
    return int(said) if isinstance(said, int) else MOST_REQUESTS


def _checked(data: dict[str, Any]) -> dict[str, Any]:
    return Scenario.parse(data, "run").model_dump(exclude_unset=True)


def start_positions() -> dict[str, Any]:
    """Names and positions with which a page opens."""
    first = Question()
    places = {key: slider.values.index(getattr(first, key)) for key, slider in SLIDERS.items() if hasattr(first, key)}
    return {key: getattr(first, key) for key in LISTS} | places | {
        "rate": RATES.index(5), "output": OUTPUTS.index(128), "requests": REQUESTS.index(1000)
    }  # fmt: skip


def offered() -> Mapping[str, tuple[str, ...]]:
    """What each list offers."""
    return choices()
