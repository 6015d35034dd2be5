"""How one replica is cut over devices: which layouts there are, which of them a shape allows, and why no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sim.analytic.model import Attention, Layer, ModelShape

__all__ = ["Layout", "Stage", "Verdict", "check_cut", "check_layout", "layouts", "legal_layouts"]

COUNTS = ("tensor", "pipeline", "expert", "data")
SAID = {"collectives": ("flat", "hierarchical"), "overlap": ("none", "full")}


@dataclass(frozen=True)
class Layout:
    """``tensor * pipeline * data`` devices hold one replica.

    ``tensor`` devices share the heads and hidden units of a layer. ``pipeline`` stages hold consecutive layers.
    ``data`` ranks have attention, dense blocks and head each for themselves, for sequences of their own, and share the
    experts.
    ``expert`` groups divide a stage's ``tensor * data`` devices; each holds a part of the experts, and the devices of a
    group cut every expert of theirs. Devices are numbered tensor first, then data, then pipeline; ``node_devices``
    neighbours (None: all) are joined by the device's own link, others by a network of ``network_GBps`` a device.

    ``link``: of which kind the device's own must be (sim/analytic/wires.py). ``collectives`` over several nodes: rings
    paced by the network (``flat``), or within nodes and between them in turn (``hierarchical``). ``overlap``: ``full``
    hides collectives behind the products and norms of their pass. ``sequence_parallel``: norms are shared, too.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    data: int = 1
    node_devices: int | None = None
    network_GBps: float | None = None
    network_latency_us: float = 0.0
    link: str | None = None
    collectives: str = "flat"
    overlap: str = "none"
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError naming key, value and what is allowed."""
        for key in (*COUNTS, *(["node_devices"] if self.node_devices is not None else [])):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"layout.{key}: {value!r} must be a whole number of at least 1")
        if self.stage_devices % self.expert:
            raise ValueError(
                f"layout.expert: {self.expert} does not divide the {self.stage_devices} devices of a stage "
                f"(tensor {self.tensor} * data {self.data})"
            )
        if self.node_devices is not None and self.devices > self.node_devices and not self.network_GBps:
            said = f"{self.devices} devices are more than the {self.node_devices} of a node"
            raise ValueError(f"layout.network_GBps: missing: {said}")
        self._check_words()

    def _check_words(self) -> None:
        for key, allowed in SAID.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"layout.{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}")
        if self.collectives == "hierarchical" and self.leaves_node(self.tensor) and self.tensor % self.node_share:
            said = f"layout.node_devices: {self.node_devices} does not divide tensor {self.tensor}"
            raise ValueError(f"{said}: hierarchical collectives want whole nodes")
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("layout.sequence_parallel: true: no tensor devices to share tokens; use tensor above 1")

    @property
    def node_share(self) -> int:
        """Devices of a tensor group that are in one node, where collectives are hierarchical; else all of them."""
        apart = self.collectives == "hierarchical" and self.leaves_node(self.tensor)
        return self.node_devices if apart and self.node_devices is not None else self.tensor

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tensor * self.pipeline * self.data

    @property
    def stage_devices(self) -> int:
        """Devices of one stage."""
        return self.tensor * self.data

    @property
    def expert_tensor(self) -> int:
        """Devices that cut each expert."""
        return self.stage_devices // self.expert

    @property
    def plain(self) -> bool:
        """Whether every device does the same part of every pass: nothing but ``tensor``, and experts over it."""
        return self.pipeline == 1 and self.data == 1

    def leaves_node(self, devices: int) -> bool:
        """Whether some group of so many neighbours lies in more than one node."""
        return self.node_devices is not None and self.node_devices % devices != 0

    def leaves_node_after(self, stage: int) -> bool:
        """Whether some device of a stage and its peer in the next one are in different nodes."""
        first, end = stage * self.stage_devices, (stage + 2) * self.stage_devices
        return self.node_devices is not None and first // self.node_devices != (end - 1) // self.node_devices

    def __str__(self) -> str:
        """The counts that are not 1, as a scenario says them."""
        said = [f"{key} {getattr(self, key)}" for key in COUNTS if getattr(self, key) > 1]
        return ", ".join(said) or "one device"


@dataclass(frozen=True)
class Stage:
    """Stage number ``index`` of ``count`` that a pipeline has, from 0."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether tokens enter here: the embedding is this stage's."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether the head is this stage's."""
        return self.index == self.count - 1

    def layers_of(self, shape: ModelShape) -> slice:
        """Its layers: cut as evenly as possible, what is left over goes to the stages before the last ones."""
        each, more = divmod(len(shape.layers), self.count)
        start = self.index * each + min(self.index, more)
        return slice(start, start + each + (self.index < more))

    def of(self, shape: ModelShape) -> ModelShape:
        """The part of ``shape`` that it holds, as a model of its own (its embedding is left to the caller)."""
        if self.count == 1:
            return shape
        head, norm = shape.head and self.last, shape.final_norm and self.last
        extra = shape.extra if self.first else ()
        return replace(shape, layers=shape.layers[self.layers_of(shape)], extra=extra, head=head, final_norm=norm)

    def holds_table(self, shape: ModelShape) -> bool:
        """Whether the embedding table is here: for its own sake, or because the head is tied to it."""
        return self.first or (self.last and shape.tied and shape.head)


@dataclass(frozen=True)
class Verdict:
    """A layout, and why a shape does not allow it (None: it does)."""

    layout: Layout
    reason: str | None


def layouts(shape: ModelShape, devices: int) -> list[Verdict]:
    """Every way to cut ``shape`` over exactly ``devices``, most tensor first, with a reason where it is not legal.

    Raises ValueError for less than one device.
    """
    if devices < 1:
        raise ValueError(f"devices: {devices} must be a whole number of at least 1")
    return [Verdict(layout, _reason(shape, layout)) for layout in _candidates(devices)]


def legal_layouts(shape: ModelShape, devices: int) -> list[Layout]:
    """The layouts over exactly ``devices`` that ``shape`` allows. Raises ValueError."""
    return [verdict.layout for verdict in layouts(shape, devices) if verdict.reason is None]


def check_layout(shape: ModelShape, layout: Layout) -> None:
    """Raise ValueError where ``shape`` cannot be cut like that, naming the key and what does not divide."""
    _check_kind(shape, layout)
    check_cut(shape, layout)


def check_cut(shape: ModelShape, layout: Layout) -> None:
    """The same of the cut of each layer alone: what a draft beside a target must satisfy."""
    for layer in dict.fromkeys((*shape.layers, *shape.encoder)):
        _check_layer(layer, layout)


def _candidates(devices: int) -> Iterator[Layout]:
    for tensor in _divisors(devices)[::-1]:
        for pipeline in _divisors(devices // tensor):
            data = devices // tensor // pipeline
            for expert in _divisors(tensor * data):
                yield Layout(tensor, pipeline, expert, data)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _reason(shape: ModelShape, layout: Layout) -> str | None:
    try:
        check_layout(shape, layout)
    except ValueError as error:
        return str(error)
    return None


def _check_kind(shape: ModelShape, layout: Layout) -> None:
    experts = any(layer.ffn.experts for layer in shape.layers)
    for key in ("expert", "data"):
        if getattr(layout, key) > 1 and not experts:
            instead = "use tensor" if key == "expert" else "use replicas"
            raise ValueError(f"layout.{key}: {getattr(layout, key)}: {shape.name} has no experts to share; {instead}")
    if layout.pipeline > 1 and shape.encoder:
        raise ValueError(f"layout.pipeline: {layout.pipeline}: {shape.name} has an encoder, which no stage holds")
    if layout.pipeline > max(1, len(shape.layers)):
        said = f"{layout.pipeline} stages for the {len(shape.layers)} layers of {shape.name}"
        raise ValueError(f"layout.pipeline: {said}")


def _check_layer(layer: Layer, layout: Layout) -> None:
    for block in (layer.attention, layer.cross):
        if block is not None:
            _check_attention(block, layout.tensor)
    ffn = layer.ffn
    if not ffn.experts:
        _divides(layout.tensor, ffn.width, "feed-forward width")
        return
    _divides(layout.tensor, ffn.shared_width, "shared expert width")
    _divides(layout.expert, ffn.experts, "experts", "expert")
    what = "expert width" if layout.expert == layout.data == 1 else "width of an expert, which its group cuts further"
    _divides(layout.expert_tensor, ffn.width, what)


def _check_attention(block: Attention, tensor: int) -> None:
    _divides(tensor, block.heads, "attention heads")
    if block.latent is not None:
        return
    if block.kv_heads >= tensor:
        _divides(tensor, block.kv_heads, "KV heads")
    elif tensor % block.kv_heads:
        raise ValueError(f"layout.tensor: {block.kv_heads} KV heads cannot be replicated evenly over {tensor} devices")


def _divides(ways: int, count: int, what: str, key: str = "tensor") -> None:
    if count % ways:
        raise ValueError(f"layout.{key}: {ways} does not divide the {what} ({count})")
