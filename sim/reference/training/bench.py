"""What the measurements share: the family's folder, the held-out texts as windows, the target's own continuations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.reference.training import configs as c
from sim.reference.training.corpus import split_corpus
from sim.reference.training.extras import Medusa, Tandem
from sim.reference.training.generate import generate
from sim.reference.training.nets import Llama
from sim.reference.training.store import load_llama, load_tensors
from sim.reference.training.text import encode_texts

TEMPERATURES = (1.0, 0.7, 0.0)
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 128, 32, 160
SEED = 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """The family's folder and the texts it is measured on (windows of ids)."""

    family: Path
    held_out: dict[str, Tensor]
    report: Callable[[str], None]
    _drawn: dict[tuple[c.NetConfig, str, float], Tensor] = field(default_factory=dict, repr=False)

    def llama(self, name: str) -> Llama:
        """A member's decoder, frozen."""
        return load_llama(self.family / name)

    def prompts(self, name: str) -> Tensor:
        """[128, 32] evenly spread over a held-out text."""
        flat = self.held_out[name].flatten()
        starts = torch.linspace(0, len(flat) - PROMPT_TOKENS - 1, PROMPTS).long()
        return torch.stack([flat[s : s + PROMPT_TOKENS] for s in starts])

    def own_text(self, target: Llama, name: str, temperature: float) -> Tensor:
        """Prompts of one held-out text continued by the target: [128, 192], drawn once."""
        key = (target.config, name, temperature)
        if key not in self._drawn:
            with torch.no_grad():
                self._drawn[key] = generate(target, self.prompts(name), NEW_TOKENS, temperature, SEED)
        return self._drawn[key]


def windows(tokens: np.ndarray[Any, np.dtype[np.int64]], length: int) -> Tensor:
    """Cut a text into [W, length], the remainder dropped."""
    count = len(tokens) // length
    return torch.from_numpy(tokens[: count * length].reshape(count, length))


def open_bench(family: Path, report: Callable[[str], None]) -> Bench:
    """Read and cut the held-out texts."""
    split, tokenizer = split_corpus(), family / "tokenizer.json"
    texts = {"a": split.held_out_a, "b": split.held_out_b}
    length = c.CONTEXT_TOKENS + 1
    return Bench(family, {k: windows(encode_texts(tokenizer, v), length) for k, v in texts.items()}, report)


def load_tandem(family: Path) -> Tandem:
    """The secondary with its projections, frozen."""
    tandem = Tandem(c.TANDEM, c.PRIMARY, 0)
    tensors = load_tensors(family / "tandem")
    tandem.load_state_dict({n if n.startswith("proj.") else f"net.{n}": t for n, t in tensors.items()})
    return tandem.requires_grad_(False).eval()


def load_medusa(family: Path) -> Medusa:
    """The heads, frozen."""
    heads = Medusa(c.PRIMARY, 0)
    heads.load_state_dict(load_tensors(family / "medusa"))
    return heads.requires_grad_(False).eval()
