"""The simulator's policy for a twin of the witness: the same options, and the acceptance that its runs have shown.

Two dataclasses name one way of decoding: what the twin does, the policy predicts. ``equivalent`` translates, so that
counts, tokens and ``reference run`` need no table of their own for each policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sim.policies import Model, Policy
from sim.policies.adaptive import Adaptive
from sim.policies.autoregressive import Autoregressive
from sim.policies.bigram import Bigram
from sim.policies.bild import Bild
from sim.policies.blockwise import Blockwise
from sim.policies.input_copy import InputCopy
from sim.policies.load_adaptive import LoadAdaptive
from sim.policies.ngram import Ngram
from sim.policies.plan import Plan
from sim.policies.retrieval import Retrieval
from sim.policies.speculative import Speculative
from sim.policies.tandem import Tandem
from sim.policies.tree import Tree
from sim.reference.acceptance import kept_survival
from sim.reference.decoding import Generation, Round
from sim.reference.twins._tree_features import FeatureWeights
from sim.reference.twins._tree_heads import HeadWeights
from sim.reference.twins.input_copy import copied_survival, realigned
from sim.reference.twins.ngram import matched

Runs = Sequence[Generation]
SHARED = {"model": "self", "kv": "shared"}
MEDUSA = {"kind": "heads", "count": 4, "products": 2, "norm": True, "share_vocabulary": True}


def equivalent(name: str, twin: Any, runs: Runs = ()) -> Policy:
    """The policy of the twin's name and options; with ``runs`` of the twin, as likely to keep drafts as they were.

    Without runs acceptance is the policy's default, which decides no counts. Raises ValueError for a name that has no
    equivalent, or options of the twin that the simulator does not have.
    """
    if name not in EQUIVALENTS:
        raise ValueError(f"policy: {name[:80]!r} has no simulated twin here; allowed: {', '.join(EQUIVALENTS)}")
    return EQUIVALENTS[name](twin, runs)


def whole(runs: Runs, longest: int) -> Iterator[Round]:
    """Decode rounds that could keep ``longest`` drafts: those too near the end are left out, however they went."""
    for run in runs:
        starts = np.cumsum([len(r.emitted) for r in run.rounds])[:-1]
        rounds = zip(starts, run.rounds[1:], strict=True)
        yield from (r for at, r in rounds if at + longest + 1 <= len(run.tokens))


def survival(kept: Any, depth: int) -> dict[str, Any]:
    """P(at least k kept), k = 1..depth, as a scenario's ``acceptance``."""
    kept = np.asarray(kept)
    return {"kind": "survival", "vector": [float((kept >= k).mean()) for k in range(1, depth + 1)]}


def _chain(runs: Runs, gamma: int) -> Any:
    """Survival of whole drafts of ``gamma`` tokens; nothing known without runs."""
    return {"kind": "survival", "vector": kept_survival(runs, gamma).tolist()} if runs else 0.5


def _speculative(twin: Any, runs: Runs) -> Policy:
    acceptance = _chain(runs, twin.gamma)
    if twin.lenience < 1:
        acceptance = {"kind": "lenient", "measured": [{"lenience": twin.lenience, "acceptance": acceptance}]}
    return Speculative(SHARED if twin.shared else "draft", twin.gamma, acceptance, twin.lenience)


def _adaptive(twin: Any, runs: Runs) -> Policy:
    said: dict[str, Any] = {"acceptance": ruled(runs, twin.gamma)} if runs else {}
    return Adaptive("draft", twin.gamma, twin.threshold, twin.rule, last=twin.last, **said)


def ruled(runs: Runs, gamma: int) -> dict[str, Any]:
    """Three numbers of rounds whose last token the rule chose: how often it went on, what was kept then and else."""
    went, stopped, kept_on, judged_on, kept_off, judged_off = 0, 0, 0, 0, 0, 0
    for r in (r for r in whole(runs, gamma) if r.drafted):
        ended = len(r.drafted) < gamma  # by the rule; at gamma nobody asked it
        sure = len(r.drafted) - ended
        went, stopped = went + sure, stopped + ended
        judged = min(r.accepted + 1, len(r.drafted))
        kept_on, judged_on = kept_on + min(r.accepted, sure), judged_on + min(judged, sure)
        kept_off, judged_off = kept_off + (ended and r.accepted > sure), judged_off + (ended and judged > sure)
    ratio = [(went, went + stopped), (kept_on, judged_on), (kept_off, judged_off)]
    return {"kind": "rule", **{k: a / max(b, 1) for k, (a, b) in zip(("go", "on", "off"), ratio, strict=True)}}


def _load_adaptive(twin: Any, runs: Runs) -> Policy:
    longest = max(gamma for _, gamma in twin.tiers)
    tiers = [{"batch": batch, "gamma": gamma} for batch, gamma in twin.tiers]
    return LoadAdaptive("draft", tiers, twin.hysteresis, off=twin.off, acceptance=_chain(runs, longest))


def _ngram(twin: Any, runs: Runs) -> Policy:
    return Ngram(twin.gamma, matched(runs), _chain(runs, twin.gamma)) if runs else Ngram(twin.gamma)


def _retrieval(twin: Any, runs: Runs) -> Policy:
    kept = [r.accepted for r in whole(runs, twin.depth)]
    return Retrieval(twin.candidates, twin.depth, 1.0, survival(kept, twin.depth) if runs else 0.5)


def _input_copy(twin: Any, runs: Runs) -> Policy:
    if not runs:
        return InputCopy(twin.gamma)
    vector = copied_survival(runs, twin.gamma).tolist()
    return InputCopy(twin.gamma, realigned(runs), {"kind": "survival", "vector": vector})


def _bild(twin: Any, runs: Runs) -> Policy:
    if not runs:
        return Bild("draft", twin.gamma)
    drafted, kept = np.array([(len(r.drafted), r.accepted) for r in whole(runs, twin.gamma)]).T
    stands = [float((kept[drafted >= k] >= k).mean()) if (drafted >= k).any() else 0.0
              for k in range(1, twin.gamma + 1)]  # fmt: skip
    vector = np.minimum.accumulate(stands).tolist()
    return Bild("draft", twin.gamma, survival(drafted, twin.gamma), {"kind": "survival", "vector": vector})


def _blockwise(twin: Any, runs: Runs) -> Policy:
    """Counts are of the untrained heads' form; the trained ones' is Medusa's."""
    propose = "everywhere" if twin.everywhere else "once"
    return Blockwise(twin.block, _chain(runs, twin.block - 1), propose=propose)


def _tree(twin: Any, runs: Runs) -> Policy:
    paths, depth = [list(path) for path in twin.tree], max(map(len, twin.tree))
    kept = [r.accepted for r in whole(runs, depth)]
    acceptance = survival(kept, depth) if runs else None
    return Tree(paths, [0.5], _drafter(twin.drafter), twin.verification, acceptance)


def _drafter(said: Any) -> Any:
    """What a scenario calls the drafter of a twin."""
    if said == "medusa":
        return MEDUSA
    if isinstance(said, HeadWeights):
        if len(said.inner) and said.inner[0].shape[0] > said.inner[0].shape[1]:
            return "hydra"
        return {"kind": "heads", "count": len(said.inner), "share_vocabulary": not said.logits}
    if isinstance(said, FeatureWeights):
        return {"wide": "eagle3", "none": "layers"}.get(said.join, "mtp" if len(said.gains) == 2 else "eagle")
    return {"kind": "model", "draft": "draft"}


def _tandem(twin: Any, runs: Runs) -> Policy:
    adaptive = {"last": "kept"} if twin.stop else None
    acceptance = ruled(runs, twin.gamma) if twin.stop and runs else _chain(runs, twin.gamma)
    said = {} if twin.stop and not runs else {"acceptance": acceptance}
    return Tandem("draft", twin.gamma, twin.mode, twin.free_token, adaptive=adaptive, **said)


EQUIVALENTS: Mapping[str, Callable[[Any, Runs], Policy]] = {
    "adaptive": _adaptive,
    "autoregressive": lambda twin, runs: Autoregressive(),
    "bigram": lambda twin, runs: Bigram(twin.order, twin.gamma, _chain(runs, twin.gamma)),
    "bild": _bild,
    "blockwise": _blockwise,
    "input_copy": _input_copy,
    "load_adaptive": _load_adaptive,
    "ngram": _ngram,
    "plan": lambda twin, runs: Plan("draft", twin.tokens),
    "retrieval": _retrieval,
    "speculative": _speculative,
    "tandem": _tandem,
    "tree": _tree,
}


def is_self(draft: str | Model) -> bool:
    """Whether a further model of a policy is made of the target itself."""
    return isinstance(draft, Model) and draft.name is None
