"""The round law: tokens a round over the steps it lasts, with one overhead fitted a method, on one named row."""

from __future__ import annotations

from sim.axes import Axis
from sim.published import chains
from sim.published.table import Published, Table
from sim.scenario import Scenario
from sim.speedup import curve

MOST = 15  # drafts of a round, enough for every measured number of tokens; which one makes no difference here


def _tokens(row: Published, table: Table) -> float:
    names = {"eagle3": "tau", "rest": "mean_generated_length_M", "owl": "acceptance_length",
             "vllm-16035": "acceptance_length"}  # fmt: skip
    same = {"method": row.method, "task": row.task, "draft": row.draft, "gamma": row.gamma, "place": row.place}
    return table.value(table.one(row, quantity=names[row.source], **same).id)


def speedup(row: Published, table: Table) -> float:
    """With what a round lasts from the row that ``ours`` names after the function."""
    fitted = table.known[row.argument]
    steps = chains.round_cost(_tokens(fitted, table), MOST, table.value(fitted.id))
    return chains.gained(_tokens(row, table), MOST, 0.0, steps)


def stated(row: Published, table: Table) -> float:
    """With tokens a round and the steps it lasts from the two rows that ``ours`` names after the function."""
    tokens, steps = (table.value(name) for name in row.argument.split())
    return chains.gained(tokens, MOST, 0.0, steps)


def second_token(row: Published, table: Table) -> float:
    """One draft of a head that costs nothing, acceptance in the middle of the published range."""
    low, high = (float(p) for p in table.one(row, quantity="second_token_acceptance").published.split("-"))
    return chains.speedup((low + high) / 2, 1, 0.0)


def by_batch(row: Published, table: Table) -> float:
    """Drafts of a small model on an A100 at the row's batch, as many as ``ours`` says; direction only."""
    settings = ["hardware=a100-sxm-80gb", f"policy.gamma={row.argument}", "policy.acceptance=0.75"]
    return _at(chains.SCENARIO.with_settings(settings), int(row.batch))


def at_load(row: Published, table: Table) -> float:
    """How much slower a batch of 512 decodes with four drafts than without, on four H100; direction only."""
    scenario = chains.SCENARIO.with_settings([
        "model=llama-3-70b", "layout.tensor=4", "policy.draft=llama-3.2-1b", "policy.acceptance=0.6", "policy.gamma=4"
    ])  # fmt: skip
    return 1 / _at(scenario, 512)


def _at(scenario: Scenario, batch: int) -> float:
    found = curve(scenario, [Axis("batch", (batch,)), Axis("context", (1024,))])
    return float(found.table["speedup"][0])


def _log_line(row: Published, table: Table) -> tuple[float, float]:
    """r and c of a server's two drafting rows over its plain one."""
    plain = table.value(table.one(row, quantity="tokens_per_s", gamma="0").id)
    steps = {}
    for gamma in (2, 4):
        fast = table.value(table.one(row, quantity="tokens_per_s", gamma=str(gamma)).id)
        length = table.value(table.one(row, quantity="acceptance_length", gamma=str(gamma)).id)
        steps[gamma] = chains.round_cost(length, MOST, fast / plain)
    c = (steps[4] - steps[2]) / 2
    return steps[2] - 2 * c, c


def tokens_per_s(row: Published, table: Table) -> float:
    """Of a server, from its own plain rate and the line through its two drafting rows."""
    verify, c = _log_line(row, table)
    plain = table.value(table.one(row, quantity="tokens_per_s", gamma="0").id)
    length = table.value(table.one(row, quantity="acceptance_length", gamma=row.gamma).id)
    return plain * chains.gained(length, int(row.gamma), c, verify)
