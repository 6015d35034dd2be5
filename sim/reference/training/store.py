"""Folders of weights: `config.json` plus `model.safetensors` in float16, and back into torch."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sim.reference.training.configs import NetConfig
from sim.reference.training.nets import Llama, ternary
from sim.reference.training.packing import pack_ternary, unpack_ternary

Tensors = dict[str, Tensor]


def save_folder(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """Write both files of one member; every float tensor becomes float16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: (v.half() if v.is_floating_point() else v).detach().contiguous().clone() for k, v in tensors.items()}
    path = folder / "model.safetensors"
    save_file(half, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library writes 0600, which would not install readable
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tensors(folder: Path) -> Tensors:
    """Tensors of one member as float32, packed ternary matrices unpacked and scaled."""
    raw = load_file(folder / "model.safetensors")
    scales = {name.removesuffix("_scale") for name in raw if name.endswith(".weight_scale")}
    out = {name: t.float() for name, t in raw.items() if name not in scales and not name.endswith("_scale")}
    for name in scales:
        values = torch.from_numpy(unpack_ternary(raw[name].numpy()))
        out[name] = values.float() * raw[name + "_scale"].float()
    return out


def load_config(folder: Path) -> dict[str, Any]:
    """The member's `config.json`."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def load_llama(folder: Path) -> Llama:
    """The decoder of one member, frozen, in float32 (extra tensors such as projections are left out)."""
    config = load_config(folder)
    net = Llama(NetConfig(**{k: config[k] for k in NetConfig.__dataclass_fields__}), seed=0)
    own = net.state_dict()
    tensors = load_tensors(folder)
    net.load_state_dict({name: tensors[name] for name in own})
    return net.requires_grad_(False).eval()


def ternary_tensors(tensors: Tensors) -> Tensors:
    """Replace every matrix of the layers by its packed ternary values and one float scale."""
    out: Tensors = {}
    for name, t in tensors.items():
        if ".layers." not in name or t.dim() != 2:
            out[name] = t
            continue
        scale = t.abs().mean().clamp(min=1e-8)
        values = torch.round(ternary(t) / scale).to(torch.int8).numpy().astype(np.int8)
        out[name] = torch.from_numpy(pack_ternary(values))
        out[name + "_scale"] = scale.reshape(1)
    return out


def versions() -> dict[str, str]:
    """What the numbers depend on besides the seed: library versions and the processor family."""
    libraries = {m.__name__: str(m.__version__) for m in (np, safetensors, tokenizers, torch)}
    return {"python": platform.python_version(), "machine": platform.machine(), **libraries}
