"""With a kernel library's terms leaping equals the stepper bit for bit, and costs no order of magnitude."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from analytic_models import DENSE, LATENT, WINDOWED, device
from engine_setup import Case, label, longer, run_engine, trace
from stepper import Told, step

import hardware_profiles
from sim.analytic.cost import PassCost
from sim.analytic.kernel_book import KernelBook
from sim.build import build_scenario
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.scenario import Scenario
from sim.schedulers.chunked import Chunked


def costs(shape: Any) -> tuple[PassCost, ...]:
    """A small target and a small draft on an H100 under vLLM's kernels."""
    where = replace(device("h100-sxm"), kernels=KernelBook.from_profile(hardware_profiles.kernels("h100-sxm", "vllm")))
    return tuple(PassCost(s, where) for s in (shape, DENSE))


@pytest.mark.parametrize("shape", [DENSE, WINDOWED, LATENT], ids=lambda s: s.name)
@pytest.mark.parametrize("policy", [Autoregressive(), Speculative("d", 3, 0.8)], ids=label)
def test_leaping_is_exact_with_a_kernel_library(policy: Any, shape: Any) -> None:
    """Tiles, waves, walks and splits have the same bits for one round and for many."""
    requests = longer(trace(10, 400_000, 15), 60)
    case = Case(policy, Chunked(64, 8), requests, real=costs(shape)[: 1 + len(policy.drafts)], host_s=1e-5)
    slow, fast = step(case)[0], run_engine(case)[0]
    assert [name for name in Told.__dataclass_fields__ if getattr(slow, name) != getattr(fast, name)] == []


def test_an_engine_profile_names_its_kernels(tmp_path: Path) -> None:
    """A scenario whose engine says `kernels: vllm` runs on fitted terms; a misspelt library is refused."""
    said = {**hardware_profiles.engine("ideal"), "name": "mine", "kernels": "vllm"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said), "utf-8")
    scenario = Scenario.load("chat_h100")
    ideal = build_scenario(scenario.model_copy(update={"engine": "ideal", "hardware": "h100-sxm"}))
    mine = build_scenario(scenario.model_copy(update={"engine": str(tmp_path / "mine.yaml"), "hardware": "h100-sxm"}))
    assert ideal.device.kernels is None and mine.device.kernels is not None
    assert "h100-sxm, vllm kernels: measured" in mine.device.kernels.source  # type: ignore[attr-defined]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**said, "kernels": "vlm"}), "utf-8")
    with pytest.raises(ValueError, match="engine: mine: kernels: 'vlm' is no kernel library; did you mean 'vllm'"):
        build_scenario(scenario.model_copy(update={"engine": str(tmp_path / "mine.yaml")}))
