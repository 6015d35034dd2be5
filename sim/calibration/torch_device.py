"""The machine as torch uses it, CPU or GPU: probes and steps of a calibration in eager float32 tensors.

The stand-ins of sim/calibration/cases.py decode and read prompts with the witness's arithmetic, all sequences of a
batch in one tensor. torch is an extra, imported when a device of it is asked for. Products stay in float32: torch
leaves TF32 off unless told otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.calibration import probes
from sim.calibration.cases import STAND_INS, Case, fitted, judged, model_of
from sim.calibration.session import Session, interleaved
from sim.calibration.timing import Stopwatch
from sim.plugin import suggest
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer

DEVICES = ("cpu", "cuda", "torch-cpu")
POSITIONS = 512  # room of a cache; the cases end at 321
BURST = 20  # bare products queued at once on a GPU, so that launching them is hidden
Tensor = Any
Ids = NDArray[np.int64]


def require(device: str) -> None:
    """Raise ValueError, one line that names what is missing, unless ``device`` can be measured here."""
    if device not in DEVICES:
        raise ValueError(f"--device: {device[:80]!r}; allowed: {', '.join(DEVICES)}{suggest(device, DEVICES)}")
    if device == "cpu":
        return
    try:
        import torch
    except ImportError:
        raise ValueError(f"--device {device}: torch is not installed; pip install 'decodesim[torch]'") from None
    with warnings.catch_warnings():  # a driver that is too old warns at length
        warnings.simplefilter("ignore")
        found = device != "cuda" or torch.cuda.is_available()
    if not found:
        why = "no GPU is visible" if torch.version.cuda or torch.version.hip else "this build of torch has no CUDA"
        raise ValueError(f"--device cuda: {why} (torch {torch.__version__})")


def measured(device: str, threads: int, repeats: int) -> Session:
    """Probes, fitted steps and judged steps of the stand-ins, timed on ``cuda`` or ``torch-cpu``.

    ``threads``: of torch on the host. Raises ValueError where the device is missing or fails.
    """
    require(device)
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _session(device.removeprefix("torch-"), threads, repeats)
    except RuntimeError as error:  # what torch raises for anything that goes wrong on a GPU, memory included
        first = (str(error).splitlines() or ["failed"])[0]
        raise ValueError(f"calibration: measuring with --device {device} failed: {first}") from None
    finally:
        torch.set_num_threads(before)


def facts(device: str, threads: int, session: Session) -> dict[str, Any]:
    """What a profile says of the device: processor, memory_bytes (a GPU's own), how it was measured."""
    import torch

    ran = f"torch {torch.__version__}, eager, float32, {threads} host thread{'s' * (threads > 1)}"
    repeats, steps = len(session.probes), len(session.times(fitted()))
    out: dict[str, Any] = {
        "how": f"measured by decodesim calibrate --device {device}: {ran}, best of {repeats} repeats, "
        f"fitted to {steps} steps of other models"
    }
    if device == "cuda":
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        out |= {"processor": found.name, "memory_bytes": found.total_memory}
    return out


@dataclass(frozen=True)
class Waiting(Stopwatch):
    """A stopwatch that lets the device finish before it looks at the clock: launches return early."""

    wait: Callable[[], object] = lambda: None

    def now(self) -> float:
        """Seconds of the clock in use, everything asked for so far done."""
        self.wait()
        return super().now()


class Decoder:
    """A stand-in on a device; all sequences of a batch are equally long. Only Llama-like shapes without a window."""

    def __init__(self, model: Transformer, where: str) -> None:
        """Copies the weights, as the witness stores them, to ``where``."""
        import torch

        self.torch, self.where, self.shape, self.eps = torch, where, model.shape, model.numerics.eps
        self.weights = {name: torch.from_numpy(w).to(where) for name, w in model.weights.items()}
        turns = model.rotation(model.shape.layers[0].attention, np.arange(POSITIONS))
        self.cos, self.sin = (torch.from_numpy(t[:, 0]).to(where) for t in turns)  # [POSITIONS, dh / 2]

    def new_cache(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values by layer, [batch, Hkv, POSITIONS, dh]."""
        kinds = [layer.attention for layer in self.shape.layers]
        sizes = [[(batch, a.kv_heads, POSITIONS, width) for width in (a.head_dim, a.value_dim)] for a in kinds]
        return [tuple(self.torch.zeros(size, device=self.where) for size in pair) for pair in sizes]

    def step(self, ids: Ids, cache: list[tuple[Tensor, Tensor]], start: int) -> Ids:
        """One pass as an engine runs it: ids [batch, n] from the host, the likeliest next ones [batch, 1] back."""
        with self.torch.inference_mode():
            logits = self.forward(self.torch.from_numpy(ids).to(self.where), cache, start)
            out: Ids = logits.argmax(-1, keepdim=True).cpu().numpy()
        return out

    def forward(self, ids: Tensor, cache: list[tuple[Tensor, Tensor]], start: int) -> Tensor:
        """Logits of the last token, [batch, n] -> [batch, V]; the cache holds ``start`` tokens before, n more after."""
        x = self.weights["embed"][ids]
        for i in range(len(self.shape.layers)):
            x = x + self._attention(i, self._norm(f"layers.{i}.norm.attn", x), cache[i], start)
            x = x + self._ffn(i, self._norm(f"layers.{i}.norm.mlp", x))
        return self._norm("norm.final", x[:, -1]) @ self.weights["logits"]

    def _norm(self, key: str, x: Tensor) -> Tensor:
        return x * self.torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weights[key]

    def _ffn(self, i: int, x: Tensor) -> Tensor:
        gate, up = (x @ self.weights[f"layers.{i}.mlp.up"]).chunk(2, dim=-1)
        return (self.torch.nn.functional.silu(gate) * up) @ self.weights[f"layers.{i}.mlp.down"]

    def _attention(self, i: int, x: Tensor, cached: tuple[Tensor, Tensor], start: int) -> Tensor:
        kind, (batch, n, _) = self.shape.layers[i].attention, x.shape
        widths = [kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim, kind.kv_heads * kind.value_dim]
        parts = (x @ self.weights[f"layers.{i}.attn.qkv"]).split(widths, dim=-1)
        heads = (kind.heads, kind.kv_heads, kind.kv_heads)
        q, k, v = (p.view(batch, n, h, -1).transpose(1, 2) for p, h in zip(parts, heads, strict=True))
        now = slice(start, start + n)
        for kept, new in zip(cached, (self._rotated(k, now), v), strict=True):
            kept[:, :, now] = new
        q = self._rotated(q, now).reshape(batch, kind.kv_heads, -1, kind.head_dim)  # [b, Hkv, g * n, dh]
        keys, values = (kept[:, :, : start + n] for kept in cached)
        mixed = self._attend(q, keys, values, n)
        mixed = mixed.reshape(batch, kind.heads, n, -1).transpose(1, 2).reshape(batch, n, -1)
        return mixed @ self.weights[f"layers.{i}.attn.out"]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
        """Scores written out, as the simulator's ``attention="standard"`` counts them."""
        scores = (q * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        if n > 1:
            length = keys.shape[2]
            later = self.torch.ones(n, length, dtype=self.torch.bool, device=self.where).triu(length - n + 1)
            scores = scores.unflatten(2, (-1, n)).masked_fill(later, float("-inf")).flatten(2, 3)
        return scores.softmax(-1) @ values

    def _rotated(self, x: Tensor, now: slice) -> Tensor:
        (a, b), cos, sin = x.chunk(2, dim=-1), self.cos[now], self.sin[now]
        return self.torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def step_s(case: Case, decoder: Decoder, watch: Stopwatch) -> float:
    """Seconds of one case; a decode step writes the same place of the cache each time."""
    vocab, cache = decoder.shape.vocab, decoder.new_cache(case.batch)
    prompts = np.stack([stream(i, "step").integers(0, vocab, case.context) for i in range(case.batch)])
    if case.phase == "prefill":
        return watch.best(lambda: decoder.step(prompts, cache, 0))
    last = decoder.step(prompts, cache, 0)
    return watch.best(lambda: decoder.step(last, cache, case.context))


def _session(where: str, threads: int, repeats: int) -> Session:
    """The judged cases here are those of stand-ins: the family's models stay with the witness."""
    watch = _watch(where, threads)
    bare = dict(_probes(where))
    cases = interleaved(fitted(), [case for case in judged() if case.model in STAND_INS])
    decoders = {name: Decoder(model_of(name), where) for name in {case.model: None for case in cases}}
    steps: list[tuple[Case, list[float]]] = [(case, []) for case in cases]
    found = []
    for _ in range(repeats):
        found.append(probes.measure(bare, watch))
        for case, seconds in steps:
            seconds.append(step_s(case, decoders[case.model], watch))
    return Session(found, steps)


def _watch(where: str, threads: int) -> Stopwatch:
    import torch

    if where == "cuda":
        return Waiting(wall=True, budget_s=0.03, wait=torch.cuda.synchronize)
    return Stopwatch(threads > 1, 0.1 if threads > 1 else 0.01)


def _probes(where: str) -> Iterator[tuple[str, probes.Probe]]:
    """The probes of sim/calibration/probes.py by the same names."""
    sizes = {f"stream.{mb}": (1, 1024, mb * 1_000_000 // 4096) for mb in probes.STREAM_MB}
    sizes |= {f"rate.{m}.{k}.{n}": (m, k, n) for m, k, n in probes.RATES}
    for name, size in sizes.items():
        yield name, _product(where, *size)


def _product(where: str, rows: int, k: int, n: int) -> probes.Probe:
    import torch

    luck = torch.Generator(where).manual_seed(0)
    x, w = (torch.randn(size, generator=luck, device=where) for size in ((rows, k), (n, k)))
    times = BURST if where == "cuda" else 1

    def burst() -> None:
        for _ in range(times):
            x @ w.T

    return lambda watch: watch.best(burst) / times
