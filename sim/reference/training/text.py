"""From text to token arrays, for training and measuring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


def encode_texts(tokenizer: Path, texts: Sequence[str]) -> NDArray[np.int64]:
    """One array of ids, every text opened by the end-of-text token (id 0)."""
    bpe = Tokenizer.from_file(str(tokenizer))
    return np.concatenate([np.array([0, *bpe.encode(text).ids], dtype=np.int64) for text in texts])
