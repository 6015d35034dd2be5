"""Of a model that is served smaller under load: which tier wrote how much, and what that loses."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.fleet import names_of
from analysis.frames import Run
from sim.account import pool_places
from sim.quality import losses

__all__ = ["switch_section"]


def switch_section(run: Run) -> list[dict[str, Any]] | None:
    """The ``switch`` section of ``summary.json``, an entry by pool or group that switches; None where none does.

    ``tokens``: decoded in each tier; the first token of a request comes of its prompt, which the whole model reads.
    ``loss_percent``: of the tiers' variants by share of tokens, None where a tier that was used loses who knows what.
    """
    pools = run.built.pools
    names = names_of(run) or [""] * len(pools)
    found = [_one(run, place, name) for place, name in enumerate(names) if hasattr(pools[place][0].policy, "ladder")]
    return [one for one in found if one is not None] or None


def _one(run: Run, place: int, name: str) -> dict[str, Any] | None:
    built = run.built.pools[place][0]
    policy: Any = built.policy
    if getattr(policy, "follows", "") != "waiting":
        return None
    leaps = run.recorder.leaps.frame()
    mine = pool_places(run.built.pools, run.recorder)[leaps["replica"]] == place
    later = [int(leaps[f"sum_{at}"][mine].sum()) for at in policy.count_channels(built.setup.windows)]
    total = int((leaps["rounds"] * leaps["seats"])[mine].sum())
    tokens = [total - sum(later), *later]
    shares = [count / total if total else 0.0 for count in tokens]
    lost = [losses(None, step.variants).percent for step in policy.ladder]
    mean = sum(share * percent for share, percent in zip(shares, lost, strict=True) if share)
    tiers = [
        {
            "waiting": step.waiting,
            "variants": [repr(variant) for variant in step.variants],
            "tokens": count,
            "share": share,
            "loss_percent": None if np.isnan(percent) else percent,
        }
        for step, count, share, percent in zip(policy.ladder, tokens, shares, lost, strict=True)
    ]
    return {"group": name, "tiers": tiers, "loss_percent": None if np.isnan(mean) else mean}
