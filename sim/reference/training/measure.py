"""Measures every shipped member and writes `record.json`: `python -m sim.reference.training --measure --out DIR`.

All arithmetic in float32 from the stored float16 weights, one thread. Rows are flat: one measurement a row.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from sim.reference.training import configs as c
from sim.reference.training import studies
from sim.reference.training.acceptance import Model
from sim.reference.training.bench import PROMPT_TOKENS, SEED, TEMPERATURES, Bench, Row, load_medusa, open_bench
from sim.reference.training.corpus import split_corpus
from sim.reference.training.pairs import DRAFTERS, acceptance_rows, tandem_rows
from sim.reference.training.quantise import int_n, post_training_ternary
from sim.reference.training.store import load_tensors, versions
from sim.reference.training.text import encode_texts

METHOD = {
    "nll": "mean over non-overlapping windows of 257 tokens (256 predicted); nats a token; se over windows",
    "alpha": "teacher-forced mean over tokens of sum_x min(p, q)(x), at temperature 0 the share of equal argmaxes; "
    "se over windows",
    "texts": "held_out_*: the text itself in windows of 256 tokens (acceptance: every other); own_*: 128 prompts of 32 "
    "tokens of that text and 160 tokens drawn from the target at the row's temperature, only the drawn ones counted",
    "rounds": "exact acceptance replay on own text: Bernoulli(min(1, q/p)) a token, 8 replays; survival_gamma_8[k-1] "
    "is the share of rounds with at least k drafts kept; iid is (1 - a^(gamma+1)) / (1 - a) with the row's mean beta",
    "tandem": "index i: the (i+1)-th draft of a block, i own tokens after the first read from the secondary itself",
    "medusa": "head k (from 0) against token t+2+k; chain_survival: heads 0..k all right at once",
    "relu": "top-k among positive activations; recall of the true top-k by the k' = ratio * k best approximate scores; "
    "data-aware SVD is fitted on held-out B and measured on held-out A",
    "int_n": "symmetric absmax round to nearest, groups of 32 inputs, layer matrices only, embedding and head kept",
}


def text_rows(bench: Bench) -> list[Row]:
    """Length and hash of the three parts of the text."""
    rows = []
    for part, texts in asdict(split_corpus()).items():
        raw = "".join(texts).encode("utf-8")
        tokens = len(encode_texts(bench.family / "tokenizer.json", texts))
        rows.append({"part": part, "bytes": len(raw), "tokens": tokens, "sha256": hashlib.sha256(raw).hexdigest()})
    return rows


def member_rows(bench: Bench) -> list[Row]:
    """Size, hash and parameters of every member."""
    rows = []
    for name in c.BUDGETS:
        path = bench.family / name / "model.safetensors"
        tensors = load_tensors(path.parent)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        params = sum(t.numel() for t in tensors.values())
        rows.append({"member": name, "params": params, "file_bytes": path.stat().st_size, "sha256": digest})
    return rows


def likelihoods(bench: Bench) -> list[Row]:
    """nll of every language model of the family and of quantized copies, on both held-out texts."""
    primary, matformer, relu = map(bench.llama, ("primary", "matformer", "relu"))
    models: dict[str, Model] = {n: bench.llama(n) for n in ("primary", "ternary", *DRAFTERS)}
    models |= {f"matformer@{w}": matformer.at_width(w) for w in c.MATFORMER_FFN}
    models |= {f"relu@top{k}": relu.at_topk(k) for k in c.RELU_TOPK}
    models |= {f"primary-int{b}": int_n(primary, b) for b in (8, 4, 3)}
    models["primary-ternary-post-training"] = post_training_ternary(primary)
    rows = []
    for name, model in models.items():
        for text, ids in bench.held_out.items():
            mean, se = studies.nll(model, ids)
            found = {"nll_nats": mean, "se": se, "tokens": ids[:, 1:].numel()}
            rows.append({"model": name, "text": f"held_out_{text}", **found})
            bench.report(str(rows[-1]))
    return rows


def medusa_rows(bench: Bench) -> list[Row]:
    """Head accuracies on both held-out texts and on the primary's own greedy and sampled continuations."""
    primary, heads = bench.llama("primary"), load_medusa(bench.family)
    rows: list[Row] = []
    for text, held_out in bench.held_out.items():
        rows.append({"text": f"held_out_{text}", **studies.head_accuracies(primary, heads, held_out[:, :-1], 1)})
        for t in TEMPERATURES:
            found = studies.head_accuracies(primary, heads, bench.own_text(primary, text, t), PROMPT_TOKENS)
            rows.append({"text": f"own_{text}", "temperature": t, **found})
            bench.report(str(rows[-1]))
    return rows


def relu_rows(bench: Bench) -> Row:
    """Sparsity, neighbour overlap and recall of the ReLU member (64 windows of 256 tokens)."""
    net = bench.llama("relu")
    a, b = (bench.held_out[name][:64, :-1] for name in ("a", "b"))
    return {
        "sparsity": studies.sparsity(net, a),
        "neighbours": studies.neighbour_overlap(net, a, 96),
        "recall": [row for k in (96, 48) for row in studies.recall_rows(net, a, b, k)],
    }


SECTIONS: dict[str, Callable[[Bench], object]] = {
    "texts": text_rows,
    "members": member_rows,
    "nll": likelihoods,
    "acceptance": acceptance_rows,
    "tandem": tandem_rows,
    "medusa": medusa_rows,
    "relu": relu_rows,
}


def write_record(family: Path, report: Callable[[str], None]) -> None:
    """Measure everything and write `record.json` into the family's folder, whole or not at all."""
    draft = family / "record.json.tmp"
    draft.write_text(as_text(measure(family, report)), encoding="utf-8")
    draft.replace(family / "record.json")


def measure(family: Path, report: Callable[[str], None]) -> Row:
    """The whole record as plain values."""
    torch.set_num_threads(1)
    began, bench = time.process_time(), open_bench(family, report)
    record: Row = {"method": METHOD, "seed": SEED, "versions": versions()}
    record |= {name: section(bench) for name, section in SECTIONS.items()}
    return {**record, "cpu_s": round(time.process_time() - began, 1)}


def as_text(record: Row) -> str:
    """JSON with one row a line, so that a change shows in a diff."""
    parts = []
    for key, value in record.items():
        if isinstance(value, list):
            body = "[\n" + ",\n".join("  " + json.dumps(row) for row in value) + "\n ]"
        elif isinstance(value, dict) and any(isinstance(v, list) for v in value.values()):
            inner = (f'  "{k}": [\n' + ",\n".join("   " + json.dumps(r) for r in v) + "\n  ]" for k, v in value.items())
            body = "{\n" + ",\n".join(inner) + "\n }"
        else:
            body = json.dumps(value)
        parts.append(f' "{key}": {body}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
