"""Tandem Transformers: PaLM2's sizes are unpublished; a Gecko step in Bison steps, 1/6.397, is a number given."""

from __future__ import annotations

from functools import cache

from sim.axes import Axis
from sim.policies.adaptive import Adaptive
from sim.policies.tandem_law import end_to_end, prefill_share
from sim.published import chains
from sim.published.table import Published, Table
from sim.scenario import Scenario
from sim.speedup import Known, Ratio, curve_of

GECKO, OTTER = "tandem-slides-table3-001", "tandem-slides-table3-004"
BASELINE, OURS = "PaLM2-Gecko-Distil", "Tandem-Distil"
GAMMAS = (3, 5, 7, 9)  # the paper's grid
XXS_C = 0.1  # any from .06 to .10 will do: two unknowns in one row


def _c(table: Table) -> float:
    return 1.0 / table.value(GECKO)


def alone(row: Published, table: Table) -> float:
    """The smaller model by itself: its step in Bison steps is solved from this row."""
    fitted = table.value(GECKO if "Gecko" in row.model else OTTER)
    return 1.0 / (1.0 / fitted)


def standalone(row: Published, table: Table) -> float:
    """Blocks that the secondary writes unjudged, with the primary's token after each."""
    return _standalone(int(row.gamma), True, _c(table))


def without_free_token(row: Published, table: Table) -> float:
    """The same where the primary only reads."""
    return _standalone(int(row.gamma), False, _c(table))


@cache
def _known() -> Known:
    policy = {"name": "tandem", "draft": "llama-3.2-1b"}
    return Known(Scenario.parse({**chains.SCENARIO.model_dump(exclude_unset=True), "policy": policy}, "tandem"))


@cache
def _standalone(gamma: int, free: bool, c: float) -> float:
    axes = [Axis("policy.mode", ("standalone",)), Axis("policy.gamma", (gamma,)), Axis("policy.free_token", (free,))]
    return float(curve_of(_known(), axes, Ratio(c)).table["speedup"][0])


# -- inside speculative decoding


@cache
def _judged(alpha: float, gamma: int, c: float, verify: float = 1.0) -> float:
    axes = [Axis("policy.gamma", (gamma,)), Axis("policy.acceptance", (alpha,))]
    return float(curve_of(_known(), axes, Ratio(c, verify)).table["speedup"][0])


def _speed(draft: str, alpha: float, gamma: int, c: float, verify: float = 1.0) -> float:
    """Of plain speculative decoding, or of Tandem."""
    return (_judged if draft.startswith("Tandem") else chains.speedup)(alpha, gamma, c, verify)


def _decode_only(row: Published, table: Table, draft: str, task: str, batch: str = "1") -> Published:
    return table.one(row, place="Table8", draft=draft, task=task, batch=batch, quantity="speedup")


def _alpha(row: Published, table: Table, draft: str, task: str) -> float:
    """The acceptance that the decode-only row with one sample implies."""
    one = _decode_only(row, table, draft, task)
    gamma = int(one.gamma)
    return chains.alpha_for(table.value(one.id) * (1 + gamma * _c(table)), gamma)


def decode_only(row: Published, table: Table) -> float:
    """One sample: at the alpha solved from this row."""
    return _speed(row.draft, _alpha(row, table, row.draft, row.task), int(row.gamma), _c(table))


def four_samples(row: Published, table: Table) -> float:
    """Four samples: the alpha of one sample, and one overhead of a round, solved on Reddit's baseline."""
    c = _c(table)
    first = _decode_only(row, table, BASELINE, "Reddit", "4")
    slower = _speed(BASELINE, _alpha(row, table, BASELINE, "Reddit"), int(first.gamma), c) / table.value(first.id)
    return _speed(row.draft, _alpha(row, table, row.draft, row.task), int(row.gamma), c * slower, slower)


def _share(row: Published, table: Table) -> float:
    """Prefill's share of the baseline's time in a data set, from its row of plain drafts and one sample."""
    whole = table.one(row, place="Table2", draft=BASELINE, task=row.task, batch="1", quantity="speedup")
    return prefill_share(table.value(_decode_only(row, table, BASELINE, row.task).id), table.value(whole.id))


def whole_request(row: Published, table: Table) -> float:
    """End to end from the published decode-only number of the same setting (tables 8 and 9)."""
    place = "Table9" if row.place == "Table4" else "Table8"
    same = {"draft": row.draft, "task": row.task, "batch": row.batch, "gamma": row.gamma}
    decode = table.one(row, place=place, quantity="speedup", **same)
    return end_to_end(table.value(decode.id), _share(row, table))


def adaptive(row: Published, table: Table) -> float:
    """Decoding alone from the published numbers of runs; a response's tokens come from the fixed block's row."""
    fixed, primary, secondary = (
        table.one(row, place=place, draft=draft, task=row.task, batch="1", quantity=quantity)
        for place, draft, quantity in (
            ("Table5", OURS, "primary_runs"),
            ("Table5", f"{OURS}+AG", "primary_runs"),
            ("Table5", f"{OURS}+AG", "secondary_runs"),
        )
    )
    block = _decode_only(row, table, OURS, row.task)
    tokens = chains.expected_tokens(_alpha(row, table, OURS, row.task), int(block.gamma)) * table.value(fixed.id)
    counts = {"kind": "counts", "tokens": tokens, "rounds": table.value(primary.id),
              "drafts": table.value(secondary.id)}  # fmt: skip
    policy = Adaptive(gamma=int(row.gamma.removeprefix("max")), rule="router", threshold=0.8, acceptance=counts)
    return policy.wall_time_factor(_c(table))


def more_tokens(row: Published, table: Table) -> float:
    """Percent more tokens a block with Tandem than with plain drafts, on Reddit."""
    gamma = int(row.gamma)
    ours, theirs = (chains.expected_tokens(_alpha(row, table, draft, "Reddit"), gamma) for draft in (OURS, BASELINE))
    return 100 * (ours / theirs - 1)


def printed_gamma(row: Published, table: Table) -> float:
    """Speed at the paper's gamma over that of the best on its grid, at the alpha solved from that row."""
    alpha, c = _alpha(row, table, row.draft, row.task), _c(table)
    return _speed(row.draft, alpha, int(row.gamma), c) / max(_speed(row.draft, alpha, g, c) for g in GAMMAS)


def pretraining_alpha(row: Published, table: Table) -> float:
    """End to end with acceptance taken from the total variation on the pretraining mix."""
    decode = _speed(row.draft, row.settings["alpha"], int(row.gamma), _c(table))
    return end_to_end(decode, _share(row, table))


def smaller_drafter(row: Published, table: Table) -> float:
    """At a cost ratio assumed and the alpha solved from this row."""
    gamma = int(row.gamma)
    alpha = chains.alpha_for(float(row.published) * (1 + gamma * XXS_C), gamma)
    return _speed(row.draft, alpha, gamma, XXS_C)
