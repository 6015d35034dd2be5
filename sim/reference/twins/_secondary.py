"""The secondary of a tandem: a small decoder whose cache is filled, before the block, from the primary's states.

Tandem Transformers (arXiv 2402.08644, section 3): layer j makes keys and values of ``W_j x`` with its own norm and
maps, x being the primary's residual stream after ``layer_map[j]`` layers. Inside the block it is an ordinary decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.cache import KVCache
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.config_file import Config
from sim.reference.rope import rotate
from sim.reference.safetensors_file import read_index
from sim.reference.transformer import Transformer

Array = NDArray[Any]
States = Mapping[int, Array]


@dataclass
class Secondary(Transformer):
    """A decoder with ``projections[j]`` [d_P, d_S] and, for each, the primary layer that it reads (0: embeddings).

    The op names of :meth:`renew` carry the prefix ``tandem.``. Raises ValueError where these do not fit its layers.
    """

    projections: tuple[Array, ...] = ()
    layer_map: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check widths and numbers of layers."""
        super().__post_init__()
        layers, d = len(self.shape.layers), self.shape.d_model
        if len(self.projections) != layers or len(self.layer_map) != layers:
            counts = f"{len(self.projections)} projections and {len(self.layer_map)} sources"
            raise ValueError(f"{self.shape.name}: {counts}; allowed: {layers} of each, one a layer")
        if any(w.ndim != 2 or w.shape[1] != d for w in self.projections):
            raise ValueError(f"{self.shape.name}: projections must be [d_P, {d}]")
        if any(layer.attention.qk_norm for layer in self.shape.layers):
            raise ValueError(f"{self.shape.name}: normed queries and keys: not supported in a tandem's secondary")

    def renew(
        self, states: States, cache: KVCache, sequences: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> None:
        """Write keys and values of tokens that the primary has just read: ``counts[i]`` from place ``starts[i]`` on.

        ``states[l]`` [tokens, d_P]: of all sequences' tokens end to end. What the cache held behind is forgotten.
        """
        for sequence, start in zip(sequences, starts, strict=True):
            cache.truncate(int(sequence), int(start))
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
        ends = np.cumsum(counts)[:-1]
        cache.reserve(max(s + n for s, n in zip(starts, counts, strict=True)))
        with self.meter.prefix("tandem."):
            for j, source in enumerate(self.layer_map):
                k, v = self.keys_values(j, states[source], positions)
                parts = zip(sequences, starts, np.split(k, ends), np.split(v, ends), strict=True)
                for sequence, start, keys, values in parts:
                    cache.write(j, int(sequence), int(start), keys, values)
        cache.commit(list(sequences), counts)

    def keys_values(self, j: int, states: Array, positions: Array) -> tuple[Array, Array]:
        """Of layer j from the primary's states, [n, d_P] -> keys, rotated, and values, [n, Hkv, dh] each."""
        kind, key = self.shape.layers[j].attention, f"layers.{j}."
        y = self.meter.linear("project", states, self.projections[j], exact=self.exact)  # [n, d_P] @ [d_P, d_S]
        y = self.norm("norm.attn", key, y)
        first = kind.heads * kind.head_dim  # columns of the queries, which nobody asks for
        weights, bias = self.weights[f"{key}attn.qkv"][:, first:], self.weights.get(f"{key}attn.qkv.bias")
        both = self.meter.linear("attn.kv", y, weights, None if bias is None else bias[first:], exact=self.exact)
        k, v = np.split(both, [kind.kv_heads * kind.head_dim], axis=-1)
        k, v = k.reshape(-1, kind.kv_heads, kind.head_dim), v.reshape(-1, kind.kv_heads, kind.value_dim)
        if kind.rope and self.numerics.rope is not None:
            self.meter.add("attn.rope", flops=3 * k.size, activations=2 * k.nbytes)
            k = rotate(k, *self.rotation(kind, positions))
        self.meter.add("kv.append", kv=k.nbytes + v.nbytes)
        return k, v


def load_secondary(path_or_name: str | Path = "tandem", *, exact: bool = False) -> Secondary:
    """A member with ``proj.{j}.weight`` tensors and a ``tandem_layer_map`` in its config. Raises ValueError."""
    path = Path(path_or_name) if Path(path_or_name).exists() else SHIPPED / str(path_or_name)
    model = load(path, exact=exact)
    config, tensors = Config.read(path / "config.json"), read_index(path)
    layer_map, wide = config.values.get("tandem_layer_map"), config.size("tandem_primary_hidden_size")
    layers = len(model.shape.layers)
    if not isinstance(layer_map, list) or len(layer_map) != layers or any(type(n) is not int for n in layer_map):
        raise config.bad("tandem_layer_map", f"{layers} whole numbers are expected")
    names = [f"proj.{j}.weight" for j in range(layers)]
    for name in names:
        if name not in tensors or tensors[name].shape != (model.shape.d_model, wide):
            raise ValueError(f"{path}: tensor {name}: missing, or not [{model.shape.d_model}, {wide}]")
    projections = tuple(np.array(tensors[name].read(), model.dtype).T for name in names)
    own = {f.name: getattr(model, f.name) for f in fields(Transformer)}
    return Secondary(**own, projections=projections, layer_map=tuple(layer_map))
