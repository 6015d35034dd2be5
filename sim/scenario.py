"""A scenario: what runs how on which hardware under which traffic, in one YAML file.

Names and shapes of every key are checked here, before any clock starts; what a name stands for is looked up in
``sim/build.py``. Precedence: scenario over engine profile over default.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator

from hardware_profiles.strict_yaml import read, value
from sim.plain import beside, plain
from sim.plugin import suggest
from workloads.errors import brief, shown

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Choice = str | dict[str, Any]
MOST_REPLICAS = 10_000  # some 70 kB each
PLUGINS = ("policy", "scheduler", "router")


class _Part(BaseModel):
    """Unknown keys fail; values are what they say they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flags_for_numbers(cls, value: Any, info: Any) -> Any:
        wanted = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, bool) and wanted is not bool:
            raise ValueError("true and false are allowed only where a key is a switch")
        return value


class LayoutPart(_Part):
    """How many devices share one replica's model, and in which way (docs/layouts.md).

    ``tensor`` devices share each layer, ``pipeline`` stages hold consecutive layers, ``data`` ranks share the experts,
    which are dealt to ``expert`` groups. ``node_devices`` (null: all) are joined by the device's own link, others by
    ``network_GBps``. ``link``, ``collectives``, ``overlap``, ``sequence_parallel``: sim/analytic/layout.py.
    """

    tensor: Count = 1
    pipeline: Count = 1
    expert: Count = 1
    data: Count = 1
    node_devices: Count | None = None
    network_GBps: Positive | None = None
    network_latency_us: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0
    link: Literal["nvlink", "ici", "pcie", "ethernet"] | None = None
    collectives: Literal["flat", "hierarchical"] = "flat"
    overlap: Literal["none", "full"] = "none"
    sequence_parallel: bool = False


class PoolPart(_Part):
    """One of two pools: how many replicas, and in what they differ from the scenario (null: in nothing)."""

    replicas: Annotated[int, Field(strict=True, ge=1, le=MOST_REPLICAS)] = 1
    layout: LayoutPart | None = None
    hardware: str | None = None
    scheduler: Choice | None = None


class PoolsPart(_Part):
    """Prompts read in one pool and tokens written in another, and the link over which a cache moves between them.

    ``link_GBps`` and ``link_latency_us`` are those of a replica, in either direction (docs/layouts.md). ``overlap``:
    ``layers`` sends a cache layer by layer while its prompt is read, ``none`` whole once there is room for it.
    """

    link_GBps: Positive
    prefill: PoolPart = PoolPart()
    decode: PoolPart = PoolPart()
    link_latency_us: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0
    overlap: Literal["none", "layers"] = "none"


class SwitchTierPart(_Part):
    """From ``waiting`` waiting sequences on, the model with these further variants."""

    waiting: Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
    variants: list[Choice] = Field(default_factory=list)


class SwitchPart(_Part):
    """A model that is served smaller the more requests wait (docs/faults-and-scaling.md).

    A tier is left once fewer than its ``waiting`` less ``hysteresis`` wait; a change of tier takes ``switch_ms``.
    """

    tiers: Annotated[list[SwitchTierPart], Field(min_length=2, max_length=16)]
    hysteresis: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    switch_ms: Annotated[float, Field(strict=True, ge=0, le=1e6)] = 0.0


class GroupPart(_Part):
    """Replicas that are alike: how many, and in what they differ from the scenario (null: in nothing).

    ``weight`` is for routers that share by weight; ``usd_per_hour`` is the rent of one replica, all its devices.
    """

    name: str
    replicas: Annotated[int, Field(strict=True, ge=0, le=MOST_REPLICAS)] = 1
    model: str | None = None
    hardware: str | None = None
    engine: str | None = None
    clock: Literal["fixed", "governed"] | None = None
    layout: LayoutPart | None = None
    precision: PrecisionPart | None = None
    variants: list[Choice] | None = None
    policy: Choice | None = None
    switch: SwitchPart | None = None
    scheduler: Choice | None = None
    kv: KvPart | None = None
    weight: Positive = 1.0
    usd_per_hour: Positive | None = None


def _instants(said: Any) -> Any:
    """One instant is a list of one."""
    return [said] if isinstance(said, int | float) and not isinstance(said, bool) else said


Seconds = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]
SECOND_SCHEMA = {"type": "number", "minimum": 0, "maximum": 1e9}
INSTANT_LIST = {"type": "array", "items": SECOND_SCHEMA, "minItems": 1, "maxItems": 10_000}
INSTANTS_SCHEMA = {"anyOf": [SECOND_SCHEMA, INSTANT_LIST]}
Instants = Annotated[
    list[Seconds], Field(min_length=1, max_length=10_000), BeforeValidator(_instants), WithJsonSchema(INSTANTS_SCHEMA)
]


class FaultsPart(_Part):
    """Replicas of a group (null: of all) that fail (docs/faults-and-scaling.md).

    At random, every ``mtbf_h`` hours of one replica on average, or at ``at_s``: all, or the one in place ``slot``. Each
    is repaired in ``repair_s`` (null: never), as a mean if ``repair`` is ``exponential``, and starts in ``start_s``.
    """

    group: str | None = None
    slot: Annotated[int, Field(strict=True, ge=0, lt=MOST_REPLICAS)] | None = None
    mtbf_h: Positive | None = None
    at_s: Instants | None = None
    repair_s: Seconds | None = 0.0
    repair: Literal["fixed", "exponential"] = "fixed"
    start_s: Seconds = 0.0


class SpotPart(_Part):
    """Replicas of a group that are taken back: each ``rate_per_h`` times an hour on average, or all at ``at_s``.

    They are told ``notice_s`` before and drain, and come ``back_s`` (null: never) after they went.
    """

    group: str
    rate_per_h: Positive | None = None
    at_s: Instants | None = None
    notice_s: Seconds = 120.0
    back_s: Seconds | None = 0.0
    start_s: Seconds = 0.0


class RestartPart(_Part):
    """A rolling restart at ``at_s`` of a group (null: of all): at most ``at_once`` replicas are out for it.

    Each drains, for at most ``drain_s`` (null: as long as it takes), and then starts in ``start_s``.
    """

    at_s: Instants
    group: str | None = None
    at_once: Annotated[int, Field(strict=True, ge=1, le=MOST_REPLICAS)] = 1
    drain_s: Seconds | None = None
    start_s: Seconds = 0.0


class AutoscalePart(_Part):
    """A group whose replicas follow the load, as Kubernetes' HPA does: ceil(load / ``target``), ``min`` to ``max``.

    ``metric``, looked at every ``every_s``: requests ``outstanding`` or ``waiting``, the share of KV memory, or the
    ``percentile`` of TTFT over ``window_s``. ``down_after_s``: that long nobody asked for more before one goes.
    """

    group: str
    min: Annotated[int, Field(strict=True, ge=0, le=MOST_REPLICAS)] = 1
    max: Annotated[int, Field(strict=True, ge=1, le=MOST_REPLICAS)]
    metric: Literal["outstanding", "waiting", "kv", "ttft_ms"] = "outstanding"
    target: Positive
    every_s: Annotated[float, Field(strict=True, ge=0.001, le=1e9)] = 15.0
    start_s: Seconds = 0.0
    down_after_s: Seconds = 300.0
    tolerance: Fraction = 0.1
    window_s: Annotated[float, Field(strict=True, ge=0.001, le=1e9)] = 60.0
    percentile: Annotated[float, Field(strict=True, gt=0, lt=100)] = 99.0


class FleetPart(_Part):
    """Groups of replicas, and what becomes of a request whose replica fails (docs/fleet.md).

    It is tried ``retries`` more times, elsewhere: with what it has emitted (``resume``) or from the start. What makes
    replicas come and go is in docs/faults-and-scaling.md.
    """

    groups: Annotated[list[GroupPart], Field(min_length=1, max_length=256)]
    retries: Annotated[int, Field(strict=True, ge=0, le=1000)] = 3
    resume: bool = True
    faults: Annotated[list[FaultsPart], Field(max_length=256)] = Field(default_factory=list)
    spot: Annotated[list[SpotPart], Field(max_length=256)] = Field(default_factory=list)
    restarts: Annotated[list[RestartPart], Field(max_length=256)] = Field(default_factory=list)
    autoscale: Annotated[list[AutoscalePart], Field(max_length=256)] = Field(default_factory=list)


class LimitsPart(_Part):
    """What one tenant may do; null: as much as it likes. ``burst``: requests that may come at once at a rate."""

    rate_per_s: Annotated[float, Field(strict=True, gt=0, le=1e9)] | None = None
    burst: Count = 1
    max_outstanding: Count | None = None


class TenantPart(LimitsPart):
    """A tenant by the ``number`` that its requests carry, and its own limits in place of ``admission.each``."""

    number: Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]


class AdmissionPart(_Part):
    """Who may come in at the gateway (docs/fleet.md); null: no limit.

    ``max_outstanding`` requests are on replicas, ``max_held`` wait at the gateway, for at most ``queue_s``. ``fair``:
    next is the tenant with the fewest on replicas. ``each``: limits of every tenant without its own.
    """

    max_outstanding: Count | None = None
    max_held: Annotated[int, Field(strict=True, ge=0, le=10_000_000)] | None = None
    queue_s: Annotated[float, Field(strict=True, ge=0, le=1e9)] | None = None
    fair: bool = False
    each: LimitsPart = LimitsPart()


class ClassPart(_Part):
    """Requests of one priority, and what they were promised in place of the ``slo``; null promises nothing."""

    priority: Annotated[int, Field(strict=True, ge=-(1 << 31), lt=1 << 31)]
    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    e2el_ms: Positive | None = None
    percentile: Annotated[float, Field(strict=True, gt=0, lt=100)] = 99


class PrecisionPart(_Part):
    """Number formats of weights, activations and KV cache; ``compute``: what products of linear layers multiply in
    (null: the wider of weights and activations).
    """

    weights: str = "bf16"
    activations: str = "bf16"
    kv: str = "bf16"
    compute: str | None = None


class TierPart(_Part):
    """Memory below a replica's own that keeps blocks evicted from above: size, bandwidth and latency of one replica."""

    name: Annotated[str, Field(strict=True, pattern="^[a-z][a-z0-9_]{0,19}$")]
    GB: Positive
    GBps: Positive
    latency_us: Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)] = 0.0


class PrefixPart(_Part):
    """KV blocks of earlier prompts are kept and found again (docs/prefix-caching.md).

    ``evict``: who goes first. ``tiers``: what lies below a replica's own memory, fastest first.
    """

    evict: Literal["lru", "fifo", "lfu"] = "lru"
    tiers: Annotated[list[TierPart], Field(max_length=8)] = Field(default_factory=list)


class KvPart(_Part):
    """The KV cache: paged in blocks, or a maximum length reserved for every sequence.

    ``memory_fraction`` of the device's memory is the engine's; ``watermark`` is the share of KV memory that admission
    leaves free; ``reserve_tokens`` is what ``reserved`` sets aside for a sequence (null: the model's longest context).
    ``prefix_cache``: null for none.
    """

    mode: Literal["paged", "reserved"] = "paged"
    block_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] = 16
    memory_fraction: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    watermark: Fraction = 0.0
    reserve_tokens: Count | None = None
    prefix_cache: PrefixPart | None = None


class PlanPart(_Part):
    """What ``plan`` searches, what a plan must keep beside the ``slo``, and how carefully (docs/planning.md).

    ``search``: values to try by key of the scenario, every combination; ``devices`` stands for all legal layouts over
    so many, ``pools`` for prefill and decode replicas (1P3D; none). ``rate``: requests/s (null: the workload's), times
    ``growth``. ``confidence``: that one more run meets every objective, judged from ``seeds`` runs. ``requests``: at
    least, of a run that looks for a capacity. ``keep``: plans that are confirmed and ranked.
    """

    search: dict[str, Annotated[list[Any], Field(min_length=1, max_length=10_000)]] = Field(default_factory=dict)
    rate: Positive | None = None
    growth: Positive = 1.0
    confidence: Annotated[float, Field(strict=True, gt=0.5, lt=1)] = 0.9
    seeds: Annotated[int, Field(strict=True, ge=2, le=1000)] = 5
    requests: Annotated[int, Field(strict=True, ge=100, le=1_000_000)] = 1500
    keep: Annotated[int, Field(strict=True, ge=1, le=1000)] = 8
    max_replicas: Annotated[int, Field(strict=True, ge=1, le=MOST_REPLICAS)] = 256
    max_usd_per_hour: Positive | None = None
    max_usd_per_million_output_tokens: Positive | None = None
    usd_per_device_hour: dict[str, Positive] = Field(default_factory=dict)
    link_GBps: Positive | None = None


class SloPart(_Part):
    """What was promised: milliseconds at a percentile of requests; null promises nothing."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    e2el_ms: Positive | None = None
    percentile: Annotated[float, Field(strict=True, gt=0, lt=100)] = 99


class EnergyPart(_Part):
    """How joules are counted and what is added to them (docs/energy-and-money.md).

    ``mode``: ``coefficients`` (FLOPs, bytes and idle power: a floor) or ``tdp`` (TDP while rounds run: a ceiling).
    ``rounds``: joules of the ``mean`` round of a leap, or of ``each``, counted as it runs, which takes its time.
    ``host_W`` of servers and ``power_cap_W`` are a device's. Intensity and PUE: Patterson et al. 2021, table 4.
    """

    mode: Literal["coefficients", "tdp"] = "coefficients"
    rounds: Literal["mean", "each"] = "mean"
    power_cap_W: Positive | None = None
    host_W: Annotated[float, Field(strict=True, ge=0, le=1e5, allow_inf_nan=False)] = 0.0
    pue: Annotated[float, Field(strict=True, ge=1, le=10, allow_inf_nan=False)] = 1.1
    grid_gCO2_per_kWh: Annotated[float, Field(strict=True, ge=0, le=1e4, allow_inf_nan=False)] = 429.0


class CostPart(_Part):
    """What is paid: rent by device (null: the dated price of its profile), and electricity where that is not in it."""

    usd_per_device_hour: Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)] | None = None
    usd_per_kWh: Annotated[float, Field(strict=True, ge=0, le=1e3, allow_inf_nan=False)] = 0.0


class PublishedPart(_Part):
    """A number that somebody printed, to be shown beside ours (sim/quantities.py says what each quantity is).

    ``over``: it is that scenario's quantity over this one's; ``label``: what ours is to it.
    """

    quantity: Literal[
        "step_ms", "device_step_ms", "decoder_steps", "decode_ms", "encoder_ms", "overhead_ms", "ttft_ms", "e2el_ms"
    ]
    value: Positive
    source: str
    over: str | None = None
    label: Literal["given", "fit", "identity", "prediction", "known failure"] = "prediction"


def _quality(said: Any) -> Any:
    """One line for a union whose members pydantic would name one by one."""
    number = isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said < math.inf
    if number or said in ("lossless", "any"):
        return said
    raise ValueError("must be lossless, any, or a loss in percent of at least 0")


class Scenario(_Part):
    """One experiment. ``Scenario.load("file.yaml")``, or by keywords; ``simulate`` runs it.

    ``quality``: what ``speedup`` and ``tune`` may recommend beyond the policy as written: lossless choices, choices
    that lose at most so many percent, or any. ``published``: numbers that a run is shown beside.
    """

    model: str
    hardware: str
    engine: str = "ideal"
    clock: Literal["fixed", "governed"] | None = None
    layout: LayoutPart = LayoutPart()
    precision: PrecisionPart = PrecisionPart()
    variants: list[Choice] = Field(default_factory=list)
    policy: Choice = "autoregressive"
    switch: SwitchPart | None = None
    scheduler: Choice | None = None
    kv: KvPart = KvPart()
    replicas: Annotated[int, Field(strict=True, ge=1, le=MOST_REPLICAS)] = 1
    pools: PoolsPart | None = None
    fleet: FleetPart | None = None
    router: Choice = "round_robin"
    admission: AdmissionPart | None = None
    tenants: dict[str, TenantPart] = Field(default_factory=dict)
    classes: dict[str, ClassPart] = Field(default_factory=dict)
    workload: dict[str, Any]
    slo: SloPart = SloPart()
    energy: EnergyPart = EnergyPart()
    cost: CostPart = CostPart()
    quality: Annotated[
        Literal["lossless", "any"] | Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)],
        BeforeValidator(_quality),
    ] = "lossless"
    published: list[PublishedPart] = Field(default_factory=list)
    warmup_s: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0
    plan: PlanPart | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 63)] = 0

    @classmethod
    def load(cls, name_or_path: str | PathLike[str], settings: Iterable[str] = ()) -> Scenario:
        """The scenario in a YAML file, or a shipped one by name; ``settings`` are ``key.path=value`` overrides.

        Paths in the file are relative to it, paths in ``settings`` to the working folder. Raises ValueError, one line
        naming file, key, value and what is allowed.
        """
        file, label = _locate(str(name_or_path))
        data = read(file, label)
        if isinstance(file, Path):
            data = beside(data, file.parent)
        for setting in settings:
            override(data, setting)
        return cls.parse(data, label)

    @classmethod
    def parse(cls, data: Mapping[str, Any], label: str = "scenario") -> Scenario:
        """Check a mapping, whose paths are relative to the working folder. Raises ValueError, one line."""
        try:
            return cls.model_validate(plain(data, label))
        except ValidationError as error:
            raise ValueError(f"{label}: {_one_line(error)}") from None

    def with_settings(self, settings: Iterable[str]) -> Scenario:
        """A copy with ``key.path=value`` overrides. Raises ValueError."""
        data = self.model_dump(exclude_unset=True)
        for setting in settings:
            override(data, setting)
        return Scenario.parse(data, "--set")

    def to_yaml(self) -> str:
        """The scenario as YAML, every default written out."""
        return yaml.safe_dump(_plain(self.model_dump()), sort_keys=False, allow_unicode=True)


def shipped_scenarios() -> dict[str, Traversable]:
    """Scenarios that come with the package, by name."""
    folder = files("workloads") / "scenarios"
    found = (f for f in folder.iterdir() if f.name.endswith(".yaml")) if folder.is_dir() else ()
    return {f.name.removesuffix(".yaml"): f for f in sorted(found, key=lambda f: f.name)}


def override(data: dict[str, Any], setting: str) -> None:
    """Apply ``key.path=value`` (the value is YAML) to a scenario's mapping. Raises ValueError."""
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set {setting[:80]!r}: must be key=value, as in --set workload.rate_scale=2")
    new = value(text, f"--set {path}")
    for depth, key in enumerate(keys[:-1]):
        inner = data.get(key)
        if depth == 0 and key in PLUGINS:
            inner = _options(key, inner)
        if inner is not None and not isinstance(inner, dict):
            raise ValueError(f"--set {path}: {key} holds {shown(inner)}, which has no keys")
        data[key] = dict(inner or {})
        data = data[key]
    data[keys[-1]] = new


def _options(key: str, said: Any) -> Any:
    """A plug-in's options, where the scenario gives its name alone or leaves it at the default."""
    name = Scenario.model_fields[key].default if said is None else said
    return {"name": name} if isinstance(name, str) else name


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a scenario, for editors."""
    from sim.schema import complete

    out = complete(Scenario.model_json_schema())
    out["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    out["title"] = "decodesim scenario"
    return out


def _locate(name: str) -> tuple[Traversable, str]:
    path = Path(name)
    if name.endswith((".yaml", ".yml")) or os.path.isfile(name):
        return path, name
    known = shipped_scenarios()
    if name in known:
        return known[name], name
    if "/" in name or os.path.exists(name):
        raise ValueError(f"{name[:200]}: no such file; a scenario is a YAML file or one of {', '.join(known)}")
    raise ValueError(f"no scenario {name[:80]!r}: a YAML file or one of {', '.join(known)}{suggest(name, known)}")


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("str", "dict[str,any]")]
    key, kind = brief(".".join(path), 80), first["type"]
    if kind == "extra_forbidden":
        allowed = _fields_at(path[:-1])
        return f"{key}: unknown key; allowed here: {', '.join(allowed)}{suggest(path[-1], allowed)}"
    if kind == "missing":
        above = ".".join(path[:-1])
        needed = f"{above} needs it" if above else "every scenario needs model, hardware and workload"
        return f"{key}: missing; {needed}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("dictionary or instance of ", "mapping, not ").split(", unable to parse")[0]
    return f"{key}: {shown(first.get('input'))}: {message[:1].lower()}{message[1:]}"


def _fields_at(path: list[str]) -> list[str]:
    model: type[BaseModel] = Scenario
    for key in path:
        if key.isdigit():  # a place in a list
            continue
        said: Any = model.model_fields[key].annotation
        kinds = said.__args__ if get_origin(said) is list else (said, *get_args(said))
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


def _plain(value: Any) -> Any:
    """Plain YAML values; infinity as the word that a scenario uses for it."""
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def dump_json(value: Any) -> str:
    """JSON with sorted nothing and nothing infinite: infinities become the word."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)
