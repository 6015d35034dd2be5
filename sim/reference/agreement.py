"""What a lossy way of decoding costs in the target's own terms: its argmax kept or not, its likelihood of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.reference.decoding import Generation
from sim.reference.sampling import softmax
from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Agreement:
    """``argmax``: share of output tokens that the target would have chosen there; ``nll``: its mean -ln p of them."""

    argmax: float
    nll: float


def agreement(target: Transformer, runs: Sequence[Generation]) -> Agreement:
    """Of outputs, teacher-forced: the target reads what was written and says what it would have written."""
    same, nll = [], []
    for run in runs:
        text, first = np.array([*run.prompt, *run.tokens]), len(run.prompt)
        logits = target.forward([text[:-1]], target.new_cache(), rows="all")[first - 1 :]
        same.append(logits.argmax(axis=-1) == text[first:])
        nll.append(-np.log(softmax(logits)[np.arange(len(logits)), text[first:]]))
    return Agreement(float(np.concatenate(same).mean()), float(np.concatenate(nll).mean()))
