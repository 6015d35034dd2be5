"""From names to things: what a scenario asks for, looked up, checked against each other, and put together.

Everything that can be wrong with a scenario is found here or in ``sim/scenario.py``, before the clock starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import hardware_profiles
from sim import names
from sim.analytic.config import shape_from_config
from sim.analytic.cost import Layout, MemoryBudget, memory_budget
from sim.analytic.hardware import GB, MICRO, Clock, Device, Engine
from sim.analytic.kernel_book import ExpertTerms, KernelBook
from sim.analytic.layout import check_layout
from sim.analytic.memory import kv_bytes_per_token
from sim.analytic.model import ModelShape
from sim.analytic.paced import paced
from sim.analytic.precision import Precision, number_format
from sim.analytic.rewrite import apply, bound, in_stages
from sim.analytic.speeds import at_speeds
from sim.analytic.staged import Cost, pass_cost
from sim.analytic.wires import wired
from sim.entrance import admission_of, router_of
from sim.events import events_of
from sim.plugin import build, discover
from sim.policies import Model, Policy, Windows
from sim.policies.encoded import Encoded
from sim.reuse import prefix_of
from sim.routers import Router
from sim.scenario import FleetPart, GroupPart, PoolPart, PoolsPart, Scenario
from sim.schedulers import Scheduler
from sim.serving.admission import Admission
from sim.serving.dealt import DealtRounds
from sim.serving.encoded_kv import EncodedKv
from sim.serving.events import NO_EVENTS, Events
from sim.serving.governor import Power
from sim.serving.kv import KvBudget, Span
from sim.serving.luck import Luck
from sim.serving.pools import Mover
from sim.serving.replica import Setup
from sim.serving.rounds import Rounds
from sim.switch import check_one_cache, switched
from sim.variants import build as build_variants
from sim.variants import check_clashes
from workloads import models
from workloads.errors import shown

DEFAULT_SCHEDULER = "chunked"
DEFAULT_MEMORY_FRACTION = 0.9
POOLED = ("layout", "hardware", "scheduler")  # what a pool may have of its own
GROUPED = ("model", "hardware", "engine", "clock", "layout", "precision", "variants", "policy", "scheduler", "kv",
           "switch")  # fmt: skip
ENTRANCE = ("router", "admission", "tenants", "classes")  # of the whole fleet


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
    costs: tuple[Cost, ...]
    budget: MemoryBudget
    setup: Setup
    prefill: Built | None = None
    mover: Mover | None = None
    groups: tuple[Built, ...] = ()
    stale_ns: int = 0
    admission: Admission | None = None
    events: Events = NO_EVENTS

    @property
    def pools(self) -> tuple[tuple[Built, int], ...]:
        """What replicas are made of and how many there are, in the order of their numbers."""
        said, fleet = self.scenario.pools, self.scenario.fleet
        if fleet is not None:
            return tuple((one, part.replicas) for one, part in zip(self.groups, fleet.groups, strict=True))
        if self.prefill is None or said is None:
            return ((self, self.scenario.replicas),)
        return ((self.prefill, said.prefill.replicas), (self, said.decode.replicas))


def build_scenario(scenario: Scenario, stepping: bool = False) -> Built:
    """Look up and put together; of pools, what decodes, with what reads prompts beside it.

    Raises ValueError naming key and value, DoesNotFit with the arithmetic.
    """
    scenario = expanded(scenario)
    router, stale_ns = router_of(scenario)
    admission = admission_of(scenario)
    if scenario.fleet is not None:
        built = _fleet(scenario, scenario.fleet, stepping)
    elif scenario.pools is not None:
        built = _two_pools(scenario, scenario.pools, stepping)
    else:
        built = _one_pool(scenario, stepping)
    return replace(built, router=router, stale_ns=stale_ns, admission=admission)


def _two_pools(scenario: Scenario, said: PoolsPart, stepping: bool) -> Built:
    if scenario.replicas > 1:
        raise ValueError(f"replicas: {scenario.replicas}: with pools, say pools.prefill.replicas and .decode.replicas")
    if scenario.switch is not None:
        raise ValueError("switch: not with pools, whose decode replicas have no line of their own to follow")
    prefill = _pool("prefill", scenario, said.prefill, stepping)
    decode = _pool("decode", scenario, said.decode, stepping)
    if decode.shapes[0].encoder:
        raise ValueError(f"pools: {decode.shapes[0].name} has an encoder, whose cross attention no move carries yet")
    parts = {
        name: part.model_copy(update={key: getattr(one.scenario, key) for key in POOLED})
        for name, part, one in (("prefill", said.prefill, prefill), ("decode", said.decode, decode))
    }
    resolved = decode.scenario.model_copy(
        update={"pools": said.model_copy(update=parts), "layout": scenario.layout, "hardware": scenario.hardware}
    )
    layers = len(prefill.shapes[0].layers) if said.overlap == "layers" else None
    mover = Mover(_whole_spans(decode), said.link_GBps * GB, said.link_latency_us * MICRO, layers)
    return replace(decode, scenario=resolved, prefill=prefill, mover=mover)


def _fleet(scenario: Scenario, said: FleetPart, stepping: bool) -> Built:
    """The first group, with all of them beside it."""
    if scenario.replicas > 1 or scenario.pools is not None:
        raise ValueError("fleet: says how many replicas there are; leave out replicas and pools")
    names = [part.name for part in said.groups]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"fleet.groups: {name!r} is there {names.count(name)} times; names must differ")
    if not sum(part.replicas for part in said.groups):
        raise ValueError("fleet.groups: nobody: at least one group must have replicas: 1 or more")
    groups = tuple(_group(scenario, part, stepping) for part in said.groups)
    parts = [
        part.model_copy(update={key: getattr(one.scenario, key) for key in GROUPED})
        for part, one in zip(said.groups, groups, strict=True)
    ]
    first = groups[0]
    resolved = first.scenario.model_copy(
        update={
            **{key: getattr(scenario, key) for key in (*GROUPED, *ENTRANCE)},
            "fleet": said.model_copy(update={"groups": parts}),
        }
    )
    return replace(first, scenario=resolved, groups=groups, events=events_of(said))


def _group(scenario: Scenario, part: GroupPart, stepping: bool) -> Built:
    """One group, as a scenario of its own would build it; errors say which."""
    own = {key: getattr(part, key) for key in GROUPED if getattr(part, key) is not None}
    try:
        return _one_pool(expanded(scenario.model_copy(update={**own, **_no_entrance(), "fleet": None})), stepping)
    except ValueError as error:
        raise type(error)(f"fleet.groups.{part.name}: {error}") from None


def _no_entrance() -> dict[str, Any]:
    """Of a group by itself: nothing of what stands before all groups."""
    return {key: Scenario.model_fields[key].get_default(call_default_factory=True) for key in ENTRANCE}


def _pool(name: str, scenario: Scenario, part: PoolPart, stepping: bool) -> Built:
    """One of the two, as a scenario without pools would build it; errors say which."""
    said = {key: getattr(part, key) for key in POOLED if getattr(part, key) is not None}
    try:
        return _one_pool(scenario.model_copy(update={**said, "pools": None, "replicas": part.replicas}), stepping)
    except ValueError as error:
        raise type(error)(f"pools.{name}: {error}") from None


def _whole_spans(built: Built) -> tuple[Span, ...]:
    """Bytes of a token in the caches of all models together, however they are cut."""
    members = _members(built.policy, built.shapes[0], build_variants(built.scenario.variants))
    return _member_spans(members, built.precision, built.device)


def _member_spans(members: tuple[Member, ...], formats: Precision, device: Device) -> tuple[Span, ...]:
    spans: list[Span] = []
    for member in members:
        if member.own_kv:
            own = in_stages(member.variants)
            shape, precision = apply(own, "reshape", member.shape), apply(own, "reformat", formats)
            held = kv_bytes_per_token(shape, precision)
            kept = apply(bound(own, shape, precision, device), "cached", held)
            spans += [Span(-int(-size // 1), window) for size, window in zip(kept, shape.windows, strict=True)]
    return tuple(spans)


def _one_pool(scenario: Scenario, stepping: bool) -> Built:
    target = load_shape(scenario.model, "model")
    if not target.layers:
        raise ValueError(f"model: {target.name} is an encoder alone, which decodes nothing; roofline takes it")
    engine = load_engine(scenario.engine)
    device = wired(_governable(scenario, with_kernels(load_device(scenario.hardware), engine)), scenario.layout.link)
    named = build("sim.policies", "policy", _with_draft(scenario.policy, target))
    policy = switched(scenario.switch, named)
    precision = load_precision(scenario)
    layout = Layout(**scenario.layout.model_dump())
    members = _members(policy, target, build_variants(scenario.variants))
    shapes = tuple(member.shape for member in members)
    costs = _costs(members, device, precision, layout, engine.batch_buckets)
    check_one_cache(policy, costs)
    spelled, policy = _spelled(fit_alone(named, costs)), fitted(policy, costs)
    check_layout(costs[0].shape, layout)
    scheduler = _scheduler(scenario, engine, layout, bool(costs[0].shape.encoder))
    budget = _budget(scenario, engine, device, members, costs, scheduler)
    setup = _setup(scenario, members, policy, scheduler, engine, costs, budget, stepping)
    setup.scheduler.decode_seats(policy.tokens_per_round)
    if scenario.kv.prefix_cache is not None:
        whole_bytes = sum(span.token_bytes for span in _member_spans(members, precision, device))
        setup = replace(setup, prefix=prefix_of(scenario, setup, engine, whole_bytes))
    resolved = scenario.model_copy(
        update={
            "policy": spelled,
            "scheduler": _spelled(scheduler),
            "kv": scenario.kv.model_copy(update={"memory_fraction": _fraction(scenario, engine)}),
            "clock": "fixed" if setup.power is None else "governed",
        }
    )
    router, _ = router_of(scenario)
    return Built(
        resolved, shapes, device, engine, precision, layout, policy, scheduler, router, costs, budget, setup
    )


def fitted(policy: Policy, costs: Sequence[Cost]) -> Policy:
    """The policy as it is on this hardware and for these models, target first: one that fits itself (``fitted(costs)``)
    does so, and a model with an encoder takes the policy in another form. Raises ValueError where there is none.
    """
    if costs[0].shape.encoder:
        return Encoded.of(fit_alone(policy, costs), costs)
    if getattr(policy, "needs_encoder", False):
        raise ValueError(f"policy: {policy.name}: needs a model with an encoder; {costs[0].shape.name} has none")
    return fit_alone(policy, costs)


def fit_alone(policy: Policy, costs: Sequence[Cost]) -> Policy:
    """The policy fitted to the hardware, in the form in which a scenario names it."""
    fit = getattr(policy, "fitted", None)
    return policy if fit is None else fit(costs)


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

    def own_bytes(self, cost: Cost, target: Cost) -> float:
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


def with_kernels(device: Device, engine: Engine) -> Device:
    """The device as the engine's kernel library runs it; unchanged for an engine that names none."""
    if engine.kernels is None:
        return _at_pace(device, engine)
    try:
        found = hardware_profiles.kernels(device.name, engine.kernels)
        for name, library in engine.product_kernels:
            found["matmul"][name] = hardware_profiles.kernels(device.name, library)["matmul"][name]
    except ValueError as error:
        raise ValueError(f"engine: {engine.name}: {error}") from None
    return _at_pace(replace(device, kernels=_book(found, engine)), engine)


def _at_pace(device: Device, engine: Engine) -> Device:
    own = at_speeds(device, engine.product_speed, engine.attention_speed)
    return paced(own, engine)


def _book(found: Mapping[str, Any], engine: Engine) -> KernelBook:
    experts = {name: ExpertTerms.from_profile(entry) for name, entry in engine.experts}
    return replace(KernelBook.from_profile(found), experts=experts)


def load_engine(name: str) -> Engine:
    """The engine of a shipped profile or of a file. Raises ValueError naming ``engine``."""
    try:
        return Engine.from_profile(hardware_profiles.engine(name))
    except ValueError as error:
        raise ValueError(f"engine: {error}") from None


def load_precision(scenario: Scenario) -> Precision:
    """Number formats of the scenario. Raises ValueError naming the key."""
    said = scenario.precision.model_dump()
    return Precision(**{key: number_format(value, key).name for key, value in said.items() if value is not None})


def _with_draft(spec: Any, target: ModelShape) -> Any:
    """``auto`` stands for the smallest shipped model that shares the target's vocabulary: as ``draft``, as its
    ``model``, and as the ``draft`` of a ``drafter``.
    """
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    plugin = discover("sim.policies").get(str(options.get("name")))
    if getattr(plugin, "draft", None) == "auto" and options.get("draft", "auto") == "auto":
        return {**options, "draft": _smallest_draft(target)}
    for option, key in (("draft", "model"), ("drafter", "draft")):
        said = options.get(option)
        if isinstance(said, Mapping) and said.get(key) == "auto":
            return {**options, option: {**said, key: _smallest_draft(target)}}
    return spec


def _smallest_draft(target: ModelShape) -> str:
    shapes = (load_shape(name, "policy.draft") for name in models.released())
    most = target.total_parameters // 2
    fit = [s for s in shapes if _may_draft(s, target) and s.total_parameters <= most]
    if not fit:
        asked = f"the vocabulary of {target.name} ({target.vocab} tokens) and at most half of its parameters"
        raise ValueError(f"policy.draft: 'auto': no shipped model has {asked}; name one")
    return min(fit, key=lambda s: s.total_parameters).name


def _may_draft(draft: ModelShape, target: ModelShape) -> bool:
    """Of the target's kind with its vocabulary; tables padded to other multiples differ by up to a hundredth."""
    alike = bool(draft.encoder) == bool(target.encoder)
    return bool(draft.layers) and alike and abs(draft.vocab - target.vocab) <= 0.01 * target.vocab


def _members(policy: Policy, target: ModelShape, variants: tuple[Any, ...]) -> tuple[Member, ...]:
    """The target and what the policy runs beside it. Raises ValueError."""
    check_clashes([policy, *variants])
    return (Member(target, variants), *(_member(draft, target, variants) for draft in policy.drafts))


def _member(draft: str | Model, target: ModelShape, variants: tuple[Any, ...]) -> Member:
    model = Model(draft) if isinstance(draft, str) else draft
    specs = [v for v in model.variants if isinstance(v, str | Mapping)]
    built = iter(build_variants(specs, key="policy.draft.variants"))
    own = tuple(next(built) if isinstance(v, str | Mapping) else v for v in model.variants)
    first = apply(variants, "reshape", target)
    own = tuple(v.beside(first) if hasattr(v, "beside") else v for v in own)  # what depends on the target's shape too
    if model.name is None:
        check_clashes([*variants, *own])
        return Member(target, (*variants, *own), model.own_kv, True)
    return Member(_draft_shape(model.name, target), own, model.own_kv)


def _draft_shape(name: str, target: ModelShape) -> ModelShape:
    draft = load_shape(name, "policy.draft")
    if not draft.layers or bool(draft.encoder) != bool(target.encoder):
        wanted = "an encoder-decoder, as the target is" if target.encoder else "a decoder-only model"
        raise ValueError(f"policy.draft: {name} is not {wanted}")
    if not _may_draft(draft, target):
        raise ValueError(
            f"policy.draft: {name} has a vocabulary of {draft.vocab} tokens and {target.name} one of {target.vocab}; "
            "a draft must share the target's"
        )
    return draft


def _costs(
    members: tuple[Member, ...], device: Device, precision: Precision, layout: Layout, buckets: tuple[int, ...]
) -> tuple[Cost, ...]:
    """The drafts claim on-chip memory first: they are the small ones, and they run most often."""
    costs: list[Cost] = []
    claim = 0.0
    for member in reversed(members):
        cost = pass_cost(member.shape, device, precision, layout, member.variants)
        if claim:
            cost = pass_cost(member.shape, device, precision, layout, cost.variants, claim)
        claim += cost.bytes_weights if cost.placement.resident else 0.0
        costs.append(cost.padded(buckets) if buckets else cost)
    return tuple(reversed(costs))


def _scheduler(scenario: Scenario, engine: Engine, layout: Layout, encoder: bool) -> Scheduler:
    """Scenario over engine profile over default, option by option; an ``encoder`` reads prompts in one piece.

    A round of a pipeline or of data ranks is that many steps of an engine, each with the budget of its profile; every
    data rank has an engine, and seats, of its own.
    """
    said = scenario.scheduler or engine.scheduler or DEFAULT_SCHEDULER
    options: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {"name": said}
    known = discover("sim.schedulers").get(str(options.get("name", DEFAULT_SCHEDULER)))
    options.setdefault("name", engine.scheduler or DEFAULT_SCHEDULER)
    for key in ("token_budget", "max_sequences"):
        value = getattr(engine, key)
        if value is not None and known is not None and key in {f.name for f in fields(known)}:
            steps = layout.pipeline if key == "token_budget" else 1
            options.setdefault(key, value * steps * layout.data)
    if encoder and known is not None and "whole" in {f.name for f in fields(known)}:
        options.setdefault("whole", True)
    scheduler: Scheduler = build("sim.schedulers", "scheduler", options)
    if encoder and getattr(scheduler, "whole", True) is False:
        raise ValueError("scheduler.whole: False: an encoder reads a prompt in one piece; must be true")
    return scheduler


def _fraction(scenario: Scenario, engine: Engine) -> float:
    return scenario.kv.memory_fraction or engine.memory_fraction or DEFAULT_MEMORY_FRACTION


def _budget(
    scenario: Scenario,
    engine: Engine,
    device: Device,
    members: tuple[Member, ...],
    costs: tuple[Cost, ...],
    scheduler: Scheduler,
) -> MemoryBudget:
    """Memory of one device of the replica; the workspace holds the widest activations of a full round."""
    tokens = getattr(scheduler, "token_budget", getattr(scheduler, "max_sequences", 256))
    draft_bytes = sum(m.own_bytes(c, costs[0]) for m, c in zip(members[1:], costs[1:], strict=True))
    workspace_bytes = max(_workspace_bytes(c, tokens) for c in costs)
    fraction, capacity_bytes = _fraction(scenario, engine), device.memory_bytes
    if engine.memory_fraction_of == "free":
        capacity_bytes = device.reported_bytes or device.memory_bytes
        workspace_bytes += engine.runtime_bytes
        used = (costs[0].bytes_weights + draft_bytes + workspace_bytes) / capacity_bytes
        fraction += (1 - fraction) * min(1.0, used)
    return memory_budget(
        device.name,
        capacity_bytes,
        costs[0].bytes_weights,
        draft_bytes=draft_bytes,
        workspace_bytes=workspace_bytes,
        memory_fraction=fraction,
    )


def _workspace_bytes(cost: Cost, tokens: int) -> float:
    """The residual stream, and the widest layer's input and output, of one full round in 16 bits."""
    shape = cost.local
    widths = (layer.ffn.width * layer.ffn.up_factor * max(1, layer.ffn.experts_per_token) for layer in shape.layers)
    heads = (layer.attention.heads * layer.attention.head_dim for layer in shape.layers)
    widest = max((*widths, *heads), default=0)  # none where a policy runs nothing but output heads
    return float(tokens * (2 * shape.d_model + widest) * 2)


def _setup(
    scenario: Scenario,
    members: tuple[Member, ...],
    policy: Policy,
    scheduler: Scheduler,
    engine: Engine,
    costs: tuple[Cost, ...],
    budget: MemoryBudget,
    stepping: bool,
) -> Setup:
    windows: tuple[Windows, ...] = tuple(cost.shape.windows for cost in costs)
    max_context = costs[0].shape.max_context
    reserve = scenario.kv.reserve_tokens
    if reserve is not None and reserve < 2:
        raise ValueError(f"kv.reserve_tokens: {reserve} leaves no room for a prompt and a token")
    keeping = [cost for member, cost in zip(members, costs, strict=True) if member.own_kv]
    options: dict[str, Any] = {
        "block_tokens": scenario.kv.block_tokens, "mode": scenario.kv.mode, "reserve_tokens": reserve or max_context,
        "watermark": scenario.kv.watermark, "lookahead": policy.tokens_per_round,
    }  # fmt: skip
    layout = costs[0].layout
    capacity, spans = int(budget.kv_pool_bytes) * layout.data, _spans(keeping)
    encoders: tuple[int, ...] = ()
    kv = KvBudget(capacity, spans, **options)
    if costs[0].shape.encoder:
        encoders = tuple(len(cost.shape.encoder) if cost.shape.layers else 0 for cost in costs)
        source_bytes = sum(-int(-cost.cross_bytes_per_token // 1) for cost in keeping)
        kv = EncodedKv(capacity, spans, source_bytes, **options)
    rounds = Rounds(policy, costs, engine, windows, tuple(len(cost.local.layers) for cost in costs), encoders)
    if not layout.plain:
        piece = -(-getattr(scheduler, "token_budget", 1 << 20) // (layout.pipeline * layout.data))
        common = {f.name: getattr(rounds, f.name) for f in fields(rounds)}
        rounds = DealtRounds(**common, pipeline=layout.pipeline, data=layout.data, piece=piece)
    if scenario.kv.mode == "reserved":
        max_context = min(max_context, kv.reserve_tokens - policy.tokens_per_round + 1)
    power = _power(scenario, engine, rounds)
    luck = Luck(scenario.seed)
    metered = scenario.energy.rounds == "each" and costs[0].device.energy is not None
    return Setup(rounds, policy, windows, scheduler, kv, luck, max_context, stepping, power=power, metered=metered)


def _governable(scenario: Scenario, device: Device) -> Device:
    """The device with the cap that a scenario sets, and with the clock of its class where a scenario wants it governed
    and nobody has measured it. Raises ValueError for a cap that cannot be kept or has no meaning.
    """
    cap_W, energy, tdp_W = scenario.energy.power_cap_W, device.energy, device.tdp_W
    if cap_W is None:
        if scenario.clock != "governed" or device.clock is not None or tdp_W is None or energy is None:
            return device
        return replace(device, clock=Clock.of_class(tdp_W))
    if scenario.clock == "fixed":
        raise ValueError(f"energy.power_cap_W: {cap_W:g}: a fixed clock keeps no cap; leave out clock: fixed")
    if tdp_W is None or energy is None:
        raise ValueError(f"energy.power_cap_W: {cap_W:g}: {device.name} has no power data in its profile")
    if not energy.idle_W < cap_W <= tdp_W:
        allowed = f"above its idle power ({energy.idle_W:g} W), up to its TDP ({tdp_W:g} W)"
        raise ValueError(f"energy.power_cap_W: {cap_W:g}: {device.name} allows caps {allowed}")
    return replace(device, clock=(device.clock or Clock.of_class(tdp_W)).capped(cap_W))


def _power(scenario: Scenario, engine: Engine, rounds: Rounds) -> Power | None:
    """What governs the clock, None where it is fixed. Unsaid: governed where measured, unless the engine is ideal.

    Raises ValueError where a clock is to be governed by joules that nobody knows.
    """
    device, devices = rounds.costs[0].device, rounds.costs[0].layout.devices
    capped = scenario.energy.power_cap_W is not None
    unsaid = "governed" if capped or (engine.name != "ideal" and device.clock is not None) else "fixed"
    said = scenario.clock or unsaid
    if said == "fixed":
        return None
    if device.clock is None or device.energy is None:
        raise ValueError(f"clock: governed: {device.name} has no power data in its profile; allowed: fixed")
    return Power(rounds, device.clock, device.energy.idle_W, devices)


def _spans(costs: Sequence[Cost]) -> tuple[Span, ...]:
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
