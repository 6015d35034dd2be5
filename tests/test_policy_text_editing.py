"""Text editing: steps and tokens in closed form, the deck's numbers through a run, what is printed beside them."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_checks import refusal
from typer.testing import CliRunner

from sim import Scenario, simulate
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.cli import app
from sim.policies import Chunk, Chunks
from sim.policies.text_editing import TextEditing
from sim.quantities import QUANTITIES, Beside, check, published
from sim.run import Result
from sim.speedup import curve

NO_LUCK: Any = None


# --- steps ----------------------------------------------------------------------------------------


@given(st.floats(1 / 64, 1.0), st.integers(1, 400))
def test_an_answer_takes_its_share_of_steps(share: float, output: int) -> None:
    """ceil(share * output) decoder steps, of which the first rides on the encoder's round (and may be all but one)."""
    policy = TextEditing(share)
    rounds = len(policy.future(NO_LUCK, 0, output - 1).gains) if output > 1 else 0
    assert rounds == max(policy.steps(output) - 1, min(output - 1, 1))
    assert policy.steps(output) == math.ceil(policy.share * output)


def test_the_tutorials_answer() -> None:
    """27 tokens, 10 steps: one beside the encoder, then nine that release 26 tokens."""
    policy = TextEditing()
    gains = policy.future(NO_LUCK, 0, 26).gains.tolist()
    assert gains == [4, 3, 2, 3, 3, 2, 3, 3, 3] and policy.tokens_per_round == 4
    assert policy.steps(27) == 10 and policy.expected_tokens == 2.7


def test_a_share_of_one_is_plain_decoding() -> None:
    """A token a step, the context grows by one."""
    policy = TextEditing(1.0)
    future = policy.future(NO_LUCK, 0, 5)
    assert future.gains.tolist() == [1] * 5 and policy.tokens_per_round == 1
    assert policy.rows(future, 1, ((None,), ()))[0].tolist() == [1, 2, 3, 4, 5]


@given(st.floats(1 / 64, 1.0), st.integers(2, 300))
def test_the_decoder_caches_its_steps(share: float, output: int) -> None:
    """Round i reads i + 1 tokens, whatever the output tokens were that steps released."""
    policy = TextEditing(share)
    future = policy.future(NO_LUCK, 0, output - 1)
    assert policy.rows(future, 1, ((None,), ()))[0].tolist() == list(range(1, len(future.gains) + 1))


def test_heads_read_the_source() -> None:
    """In a run: the encoder, the decoder's first step, and the heads over 23 tokens and 529 pairs; nothing later."""
    built = build_scenario(Scenario.load("gec_edit5"))
    cost, windows = built.costs[1], built.setup.windows
    first, heads = built.policy.passes(0, None, Chunks([Chunk(0, 23, True, 23)]), windows)
    assert (first.work.encoder_tokens, first.work.tokens, first.work.cross_pairs) == (23, 1, 23)
    assert heads.model == 1 and heads.work == Work(0, 0, encoder_tokens=23, encoder_pairs=529)
    flops = {op.name: op.flops for op in cost.ops(heads.work)}
    assert flops == {"edit.tag": 2 * 23 * 768 * 2, "edit.point": 2 * 23 * 768 * 1536, "edit.point.scores": 1536 * 529}
    assert float(cost.seconds(heads.work)) > 0 and float(cost.joules(heads.work)) > 0
    assert cost.bytes_weights == 4 * 768 * (2 + 1536)


def test_options_are_refused() -> None:
    """One line each."""
    assert "policy.steps_share: 0.01" in refusal(lambda: TextEditing(0.01))
    assert "policy.overhead_ms" in refusal(lambda: TextEditing(0.5, -1.0))
    assert "policy.pointer: 1 is not true or false" in refusal(lambda: TextEditing(0.5, 1.0, 1))  # type: ignore[arg-type]
    said = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "policy": "text_editing", "workload": {"rate": 1}}
    wanted = "policy: text_editing: needs a model with an encoder; llama-3.1-8b has none"
    assert refusal(lambda: build_scenario(Scenario.parse(said))) == wanted


# --- the deck -------------------------------------------------------------------------------------


@cache
def ran(name: str) -> Result:
    return simulate(Scenario.load(name))


def test_the_decks_numbers() -> None:
    """What is given, fitted or a quotient of these holds; what roofline or fit cannot explain fails as labelled."""
    found = {(b.quantity, bool(b.over), i): b for i, name in enumerate(("gec_t5", "gec_edit5")) for b in beside(name)}
    for b in found.values():
        if b.label in ("given", "fit", "identity"):
            assert abs(b.error) < 0.005, b
        else:
            assert b.label == "known failure" and abs(b.error) > 0.25, b
    printed = {k: b.published for k, b in found.items()}
    assert printed["encoder_ms", False, 0] == 15 and printed["decode_ms", False, 0] == 189
    assert printed["decode_ms", True, 1] == 14.5 and len(found) == 13
    assert found["device_step_ms", False, 0].error < -0.9


def beside(name: str) -> list[Beside]:
    return published(ran(name))


def test_the_two_fitted_numbers() -> None:
    """Host and device together: 0.782 ms a step and 0.518 ms a layer, within a microsecond."""
    step = {name: QUANTITIES["step_ms"](ran(name)) for name in ("gec_t5", "gec_edit5")}
    layer = (step["gec_t5"] - step["gec_edit5"]) / 11
    assert layer == pytest.approx(0.518, abs=0.001) and step["gec_edit5"] - layer == pytest.approx(0.782, abs=0.001)


def test_a_request_end_to_end() -> None:
    """Encoder's round, 26 steps; with edits 9 steps and the overhead. The sums are the clock's to the nanosecond."""
    for name, rounds in (("gec_t5", 26), ("gec_edit5", 9)):
        leaps = ran(name).recorder.leaps.frame()
        assert int(leaps["rounds"].sum()) == 1 + rounds
        table = ran(name).recorder.requests.frame()
        assert int(table["finish_ns"][0] - table["arrival_ns"][0]) == int(leaps["duration_ns"].sum())
    assert QUANTITIES["e2el_ms"](ran("gec_t5")) / QUANTITIES["e2el_ms"](ran("gec_edit5")) > 7


def test_overhead_is_a_prompts() -> None:
    """5 ms once for each request, in the round that reads it."""
    scenario = Scenario.load("gec_edit5")
    without = simulate(scenario.with_settings(["policy.overhead_ms=0"]))
    first = [int(r.recorder.requests.frame()["first_token_ns"][0]) for r in (ran("gec_edit5"), without)]
    assert first[0] - first[1] == pytest.approx(5e6, abs=1)
    assert QUANTITIES["step_ms"](without) == QUANTITIES["step_ms"](ran("gec_edit5"))


def test_accounts_hold_the_overhead() -> None:
    """Host seconds of the accounts are those of the clock, so that causes add up."""
    run = ran("gec_edit5")
    assert np.abs(run.accounts.scale - 1.0).max() < 1e-6
    engine = run.built.engine
    host = 10 * engine.step_s + (10 + 12) * engine.layer_s + 5e-3
    assert float(run.accounts.seconds["host"].sum()) == pytest.approx(host, rel=1e-6)


def test_speedup_is_quality_gated() -> None:
    """The curve knows text editing, and that nobody knows what it loses."""
    scenario = Scenario.load("gec_edit5")
    row = curve(scenario).row(0)
    assert row["expected_tokens"] == 2.7 and row["speedup"] == pytest.approx(2.7, rel=0.001)
    assert np.isnan(row["quality_loss_percent"])


# --- published ------------------------------------------------------------------------------------


def test_the_command_prints_both(tmp_path: Path) -> None:
    """``run gec_edit5`` shows every number beside ours, and has them in its JSON."""
    shown = CliRunner().invoke(app, ["run", "gec_edit5", "-q", "--out", str(tmp_path / "a")]).stdout
    as_json = CliRunner().invoke(app, ["run", "gec_edit5", "-q", "--json", "--out", str(tmp_path / "b")])
    said = json.loads(as_json.stdout)
    assert "beside what was printed" in shown and "decode_ms: gec_t5 over this" in shown and "14.54" in shown
    assert [row["quantity"] for row in said["published"]][-1] == "decode_ms" and len(said["published"]) == 8


def test_published_numbers_are_checked() -> None:
    """One line that names place and value, before anything runs."""
    base = {"model": "t5-v1.1-small", "hardware": "h100-sxm", "workload": {"requests": 1, "rate": 1}}

    def with_part(**part: Any) -> Scenario:
        return Scenario.parse({**base, "published": [{"quantity": "step_ms", "value": 1.0, "source": "me", **part}]})

    assert "published.0.quantity: 'step_s': must be 'step_ms'" in refusal(lambda: with_part(quantity="step_s"))
    assert "published.0.value: -1" in refusal(lambda: with_part(value=-1.0))
    assert "published.0.sauce: unknown key; allowed here: quantity" in refusal(lambda: with_part(sauce="me"))
    assert "published.0.over: no scenario 'gec_t6'" in refusal(lambda: check(with_part(over="gec_t6")))
