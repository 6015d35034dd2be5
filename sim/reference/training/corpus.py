"""The text the family is trained on, and its three disjoint parts.

Source and licence: see `family/SOURCES.md`. NumPy-free and torch-free, so that tests and notebooks can read the
held-out texts without the training extras.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

FAMILY = Path(__file__).resolve().parent.parent / "family"
CORPUS = FAMILY / "austen_six_novels.txt.xz"
TITLES = (
    "EMMA",
    "MANSFIELD PARK",
    "NORTHANGER ABBEY",
    "Persuasion",
    "PRIDE AND PREJUDICE",
    "SENSE AND SENSIBILITY",
)
TRAIN_SHARE = 0.90
HELD_OUT_A_SHARE = 0.05
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Split:
    """One text a novel in each of three disjoint parts: fit on `train`, measure on A, predict on B (or the reverse)."""

    train: tuple[str, ...]
    held_out_a: tuple[str, ...]
    held_out_b: tuple[str, ...]


def read_novels(path: Path = CORPUS) -> dict[str, str]:
    """Title -> cleaned text of the six novels; a ValueError names the title that the file lacks."""
    lines = lzma.decompress(path.read_bytes()).decode("utf-8").split("\n")
    stripped = [line.strip() for line in lines]
    missing = [title for title in TITLES if title not in stripped]
    if missing:
        raise ValueError(f"{path}: title line {missing[0]!r} not found; the file must hold all of {list(TITLES)}")
    starts = [stripped.index(title) for title in TITLES] + [len(lines)]
    return {title: clean(lines[starts[i] : starts[i + 1]]) for i, title in enumerate(TITLES)}


def clean(lines: list[str]) -> str:
    """Undo the hard line breaks: one paragraph a line, single spaces, no underscores of emphasis."""
    paragraphs = "\n".join(line.strip() for line in lines).split("\n\n")
    joined = (" ".join(paragraph.replace("_", "").split()) for paragraph in paragraphs)
    return "\n".join(paragraph for paragraph in joined if paragraph) + "\n"


def split_corpus(path: Path = CORPUS) -> Split:
    """Cut every novel at paragraph ends into 90 % train, 5 % held-out A, 5 % held-out B, in reading order."""
    parts = [_cut(text) for text in read_novels(path).values()]
    return Split(*(tuple(part[i] for part in parts) for i in range(3)))


def _cut(text: str) -> tuple[str, str, str]:
    first = text.index("\n", int(len(text) * TRAIN_SHARE)) + 1
    second = text.index("\n", int(len(text) * (TRAIN_SHARE + HELD_OUT_A_SHARE))) + 1
    return text[:first], text[first:second], text[second:]
