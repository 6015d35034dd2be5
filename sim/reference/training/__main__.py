"""`python -m sim.reference.training --out DIR [--only primary ...] [--seed 0]`: retrain the family, or parts of it.

With `--measure` nothing is trained: the members found in DIR are measured and DIR/record.json is written.
Single-threaded on purpose: two processes with different `--only` lists fill two cores better than two threads do.
"""

from __future__ import annotations

import argparse
import json
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sim.reference.training import corpus
from sim.reference.training.configs import BUDGETS


def main(argv: list[str] | None = None) -> int:
    """Parse, check, train; returns the exit status (2 for bad arguments or missing extras)."""
    args = _parser().parse_args(argv)
    try:
        names = stage_names(args.only)
        if args.measure:
            measure(args.out)
        else:
            train(args.out, names, args.seed)
    except ModuleNotFoundError as error:
        print(f"missing package {error.name!r}: install decodesim with the extra 'parity'", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sim.reference.training", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives one folder a member")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="stages to run: " + ", ".join(BUDGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="measure what lies in --out instead of training")
    return parser


def stage_names(only: list[str]) -> list[str]:
    """The stages asked for, in training order; ValueError for a name that does not exist."""
    for name in only:
        if name not in BUDGETS:
            near = get_close_matches(name, BUDGETS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(BUDGETS)}"
            raise ValueError(f"--only: unknown stage {name!r}; {hint}")
    return [name for name in BUDGETS if not only or name in only]


def train(out: Path, names: list[str], seed: int) -> None:
    """Run the stages and keep `training_log.json` up to date after each."""
    import torch

    from sim.reference.training.bpe import train_bpe
    from sim.reference.training.stages import STAGES, Run
    from sim.reference.training.store import versions
    from sim.reference.training.text import encode_texts

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    split = corpus.split_corpus()
    tokenizer = out / "tokenizer.json"
    if not tokenizer.exists():
        train_bpe(split.train, tokenizer)
    run = Run(out, encode_texts(tokenizer, split.train), seed, lambda line: print(line, flush=True))
    for name in names:
        record(out / "training_log.json", name, {**STAGES[name](run).as_dict(), "seed": seed}, versions())


def measure(family: Path) -> None:
    """Write the record of a trained family."""
    from sim.reference.training.measure import write_record

    write_record(family, lambda line: print(line, flush=True))


def record(path: Path, stage: str, log: dict[str, Any], version: dict[str, str]) -> None:
    """Merge one stage's log into the file, written whole or not at all."""
    book = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"stages": {}}
    book["versions"] = version
    book["stages"][stage] = log
    book["stages"] = {name: book["stages"][name] for name in BUDGETS if name in book["stages"]}
    book["cpu_s_total"] = round(sum(s["cpu_s"] for s in book["stages"].values()), 1)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(book, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
