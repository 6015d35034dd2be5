"""The page's answers are the analytic core's and the simulator's own; no browser, no Dash."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.app import asked, words
from sim.app.answer import Answer, answer
from sim.app.asked import HERE, SLIDERS
from sim.app.figures import figures, latency_figure
from sim.app.question import BATCHES, FORMATS, POLICIES, Question
from sim.app.runs import State
from sim.run import simulate
from sim.scenario import Scenario, shipped_scenarios

PLAIN = Question(policy="autoregressive", batch=1, context=1024, prompt=1024)


def served(question: Question, output: int) -> dict[str, Any]:
    """One request of ``question.prompt`` tokens, simulated."""
    traffic = {"rate": 1, "requests": 1, "prompt": question.prompt, "output": output}
    columns = simulate(Scenario.parse(question.scenario() | {"workload": traffic})).request_columns
    return {name: columns[name][0] for name in ("ttft_ms", "tpot_ms")}


# --- truth


@pytest.mark.parametrize(
    "question",
    [
        PLAIN,
        replace(PLAIN, engine="ideal", prompt=3),
        replace(PLAIN, prompt=20_000, policy="speculative"),
        replace(PLAIN, model="gemma-3-27b", engine="sglang", prompt=9000, format="fp8"),
        replace(PLAIN, device="a100-sxm-80gb", engine="tensorrt-llm", devices=2, policy="medusa"),
    ],
)
def test_ttft_is_that_of_a_lone_request_in_the_simulator(question: Question) -> None:
    assert answer(question).ttft_ms == pytest.approx(served(question, 1)["ttft_ms"], abs=1e-4)  # whole ns a round


@pytest.mark.parametrize("engine", ["ideal", "vllm-v1", "hf-eager"])
def test_tpot_is_the_next_token_of_a_lone_request_in_the_simulator(engine: str) -> None:
    question = replace(PLAIN, engine=engine)
    assert answer(question).tpot_ms == pytest.approx(served(question, 2)["tpot_ms"], abs=2e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 1), (0.5, 3), (0.8, 4), (0.99, 16)])
def test_tokens_a_round_are_leviathans_formula(alpha: float, gamma: int) -> None:
    found = answer(Question(alpha=alpha, gamma=gamma))
    assert found.expected_tokens == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha), rel=1e-9)
    assert found.by_gamma["expected_tokens"][gamma - 1] == pytest.approx(found.expected_tokens, rel=1e-12)
    assert found.by_gamma["speedup"][gamma - 1] == pytest.approx(found.speedup, rel=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("engine", ["ideal", "vllm-v1"])
def test_parts_add_up_to_the_round_at_every_batch(policy: str, engine: str) -> None:
    found = answer(Question(policy=policy, engine=engine, batch=5))
    table = found.by_batch
    whole = sum(table[cause] for cause in table["causes"])
    assert np.all([table[cause] >= -1e-12 for cause in table["causes"]])
    assert whole == pytest.approx(table["round_ms"], rel=1e-9)
    assert found.bound == max(found.parts, key=lambda cause: found.parts[cause])
    assert sum(found.parts.values()) == pytest.approx(found.round_ms, rel=1e-9)


def test_speedup_is_one_for_what_it_is_compared_with() -> None:
    assert answer(PLAIN).by_batch["speedup"] == pytest.approx(np.ones(len(BATCHES)), rel=1e-12)


def test_memory_fits_up_to_the_batch_that_it_says() -> None:
    """Llama 3.1 8B keeps 2 x 32 layers x 8 heads x 128 numbers of 2 bytes a token: 131,072 bytes, in blocks of 16."""
    question = replace(PLAIN, engine="ideal", context=4096)
    most = answer(question).most_sequences
    assert answer(replace(question, batch=most)).fits and not answer(replace(question, batch=most + 1)).fits
    pool_GB = float(answer(question).room.split()[-2])
    assert most == pytest.approx(pool_GB * 1e9 / (131_072 * (4096 + 16)), rel=0.01)


def test_a_context_beyond_the_models_own_does_not_fit_and_says_why() -> None:
    found = answer(replace(PLAIN, model="gpt2", context=1024, prompt=1024))
    assert (found.fits, found.ttft_ms) == (False, None) and "1,024" in found.room


def test_dollars_are_the_rent_over_the_tokens_of_an_hour() -> None:
    """An H100 at $6.88 an hour (its profile), two of them."""
    found = answer(replace(PLAIN, devices=2, batch=16))
    assert found.usd_per_million == pytest.approx(2 * 6.88 / 3600 / found.tokens_per_s * 1e6, rel=1e-12)
    assert answer(replace(PLAIN, device="apple-m2-ultra")).usd_per_million is None


def test_weights_that_do_not_fit_are_one_line_with_the_arithmetic() -> None:
    with pytest.raises(ValueError, match=r"^h100-sxm: weights 141 GB .* which leaves no KV cache in 80 GB"):
        answer(Question(model="llama-3.1-70b"))


def test_the_order_of_questions_changes_nothing() -> None:
    """What is kept from one question to the next gives the same bits as a question asked alone."""
    first, other = Question(), Question(alpha=0.3, gamma=9, batch=64, context=8192)
    before = answer(first)
    answer(other)
    assert answer(first).speedup == before.speedup and answer(first).parts == before.parts


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_has_an_answer_and_narrower_weights_leave_more_room(format_: str) -> None:
    room, usual = answer(replace(PLAIN, format=format_)).most_sequences, answer(PLAIN).most_sequences
    assert room > usual if format_ != "bf16" else room == usual


# --- figures and words


def test_roofline_ridge_is_where_its_lines_cross() -> None:
    found = answer(PLAIN)
    for trace in figures(found)["roofline"].figure["data"]:
        if trace["mode"] == "lines" and len(trace["x"]) == 3:
            low, ridge, high = trace["y"]
            assert ridge == pytest.approx(trace["x"][1] * found.memory_Bps) and ridge == pytest.approx(high)
            assert low == pytest.approx(trace["x"][0] * found.memory_Bps)


def test_no_dot_lies_above_its_roof() -> None:
    found = answer(Question(batch=256))
    top = max(found.roofs.values())
    for point in found.points:
        if point.hbm_bytes and point.flops:
            assert point.attained_flops <= min(top, point.intensity * found.memory_Bps) * (1 + 1e-9), point.op


def test_bars_stack_to_the_round_and_captions_say_what_figures_show() -> None:
    found = answer(Question())
    drawn = figures(found)
    step = drawn["step"].figure
    heights, shown = np.sum([trace["y"] for trace in step["data"]], axis=0), step["data"][0]["x"]
    assert heights == pytest.approx(found.by_batch["round_ms"][: len(shown)], rel=1e-9)
    assert shown[step["layout"]["shapes"][0]["x0"]] == "8"  # Plotly counts categories from 0
    best = int(np.argmax(drawn["gamma"].figure["data"][0]["y"])) + 1
    assert f": {best}," in drawn["gamma"].caption
    assert "no gamma" in figures(answer(PLAIN))["gamma"].caption


def test_where_it_stops_paying_is_the_first_batch_that_loses() -> None:
    found = answer(Question(policy="medusa"))
    loses = [b for b, s in zip(found.by_batch["batch"], found.by_batch["speedup"], strict=True) if s < 1]
    assert figures(found)["batch"].caption.startswith(f"It stops paying at batch {loses[0]}.")


def test_batches_that_do_not_fit_are_faint_or_hollow() -> None:
    found = answer(replace(PLAIN, batch=512, context=8192))
    drawn = figures(found)
    hollow = [symbol == "circle-open" for symbol in drawn["batch"].figure["data"][0]["marker"]["symbol"]]
    assert hollow == [batch > found.most_sequences for batch in BATCHES] and True in hollow
    assert [one < 1 for one in drawn["step"].figure["data"][0]["marker"]["opacity"]] == hollow
    assert "does not fit" in drawn["step"].caption and "does not fit" in drawn["batch"].caption


def test_every_cause_of_the_step_has_a_hatch_of_its_own_or_none() -> None:
    shapes = [trace["marker"]["pattern"]["shape"] for trace in figures(answer(Question()))["step"].figure["data"]]
    hatched = [shape for shape in shapes if shape]
    assert len(set(hatched)) == len(hatched) >= 2


def test_the_sentence_says_the_numbers() -> None:
    found = answer(Question())
    assert words.sentence(found).startswith(f"{found.tokens_per_s:,.0f} tokens/s: 8 x ")
    assert words.facts(found)["Speedup"][0] == f"{found.speedup:.2f}"
    assert any("acceptance is the published one" in line for line in words.sources(answer(Question(policy="eagle"))))


def test_latency_figure_rises_from_none_to_all() -> None:
    drawn = latency_figure({"ttft_ms": [1.0, 2.0, 9.0], "tpot_ms": []})
    assert [trace["y"] for trace in drawn["data"]] == [[0.0, 0.5, 1.0]]


def test_a_run_says_how_it_stands() -> None:
    assert words.run_sentence(State("running", 0, 10)) == "Running: getting ready."
    assert words.run_sentence(State("running", 4, 10)) == "Running: 4 of at most 10 requests."
    assert words.run_sentence(State("failed", 0, 10, None, "no room")) == "Failed: no room."


# --- bad values

HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("device", "h100-smx", r"^device: 'h100-smx': must be one of .*did you mean 'h100-sxm'\?"),
        ("model", "t5-v1.1-base", r"^model: 't5-v1.1-base': must be one of"),  # an encoder beside its decoder
        ("batch", 1025, r"^batch: 1025: must be a whole number from 1 to 1024$"),
        ("batch", 2.5, r"^batch: 2.5: must be a whole number"),
        ("devices", 3, r"^devices: '3': must be one of 1, 2, 4, 8"),
        ("alpha", float("nan"), r"^alpha: nan: must be a number from 0 to 0.99$"),
        ("alpha", 1, r"^alpha: 1: must be"),
        ("gamma", True, r"^gamma: True: must be"),
        ("context", "1e999", r"^context: '?inf'?: must be"),
        ("speed", 1, r"^'speed': must be one of device"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(key: str, value: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Question.of({key: value})


@given(key=st.sampled_from([field.name for field in fields(Question)]), value=HOSTILE)
def test_no_value_gives_anything_but_a_question_or_one_line(key: str, value: Any) -> None:
    try:
        Question.of({key: value})
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


@given(key=st.sampled_from(sorted(SLIDERS)), position=HOSTILE)
def test_a_slider_position_is_a_value_or_one_line(key: str, position: Any) -> None:
    try:
        assert SLIDERS[key].at(key, position) in SLIDERS[key].values
    except ValueError as error:
        assert str(error).startswith(f"{key}: position ") and "\n" not in str(error)


@settings(max_examples=40)
@given(source=HOSTILE, traffic=st.dictionaries(st.sampled_from(["rate", "output", "requests"]), HOSTILE))
def test_what_is_to_be_run_is_checked_likewise(source: Any, traffic: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        asked.run_of(source, asked.start_positions(), traffic)


# --- runs


@pytest.mark.parametrize("source", [HERE, *shipped_scenarios()])
def test_every_run_that_is_offered_is_a_sound_scenario_of_bounded_size(source: str) -> None:
    start = asked.start_positions() | {"requests": len(SLIDERS["requests"].values) - 1}
    said, requests = asked.run_of(source, start, start)
    assert Scenario.parse(said).workload["requests"] == requests <= asked.MOST_REQUESTS


def test_a_shipped_scenario_is_not_made_longer() -> None:
    start = asked.start_positions()
    assert asked.run_of("gec_t5", start, start)[1] == 1


# --- how quick


@pytest.mark.benchmark
def test_95_of_100_warm_answers_take_under_100_ms() -> None:
    """Sliders move about at one device, model, format and policy; seconds of this thread, which waits for nothing."""
    took = timed(islice(cycle(moves()), 100))
    assert np.percentile(took, 95) < 0.1, f"p95 {np.percentile(took, 95) * 1e3:.0f} ms"


def moves() -> list[Question]:
    return [
        Question(batch=batch, context=context, alpha=alpha, gamma=gamma, prompt=context)
        for batch in (1, 12, 256) for context in (512, 16_384) for alpha, gamma in ((0.35, 2), (0.8, 5), (0.9, 16))
    ]  # fmt: skip


def timed(questions: Any) -> list[float]:
    answer(Question())
    took = []
    for question in questions:
        begun = time.thread_time()
        found: Answer = answer(question)
        figures(found)
        took.append(time.thread_time() - begun)
    return took
