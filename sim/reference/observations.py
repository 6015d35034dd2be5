"""What the lectures say of trained transformers, measured on the shipped ones: one row a number.

Five observations: consecutive layers are alike; few heads and neurons matter to a token; attention goes to the first
and the recent tokens; int8 fails on outlier channels; ternary weights need training (Deja Vu, arXiv 2310.17157;
StreamingLLM, arXiv 2309.17453; LLM.int8(), arXiv 2208.07339; BitNet b1.58, arXiv 2402.17764). The recorded table is
``family/observations.csv``, written by :func:`write_table` from :func:`observe_family`.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.checkpoint import SHIPPED, load
from sim.reference.gguf_tokenizer import read_gguf_tokenizer
from sim.reference.int8 import Int8, with_outliers
from sim.reference.sampling import stream
from sim.reference.tokenizer import read_tokenizer
from sim.reference.training.corpus import split_corpus
from sim.reference.transformer import Transformer
from sim.reference.watch import Watched, smallest_share, ternary, with_matrices

Array = NDArray[Any]
TABLE = SHIPPED / "observations.csv"
SINKS, RECENT = 4, 32
"""First and recent tokens whose attention mass is counted; queries start at position 64, where both are a minority."""
FIRST_QUERY = 64
OUTLIER_CHANNELS, OUTLIER_FACTORS = 3, (20, 60, 200)


@dataclass(frozen=True)
class Observation:
    """One measured number: mean and standard error over windows of text. ``layer`` is empty for the whole model."""

    model: str
    observation: str
    layer: str
    value: float
    se: float
    windows: int
    tokens: int


class Tally:
    """Means over windows, by (observation, layer)."""

    def __init__(self, model: str) -> None:
        """``model`` names the rows."""
        self.model = model
        self.means: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.tokens: defaultdict[tuple[str, str], int] = defaultdict(int)

    def add(self, observation: str, layer: int | str, values: Array) -> None:
        """One window's values, any shape: their mean is kept, and how many tokens (rows) they come from."""
        key = (observation, str(layer))
        self.means[key].append(float(np.mean(values)))
        self.tokens[key] += len(values)

    def rows(self) -> list[Observation]:
        """The table so far."""
        return [
            Observation(self.model, *key, float(np.mean(m)), _standard_error(m), len(m), self.tokens[key])
            for key, m in self.means.items()
        ]


def _standard_error(means: Sequence[float]) -> float:
    return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


def look_inside(name: str, model: Transformer, windows: Sequence[Array]) -> list[Observation]:
    """Similarity of layers, heads and neurons used, attention to first and recent tokens; windows [n] of token ids.

    Rows: ``layer_similarity``, cosine of the residual stream before and after a layer; ``heads_for_90`` and
    ``neurons_for_90``, share of heads (by squared norm of what each adds) and of neurons that hold 90 % of a token's
    energy; ``neurons_nonzero``, share of activations that are not 0; ``mass_first`` and ``mass_recent``, attention on
    the first 4 and the last 32 tokens (itself included), beside what uniform attention would give them
    (``uniform_first``, ``uniform_recent``).
    """
    tally = Tally(name)
    for ids in windows:
        _, hidden = Watched.of(model, lambda kind, layer, array: _tally(tally, kind, layer, array)).run(ids)
        for layer in range(len(model.shape.layers)):
            tally.add("layer_similarity", layer, cosine(hidden[layer], hidden[layer + 1]))
    return tally.rows()


def _tally(tally: Tally, kind: str, layer: int, array: Array) -> None:
    if kind == "heads":
        tally.add("heads_for_90", layer, smallest_share(array**2, 0.9))
    elif kind == "energy":
        tally.add("neurons_for_90", layer, smallest_share(array, 0.9))
    elif kind == "neurons":
        tally.add("neurons_nonzero", layer, array != 0)
    elif kind == "weights":
        for name, values in attention_mass(array).items():
            tally.add(name, layer, values)


def cosine(a: Array, b: Array) -> Array:
    """Cosine of each row of a with that of b, [n, d], [n, d] -> [n]."""
    dot = (a * b).sum(axis=-1)
    return np.asarray(dot / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))


def attention_mass(
    weights: Array, sinks: int = SINKS, recent: int = RECENT, start: int = FIRST_QUERY
) -> dict[str, Array]:
    """Mass on the first and the recent tokens for queries from ``start`` on, [Hq, n, n] -> [n - start, Hq] each.

    With it the same under uniform attention, [n - start].
    """
    queries = np.arange(start, weights.shape[1])
    first = weights[:, start:, :sinks].sum(axis=-1).T
    near = np.stack([weights[:, t, t - recent + 1 : t + 1].sum(axis=-1) for t in queries])
    uniform = {"uniform_first": sinks / (queries + 1), "uniform_recent": recent / (queries + 1)}
    return {"mass_first": first, "mass_recent": near, **uniform}


def nll(model: Transformer, ids: Array) -> Array:
    """Negative log likelihood in nats of each token of a window after its first, [n] -> [n - 1]."""
    logits = model.forward([ids[:-1]], model.new_cache(1), rows="all").astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    return np.asarray(log_sum - logits[np.arange(len(ids) - 1), ids[1:]])


def outliers(name: str, model: Transformer, windows: Sequence[Array], seed: int = 0) -> list[Observation]:
    """nll in float32 and int8, without and with three injected outlier channels, and with the two cures.

    Rows ``nll_float``, ``nll_int8``; ``nll_int8_x20`` ... with channels that many times louder; at the loudest also
    ``float`` (must equal float), ``decomposed`` (LLM.int8()) and ``smoothed`` (SmoothQuant).
    """
    channels = stream(seed, "outliers").choice(model.shape.d_model, OUTLIER_CHANNELS, replace=False)
    loud = {f: with_outliers(model, [int(c) for c in channels], f) for f in OUTLIER_FACTORS}
    loudest, factor = loud[OUTLIER_FACTORS[-1]], OUTLIER_FACTORS[-1]
    models: dict[str, Transformer] = {"nll_float": model, "nll_int8": Int8.of(model, "vector-wise")}
    models |= {f"nll_int8_x{f}": Int8.of(m, "vector-wise") for f, m in loud.items()}
    models[f"nll_float_x{factor}"] = loudest
    models[f"nll_int8_x{factor}_decomposed"] = Int8.of(loudest, "decomposed")
    models[f"nll_int8_x{factor}_smoothed"] = Int8.of(loudest, "smoothed")
    return likelihoods(name, models, windows)


def ternaries(name: str, model: Transformer, trained: Transformer, windows: Sequence[Array]) -> list[Observation]:
    """nll of a model, of its matrices rounded to -s, 0, s after training, and of one trained with such weights."""
    rounded = with_matrices(model, ternary)
    models = {"nll_float": model, "nll_ternary_after": rounded, "nll_ternary_trained": trained}
    return likelihoods(name, models, windows)


def likelihoods(name: str, models: dict[str, Transformer], windows: Sequence[Array]) -> list[Observation]:
    """One nll row a model."""
    tally = Tally(name)
    for row, model in models.items():
        for ids in windows:
            tally.add(row, "", nll(model, ids))
    return tally.rows()


def text_windows(ids: Sequence[int], count: int, tokens: int) -> list[Array]:
    """``count`` windows of ``tokens`` ids spread evenly over a text. Raises ValueError when the text is too short."""
    if len(ids) < count * tokens:
        raise ValueError(f"text: {len(ids)} tokens are not enough for {count} windows of {tokens}")
    starts = np.linspace(0, len(ids) - tokens, count).astype(int)
    return [np.asarray(ids[s : s + tokens], dtype=np.int64) for s in starts]


def held_out(part: str = "a", count: int = 16, tokens: int = 256) -> list[Array]:
    """Windows of the family's held-out text A or B in the family's tokens."""
    split = split_corpus()
    text = "".join(split.held_out_a if part == "a" else split.held_out_b)
    return text_windows(read_tokenizer(SHIPPED / "tokenizer.json").encode(text), count, tokens)


def observe_family(folder: Path = SHIPPED, count: int = 16) -> list[Observation]:
    """Every observation on the models in ``folder``, held-out text A (a minute or two of CPU)."""
    windows = held_out("a", count)
    primary = load(folder / "primary")
    rows: list[Observation] = []
    for name in ("primary", "matformer", "relu"):
        rows += look_inside(name, load(folder / name), windows)
    rows += outliers("primary", primary, windows)
    trained = ternaries("primary", primary, load(folder / "ternary"), windows)
    return rows + [r for r in trained if r.observation != "nll_float"]


def observe_gguf(path: Path, count: int = 8) -> list[Observation]:
    """What can be seen inside a real checkpoint (SmolLM2-135M) on the same held-out text, in its own tokens."""
    ids = read_gguf_tokenizer(path).encode("".join(split_corpus().held_out_a))
    return look_inside(path.stem, load(path), text_windows(ids, count, 256))


def write_table(rows: Iterable[Observation], path: Path = TABLE) -> None:
    """Write the table as CSV, whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f.name for f in fields(Observation)])
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in astuple(row)] for row in rows)
    draft.replace(path)


def read_table(path: Path = TABLE) -> list[Observation]:
    """The recorded table. Raises ValueError where a line is not an observation."""
    kinds = {"value": float, "se": float, "windows": int, "tokens": int}
    names = [f.name for f in fields(Observation)]
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines or lines[0] != names:
        raise ValueError(f"{path.name}: header {lines[:1]} is not allowed; allowed: {','.join(names)}")
    try:
        return [Observation(*(kinds.get(n, str)(v) for n, v in zip(names, line, strict=True))) for line in lines[1:]]
    except ValueError as error:
        raise ValueError(f"{path.name}: not a table of observations: {error}") from None
