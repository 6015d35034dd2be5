"""From names to things: what a scenario asks for, looked up, checked against each other, and put together.

Everything that can be wrong with a scenario is found here or in ``sim/scenario.py``, before the clock starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import hardware_profiles
from sim import names
from sim.analytic.config import shape_from_config
from sim.analytic.cost import Layout, MemoryBudget, PassCost, memory_budget
from sim.analytic.hardware import Device, Engine
from sim.analytic.model import ModelShape
from sim.analytic.precision import Precision, number_format
from sim.plugin import build, discover
from sim.policies import Model, Policy, Windows
from sim.routers import Router
from sim.scenario import Scenario
from sim.schedulers import Scheduler
from sim.serving.kv import KvBudget, Span
from sim.serving.luck import Luck
from sim.serving.replica import Setup
from sim.serving.rounds import Rounds
from sim.variants import build as build_variants
from sim.variants import check_clashes
from workloads import models
from workloads.errors import shown

DEFAULT_SCHEDULER = "chunked"
DEFAULT_MEMORY_FRACTION = 0.9


@dataclass(frozen=True)
class Built:
    """A scenario and the objects it names; ``shapes`` and ``costs`` have the target first, then the drafts."""

    scenario: Scenario
    shapes: tuple[ModelShape, ...]
    device: Device
    engine: Engine
    precision: Precision
    layout: Layout
    policy: Policy
    scheduler: Scheduler
    router: Router
    costs: tuple[PassCost, ...]
    budget: MemoryBudget
    setup: Setup


def build_scenario(scenario: Scenario, stepping: bool = False) -> Built:
    """Look up and put together. Raises ValueError naming key and value, DoesNotFit with the arithmetic."""
    scenario = expanded(scenario)
    target = load_shape(scenario.model, "model")
    if not target.layers or target.encoder:
        raise ValueError(
            f"model: {target.name} has an encoder; a run serves decoder-only models (explain and roofline take it)"
        )
    device = load_device(scenario.hardware)
    engine = load_engine(scenario.engine)
    policy = build("sim.policies", "policy", _with_draft(scenario.policy, target))
    precision = load_precision(scenario)
    layout = Layout(**scenario.layout.model_dump())
    members = _members(policy, target, build_variants(scenario.variants))
    shapes = tuple(member.shape for member in members)
    costs = _costs(members, device, precision, layout)
    scheduler = _scheduler(scenario, engine)
    budget = _budget(scenario, engine, device, members, costs, scheduler)
    setup = _setup(scenario, members, policy, scheduler, engine, costs, budget, stepping)
    setup.scheduler.decode_seats(policy.tokens_per_round)
    resolved = scenario.model_copy(
        update={
            "policy": _spelled(policy),
            "scheduler": _spelled(scheduler),
            "kv": scenario.kv.model_copy(update={"memory_fraction": _fraction(scenario, engine)}),
        }
    )
    router = build("sim.routers", "router", scenario.router)
    return Built(
        resolved, shapes, device, engine, precision, layout, policy, scheduler, router, costs, budget, setup
    )


def expanded(scenario: Scenario) -> Scenario:
    """The scenario with a name of the field under ``policy`` spelled out (sim/names.py). Raises ValueError."""
    policy, variants = names.expand(scenario.policy, scenario.variants)
    return scenario.model_copy(update={"policy": policy, "variants": variants})


@dataclass(frozen=True)
class Member:
    """A model of the replica: its shape before variants, all variants in order, how many of them the target has too.

    ``own_kv``: it keeps a cache of its own. A member that ``is_target`` holds the target's weights, and only what its
    own variants add or copy is counted once more.
    """

    shape: ModelShape
    variants: tuple[Any, ...]
    own_kv: bool = True
    is_target: bool = False

    def own_bytes(self, cost: PassCost, target: PassCost) -> float:
        """Bytes of weights that it needs in memory beside the target's.

        A slice of the target (every variant of its own is ``nested``) reads weights that are there already; what its
        variants add under names of their own is counted, and so is a whole copy in another format.
        """
        own = self.variants[len(target.variants) :]
        if not self.is_target or not all(getattr(variant, "nested", False) for variant in own):
            return cost.bytes_weights
        return sum(size for op, size in cost.weight_bytes_by_op.items() if op not in target.weight_bytes_by_op)


def load_shape(name: str, key: str) -> ModelShape:
    """The shape of a shipped model or of a config.json. Raises ValueError naming the key."""
    if not isinstance(name, str):
        raise ValueError(f"{key}: {shown(name)}: must be the name of a model or the path of a config.json")
    try:
        return shape_from_config(*models.find(name))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def load_device(name: str) -> Device:
    """The device of a shipped profile or of a file. Raises ValueError naming ``hardware``."""
    try:
        return Device.from_profile(hardware_profiles.load(name))
    except ValueError as error:
        raise ValueError(f"hardware: {error}") from None


def load_engine(name: str) -> Engine:
    """The engine of a shipped profile or of a file. Raises ValueError naming ``engine``."""
    try:
        engine = Engine.from_profile(hardware_profiles.engine(name))
    except ValueError as error:
        raise ValueError(f"engine: {error}") from None
    for key, value in (
        ("request_ms", engine.request_s), ("cached_token_us", engine.cached_token_s), ("plan_ahead", engine.plan_ahead)
    ):  # fmt: skip
        if value:
            raise ValueError(f"engine: {name}: {key}: no run simulates this term yet; allowed: 0")
    return engine


def load_precision(scenario: Scenario) -> Precision:
    """Number formats of the scenario. Raises ValueError naming the key."""
    said = scenario.precision.model_dump()
    return Precision(**{key: number_format(value, key).name for key, value in said.items()})


def _with_draft(spec: Any, target: ModelShape) -> Any:
    """``draft: auto`` stands for the smallest shipped model that shares the target's vocabulary."""
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    plugin = discover("sim.policies").get(str(options.get("name")))
    if getattr(plugin, "draft", None) != "auto" or options.get("draft", "auto") != "auto":
        return spec
    shapes = (load_shape(name, "policy.draft") for name in models.names())
    most = target.total_parameters // 2
    fit = [s for s in shapes if _may_draft(s, target) and s.total_parameters <= most]
    if not fit:
        asked = f"the vocabulary of {target.name} ({target.vocab} tokens) and at most half of its parameters"
        raise ValueError(f"policy.draft: 'auto': no shipped model has {asked}; name one")
    return {**options, "draft": min(fit, key=lambda s: s.total_parameters).name}


def _may_draft(draft: ModelShape, target: ModelShape) -> bool:
    """A decoder with the target's vocabulary; tables padded to other multiples differ by up to a hundredth."""
    return bool(draft.layers) and not draft.encoder and abs(draft.vocab - target.vocab) <= 0.01 * target.vocab


def _members(policy: Policy, target: ModelShape, variants: tuple[Any, ...]) -> tuple[Member, ...]:
    """The target and what the policy runs beside it. Raises ValueError."""
    check_clashes([policy, *variants])
    return (Member(target, variants), *(_member(draft, target, variants) for draft in policy.drafts))


def _member(draft: str | Model, target: ModelShape, variants: tuple[Any, ...]) -> Member:
    model = Model(draft) if isinstance(draft, str) else draft
    specs = [v for v in model.variants if isinstance(v, str | Mapping)]
    built = iter(build_variants(specs, key="policy.draft.variants"))
    own = tuple(next(built) if isinstance(v, str | Mapping) else v for v in model.variants)
    if model.name is None:
        check_clashes([*variants, *own])
        return Member(target, (*variants, *own), model.own_kv, True)
    return Member(_draft_shape(model.name, target), own, model.own_kv)


def _draft_shape(name: str, target: ModelShape) -> ModelShape:
    draft = load_shape(name, "policy.draft")
    if not draft.layers or draft.encoder:
        raise ValueError(f"policy.draft: {name} is not a decoder-only model")
    if not _may_draft(draft, target):
        raise ValueError(
            f"policy.draft: {name} has a vocabulary of {draft.vocab} tokens and {target.name} one of {target.vocab}; "
            "a draft must share the target's"
        )
    return draft


def _costs(
    members: tuple[Member, ...], device: Device, precision: Precision, layout: Layout
) -> tuple[PassCost, ...]:
    """The drafts claim on-chip memory first: they are the small ones, and they run most often."""
    costs: list[PassCost] = []
    claim = 0.0
    for member in reversed(members):
        cost = PassCost(member.shape, device, precision, layout, variants=member.variants)
        if claim:
            cost = PassCost(member.shape, device, precision, layout, variants=cost.variants, onchip_claim=claim)
        claim += cost.bytes_weights if cost.placement.resident else 0.0
        costs.append(cost)
    return tuple(reversed(costs))


def _scheduler(scenario: Scenario, engine: Engine) -> Scheduler:
    """Scenario over engine profile over default, option by option."""
    said = scenario.scheduler or engine.scheduler or DEFAULT_SCHEDULER
    options = dict(said) if isinstance(said, Mapping) else {"name": said}
    known = discover("sim.schedulers").get(str(options.get("name", DEFAULT_SCHEDULER)))
    options.setdefault("name", engine.scheduler or DEFAULT_SCHEDULER)
    for key in ("token_budget", "max_sequences"):
        value = getattr(engine, key)
        if value is not None and known is not None and key in {f.name for f in fields(known)}:
            options.setdefault(key, value)
    scheduler: Scheduler = build("sim.schedulers", "scheduler", options)
    return scheduler


def _fraction(scenario: Scenario, engine: Engine) -> float:
    return scenario.kv.memory_fraction or engine.memory_fraction or DEFAULT_MEMORY_FRACTION


def _budget(
    scenario: Scenario,
    engine: Engine,
    device: Device,
    members: tuple[Member, ...],
    costs: tuple[PassCost, ...],
    scheduler: Scheduler,
) -> MemoryBudget:
    """Memory of one device of the replica; the workspace holds the widest activations of a full round."""
    tokens = getattr(scheduler, "token_budget", getattr(scheduler, "max_sequences", 256))
    return memory_budget(
        device.name,
        device.memory_bytes,
        costs[0].bytes_weights,
        draft_bytes=sum(m.own_bytes(c, costs[0]) for m, c in zip(members[1:], costs[1:], strict=True)),
        workspace_bytes=max(_workspace_bytes(c, tokens) for c in costs),
        memory_fraction=_fraction(scenario, engine),
    )


def _workspace_bytes(cost: PassCost, tokens: int) -> float:
    """The residual stream, and the widest layer's input and output, of one full round in 16 bits."""
    shape = cost.local
    widest = max(
        max(layer.ffn.width * layer.ffn.up_factor * max(1, layer.ffn.experts_per_token) for layer in shape.layers),
        max(layer.attention.heads * layer.attention.head_dim for layer in shape.layers),
    )
    return float(tokens * (2 * shape.d_model + widest) * 2)


def _setup(
    scenario: Scenario,
    members: tuple[Member, ...],
    policy: Policy,
    scheduler: Scheduler,
    engine: Engine,
    costs: tuple[PassCost, ...],
    budget: MemoryBudget,
    stepping: bool,
) -> Setup:
    windows: tuple[Windows, ...] = tuple(cost.shape.windows for cost in costs)
    max_context = costs[0].shape.max_context
    reserve = scenario.kv.reserve_tokens
    if reserve is not None and reserve < 2:
        raise ValueError(f"kv.reserve_tokens: {reserve} leaves no room for a prompt and a token")
    kv = KvBudget(
        int(budget.kv_pool_bytes),
        _spans([cost for member, cost in zip(members, costs, strict=True) if member.own_kv]),
        block_tokens=scenario.kv.block_tokens,
        mode=scenario.kv.mode,
        reserve_tokens=reserve or max_context,
        watermark=scenario.kv.watermark,
        lookahead=policy.tokens_per_round,
    )
    rounds = Rounds(policy, costs, engine, windows, tuple(len(cost.shape.layers) for cost in costs))
    if scenario.kv.mode == "reserved":
        max_context = min(max_context, kv.reserve_tokens - policy.tokens_per_round + 1)
    return Setup(rounds, policy, windows, scheduler, kv, Luck(scenario.seed), max_context, stepping)


def _spans(costs: Sequence[PassCost]) -> tuple[Span, ...]:
    """One pool for every model and attention kind; bytes a token are rounded up to whole ones."""
    return tuple(
        Span(-int(-size // 1), window)
        for cost in costs
        for size, window in zip(cost.kv_bytes_per_token, cost.shape.windows, strict=True)
    )


def _spelled(plugin: Any) -> dict[str, Any]:
    """A plug-in as a scenario would name it, every option written out."""
    return {"name": plugin.name, **{f.name: getattr(plugin, f.name) for f in fields(plugin)}}


def with_seed(scenario: Scenario, seed: int) -> Scenario:
    """The same scenario under other luck."""
    return scenario.model_copy(update={"seed": seed})
